"""Everything that this package raises on purpose.

    DenoiseError                 the user can mend it: one line, exit code 2
    ├── ConfigError              the config file: a key, a type, a value
    ├── VolumeError              an input volume: missing, unreadable, not matching its partner, NaN
    ├── ScanError                a raw scan: missing dataset, wrong shapes, no usable angles
    ├── CheckpointError          a model file: missing, damaged, hostile, of another mode
    ├── OutputError              an output: exists already, cannot be written, disk full
    ├── DeviceError              the GPU that was asked for is not there; memory ran out at the smallest batch
    ├── ClusterError             other machines: missing, not to be reached, told something else
    └── WorkerError              a training process died; carries that process's own message
    Interrupted                  SIGINT or SIGTERM was obeyed after saving; exit code 128 + signal number

Messages say what was expected, what was found, where, and what to do, with values.

Also here: what libraries raise for files that are damaged or made to do harm, so that every reader names the same.
"""

from __future__ import annotations

import struct
import zlib
from lzma import LZMAError
from typing import Final

#: What tifffile, h5py, zarr and their codecs were seen to raise for damaged files (see docs/reliability.md, "Fuzzing").
DAMAGE: Final = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    SystemError,
    MemoryError,
    BufferError,
    struct.error,
    zlib.error,
    LZMAError,
)


def damage_reason(error: BaseException) -> str:
    """What a library says of a file that it cannot read: one short printable line."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(said.split()) or type(error).__name__
    return printable(text if len(text) <= 300 else f"{text[:297]}...")


def printable(text: str) -> str:
    """The text with everything escaped that a terminal could take for a command; line breaks are kept."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class DenoiseError(Exception):
    """A mistake or a condition that the user can mend; shown as one line, without a traceback."""

    exit_code = 2


class ConfigError(DenoiseError):
    """The config file cannot be used as it is."""


class VolumeError(DenoiseError):
    """A reconstruction cannot be read, or does not fit the others."""


class ScanError(DenoiseError):
    """A raw scan cannot be reconstructed."""


class CheckpointError(DenoiseError):
    """A model file is missing, damaged, or not one of ours."""


class OutputError(DenoiseError):
    """A result cannot be written where it was asked for."""


class DeviceError(DenoiseError):
    """The compute device is not there or its memory is too small."""


class ClusterError(DenoiseError):
    """The machines or processes of a run do not find each other, or were told different things."""


class WorkerError(DenoiseError):
    """A training process failed; the message is that process's own."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(Exception):
    """A signal ended the run after everything worth keeping was saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
