"""Types of single values in the config file, and what is documented about each field.

Numbers are strict: ``true`` is not 1 and ``"32"`` is not 32, because such a file says something else than was meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

LARGEST_COUNT = 2**31 - 1
LARGEST_EDGE = 8192
LONGEST_SAMPLE_NAME = 100

_NOT_IN_FILE_NAMES = "/\\"

# Said alike of many fields.
COUNT_RULE = "a whole number, at least 1"
COUNT_OR_ZERO_RULE = "a whole number, 0 or more"
EDGE_RULE = "a whole number, 1 to 8192"
NAME_RULE = 'a file or folder, or a dataset in a file such as "scan.h5::/exchange/data"'
MEMORY_RULE = 'an amount of memory such as "8G" or "500M"'
PRECISION_RULE = '"auto", "bf16" or "float32"'


class Section(BaseModel):
    """Base of the three sections: immutable, and unknown fields are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class About:
    """What a user is told of a field; every field in ``sections`` carries one.

    Attributes
    ----------
    what
        What it is, a noun phrase.
    values
        The rule, continuing the words "must be ...".
    effect
        What changing it does; for a null default, what null means.
    unit
        Unit of the value, or empty.
    example
        Value shown in ``baseline_config.yaml`` where the default alone would not make a file that loads.
    """

    what: str
    values: str
    effect: str
    unit: str = ""
    example: Any = None


def _writable(text: str) -> str:
    if not text.strip() or "\0" in text or any("\ud800" <= c <= "\udc7f" or "\udd00" <= c <= "\udfff" for c in text):
        raise ValueError("must be a name or path, not blank, of characters that a file name can have")
    return text


def _reconstruction(text: str) -> str:
    file, separator, inside = _writable(text).partition("::")
    if not file.strip() or (separator and not inside.strip()):
        raise ValueError(f"must be {NAME_RULE}")
    return f"{_at_home(Path(file))}{separator}{inside}" if file == "~" or file.startswith("~/") else text


def _file_name(text: str) -> str:
    if text != as_file_name(text):
        raise ValueError(
            f"must be a file name of at most {LONGEST_SAMPLE_NAME} characters, without / and \\, "
            "that starts with a letter, a digit or _"
        )
    return text


def as_file_name(text: str) -> str:
    """The nearest name that can stand in front of ``_training_3d`` or ``.tif`` on any file system; may be empty."""
    kept = "".join("_" if c in _NOT_IN_FILE_NAMES or not c.isprintable() else c for c in text.strip())
    return kept.lstrip(".-").strip()[:LONGEST_SAMPLE_NAME].strip()


def bytes_of(text: str) -> int:
    """What ``8G`` or ``500M`` means in bytes; K, M, G and T are powers of 1024, as batch systems count.

    Raises
    ------
    ValueError
        It means nothing.
    """
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if found is None or float(found[1]) == 0:
        raise ValueError(f"must be {MEMORY_RULE}")
    return int(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2].upper())))


def _memory(text: str) -> str:
    bytes_of(text)
    return text


def _from_config_folder(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base") or Path.cwd()
    _writable(str(path))
    return Path(base).absolute() / _at_home(path)


def _at_home(path: Path) -> Path:
    """With what ``~`` at its beginning stands for."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("must be a path; no home folder is known for the user after ~") from None


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _none_is_empty(value: object) -> object:
    return () if value is None else value


def _none_or_two(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) == 1:
        raise ValueError("must be a list of two or more names: noise is told from signal by comparing splits")
    return names


Count: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=LARGEST_COUNT)]
CountOrZero: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)]
Edge: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=LARGEST_EDGE)]
Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Flag: TypeAlias = Annotated[bool, Field(strict=True)]
Folder: TypeAlias = Annotated[Path, AfterValidator(_from_config_folder)]
Reconstruction: TypeAlias = Annotated[str, Field(strict=True), AfterValidator(_reconstruction)]
Splits: TypeAlias = Annotated[tuple[Reconstruction, ...], BeforeValidator(_none_is_empty), AfterValidator(_none_or_two)]
FileName: TypeAlias = Annotated[str, Field(strict=True), AfterValidator(_writable), AfterValidator(_file_name)]
MemorySize: TypeAlias = Annotated[str, Field(strict=True), AfterValidator(_memory)]
AnyCase = BeforeValidator(_lower)
Precision: TypeAlias = Literal["auto", "bf16", "float32"]
