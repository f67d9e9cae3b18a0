"""What a run leaves when it dies, and how another takes it up: nothing done is lost, nothing half done is taken."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from denoise.errors import OutputError
from denoise.tiles import Region
from denoise.volumes import create_sink, is_whole, open_volume, slice_pool
from denoise.volumes.unfinished import Unfinished, runs_of

# Every writer: a name, and how it is compressed.
FORMATS = [
    ("out.tif", None),
    ("out.h5", None),
    ("out.h5", "gzip"),
    ("out.h5", "blosc"),
    ("out.zarr", None),
    ("out.zarr", "gzip"),
    ("out", None),
    ("out", "gzip"),
]
SHAPE = (22, 7, 9)


def _numbered() -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype("f4")


def _whole(path: Path) -> np.ndarray:
    volume = open_volume(path)
    return volume.read_stored(Region((0, 0, 0), volume.shape))


def _sink(path: Path, **how):
    return create_sink(path, shape=SHAPE, resumable=True, **how)


def _write(sink, *runs: tuple[int, int]) -> None:
    for start, stop in runs:
        sink.write(start, _numbered()[start:stop])


_KILLED = """
import os, signal, sys
import numpy as np
from denoise.volumes import create_sink
values = np.arange(22 * 7 * 9).reshape(22, 7, 9).astype("f4")
how = {"resumable": True, "overwrite": True, "compression": sys.argv[2] or None}
with create_sink(sys.argv[1], shape=(22, 7, 9), **how) as sink:
    sink.write(15, values[15:22])
    sink.write(1, values[1:3])
    sink.flush()
    sink.write(3, values[3:15] * 0)  # stored, but not yet made to last
    sink.write(0, values[0:1] * 0)
    os.kill(os.getpid(), signal.SIGKILL)
