"""A Zarr array or an OME-Zarr image (its finest level), formats 2 and 3: reading.

The OME metadata is a few lines of JSON, read here by hand. Stores are opened for each read, so that volumes may be
pickled, forked and used from several threads. Only the chunks that a region touches are read, also inside of shards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from denoise.errors import DAMAGE, VolumeError, damage_reason
from denoise.tiles import Region, Triple
from denoise.volumes.limits import axes_before, require_small_pieces, require_volume_shape
from denoise.volumes.units import in_micrometres
from denoise.volumes.volume import (
    Float32Array,
    VoxelSize,
    chunk_shape,
    require_inside,
    require_stored_type,
    stored_numbers,
)

_METADATA_NAMES = ("zarr.json", ".zarray", ".zgroup")
# All names in an image of ours: metadata, the levels, "c" and the chunks' coordinates.
_OUR_NAMES = re.compile(r"zarr\.json|\.z(array|group|attrs|metadata)|c|\d+(\.\d+)*")
#: Where a store of ours says what OME-Zarr has no words for.
OUR_ATTRIBUTES = "denoise"
_MOST_CANDIDATES = 20
#: Groups within groups that are searched for names to tell.
_DEEPEST = 3
#: What grey values are compressed with. A store names the codecs that its reader is to call, and there are some that
#: run code (numcodecs' pickle) or that others may have installed.
_CODECS = frozenset(
    {"blosc", "zlib", "gzip", "zstd", "lz4", "lzma", "bz2", "shuffle", "bitround", "delta", "fixedscaleoffset"}
    | {"bytes", "transpose", "crc32c", "crc32", "adler32", "fletcher32", "sharding_indexed", "packbits"}
)


def looks_like_zarr(folder: Path) -> bool:
    """Whether a folder is the root of a Zarr store."""
    return any((folder / name).is_file() for name in _METADATA_NAMES)


def first_foreign_entry(folder: Path) -> Path | None:
    """Something below a folder that an image of ours would not hold; None where there is nothing else."""
    return next((p for p in sorted(folder.rglob("*")) if not _OUR_NAMES.fullmatch(p.name)), None)


@dataclass(frozen=True)
class ZarrVolume:
    """A three-axis Zarr array as a Volume; ``array`` is its place in the store, empty for the root."""

    path: Path
    array: str
    shape: Triple
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    slice_numbers: range
    chunk_zyx: Triple
    axes_before: int = 0
    """Of length 1: one channel, one time."""

    @classmethod
    def open(cls, path: Path, inner: str = "") -> ZarrVolume:
        """Find the array and read its metadata.

        Parameters
        ----------
        inner
            Place of an array, or of an OME-Zarr group, in the store.

        Raises
        ------
        VolumeError
            No Zarr store; no such array, or not exactly one candidate (they are listed); axes other than z, y, x;
            a type that volumes cannot have.
        """
        inner = inner.strip("/")
        what = f"{path}::{inner}" if inner else str(path)
        if not looks_like_zarr(path / _safe(inner, what)):
            raise VolumeError(f"{what} is no Zarr array or group; expected zarr.json, .zarray or .zgroup in it")
        with _explained(what):
            node = zarr.open(LocalStore(path, read_only=True), path=inner, mode="r")
            voxel_size: VoxelSize | None = None
            ours: Mapping[str, Any] = {}
            if isinstance(node, zarr.Group):
                attributes = node.attrs.asdict()
                ours = _mapping(attributes.get(OUR_ATTRIBUTES))
                level, voxel_size = _finest_level(attributes, what) or (_only_array(node, what), None)
                inner = f"{inner}/{_safe(level, what)}".strip("/")
            array = _array(path, inner)
        what = f"{path}::{inner}"
        before = axes_before(array.shape)
        shape = require_volume_shape(array.shape[before:], what)
        numbers = stored_numbers(ours.get("first_slice_number"), ours.get("slice_number_step"), shape[0])
        dtype = require_stored_type(array.dtype, what)
        # Of a sharded array, ``chunks`` are the inner ones, which are read and decoded one by one.
        return cls(path, inner, shape, dtype, voxel_size, numbers, chunk_shape(array.chunks[before:], shape), before)

    @property
    def name(self) -> str:
        """The store, and the place in it."""
        return f"{self.path}::{self.array}" if self.array else str(self.path)

    def description(self) -> str:
        """Of the image that the array is a level of."""
        with _explained(self.name):
            place = self.array.rpartition("/")[0]
            node = zarr.open(LocalStore(self.path, read_only=True), path=place, mode="r")
            return str(_mapping(node.attrs.asdict().get(OUR_ATTRIBUTES)).get("description", ""))

    def read(self, region: Region) -> Float32Array:
        """Values of a region as float32."""
        return self.read_stored(region).astype(np.float32, copy=False)

    def read_stored(self, region: Region) -> NDArray[Any]:
        """Values of a region in the stored type."""
        require_inside(self, region)
        with _explained(self.name):
            array = _array(self.path, self.array)
            before = (1,) * self.axes_before
            if tuple(array.shape) != (*before, *self.shape):
                raise VolumeError(f"{self.name} has changed its shape from {self.shape} to {array.shape}; start again")
            values = np.asarray(array[(*(slice(0, 1) for _ in before), *region.slices)])
            return values.reshape(region.shape_zyx).astype(self.dtype, copy=False)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise VolumeError(
            f"{what} cannot be read as Zarr, it may be damaged or incomplete: {damage_reason(error)}"
        ) from error


def _array(path: Path, inner: str) -> Any:
    what = f"{path}::{inner}"
    array = zarr.open(LocalStore(path, read_only=True), path=inner, mode="r")
    if not isinstance(array, zarr.Array):
        raise VolumeError(f"{what} is a group, expected an array; name the array after {path.name}::")
    require_stored_type(array.dtype, what)
    require_small_pieces(array.shards or array.chunks, array.dtype, what)
    for codec in _codecs(array.metadata.to_dict()):
        if codec.removeprefix("numcodecs.") not in _CODECS:
            raise VolumeError(
                f"{what} is compressed with {codec!r:.60}, which is not read; store it again with one of "
                "blosc, zstd, gzip or none"
            )
    return array


def _codecs(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The names of everything that chunks go through, those inside of shards too."""
    named = [*(metadata.get("codecs") or ()), *(metadata.get("filters") or ()), metadata.get("compressor")]
    for codec in filter(None, named):
        described = codec if isinstance(codec, Mapping) else codec.get_config()
        yield str(described.get("name") or described.get("id"))
        inside = _mapping(described.get("configuration"))
        yield from _codecs({"codecs": [*inside.get("codecs", ()), *inside.get("index_codecs", ())]})


