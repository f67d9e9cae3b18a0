"""One streaming engine for a slice, a range of slices and a volume, in every mode.

Slabs are read ahead in one thread, tiles go through the network in batches, predictions are blended on the device, and
finished slices are written behind in another thread. Memory is a slab and a batch, whatever the depth of the volume.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from denoise.arithmetic import autocast, exact_float32, fast_layout, free_on, give_back_unused
from denoise.errors import CheckpointError, DeviceError
from denoise.inference.blend import SlabAccumulator
from denoise.inference.reader import LARGEST_LAYER_BYTES, SlabReader
from denoise.inference.slabs import WRITES_WAITING, SlabPlan, plan_slabs
from denoise.inference.transfer import DeviceLink, Leaving
from denoise.inference.versions import Version
from denoise.memory import is_out_of_memory
from denoise.normalization import Normalization
from denoise.tiles import TileGrid, Window
from denoise.volumes.volume import Float32Array, Volume

_log = logging.getLogger(__name__)

_MOST_TILES = 64
#: On an accelerator that does not tell how much memory it has; halved where that is too many.
_TILES_AT_FIRST = 8
#: Kernels count the elements of a tensor in 32 bits.
_MOST_ELEMENTS = 2**31 - 1
#: Input voxels of a batch on a CPU: larger ones fall out of its caches (four tiles of 256^2 at once were 15 % slower).
_CPU_BATCH_VOXELS = 5 * 256**2
#: Shares of the free memory of an accelerator that a batch and the slabs may take.
_BATCH_SHARE, _SLABS_SHARE = 0.6, 0.3

Write = Callable[[int, Float32Array], None]
"""Takes where finished slices start (counted from the start of the range) and the slices, in the input's units."""


@dataclass(frozen=True)
class Denoiser:
    """A network and how it sees a volume; picklable until it is ``prepared``."""

    network: nn.Module
    normalization: Normalization
    window: Window
    device: torch.device
    dtype: torch.dtype = torch.float32
    batch_size: int | None = None
    fill_non_finite: bool = False
    versions: Sequence[Version] = ()
    """What the network sees besides each tile as it is; the predictions are averaged."""
    forward_peak: float = 0.0
    """Elements that exist at the worst moment for each predicted voxel (``NetworkKind.forward_peak``)."""

    @property
    def batch_bytes(self) -> int:
        """Host memory of a batch on its way through the network, on the CPU."""
        return batch_bytes(self.window, self.dtype, self.forward_peak, self.batch_size)

    def prepared(self) -> Denoiser:
        """The same with the network in evaluation mode, on the device in its fastest layout, and its batch size.

        On an accelerator it is a copy: the network itself may be sent to other processes, which is no place to be for
        what lies on a device. Again is no harm.
        """
        there = all(weights.device == self.device for weights in self.network.parameters())
        network = self.network if there else copy.deepcopy(self.network)
        on_device = replace(self, network=fast_layout(network.eval()).to(self.device))
        return replace(on_device, batch_size=self.batch_size or _found_batch_size(on_device))


def batch_bytes(window: Window, dtype: torch.dtype, forward_peak: float, batch_size: int | None = None) -> int:
    """Host memory of a batch on its way through a network on the CPU; None: of as many tiles as are taken by itself.

    ``forward_peak`` is that of ``NetworkKind``.
    """
    tiles = batch_size or _cpu_batch(window)
    return int(forward_peak * dtype.itemsize * tiles * np.prod(window.predict_zyx))


def weights_bytes(count: int, dtype: torch.dtype) -> int:
    """Host memory of the weights of a network on the CPU: float32, and what autocast keeps of them in ``dtype``."""
    return count * (4 if dtype == torch.float32 else 4 + dtype.itemsize)


