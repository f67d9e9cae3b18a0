"""Changes to valid files that a damaged disk, a broken copy or an enemy could make.

An input is a tree: relative names and their bytes (one file, a folder of slices, a Zarr store). `mutated` gives a
changed copy; JSON and zip members are changed inside their containers too, so that changes get past those containers'
own checks.
`LineCoverage` tells which lines of chosen modules an input reached for the first time.
"""

from __future__ import annotations

import io
import json
import random
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

Tree: TypeAlias = dict[str, bytes]

_WHOLE_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
_JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 1.5, -0.0, 1e308, 2**31, 2**40, 2**63, 2**64, 10**30, "", "x", "..",
    "/etc/passwd",
    "../../etc", "\x1b[2J", "NaN", "Infinity", "<f4", "|O", "float32", "pickle", [], {}, [1], [0, 0, 0], [2**40] * 3,
    [[]],
    {"id": "pickle"}, {"id": "zlib", "level": 99}, {"name": "numcodecs.pickle"}, {"name": "gzip"},
)  # fmt: skip
_TEXT_PIECES = (
    b"", b"0", b"1", b"-1", b"1e-4", b"1e999", b".nan", b"null", b"true", b"'", b'"', b"{", b"}", b"[", b"]", b": ",
    b"- ", b"\n",
    b"#", b"&a ", b"*a", b"!!python/name:os.system ", b"<<: ", b"~", b"..", b"3d", b"2.5d", b"unet", b"residual",
    b"9" * 5000, b"%YAML 1.1\n",
    b"---\n", b"|", b">", b"\t", b"0x1F", b"1_000", b"2026-01-01", b"x" * 300, b"a.h5::/b", b"16", b"64", b"0.5",
    b"auto",
)  # fmt: skip
_MOST_BYTES = 200_000


def mutated(tree: Tree, rng: random.Random, others: list[Tree]) -> Tree:
    """A copy with one to eight changes; ``others`` lend pieces of theirs."""
    changed = dict(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if len(changed) > 1 and rng.random() < 0.08:
            _change_names(changed, rng)
        name = rng.choice(sorted(changed))
        other = rng.choice(others)
        changed[name] = _member(changed[name], rng, rng.choice(list(other.values())))
    return changed


def _change_names(tree: Tree, rng: random.Random) -> None:
    """Lose, rename or double one file."""
    name = rng.choice(sorted(tree))
    content = tree.pop(name)
    kind = rng.randrange(3)
    if kind:
        head, _, tail = name.rpartition("/")
        new = rng.choice(("0", "1", "0.0.0", "zarr.json", ".zarray", ".zgroup", "c", "s_00001.tif", f"{tail}x", tail))
        place = f"{head}/{new}" if head else new
        # A name cannot be a file and a folder at once.
        if not any(n.startswith(f"{place}/") or place.startswith(f"{n}/") for n in tree):
            tree[place] = content
    if kind == 2 or not tree:
        tree[name] = content


def _member(data: bytes, rng: random.Random, other: bytes) -> bytes:
    if data[:1] == b"{" and rng.random() < 0.6:
        try:
            value = json.loads(data)
        except ValueError:
            return _bytes(data, rng, other)
        return json.dumps(_json(value, rng)).encode()
    if data[:4] == b"PK\x03\x04" and rng.random() < 0.7:
        try:
            return _zip(data, rng, other)
        except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, RuntimeError, UnicodeError):
            pass  # an earlier change broke the container
    if data.isascii() and b"\0" not in data and rng.random() < 0.8:
        return _text(data, rng)
    return _bytes(data, rng, other)


def _text(data: bytes, rng: random.Random) -> bytes:
    """Change words and lines; it stays text."""
    pieces = re.split(rb"(\s+|[:,{}\[\]])", data)
    k = rng.randrange(len(pieces))
    kind = rng.randrange(4)
    if kind == 0:
        pieces[k] = rng.choice(_TEXT_PIECES)
    elif kind == 1:
        del pieces[k : k + rng.choice((1, 1, 2, 8))]
    elif kind == 2:
        begin = rng.randrange(len(pieces))
        pieces[k:k] = pieces[begin : begin + rng.choice((1, 2, 8))]
    else:
        pieces[k] = pieces[rng.randrange(len(pieces))]
    return b"".join(pieces)[:_MOST_BYTES]


def _json(value: Any, rng: random.Random) -> Any:
    """Replace, remove or repeat something at a random depth."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: _json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        k = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:k] + value[k + 1 :] if rng.random() < 0.5 else [*value, value[k]]
        return [*value[:k], _json(value[k], rng), *value[k + 1 :]]
    if type(value) is int and rng.random() < 0.3:
        return value * rng.choice((-1, 2, 1000, 10**6, 2**30))
    return rng.choice(_JSON_VALUES)


def _zip(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Change one member and pack all again, so that names, sizes and checksums agree."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    k = rng.randrange(len(members))
    # The pickle says what everything is; the tensors' values hardly matter.
    k = next((i for i, (name, _) in enumerate(members) if name.endswith(".pkl")), k) if rng.random() < 0.8 else k
    name, content = members[k]
    members[k] = (name, _bytes(content, rng, other)) if rng.random() < 0.95 else (name + "x", content)
    packed = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
    with zipfile.ZipFile(packed, "w", kind) as archive:
        for member, content in members:
            archive.writestr(zipfile.ZipInfo(member), content)
    return packed.getvalue()


def _bytes(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """One change to a run of bytes."""
    buffer = bytearray(data)
    n = len(buffer)
    start = rng.randrange(n) if n else 0
    length = min(rng.choice((1, 1, 2, 4, 8, 16, 64, 256)), n - start) if n else 0
    kind = rng.randrange(8)
    if kind == 0 and n:
        buffer[start] ^= 1 << rng.randrange(8)
    elif kind == 1 and n:
        buffer[start : start + length] = rng.randbytes(length)
    elif kind == 2:
        size = rng.choice((1, 2, 4, 8))
        number = (rng.choice(_WHOLE_NUMBERS) + rng.choice((0, 0, 1, -1))) % 2 ** (8 * size)
        buffer[start : start + size] = number.to_bytes(size, rng.choice(("little", "big")))
    elif kind == 3:
        del buffer[start:]
    elif kind == 4:
        del buffer[start : start + length]
    elif kind == 5:
        buffer[start:start] = buffer[start : start + length] * rng.choice((1, 1, 2, 50))
    elif kind == 6 and other:
        begin = rng.randrange(len(other))
        buffer[start : start + length] = other[begin : begin + max(1, length)]
    elif n:
        target = rng.randrange(n)
        buffer[target : target + length] = buffer[start : start + length]
    return bytes(buffer[:_MOST_BYTES])


class LineCoverage:
    """Lines of the modules whose path holds one of ``parts``; those reached before are known."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self._parts = parts
        self._interesting: dict[str, bool] = {}
        self.known: set[tuple[str, int]] = set()
        self.new: set[tuple[str, int]] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect into ``new`` what the block reaches for the first time (in this thread)."""
        self.new = set()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(None)
            self.new -= self.known

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in self._interesting:
            self._interesting[file] = any(part in file for part in self._parts)
        return self._line if self._interesting[file] else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.new.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line
