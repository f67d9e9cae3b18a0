"""Torch archives: written whole; loaded, from anybody, as tensors and plain values only, so that no file runs code."""

from __future__ import annotations

import pickle
import platform
import re
import struct
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denoise.errors import CheckpointError
from denoise.files import whole_file

#: What an archive that is damaged, cut short or not ours makes torch.load raise.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    IndexError,
    TypeError,
    ImportError,
    AssertionError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
)


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
        _refuse_compressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: no permission; ask its owner") from error
    except _LOAD_ERRORS as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it refers to code ({foreign[1]})" if foreign else "it is damaged or cut short"
        raise CheckpointError(
            f"{path} is not loaded: {reason}; expected tensors and plain values as `denoise train` writes them"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected the dict that `denoise train` writes")
    return content


def _refuse_compressed(path: Path) -> None:
    """A few bytes could unpack to more than the memory; torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path} is not loaded: it is compressed; save it again with torch.save")


def listed_keys(content: Mapping[str, Any]) -> str:
    """The first few names in a dict, for a message."""
    return ", ".join(repr(k)[:30] for k in list(content)[:6]) or "nothing"


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


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
        torch.save(content, file)
