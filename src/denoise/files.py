"""Files and folders that appear under their final name only when they are whole.

Everything this package writes goes through here: a partial name beside the final one, fsync, rename. A kill at any
moment leaves the last good state readable. Nothing that exists is replaced unless the caller says so.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from denoise.errors import OutputError

_PARTIAL = ".partial-"
#: Of files and stores that hold datasets.
_CONTAINERS = (".h5", ".hdf5", ".hdf", ".nxs", ".zarr")


def file_and_dataset(path: str) -> tuple[str, str]:
    """``FILE::/dataset`` in its two parts, the second empty where there is none. Names of folders may hold ``::``.

    What stands before is a file that is there, or has the suffix of one; the whole is one path where it is there, or
    where what is named last could be put into a folder that is there.
    """
    if os.path.lexists(path):
        return path, ""
    for found in re.finditer("::", path):
        place = path[: found.start()]
        if place.lower().endswith(_CONTAINERS) or (place and Path(place).is_file()):
            return place, path[found.end() :]
    before, colons, after = path.partition("::")
    if "/" in after.lstrip("/") and Path(path).parent.is_dir():
        return path, ""
    return before, after if colons else ""


def partial_path(final: Path) -> Path:
    """A hidden name beside ``final``, of this process; it keeps the suffix, by which libraries choose a format."""
    host = socket.gethostname().split(".")[0]
    return final.with_name(f".{final.stem}{_PARTIAL}{host}-{os.getpid()}{final.suffix}")


def remove_leftovers(final: Path) -> None:
    """Remove partial results for ``final`` whose process, on this host, is no longer alive."""
    host = socket.gethostname().split(".")[0]
    for path in final.parent.glob(f".{_escaped(final.stem)}{_PARTIAL}{host}-*{_escaped(final.suffix)}"):
        pid = path.name.removesuffix(final.suffix).rpartition("-")[2]
        if pid.isdigit() and not _is_alive(int(pid)):
            discard(path)


def require_free(path: Path, *, overwrite: bool, option: str = "--output") -> None:
    """Refuse to go on where a result already stands and the user has not said ``--overwrite``.

    Raises
    ------
    OutputError
        ``path`` exists and ``overwrite`` is false, or its folder cannot be written.
    """
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} exists already; choose another {option}, or replace it with --overwrite")
    folder = path.parent
    while not os.path.lexists(folder):  # Path.exists raises inside a folder that may not be searched
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: {folder} is a file, not a folder; choose another {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: no permission to write in {folder}; choose another {option}")


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Give a partial path to write to; on a clean exit it replaces ``final``, otherwise it is removed.

    Raises
    ------
    OutputError
        The disk is full, or the folder cannot be written.
    """
    with explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(final)
        partial = partial_path(final)
        try:
            yield partial
            sync(partial)
            partial.replace(final)
            sync(final.parent)
        finally:
            discard(partial)


def write_text(final: Path, text: str) -> None:
    """Write a whole text file, UTF-8; bytes of file names that are none are escaped."""
    with whole_file(final) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def publish(partial: Path, final: Path, *, aside: Path, overwrite: bool) -> None:
    """Give a finished file or folder, whose contents are on the disk, its final name.

    A file replaces a file in one step. Folders cannot: what stood there is moved to ``aside`` first and removed last.

    Raises
    ------
    OutputError
        Something came to stand under the final name meanwhile, and ``overwrite`` is false.
    """
    require_free(final, overwrite=overwrite)
    for path in sorted(partial.rglob("*")) if partial.is_dir() else []:
        sync(path)
    sync(partial)
    if os.path.lexists(final) and (partial.is_dir() or final.is_dir()):
        final.rename(aside)
        try:
            partial.rename(final)
        except BaseException:
            aside.rename(final)
            raise
        discard(aside)
    else:
        partial.replace(final)
    sync(final.parent)


def discard(path: Path) -> None:
    """Remove a partial file or folder of ours, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear sentence.

    Raises
    ------
    OutputError
        Disk full, quota, limit of a file's size, read-only, forbidden, or no place where files can be.
    """
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space or choose another place for the output",
            errno.EDQUOT: "your disk quota is used up; free some space or choose another place for the output",
            errno.EFBIG: "a file may not be so large there, by a limit (`ulimit -f`, of the batch system) or the file "
            "system (FAT32); raise the limit or choose another place for the output",
            errno.EROFS: "the file system is read-only; choose another place for the output",
            errno.EACCES: "no permission; choose another place for the output",
            errno.EPERM: "not permitted; choose another place for the output",
            errno.ENOENT: "no such folder is there or can be made; choose another place for the output",
            errno.ENOTDIR: "a part of the path is no folder; choose another place for the output",
            errno.ENAMETOOLONG: "the name is too long; choose another place for the output",
        }
        # Where numpy writes an array to a file, a full disk is a short count and no number.
        number = errno.ENOSPC if re.search(r"\d+ requested and \d+ written", str(error)) else error.errno
        if number in reasons:
            raise OutputError(f"{path} cannot be written: {reasons[number]}") from error
        raise


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
