"""Runs keep equivariant networks equivariant, and others as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from denoise.checkpoint import Checkpoint, TrainState, Weights
from denoise.errors import CheckpointError
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.networks.symmetric import SymmetricWeights
from denoise.run_folder import RunFolder
from denoise.training import part
from denoise.training.job import TrainJob

Jobs = Callable[..., TrainJob]
Train = Callable[..., Any]

FLAT = NetworkSpec("residual2d", {"n_slices": 3, "width": 16, "levels": 2})
DEEP = NetworkSpec("residual3d", {"n_slices": 3, "width": 16, "levels": 2})


def is_symmetric(network: NetworkSpec, weights: Weights) -> bool:
    built = build_network(network)
    built.load_state_dict(weights)
    symmetric = SymmetricWeights.of(built)
    assert symmetric is not None
    return symmetric.hold


def of_an_earlier_version(network: NetworkSpec) -> Weights:
    torch.manual_seed(5)
    return build_network(network).state_dict()


@pytest.mark.parametrize("network", [FLAT, DEEP])
def test_a_new_run_trains_an_equivariant_network_also_after_a_pause(
    train: Train, jobs: Jobs, tmp_path: Path, network: NetworkSpec
) -> None:
    settings = {"network": network, "symmetric": True, "slices_first": 2, "ema_decay": 0.9, "learning_rate": 3e-3}
    train(jobs(tmp_path, max_epochs=2, **settings))
    train(jobs(tmp_path, max_epochs=4, resume=True, **settings))
    state, model = TrainState.load(RunFolder(tmp_path).state), Checkpoint.load(RunFolder(tmp_path).model("val"))
    assert state.progress["step"] == 8
    assert state.ema is not None
    assert is_symmetric(network, state.model)
    assert is_symmetric(network, state.ema)
    assert is_symmetric(network, model.weights)
    untrained = build_network(network).state_dict()
    assert any(not torch.equal(untrained[name], weights) for name, weights in state.model.items())


def test_a_run_that_begins_from_a_model_without_symmetry_trains_all_of_its_weights(
    train: Train, jobs: Jobs, tmp_path: Path
) -> None:
    weights = of_an_earlier_version(FLAT)
    for resume in (False, True):
        train(jobs(tmp_path, initial=weights, symmetric=True, max_epochs=4 if resume else 2, resume=resume))
        state = TrainState.load(RunFolder(tmp_path).state)
        assert not is_symmetric(FLAT, state.model)
        change = {name: value - weights[name] for name, value in state.model.items()}
        assert not is_symmetric(FLAT, change), "its gradients were projected"


def test_a_run_that_begins_from_an_equivariant_model_keeps_it_so(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    train(jobs(tmp_path / "first", symmetric=True))
    weights = Checkpoint.load(RunFolder(tmp_path / "first").model("val")).weights
    for name, said, stays in (("second", True, True), ("third", False, False)):
        train(jobs(tmp_path / name, symmetric=said, initial=weights))
        assert is_symmetric(FLAT, TrainState.load(RunFolder(tmp_path / name).state).model) == stays


def test_a_run_goes_on_as_it_began_whatever_decides_now(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other data would not do, but what "many" means may change from version to version."""
    for name, many in (("free", 10**9), ("alike", 1)):
        monkeypatch.setattr(part, "_MANY_VOXELS", many)
        train(jobs(tmp_path / name, max_epochs=1))
        monkeypatch.setattr(part, "_MANY_VOXELS", 10**9 - many)
        train(jobs(tmp_path / name, max_epochs=2, resume=True))
        state = TrainState.load(RunFolder(tmp_path / name).state)
        assert state.progress["symmetric"] is (name == "alike")
        assert is_symmetric(FLAT, state.model) is (name == "alike")


def refuse(*_: object) -> None:
    raise AssertionError


def test_a_run_cannot_be_set_free_half_way(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(jobs(tmp_path, symmetric=True, max_epochs=1))
    before = RunFolder(tmp_path).state.read_bytes()
    monkeypatch.setattr("denoise.training.loop.TrainingData.open", refuse)  # nothing is read first
    with pytest.raises(CheckpointError, match=r"train\.symmetric is false"):
        train(jobs(tmp_path, symmetric=False, max_epochs=2, resume=True))
    assert RunFolder(tmp_path).state.read_bytes() == before


@pytest.mark.parametrize("width", [8, 16])
def test_a_wish_that_cannot_be_met_is_said(
    train: Train, jobs: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture, width: int
) -> None:
    network = NetworkSpec("residual2d", {**FLAT.options, "width": width})
    train(jobs(tmp_path / "new", network=network, symmetric=True))
    said = "train.symmetric: true has no effect"
    assert (said in caplog.text) is (width == 8)
    caplog.clear()
    train(jobs(tmp_path / "tuned", network=network, initial=of_an_earlier_version(network), symmetric=True))
    assert said in caplog.text


@pytest.mark.parametrize(
    ("voxels", "augment", "symmetric"), [(12 * 32 * 32, True, True), (12 * 32 * 32 + 1, True, False), (1, False, False)]
)
def test_unless_it_is_said_many_data_decide_where_directions_are_alike(
    train: Train,
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    voxels: int,
    augment: bool,
    symmetric: bool,
) -> None:
    monkeypatch.setattr(part, "_MANY_VOXELS", voxels)
    train(jobs(tmp_path, augment=augment))
    assert is_symmetric(FLAT, TrainState.load(RunFolder(tmp_path).state).model) == symmetric
