"""``denoise slice`` and ``denoise volume``: what they write, under which names, and what they leave alone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile

from denoise.checkpoint import Checkpoint
from denoise.normalization import Normalization
from denoise.volumes import create_sink, open_volume

if TYPE_CHECKING:
    from tiny_dataset import Dataset, Outcome, Tools

pytest_plugins = ("tiny_dataset",)


@pytest.fixture(scope="session")
def denoised(trained: Dataset, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The whole volume, denoised once."""
    from denoise.commands.infer import Choice, denoise_volume
    from denoise.config import load_config
    from denoise.launch import Compute

    output = tmp_path_factory.mktemp("denoised") / "all"
    denoise_volume(load_config(trained.config), Compute("cpu"), Choice(output=str(output)))
    return tools.read(output)


def new_entries(folder: Path, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Top-level entries that a command added; what was there must be as it was."""
    assert {name: after.get(name) for name in before} == before
    return sorted({name.partition(os.sep)[0] for name in after.keys() - before.keys()})


def test_results_of_ranges_slices_models_samples_and_modes_get_names_of_their_own(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    before = tools.fingerprint(finished.folder)
    other_sample = finished.configured("sample: foam", "sample: chalk")
    runs = [
        ("volume", "--config", finished.config, "--start-slice", 2, "--end-slice", 4),
        ("volume", "--config", finished.config, "--start-slice", 4, "--end-slice", 6),
        ("volume", "--config", finished.config, "--end-slice", 2, "--checkpoint", "lcl"),
        ("volume", "--config", finished.config, "--start-slice", 10, "--checkpoint", "edge"),
        ("volume", "--config", finished.config, "--model", finished.run, "--end-slice", 12),
        ("slice", "--config", finished.config, "--slice-number", 3),
        ("slice", "--config", finished.config, "--slice-number", 3, "--checkpoint", "lcl"),
        ("slice", "--config", other_sample, "--model", finished.run, "--slice-number", 3),
        ("slice", "--config", other_sample, "--model", finished.run, "--slice-number", 4),
        ("volume", "--config", other_sample, "--model", finished.run, "--start-slice", 11),
    ]
    printed = []
    for arguments in runs:
        outcome = denoise(*arguments)
        assert outcome.code == 0, outcome.err
        printed.append(str(Path(outcome.out.strip()).relative_to(finished.folder)))
    assert printed == [
        "foam_denoised_volume_2.5d_slices_00002-00003",
        "foam_denoised_volume_2.5d_slices_00004-00005",
        "foam_denoised_volume_2.5d_lcl_slices_00000-00001",
        "foam_denoised_volume_2.5d_edge_slices_00010-00011",
        "foam_denoised_volume_2.5d",
        "foam_denoised_slices/foam_2.5d_00003.tif",
        "foam_denoised_slices/foam_2.5d_lcl_00003.tif",
        "chalk_denoised_slices/chalk_2.5d_00003.tif",
        "chalk_denoised_slices/chalk_2.5d_00004.tif",
        "chalk_denoised_volume_2.5d_slices_00011-00011",
    ]
    added = new_entries(finished.folder, before, tools.fingerprint(finished.folder))
    assert added == sorted({name.partition("/")[0] for name in printed} | {"changed.yaml"})


def test_a_3d_model_writes_beside_the_results_of_the_2_5d_one(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    config = finished.configured("patch_size: 16,", "patch_size: 16, patch_size_3d: 8, patches_per_epoch_3d: 4,")
    text = config.read_text().replace("tile_size: 32", "tile_size: 16").replace("max_epochs: 2", "max_epochs: 1")
    config.write_text(text)
    assert denoise("train", "--config", config, "--mode", "3d").code == 0
    for mode in ("2.5d", "3d"):
        outcome = denoise("slice", "--config", config, "--slice-number", 5, "--mode", mode)
        assert outcome.code == 0, outcome.err
    run = finished.folder / "foam_training_3d"
    outcome = denoise("slice", "--config", config, "--slice-number", 6, "--model", run)
    assert "the model works in 3d (the config says 2.5d)" in outcome.log
    names = sorted(path.name for path in (finished.folder / "foam_denoised_slices").iterdir())
    assert names == ["foam_2.5d_00005.tif", "foam_3d_00005.tif", "foam_3d_00006.tif"]


def test_slice_range_and_volume_give_the_same_values_and_less_noise(
    trained: Dataset, denoise: Callable[..., Outcome], tools: Tools, denoised: np.ndarray, tmp_path: Path
) -> None:
    noisy = tools.read(trained.folder / "whole")
    assert denoised.shape == noisy.shape
    assert denoised.dtype == np.float32
    assert np.std(np.diff(denoised, axis=0)) < 0.9 * np.std(np.diff(noisy, axis=0))
    assert abs(denoised.mean() - noisy.mean()) < 0.5
    for number in (0, 7, 11):
        output = tmp_path / f"one_{number}.tif"
        assert denoise("slice", "--config", trained.config, "--slice-number", number, "--output", output).code == 0
        np.testing.assert_allclose(tools.read(output)[0], denoised[number], atol=2e-4)
    output = tmp_path / "range"
    arguments = ("--start-slice", 3, "--end-slice", 6, "--output", output)
    assert denoise("volume", "--config", trained.config, *arguments).code == 0
    np.testing.assert_allclose(tools.read(output), denoised[3:6], atol=2e-4)


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (("--start-slice", 20), range(20, 22)),
        (("--end-slice", 12), range(10, 12)),
        (("--start-slice", 13, "--end-slice", 14), range(13, 14)),
    ],
    ids=["start alone: to the end", "end alone: from the first", "both"],
)
def test_file_numbers_that_start_at_10_are_understood_and_kept(
    finished: Dataset,
    denoise: Callable[..., Outcome],
    tools: Tools,
    denoised: np.ndarray,
    arguments: tuple[object, ...],
    numbers: range,
) -> None:
    values = tools.read(finished.folder / "whole")
    shutil.rmtree(finished.folder / "whole")
    tools.write(finished.folder / "whole", values, first=10)
    outcome = denoise("volume", "--config", finished.config, *arguments)
    assert outcome.code == 0, outcome.err
    output = Path(outcome.out.strip())
    assert output.name == f"foam_denoised_volume_2.5d_slices_{numbers[0]:05d}-{numbers[-1]:05d}"
    assert [path.stem[-5:] for path in sorted(output.iterdir())] == [f"{number:05d}" for number in numbers]
    np.testing.assert_allclose(tools.read(output), denoised[numbers[0] - 10 : numbers[-1] - 9], atol=2e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        ("slice", "--slice-number", 12),
        ("slice", "--slice-number", -1),
        ("volume", "--start-slice", 12),
        ("volume", "--end-slice", 13),
        ("volume", "--start-slice", 5, "--end-slice", 5),
        ("volume", "--start-slice", 6, "--end-slice", 3),
    ],
)
def test_a_slice_that_does_not_exist_is_an_error_that_says_which_exist(
    trained: Dataset, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    verb, *rest = arguments
    outcome = denoise(verb, "--config", trained.config, *rest, "--output", tmp_path / "out")
    assert "0..11" in outcome.error
    assert str(trained.folder / "whole") in outcome.error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.tif", "out.h5", "out.h5::/entry/denoised", "out.zarr", "out", "new/out_1.5um"])
def test_the_suffix_of_the_output_chooses_the_format_and_units_and_numbers_survive(
    trained: Dataset, denoise: Callable[..., Outcome], denoised: np.ndarray, tmp_path: Path, name: str
) -> None:
    from denoise.tiles import Region
    from denoise.volumes import open_volume

    output = f"{tmp_path}/{name}"
    arguments = ("--start-slice", 2, "--end-slice", 4, "--output", output)
    outcome = denoise("volume", "--config", trained.config, *arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == output.partition("::")[0]
    result = open_volume(output)
    assert result.slice_numbers == range(2, 4)
    assert result.voxel_size_um == pytest.approx((1.3, 1.3, 1.3))
    np.testing.assert_allclose(result.read(Region((0, 0, 0), result.shape)), denoised[2:4], atol=2e-4)


def test_an_output_says_which_model_made_it(trained: Dataset, denoise: Callable[..., Outcome], tmp_path: Path) -> None:
    output = tmp_path / "one.tif"
    denoise("slice", "--config", trained.config, "--slice-number", 1, "--output", output)
    with tifffile.TiffFile(output) as tif:
        description = tif.pages.first.description
    assert "residual2d" in description
    assert str(trained.folder) not in description


def test_uint16_near_its_limits_is_clipped_with_a_word_and_never_wraps(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    values = tools.read(finished.folder / "whole")
    shutil.rmtree(finished.folder / "whole")
    # Half of the voxels at 0, half at 65535: the model's correction of a few grey values leaves the type's range.
    extremes = np.where(values > values.mean(), 65535, 0).astype(np.uint16)
    tools.write(finished.folder / "whole", extremes)
    written = {}
    for dtype in ("input", "float32", "uint8"):
        output = finished.folder / dtype
        arguments = ("--dtype", dtype, "--end-slice", 2, "--output", output)
        outcome = denoise("volume", "--config", finished.config, *arguments)
        assert outcome.code == 0, outcome.err
        assert ("clipped" in outcome.log) == (dtype != "float32")
        written[dtype] = tools.read(output)
    assert {name: image.dtype.name for name, image in written.items()} == {
        "input": "uint16", "float32": "float32", "uint8": "uint8"
    }  # fmt: skip
    outside = (written["float32"] < 0) | (written["float32"] > 65535)
    assert outside.any(), "the test's premise: some voxels leave the range"
    for dtype, largest in (("input", 65535), ("uint8", 255)):
        np.testing.assert_array_equal(written[dtype], np.clip(np.rint(written["float32"]), 0, largest))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", ">u2", ">i2", ">f4", "float64"])
def test_every_stored_type_and_byte_order_gives_the_result_of_the_same_values_in_float32(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, dtype: str
) -> None:
    whole = np.rint(tools.read(finished.folder / "whole")).astype(np.float32)[:3]
    for name, values in (("as_float", whole), ("whole", whole.astype(dtype))):
        shutil.rmtree(finished.folder / name, ignore_errors=True)
        (finished.folder / name).mkdir()
        for number, image in enumerate(values):
            tifffile.imwrite(finished.folder / name / f"recon_{number:05d}.tiff", image, byteorder=image.dtype.str[0])
    results = []
    for config in (finished.config, finished.configured("full: whole", "full: as_float")):
        output = finished.folder / f"from_{config.stem}"
        outcome = denoise("volume", "--config", config, "--output", output)
        assert outcome.code == 0, outcome.err
        results.append(tools.read(output))
    np.testing.assert_array_equal(results[0], results[1])


def test_whole_numbers_that_would_lose_the_image_are_refused(
    finished: Dataset, denoise: Callable[..., Outcome], tmp_path: Path
) -> None:
    from denoise.checkpoint import Checkpoint
    from denoise.normalization import Normalization

    model = finished.run / "best_val_model.pth"
    dataclasses.replace(Checkpoint.load(model), normalization=Normalization(30.0, 0.5)).save(model)
    arguments = ("volume", "--config", finished.config, "--output", tmp_path / "out")
    error = denoise(*arguments, "--dtype", "uint16").error
    assert "0.5" in error
    assert "float32" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("factor", [1000, 0.001])
def test_grey_values_of_another_scale_than_the_models_are_a_warning(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, factor: float
) -> None:
    stored = Checkpoint.load(finished.run / "best_val_model.pth")
    mean = 0.0 if factor < 1 else stored.normalization.mean  # the standard deviation alone must tell
    normalization = Normalization(mean, stored.normalization.std)
    dataclasses.replace(stored, normalization=normalization).save(finished.run / "best_val_model.pth")
    values = tools.read(finished.folder / "whole")
    centred = (values - values.mean() + mean).astype(np.float32)
    for name, stack in (("same", centred), ("scaled", (factor * centred).astype(np.float32))):
        tools.write(finished.folder / name, stack)
    config = finished.configured("full: whole", "full: same")
    assert "WARNING" not in denoise("slice", "--config", config, "--slice-number", 1, "--device", "cpu").log
    config = finished.configured("full: whole", "full: scaled")
    outcome = denoise("slice", "--config", config, "--slice-number", 2, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "WARNING" in outcome.log
    assert "slice 2 of the input has grey values" in outcome.log


def test_two_processes_give_the_same_bits_as_one(
    trained: Dataset, denoised: np.ndarray, tools: Tools, tmp_path: Path
) -> None:
    output = tmp_path / "two.zarr"
    command = [sys.executable, "-m", "denoise", "volume", "--config", str(trained.config), "--output", str(output)]
    ended = subprocess.run(
        [*command, "--processes", "2", "--device", "cpu"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(output)]
    np.testing.assert_array_equal(tools.read(output), denoised)
    assert [path.name for path in tmp_path.iterdir()] == ["two.zarr"]


def test_a_run_that_failed_is_taken_up_where_it_ended_once_the_cause_is_mended(
    finished: Dataset, denoise: Callable[..., Outcome], denoised: np.ndarray, tools: Tools
) -> None:
    file, output = finished.folder / "whole" / "whole_00010.tif", finished.folder / "out.h5"
    whole = file.read_bytes()
    file.write_bytes(b"")
    command = ("volume", "--config", finished.config, "--output", output)
    assert str(file) in denoise(*command).error
    assert not output.exists()
    file.write_bytes(whole)
    assert "--resume" in denoise(*command).error
    resumed = denoise(*command, "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.out.strip() == str(output)
    np.testing.assert_array_equal(tools.read(output), denoised)
    again = denoise(*command, "--resume")
    assert again.code == 0, again.err
    assert (again.out.strip(), "nothing is left to do" in again.log) == (str(output), True)


def leave_unfinished(finished: Dataset, denoise: Callable[..., Outcome]) -> None:
    """A volume "out" that ended at a slice which could not be read; now it can."""
    file = finished.folder / "whole" / "whole_00010.tif"
    whole = file.read_bytes()
    file.write_bytes(b"")
    assert denoise("volume", "--config", finished.config, "--output", finished.folder / "out").code == 2
    file.write_bytes(whole)


def test_a_run_is_not_taken_up_with_another_model(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    leave_unfinished(finished, denoise)
    config = finished.configured("overlap: 0.25", "overlap: 0.5")
    error = denoise("volume", "--config", config, "--output", finished.folder / "out", "--resume").error
    assert "was begun with tiles = " in error


def test_a_model_file_says_itself_by_what_it_was_chosen(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    stored = Checkpoint.load(finished.run / "best_val_model.pth")
    edge = finished.folder / "mine.pth"
    dataclasses.replace(stored, criterion="edge").save(edge)
    before = tools.fingerprint(finished.folder)
    asked = ("slice", "--config", finished.config, "--slice-number", 3, "--model", edge)
    error = denoise(*asked, "--checkpoint", "lcl").error
    assert "leave one of them out" in error
    assert tools.fingerprint(finished.folder) == before
    assert denoise(*asked).out.strip().endswith("foam_2.5d_edge_00003.tif")


def test_whole_numbers_that_would_clip_most_of_the_grey_values_are_refused(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    stored = Checkpoint.load(finished.run / "best_val_model.pth")
    dataclasses.replace(stored, normalization=Normalization(30000.0, 900.0)).save(finished.run / "best_val_model.pth")
    before = tools.fingerprint(finished.folder)
    error = denoise("slice", "--config", finished.config, "--slice-number", 3, "--dtype", "uint8").error
    assert "--dtype uint8 holds 0 to 255" in error
    assert "3e+04 +- 900" in error
    assert tools.fingerprint(finished.folder) == before


def test_what_was_made_from_other_grey_values_is_neither_continued_nor_taken_for_done(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    def anew(values: np.ndarray) -> None:
        shutil.rmtree(finished.folder / "whole")
        tools.write(finished.folder / "whole", values)

    *_, full = tools.images()
    for suffix in ("", ".tif", ".h5", ".zarr"):
        command = ("volume", "--config", finished.config, "--output", finished.folder / f"out{suffix}")
        assert denoise(*command).code == 0
        anew(full + 0.5)
        before = tools.fingerprint(finished.folder)
        assert "dataset.mean and std) has changed since" in denoise(*command, "--resume").error
        assert tools.fingerprint(finished.folder) == before
        assert denoise(*command, "--resume", "--overwrite").code == 0
        assert "nothing is left to do" in denoise(*command, "--resume").log
        anew(full)
    file = finished.folder / "whole" / "whole_00010.tif"
    file.write_bytes(b"")
    command = ("volume", "--config", finished.config, "--output", finished.folder / "other")
    assert denoise(*command).code == 2
    anew(full + 0.5)
    assert "was begun with other grey values in the input than this run has" in denoise(*command, "--resume").error
    facts = finished.folder / ".other.unfinished" / "run.json"
    earlier = {name: fact for name, fact in json.loads(facts.read_text()).items() if name != "grey values"}
    facts.write_text(json.dumps(earlier))
    assert denoise(*command, "--resume").code == 0, "versions before this one did not say"
    error = denoise(*command, "--resume", "--start-slice", 3).error
    assert "is whole and has slices 0..11, this run has 3..11" in error


def test_only_a_result_of_this_run_counts_as_done(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    output = finished.folder / "out.tif"
    command = ("volume", "--config", finished.config, "--resume", "--output")
    *_, full = tools.images()
    for foreign, values in (("foreign", full), ("small.tif", full[:, :10, :10])):
        with create_sink(finished.folder / foreign, shape=values.shape) as sink:
            sink.write(0, np.asarray(values, np.float32))
        assert "is no result of this run" in denoise(*command, finished.folder / foreign).error
    for more in ((), ("--confidence",)):
        assert "in the input" in denoise(*command, finished.folder / "whole", *more).error
    assert denoise(*command, output).code == 0
    before = tools.fingerprint(finished.folder)
    assert "of type float32, this run makes float64" in denoise(*command, output, "--dtype", "float64").error
    for old, new in (("infer: {", "infer: {tta: 2, "), ("overlap: 0.25", "overlap: 0.5"), (", overlap: 0.25", "")):
        other = finished.configured(old, new)
        error = denoise("volume", "--config", other, "--resume", "--output", output).error
        assert "another model made it, or other settings of infer" in error
        other.unlink()
    assert "nothing is left to do" in denoise(*command, output).log
    assert tools.fingerprint(finished.folder) == before


def test_what_was_begun_goes_on_where_its_folder_was_moved_to(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    leave_unfinished(finished, denoise)
    moved = finished.folder.with_name("moved")
    finished.folder.rename(moved)
    config = moved / finished.config.name
    config.write_text(config.read_text().replace(str(finished.folder), str(moved)))
    outcome = denoise("volume", "--config", config, "--output", moved / "out", "--resume")
    assert outcome.code == 0, outcome.err
    assert denoise("volume", "--config", config, "--output", moved / "anew").code == 0
    np.testing.assert_array_equal(tools.read(moved / "out"), tools.read(moved / "anew"))


def test_an_uncertainty_of_a_result_that_is_replaced_is_named(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    command = ("volume", "--config", finished.config, "--output", finished.folder / "out.tif", "--overwrite")
    assert "uncertainty" not in denoise(*command).log
    with create_sink(finished.folder / "out_uncertainty.tif", shape=(1, 4, 4)) as sink:
        sink.write(0, np.zeros((1, 4, 4), np.float32))
    assert "out_uncertainty.tif is the uncertainty of the result that is replaced" in denoise(*command).log


def test_splits_can_be_denoised_instead_of_the_full_reconstruction_which_may_then_be_missing(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    outputs = []
    for name in ("even", "odd", None):
        text = finished.config.read_text()
        text = text.replace("  full: whole\n", f"  full: {name}\n" if name else "")
        text = text.replace("infer: {", "infer: {input: splits, ") if name is None else text
        config = finished.folder / f"{name}.yaml"
        config.write_text(text)
        output = finished.folder / f"out_{name}"
        outcome = denoise("volume", "--config", config, "--end-slice", 2, "--output", output)
        assert outcome.code == 0, outcome.err
        outputs.append(tools.read(output))
    np.testing.assert_allclose(outputs[2], (outputs[0] + outputs[1]) / 2, atol=2e-4)


def test_without_a_full_reconstruction_the_way_out_is_named(finished: Dataset, denoise: Callable[..., Outcome]) -> None:
    config = finished.configured("  full: whole\n", "")
    outcome = denoise("volume", "--config", config)
    assert "dataset.full" in outcome.error
    assert "infer.input: splits" in outcome.error


def test_an_earlier_result_is_refused_and_replaced_only_on_request(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    arguments = ("volume", "--config", finished.config, "--start-slice", 10)
    assert denoise(*arguments).code == 0
    before = tools.fingerprint(finished.folder)
    assert "--overwrite" in denoise(*arguments).error
    assert tools.fingerprint(finished.folder) == before
    assert denoise(*arguments, "--overwrite", "--checkpoint", "val").code == 0
    assert tools.fingerprint(finished.folder).keys() == before.keys()


@pytest.mark.parametrize(
    "output",
    ["whole", "even", "odd", ".", "whole/../odd", "link", "whole/denoised", "whole/x_00012.tif", "odd/deep/er.h5"],
)
def test_an_output_that_touches_any_reconstruction_of_the_config_is_refused_even_with_overwrite(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, output: str
) -> None:
    (finished.folder / "link").symlink_to("even")
    before = tools.fingerprint(finished.folder)
    outcome = denoise(
        "volume", "--config", finished.config, "--output", finished.folder / output, "--overwrite", "--end-slice", 1
    )
    assert "--output" in outcome.error
    assert tools.fingerprint(finished.folder) == before


@pytest.mark.parametrize("command", ["volume", "slice"])
@pytest.mark.parametrize("output", ["whole_00003.tif", "new_00040.tif", "new.TIFF"])
def test_an_output_among_slices_that_lie_loose_is_refused_even_with_overwrite(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path, output: str, command: str
) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    for n, image in enumerate(tools.read(finished.folder / "whole")):
        tifffile.imwrite(loose / f"whole_{n:05d}.tif", image)
    (loose / "foam.yaml").write_text("dataset: {folder: ., full: .}\n")
    before = tools.fingerprint(loose)
    which = ("--slice-number", 3) if command == "slice" else ()
    start = (command, "--config", loose / "foam.yaml", "--model", finished.run, *which, "--overwrite", "--output")
    assert "the input" in denoise(*start, loose / output).error
    assert tools.fingerprint(loose) == before
    assert denoise(*start, loose / "denoised" / output).code == 0


def test_an_output_in_place_of_slices_that_the_input_links_to_is_refused_even_with_overwrite(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    (finished.folder / "some").mkdir()
    for path in sorted((finished.folder / "whole").iterdir())[:4]:
        (finished.folder / "some" / path.name).symlink_to(path)
    shutil.copytree(finished.folder / "whole", finished.folder / "other")
    config = finished.configured("full: whole", "full: some")
    before = tools.fingerprint(finished.folder)
    start = ("volume", "--config", config, "--overwrite", "--output")
    for output in ("whole", "some", "whole/x_00012.tif"):
        assert "the input" in denoise(*start, finished.folder / output).error
    assert tools.fingerprint(finished.folder) == before
    assert denoise(*start, finished.folder / "other").code == 0


def test_folders_may_have_two_colons_in_their_names(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    folder = finished.folder.with_name("a::b")
    finished.folder.rename(folder)
    start = ("volume", "--config", folder / "foam.yaml", "--end-slice", 4, "--output")
    for output in ("out", "out.h5::/exchange/data"):
        outcome = denoise(*start, f"{folder}/{output}", "--confidence")
        assert outcome.code == 0, outcome.err
    assert {"out", "out_uncertainty", "out.h5", "out_uncertainty.h5"} <= {path.name for path in folder.iterdir()}


def test_a_result_of_another_mean_and_deviation_is_not_taken_for_done(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    """Where the model, as those of the published tools, has none of its own."""
    stored = finished.run / "best_val_model.pth"
    model = finished.folder / "bare.pth"
    own = Checkpoint.load(stored)
    assert own.normalization is not None
    dataclasses.replace(own, normalization=None).save(model)
    mean, std = own.normalization.mean, own.normalization.std

    def resumed(mean: float) -> Outcome:
        config = finished.configured("  sample: foam\n", f"  sample: foam\n  mean: {mean}\n  std: {std}\n")
        return denoise(
            "volume", "--config", config, "--model", model, "--end-slice", 2, "--output", finished.folder / "out",
            "--resume",
        )  # fmt: skip

    assert resumed(mean).code == 0
    assert "dataset.mean and std) has changed" in resumed(mean + std).error
    assert "nothing is left to do" in resumed(mean).log


@pytest.mark.parametrize("splits", [2, 3])
def test_the_type_of_the_input_is_that_of_the_files_however_many_splits_there_are(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, splits: int
) -> None:
    images = [tools.read(finished.folder / name) for name in ("even", "odd", "even")]
    for k, image in enumerate(images[:splits]):
        with create_sink(finished.folder / f"s{k}", shape=image.shape, dtype=np.uint16) as sink:
            sink.write(0, np.clip(image * 100, 0, 60000))
    names = ", ".join(f"s{k}" for k in range(splits))
    config = finished.configured("[even, odd]", f"[{names}]")
    config.write_text(config.read_text().replace("infer: {", "infer: {input: splits, "))
    start = ("volume", "--config", config, "--output", finished.folder / "out", "--dtype", "input")
    outcome = denoise(*start)
    assert outcome.code == 0, outcome.err
    assert open_volume(finished.folder / "out").dtype == np.uint16
    assert "nothing is left to do" in denoise(*start, "--resume").log


@pytest.mark.parametrize("inside", ["", "::/exchange/data", "::/other"])
def test_an_output_in_the_file_of_the_input_is_refused_even_with_overwrite(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, inside: str
) -> None:
    tools.write(finished.folder / "whole.h5", tools.read(finished.folder / "whole"))
    config = finished.configured("full: whole", "full: whole.h5")
    before = tools.fingerprint(finished.folder)
    output = f"{finished.folder}/whole.h5{inside}"
    outcome = denoise("volume", "--config", config, "--output", output, "--overwrite")
    assert "whole.h5" in outcome.error
    assert tools.fingerprint(finished.folder) == before


def test_an_output_folder_with_other_things_in_it_is_left_alone(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    arguments = ("volume", "--config", finished.config, "--overwrite", "--output", finished.run)
    before = tools.fingerprint(finished.folder)
    assert "best_edge_model.pth" in denoise(*arguments).error
    assert tools.fingerprint(finished.folder) == before


def test_a_criterion_that_has_no_model_yet_is_explained(finished: Dataset, denoise: Callable[..., Outcome]) -> None:
    (finished.run / "best_lcl_model.pth").unlink()
    error = denoise("volume", "--config", finished.config, "--checkpoint", "lcl").error
    assert "best_lcl_model.pth" in error
    assert "best_val_model.pth" in error
    assert "warmup_steps" in error


def test_the_config_chooses_the_criterion_and_the_command_line_overrules_it(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    config = finished.configured("infer: {", "infer: {checkpoint: edge, ")
    first = denoise("slice", "--config", config, "--slice-number", 1)
    second = denoise("slice", "--config", config, "--slice-number", 1, "--checkpoint", "val")
    assert first.out.strip().endswith("foam_2.5d_edge_00001.tif")
    assert second.out.strip().endswith("foam_2.5d_00001.tif")


def test_a_mode_that_is_not_the_models_is_refused(trained: Dataset, denoise: Callable[..., Outcome]) -> None:
    arguments = ("--config", trained.config, "--mode", "3d", "--model", trained.run)
    error = denoise("slice", *arguments, "--slice-number", 1).error
    assert "3d" in error
    assert "2.5d" in error


def test_an_untrained_dataset_says_what_to_do(dataset: Dataset, denoise: Callable[..., Outcome]) -> None:
    assert "denoise train" in denoise("volume", "--config", dataset.config).error
