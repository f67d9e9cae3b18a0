"""Which format a path means: the two functions that the rest of the package opens and creates volumes with.

The formats' libraries are imported only when one of their files is met.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from denoise import files
from denoise.errors import OutputError, VolumeError, damage_reason, printable
from denoise.files import file_and_dataset
from denoise.tiles import Triple
from denoise.volumes.compression import BLOSC, COMPRESSIONS, GZIP, NONE
from denoise.volumes.sink import WholeVolumeSink
from denoise.volumes.slab_writer import SlabWriter, VolumeHeader
from denoise.volumes.unfinished import Unfinished
from denoise.volumes.units import rounded
from denoise.volumes.volume import STORED_TYPES, StoredVolume, Volume, VolumeSink, VoxelSize

_TIFF = (".tif", ".tiff")
_HDF5 = (".h5", ".hdf5", ".hdf", ".nxs")
_ZARR = (".zarr",)
_DEFAULT_DATASET = "/exchange/data"
_KNOWN = (
    "a folder of .tif slices, a multi-page .tif, HDF5 as file.h5 or file.h5::/exchange/data, "
    "or Zarr as store.zarr or store.zarr::path"
)


def open_volume(path: str | os.PathLike[str]) -> Volume:
    """Open a volume of any format; headers only, voxels are read when they are asked for.

    Parameters
    ----------
    path
        A folder of TIFF slices, a (multi-page) TIFF file, an HDF5 file or a Zarr store; the place inside of an HDF5
        file or a Zarr store follows two colons and may be left out where there is one candidate only.

    Raises
    ------
    VolumeError
        Nothing there, a format or type that is not supported, not three axes, damaged; says what was found.
    """
    try:
        return _opened(os.fspath(path))
    except (OSError, ValueError) as error:  # no permission for a folder, a name that is too long or holds a NUL
        raise VolumeError(f"{printable(os.fspath(path))[:500]} cannot be read: {damage_reason(error)}") from error


def stored_description(path: str | os.PathLike[str]) -> str:
    """What an output says of itself: among other text what ``create_sink`` was given, escaped as the format asks.

    Raises
    ------
    VolumeError
        It cannot be read.
    """
    return _opened(os.fspath(path)).description()


def _opened(path: str) -> StoredVolume:
    place, inner = _split(path)
    if not place.exists():
        raise VolumeError(f"{place} does not exist; expected {_KNOWN}")
    suffix = place.suffix.lower()
    resolved = place.resolve()
    if resolved.is_dir():
        from denoise.volumes.zarr_store import ZarrVolume, looks_like_zarr

        if suffix in _ZARR or inner or looks_like_zarr(resolved):
            return ZarrVolume.open(resolved, inner)
        from denoise.volumes.tiff_stack import TiffStackVolume

        return TiffStackVolume.open(resolved)
    if suffix in _HDF5:
        from denoise.volumes.hdf5_file import Hdf5Volume

        return Hdf5Volume.open(resolved, inner)
    if suffix in _TIFF and not inner:
        from denoise.volumes.tiff_file import TiffFileVolume

        return TiffFileVolume.open(resolved)
    raise VolumeError(f"{path} is of no known format; expected {_KNOWN}")


def create_sink(
    path: str | os.PathLike[str],
    *,
    shape: Triple,
    dtype: DTypeLike = np.float32,
    voxel_size_um: VoxelSize | None = None,
    slice_numbers: range | None = None,
    overwrite: bool = False,
    description: str = "",
    compression: str | None = None,
    resumable: bool = False,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
    leads: bool = True,
) -> VolumeSink:
    """A sink for a new volume; nothing is written before its ``with`` block is entered.

    Parameters
    ----------
    path
        The suffix decides: ``.tif`` one OME-TIFF, ``.h5`` HDF5 (``::/dataset``, by default /exchange/data), ``.zarr``
        OME-Zarr 0.5, none a folder of TIFF slices that ImageJ opens with its voxel size.
    shape
        (Z, Y, X).
    dtype
        uint8, uint16, int16, float32 or float64; integers are rounded and clipped.
    voxel_size_um
        (Z, Y, X) in micrometres; 7 digits count.
    slice_numbers
        What the user calls each slice; 0, 1, 2, ... by default.
    overwrite
        Whether a result of an earlier run may be replaced; what does not look like one is refused all the same.
    compression
        ``none``, ``gzip`` (which every program reads) or ``blosc`` (faster by far; HDF5 and Zarr only); without
        loss. By default ``blosc`` for Zarr and ``none`` for the others.
    resumable
        Whether slices that are done are kept when the ``with`` block ends by an exception.
    resume
        Go on with what an earlier run left, if it left something; ``missing`` says what is still to be written.
    facts
        What the result is made from, plain values: a run may only go on with what was begun from the same.
    leads
        Whether this process is to enter the sink, and its place must be free; or helps another one, on another machine
        perhaps, which does.

    Raises
    ------
    OutputError
        The name is taken, or holds files that are not ours; not writable; disk too small; unknown format or type;
        there is an unfinished result that was begun from something else, or that neither ``resume`` nor ``overwrite``
        says what to do with.
    """
    place, inner = _split(os.fspath(path))
    final = place.absolute()
    kind = _output_format(final, inner)
    stored = np.dtype(dtype).newbyteorder("=")
    if stored.name not in STORED_TYPES:
        raise OutputError(f"{final} cannot hold values of type {stored}; choose one of {', '.join(STORED_TYPES)}")
    numbers = range(shape[0]) if slice_numbers is None else slice_numbers
    assert min(shape) >= 1, f"nothing to write: {shape}"
    assert len(numbers) == shape[0], f"{len(numbers)} slice numbers for {shape[0]} slices"
    assert numbers[0] >= 0, f"negative slice numbers: {numbers}"
    assert numbers.step >= 1, f"slice numbers must go up: {numbers}"
    size = None
    if voxel_size_um is not None:
        z, y, x = (rounded(length) for length in voxel_size_um)
        size = (z, y, x)
    header = VolumeHeader(shape, stored, size, numbers, description, _compression(final, kind, compression))
    unfinished = Unfinished(final)
    if leads:
        unfinished.restore_replaced()
        files.require_free(final, overwrite=overwrite)
    writer = _FORMATS[kind](final, unfinished.result, header, inner)
    sink = WholeVolumeSink(unfinished, header, writer, overwrite, resumable, resume, facts or {})
    if leads:
        sink.require_place()
    return sink


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether an output stands under its final name, and no run has begun to make it anew."""
    final = _split(os.fspath(path))[0].absolute()
    return os.path.lexists(final) and not Unfinished(final).exists


