"""Torch archives: written whole; loaded, from anybody, as tensors and plain values only, so that no file runs code.

What an archive wants to call is read from its pickle before torch sees it: torch's own list of harmless calls is longer
than ours, and with some of them (``_codecs.encode``, sparse tensors) a few bytes fill the memory.
"""

from __future__ import annotations

import pickle
import pickletools
import platform
import re
import reprlib
import warnings
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from denoise.errors import DAMAGE, CheckpointError, damage_reason, printable
from denoise.files import whole_file

#: What an archive that is damaged, cut short or not ours makes torch.load raise.
_LOAD_ERRORS = (*DAMAGE, pickle.UnpicklingError, ImportError, zipfile.BadZipFile)
#: All that tensors and plain values, as torch.save writes them, are made by.
_CALLED = re.compile(
    r"torch (\w+Storage|Size|device)|torch\.storage \w+Storage|collections OrderedDict|"
    r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
#: An older archive is this many pickles, then the tensors.
_OLDER_PICKLES = 5
#: Of a pickle; those of our largest models have 100 kB.
_MOST_OPCODES = 2_000_000


def load_archive(path: Path) -> dict[str, Any]:
    """The dict that an archive holds.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, refers to code, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; check the name, or run `denoise train` first")
    try:
        _refuse_calls_and_compression(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: no permission; ask its owner") from error
    except _LOAD_ERRORS as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it refers to code ({printable(foreign[1])[:80]})" if foreign else "it is damaged or cut short"
        if isinstance(error, MemoryError):
            reason = damage_reason(error)
        raise CheckpointError(
            f"{path} is not loaded: {reason}; expected tensors and plain values as `denoise train` writes them"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected the dict that `denoise train` writes")
    return content


def _refuse_calls_and_compression(path: Path) -> None:
    """Refuse what could run code, or unpack a few bytes to more than the memory; torch.save compresses nothing."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(_OLDER_PICKLES):
                _refuse_calls(file)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{path} is not loaded: it is compressed; save it again with torch.save")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise CheckpointError(f"{path} is not loaded: its parts overlap; save it again with torch.save")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                with archive.open(entry) as file:
                    _refuse_calls(file)


def _refuse_calls(file: IO[bytes]) -> None:
    """Read one pickle without doing what it says.

    Raises
    ------
    pickle.UnpicklingError
        It names something to call that no tensor needs, or is absurdly long.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in damaged text
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > _MOST_OPCODES:
                raise pickle.UnpicklingError("too long")
            calls = "GLOBAL" in opcode.name or opcode.name in ("INST", "EXT1", "EXT2", "EXT4")
            if calls and _CALLED.fullmatch(str(argument)) is None:
                raise pickle.UnpicklingError(f"GLOBAL {str(argument or opcode.name).replace(' ', '.')}")


class _Short(reprlib.Repr):
    """Whole numbers too: Python refuses to write out those of more than 4300 digits."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**40 else "a whole number of more than 40 digits"


def shown(value: object) -> str:
    """A value of a stranger's file in a message: short, printable, whatever its size and depth."""
    short = _Short()
    short.maxstring = short.maxother = 60
    return printable(short.repr(value))[:80]


def listed_keys(content: Mapping[str, Any]) -> str:
    """The first few names in a dict, for a message."""
    return ", ".join(shown(k)[:30] for k in list(content)[:6]) or "nothing"


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0])[:200] if lines else type(error).__name__


def software_versions() -> dict[str, str]:
    """Versions that matter for repeating a result."""
    return {
        "ct-denoise": version("ct-denoise"),
        "torch": str(torch.__version__),  # its own type is no plain string
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def as_plain(numbers: Mapping[str, float]) -> dict[str, float]:
    """Without numpy's scalars, which ``weights_only`` refuses to load."""
    return {name: float(number) for name, number in numbers.items()}


def save_archive(content: dict[str, Any], path: Path) -> None:
    """Write an archive whole; readers see the old file or the new one, never half of one."""
    # Given a path, torch opens the file itself and reports a full disk as a RuntimeError without a reason.
    with whole_file(path) as partial, partial.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of its archive writer, which closes after the disk refused a part
            refusal = error.__context__
            if isinstance(refusal, OSError):
                raise refusal from error
            raise
