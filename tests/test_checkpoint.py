"""Model files: what goes in comes out, published files give their stored outputs, hostile files do nothing."""

from __future__ import annotations

import errno
import io
import math
import os
import pickle
import random
import re
import zipfile
from collections import OrderedDict
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoise import archive
from denoise.archive import software_versions
from denoise.checkpoint import Checkpoint, TrainState
from denoise.errors import CheckpointError, OutputError
from denoise.files import explained
from denoise.networks.catalogue import build_network, find_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.run_folder import CRITERIA, RunFolder, find_model
from denoise.seen import AllSeen, Seen
from denoise.tiles import Region
from denoise.volumes import ArrayVolume, SplitSet

SMALL = NetworkSpec("residual2d", {"n_slices": 3, "width": 2, "levels": 1})


def _weights(spec: NetworkSpec = SMALL) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in build_network(spec).state_dict().items()
    }


def _checkpoint(spec: NetworkSpec = SMALL, **changes: Any) -> Checkpoint:
    facts = {
        "patch_size": 64,
        "criterion": "edge",
        "epoch": 12,
        "step": 3456,
        "scores": {"l1": 0.25, "edge": 3.5},
        "sample": "tooth µ",
    }
    return Checkpoint(spec, _weights(spec), Normalization(30000.25, 5.125), **{**facts, **changes})


def _content(tmp_path: Path) -> dict[str, Any]:
    """What a file of ours holds."""
    _checkpoint().save(tmp_path / "good.pth")
    return torch.load(tmp_path / "good.pth", weights_only=True)


@pytest.mark.parametrize(
    "spec",
    [
        SMALL,
        NetworkSpec("unet2d", {"n_slices": 4}),
        NetworkSpec("unet3d", {"n_blocks": 2, "start_filters": 4}),
        NetworkSpec("residual3d", {"width": 2, "levels": 2}),
        NetworkSpec("residual2d", {}),
    ],
    ids=lambda spec: spec.name,
)
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path, spec):
    saved = _checkpoint(spec)
    saved.save(tmp_path / "new" / "model.pth")
    loaded = Checkpoint.load(tmp_path / "new" / "model.pth")
    assert loaded.weights.keys() == saved.weights.keys()
    for name, tensor in saved.weights.items():
        assert loaded.weights[name].dtype == torch.float32
        assert torch.equal(loaded.weights[name].view(torch.int32), tensor.view(torch.int32))
    complete = NetworkSpec(spec.name, find_network(spec.name).complete(spec.options))
    assert replace(loaded, weights={}, versions={}, created="") == replace(saved, weights={}, network=complete)
    assert loaded.versions == software_versions()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", loaded.created)


def test_a_model_is_shown_without_its_numbers():
    said = repr(_checkpoint(versions=software_versions()))
    assert "residual2d" in said
    assert "epoch=12" in said
    assert "tensor" not in said
    assert len(said) < 500


def test_a_model_of_before_sums_were_left_unrectified_stays_what_it_was(tmp_path):
    """Such files do not name the option; their weights ask for the activation that the network had then."""
    saved = _checkpoint(NetworkSpec("residual2d", {"n_slices": 3, "width": 2, "levels": 2, "rectified_sums": 1}))
    saved.save(tmp_path / "model.pth")
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    del content["network"]["options"]["rectified_sums"]
    torch.save(content, tmp_path / "old.pth")
    block = torch.randn(1, 3, 8, 8)
    old, same, new = (
        checkpoint.build()(block)
        for checkpoint in (
            Checkpoint.load(tmp_path / "old.pth"),
            saved,
            replace(saved, network=NetworkSpec("residual2d", {"n_slices": 3, "width": 2, "levels": 2})),
        )
    )
    assert torch.equal(old, same)
    assert not torch.equal(old, new)


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": None},
        {"scores": {}},
        {"scores": {"l1": math.nan, "edge": math.inf}},
        {"versions": {"torch": "1.0"}, "created": "yesterday"},
        {"sample": ""},
        {"normalization": None},
        {"normalization": Normalization(0, 1)},
    ],
    ids=str,
)
def test_every_field_comes_back(tmp_path, changes):
    saved = replace(_checkpoint(), **changes)
    saved.save(tmp_path / "model.pth")
    loaded = Checkpoint.load(tmp_path / "model.pth")
    for name in changes:
        assert repr(getattr(loaded, name)) in (repr(getattr(saved, name)), "Normalization(mean=0.0, std=1.0)")


