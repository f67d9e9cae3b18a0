from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray

import denoise
from denoise.api import as_volume, denoise_into, denoise_volume, load_checkpoint, train
from denoise.checkpoint import Checkpoint
from denoise.config import InferSection
from denoise.errors import CheckpointError, ConfigError, VolumeError
from denoise.inference.engine import denoise_slices
from denoise.inference.models import input_views, make_denoiser
from denoise.launch import Compute
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.run_folder import RunFolder
from denoise.tiles import Region
from denoise.training import observers
from denoise.training.observers import read_history
from denoise.volumes import ArrayVolume, create_sink
from denoise.volumes.combined import CombinedVolume

CPU = Compute(device="cpu")
TINY: dict[str, Any] = {
    "network": "residual",
    "n_slices": 3,
    "levels": 2,
    "patch_size": 16,
    "patch_size_3d": 8,
    "batch_size": 4,
    "patches_per_epoch": 8,
    "patches_per_epoch_3d": 8,
    "max_epochs": 2,
    "validate_every": 1,
    "precision": "float32",
    "compute": CPU,
}
#: Tiles as small as the volumes here; the default ones would be mostly reflections.
TILES = InferSection(tile_size=16, precision="float32")
TILES_OF_32 = InferSection(tile_size=32, precision="float32")

Images = NDArray[np.float32]


def truth_of(shape: tuple[int, int, int] = (12, 32, 32)) -> Images:
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return (1000 + 200 * (np.abs(y) + 0.5 * np.abs(z) < 0.6) + 150 * ((x - 0.2) ** 2 + y**2 < 0.3)).astype(np.float32)


def splits_of(truth: Images, count: int = 2, noise: float = 120.0) -> list[Images]:
    rng = np.random.default_rng(7)
    return [(truth + rng.normal(0, noise, truth.shape)).astype(np.float32) for _ in range(count)]


def rmse(image: Images, truth: Images) -> float:
    return float(np.sqrt(np.mean((image - truth) ** 2)))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: they cost more than these runs."""
    monkeypatch.setattr(observers, "draw_preview", lambda *_: None)
    monkeypatch.setattr(observers, "draw_curves", lambda *_: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small finished run that tests only look at."""
    folder = tmp_path_factory.mktemp("api") / "model"
    train(splits_of(truth_of()), folder, **{**TINY, "max_epochs": 12, "learning_rate": 3e-3, "loss": "l2"})
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a test changed the run that it was given"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def random_checkpoint(network: str = "residual2d", **options: int) -> Checkpoint:
    torch.manual_seed(0)
    spec = NetworkSpec(network, options)
    weights = build_network(spec).state_dict()
    weights |= {name: torch.randn_like(w) * 0.1 for name, w in weights.items() if name.startswith("leave")}
    return Checkpoint(spec, weights, Normalization(0.0, 1.0), patch_size=16)


# Training and denoising


def test_training_on_two_splits_removes_noise(run: Path) -> None:
    truth = truth_of()
    splits = splits_of(truth)
    full = np.mean(splits, axis=0)
    result = denoise_volume(full, load_checkpoint(run), infer=TILES, compute=CPU)
    assert result.shape == truth.shape
    assert result.dtype == np.float32
    assert rmse(result, truth) < 0.9 * rmse(full, truth)
    averaged = denoise_volume(splits, load_checkpoint(run), infer=TILES, compute=CPU)
    assert rmse(averaged, truth) < 0.75 * rmse(splits[0], truth)


@pytest.mark.usefixtures("quiet")
def test_cubes_train_and_denoise_too(tmp_path: Path) -> None:
    truth = truth_of((20, 24, 24))
    splits = splits_of(truth)
    settings = {**TINY, "mode": "3d", "max_epochs": 6, "learning_rate": 4e-3, "loss": "l2", "patches_per_epoch_3d": 24}
    checkpoint = train(splits, tmp_path / "model", **settings)
    assert checkpoint.network.name == "residual3d"
    result = denoise_volume(splits[0], checkpoint, infer=InferSection(tile_size=8), compute=CPU)
    assert rmse(result, truth) < 0.8 * rmse(splits[0], truth)


def test_a_run_leaves_models_a_record_and_pictures(run: Path) -> None:
    folder = RunFolder(run)
    for path in (folder.model("val"), folder.state, folder.config, folder.history, folder.curves, folder.preview(1)):
        assert path.is_file(), path.name
    assert folder.preview(12).is_file(), "the last epoch is always drawn"
    for picture in (folder.curves, folder.preview(1)):
        assert matplotlib.image.imread(picture).ndim == 3
    assert len(read_history(folder.history)) == 12


