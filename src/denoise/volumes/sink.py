"""The life of an output volume: checked, written in a hidden folder, journaled, and published when it is whole.

``WholeVolumeSink`` is the one VolumeSink of all file formats. What differs between formats, how a slab is stored,
is a ``SlabWriter``; tiff_stack.py, tiff_file.py, hdf5_file.py and zarr_store.py have one each. What a run leaves when
it dies, and how the next one takes it up, is in unfinished.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from denoise import files
from denoise.errors import OutputError
from denoise.volumes.integer_output import GreyValueEncoder
from denoise.volumes.slab_writer import SlabWriter, VolumeHeader
from denoise.volumes.slice_groups import SliceGroups
from denoise.volumes.unfinished import KEPT, Journal, Unfinished, runs_of

_log = logging.getLogger(__name__)

#: Slices are made to last, and journaled, so often: a death costs no more than that, and waiting for the disk little.
_SECONDS_PER_SYNC = 5.0


@dataclass
class WholeVolumeSink:
    """A VolumeSink: leaving its ``with`` block normally publishes the result.

    Leaving it by an exception keeps what is done for another run where ``resumable``, and removes it otherwise.

    It may be pickled inside the block where ``allows_parallel_slabs``; copies in other processes can only ``write`` and
    ``flush``, and the process that entered the block publishes after they are done. Clipped voxels of a copy are
    logged by the copy.
    """

    unfinished: Unfinished
    header: VolumeHeader
    writer: SlabWriter
    overwrite: bool = False
    resumable: bool = False
    resume: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    _owner: int = field(default_factory=os.getpid)
    _encoder: GreyValueEncoder = field(init=False)
    _written: NDArray[np.bool_] = field(init=False)
    _groups: SliceGroups = field(init=False)
    _open: bool = field(default=False, init=False)
    is_entered: bool = field(default=False, init=False)
    _journal: Journal | None = field(default=None, init=False)
    _unsynced: list[tuple[int, int]] = field(default_factory=list, init=False)
    _synced_at: float = field(default=0.0, init=False)
    _resources: ExitStack = field(default_factory=ExitStack, init=False)

    def __post_init__(self) -> None:
        self._encoder = GreyValueEncoder(self.header.dtype)
        self._written = np.zeros(self.header.shape[0], dtype=bool)
        self._groups = SliceGroups(self.header.shape[0], self.writer.slices_together)

    @property
    def path(self) -> str:
        """The final name."""
        return str(self.unfinished.final)

    @property
    def allows_parallel_slabs(self) -> bool:
        """Whether several processes may write disjoint slabs, each through its own copy of this sink."""
        return self.writer.allows_parallel_slabs

    @property
    def slices_together(self) -> int:
        """Slices are stored in groups of so many; what one process writes begins and ends with whole groups."""
        return self.writer.slices_together

    @property
    def missing(self) -> list[range]:
        """The runs of slices, counted from 0 in this output, that are still to be written.

        A copy in another process goes by the journals: it may have been made before the last ones were written.
        """
        if os.getpid() != self._owner:
            self._written |= self.unfinished.done(self.header.shape[0])
        return runs_of(~self._written)

    def require_place(self) -> None:
        """Refuse, before anything is computed, what entering would refuse, or a user would not want.

        Raises
        ------
        OutputError
            There is an unfinished result that was begun from something else, or that nobody has said what to do with;
            the disk is too small.
        """
        unfinished = self.unfinished
        unasked = not self.resume and not self.overwrite and unfinished.is_kept
        if unasked and (progress := unfinished.progress):
            raise OutputError(
                f"an earlier run left {self.path} unfinished, {progress}; continue with --resume, or begin anew with "
                "--overwrite"
            )
        if self.resume and unfinished.exists:
            unfinished.require_same(self.all_facts)
        else:
            require_space(unfinished.final, self.writer.disk_bytes)

    def write(self, z_start: int, slab: NDArray[np.float32]) -> None:
        """Store slices z_start, z_start + 1, ... counted from 0 in this output.

        Parameters
        ----------
        slab
            (n, Y, X); the caller may reuse it at once.

        Raises
        ------
        OutputError
            NaN for an integer output; disk full and other refusals of the operating system.
        """
        n_slices, *image_shape = slab.shape
        z_stop = z_start + n_slices
        fits = tuple(image_shape) == self.header.shape[1:] and 0 <= z_start <= z_stop <= self.header.shape[0]
        assert fits, f"slab of shape {slab.shape} at slice {z_start} does not fit {self.header.shape}"
        assert not self._written[z_start:z_stop].any(), f"slices {z_start}..{z_stop - 1} were written twice"
        if n_slices == 0:
            return
        is_copy = os.getpid() != self._owner
        assert self.allows_parallel_slabs or not is_copy, f"{self.path} can only be written by one process"
        numbers = self.header.slice_numbers[z_start:z_stop]
        stored = self._encoder.encode(slab, f"{self.path}, slices {numbers[0]}..{numbers[-1]}")
        with files.explained(self.unfinished.final):
            if not self._open:
                self._start()
            for start, group in self._groups.add(z_start, stored):
                self.writer.store(start, group)
                self._unsynced.append((start, start + len(group)))
        self._written[z_start:z_stop] = True
        if time.monotonic() - self._synced_at > _SECONDS_PER_SYNC:
            self.flush()

    def flush(self) -> None:
        """Make what was written last, and journal it; a copy in another process ends with this.

        Raises
        ------
        OutputError
            Disk full and other refusals of the operating system.
        """
        self._synced_at = time.monotonic()
        if not self._unsynced or self._journal is None:
            return
        # What could not be synced once is never journaled: the system tells of a failure only once.
        unsynced, self._unsynced = self._unsynced, []
        with files.explained(self.unfinished.final):
            self.writer.sync(unsynced)
            self._journal.append(unsynced)
        if os.getpid() != self._owner:
            self._encoder.report(self.path)
            self._encoder = GreyValueEncoder(self.header.dtype)

    def _start(self) -> None:
        """In this process: be ready to store."""
        self.writer.attach()
        self._journal = self.unfinished.journal()
        self._synced_at = time.monotonic()
        self._open = True

    def __getstate__(self) -> dict[str, object]:
        # No process has the number 0: a copy is a copy also on another host where the numbers happen to agree.
        left_behind: dict[str, object] = {"_open": False, "_journal": None, "_unsynced": [], "_resources": ExitStack()}
        return self.__dict__ | left_behind | {"_owner": 0, "_groups": self._groups.emptied()}

    def __enter__(self) -> Self:
        self._owner = os.getpid()
        with files.explained(self.unfinished.final), ExitStack() as resources:
            resources.enter_context(self.unfinished.locked())
            self.unfinished.restore_replaced()
            if self.resume and self.unfinished.exists:
                self.unfinished.require_same(self.all_facts)
                self._written = self.unfinished.done(self.header.shape[0])
            else:
                self._begin()
            self._resources = resources.pop_all()
        self.is_entered = True
        return self

    def _begin(self) -> None:
        self.unfinished.clear()
        try:
            require_space(self.unfinished.final, self.writer.disk_bytes)
            self.writer.create()
            self.unfinished.begin(self.all_facts)
        except BaseException:
            self._discard()
            raise

    @property
    def all_facts(self) -> dict[str, Any]:
        """What a run that goes on with this result must have in common with the one that began it; plain values."""
        header = self.header
        numbers = header.slice_numbers
        return {
            "shape": list(header.shape),
            "type": header.dtype.name,
            "first slice": numbers[0],
            "slice step": numbers.step,
            "voxel size": header.voxel_size_um,
            "compression": header.compression,
            "slices together": self.slices_together,
            KEPT: self.resumable,
            "dataset": getattr(self.writer, "dataset", ""),
            **self.facts,
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_entered = False
        with self._resources:
            if kind is None:
                self._publish()
            else:
                self._leave()

    def _publish(self) -> None:
        try:
            self.flush()
            self._written |= self.unfinished.done(self.header.shape[0])
            if missing := self.missing:
                raise AssertionError(
                    f"{sum(map(len, missing))} of {self.header.shape[0]} slices of {self.path} were never written, "
                    f"the first is slice {missing[0][0]}"
                )
            with files.explained(self.unfinished.final):
                self.writer.finish()
                self.unfinished.publish(overwrite=self.overwrite)
        except BaseException:
            self._leave()
            raise
        self._encoder.report(self.path)

    def _leave(self) -> None:
        """Another run may go on from here, or nothing is left."""
        if not self.resumable:
            self._discard()
            return
        try:
            self.flush()
        except (OSError, RuntimeError, OutputError) as error:  # what ended the run is told; this would hide it
            _log.debug("syncing %s: %s", self.path, error)
        self._close()
        done = int(self.unfinished.done(self.header.shape[0]).sum())
        if done == 0:
            self.unfinished.discard()
        else:
            _log.info("%d of %d slices are kept; --resume continues", done, self.header.shape[0])

    def _discard(self) -> None:
        try:
            self._close()
        finally:
            self.unfinished.discard()

    def _close(self) -> None:
        try:
            self.writer.abandon()
        except (OSError, RuntimeError) as error:  # closing flushes, which fails again where the disk is full
            _log.debug("closing %s: %s", self.path, error)


@dataclass(frozen=True)
class WholeAlready:
    """A VolumeSink in the place of an output that an earlier run has finished: nothing is missing from it."""

    path: str
    allows_parallel_slabs: bool = True
    slices_together: int = 1
    is_entered: bool = True

    @property
    def missing(self) -> list[range]:
        """Nothing."""
        return []

    def write(self, z_start: int, slab: NDArray[np.float32]) -> None:
        """Nobody may."""
        raise AssertionError(f"{self.path} is whole already")

    def flush(self) -> None:
        """Nothing was written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""


def require_space(final: Path, n_bytes: int) -> None:
    """Refuse an output that cannot fit, before the hours of computing it.

    Raises
    ------
    OutputError
        The disk has less than ``n_bytes`` free.
    """
    free = free_bytes(final)
    if free < n_bytes:
        raise OutputError(
            f"{final} needs {n_bytes / 1e9:.3g} GB, but its disk has only {free / 1e9:.3g} GB free; "
            "free some space, choose another place for the output, or a smaller output type"
        )


def free_bytes(final: Path) -> int:
    """What is free on the disk where an output will be, whose folder need not exist yet."""
    folder = final.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
