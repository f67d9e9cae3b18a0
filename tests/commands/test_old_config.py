"""A config with only old names, folders of .tiff slices and a stored model: they work unchanged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
import torch

from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec

if TYPE_CHECKING:
    from tiny_dataset import Outcome, Tools

pytest_plugins = ("tiny_dataset",)

OLD = """\
# written in 2024, do not change
dataset:
  directory_to_reconstructions: {folder}
  sub_recon_name0: rec_0
  sub_recon_name1: rec_1
  full_recon_name: rec_full
{normalisation}
train:
  psz: 64
  n_slices: 5
  mbsz: 32
  lr: 1e-3
  warmup: 2000
  maxep: 2000
  patience: 0
  mode: '{mode}'
  z_stride: 10
  psz_3d: 16
  nb_patches_3d: 17600
  n_blocks_3d: 3
  start_filts_3d: 8
infer:
  overlap: 0.5
  window: cosine
metadata: {{instrument: 7-BM, date: 2024-01-31, energy_kev: 25.5}}
"""
KNOWN = "  mean4norm: 31.5\n  std4norm: 8.25"


class OldDataset:
    """An old user's folder: one tile in y and x, slices numbered from 0."""

    def __init__(self, folder: Path, stored: Path, mode: str, shape: tuple[int, int, int]) -> None:
        self.folder, self.mode = folder, mode
        self.model = folder / "old_models"
        self.model.mkdir(parents=True)
        for name in ("best_val_model.pth", "best_lcl_model.pth"):
            shutil.copy(stored, self.model / name)
        rng = np.random.default_rng(4)
        for name in ("rec_0", "rec_1", "rec_full"):
            (folder / name).mkdir()
            self.full = rng.normal(31, 8, shape).astype(np.float32)
            for number, image in enumerate(self.full):
                tifffile.imwrite(folder / name / f"recon_{number:05d}.tiff", image)

    def config(self, normalisation: str = KNOWN) -> Path:
        path = self.folder / "config.yaml"
        path.write_text(OLD.format(folder=self.folder, normalisation=normalisation, mode=self.mode))
        return path


def by_hand(old: OldDataset, spec: NetworkSpec) -> np.ndarray:
    """The stored network applied to whole slices, float32."""
    network = build_network(spec).eval()
    stored = torch.load(old.model / "best_val_model.pth", weights_only=True)
    network.load_state_dict(stored["model_state_dict"])
    values = (old.full - np.float32(31.5)) / np.float32(8.25)
    if spec.name == "unet2d":
        padded = np.pad(values, ((2, 2), (0, 0), (0, 0)), mode="reflect")
        blocks = np.stack([padded[z : z + 5] for z in range(len(values))])
    else:
        blocks = values[None]
    with torch.inference_mode():
        predicted = network(torch.from_numpy(blocks)).numpy()
    return np.asarray(predicted.reshape(old.full.shape) * 8.25 + 31.5)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "spec", "mode", "shape"),
    [
        ("unet2d_n5.pth", NetworkSpec("unet2d", {"n_slices": 5}), "2.5d", (6, 64, 64)),
        ("unet3d_b3_f8.pth", NetworkSpec("unet3d", {"n_blocks": 3, "start_filters": 8}), "3d", (16, 16, 16)),
    ],
    ids=["2.5d", "3d"],
)
def test_an_old_config_and_a_stored_model_give_what_the_network_gives(
    tmp_path: Path,
    shared_data: Path,
    denoise: Callable[..., Outcome],
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    spec: NetworkSpec,
    mode: str,
    shape: tuple[int, int, int],
) -> None:
    # The config says nothing of precision: the choice falls on float32, as on most machines.
    monkeypatch.setattr("denoise.arithmetic.has_bf16", lambda device: False)
    old = OldDataset(tmp_path / "scan", shared_data / "legacy" / file, mode, shape)
    config = old.config()
    text = config.read_bytes()
    before = tools.fingerprint(old.folder)
    expected = by_hand(old, spec)

    whole = denoise("volume", "--config", config, "--model", old.model)
    one = denoise("slice", "--config", config, "--model", old.model, "--slice-number", 4, "--checkpoint", "lcl")

    assert (whole.code, one.code) == (0, 0), whole.err + one.err
    assert whole.out.strip() == f"{old.folder}/rec_full_denoised_volume_{mode}"
    assert one.out.strip() == f"{old.folder}/rec_full_denoised_slices/rec_full_{mode}_lcl_00004.tif"
    np.testing.assert_allclose(tools.read(whole.out.strip()), expected, atol=1e-3)
    np.testing.assert_allclose(tools.read(one.out.strip())[0], expected[4], atol=1e-3)
    assert expected.std() > 0.05 * 8.25, "the test's premise: the network's output varies"
    assert config.read_bytes() == text
    after = tools.fingerprint(old.folder)
    assert {name: after[name] for name in before} == before


@pytest.mark.real_data
@pytest.mark.parametrize("verb", [("volume",), ("slice", "--slice-number", 1)])
def test_a_stored_model_without_its_normalisation_names_both_missing_numbers(
    tmp_path: Path, shared_data: Path, denoise: Callable[..., Outcome], tools: Tools, verb: tuple[object, ...]
) -> None:
    old = OldDataset(tmp_path / "scan", shared_data / "legacy" / "unet2d_n5.pth", "2.5d", (6, 64, 64))
    config = old.config("  sample: rec")
    before = tools.fingerprint(old.folder)
    error = denoise(*verb, "--config", config, "--model", old.model).error
    assert "mean4norm" in error
    assert "std4norm" in error
    assert tools.fingerprint(old.folder) == before


@pytest.mark.real_data
def test_a_stored_model_in_the_folder_of_the_old_runs_own_training_is_found(
    tmp_path: Path, shared_data: Path, denoise: Callable[..., Outcome]
) -> None:
    old = OldDataset(tmp_path / "scan", shared_data / "legacy" / "unet2d_n5.pth", "2.5d", (6, 64, 64))
    old.model.rename(old.folder / "rec_full_training_2.5d")
    assert denoise("slice", "--config", old.config(), "--slice-number", 0).code == 0


def test_an_old_config_trains(tmp_path: Path, denoise: Callable[..., Outcome], tools: Tools) -> None:
    for name, values in zip(("rec_0", "rec_1", "rec_full"), tools.images((8, 32, 32)), strict=True):
        (tmp_path / name).mkdir()
        for number, image in enumerate(values):
            tifffile.imwrite(tmp_path / name / f"recon_{number:05d}.tiff", image)
    config = tmp_path / "config.yaml"
    text = OLD.format(folder=tmp_path, normalisation=KNOWN, mode="2.5d")
    config.write_text(
        text.replace("psz: 64", "psz: 16").replace("mbsz: 32", "mbsz: 2").replace("maxep: 2000", "maxep: 1")
    )
    outcome = denoise("train", "--config", config)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "rec_full_training_2.5d" / "best_val_model.pth").is_file()