def test_what_train_returns_is_the_best_model_in_the_folder(run: Path) -> None:
    checkpoint = load_checkpoint(run)
    best = min(read_history(RunFolder(run).history), key=lambda line: float(line["val_l2"]))
    assert checkpoint.epoch == best["epoch"]
    assert checkpoint.scores["l2"] == best["val_l2"]
    assert load_checkpoint(run / "best_val_model.pth").epoch == checkpoint.epoch
    assert checkpoint.sample == "model"


def test_a_model_that_is_not_there_is_named_with_what_is(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no best_lcl_model\.pth, only best_val_model\.pth"):
        load_checkpoint(run, "lcl")
    with pytest.raises(CheckpointError, match="there is no model at"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.usefixtures("quiet")
def test_files_train_as_arrays_do(tmp_path: Path) -> None:
    arrays = splits_of(truth_of())
    for k, array in enumerate(arrays):
        tifffile.imwrite(tmp_path / f"recon_{k}.tif", array, photometric="minisblack")
    one = train(arrays, tmp_path / "arrays", **TINY)
    two = train([tmp_path / "recon_0.tif", str(tmp_path / "recon_1.tif")], str(tmp_path / "files"), **TINY)
    assert one.scores == two.scores
    result = denoise_volume(tmp_path / "recon_0.tif", two, infer=TILES, compute=CPU)
    np.testing.assert_array_equal(result, denoise_volume(arrays[0], one, infer=TILES, compute=CPU))


# Ranges, inputs, tiles


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, slice(0, 12)),
        (103, None, slice(3, 12)),
        (None, 104, slice(0, 4)),
        (105, 109, slice(5, 9)),
        (100, 101, slice(0, 1)),
        (111, 112, slice(11, 12)),
    ],
)
@pytest.mark.parametrize("network", ["residual2d", "residual3d"])
def test_slices_are_chosen_by_the_numbers_that_the_user_knows(
    network: str, start: int | None, end: int | None, expected: slice
) -> None:
    checkpoint = random_checkpoint(network, levels=1, width=4)
    volume = ArrayVolume(splits_of(truth_of(), noise=1.0)[0] / 1000 - 1, first_slice=100)
    whole = denoise_volume(volume, checkpoint, infer=TILES, compute=CPU)
    part = denoise_volume(volume, checkpoint, start_slice=start, end_slice=end, infer=TILES, compute=CPU)
    np.testing.assert_allclose(part, whole[expected], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("start", "end"), [(99, None), (None, 113), (112, None), (5, 6), (105, 105), (107, 105)])
def test_slices_that_do_not_exist_are_refused_with_those_that_do(start: int | None, end: int | None) -> None:
    volume = ArrayVolume(truth_of(), first_slice=100)
    with pytest.raises(VolumeError, match=r"slices 100\.\.111|its slices are 100\.\.111"):
        denoise_volume(volume, random_checkpoint(levels=1), start_slice=start, end_slice=end, compute=CPU)


def test_two_splits_are_each_denoised_and_averaged() -> None:
    checkpoint = random_checkpoint(levels=1, width=4)
    splits = [split / 1000 for split in splits_of(truth_of())]
    each = [denoise_volume(split, checkpoint, infer=TILES, compute=CPU) for split in splits]
    together = denoise_volume(splits, checkpoint, infer=TILES, compute=CPU)
    np.testing.assert_allclose(together, np.mean(each, axis=0), rtol=0, atol=5e-6)
    assert np.abs(each[0] - each[1]).max() > 0.01


def test_of_more_splits_the_network_sees_means_as_in_training() -> None:
    checkpoint = random_checkpoint(levels=1, width=4)
    splits = [split / 1000 for split in splits_of(truth_of(), 3)]
    means = [(sum(splits) - split) / 2 for split in splits]
    each = [denoise_volume(mean.astype(np.float32), checkpoint, infer=TILES, compute=CPU) for mean in means]
    together = denoise_volume(splits, checkpoint, infer=TILES, compute=CPU)
    np.testing.assert_allclose(together, np.mean(each, axis=0), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("count", "strategy", "kind"), [(2, "X:1", ArrayVolume), (3, "X:1", CombinedVolume), (3, "1:X", ArrayVolume)]
)
def test_the_network_sees_what_it_was_trained_on(count: int, strategy: str, kind: type[Any]) -> None:
    splits = [ArrayVolume(array) for array in splits_of(truth_of(), count)]
    views = input_views(splits, strategy)
    assert [type(view) for view in views] == [kind] * count
    whole = Region((0, 0, 0), splits[0].shape)
    np.testing.assert_allclose(
        np.mean([view.read(whole) for view in views], axis=0), np.mean([s.array for s in splits], axis=0), rtol=1e-6
    )


