"""Results are whole or not there; what stood there before survives every failure."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from denoise import files
from denoise.errors import OutputError

HOST = socket.gethostname().split(".")[0]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _dead_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.mark.parametrize("name", ["result.h5", "out.zarr", "folder", "a.b.tif", "µ-scan 3.h5", ".hidden"])
def test_a_partial_name_is_hidden_beside_the_final_one_and_keeps_the_suffix(tmp_path, name):
    partial = files.partial_path(tmp_path / name)
    assert partial.parent == tmp_path
    assert partial.name.startswith(".")
    assert partial.name.endswith((tmp_path / name).suffix)
    assert partial.name != name
    assert str(os.getpid()) in partial.name


def test_two_names_never_share_a_partial_name(tmp_path):
    names = ["out", "out.h5", "out.zarr", "out.partial.h5", "xout.h5"]
    assert len({files.partial_path(tmp_path / name) for name in names}) == len(names)


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_appears_when_it_is_whole_and_not_before(tmp_path, old):
    final = tmp_path / "new" / "result.txt"
    if old:
        final.parent.mkdir()
        final.write_text(old)
    with files.whole_file(final) as partial:
        partial.write_text("new")
        assert (final.read_text() if final.exists() else None) == old
    assert final.read_text() == "new"
    assert _names(final.parent) == ["result.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, error):
    final = tmp_path / "result.txt"
    final.write_text("old")

    def fail() -> None:
        with files.whole_file(final) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert final.read_text() == "old"
    assert _names(tmp_path) == ["result.txt"]


def test_a_kill_while_writing_leaves_the_old_file_and_the_next_write_tidies_up(tmp_path):
    final = tmp_path / "result.txt"
    final.write_text("old")
    script = (
        "import os, signal, sys; from pathlib import Path; from denoise import files\n"
        "with files.whole_file(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(final)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert final.read_text() == "old"
    assert len(_names(tmp_path)) == 2
    files.write_text(final, "new")
    assert final.read_text() == "new"
    assert _names(tmp_path) == ["result.txt"]


def test_text_is_utf8(tmp_path):
    files.write_text(tmp_path / "a.txt", "0.65 µm")
    assert (tmp_path / "a.txt").read_bytes() == "0.65 µm".encode()


@pytest.mark.parametrize("suffix", ["", ".h5", ".zarr"])
def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path, suffix):
    alive, dead = os.getppid(), _dead_process()
    final = tmp_path / f"scan [1]*{suffix}"
    stem = f".scan [1]*.partial-{HOST}"
    leftovers = [tmp_path / f"{stem}-{dead}{suffix}"]
    kept = [
        tmp_path / f"{stem}-{alive}{suffix}",
        tmp_path / f".scan [1]*.partial-elsewhere-{dead}{suffix}",  # its process may live on that host
        tmp_path / f"{stem}-{dead}.tif",  # of another result
        tmp_path / f".scan 1.partial-{HOST}-{dead}{suffix}",
        tmp_path / f"{stem}-notes{suffix}",
        tmp_path / f"scan [1]*.partial-{HOST}-{dead}{suffix}",  # not hidden: the user's own
    ]
    for path in leftovers + kept:
        path.mkdir()
        (path / "chunk").touch()
    files.remove_leftovers(final)
    assert _names(tmp_path) == sorted(path.name for path in kept)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/1").exists(), reason="no process of another user")
def test_a_process_of_another_user_is_alive(tmp_path):
    leftover = tmp_path / f".a.partial-{HOST}-1"
    leftover.touch()
    files.remove_leftovers(tmp_path / "a")
    assert leftover.exists()


def test_a_free_name_is_free_and_nothing_is_made(tmp_path):
    files.require_free(tmp_path / "not" / "there" / "yet.h5", overwrite=False)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_exists_is_refused_unless_it_may_be_replaced(tmp_path, kind):
    path = tmp_path / "result"
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"result exists already; .*--overwrite"):
        files.require_free(path, overwrite=False)
    files.require_free(path, overwrite=True)


@pytest.mark.parametrize("target", ["a file", "nothing"])
def test_a_folder_that_is_none_is_named(tmp_path, target):
    if target == "a file":
        (tmp_path / "taken").write_text("mine")
    else:
        (tmp_path / "taken").symlink_to(tmp_path / "nowhere")
    for name in ("taken/out.h5", "taken/deeper/out.h5"):
        with pytest.raises(OutputError, match="taken is a file, not a folder"):
            files.require_free(tmp_path / name, overwrite=True)


@contextmanager
def _as_a_plain_user() -> Iterator[None]:
    """Permissions do not stop root, who runs the tests in a container."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize("mode", [0o000, 0o500])
@pytest.mark.parametrize("name", ["out.h5", "new/out.h5", "new/er/out.h5"])
def test_a_folder_without_permission_is_named_before_anything_is_computed(tmp_path, name, mode):
    private = tmp_path / "private"
    private.mkdir(mode=mode)
    try:
        with _as_a_plain_user(), pytest.raises(OutputError, match="no permission to write in"):
            files.require_free(private / name, overwrite=False)
    finally:
        private.chmod(0o700)


