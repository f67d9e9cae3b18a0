"""Small valid files of every kind that is fuzzed: what mutations start from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
import torch
import zarr
from numpy.typing import NDArray

from denoise.checkpoint import Checkpoint, TrainState
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.projections.scan import write_scan
from denoise.training.state import Progress
from denoise.volumes import create_sink
from fuzz_mutation import Tree

CONFIGS = (
    b"dataset:\n  folder: .\n  splits: [even, odd]\n  full: whole\n  sample: foam\ntrain: {mode: 2.5d, "
    b"network: residual, "
    b"width: 16, patch_size: 16, batch_size: 4, max_epochs: 2, learning_rate: 2.0e-3}\ninfer: {tile_size: 32}\n",
    b'# old names\ndataset: {directory_to_reconstructions: "/data", sub_recon_name0: rec_0, '
    b"sub_recon_name1: rec_1, full_recon_name: full}\n"
    b"train: {psz: 256, n_slices: 5, mbsz: 8, lr: 1e-4, maxep: 2000, warmup: 10}\n"
    b"infer: {overlap: 0.5, window: cosine}\n",
    b"dataset:\n  folder: /data\n  splits:\n    - a.h5::/exchange/data\n    - b.zarr\n"
    b"metadata: {energy: 25, deep: {a: [1, 2]}}\n",
)


def _tree(folder: Path) -> Tree:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _image(shape: tuple[int, ...] = (3, 9, 8), dtype: str = "uint16") -> NDArray[Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def _made(write: Callable[[Path], None]) -> Tree:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return _tree(Path(folder))


def _ours(name: str, dtype: str = "float32") -> Tree:
    def write(folder: Path) -> None:
        with create_sink(folder / name, shape=(3, 9, 8), dtype=dtype, voxel_size_um=(1.0, 2.0, 3.0)) as sink:
            sink.write(0, _image(dtype="float32"))

    return _made(write)


def tiff_seeds() -> list[Tree]:
    """Plain, ImageJ, OME, tiled, compressed in several ways, big-endian, BigTIFF."""

    def tiff(**how: Any) -> Tree:
        def write(folder: Path) -> None:
            tifffile.imwrite(folder / "v.tif", how.pop("data", _image()), photometric="minisblack", **how)

        return _made(write)

    tiled = {"tile": (16, 16), "data": _image((3, 20, 18))}
    return [
        _ours("v.tif"),
        tiff(),
        tiff(imagej=True, resolution=(2.0, 2.0), metadata={"unit": "um", "spacing": 1.5}),
        tiff(ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 1.0}),
        tiff(bigtiff=True, byteorder=">"),
        tiff(metadata=None, rowsperstrip=2),
        tiff(**dict(tiled), compression="zlib"),
        tiff(**dict(tiled), compression="lzw", predictor=True),
        tiff(**dict(tiled), compression="zstd"),
        tiff(compression="packbits", data=_image(dtype="uint8")),
        tiff(compression="jpeg", data=_image((16, 16), "uint8")),
        tiff(compression="jpeg2000", data=_image((16, 16), "uint8")),
        tiff(compression="lzma", data=_image(dtype="float64")),
        tiff(data=_image((9, 8)), resolution=(1e4, 1e4), resolutionunit="CENTIMETER"),
    ]


def folder_seeds() -> list[Tree]:
    """Three numbered slices, of our own and of others."""
    slices = [b for name, b in _ours("s").items() if name.startswith("s/")]
    plain = _made(lambda folder: tifffile.imwrite(folder / "a.tif", _image((9, 8)), compression="zlib"))["a.tif"]
    names = ("s_00001.tif", "s_00002.tif", "s_00003.tif")
    return [dict(zip(names, slices, strict=True)), dict.fromkeys(names, plain), {"x9.TIF": plain, "x10.tiff": plain}]


def hdf5_seeds() -> list[Tree]:
    """Contiguous, chunked with filters, links of all kinds, and our own."""

    def write(folder: Path) -> None:
        with h5py.File(folder / "v.h5", "w") as file:
            data = file.create_dataset(
                "exchange/data", data=_image(), chunks=(1, 4, 4), compression="gzip", shuffle=True
            )
            data.attrs["element_size_um"] = [1.0, 1.0, 1.0]
            file["entry/soft"] = h5py.SoftLink("/exchange/data")
            file["entry/out"] = h5py.ExternalLink("other.h5", "/data")
            file["entry/table"] = np.zeros(2, dtype=[("a", "<i4"), ("b", "S4")])

    def latest(folder: Path) -> None:
        with h5py.File(folder / "v.h5", "w", libver="latest") as file:
            file.create_dataset("data", data=_image(dtype="float32"), chunks=(1, 9, 8), fletcher32=True)

    def virtual(folder: Path) -> None:
        with h5py.File(folder / "v.h5", "w") as file:
            layout = h5py.VirtualLayout((3, 9, 8), "uint16")
            layout[:] = h5py.VirtualSource("v.h5", "real", (3, 9, 8))
            file.create_virtual_dataset("seen", layout)
            file["real"] = _image()

    return [_ours("v.h5"), _made(write), _made(latest), _made(virtual)]


def zarr_seeds() -> list[Tree]:
    """Formats 2 and 3, with and without OME metadata, compressed in several ways, sharded."""

    def array(**how: Any) -> Tree:
        return _made(lambda folder: zarr.create_array(folder / "v.zarr", data=_image(), chunks=(1, 5, 8), **how))

    def old_ome(folder: Path) -> None:
        group = zarr.create_group(folder / "v.zarr", zarr_format=2)
        group.create_array("0", data=_image())
        axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
        scale = [{"type": "scale", "scale": [1.0, 2.0, 2.0]}]
        datasets = [{"path": "0", "coordinateTransformations": scale}]
        group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]

    return [
        _ours("v.zarr"),
        array(zarr_format=2),
        array(zarr_format=2, compressors=None, filters=None),
        array(zarr_format=3, compressors=zarr.codecs.GzipCodec()),
        array(zarr_format=3, compressors=zarr.codecs.BloscCodec()),
        array(zarr_format=3, shards=(3, 10, 8)),
        _made(old_ome),
    ]


def model_seeds() -> list[Tree]:
    """Both of our networks, and both published ones, small; saved in the older format too."""
    trees: list[Tree] = []
    for name, options in (("residual2d", {"width": 2, "levels": 2}), ("residual3d", {"width": 1, "levels": 1})):
        spec = NetworkSpec(name, options)
        checkpoint = Checkpoint(spec, build_network(spec).state_dict(), Normalization(1.0, 2.0), 16, scores={"l1": 1.0})
        trees.append(_made(lambda folder, c=checkpoint: c.save(folder / "model.pth")))
    published = NetworkSpec("unet3d", {"n_blocks": 1, "start_filters": 2})
    content = {"model_state_dict": build_network(published).state_dict()}
    for zipped in (True, False):
        trees.append(_made(lambda f, z=zipped: torch.save(content, f / "model.pth", _use_new_zipfile_serialization=z)))
    return trees


def state_seeds() -> list[Tree]:
    """The state of a run after a step."""
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    state = TrainState({"seed": 1}, layer.state_dict(), None, optimizer.state_dict(), asdict(Progress(epoch=1, step=3,
        curve=[(3, 0.5)])),
                       Normalization(0.0, 1.0), torch.get_rng_state())  # fmt: skip
    return [_made(lambda folder: state.save(folder / "resume_state.pth"))]


def history_seeds() -> list[Tree]:
    """Three records."""
    record = {
        "epoch": 1,
        "step": 3,
        "train_loss": 0.1,
        "val_l1": 0.2,
        "val_lcl": 1.0,
        "val_edge": 2.0,
        "improved": ["val"],
    }
    return [{"history.jsonl": b"".join(json.dumps(record | {"step": k}).encode() + b"\n" for k in (3, 9, 12))}]


def scan_seeds() -> list[Tree]:
    """A tiny DXchange scan, and one with metadata."""

    def write(folder: Path) -> None:
        counts = _image((6, 2, 5))
        write_scan(folder / "scan.h5", counts, counts[:2], counts[:1], np.linspace(0, 180, 6), "foam")

    def described(folder: Path) -> None:
        write(folder)
        with h5py.File(folder / "scan.h5", "a") as file:
            file["measurement/instrument/detector/pixel_size"] = 3.45
            file["measurement/instrument/detector/pixel_size"].attrs["units"] = "um"
            file["measurement/instrument/detection_system/objective/magnification"] = 5.0

    return [_made(write), _made(described)]


def command_seeds() -> list[Tree]:
    """Arguments as they are meant, next to a small dataset."""
    data = _ours("even") | _ours("odd") | _ours("whole") | {"c.yaml": CONFIGS[0], "old.yaml": CONFIGS[1]}
    lines = (
        "check --config c.yaml", "train --config c.yaml --max-minutes 1 --device cpu",
        "slice --config c.yaml --slice-number 1",
        "volume --config c.yaml --start-slice 0 --end-slice 2 --output out.h5 --dtype uint8",
        "prepare even --splits 3 --center 4",
        "demo --mode 3d --out d", "check --config old.yaml --gpus 0,1",
        "volume --config c.yaml --model c.yaml --overwrite",
    )  # fmt: skip
    return [data | {"arguments.json": json.dumps(line.split()).encode()} for line in lines]


def config_seeds() -> list[Tree]:
    """New names, old names, another layout."""
    return [{"config.yaml": text} for text in CONFIGS]