"""
# What is missing after that; Zarr stores 16 slices together, of which the first group was begun only.
_MISSING = {1: [range(0, 1), range(3, 15)], 16: [range(0, 16)]}


def _killed(path: Path, compression: str | None = None) -> None:
    run = subprocess.run([sys.executable, "-c", _KILLED, path, compression or ""], check=False)
    assert run.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("name", "compression"), FORMATS)
def test_after_a_kill_only_what_lasts_counts_and_the_result_equals_an_uninterrupted_one(tmp_path, name, compression):
    _killed(tmp_path / name, compression)
    assert not (tmp_path / name).exists()
    with _sink(tmp_path / name, resume=True, compression=compression) as sink:
        assert sink.slices_together == (16 if name == "out.zarr" else 1)
        assert sink.missing == _MISSING[sink.slices_together]
        for run in reversed(sink.missing):
            _write(sink, (run.start, run.stop))
    np.testing.assert_array_equal(_whole(tmp_path / name), _numbered())
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "compression"), FORMATS)
def test_an_exception_keeps_what_is_done(tmp_path, name, compression):
    def burst() -> None:
        with _sink(tmp_path / name, compression=compression) as sink:
            _write(sink, (2, 4), (16, 22))
            raise RuntimeError("the network burst")

    with pytest.raises(RuntimeError, match="burst"):
        burst()
    assert not (tmp_path / name).exists()
    with _sink(tmp_path / name, resume=True, compression=compression) as sink:
        assert sink.missing == ([range(16)] if name == "out.zarr" else [range(2), range(4, 16)])
        for run in sink.missing:
            _write(sink, (run.start, run.stop))
    np.testing.assert_array_equal(_whole(tmp_path / name), _numbered())


@pytest.mark.parametrize(("name", "compression"), FORMATS)
def test_what_the_disk_refused_once_is_missing(tmp_path, monkeypatch, name, compression):
    """The system reports a failed write of its cache to whoever syncs next, and to nobody after."""

    def refuses() -> None:
        with _sink(tmp_path / name, compression=compression) as sink:
            _write(sink, (16, 22))
            sink.flush()
            _write(sink, (0, 16))
            monkeypatch.setattr(os, "fsync", once)
            sink.flush()

    def once(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        raise OSError(errno.EIO, "Input/output error")

    fsync = os.fsync
    with pytest.raises(OSError, match="Input/output error"):
        refuses()
    with _sink(tmp_path / name, resume=True, compression=compression) as sink:
        assert sink.missing == [range(16)]
        _write(sink, (0, 16))
    np.testing.assert_array_equal(_whole(tmp_path / name), _numbered())


@pytest.mark.parametrize(("name", "compression"), [("out", None), ("out", "gzip"), ("out.h5", "gzip")])
@pytest.mark.parametrize("behind", [0, 6], ids=["told while syncing", "told while storing"])
def test_a_slice_that_could_not_be_written_is_missing(tmp_path, monkeypatch, name, compression, behind):
    def fails() -> None:
        with _sink(tmp_path / name, compression=compression) as sink:
            _write(sink, (16, 22))
            sink.flush()
            pool = sink.writer._pool
            write = pool._write

            def full(z: int, image: np.ndarray) -> None:
                write(z, image if z != 5 else np.zeros_like(image))
                if z == 5:
                    raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(pool, "_write", full)
            if behind:
                monkeypatch.setattr(slice_pool, "_WAITING", behind)
            _write(sink, (0, 16))

    with pytest.raises(OutputError, match="the disk is full"):
        fails()
    monkeypatch.undo()
    with _sink(tmp_path / name, resume=True, compression=compression) as sink:
        assert sink.missing == [range(16)]
        _write(sink, (0, 16))
    np.testing.assert_array_equal(_whole(tmp_path / name), _numbered())


def test_another_dataset_of_the_file_is_not_what_was_begun(tmp_path):
    _killed(tmp_path / "out.h5")
    with pytest.raises(OutputError, match=r"was begun with dataset = '/exchange/data', this run has '/b'"):
        _sink(f"{tmp_path / 'out.h5'}::/b", resume=True).__enter__()


@pytest.mark.parametrize(("name", "compression"), FORMATS)
def test_a_death_between_finishing_and_naming_the_result_costs_nothing(tmp_path, monkeypatch, name, compression):
    class Dead(BaseException):
        pass

    def die(*_args: object, **_how: object) -> None:
        raise Dead

    def dies() -> None:
        with _sink(tmp_path / name, compression=compression) as sink:
            _write(sink, (0, 22))

    with monkeypatch.context() as patched:
        patched.setattr(Unfinished, "publish", die)
        with pytest.raises(Dead):
            dies()
    with _sink(tmp_path / name, resume=True, compression=compression) as sink:
        assert sink.missing == []
    np.testing.assert_array_equal(_whole(tmp_path / name), _numbered())


def test_an_exception_before_anything_is_done_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="early"), _sink(tmp_path / "out"):
        raise RuntimeError("early")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_result_is_neither_continued_nor_thrown_away_unasked(tmp_path):
    _killed(tmp_path / "out.h5")
    with pytest.raises(OutputError, match=r"left .*out\.h5 unfinished, 9 of its slices 0..21 are done; .*--res"):
        _sink(tmp_path / "out.h5")
    with pytest.raises(OutputError, match=r"left .*out\.h5 unfinished, 9 of its slices 0..21 are done; .*--res"):
        create_sink(tmp_path / "out.h5", shape=(3, *SHAPE[1:]), resumable=True)
    with _sink(tmp_path / "out.h5", overwrite=True) as sink:
        assert sink.missing == [range(22)]
        _write(sink, (0, 22))
    np.testing.assert_array_equal(_whole(tmp_path / "out.h5"), _numbered())


def test_to_resume_where_nothing_was_begun_is_to_begin(tmp_path):
    with _sink(tmp_path / "out.zarr", resume=True) as sink:
        assert sink.missing == [range(22)]
        _write(sink, (0, 22))
    np.testing.assert_array_equal(_whole(tmp_path / "out.zarr"), _numbered())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": (22, 7, 8)}, r"shape = \[22, 7, 9\], this run has \[22, 7, 8\]"),
        ({"dtype": "u2"}, "type = 'float32', this run has 'uint16'"),
        ({"slice_numbers": range(10, 32)}, "slices 0..21, this run has 10..31"),
        ({"shape": (3, 7, 9), "facts": {"grey values": "ab"}}, "slices 0..21, this run has 0..2"),
        ({"compression": "gzip"}, "compression = 'none', this run has 'gzip'"),
        ({"facts": {"tiles": "b"}}, "tiles = None, this run has 'b'"),
        ({"facts": {"model": "b"}}, "another model than this run has"),
    ],
)
def test_a_result_is_only_continued_from_the_same(tmp_path, change, said):
    _killed(tmp_path / "out.h5")
    with pytest.raises(OutputError, match=f"was begun with {said}; set it back to resume, or begin anew"):
        create_sink(tmp_path / "out.h5", **{"shape": SHAPE, "resumable": True, "resume": True, **change})
    with _sink(tmp_path / "out.h5", resume=True) as sink:
        assert sink.missing == _MISSING[1]
        _write(sink, (0, 1), (3, 15))


def test_a_voxel_size_of_more_digits_is_that_of_an_earlier_version(tmp_path):
    def interrupted() -> None:
        with _sink(tmp_path / "out", voxel_size_um=(0.65,) * 3) as sink:
            _write(sink, (0, 3))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    described = Unfinished(tmp_path / "out").folder / "run.json"
    for size, goes_on in (("0.6499999999999999", True), ("0.66", False)):
        described.write_text(re.sub(r"\b0\.6\d+", size, described.read_text()))
        with nullcontext() if goes_on else pytest.raises(OutputError, match=r"voxel size = \[0\.66, .* has \[0\.65,"):
            _sink(tmp_path / "out", resume=True, voxel_size_um=(0.65,) * 3)


def test_a_second_run_on_the_same_output_is_refused_and_harms_nothing(tmp_path):
    def second() -> None:
        with _sink(tmp_path / "out", overwrite=True):
            pytest.fail("two runs write one result")

    with _sink(tmp_path / "out") as sink:
        _write(sink, (0, 3))
        with pytest.raises(OutputError, match=f"is in use by process {os.getpid()}"):
            second()
        _write(sink, (3, 22))
    np.testing.assert_array_equal(_whole(tmp_path / "out"), _numbered())


def test_a_line_cut_short_or_damaged_by_a_death_is_not_believed(tmp_path):
    unfinished = Unfinished(tmp_path / "out")
    unfinished.folder.mkdir()
    (unfinished.folder / "done-a-1.txt").write_text("0 2\n3 4")
    (unfinished.folder / "done-c-3.txt").write_text("\0\0\0\n1 x\n\n")
    (unfinished.folder / "done-b-2.txt").write_text("4 6\n2")
    assert runs_of(unfinished.done(6)) == [range(2), range(4, 6)]


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_description_is_a_clear_sentence(tmp_path, text):
    _killed(tmp_path / "out")
    (Unfinished(tmp_path / "out").folder / "run.json").write_text(text)
    with pytest.raises(OutputError, match=r"run\.json is damaged .*begin anew with --overwrite"):
        _sink(tmp_path / "out", resume=True)


@pytest.mark.parametrize("then", ["resume", "overwrite"])
def test_a_death_between_moving_the_old_result_aside_and_naming_the_new_one_loses_neither(tmp_path, monkeypatch, then):
    class Dead(BaseException):
        pass

    with create_sink(tmp_path / "out", shape=SHAPE) as sink:
        sink.write(0, -_numbered())
    renamed = Path.rename

    def die(self: Path, target: Path) -> Path:
        if target == tmp_path / "out":
            raise Dead
        return renamed(self, target)

    def dies() -> None:
        with _sink(tmp_path / "out", overwrite=True) as sink:
            _write(sink, (0, 22))
            monkeypatch.setattr(Path, "rename", die)

    with pytest.raises(Dead):
        dies()
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    if then == "overwrite":
        with pytest.raises(RuntimeError), _sink(tmp_path / "out", overwrite=True):
            raise RuntimeError
        np.testing.assert_array_equal(_whole(tmp_path / "out"), -_numbered())
    else:
        with _sink(tmp_path / "out", resume=True, overwrite=True) as sink:
            assert sink.missing == []
        np.testing.assert_array_equal(_whole(tmp_path / "out"), _numbered())


@pytest.mark.parametrize(
    ("wanted", "runs"),
    [([], []), ([0], []), ([1], [(0, 1)]), ([1, 1, 0, 1], [(0, 2), (3, 4)]), ([0, 1, 1, 1], [(1, 4)])],
)
def test_runs_of_slices(wanted, runs):
    assert runs_of(np.array(wanted, dtype=bool)) == [range(a, b) for a, b in runs]


def test_a_death_after_the_result_was_named_leaves_it_whole_and_nothing_to_resume(tmp_path, monkeypatch):
    class Dead(BaseException):
        pass

    def die(self: Unfinished) -> None:
        raise Dead

    monkeypatch.setattr(Unfinished, "discard", die)
    sink = _sink(tmp_path / "out.tif")
    with pytest.raises(Dead), sink:
        _write(sink, (0, SHAPE[0]))
    monkeypatch.undo()
    assert Unfinished(tmp_path / "out.tif").folder.exists()
    assert is_whole(tmp_path / "out.tif")
    np.testing.assert_array_equal(_whole(tmp_path / "out.tif"), _numbered())
    with pytest.raises(OutputError, match="exists already"):
        _sink(tmp_path / "out.tif")


def test_what_is_kept_for_another_run_is_not_cleared_away_by_one_that_keeps_nothing(tmp_path):
    _killed(tmp_path / "out")
    with pytest.raises(OutputError, match=r"left .* unfinished"):
        create_sink(tmp_path / "out", shape=SHAPE)
    with _sink(tmp_path / "out", resume=True) as sink:
        assert sum(map(len, sink.missing)) < SHAPE[0]
        for run in sink.missing:
            _write(sink, (run.start, run.stop))
    np.testing.assert_array_equal(_whole(tmp_path / "out"), _numbered())