def test_numbers_of_numpy_are_stored_as_plain_ones(tmp_path):
    saved = replace(
        _checkpoint(),
        normalization=Normalization(np.float64(1.5), np.float64(0.5)),
        scores={"l1": np.float64(0.25), "edge": np.float32(0.5)},
    )
    saved.save(tmp_path / "model.pth")
    loaded = Checkpoint.load(tmp_path / "model.pth")
    assert loaded.normalization == Normalization(1.5, 0.5)
    assert loaded.scores == {"l1": 0.25, "edge": 0.5}


def test_a_saved_file_holds_tensors_and_plain_values_only(tmp_path):
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(type(key) is str and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (str, int, float, bool, torch.Tensor)

    content = _content(tmp_path)
    assert plain({**content, "model_state_dict": dict(content["model_state_dict"])})


@pytest.mark.parametrize("criterion", ["x/../../evil", "..", "a\0b", "best", ""])
def test_what_becomes_a_part_of_file_names_is_one_of_three_words(tmp_path, criterion):
    path = tmp_path / "model.pth"
    _checkpoint().save(path)
    torch.save({**torch.load(path, weights_only=True), "criterion": criterion}, path)
    with pytest.raises(CheckpointError, match=r"model\.pth: criterion is .*expected val, lcl, edge"):
        Checkpoint.load(path)


def test_what_a_model_was_trained_on_travels_with_it_and_damage_is_named(tmp_path):
    rng = np.random.default_rng(0)
    splits = SplitSet(tuple(ArrayVolume(rng.normal(size=(6, 16, 16)).astype(np.float32)) for _ in range(2)))
    seen = Seen.of(splits, range(6), Region.of_slices(2, 3, splits.shape))
    path = tmp_path / "model.pth"
    replace(_checkpoint(), seen=AllSeen((seen, seen), is_all=True)).save(path)
    assert Checkpoint.load(path).seen.is_all
    found = Checkpoint.load(path).seen.runs
    assert [(run.slices, run.held_out, run.contents.sha256) for run in found] == [
        (range(6), range(2, 3), seen.contents.sha256)
    ] * 2
    assert AllSeen(found).unseen(splits) == AllSeen((seen,)).unseen(splits)
    content = torch.load(path, weights_only=True)
    for damaged in ([7], [None], "x", 7, [{**seen.as_plain(), "rows": [0, 99, 1]}], [seen.as_plain()] * 257):
        torch.save({**content, "seen": {"runs": damaged, "is_all": True}}, path)
        with pytest.raises(CheckpointError, match=r"model\.pth: seen is"):
            Checkpoint.load(path)


def test_a_built_network_runs_with_the_weights_of_the_file(tmp_path):
    _checkpoint().save(tmp_path / "model.pth")
    network = Checkpoint.load(tmp_path / "model.pth").build()
    assert not network.training
    reference = build_network(SMALL)
    reference.load_state_dict(_weights())
    block = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(network(block), reference.eval()(block))


def test_a_second_save_replaces_the_first_whole(tmp_path):
    path = tmp_path / "model.pth"
    _checkpoint(epoch=1).save(path)
    _checkpoint(epoch=2).save(path)
    assert Checkpoint.load(path).epoch == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("kind", ["model", "state"])
def test_a_full_disk_is_one_clear_sentence(tmp_path, monkeypatch, kind):
    @contextmanager
    def on_a_full_disk(final: Path):
        with explained(final):
            yield Path("/dev/full")

    monkeypatch.setattr(archive, "whole_file", on_a_full_disk)
    saved = _checkpoint() if kind == "model" else _state()
    with pytest.raises(OutputError, match=r"model.pth cannot be written: the disk is full"):
        saved.save(tmp_path / "model.pth")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("unet2d_n5", NetworkSpec("unet2d", {"n_slices": 5})),
        ("unet3d_b3_f8", NetworkSpec("unet3d", {"n_blocks": 3, "start_filters": 8})),
    ],
)
def test_models_of_the_published_networks_give_their_stored_outputs(shared_data, file, spec):
    loaded = Checkpoint.load(shared_data / "legacy" / f"{file}.pth")
    assert (loaded.network, loaded.normalization, loaded.patch_size) == (spec, None, None)
    stored = np.load(shared_data / "legacy" / f"{file}_io.npz")
    # The published 3D network has a channel axis of its own.
    inputs, expected = (torch.from_numpy(stored[name]) for name in "xy")
    if inputs.ndim == 5:
        inputs, expected = inputs[:, 0], expected[:, 0]
    with torch.inference_mode():
        found = loaded.build()(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_file_loads_with_whatever_else_it_carries(tmp_path, prefix):
    weights = _weights(NetworkSpec("unet2d", {"n_slices": 3}))
    content = {
        "epoch": 5,
        "model_state_dict": OrderedDict((prefix + name, tensor) for name, tensor in weights.items()),
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.001}]},
        "loss": 0.1,
    }
    torch.save(content, tmp_path / "published.pth")
    loaded = Checkpoint.load(tmp_path / "published.pth")
    assert loaded.network == NetworkSpec("unet2d", {"n_slices": 3})
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in weights.items())
    loaded.build()


