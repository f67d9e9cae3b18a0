"""One image in a TIFF file: what it is, and reading a rectangle of it without decoding the rest.

Only the rows, strips or tiles that a rectangle touches are read. Companion files that OME or Micro-Manager metadata
point to are never followed: a file speaks for itself only.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray

from denoise.errors import DAMAGE, VolumeError, damage_reason
from denoise.volumes.limits import require_small_pieces
from denoise.volumes.volume import require_stored_type

_JPEG_COMPRESSIONS = {6, 7, 34892, 33007}
_MOST_PAGES = 1_000_000

# Decoding and reading release the interpreter lock; more threads than this gain nothing on one local disk.
_THREADS = 8

Item = TypeVar("Item")


@dataclass(frozen=True)
class Rectangle:
    """Rows y..y_stop-1 and columns x..x_stop-1 of an image."""

    y: int
    y_stop: int
    x: int
    x_stop: int


@contextmanager
def opened(path: Path, what: str) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file for reading its pages.

    Parameters
    ----------
    what
        Names the file, and the slice if there is one, in an error.

    Raises
    ------
    VolumeError
        The file is gone, forbidden, not a TIFF, damaged or cut short; also while it is read inside the block.
    """
    try:
        with tifffile.TiffFile(path, is_ome=False, is_mmstack=False, is_ndtiff=False) as tif:
            yield tif
    except FileNotFoundError as error:
        raise VolumeError(f"{what} does not exist (any more); put it back, or correct the path") from error
    except OSError as error:
        raise VolumeError(f"{what} cannot be read: {error.strerror or damage_reason(error)}") from error
    except (tifffile.TiffFileError, *DAMAGE) as error:
        raise VolumeError(
            f"{what} is not a TIFF, damaged or cut short ({damage_reason(error)}); write or copy it again"
        ) from error


def page_offsets(tif: tifffile.TiffFile, what: str) -> tuple[int, ...]:
    """Where each page's header lies in the file.

    The chain is followed here, because tifffile takes a chain that breaks off for one that ends.

    Raises
    ------
    VolumeError
        The chain leaves the file or bites its own tail.
    """
    handle, form = tif.filehandle, tif.tiff
    handle.seek(8 if form.version == 43 else 4)
    offsets: dict[int, None] = {}
    while offset := int(struct.unpack(form.offsetformat, handle.read(form.offsetsize))[0]):
        if offset >= handle.size or offset in offsets or len(offsets) > _MOST_PAGES:
            raise VolumeError(
                f"{what} is damaged or cut short: after {len(offsets)} pages, the next should be at byte {offset}, "
                f"but the file has {handle.size}; write or copy it again"
            )
        offsets[offset] = None
        handle.seek(offset)
        n_tags = int(struct.unpack(form.tagnoformat, handle.read(form.tagnosize))[0])
        handle.seek(offset + form.tagnosize + n_tags * form.tagsize)
    return tuple(offsets)


def page_at(tif: tifffile.TiffFile, offset: int, index: int) -> tifffile.TiffPage:
    """The page whose header lies at a byte offset."""
    tif.filehandle.seek(offset)
    return tifffile.TiffPage(tif, index)