def _compression(final: Path, kind: str, asked: str | None) -> str:
    """The name of the compression, if the format has it."""
    if asked is None:
        return BLOSC if kind == "zarr" else NONE
    if asked not in COMPRESSIONS:
        raise OutputError(f"{final} cannot be compressed with {asked!r}; choose one of {', '.join(COMPRESSIONS)}")
    if asked == BLOSC and kind in ("tiff", "folder"):
        raise OutputError(
            f"{final}: no program reads TIFF compressed with Blosc; choose gzip, or a .zarr or .h5 output"
        )
    if asked == GZIP and kind == "tiff":
        raise OutputError(
            f"{final}: a single TIFF file is not compressed, because its slices could not be written in any order; "
            "choose a folder of slices (a name without a suffix), or a .zarr or .h5 output"
        )
    return asked


def _split(path: str) -> tuple[Path, str]:
    """The path on disk and the place inside of the file (empty where none was given)."""
    place, inner = file_and_dataset(path)
    return Path(place), inner


def _output_format(final: Path, inner: str) -> str:
    suffix = final.suffix.lower()
    for name, suffixes in (("tiff", _TIFF), ("hdf5", _HDF5), ("zarr", _ZARR)):
        if suffix in suffixes and (not inner or name == "hdf5"):
            return name
    # A folder called scan_0.65um has a "suffix" too, one that begins with a digit.
    if inner or final.name in ("", "..") or re.fullmatch(r"\.[a-z]\w*", suffix):
        raise OutputError(
            f"{final}{'::' + inner if inner else ''} names no format that can be written; expected a name that ends in "
            ".tif, .h5 (::/dataset may follow) or .zarr, or a folder name without a suffix for TIFF slices"
        )
    return "folder"


def _tiff_writer(final: Path, partial: Path, header: VolumeHeader, inner: str) -> SlabWriter:
    from denoise.volumes.tiff_file import TiffFileWriter

    _require_replaceable_file(final)
    return TiffFileWriter(partial, header, final.name)


def _folder_writer(final: Path, partial: Path, header: VolumeHeader, inner: str) -> SlabWriter:
    from denoise.volumes.tiff_stack import TiffStackWriter, first_foreign_entry

    _require_replaceable_folder(final)
    if final.exists() and (foreign := first_foreign_entry(final)):
        raise _foreign(final, foreign, "TIFF slices")
    return TiffStackWriter(partial, header, final.name)


def _hdf5_writer(final: Path, partial: Path, header: VolumeHeader, inner: str) -> SlabWriter:
    from denoise.volumes.hdf5_file import Hdf5Writer, require_only_dataset

    _require_replaceable_file(final)
    dataset = "/" + (inner or _DEFAULT_DATASET).strip("/")
    if not all(part not in ("", ".", "..") for part in dataset[1:].split("/")):
        raise OutputError(f"{final}::{inner} names no dataset; expected something like {_DEFAULT_DATASET}")
    if final.exists():
        require_only_dataset(final, dataset)
    if header.compression == NONE:
        return Hdf5Writer(partial, header, dataset)
    from denoise.volumes.hdf5_compressed import CompressedHdf5Writer

    return CompressedHdf5Writer(partial, header, dataset)


def _zarr_writer(final: Path, partial: Path, header: VolumeHeader, inner: str) -> SlabWriter:
    from denoise.volumes.zarr_store import first_foreign_entry, looks_like_zarr
    from denoise.volumes.zarr_writer import ZarrWriter

    _require_replaceable_folder(final)
    if final.exists() and (foreign := first_foreign_entry(final)):
        raise _foreign(final, foreign, "a Zarr array")
    if final.exists() and not looks_like_zarr(final):
        raise OutputError(
            f"{final} exists and is no Zarr store; it is not replaced: choose another place for the output"
        )
    return ZarrWriter(partial, header, final.stem)


_FORMATS: dict[str, Callable[[Path, Path, VolumeHeader, str], SlabWriter]] = {
    "tiff": _tiff_writer,
    "folder": _folder_writer,
    "hdf5": _hdf5_writer,
    "zarr": _zarr_writer,
}


def _require_replaceable_file(final: Path) -> None:
    if final.is_dir():
        raise OutputError(f"{final} is a folder, expected a file to replace; choose another place for the output")


def _require_replaceable_folder(final: Path) -> None:
    if os.path.lexists(final) and not final.is_dir():
        raise OutputError(f"{final} is a file, expected a folder to replace; choose another place for the output")


def _foreign(final: Path, entry: Path, expected: str) -> OutputError:
    return OutputError(
        f"{final} holds {entry.relative_to(final)}, which is not part of {expected}; a folder with other things in it "
        "is never replaced: choose another place for the output"
    )