def test_a_file_in_torchs_older_format_loads_too(tmp_path):
    content = {"model_state_dict": _weights(NetworkSpec("unet2d", {"n_slices": 3}))}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert Checkpoint.load(tmp_path / "old.pth").network.options == {"n_slices": 3}


# Hostile and damaged files. ----------------------------------------------------------------------------------------


class _RunsCode:
    """Unpickled carelessly, this makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("older", [False, True], ids=["zip", "older"])
@pytest.mark.parametrize("place", ["whole", "beside", "in the weights", "plain pickle"])
@pytest.mark.parametrize("load", [Checkpoint.load, TrainState.load], ids=["model", "state"])
def test_a_file_that_would_run_code_runs_none_and_the_code_is_named(tmp_path, place, older, load):
    marker, path = tmp_path / "it ran", tmp_path / "hostile.pth"
    trap = _RunsCode(marker)
    content = {
        "whole": trap,
        "beside": {**_content(tmp_path), "extra": trap},
        "in the weights": {**_content(tmp_path), "model_state_dict": {"a": trap}},
        "plain pickle": trap,
    }[place]
    if place == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not older)
    with pytest.raises(
        CheckpointError, match=r"hostile.pth is not loaded: .*expected tensors and plain values"
    ) as caught:
        load(path)
    assert "mkdir" in str(caught.value)
    assert not marker.exists()
    with suppress(Exception):  # the trap itself is a good one
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_an_object_of_a_class_of_ours_is_refused_as_well(tmp_path):
    torch.save({**_content(tmp_path), "sample": Path("x")}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"it refers to code \(.*Path"):
        Checkpoint.load(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or cut short"),
        (b"\0" * 1000, "damaged or cut short"),
        (b"just a note to myself\n", "damaged or cut short"),
        (b"Xylophone", "damaged or cut short"),
        (b"\x80\x02X", "damaged or cut short"),
        (b"PK\x03\x04 and nothing else", "damaged or cut short"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged or cut short"),
    ],
    ids=["empty", "zeros", "text", "text like a pickle", "start of a pickle", "start of a zip", "HDF5"],
)
@pytest.mark.parametrize("load", [Checkpoint.load, TrainState.load], ids=["model", "state"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content, message, load):
    (tmp_path / "odd.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "odd.pth")


@pytest.mark.parametrize("name", [".", "missing.pth", "missing/model.pth"])
def test_what_is_no_file_is_refused_by_name(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"there is no file {re.escape(str(tmp_path / name))}"):
        Checkpoint.load(tmp_path / name)


@pytest.mark.parametrize("older", [False, True], ids=["zip", "older"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, older):
    path = tmp_path / "cut.pth"
    torch.save(_content(tmp_path), path, _use_new_zipfile_serialization=not older)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), len(whole) // 60), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            Checkpoint.load(path)


def _with_pickle(whole: bytes, change) -> bytes:
    """A model file whose directory of contents was changed and whose archive is sound."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)
    return out.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "older", "directory changed", "directory cut"])
