"""``denoise volume --confidence``: uncertainties beside the result."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from denoise.commands import confidence
from denoise.commands.origin import uncertainty_path
from denoise.trust.confidence import disagreement_of

if TYPE_CHECKING:
    from tiny_dataset import Dataset, Outcome, Tools

pytest_plugins = ("tiny_dataset",)


def test_uncertainties_are_written_beside_the_result_and_a_range_equals_the_whole(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    out = finished.folder / "out.h5"
    whole = denoise("volume", "--config", finished.config, "--output", out, "--confidence", "--device", "cpu")
    assert whole.code == 0, whole.err
    assert whole.out.splitlines() == [str(out), str(finished.folder / "out_uncertainty.h5")]
    sigma = tools.read(finished.folder / "out_uncertainty.h5")
    assert sigma.shape == tools.read(out).shape
    # The noise of a split has a standard deviation of 4; the uncertainty of the result lies below it, and above 0.
    assert sigma.min() > 0
    assert sigma.mean() < 4
    part = denoise(
        "volume", "--config", finished.config, "--output", finished.folder / "part", "--confidence", "--device", "cpu",
        "--start-slice", 3, "--end-slice", 6,
    )  # fmt: skip
    assert part.code == 0, part.err
    np.testing.assert_allclose(tools.read(finished.folder / "part_uncertainty"), sigma[3:6], rtol=1e-3)
    again = denoise("volume", "--config", finished.config, "--output", out, "--confidence", "--resume")
    assert again.code == 0, again.err
    assert "nothing is left to do" in again.log
    shutil.rmtree(finished.folder / "odd")  # what is denoised is the same; what it is compared with is not
    tools.write(finished.folder / "odd", tools.images()[1] + 0.01)
    changed = denoise("volume", "--config", finished.config, "--output", out, "--confidence", "--resume")
    assert "out_uncertainty.h5 is whole, but" in changed.error


def test_what_cannot_be_done_is_said_before_anything_is_denoised(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    taken = finished.folder / "out_uncertainty.h5"
    taken.write_text("mine")
    command = ("volume", "--output", finished.folder / "out.h5", "--confidence", "--config")
    assert f"{taken} exists already" in denoise(*command, finished.config).error
    taken.unlink()
    config = finished.configured("  splits: [even, odd]   # angles 0, 2, 4, ... and 1, 3, 5, ...\n", "")
    assert "--confidence needs the sub-reconstructions" in denoise(*command, config).error
    assert not (finished.folder / "out.h5").exists()


def test_splits_that_are_none_of_the_volume_are_named(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    for name, values in zip(("a", "b"), tools.images(), strict=False):
        tools.write(finished.folder / name, values[:8])
    config = finished.configured("[even, odd]", "[a, b]")
    error = denoise("volume", "--config", config, "--model", finished.run, "--confidence").error
    assert "has shape (12, 48, 48) but split 0 has (8, 48, 48)" in error


def test_a_model_that_cannot_be_calibrated_is_refused_before_anything_is_denoised(
    finished: Dataset, denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished.folder / "out.h5"
    before = {path.name for path in finished.folder.iterdir()}
    monkeypatch.setattr(
        "denoise.trust.confidence.disagreement_of", lambda outputs: np.zeros_like(disagreement_of(outputs))
    )
    error = denoise("volume", "--config", finished.config, "--output", out, "--confidence", "--device", "cpu").error
    assert "train again with a larger train.validation_fraction, or leave out --confidence" in error
    assert {path.name for path in finished.folder.iterdir()} == before


def test_memory_that_would_not_be_enough_is_refused_before_anything_is_denoised(
    finished: Dataset, denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished.folder / "out.h5"
    command = ("volume", "--config", finished.config, "--output", out, "--confidence", "--device", "cpu")
    monkeypatch.setattr(confidence, "_CALIBRATED_BYTES", 10**8)  # as if far more had been held out
    error = denoise(*command, "--max-memory", "8G").error
    assert re.match(
        r"--confidence needs about \d{3,}\.\d\d GB of memory .* 8\.59 GB are allowed; .* --max-memory", error
    )
    assert not out.exists()
    monkeypatch.undo()
    assert denoise(*command, "--max-memory", "8G").code == 0


@pytest.mark.parametrize(
    ("result", "path"),
    [
        ("a/out", "a/out_uncertainty"),
        ("a/out.zarr", "a/out_uncertainty.zarr"),
        ("a/foam_volume_2.5d", "a/foam_volume_2.5d_uncertainty"),
        ("foam_2.5d_slices_00012-00013", "foam_2.5d_slices_00012-00013_uncertainty"),
        ("out.h5::/entry/x", "out_uncertainty.h5::/entry/x"),
    ],
)
def test_the_name_follows_that_of_the_result(result: str, path: str) -> None:
    assert uncertainty_path(result) == path