def denoise_slices(
    inputs: Sequence[Volume],
    denoiser: Denoiser,
    z_range: range,
    write: Write,
    progress: Callable[[int], None] = lambda slices: None,
    *,
    budget: int | None = None,
    largest_layer: int = LARGEST_LAYER_BYTES,
) -> None:
    """Denoise slices of a volume; a range gives the same values as the same slices of a full run.

    Parameters
    ----------
    inputs
        Volumes of one shape; the network's output is averaged over them (one: the full reconstruction).
    denoiser
        See ``Denoiser``; the batch size is found from the free memory where it is None, and halved when memory runs
        out.
    z_range
        Consecutive slices, counted from 0; their neighbours are read too.
    write
        Called from one thread, with consecutive runs of slices in ascending order.
    progress
        Called with the number of slices finished so far.
    budget
        Host memory that slabs may take, in bytes; None: as much as is fastest.
    largest_layer
        What may be kept besides of each input that stores several slices together, in bytes: a layer that is not kept
        is decoded again for every slab.

    Raises
    ------
    VolumeError
        A slice cannot be read, or holds NaN or Inf.
    DeviceError
        Memory is too small even for one tile, or the budget for a slab.
    CheckpointError
        The network predicts NaN or Inf.
    """
    plan = plan_slabs(TileGrid(inputs[0].shape, denoiser.window), len(inputs), _slab_budget(denoiser.device, budget))
    try:
        with exact_float32():
            _stream(inputs, denoiser.prepared(), z_range, write, progress, plan, largest_layer)
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"the memory of {denoiser.device} is too small for a slab of this volume (about "
            f"{plan.n_bytes / 1e9:.1f} GB); use a smaller infer.tile_size, or --device cpu"
        ) from error


def _slab_budget(device: torch.device, on_host: int | None) -> int | None:
    """Bytes for slabs: they are on the host first, and then on the device."""
    free = free_on(device)
    if free is None:
        return on_host
    on_device = int(_SLABS_SHARE * free)
    return on_device if on_host is None else min(on_host, on_device)


def _stream(
    inputs: Sequence[Volume],
    denoiser: Denoiser,
    z_range: range,
    write: Write,
    progress: Callable[[int], None],
    plan: SlabPlan,
    largest_layer: int,
) -> None:
    grid = plan.grid
    layers = grid.layers(z_range.start, z_range.stop)
    pieces = list(plan.pieces(layers))
    reader = SlabReader(
        inputs,
        grid,
        denoiser.normalization,
        fill_non_finite=denoiser.fill_non_finite,
        largest_layer=largest_layer,
    )
    blended = SlabAccumulator(grid, layers, plan.layers, denoiser.device, 1 / len(inputs))
    predict = _BatchedNetwork(denoiser)
    link = DeviceLink(denoiser.device)

    def read(run: Sequence[int], rows: range) -> Tensor:
        return link.upload(reader.read((run[0], run[-1]), (rows[0], rows[-1])))

    with (
        _Writer(write, link, denoiser.normalization, z_range, inputs[0].slice_numbers) as writer,
        ThreadPoolExecutor(1) as reading,
    ):
        ahead = reading.submit(read, *pieces[0])
        for i, (run, rows) in enumerate(pieces):
            slab = link.arrived(ahead.result())
            if i + 1 < len(pieces):
                ahead = reading.submit(read, *pieces[i + 1])
            _blend(slab, run, rows, grid, predict, blended)
            if rows[-1] + 1 == len(grid.axes[1].starts):
                start, slices = blended.finished(run[-1])
                writer.put(start, slices)
                progress(min(max(start + len(slices) - z_range.start, 0), len(z_range)))
    if reader.filled:
        _log.warning("%d NaN or Inf voxels of the input were replaced by its mean before denoising", reader.filled)


def _blend(
    slab: Tensor, run: Sequence[int], rows: range, grid: TileGrid, predict: _BatchedNetwork, blended: SlabAccumulator
) -> None:
    columns = range(len(grid.axes[2].starts))
    tiles = [(z, y, x, v) for z in run for y in rows for x in columns for v in range(len(slab))]
    first_z, first_y = grid.axes[0].starts[run[0]], grid.axes[1].starts[rows[0]]
    starts = [
        (v, grid.axes[0].starts[z] - first_z, grid.axes[1].starts[y] - first_y, grid.axes[2].starts[x])
        for z, y, x, v in tiles
    ]
    for (z, y, x, _), prediction in zip(tiles, predict(slab, starts), strict=True):
        blended.add(prediction, z, y, x)