@pytest.mark.parametrize("other", [(12, 32, 31), (13, 32, 32), (12, 64, 32)], ids=str)
def test_splits_of_different_shapes_are_refused_with_both_shapes(tmp_path: Path, other: tuple[int, int, int]) -> None:
    splits = [truth_of(), truth_of(other)]
    with pytest.raises(VolumeError, match=r"\(12, 32, 32\)"):
        train(splits, tmp_path / "model", **TINY)
    with pytest.raises(VolumeError, match=r"\(12, 32, 32\)"):
        denoise_volume(splits, random_checkpoint(levels=1), infer=TILES, compute=CPU)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_splits_are_refused(tmp_path: Path, count: int) -> None:
    splits = splits_of(truth_of(), 2)[:count]
    with pytest.raises(VolumeError, match=f"at least two sub-reconstructions, found {count}"):
        train(splits, tmp_path / "model", **TINY)
    with pytest.raises(VolumeError, match=f"at least two sub-reconstructions, found {count}"):
        denoise_volume(splits, random_checkpoint(levels=1), compute=CPU)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 4), (0, 4, 4)], ids=str)
def test_arrays_that_are_no_volumes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(VolumeError, match=r"three axes \(Z, Y, X\)"):
        denoise_volume(np.zeros(shape, np.float32), random_checkpoint(levels=1), compute=CPU)


def test_grey_values_of_another_scale_are_warned_of_from_python_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, known = random_checkpoint(), splits_of(np.zeros((3, 20, 20), np.float32), noise=1.0)[0]
    denoise_volume(known, checkpoint, infer=TILES, compute=CPU)
    assert "the model was trained on" not in caplog.text
    denoise_volume(known * 1000, checkpoint, start_slice=2, infer=TILES, compute=CPU)
    assert "slice 2 of the input has grey values" in caplog.text
    assert "the model was trained on 0 +- 1: the result is unreliable" in caplog.text
    caplog.clear()
    denoise_into(create_sink(tmp_path / "out", shape=known.shape), known * 1000, checkpoint, infer=TILES, compute=CPU)
    assert "the result is unreliable" in caplog.text


def test_the_input_is_left_alone_and_progress_reaches_the_end() -> None:
    data = truth_of()
    before = data.copy()
    reported: list[int] = []
    denoise_volume(data, random_checkpoint(levels=1), infer=TILES, compute=CPU, progress=reported.append)
    np.testing.assert_array_equal(data, before)
    assert reported[-1] == 12


def test_a_sink_gets_what_the_array_would_hold(tmp_path: Path) -> None:
    data = truth_of() / 1000
    checkpoint = random_checkpoint(levels=1, width=4)
    sink = create_sink(tmp_path / "out.tif", shape=as_volume(data).shape)
    denoise_into(sink, data, checkpoint, infer=TILES, compute=CPU)
    expected = denoise_volume(data, checkpoint, infer=TILES, compute=CPU)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), expected)


def test_a_sink_that_the_caller_has_entered_is_filled_too(tmp_path: Path) -> None:
    data = truth_of() / 1000
    checkpoint = random_checkpoint(levels=1, width=4)
    with create_sink(tmp_path / "out.tif", shape=data.shape) as sink:
        denoise_into(sink, data, checkpoint, infer=TILES, compute=CPU)
        assert not (tmp_path / "out.tif").exists()
    expected = denoise_volume(data, checkpoint, infer=TILES, compute=CPU)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), expected)