def image_format(page: tifffile.TiffPage, what: str) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Shape (Y, X) and type, in native byte order, of a page that holds grey values.

    Raises
    ------
    VolumeError
        Colour, several samples, a depth of its own, or a type that volumes cannot have.
    """
    # A damaged tag gives several numbers where one is expected.
    if len(page.shape) != 2 or not all(isinstance(n, int) and n > 0 for n in page.shape):
        raise VolumeError(
            f"{what} holds an image of shape {reprlib.repr(page.shape)} (axes {page.axes or 'unknown'}: S are the "
            "colour samples); expected one grey image (Y, X): convert it to grey values first"
        )
    return (page.shape[0], page.shape[1]), require_stored_type(page.dtype, what)


def read_rectangle(page: tifffile.TiffPage, rectangle: Rectangle, out: NDArray[Any], what: str) -> None:
    """Read part of an image into ``out``, (rows, columns), of any type.

    Raises
    ------
    VolumeError
        The file ends before the data does, or a part was never written.
    """
    r = rectangle
    height, width = page.shape
    dtype = stored_type(page)
    if page.is_final:
        start = _final_start(page, what)
        rows = page.parent.filehandle.read_array(dtype, (r.y_stop - r.y) * width, start + r.y * width * dtype.itemsize)
        out[...] = rows.reshape(-1, width)[:, r.x : r.x_stop]
        return
    rows_each, columns_each = (
        (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
    )
    require_small_pieces((rows_each, columns_each), dtype, what)
    per_row = -(-width // columns_each)
    for j in range(r.y // rows_each, -(-r.y_stop // rows_each)):
        for i in range(r.x // columns_each, -(-r.x_stop // columns_each)):
            segment = _decoded(page, j * per_row + i, what)
            y, x = j * rows_each, i * columns_each
            y_low, y_high = max(y, r.y), min(y + segment.shape[0], r.y_stop)
            x_low, x_high = max(x, r.x), min(x + segment.shape[1], r.x_stop)
            out[y_low - r.y : y_high - r.y, x_low - r.x : x_high - r.x] = segment[
                y_low - y : y_high - y, x_low - x : x_high - x
            ]


def require_whole(page: tifffile.TiffPage, what: str) -> None:
    """Refuse a file that ends before its pixels do, without reading them.

    Raises
    ------
    VolumeError
        It is cut short, or a part was never written.
    """
    if page.is_final:
        _final_start(page, what)
    else:
        for index in range(len(page.dataoffsets)):
            _place(page, index, what)


def stored_type(page: tifffile.TiffPage) -> np.dtype[Any]:
    """The type of the page's values in the byte order of the file."""
    assert page.dtype is not None
    return page.dtype.newbyteorder("<" if page.parent.byteorder == "<" else ">")


def in_threads(function: Callable[[Item], None], items: list[Item]) -> None:
    """Call the function for every item from a few threads; the first error is raised."""
    if len(items) < 2:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(min(_THREADS, len(items))) as pool:
        for _ in pool.map(function, items):
            pass


def _decoded(page: tifffile.TiffPage, index: int, what: str) -> NDArray[Any]:
    """One strip or tile, (rows, columns) as far as they lie in the image."""
    offset, n_bytes = _place(page, index, what)
    handle = page.parent.filehandle
    # Both may read tags, which moves the file's position: before the seek.
    decode = page.decode
    tables = (
        {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG_COMPRESSIONS else {}
    )
    handle.seek(offset)
    segment, _, shape = decode(handle.read(n_bytes), index, **tables)
    assert segment is not None
    return np.asarray(segment)[0, : shape[1], : shape[2], 0]


def _final_start(page: tifffile.TiffPage, what: str) -> int:
    """Where the pixels of a page begin that are stored as they are, one after the other, all of them."""
    start: int = page.dataoffsets[0]
    _require_bytes(page, start, page.shape[0] * page.shape[1] * stored_type(page).itemsize, what)
    return start


def _place(page: tifffile.TiffPage, index: int, what: str) -> tuple[int, int]:
    """Offset and length of one strip or tile that is there."""
    offset, n_bytes = page.dataoffsets[index], page.databytecounts[index]
    if not offset or not n_bytes:
        raise VolumeError(f"{what} is incomplete: strip or tile {index} was never written; write or copy it again")
    _require_bytes(page, offset, n_bytes, what)
    return offset, n_bytes


def _require_bytes(page: tifffile.TiffPage, offset: int, n_bytes: int, what: str) -> None:
    size = page.parent.filehandle.size
    if offset + n_bytes > size:
        raise VolumeError(
            f"{what} is cut short: expected pixels up to byte {offset + n_bytes}, but the file has {size}; "
            "write or copy it again"
        )
