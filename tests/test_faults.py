"""Faults of disks, files and machines in the middle of the work: one sentence, exit code 2, nothing half-done."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import tifffile

from denoise.checkpoint import Checkpoint, TrainState
from denoise.errors import VolumeError
from denoise.projections.phantom import simulate_foam_scan
from denoise.trust.verdict import Verdict
from denoise.volumes import open_volume, tiff_stack

if TYPE_CHECKING:
    from machine import Disk
    from tiny_dataset import Dataset, Outcome, Tools

pytest_plugins = ("tiny_dataset", "machine")

OUTPUTS = ("out", "out.tif", "out.h5", "out.zarr")


# Slices that go wrong while they are read. ---------------------------------------------------------------------------


def vanish(file: Path) -> None:
    file.unlink()


def shrink(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])


def widen(file: Path) -> None:
    tifffile.imwrite(file, np.zeros((48, 50), np.float32))


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.fixture
def when_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Callable[[Path], None]], None]:
    """``when_read(file, fault)``: the fault happens after the folder was listed, just before the slice is opened."""

    def arrange(victim: Path, fault: Callable[[Path], None]) -> None:
        opened = tiff_stack.opened
        happened: list[Path] = []

        @contextmanager
        def opened_later(path: Path, what: str) -> Iterator[tifffile.TiffFile]:
            if path == victim and not happened:
                happened.append(path)
                fault(path)
            with opened(path, what) as tif:
                yield tif

        monkeypatch.setattr(tiff_stack, "opened", opened_later)

    return arrange


@pytest.mark.parametrize("fault", [vanish, shrink, widen, become_a_folder])
@pytest.mark.parametrize("verb", ["volume", "train"])
def test_a_slice_that_goes_wrong_in_mid_run_is_named_and_nothing_partial_is_left(
    finished: Dataset,
    denoise: Callable[..., Outcome],
    when_read: Callable[[Path, Callable[[Path], None]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path], None],
    verb: str,
) -> None:
    victim = finished.folder / "whole" / "whole_00009.tif"
    # Looks at some slices before the run begins; here it has looked at others.
    monkeypatch.setattr("denoise.trust.before.check_splits", lambda *_: Verdict.of([]))
    arguments: tuple[object, ...] = ("--output", tmp_path / "out.h5")
    if verb == "train":
        victim = finished.folder / "odd" / "odd_00009.tif"
        arguments = ("--output-dir", tmp_path / "run")
    when_read(victim, fault)
    error = denoise(verb, "--config", finished.config, *arguments).error
    assert str(victim) in error
    assert "slice 9" in error
    # What volume has done so far is kept where --resume finds it; nothing has a final name.
    left = {p.name for p in tmp_path.iterdir() if finished.folder not in (p, *p.parents)}
    assert left == ({"run"} if verb == "train" else {".out.h5.unfinished"})
    assert verb == "volume" or list((tmp_path / "run").iterdir()) == []


@pytest.mark.usefixtures("permissions_hold")
@pytest.mark.parametrize("verb", [("volume",), ("train", "--output-dir", "run")])
def test_a_slice_without_permission_is_named(
    finished: Dataset, denoise: Callable[..., Outcome], tmp_path: Path, verb: tuple[str, ...], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    victim = finished.folder / ("odd/odd_00007.tif" if verb[0] == "train" else "whole/whole_00007.tif")
    victim.chmod(0)
    error = denoise(*verb, "--config", finished.config).error
    assert f"{victim} (slice 7) cannot be read: Permission denied" in error


def lock(path: Path) -> Path:
    path.chmod(0)
    return path


@pytest.mark.usefixtures("permissions_hold")
def test_whatever_may_not_be_read_is_named(
    finished: Dataset, denoise: Callable[..., Outcome], tmp_path: Path, tools: Tools
) -> None:
    for name in ("v.h5", "v.tif"):  # zarr reads in a thread of its own, which may keep root's exemption
        tools.write(tmp_path / name, tools.images()[2])
        config = finished.configured("full: whole", f"full: {tmp_path / name}")
        locked = lock(tmp_path / name)
        assert str(tmp_path / name) in denoise("volume", "--config", config).error
        locked.chmod(0o700)
    for locked, arguments in (
        (finished.folder / "whole", ("volume", "--config", finished.config)),
        (finished.run / "best_val_model.pth", ("volume", "--config", finished.config)),
        (finished.run / "resume_state.pth", ("train", "--resume", "--config", finished.config)),
        (finished.run / "history.jsonl", ("train", "--resume", "--config", finished.config)),
        (finished.run, ("volume", "--config", finished.config)),
        (finished.folder / "odd", ("check", "--config", finished.config)),
        (tmp_path / "v.h5", ("prepare", tmp_path / "v.h5")),
        (finished.config, ("check", "--config", finished.config)),
    ):
        mode = locked.stat().st_mode
        lock(locked)
        error = denoise(*arguments).error
        assert str(locked) in error, error
        locked.chmod(mode)


# Files that speak of others, or nonsense. ----------------------------------------------------------------------------


def test_an_external_link_is_not_followed_by_any_verb(
    finished: Dataset, denoise: Callable[..., Outcome], tmp_path: Path, tools: Tools
) -> None:
    tools.write(tmp_path / "other.h5", tools.images()[2])
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["exchange/data"] = h5py.ExternalLink("other.h5", "/exchange/data")
    config = finished.configured("full: whole", f"full: {tmp_path / 'linked.h5'}::/exchange/data")
    for verb in (("volume",), ("slice", "--slice-number", 3), ("check",)):
        assert "link into another file" in denoise(*verb, "--config", config).error
    assert "link into the file" in denoise("prepare", tmp_path / "linked.h5").error


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"5", b'{"zarr_format": 3, "node_type": "array"}', b"\xff", b"{" * 5000]
)
def test_damaged_zarr_metadata_names_the_store(
    finished: Dataset, denoise: Callable[..., Outcome], tmp_path: Path, tools: Tools, content: bytes
) -> None:
    tools.write(tmp_path / "v.zarr", tools.images()[2])
    (tmp_path / "v.zarr" / "0" / "zarr.json").write_bytes(content)
    config = finished.configured("full: whole", f"full: {tmp_path / 'v.zarr'}")
    assert str(tmp_path / "v.zarr") in denoise("volume", "--config", config).error


# Disks. --------------------------------------------------------------------------------------------------------------


def _filled(disk: Disk, room: int) -> Path:
    """A disk with so many bytes left."""
    place = disk(2**20)
    usage = os.statvfs(place)
    (place / "filler").write_bytes(bytes(usage.f_bavail * usage.f_frsize - room))
    return place


@pytest.fixture
def nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before the work does not see how little room there is: somebody else fills the disk meanwhile."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**40))


@pytest.mark.usefixtures("nobody_counts")
@pytest.mark.parametrize("room", [0, 8192, 65536])
@pytest.mark.parametrize("name", OUTPUTS[:3])
def test_a_disk_that_fills_up_leaves_nothing_of_a_volume(
    finished: Dataset, denoise: Callable[..., Outcome], disk: Disk, name: str, room: int
) -> None:
    place = _filled(disk, room)
    error = denoise("volume", "--config", finished.config, "--output", place / name).error
    assert f"{place / name} cannot be written: the disk is full" in error
    assert [p.name for p in place.iterdir()] == ["filler"]


def test_a_disk_that_fills_up_leaves_nothing_of_a_zarr_store(finished: Dataset, tmp_path: Path) -> None:
    # zarr writes from a thread of its own, which a disk of this thread's does not reach.
    place = tmp_path / "disk"
    place.mkdir()
    # Room enough, but for ten files and folders only: the check before the work cannot see that.
    on_a_disk = f"mount -t tmpfs -o size=4m,nr_inodes=10 none {place} && "
    if subprocess.run(["unshare", "-m", "sh", "-c", f"{on_a_disk} true"], check=False, capture_output=True).returncode:
        pytest.skip("private mounts are not permitted here")
    command = f"{sys.executable} -m denoise volume --config {finished.config} --output {place}/out.zarr"
    script = f"{on_a_disk} {command}; code=$?; ls -A {place}; exit $code"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"error: {place}/out.zarr cannot be written: the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("room", [0, 4096, 16384, 40960, 65536, 131072, 262144])
def test_a_disk_that_fills_up_while_training_leaves_only_whole_files(
    dataset: Dataset, denoise: Callable[..., Outcome], disk: Disk, room: int
) -> None:
    place = _filled(disk, room)
    error = denoise("train", "--config", dataset.config, "--output-dir", place / "run").error
    assert "the disk is full" in error
    for path in (place / "run").rglob("*"):
        assert not path.name.startswith("."), f"{path} is partial"
        if path.suffix == ".pth":
            (TrainState if path.name == "resume_state.pth" else Checkpoint).load(path)


@pytest.fixture(scope="module")
def raw_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "foam.h5"
    simulate_foam_scan(path, size=32, slices=3, angles=40)
    return path


@pytest.mark.usefixtures("nobody_counts")
@pytest.mark.parametrize("room", [0, 8192, 32768])
def test_a_disk_that_fills_up_leaves_nothing_of_a_reconstruction(
    denoise: Callable[..., Outcome], raw_scan: Path, disk: Disk, room: int
) -> None:
    place = _filled(disk, room)
    error = denoise("prepare", raw_scan, "--out", place / "rec", "--center", 15.5).error
    assert "the disk is full" in error
    assert [p.name for p in place.rglob("*")] == ["filler"]


@pytest.mark.usefixtures("nobody_counts")
@pytest.mark.parametrize("room", [0, 100_000])
def test_a_disk_that_fills_up_ends_a_demonstration(denoise: Callable[..., Outcome], disk: Disk, room: int) -> None:
    place = _filled(disk, room)
    assert "the disk is full" in denoise("demo", "--out", place / "demo").error
    assert not [p for p in place.rglob("*") if p.is_file() and p.name != "filler"]


@pytest.mark.parametrize(
    ("name", "compression"), [*((name, "none") for name in OUTPUTS), ("out", "gzip"), ("out.h5", "gzip")]
)
def test_a_limit_on_the_size_of_files_is_no_full_disk(
    finished: Dataset,
    denoise: Callable[..., Outcome],
    small_files: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
    name: str,
    compression: str,
) -> None:
    (tmp_path / "disk").mkdir()
    output = tmp_path / "disk" / name
    with small_files(5000):
        done = denoise("volume", "--config", finished.config, "--output", output, "--compression", compression)
    assert f"{output} cannot be written: a file may not be so large there" in done.error
    assert list(output.parent.iterdir()) == []


def test_a_limit_on_the_size_of_files_is_no_full_disk_for_models_and_reconstructions(
    dataset: Dataset,
    denoise: Callable[..., Outcome],
    raw_scan: Path,
    small_files: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    with small_files(30_000):
        trained = denoise("train", "--config", dataset.config, "--output-dir", tmp_path / "run")
    assert "resume_state.pth cannot be written: a file may not be so large there" in trained.error
    # What is compiled for it is stored where there is no limit.
    denoise("prepare", raw_scan, "--out", tmp_path / "whole", "--center", 15.5)
    with small_files(4000):
        made = denoise("prepare", raw_scan, "--out", tmp_path / "rec", "--center", 15.5)
    assert re.search(r"foam_\w+ cannot be written: a file may not be so large there", made.error)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_read_only_disk_is_told_before_anything_is_computed(
    finished: Dataset, denoise: Callable[..., Outcome], read_only_disk: Path, raw_scan: Path, name: str
) -> None:
    place = read_only_disk
    errors = [
        denoise("volume", "--config", finished.config, "--output", place / name).error,
        denoise("train", "--config", finished.config, "--output-dir", place / "run").error,
        denoise("prepare", raw_scan, "--out", place / "rec").error,
    ]
    for error in errors:
        assert "cannot be written" in error
        assert str(place) in error


# Memory. -------------------------------------------------------------------------------------------------------------


def test_memory_that_runs_out_on_the_host_is_a_sentence_and_leaves_nothing_partial(
    finished: Dataset,
    denoise_in_little_memory: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    tifffile.imwrite(tmp_path / "wide.tif", np.zeros((3, 4096, 4096), np.float32), photometric="minisblack")
    config = finished.configured("full: whole", f"full: {tmp_path / 'wide.tif'}")
    small = ("volume", "--config", finished.config, "--output", tmp_path / "small.h5")
    wide = ("volume", "--config", config, "--output", tmp_path / "out.h5")
    done = denoise_in_little_memory(96 * 2**20, small, wide)
    assert done.returncode == 2, done.stderr
    assert re.search(r"^error: .*memory", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr
    left = {p.name for p in tmp_path.rglob("*") if finished.folder not in (p, *p.parents)}
    assert left == {"wide.tif", "small.h5"}


def test_training_where_memory_runs_out_on_the_host_goes_on_in_parts_or_ends_in_a_sentence(
    finished: Dataset,
    denoise_in_little_memory: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    config = finished.configured("patch_size: 16, batch_size: 4", "patch_size: 48, batch_size: 512")
    small = ("train", "--config", finished.config, "--output-dir", tmp_path / "small")
    large = ("train", "--config", config, "--output-dir", tmp_path / "run")
    done = denoise_in_little_memory(96 * 2**20, small, large)
    # How much room a single block leaves depends on what the process has loaded by then.
    assert "steps of 512 blocks go on in" in done.stderr
    assert done.returncode == 0 or "too small for one block" in done.stderr
    for model in (tmp_path / "run").glob("best_*.pth"):
        assert Checkpoint.load(model).step > 0


def test_a_header_that_asks_for_more_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "wide.h5", "w") as file:
        file.create_dataset("d", (2, 2**19, 2**19), np.uint8, chunks=(1, 64, 64))
    with pytest.raises(VolumeError, match=r"slices of 524288 x 524288 voxels, 1\.1e\+03 GB each"):
        open_volume(tmp_path / "wide.h5")


# Where the words go. -------------------------------------------------------------------------------------------------


def run(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "denoise", *map(str, arguments)], check=False, text=True, timeout=300, **how
    )


def test_a_log_on_a_full_disk_changes_nothing_of_a_result(trained: Dataset, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        arguments = ("slice", "--config", trained.config, "--slice-number", 3, "--output", tmp_path / "out.tif")
        done = run(*arguments, stdout=full, stderr=full)
    assert done.returncode == 0
    assert open_volume(tmp_path / "out.tif").shape == (1, 48, 48)


def test_a_reader_that_has_read_enough_causes_no_traceback(trained: Dataset) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("check", "--config", trained.config, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