def test_a_model_may_be_named_by_its_path(run: Path) -> None:
    data = truth_of()
    one, other = (denoise_volume(data, model, infer=TILES, compute=CPU) for model in (run, load_checkpoint(run)))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("source", "named"), [([[1.0]], "list"), (torch.zeros(2, 8, 8), "torch"), (np.ma.masked_array([[[1.0]]]), "mask")]
)
def test_what_is_no_volume_is_refused_by_its_kind(source: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        as_volume(source)


def test_splits_that_the_method_cannot_work_with_are_told_from_python_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = splits_of(truth_of())[0]
    with caplog.at_level("WARNING"):
        train([split, split.copy()], tmp_path / "run", **TINY | {"max_epochs": 1})
    assert "the same image" in caplog.text


@pytest.mark.parametrize(("network", "options", "edge"), [("residual2d", {"levels": 3}, 18), ("unet2d", {}, 20)])
def test_a_tile_that_the_network_cannot_take_is_refused(network: str, options: dict[str, int], edge: int) -> None:
    with pytest.raises(ConfigError, match=rf"tile_size is {edge}; it must be divisible by"):
        make_denoiser(random_checkpoint(network, **options), InferSection(tile_size=edge), torch.device("cpu"))


@pytest.mark.parametrize(
    ("network", "trained_at", "edge"),
    [
        ("residual2d", 16, 384),
        ("residual2d", 512, 512),
        ("residual3d", 16, 128),
        ("unet2d", 48, 48),
        ("unet2d", None, 256),
    ],
)
def test_networks_that_depend_on_the_tile_run_at_the_size_they_were_trained_at(
    network: str, trained_at: int | None, edge: int
) -> None:
    made = random_checkpoint(network)
    checkpoint = Checkpoint(made.network, made.weights, made.normalization, trained_at)
    window = make_denoiser(checkpoint, InferSection(), torch.device("cpu")).window
    assert window.predict_zyx[1:] == (edge, edge)


def test_a_patch_size_from_the_config_serves_models_that_do_not_know_theirs() -> None:
    made = random_checkpoint("unet2d")
    checkpoint = Checkpoint(made.network, made.weights, made.normalization, None)
    window = make_denoiser(checkpoint, InferSection(), torch.device("cpu"), patch_size=64).window
    assert window.predict_zyx == (1, 64, 64)


# Models of the published tools


@pytest.mark.real_data
def test_a_published_model_needs_its_normalisation_and_works_with_one(shared_data: Path) -> None:
    checkpoint = load_checkpoint(shared_data / "legacy" / "unet2d_n5.pth")
    stored = np.load(shared_data / "legacy" / "unet2d_n5_io.npz")
    with pytest.raises(CheckpointError, match=r"mean4norm and std4norm"):
        denoise_volume(stored["x"][0], checkpoint, compute=CPU)

    # One tile that is the whole slice, so that what comes out can only be what the network says of it.
    square = stored["x"][0][:, :48, :48]
    with torch.inference_mode():
        expected = checkpoint.build()(torch.from_numpy(square)[None])[0, 0].numpy() * 20 + 500
    denoiser = make_denoiser(
        checkpoint,
        InferSection(tile_size=48, precision="float32"),
        torch.device("cpu"),
        normalization=Normalization(500.0, 20.0),
    )
    slices: list[Images] = []
    denoise_slices([ArrayVolume(square * 20 + 500)], denoiser, range(2, 3), lambda start, slab: slices.append(slab))
    np.testing.assert_allclose(slices[0][0], expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("tta", [1, 8])
def test_the_turned_versions_that_the_config_asks_for_are_averaged(tta: int) -> None:
    data = splits_of(truth_of((3, 32, 32)), noise=120.0)[0] / 1000
    checkpoint = random_checkpoint(levels=1, width=4)
    infer = InferSection(tile_size=32, precision="float32", tta=tta)
    found = denoise_volume(data, checkpoint, infer=infer, compute=CPU)
    by_hand = np.zeros_like(data)
    for quarter in range(4):
        for mirror in (False, True):
            turned = np.rot90(data[..., ::-1] if mirror else data, quarter, (1, 2)).copy()
            result = np.rot90(denoise_volume(turned, checkpoint, infer=TILES_OF_32, compute=CPU), -quarter, (1, 2))
            by_hand += (result[..., ::-1] if mirror else result) / 8
    plain = denoise_volume(data, checkpoint, infer=TILES_OF_32, compute=CPU)
    np.testing.assert_allclose(found, by_hand if tta == 8 else plain, rtol=0, atol=5e-6)
    assert np.abs(by_hand - plain).max() > 0.01


def test_a_normalisation_in_the_model_wins_over_one_that_is_given() -> None:
    checkpoint = random_checkpoint(levels=1)
    given = make_denoiser(checkpoint, TILES, torch.device("cpu"), normalization=Normalization(7.0, 3.0))
    assert given.normalization == checkpoint.normalization


# The package


def test_everything_that_the_package_offers_is_there() -> None:
    for name in denoise.__all__:
        assert getattr(denoise, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        denoise.magic  # noqa: B018
