"""Files that were damaged, or made to do harm, one by one: what `benchmarks/fuzz.py` found, and must not find again."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr

from denoise.checkpoint import Checkpoint, TrainState
from denoise.config import load_config
from denoise.config.recipes import PLAIN_ADAM, Muon
from denoise.errors import CheckpointError, ConfigError, DenoiseError, ScanError, VolumeError
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.projections.scan import Scan, write_scan
from denoise.tiles import Region
from denoise.training.observers import read_history
from denoise.training.optimizer import Optimizers
from denoise.training.state import Progress
from denoise.volumes import limits as limits_module
from denoise.volumes import open_volume

if TYPE_CHECKING:
    from tiny_dataset import Dataset, Outcome

pytest_plugins = ("tiny_dataset",)

VALUES = np.zeros((4, 21, 19), np.uint16)


class Trap:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def _array_v2(path: Path, chunk: bytes = b"", **changes: Any) -> Path:
    path.mkdir()
    meta = {"zarr_format": 2, "shape": [2, 2, 2], "chunks": [2, 2, 2], "dtype": "<f4", "compressor": None}
    meta |= {"fill_value": 0, "order": "C", "filters": None} | changes
    (path / ".zarray").write_text(json.dumps(meta))
    (path / "0.0.0").write_bytes(chunk)
    return path


@pytest.mark.parametrize("changes", [
    {"compressor": {"id": "pickle"}}, {"filters": [{"id": "pickle"}]}, {"dtype": "|O", "filters": [{"id": "pickle"}]},
    {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_a_zarr_store_cannot_have_its_chunks_unpickled(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = _array_v2(tmp_path / "v.zarr", pickle.dumps(Trap(tmp_path / "trap")), **changes)
    with pytest.raises(VolumeError):
        open_volume(path).read(Region((0, 0, 0), (2, 2, 2)))
    assert not (tmp_path / "trap").exists()


def test_codecs_that_grey_values_do_not_need_are_named(tmp_path: Path) -> None:
    path = _array_v2(
        tmp_path / "v.zarr", bytes(32), filters=[{"id": "astype", "encode_dtype": "<f4", "decode_dtype": "<f4"}]
    )
    with pytest.raises(VolumeError, match=r"compressed with 'astype'.*blosc"):
        open_volume(path)


@pytest.mark.parametrize("changes", [
    {"fill_value": 10**30, "dtype": "<u2"}, {"chunks": [0, 2, 2]}, {"chunks": [2**40] * 3}, {"shape": [2**40, 2, 2]},
    {"shape": [2, 2**20, 2**20]}, {"compressor": {"id": "gzip", "level": 1}}, {"compressor": {"id": "blosc"}},
])  # fmt: skip
def test_zarr_metadata_that_no_array_can_have_is_refused(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "total_bytes", lambda: 2**34)
    path = _array_v2(tmp_path / "v.zarr", b"\x1f\x8b\x08" + bytes(40), **changes)
    with pytest.raises(VolumeError, match=str(path)):
        open_volume(path).read(Region((0, 0, 0), (1, 1, 1)))


@pytest.mark.parametrize("attributes", [
    {"multiscales": [{"axes": ["z", "y", "x"], "datasets": []}]}, {"multiscales": 5}, {"multiscales": [5]},
    {"multiscales": [{"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": {}}]}]}]},
])  # fmt: skip
def test_ome_metadata_of_another_kind_is_refused(tmp_path: Path, attributes: dict[str, Any]) -> None:
    group = zarr.create_group(tmp_path / "v.zarr", zarr_format=2, attributes=attributes)
    group.create_array("0", data=VALUES)
    with pytest.raises(VolumeError, match=r"v\.zarr"):
        open_volume(tmp_path / "v.zarr")


@pytest.mark.parametrize(("shape", "chunks", "says"), [
    ((2**21, 2, 2), (1, 2, 2), "at most 1048576 voxels"),
    ((2, 2**16, 2**16), (1, 2**16, 2**16), r"pieces of shape \(1, 65536, 65536\), 17.2 GB each"),
])  # fmt: skip
def test_sizes_in_an_hdf5_header_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any, chunks: Any, says: str
) -> None:
    monkeypatch.setattr(limits_module, "total_bytes", lambda: 2**40)
    with h5py.File(tmp_path / "v.h5", "w", libver="v200" if chunks[1] > 2**15 else "earliest") as file:
        file.create_dataset("d", shape, np.float32, chunks=chunks)
    with pytest.raises(VolumeError, match=says):
        open_volume(tmp_path / "v.h5")


def test_attributes_that_are_no_numbers_do_not_keep_a_volume_from_being_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["d"] = VALUES
        file["d"].attrs["element_size_um"] = "one"
        file["d"].attrs["first_slice_number"] = h5py.Empty("f4")
        file["d"].attrs["slice_number_step"] = np.zeros(9)
    volume = open_volume(tmp_path / "v.h5")
    assert volume.voxel_size_um is None
    assert volume.slice_numbers == range(4)


def test_a_slice_compressed_as_jpeg_is_read(tmp_path: Path) -> None:
    image = np.add.outer(np.arange(32), np.arange(16)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "v.tif", image, photometric="minisblack", compression="jpeg")
    read = open_volume(tmp_path / "v.tif").read(Region((0, 0, 0), (1, 32, 16)))
    np.testing.assert_allclose(read[0], image, atol=3)


@pytest.mark.parametrize("numbers", [2, 200, 5000])
def test_a_width_of_several_numbers_is_refused(tmp_path: Path, numbers: int) -> None:
    room = 4 * numbers
    tags = [
        (256, 4, numbers, 8),
        (257, 4, 1, 9),
        (258, 3, 1, 16),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (278, 4, 1, 9),
        (279, 4, 1, 144),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + room + 144) + bytes(room + 144)
    (tmp_path / "v.tif").write_bytes(header + struct.pack("<H", len(tags)) + entries + bytes(4))
    with pytest.raises(VolumeError, match=r"v\.tif") as refused:
        open_volume(tmp_path / "v.tif")
    assert len(str(refused.value).replace(str(tmp_path), "")) < 250


def test_a_damaged_index_in_a_scan_is_refused(tmp_path: Path) -> None:
    counts = np.ones((6, 2, 5), np.uint16)
    write_scan(tmp_path / "scan.h5", counts, counts[:2], counts[:1], np.linspace(0, 180, 6), "foam")
    whole = (tmp_path / "scan.h5").read_bytes()
    assert whole.count(b"TREE") > 1
    (tmp_path / "scan.h5").write_bytes(whole.replace(b"TREE", b"TRXE"))
    with pytest.raises(ScanError, match=r"scan\.h5 cannot be (read|opened)"):
        Scan.open(tmp_path / "scan.h5")


def _model(path: Path, **changes: Any) -> Path:
    spec = NetworkSpec("residual2d", {"width": 1, "levels": 1})
    Checkpoint(spec, build_network(spec).state_dict(), Normalization(0.0, 1.0)).save(path)
    torch.save(torch.load(path, weights_only=True) | changes, path)
    return path


def _nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value] * 10
    return value


@pytest.mark.parametrize("changes", [
    {"sample": _nested(30)}, {"versions": _nested(30)}, {"network": {"name": _nested(30), "options": {}}},
    {"epoch": 10**5000}, {"patch_size": 10**5000}, {"format_version": 10**5000}, {"strategy": "all"},
    {"criterion": [10**5000]}, {"step": -1}, {"normalization": {"mean": 10**5000}},
], ids=lambda changes: next(iter(changes)))  # fmt: skip
def test_values_that_cannot_be_shown_do_not_keep_a_model_from_being_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(_model(tmp_path / "m.pth", **changes))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("call", [b"c_codecs\nencode\n", b"cbuiltins\nbytearray\n", b"ctorch\nFloatTensor\n"])
def test_calls_that_torch_allows_but_no_model_needs_are_refused(tmp_path: Path, call: bytes) -> None:
    path = _model(tmp_path / "m.pth")
    changed_archive = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed_archive, "w") as new:
        for entry in old.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, b"\x80\x02" + call + b"." if is_pickle else old.read(entry))
    path.write_bytes(changed_archive.getvalue())
    with pytest.raises(CheckpointError, match="it refers to code"):
        Checkpoint.load(path)


def _optimizers(layer: torch.nn.Module) -> Optimizers:
    return Optimizers(layer, PLAIN_ADAM, Muon(1.0), 0.01, torch.device("cpu"))


def _state() -> TrainState:
    layer = torch.nn.Linear(2, 1)
    optimizers = _optimizers(layer)
    layer(torch.ones(2)).sum().backward()
    optimizers.step()
    progress = {"epoch": 1, "step": 2}
    return TrainState(
        {}, layer.state_dict(), None, optimizers.state(), progress, Normalization(0.0, 1.0), torch.get_rng_state()
    )


@pytest.mark.parametrize("name", ["fingerprint", "model", "ema", "optimizer", "progress", "normalization", "generator"])
@pytest.mark.parametrize("value", [5, "x", [1], torch.zeros(2)], ids=["int", "str", "list", "tensor"])
def test_a_state_of_another_kind_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    _state().save(tmp_path / "s.pth")
    torch.save(torch.load(tmp_path / "s.pth", weights_only=True) | {name: value}, tmp_path / "s.pth")
    with pytest.raises(CheckpointError, match=r"s\.pth"):
        TrainState.load(tmp_path / "s.pth")


@pytest.mark.parametrize(
    "values", [{"step": "x"}, {"epoch": True}, {"best": {"val": "x"}}, {"curve": [5]}, {"curve": [(1, "x")]}]
)
def test_progress_of_another_kind_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Progress.stored(values)


def test_moments_of_another_shape_are_refused() -> None:
    stored_state = _state().optimizer
    stored_state["state"][0]["exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match="exp_avg"):
        _optimizers(torch.nn.Linear(2, 1)).restore(stored_state)


@pytest.mark.parametrize(
    "muon", [5, {}, {"state": {}}, {"state": {0: {"momentum_buffer": torch.zeros(7)}}}, {"state": {0: {"x": "y"}}}]
)
def test_a_muon_of_another_kind_is_refused(muon: Any) -> None:
    """With what the training loop turns into one sentence."""
    stored = _state().optimizer
    groups = {"param_groups": stored["muon"]["param_groups"]}
    stored["muon"] = muon | groups if isinstance(muon, dict) and muon else muon
    if muon == {"state": {}}:
        stored["muon"]["param_groups"] = []
    with pytest.raises((RuntimeError, ValueError, LookupError, TypeError, AttributeError)):
        _optimizers(torch.nn.Linear(2, 1)).restore(stored)


_RECORD = dict.fromkeys(("train_loss", "val_l1", "val_mse", "val_lcl", "val_edge", "learning_rate"), 0.1)


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"5", b"[]", b"{}", b'{"step": "x"}', b"\xff", b"[" * 100_000),
        *(json.dumps({"epoch": 2, "step": 2, **_RECORD, name: None}).encode() for name in _RECORD),
    ],
)
def test_a_damaged_history_names_the_line(tmp_path: Path, line: bytes) -> None:
    record = {"epoch": 1, "step": 1, **_RECORD}
    (tmp_path / "history.jsonl").write_bytes(json.dumps(record).encode() + b"\n" + line + b"\n")
    with pytest.raises(CheckpointError, match=r"history\.jsonl, line 2"):
        read_history(tmp_path / "history.jsonl")


def test_a_config_with_very_many_mistakes_lists_the_first(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("dataset: {folder: .}\n" + "".join(f"x{k}: 1\n" for k in range(500)))
    with pytest.raises(ConfigError, match=r"and 48\d more") as caught:
        load_config(tmp_path / "c.yaml")
    assert len(str(caught.value).splitlines()) < 25


def test_names_from_a_file_reach_the_terminal_as_plain_text(
    dataset: Dataset, denoise: Callable[..., Outcome], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["\x1b[31mred\x07"] = VALUES
        file["other"] = VALUES
    config = dataset.configured("full: whole", f"full: {tmp_path / 'v.h5'}")
    error = denoise("check", "--config", config).error
    assert "\\x1b[31mred\\x07" in error
    assert "\x1b" not in error


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000 + "v.h5", "v\0.h5"])
def test_paths_that_no_file_can_have_are_refused(name: str) -> None:
    with pytest.raises(DenoiseError, match=r"cannot be read|does not exist"):
        open_volume(name)