class _BatchedNetwork:
    """Runs tiles of a slab through the network, as many at once as memory allows."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.device = denoiser.device
        assert denoiser.batch_size is not None, "not prepared"
        self._batch_size = denoiser.batch_size

    def __call__(self, slab: Tensor, starts: Sequence[tuple[int, int, int, int]]) -> Iterator[Tensor]:
        """Predictions (Z, Y, X) of the tiles that start at (input, z, y, x) within the slab, one after the other."""
        depth, height, width = self._denoiser.window.read_zyx
        done = 0
        while done < len(starts):
            tiles = [
                slab[v, z : z + depth, y : y + height, x : x + width]
                for v, z, y, x in starts[done : done + self._batch_size]
            ]
            try:
                predictions = _forward(self._denoiser, torch.stack(tiles))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error)
                continue
            yield from predictions
            done += len(tiles)

    def _halve(self, error: Exception) -> None:
        if self._batch_size == 1:
            raise DeviceError(
                f"memory ran out on {self.device} with a single tile of {self._denoiser.window.read_zyx} voxels; "
                "use a smaller infer.tile_size, or another device"
            ) from error
        self._batch_size = max(1, self._batch_size // 2)
        _log.warning("memory ran out on %s; going on with batches of %d tiles", self.device, self._batch_size)
        give_back_unused(self.device)


def _forward(denoiser: Denoiser, blocks: Tensor) -> Tensor:
    with torch.inference_mode(), autocast(denoiser.device, denoiser.dtype):
        predictions: Tensor = denoiser.network(blocks)
        for version in denoiser.versions:
            predictions = predictions.float() + version.prediction(denoiser.network, blocks)
    return predictions / (1 + len(denoiser.versions)) if denoiser.versions else predictions


def _cpu_batch(window: Window) -> int:
    return int(np.clip(_CPU_BATCH_VOXELS // np.prod(window.read_zyx), 1, _MOST_TILES))


def _found_batch_size(denoiser: Denoiser) -> int:
    """As many tiles as fit: on a GPU from the memory that one tile took, on a CPU from the size of its caches."""
    device, window = denoiser.device, denoiser.window
    if device.type == "cpu":
        return _cpu_batch(window)
    elements = max(denoiser.forward_peak, 1.0) * float(np.prod(window.predict_zyx))
    most = int(np.clip(_MOST_ELEMENTS // elements, 1, _MOST_TILES))
    free = free_on(device)
    if free is None:
        return min(most, _TILES_AT_FIRST)
    give_back_unused(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        with exact_float32():
            _forward(denoiser, torch.zeros((1, *window.read_zyx), device=device))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 1
    one = torch.cuda.max_memory_allocated(device) - before
    return int(np.clip(_BATCH_SHARE * free / max(one, 1), 1, most))


class _Writer:
    """Hands finished slices to ``write`` in a thread of its own, in order; holds back when that falls behind."""

    def __init__(
        self, write: Write, link: DeviceLink, normalization: Normalization, z_range: range, slice_numbers: range
    ) -> None:
        self._write = write
        self._link = link
        self._normalization = normalization
        self._z_range = z_range
        self._numbers = slice_numbers
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def put(self, start: int, slices: Tensor) -> None:
        """Queue slices that start at ``start`` in the volume; those outside the range are left out."""
        low, high = max(start, self._z_range.start), min(start + len(slices), self._z_range.stop)
        if low >= high:
            return
        while len(self._waiting) >= WRITES_WAITING:
            self._waiting.popleft().result()
        kept = slices[low - start : high - start]
        self._waiting.append(self._thread.submit(self._finish, low, self._link.leaving(kept)))

    def _finish(self, low: int, leaving: Leaving) -> None:
        # A copy that nobody else holds: changed in place, slabs can be large.
        slab = self._link.download(leaving)
        slab *= np.float32(self._normalization.std)
        slab += np.float32(self._normalization.mean)
        if not np.isfinite(slab).all():
            raise CheckpointError(
                f"the network predicts NaN or Inf in slices {self._numbers[low]} to "
                f"{self._numbers[low + len(slab) - 1]}; "
                "take another checkpoint, or set infer.precision: float32"
            )
        self._write(low - self._z_range.start, slab)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                while self._waiting:
                    self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