def test_a_damaged_file_is_refused_in_our_words_or_loads_and_nothing_else(tmp_path, kind):
    path, chance = tmp_path / "damaged.pth", random.Random(5)
    torch.save(_content(tmp_path), path, _use_new_zipfile_serialization=kind != "older")
    whole = path.read_bytes()

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 3])):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)

    damage = {
        "zip": flipped,
        "older": flipped,
        "directory changed": lambda data: _with_pickle(data, flipped),
        "directory cut": lambda data: _with_pickle(data, lambda part: part[: chance.randrange(len(part))]),
    }[kind]
    for _ in range(250):
        path.write_bytes(damage(whole))
        with suppress(CheckpointError):
            Checkpoint.load(path)


def _without(key: str):
    return lambda content: {name: value for name, value in content.items() if name != key}


def _with(**changes: Any):
    return lambda content: {**content, **changes}


def _with_weights(**changes: Any):
    return lambda content: {**content, "model_state_dict": {**content["model_state_dict"], **changes}}


HUGE = 10**12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # The whole.
        (lambda content: list(content), "holds a list; expected the dict"),
        (lambda content: content["model_state_dict"]["leave.bias"], "holds a Tensor"),
        (lambda content: {1: 2, **content}, "holds a dict"),
        (lambda content: {}, "holds nothing but no 'model_state_dict'"),
        (_without("model_state_dict"), "'format', .*but no 'model_state_dict'"),
        (_with(format_version=99), "format version 99, this release of denoise reads 1; install a newer"),
        (_with(format_version=None), "format version None"),
        (_with(format_version=torch.tensor([1, 2])), "format version"),
        (_without("format_version"), "format version None"),
        (_with(format="something else"), "belong to no published network"),
        # The network.
        (_with(network=None), "network is None"),
        (_without("network"), "network is None"),
        (_with(network={"name": "residual2d"}), "network is"),
        (_with(network={"name": 5, "options": {}}), "network is"),
        (_with(network={"name": "os.system", "options": {}}), "no network is called 'os.system'"),
        (_with(network={"name": "../../unet2d", "options": {}}), "no network is called"),
        (_with(network={"name": "residual2d", "options": {"depth": 3}}), "no option 'depth'"),
        (_with(network={"name": "residual2d", "options": {"width": "2"}}), "network is"),
        (_with(network={"name": "residual2d", "options": {"width": 2.0}}), "network is"),
        (_with(network={"name": "residual2d", "options": {"width": True}}), "network is"),
        (_with(network={"name": "residual2d", "options": {1: 2}}), "network is"),
        (_with(network={"name": "residual2d", "options": [("width", 2)]}), "network is"),
        (_with(network={"name": "residual2d", "options": {"width": HUGE}}), "from 1 to 512"),
        (_with(network={"name": "residual2d", "options": {"width": -1}}), "from 1 to 512"),
        (_with(network={"name": "unet3d", "options": {"n_blocks": 7, "start_filters": 512}}), "weights; at most"),
        (_with(network={"name": "residual2d", "options": {"n_slices": 3, "width": 4, "levels": 1}}), "of shape"),
        (_with(network={"name": "unet2d", "options": {}}), "of shape"),
        # The weights.
        (_with(model_state_dict=None), "model_state_dict is a NoneType"),
        (_with(model_state_dict={}), "model_state_dict is a dict; expected named tensors"),
        (_with(model_state_dict=[torch.zeros(3)]), "model_state_dict is a list"),
        (_with_weights(**{"leave.bias": "text"}), "'leave.bias' is not a tensor of floats"),
        (_with_weights(**{"leave.bias": torch.zeros(2, dtype=torch.int64)}), "not a tensor of floats"),
        (_with_weights(**{"leave.bias": torch.zeros(2, dtype=torch.complex64)}), "not a tensor of floats"),
        (_with(model_state_dict={1: torch.zeros(3)}), "1 is not a tensor of floats"),
        (_with_weights(extra=torch.zeros(3)), r"extra of shape None but the file holds \(3,\)"),
        (_with_weights(**{"leave.bias": torch.tensor([math.nan])}), "leave.bias holds NaN or Inf"),
        (_with_weights(**{"leave.bias": torch.tensor([math.inf])}), "leave.bias holds NaN or Inf"),
        (_with_weights(**{"leave.bias": torch.zeros(7, 7)}), r"file holds \(7, 7\)"),
        (
            _with_weights(**{"leave.bias": torch.zeros(4).to_sparse()}),
            r"refers to code .*_rebuild_sparse",
        ),
        (
            _with_weights(**{"leave.bias": torch.zeros(4, device="meta")}),
            r"refers to code .*_rebuild_meta",
        ),
        (_with_weights(**{"leave.bias": torch.zeros(1).expand(HUGE)}), "not a tensor of floats"),
        (_with_weights(**{"leave.bias": torch.zeros(9).as_strided((5, 5), (1, 1))}), "not a tensor of floats"),
        # The facts beside them.
        (_with(normalization=[1.0, 2.0]), "normalization is"),
        (_with(normalization={}), "normalization is"),
        (_with(normalization={"mean": "1", "std": 1.0}), "normalization is"),
        (_with(normalization={"mean": 1.0, "std": 0.0}), "normalization is"),
        (_with(normalization={"mean": 1.0, "std": -1.0}), "normalization is"),
        (_with(normalization={"mean": math.nan, "std": 1.0}), "normalization is"),
        (_with(normalization={"mean": 1.0, "std": math.inf}), "normalization is"),
        (_with(patch_size=0), "patch_size is 0"),
        (_with(patch_size=HUGE), "patch_size is 1000000000000; expected 1 to 8192"),
        (_with(patch_size="64"), "patch_size is '64'"),
        (_with(patch_size=True), "patch_size is True"),
        (_with(epoch="many"), "epoch is 'many'"),
        (_with(step=1.5), "step is 1.5"),
        (_with(scores=None), "scores is None"),
        (_with(versions=[]), "versions is"),
        (_with(criterion=None), "criterion is None"),
        (_with(sample=torch.zeros(5)), "sample is"),
        (_with(created=5), "created is 5"),
    ],
    ids=lambda value: None if callable(value) else value[:40],
)
def test_a_changed_file_is_refused_with_what_was_found(tmp_path, change, message):
    path = tmp_path / "changed.pth"
    torch.save(change(_content(tmp_path)), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.load(path)
    assert "changed.pth" in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("key", ["network", "normalization", "criterion", "epoch", "step", "scores", "versions"])
def test_a_missing_key_is_named(tmp_path, key):
    path = tmp_path / "changed.pth"
    torch.save(_without(key)(_content(tmp_path)), path)
    with pytest.raises(CheckpointError, match=f"{key} is (None|'missing')"):
        Checkpoint.load(path)


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    _checkpoint().save(path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(CheckpointError, match=r"packed.pth is not loaded: it is compressed"):
        Checkpoint.load(tmp_path / "packed.pth")


def test_a_checkpoint_whose_weights_do_not_fit_builds_nothing():
    with pytest.raises(CheckpointError, match="weights do not fit the network residual2d"):
        Checkpoint(SMALL, {"a": torch.zeros(1)}, None).build()


# State of a run, and its folder. -----------------------------------------------------------------------------------


def _state(**changes: Any) -> TrainState:
    network = build_network(SMALL)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    facts = {
        "fingerprint": {"seed": 1, "shape": [3, 4, 5], "loss": "l1"},
        "model": network.state_dict(),
        "ema": None,
        "optimizer": optimizer.state_dict(),
        "progress": {"epoch": 3, "best": {"val": 0.5}},
        "normalization": Normalization(1.5, 0.25),
        "generator": torch.get_rng_state(),
    }
    return TrainState(**{**facts, **changes})


def test_a_training_state_comes_back_with_its_optimiser_and_generator(tmp_path):
    saved = _state(ema=_weights())
    saved.save(tmp_path / "state.pth")
    loaded = TrainState.load(tmp_path / "state.pth")
    for name in ("fingerprint", "progress", "normalization"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert torch.equal(loaded.generator, saved.generator)
    for stored, expected in ((loaded.model, saved.model), (loaded.ema, saved.ema)):
        assert all(torch.equal(stored[name], expected[name]) for name in expected)
    first, again = loaded.optimizer["state"][0], saved.optimizer["state"][0]
    assert all(torch.equal(first[name], again[name]) for name in again)
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]


def test_a_model_is_no_training_state_and_the_other_way_round(tmp_path):
    _checkpoint().save(tmp_path / "model.pth")
    _state().save(tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match="expected the state of a training run"):
        TrainState.load(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="no 'model_state_dict'"):
        Checkpoint.load(tmp_path / "state.pth")


@pytest.mark.parametrize("value", [None, {}, {"mean": 1.0, "std": 0.0}, {"mean": "a", "std": 1.0}, [1.0, 2.0]], ids=str)
def test_a_training_state_with_no_usable_normalisation_is_refused(tmp_path, value):
    _state().save(tmp_path / "state.pth")
    content = torch.load(tmp_path / "state.pth", weights_only=True)
    torch.save({**content, "normalization": value}, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match=r"state.pth: normalization is"):
        TrainState.load(tmp_path / "state.pth")


def test_a_folder_holds_a_run_once_anything_of_one_is_there(tmp_path):
    folder = RunFolder(tmp_path)
    assert not folder.holds_a_run
    (tmp_path / "notes.txt").touch()
    assert not folder.holds_a_run
    for path in (folder.state, folder.history, *(folder.model(criterion) for criterion in CRITERIA)):
        path.write_text("{}")
        assert folder.holds_a_run
        path.unlink()


def test_a_run_that_died_before_its_first_score_can_be_started_again(tmp_path):
    RunFolder(tmp_path).history.touch()
    assert not RunFolder(tmp_path).holds_a_run


def test_the_files_of_a_run_have_different_names_in_its_folder(tmp_path):
    folder = RunFolder(tmp_path)
    paths = [folder.state, folder.config, folder.history, folder.curves, folder.preview(1), folder.preview(10)]
    paths += [folder.model(criterion) for criterion in CRITERIA]
    assert len(set(paths)) == len(paths)
    assert all(tmp_path in path.parents for path in paths)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_is_found_by_file_or_by_training_folder(tmp_path, criterion):
    path = RunFolder(tmp_path).model(criterion)
    path.touch()
    (tmp_path / "other.pth").touch()
    assert find_model(tmp_path, criterion) == path
    assert find_model(path, "val") == path
    assert find_model(tmp_path / "other.pth", criterion) == tmp_path / "other.pth"


def test_a_model_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model at .*missing; run `denoise train` first"):
        find_model(tmp_path / "missing", "val")
    with pytest.raises(CheckpointError, match=r"no model yet \(expected best_val_model.pth\)"):
        find_model(tmp_path, "val")
    RunFolder(tmp_path).model("val").touch()
    with pytest.raises(CheckpointError, match=r"no best_lcl_model.pth, only best_val_model.pth; .*--checkpoint val"):
        find_model(tmp_path, "lcl")


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    def refused(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    _checkpoint().save(tmp_path / "model.pth")
    monkeypatch.setattr(torch, "load", refused)
    with pytest.raises(CheckpointError, match=r"model.pth cannot be read: no permission"):
        Checkpoint.load(tmp_path / "model.pth")
