"""``denoise prepare``: from a raw scan to volumes and a config, or nothing at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from denoise.config import load_config
from denoise.projections.angles import SplitAngles
from denoise.projections.lost import LostProjections
from denoise.projections.phantom import FoamPhantom, simulate_foam_scan
from denoise.projections.reconstruct import reconstruct_rows
from denoise.projections.scan import Scan

if TYPE_CHECKING:
    from tiny_dataset import Outcome, Tools

pytest_plugins = ("tiny_dataset", "machine")

SIZE, ROWS = 48, 8


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of 8 rows. Read only."""
    path = tmp_path_factory.mktemp("raw") / "foam.h5"
    simulate_foam_scan(path, size=SIZE, slices=ROWS, angles=60)
    return path


@pytest.fixture
def scan(simulated: Path, tmp_path: Path) -> Path:
    """A scan of the test's own."""
    return Path(shutil.copy(simulated, tmp_path / "raw.h5"))


CENTER = ("--center", 23.5)


def test_a_scan_becomes_a_full_volume_splits_and_a_config_that_trains(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    before = scan.read_bytes()
    outcome = denoise("prepare", scan)
    assert outcome.code == 0, outcome.err
    assert scan.read_bytes() == before
    out = scan.with_name("raw_rec")
    assert sorted(p.name for p in out.iterdir()) == [
        "foam_angles.txt", "foam_config.yaml", "foam_full", "foam_split0", "foam_split1",
    ]  # fmt: skip
    angles, split_of = np.loadtxt(out / "foam_angles.txt").T
    np.testing.assert_allclose(angles, np.rad2deg(Scan.open(scan).angles_rad), atol=1e-6)
    assert split_of.tolist() == [0, 1] * 30
    assert outcome.out.strip() == str(out / "foam_config.yaml")
    full, *splits = (tools.read(out / f"foam_{name}") for name in ("full", "split0", "split1"))
    assert full.shape == (ROWS, SIZE, SIZE)
    # Filtered back-projection is linear, and the splits share the angles evenly.
    inside = np.s_[:, 12:36, 12:36]
    np.testing.assert_allclose(((splits[0] + splits[1]) / 2)[inside], full[inside], atol=0.05 * np.abs(full).max())
    noise = np.std((splits[0] - splits[1])[inside])
    assert noise > 0

    config = load_config(out / "foam_config.yaml")
    assert config.sample_name == "foam"
    text = (out / "foam_config.yaml").read_text()
    assert text.count("\ntrain:\n  ") == 1
    (out / "foam_config.yaml").write_text(text.replace("\ntrain:\n  ", "\ntrain:\n  max_epochs: 1\n  "))
    trained = denoise("train", "--config", out / "foam_config.yaml")
    assert trained.code == 0, trained.err


def test_a_prepared_folder_may_move(scan: Path, denoise: Callable[..., Outcome], tmp_path: Path) -> None:
    assert denoise("prepare", scan, *CENTER, "--out", tmp_path / "here").code == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert denoise("check", "--config", tmp_path / "there" / "foam_config.yaml").code == 0


@pytest.mark.parametrize(("mode", "network"), [("2.5d", "residual2d"), ("3D", "residual3d")])
def test_the_config_asks_for_the_light_network_and_patches_that_fit_the_scan(
    scan: Path,
    denoise: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    network: str,
) -> None:
    """With a GPU as without: the scan alone decides."""
    texts = []
    for gpu in (True, False):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        out = tmp_path / f"gpu_{gpu}"
        assert denoise("prepare", scan, *CENTER, "--out", out, "--mode", mode).code == 0
        texts.append((out / "foam_config.yaml").read_text())
    assert texts[0] == texts[1]
    config = load_config(tmp_path / "gpu_True" / "foam_config.yaml")
    assert config.network_name == network
    assert config.patch <= SIZE
    assert config.train.learning_rate is None, "the recipe of the network, also of releases to come"


def test_options_reach_the_reconstruction_and_the_config(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path
) -> None:
    template = tmp_path / "template.yaml"
    template.write_text(
        "dataset: {folder: /elsewhere, full: other}\n"
        "train: {n_slices: 7, width: 24, network: residual, output_dir: /elsewhere/run}\ninfer: {overlap: 0.125}\n"
    )
    plain, other = tmp_path / "plain", tmp_path / "other"
    assert denoise("prepare", scan, *CENTER, "--out", plain).code == 0
    arguments = ("--splits", 3, "--center", 20, "--remove-stripes", "--config", template, "--out", other)
    outcome = denoise("prepare", scan, *arguments)
    assert outcome.code == 0, outcome.err
    config = load_config(other / "foam_config.yaml")
    assert [Path(path).name for path in config.split_paths] == ["foam_split0", "foam_split1", "foam_split2"]
    assert (config.train.n_slices, config.train.width, config.infer.overlap) == (7, 24, 0.125)
    assert config.output_dir == other / "foam_training_2.5d"
    assert tools.read(other / "foam_split2").shape == (ROWS, SIZE, SIZE)
    assert not np.allclose(tools.read(plain / "foam_full"), tools.read(other / "foam_full"))


def test_some_rows_can_be_tried_before_all_of_them(scan: Path, denoise: Callable[..., Outcome], tools: Tools) -> None:
    assert denoise("prepare", scan, *CENTER).code == 0
    tried = denoise("prepare", scan, *CENTER, "--start-row", 2, "--end-row", 6)
    assert tried.code == 0, tried.err
    out = scan.with_name("raw_rec_rows2-5")
    assert tried.out.strip() == str(out / "foam_config.yaml")
    assert sorted(p.name for p in (out / "foam_split1").iterdir()) == [f"foam_split1_{n:05d}.tif" for n in range(2, 6)]
    for name in ("foam_full", "foam_split0", "foam_split1"):
        np.testing.assert_array_equal(tools.read(out / name), tools.read(scan.with_name("raw_rec") / name)[2:6])
    others = ("prepare", scan, *CENTER, "--start-row", 1, "--end-row", 5, "--out", out, "--resume")
    for _ in range(2):
        error = denoise(*others).error
        assert "slices 2..5" in error
        assert "1..4" in error
        (out / "foam_config.yaml").unlink(missing_ok=True)


def test_a_centre_that_seems_wrong_is_doubted_and_taken(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    outcome = denoise("prepare", scan, "--center", 20)
    assert outcome.code == 0
    assert "--center is 20, but in detector rows" in outcome.log
    assert "seems to be at column 23." in outcome.log
    assert "--center" not in denoise("prepare", scan, *CENTER, "--overwrite").log


def without(scan: Path, lost: list[int]) -> Path:
    """The same scan without some projections, in a folder of its own."""
    other = scan.parent / "clean" / scan.name
    other.parent.mkdir()
    shutil.copy(scan, other)
    with h5py.File(other, "r+") as file:
        for name in ("exchange/data", "exchange/theta"):
            kept, attributes = np.delete(file[name][()], lost, axis=0), dict(file[name].attrs)
            del file[name]
            file[name] = kept
            file[name].attrs.update(attributes)
    return other


def test_projections_without_light_and_copies_are_named_and_left_out(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    dark, copies = [0, 20, 21, 22, 41], [30, 31]
    clean = without(scan, sorted(dark + copies))
    with h5py.File(scan, "r+") as file:
        data = file["exchange/data"][()]
        data[dark], data[copies] = 0, data[29]
        file["exchange/data"][()] = data
    for path in (clean, scan):
        outcome = denoise("prepare", path, *CENTER)
        assert outcome.code == 0, outcome.err
    assert f"projections 0, 20..22, 41 of {scan} have no light (beam lost?) and are left out" in outcome.log
    assert f"projections 30..31 of {scan} are copies of the one before" in outcome.log
    out, expected = scan.with_name("raw_rec"), clean.with_name("raw_rec")
    for name in ("foam_full", "foam_split0", "foam_split1"):
        np.testing.assert_array_equal(tools.read(out / name), tools.read(expected / name))
    assert (out / "foam_angles.txt").read_text() == (expected / "foam_angles.txt").read_text()
    assert "53 angles" in denoise("prepare", scan, *CENTER, "--out", out.with_name("new"), "--dry-run").out

    made = tools.fingerprint(out)
    (out / "foam_angles.txt").unlink()
    shutil.rmtree(out / "foam_split1")
    assert denoise("prepare", scan, *CENTER, "--resume").code == 0
    assert tools.fingerprint(out) == made


def test_what_an_earlier_version_made_with_projections_without_light_is_not_gone_on_with(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(scan, "r+") as file:
        file["exchange/data"][20:23] = 0
    with monkeypatch.context() as before:
        before.setattr("denoise.commands.prepare.lost_projections", lambda scan: LostProjections())
        assert denoise("prepare", scan, *CENTER).code == 0
    made = tools.fingerprint(scan.parent)
    said = "projections left out = 'none', this run has '20..22'"
    assert said in denoise("prepare", scan, *CENTER, "--resume").error
    assert tools.fingerprint(scan.parent) == made


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing may be computed")


@pytest.mark.parametrize("name", ["foam_full", "foam_split0", "foam_split1", "foam_config.yaml"])
def test_any_output_that_exists_is_refused_before_anything_is_computed_and_stays(
    scan: Path,
    denoise: Callable[..., Outcome],
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr("denoise.commands.prepare.find_center", refuse)
    monkeypatch.setattr("denoise.commands.prepare.reconstruct_scan", refuse)
    existing = scan.with_name("raw_rec") / name
    if name.endswith("yaml"):
        existing.parent.mkdir()
        existing.write_text("# mine\n")
    else:
        tools.write(existing, np.ones((2, 3, 3), np.float32))
    before = tools.fingerprint(scan.parent)
    error = denoise("prepare", scan).error
    assert str(existing) in error
    assert "--overwrite" in error
    assert tools.fingerprint(scan.parent) == before


def test_on_request_earlier_results_are_replaced_and_nothing_else(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    out = scan.with_name("raw_rec")
    tools.write(out / "foam_full", np.ones((2, 3, 3), np.float32))
    (out / "notes.txt").write_text("mine")
    assert denoise("prepare", scan, *CENTER, "--overwrite").code == 0
    assert tools.read(out / "foam_full").shape == (ROWS, SIZE, SIZE)
    assert (out / "notes.txt").read_text() == "mine"

    (out / "foam_split0" / "notes.txt").write_text("mine")
    before = tools.fingerprint(out)
    assert "notes.txt" in denoise("prepare", scan, *CENTER, "--overwrite").error
    assert tools.fingerprint(out) == before


def no_flats(file: h5py.File) -> None:
    del file["exchange/data_white"]


def no_angles(file: h5py.File) -> None:
    del file["exchange/theta"]


def fewer_angles(file: h5py.File) -> None:
    theta = file["exchange/theta"][:-1]
    del file["exchange/theta"]
    file["exchange/theta"] = theta


def not_a_number(file: h5py.File) -> None:
    data = file["exchange/data"][()].astype(np.float32)
    data[5, ROWS - 1, 7] = np.nan
    del file["exchange/data"]
    file["exchange/data"] = data


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_flats, ("exchange/data_white",)),
        (no_angles, ("exchange/theta",)),
        (fewer_angles, ("59", "60")),
        (not_a_number, ("exchange/data", f"row {ROWS - 1}", "column 7")),
    ],
)
def test_a_scan_that_fails_leaves_nothing(
    scan: Path,
    denoise: Callable[..., Outcome],
    tools: Tools,
    damage: Callable[[h5py.File], None],
    says: tuple[str, ...],
) -> None:
    with h5py.File(scan, "r+") as file:
        damage(file)
    before = tools.fingerprint(scan.parent)
    error = denoise("prepare", scan, *CENTER).error
    assert str(scan) in error
    for fact in says:
        assert fact in error
    assert tools.fingerprint(scan.parent) == before


def test_a_folder_is_no_scan_and_may_be_a_reconstruction(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    before = tools.fingerprint(scan.parent)
    error = denoise("prepare", scan.parent).error
    assert f"{scan.parent} is a folder" in error
    assert "From reconstructions that you have" in error
    assert tools.fingerprint(scan.parent) == before


@pytest.mark.usefixtures("permissions_hold")
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_scan_without_permission_is_named(scan: Path, denoise: Callable[..., Outcome], locked: str) -> None:
    place = scan if locked == "file" else scan.parent
    mode = place.stat().st_mode
    place.chmod(0)
    try:
        error = denoise("prepare", scan).error
    finally:
        place.chmod(mode)
    assert f"{scan} cannot be read: no permission" in error


def test_a_scan_that_fails_keeps_the_results_that_it_was_to_replace(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    assert denoise("prepare", scan, *CENTER).code == 0
    with h5py.File(scan, "r+") as file:
        not_a_number(file)
    before = tools.fingerprint(scan.parent)
    assert denoise("prepare", scan, *CENTER, "--overwrite").code == 2
    assert tools.fingerprint(scan.parent) == before


class Died(BaseException):
    pass


def require_refused_beside_earlier_splits(
    scan: Path,
    denoise: Callable[..., Outcome],
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
    former: tuple[str, object],
    said: str,
) -> None:
    """That a reconstruction by versions before 2026-11-28, which did ``former``, is not gone on with."""
    with monkeypatch.context() as before:
        before.setattr(SplitAngles, *former)
        assert denoise("prepare", scan, *CENTER).code == 0
    out = scan.with_name("raw_rec")
    shutil.rmtree(out / "foam_split1")
    kept = tools.fingerprint(out)
    assert said in denoise("prepare", scan, *CENTER, "--resume").error
    assert tools.fingerprint(out) == kept


def test_splits_of_a_full_turn_are_not_mixed_with_those_that_were_divided_in_turn(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(scan, "r+") as file:
        file["exchange/theta"][:] = np.arange(60) * 6.0
    said = "projections dealt = 'in turn', this run has 'by direction'"
    require_refused_beside_earlier_splits(scan, denoise, tools, monkeypatch, ("of", SplitAngles.in_turn), said)
    assert denoise("prepare", scan, *CENTER, "--overwrite").code == 0
    angles, split_of = np.loadtxt(scan.with_name("raw_rec") / "foam_angles.txt").T
    for k in (0, 1):
        assert len(np.unique(angles[split_of == k] % 180)) == 30


@pytest.mark.parametrize(
    "degrees",
    [
        pytest.param([a for a in np.arange(0, 180, 3) if a % 60 < 50], id="three beam dumps"),
        pytest.param([*np.arange(0, 90, 2), *np.arange(90, 180, 20)], id="two steps"),
    ],
)
def test_what_was_weighted_in_another_way_is_not_gone_on_with(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools, degrees: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(degrees)
    with h5py.File(scan, "r+") as file:
        data = file["exchange/data"][:count]
        for name, values in (("data", data), ("theta", np.array(degrees, np.float32))):
            del file[f"exchange/{name}"]
            file[f"exchange/{name}"] = values
    said = "weights = 'of each part', this run has 'of the whole scan'"
    require_refused_beside_earlier_splits(scan, denoise, tools, monkeypatch, ("is_weighted_as_before", True), said)


@pytest.mark.parametrize("calls", [1, 4, 8, 11])
def test_what_a_run_that_died_has_done_is_not_done_again_and_the_result_is_the_same(
    scan: Path,
    denoise: Callable[..., Outcome],
    tools: Tools,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
) -> None:
    from denoise.projections import footprint, reconstruct

    monkeypatch.setattr(footprint, "_MOST_ROWS", 2)
    assert denoise("prepare", scan, *CENTER, "--out", tmp_path / "straight").code == 0
    real, made = reconstruct.reconstruct_rows, []

    def dies(sinograms: np.ndarray, *others: object) -> np.ndarray:
        made.append(len(sinograms))
        if len(made) == calls:
            raise Died
        return real(sinograms, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(reconstruct, "reconstruct_rows", dies)
    with pytest.raises(Died):
        denoise("prepare", scan, *CENTER, "--out", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").glob("*") if not path.name.startswith(".")]
    made += [0] * calls  # it dies once
    before = len(made)
    resumed = denoise("prepare", scan, *CENTER, "--out", tmp_path / "out", "--resume")
    assert resumed.code == 0, resumed.err
    assert len(made) - before == 12 - (calls - 1)
    straight = tools.fingerprint(tmp_path / "straight")
    assert tools.fingerprint(tmp_path / "out") == straight
    again = denoise("prepare", scan, *CENTER, "--out", tmp_path / "out", "--resume")
    assert (again.code, again.out) == (0, resumed.out)


def test_a_run_that_dies_while_it_replaces_another_is_not_taken_for_done(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from denoise.projections import reconstruct

    out = tmp_path / "out"
    assert denoise("prepare", scan, "--center", 20, "--out", tmp_path / "straight").code == 0
    assert denoise("prepare", scan, *CENTER, "--out", out).code == 0
    real = reconstruct.reconstruct_rows

    def dies(*_: object) -> np.ndarray:
        raise Died

    monkeypatch.setattr(reconstruct, "reconstruct_rows", dies)
    with pytest.raises(Died):
        denoise("prepare", scan, "--center", 20, "--out", out, "--overwrite")
    monkeypatch.setattr(reconstruct, "reconstruct_rows", real)
    resumed = denoise("prepare", scan, "--center", 20, "--out", out, "--resume", "--overwrite")
    assert resumed.code == 0, resumed.err
    assert tools.fingerprint(out) == tools.fingerprint(tmp_path / "straight")


def test_a_split_that_is_gone_is_made_again_and_the_config_stays_as_the_user_has_it(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    assert denoise("prepare", scan, *CENTER).code == 0
    out = scan.with_name("raw_rec")
    config = out / "foam_config.yaml"
    config.write_text(config.read_text() + "# mine\n")
    before = tools.fingerprint(out)
    shutil.rmtree(out / "foam_split1")
    assert denoise("prepare", scan, *CENTER, "--resume").code == 0
    assert tools.fingerprint(out) == before


def test_a_config_that_names_other_splits_than_are_made_is_kept_and_that_is_said(
    scan: Path, denoise: Callable[..., Outcome]
) -> None:
    assert denoise("prepare", scan, *CENTER).code == 0
    out = scan.with_name("raw_rec")
    text = (out / "foam_config.yaml").read_text()
    for name in ("full", "split0", "split1"):
        shutil.rmtree(out / f"foam_{name}")
    outcome = denoise("prepare", scan, *CENTER, "--resume", "--splits", 3)
    assert outcome.code == 0
    assert "names 2 splits where this run makes 3" in outcome.log
    assert (out / "foam_config.yaml").read_text() == text
    assert (out / "foam_split2").is_dir()


def test_splits_of_two_divisions_of_one_scan_are_not_trained_on_together(
    scan: Path, denoise: Callable[..., Outcome]
) -> None:
    assert denoise("prepare", scan, *CENTER, "--splits", 3).code == 0
    assert denoise("prepare", scan, *CENTER, "--overwrite").code == 0
    earlier = scan.with_name("raw_rec") / "foam_config_1.yaml"
    for command in ("train", "check"):
        assert "splits = 2 and 3" in denoise(command, "--config", earlier).error
    assert denoise("check", "--config", scan.with_name("raw_rec") / "foam_config.yaml").code == 0


def test_a_full_reconstruction_that_does_not_belong_to_the_splits_is_said(
    scan: Path, denoise: Callable[..., Outcome]
) -> None:
    out, other = scan.with_name("raw_rec"), scan.with_name("other")
    assert denoise("prepare", scan, *CENTER).code == 0
    assert denoise("prepare", scan, "--center", 20, "--splits", 3, "--out", other).code == 0
    assert denoise("prepare", scan, *CENTER, "--splits", 3, "--out", scan.with_name("alike")).code == 0
    config = out / "foam_config.yaml"
    text = config.read_text()

    def said(full: str) -> str:
        config.write_text(text.replace("full: foam_full", f"full: {full}"))
        outcome = denoise("check", "--config", config)
        assert outcome.code == 0, outcome.err
        return outcome.log

    assert "full reconstruction" not in said("foam_full")
    assert "full reconstruction" not in said("../alike/foam_full"), "of how many splits there are it does not depend"
    assert "was made with centre = 20.0, the splits with 23.5" in said("../other/foam_full")
    assert "which is one of the splits" in said("foam_split1")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--center", 20), "centre = 23.5, this run has 20.0"),
        ((*CENTER, "--remove-stripes"), "stripes removed = False, this run has True"),
        ((*CENTER, "--splits", 3), "splits = 2, this run has 3"),
        ((*CENTER, "--counts-per-photon", 2), "this run has 2.0; set it back"),
    ],
)
def test_a_finished_reconstruction_is_not_taken_for_one_made_in_another_way(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools, changed: tuple[object, ...], named: str
) -> None:
    assert denoise("prepare", scan, *CENTER).code == 0
    before = tools.fingerprint(scan.parent)
    for options in ((), ("--dry-run",)):
        assert named in denoise("prepare", scan, *changed, "--resume", *options).error
    assert tools.fingerprint(scan.parent) == before
    assert denoise("prepare", scan, *CENTER, "--resume").code == 0
    copied = shutil.copytree(
        scan.parent, scan.parent.with_name(f"{scan.parent.name}_copied"), copy_function=shutil.copyfile
    )
    for there in (scan, Path(copied) / scan.name):
        found = denoise("prepare", there, "--resume")
        assert (found.code, "nothing is left to do" in found.log) == (0, True)


def test_low_counts_are_corrected_for_what_the_flats_tell_of_photons_and_on_request_not(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path, rng: np.random.Generator
) -> None:
    with h5py.File(scan, "r+") as file:
        del file["exchange/data_white"]
        file["exchange/data_white"] = 2.0 * rng.poisson(200, (40, ROWS, SIZE))
        counts = 2 * file["exchange/data"][:]
        del file["exchange/data"]
        file["exchange/data"] = counts

    def reconstructed(name: str, *options: object) -> np.ndarray:
        outcome = denoise("prepare", scan, *CENTER, "--out", tmp_path / name, *options)
        assert outcome.code == 0, outcome.err
        return tools.read(tmp_path / name / "foam_full")

    phantom = FoamPhantom.create(size=SIZE, slices=ROWS)
    angles = Scan.open(scan).angles_rad
    inside = phantom.inside()
    truth = reconstruct_rows(phantom.project(angles), angles, 23.5)[:, inside].mean()
    found, given, plain = (
        reconstructed(name, *options)[:, inside].mean()
        for name, options in (
            ("found", ()), ("given", ("--counts-per-photon", 2)), ("plain", ("--counts-per-photon", 0))
        )
    )  # fmt: skip
    # A quarter of 200 photons are left in the middle: 0.01 of 1.4 too much.
    assert 1.004 < plain / truth < 1.012
    assert abs(found / truth - 1) < 0.002
    assert abs(given / found - 1) < 0.001
    plain_again = denoise("prepare", scan, *CENTER, "--out", tmp_path / "found", "--counts-per-photon", 0, "--resume")
    assert "this run has 0.0" in plain_again.error


@pytest.mark.parametrize("state", ["whole", "half"])
def test_what_an_earlier_version_began_without_the_correction_is_gone_on_with_without_it(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path, state: str
) -> None:
    plain = (*CENTER, "--counts-per-photon", 0)
    assert denoise("prepare", scan, *plain, "--out", tmp_path / "straight").code == 0
    straight = tools.read(tmp_path / "straight" / "foam_split1")
    out = tmp_path / "out"
    if state == "whole":
        assert denoise("prepare", scan, *plain, "--out", out).code == 0
        shutil.rmtree(out / "foam_split1")
    else:
        from denoise.projections import footprint, reconstruct

        real, made = reconstruct.reconstruct_rows, []

        def dies(sinograms: np.ndarray, *others: object) -> np.ndarray:
            made.append(len(sinograms))
            if len(made) == 5:
                raise Died
            return real(sinograms, *others)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(footprint, "_MOST_ROWS", 2)
            broken.setattr(reconstruct, "reconstruct_rows", dies)
            with pytest.raises(Died):
                denoise("prepare", scan, *plain, "--out", out)
        assert (out / ".foam_full.unfinished").is_dir()
    outcome = denoise("prepare", scan, *CENTER, "--out", out, "--resume")
    assert outcome.code == 0, outcome.err
    assert "low counts are not corrected, as in what is there" in outcome.log
    np.testing.assert_array_equal(tools.read(out / "foam_split1"), straight)
    assert "this run has 0.9" in denoise("prepare", scan, *CENTER, "--out", out, "--resume",
                                         "--counts-per-photon", 0.9).error  # fmt: skip


def test_the_centre_of_what_is_there_is_that_of_what_is_missing(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    assert denoise("prepare", scan, "--center", 20).code == 0
    out = scan.with_name("raw_rec")
    before = tools.fingerprint(out)
    shutil.rmtree(out / "foam_split1")
    assert denoise("prepare", scan, "--resume").code == 0
    assert tools.fingerprint(out) == before


def test_a_config_that_was_changed_is_kept_beside_the_new_one_and_runs_on_what_was_replaced_are_named(
    scan: Path, denoise: Callable[..., Outcome]
) -> None:
    assert denoise("prepare", scan, *CENTER).code == 0
    out = scan.with_name("raw_rec")
    config = out / "foam_config.yaml"
    written = config.read_text()
    assert "_config_1" not in denoise("prepare", scan, *CENTER, "--overwrite").log
    (out / "foam_training_2.5d").mkdir()
    for number in (1, 2):
        config.write_text(written + f"# mine, {number}\n")
        said = denoise("prepare", scan, *CENTER, "--overwrite").log
        assert f"kept as foam_config_{number}.yaml" in said
        assert f"{out / 'foam_training_2.5d'} was trained on the reconstruction that has been replaced" in said
        assert config.read_text() == written
    kept = [(out / f"foam_config_{number}.yaml").read_text() for number in (1, 2)]
    assert kept == [written + "# mine, 1\n", written + "# mine, 2\n"]


def test_a_config_that_stands_keeps_its_mode_and_that_is_said(scan: Path, denoise: Callable[..., Outcome]) -> None:
    assert denoise("prepare", scan, *CENTER).code == 0
    said = denoise("prepare", scan, *CENTER, "--resume", "--mode", "3d").log
    assert "is kept as it is, with mode 2.5d" in said
    assert "is kept as it is" not in denoise("prepare", scan, *CENTER, "--resume", "--mode", "2.5d").log


def test_outputs_that_were_named_before_a_death_are_kept(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    assert denoise("prepare", scan, *CENTER).code == 0
    out = scan.with_name("raw_rec")
    straight = tools.fingerprint(out)
    (out / "foam_config.yaml").unlink()
    shutil.rmtree(out / "foam_split1")
    assert denoise("prepare", scan, *CENTER, "--resume").code == 0
    assert tools.fingerprint(out) == straight
    (out / "foam_config.yaml").unlink()
    shutil.rmtree(out / "foam_split0")
    tools.write(out / "foam_split0", np.ones((3, 8, 8), np.float32))
    error = denoise("prepare", scan, *CENTER, "--resume").error
    assert "has shape" in error
    assert "choose another --out" in error


def test_the_memory_that_is_allowed_is_kept_to_or_what_is_needed_is_said(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    assert denoise("prepare", scan, *CENTER, "--max-memory", "100G").code == 0
    error = denoise("prepare", scan, *CENTER, "--max-memory", "100M", "--overwrite").error
    assert "one detector row at a time needs about" in error
    assert "0.10G are allowed" in error
    assert "--max-memory" in denoise("prepare", scan, "--max-memory", "much").error


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tools.fingerprint(scan.parent)
    outcome = denoise("prepare", scan, "--splits", 3, "--dry-run")
    assert outcome.code == 0, outcome.err
    said = {line.split()[0]: line for line in outcome.out.splitlines()}
    assert list(said) == ["scan", "centre", "photons", "memory", "disk", "config"]
    assert f"60 angles of {ROWS} x {SIZE} pixels" in said["scan"]
    assert "searched for" in said["centre"]
    assert said["photons"].endswith("counts each in a pixel")
    plain = denoise("prepare", scan, "--counts-per-photon", 0, "--dry-run")
    assert "photons  low counts are not corrected" in plain.out
    assert f"{ROWS} rows at a time" in said["memory"]
    # Four volumes of 8 x 48 x 48 float32.
    assert "0.29 MB: 4 volumes of 8 x 48 x 48 float32" in said["disk"]
    assert str(scan.with_name("raw_rec") / "foam_config.yaml") in said["config"]
    limited = denoise("prepare", scan, "--dry-run", "--max-memory", "100M")
    assert "0.10G are allowed" in limited.error
    assert "0 to 47" in denoise("prepare", scan, "--dry-run", "--center", 48).error
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 9 * 10**5, 10**5))
    assert "has only 0.0001 GB free" in denoise("prepare", scan, "--dry-run").error
    assert tools.fingerprint(scan.parent) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--center", -3), "0 to 47"),
        (("--center", 48), "0 to 47"),
        (("--center", 47.5), "47"),
        (("--center", "nan"), "nan"),
        (("--counts-per-photon", "inf"), "inf"),
        (("--counts-per-photon", -1), "0"),
        (("--splits", 61), "61"),
        (("--mode", "4d"), "4d"),
    ],
)
def test_options_that_do_not_fit_the_scan_leave_nothing(
    scan: Path,
    denoise: Callable[..., Outcome],
    tools: Tools,
    arguments: tuple[object, ...],
    says: str,
) -> None:
    before = tools.fingerprint(scan.parent)
    outcome = denoise("prepare", scan, *arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert tools.fingerprint(scan.parent) == before


def test_a_missing_scan_and_a_file_of_another_kind_are_named(denoise: Callable[..., Outcome], tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("no scan")
    for path in (tmp_path / "missing.h5", text):
        assert str(path) in denoise("prepare", path).error
    assert list(tmp_path.iterdir()) == [text]


def test_a_sample_name_that_is_a_path_cannot_leave_the_folder(
    scan: Path, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    with h5py.File(scan, "r+") as file:
        del file["measurement/sample/name"]
        file["measurement/sample/name"] = "../../escaped/name"
    before = {path for path in tools.fingerprint(scan.parent.parent) if "raw_rec" not in path}
    outcome = denoise("prepare", scan, *CENTER)
    assert outcome.code == 0, outcome.err
    assert {path for path in tools.fingerprint(scan.parent.parent) if "raw_rec" not in path} == before
    assert denoise("check", "--config", outcome.out.strip()).code == 0


def test_few_angles_for_each_split_are_a_warning(scan: Path, denoise: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = denoise("prepare", scan, *CENTER, "--splits", 5, "--out", tmp_path / "out")
    assert outcome.code == 0
    assert "WARNING" in outcome.log
    assert "angles" in outcome.log


@pytest.mark.real_data
def test_a_real_scan_is_prepared_and_its_centre_found(
    shared_data: Path, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path
) -> None:
    outcome = denoise("prepare", shared_data / "tooth" / "tooth.h5", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = outcome.log.partition("rotation centre found at column ")[2].split()[0]
    assert abs(float(found) - 295) <= 0.5
    config = load_config(outcome.out.strip())
    for path in (*config.split_paths, config.full_path or ""):
        image = tools.read(path)
        assert image.shape == (2, 640, 640)
        assert np.isfinite(image).all()
    assert denoise("check", "--config", outcome.out.strip()).code == 0