def _finest_level(attributes: Mapping[str, Any], what: str) -> tuple[str, VoxelSize | None] | None:
    """Path and voxel size of level 0 from OME-Zarr metadata (0.5, or 0.4 and older); None where there is none."""
    multiscales = _mapping(attributes.get("ome")).get("multiscales") or attributes.get("multiscales")
    if not multiscales:
        return None
    image = multiscales[0]
    axes = [_mapping(axis) or {"name": axis} for axis in image.get("axes", [])]
    names = [str(axis.get("name")) for axis in axes]
    if names and names[-3:] != ["z", "y", "x"]:
        raise VolumeError(f"{what} has the axes {', '.join(names)}; expected z, y, x as the last three")
    finest = image["datasets"][0]
    scale = np.ones(max(len(axes), 3))
    found = False
    for transformation in [*finest.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]:
        if transformation.get("type") == "scale":
            scale, found = scale * np.asarray(transformation["scale"], dtype=np.float64), True
    units = [str(axis.get("unit", "")) for axis in axes]
    return str(finest["path"]), _voxel_size(scale[-3:].tolist(), units[-3:]) if found and axes else None


def _voxel_size(scale: Sequence[float], units: Sequence[str]) -> VoxelSize | None:
    z, y, x = (in_micrometres(length, unit) for length, unit in zip(scale, units, strict=True))
    return None if z is None or y is None or x is None else (z, y, x)


def _only_array(group: zarr.Group, what: str) -> str:
    """Path of the one numeric array with three axes that lies directly in a group without OME metadata."""
    numeric = {name: a for name, a in sorted(group.arrays()) if a.dtype.kind in "iuf"}
    found = [name for name, a in numeric.items() if a.ndim == 3]
    found = found or [name for name, a in numeric.items() if axes_before(a.shape) == a.ndim - 3]
    if len(found) != 1:
        raise VolumeError(
            f"{what} is a group with {len(found)} arrays of three axes directly in it; expected one, OME-Zarr "
            "metadata, or the array's name after the store's: store.zarr::name. Its arrays: "
            f"{', '.join(_arrays_in(group)) or 'none'}"
        )
    return found[0]


def _arrays_in(group: zarr.Group) -> list[str]:
    """What there is to name, also deeper in the group, as far as it can be read."""
    try:
        members = [(name, node) for name, node in group.members(max_depth=_DEEPEST) if isinstance(node, zarr.Array)]
    except DAMAGE:
        members = list(group.arrays())
    listed = (f"{name:.100} {node.shape} {node.dtype}" for name, node in sorted(members, key=lambda m: m[0]))
    return list(islice(listed, _MOST_CANDIDATES))


def _safe(inner: str, what: str) -> str:
    """A place in a store, if it stays in the store."""
    if inner.startswith("/") or any(part in (".", "..") for part in re.split(r"[/\\]", inner)):
        raise VolumeError(f"{what} points to {inner!r}; expected a place inside of the store, without . or ..")
    return inner


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