def _folder(path: Path, text: str) -> Path:
    (path / "c").mkdir(parents=True)
    (path / "c" / "0").write_text(text)
    return path


def test_publishing_a_folder_replaces_the_old_one_whole(tmp_path):
    final, partial = _folder(tmp_path / "out.zarr", "old"), _folder(tmp_path / ".partial", "new")
    (final / "stale").touch()
    files.publish(partial, final, aside=tmp_path / ".aside", overwrite=True)
    assert (final / "c" / "0").read_text() == "new"
    assert not (final / "stale").exists()
    assert _names(tmp_path) == ["out.zarr"]


@pytest.mark.parametrize(("old", "new"), [(None, "file"), (None, "folder"), ("file", "folder"), ("folder", "file")])
def test_publishing_works_whatever_stood_there(tmp_path, old, new):
    def make(path: Path, kind: str | None) -> None:
        if kind == "file":
            path.write_text("text")
        elif kind == "folder":
            _folder(path, "text")

    final, partial = tmp_path / "out", tmp_path / ".partial"
    make(final, old)
    make(partial, new)
    files.publish(partial, final, aside=tmp_path / ".aside", overwrite=True)
    assert _names(tmp_path) == ["out"]
    assert final.is_dir() == (new == "folder")


def test_publishing_over_a_link_leaves_what_it_points_to(tmp_path):
    target = _folder(tmp_path / "precious", "mine")
    (tmp_path / "out").symlink_to(target)
    files.publish(_folder(tmp_path / ".partial", "new"), tmp_path / "out", aside=tmp_path / ".aside", overwrite=True)
    assert (target / "c" / "0").read_text() == "mine"
    assert (tmp_path / "out" / "c" / "0").read_text() == "new"


@pytest.mark.parametrize("moment", range(4))
def test_at_no_moment_of_publishing_a_file_is_there_neither_the_old_nor_the_new_one(tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    final, partial = tmp_path / "out.h5", tmp_path / ".partial.h5"
    final.write_text("old")
    partial.write_text("new")
    steps = iter(range(100))

    def killed_after(step):
        def wrapped(path, *arguments, **options):
            result = step(path, *arguments, **options)
            if next(steps) == moment:
                raise Killed
            return result

        return wrapped

    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, killed_after(getattr(Path, name)))
    with suppress(Killed):
        files.publish(partial, final, aside=tmp_path / ".aside", overwrite=True)
    assert final.read_text() in ("old", "new")


def test_discarding_removes_what_is_there_and_minds_nothing(tmp_path):
    precious = _folder(tmp_path / "precious", "mine")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(precious)
    _folder(tmp_path / "folder", "x")
    for name in ("file", "folder", "link", "not there"):
        files.discard(tmp_path / name)
    assert _names(tmp_path) == ["precious"]
    assert (precious / "c" / "0").exists()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "a file may not be so large there"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "not permitted"),
    ],
)
def test_a_refusal_to_write_is_one_clear_sentence_with_the_place(tmp_path, number, words):
    final = tmp_path / "out.h5"
    with pytest.raises(OutputError, match=words) as caught, files.whole_file(final):
        raise OSError(number, os.strerror(number))
    assert str(final) in str(caught.value)
    # Each command has its own name for the option.
    assert str(caught.value).endswith("choose another place for the output")
    assert caught.value.__cause__.errno == number
    assert _names(tmp_path) == []


def test_a_name_that_is_no_utf_8_is_written_with_its_bytes_escaped(tmp_path):
    final = tmp_path / os.fsdecode(b"M\xfcnchen.txt")
    files.write_text(final, f"the report of {final.name}, in µm")
    assert final.read_text(encoding="utf-8") == "the report of M\\udcfcnchen.txt, in µm"


def test_a_disk_that_is_full_only_when_it_is_flushed_is_noticed(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    final = tmp_path / "out.h5"
    final.write_text("old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        files.write_text(final, "new")
    assert final.read_text() == "old"
    assert _names(tmp_path) == ["out.h5"]


def test_other_failures_of_the_system_keep_their_own_words(tmp_path):
    with pytest.raises(OSError, match="Input/output error") as caught, files.explained(tmp_path / "a"):
        raise OSError(errno.EIO, "Input/output error")
    assert not isinstance(caught.value, OutputError)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("out.h5", ("out.h5", "")),
        ("out.h5::/exchange/data", ("out.h5", "/exchange/data")),
        ("a::b/new.H5::/data", ("a::b/new.H5", "/data")),
        ("a::b/new", ("a::b/new", "")),
        ("a::b/there.dat::/data", ("a::b/there.dat", "/data")),
        ("a::b", ("a::b", "")),
        ("store.zarr::0", ("store.zarr", "0")),
        ("store::0", ("store", "0")),
        ("nowhere::/deep/data", ("nowhere", "/deep/data")),
        ("new.tif::/data", ("new.tif", "/data")),
    ],
)
def test_a_file_and_the_dataset_in_it_are_told_apart(tmp_path, monkeypatch, path, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a::b").mkdir()
    (tmp_path / "a::b" / "there.dat").touch()
    assert files.file_and_dataset(path) == expected
