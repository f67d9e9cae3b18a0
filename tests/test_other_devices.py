"""What works on a graphics card, tried without one: torch's device "meta" has shapes and no values.

Like a card it refuses tensors of another device beside its own, and whatever would have to wait for a value. What only
a card can do (streams, bf16 kernels, fused optimisers) is not tried here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoise.arithmetic import exact_float32, free_on
from denoise.commands.report import runner
from denoise.inference import engine, transfer
from denoise.inference.blend import SlabAccumulator
from denoise.inference.engine import Denoiser
from denoise.inference.transfer import DeviceLink
from denoise.inference.versions import turned
from denoise.memory import is_out_of_memory
from denoise.modes import mode_of
from denoise.networks.catalogue import build_network, find_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.patches.holdout import HoldOut
from denoise.tiles import TileGrid, Window
from denoise.training.averaging import AveragedWeights
from denoise.training.data import ResidentBlocks
from denoise.training.objective import Objective, paired
from denoise.volumes.volume import ArrayVolume

META, CUDA, MPS = torch.device("meta"), torch.device("cuda", 3), torch.device("mps")
KNOWN = Normalization(0.0, 1.0)
NETWORKS = [
    NetworkSpec("residual2d", {}),
    NetworkSpec("residual3d", {}),
    NetworkSpec("unet2d", {}),
    NetworkSpec("unet3d", {"n_blocks": 2, "start_filters": 8}),
]


def window_of(spec: NetworkSpec, edge: int = 16) -> Window:
    return mode_of(spec).window(spec, edge, 0.5, "hann")


def denoiser_of(spec: NetworkSpec, device: torch.device, **changes: Any) -> Denoiser:
    return Denoiser(build_network(spec), KNOWN, window_of(spec), device, **changes)


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_a_training_step_lies_wholly_on_the_device(spec: NetworkSpec) -> None:
    shape, window = (40, 48, 48), window_of(spec)
    holdout = HoldOut.of(shape, window, 0.2)
    sampler = mode_of(spec).sampler(holdout, window, 0, True, 1, None)
    flat = torch.empty((2, int(np.prod(shape))), device=META)
    source = ResidentBlocks(flat, shape, False, KNOWN, META)
    network = build_network(spec).to(META)
    averaged = AveragedWeights(network, 0.9)
    optimizer = torch.optim.Adam(network.parameters())
    (blocks,) = source.batches([sampler.places(0, [0, 1])])
    inputs, targets = paired(blocks, "X:1")
    prediction = network(inputs)
    targets = targets[:, window.before_zyx[0] : targets.shape[1] - window.after_zyx[0]]
    loss = Objective(lcl_weight=0.1)(prediction, targets, with_lcl=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    averaged.update(1)
    assert prediction.shape == targets.shape
    assert loss.device == META
    assert all(weights.grad is not None and weights.grad.device == META for weights in network.parameters())


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("turns", [1, 8])
def test_tiles_are_predicted_and_blended_on_the_device(spec: NetworkSpec, turns: int) -> None:
    denoiser = denoiser_of(spec, META, versions=turned(turns)).prepared()
    grid = TileGrid((32, 40, 40), denoiser.window)
    blended = SlabAccumulator(grid, [0], 1, META)
    slab = torch.empty((1, denoiser.window.read_zyx[0], 48, 48), device=META)
    for prediction in engine._BatchedNetwork(denoiser)(slab, [(0, 0, 0, 0), (0, 0, 8, 8)]):
        blended.add(prediction, 0, 0, 0)
    _, slices = blended.finished(0)
    assert slices.device == META


def test_a_network_that_goes_to_a_device_leaves_the_one_that_other_processes_are_sent() -> None:
    denoiser = denoiser_of(NETWORKS[0], META)
    prepared = denoiser.prepared()
    assert {weights.device.type for weights in denoiser.network.parameters()} == {"cpu"}
    assert {weights.device.type for weights in prepared.network.parameters()} == {"meta"}
    assert prepared.prepared().network is prepared.network


def test_a_report_brings_its_model_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Denoiser] = []
    monkeypatch.setattr(
        "denoise.commands.report.denoise_slices", lambda inputs, denoiser, *_, **__: seen.append(denoiser)
    )
    run = runner(denoiser_of(NETWORKS[0], torch.device("cpu")))
    for _ in range(2):
        run(ArrayVolume(np.zeros((2, 16, 16), np.float32)), range(1))
    assert seen[0] is seen[1]
    assert seen[0].prepared().batch_size == seen[0].batch_size is not None


# How much fits -----------------------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """``card(free, of_one)``: memory that is free, and what a tile takes of it."""

    def made(free: int, of_one: int) -> None:
        counts = iter([10, 10])
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(counts, 10) - 3)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 + of_one)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(engine.torch, "zeros", lambda *_, **__: None)
        monkeypatch.setattr(engine, "_forward", lambda denoiser, block: None)

    return made


def test_a_batch_is_as_many_tiles_as_fit_beside_the_slabs(card: Callable[[int, int], None]) -> None:
    card(10**9, 10**8)
    assert free_on(CUDA) == 10**9
    assert engine._found_batch_size(denoiser_of(NETWORKS[0], CUDA)) == 6
    assert engine._slab_budget(CUDA, None) == 3 * 10**8
    assert engine._slab_budget(CUDA, 10**8) == 10**8
    assert engine._slab_budget(torch.device("cpu"), None) is None
    assert engine._slab_budget(torch.device("cpu"), 5) == 5


def test_no_tensor_of_a_batch_has_more_elements_than_kernels_can_count(card: Callable[[int, int], None]) -> None:
    card(10**12, 1)
    spec = NetworkSpec("unet3d", {})
    peak = find_network(spec.name).forward_peak(spec.options)
    large = Denoiser(nn.Identity(), KNOWN, window_of(spec, 96), CUDA, forward_peak=peak)
    tiles = engine._found_batch_size(large)
    assert 1 <= tiles * 96**3 * peak < 2**31
    assert engine._found_batch_size(denoiser_of(NETWORKS[0], CUDA)) == 64


def test_a_card_that_is_full_gets_one_tile_at_a_time(
    card: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    card(10**9, 1)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")):

        def fail(*_: object, error: RuntimeError = error) -> Tensor:
            raise error

        monkeypatch.setattr(engine, "_forward", fail)
        assert engine._found_batch_size(denoiser_of(NETWORKS[0], CUDA)) == 1
    monkeypatch.setattr(engine, "_forward", lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    with pytest.raises(RuntimeError, match="no kernel image"):
        engine._found_batch_size(denoiser_of(NETWORKS[0], CUDA))


@pytest.mark.parametrize(
    "said",
    [
        "MPS backend out of memory (MPS allocated: 9.0 GB, max allowed: 9.07 GB)",
        "Invalid buffer size: 24.00 GB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "could not create a primitive",
    ],
)
def test_every_library_says_in_its_own_words_that_memory_ran_out(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ValueError(said))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))


# Copies ------------------------------------------------------------------------------------------------------------


class FakeCuda:
    """Notes which device each thread is on when its streams are entered and left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[tuple[str, int]] = []
        self._here = threading.local()
        fake = SimpleNamespace(
            Stream=lambda device: SimpleNamespace(
                device=device,
                synchronize=lambda: self.said.append(("wait", self.here)),
                wait_event=lambda event: self.said.append((event, self.here)),
            ),
            Event=lambda: SimpleNamespace(record=lambda stream: self.said.append(("record", self.here))),
            current_stream=lambda device: None,
            default_stream=lambda device: None,
            device=self._device,
            stream=self._stream,
        )
        monkeypatch.setattr(transfer.torch, "cuda", fake)
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: self._note("pin", tensor))
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
        plain, empty = Tensor.to, torch.empty
        monkeypatch.setattr(Tensor, "to", lambda tensor, device, **_: plain(tensor, "cpu"))
        monkeypatch.setattr(transfer.torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))

    @property
    def here(self) -> int:
        return getattr(self._here, "number", 0)

    def _note(self, what: str, tensor: Tensor) -> Tensor:
        self.said.append((what, self.here))
        return tensor

    @contextmanager
    def _device(self, device: torch.device) -> Iterator[None]:
        before, self._here.number = self.here, device.index or 0
        yield
        self._here.number = before

    @contextmanager
    def _stream(self, stream: Any) -> Iterator[None]:
        self.said.append(("enter", self.here))
        yield
        self.said.append(("leave", self.here))


def test_a_card_that_is_not_ours_is_left_alone_by_the_threads_that_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new thread is on GPU 0: what enters or leaves a stream there takes memory of it."""
    cuda = FakeCuda(monkeypatch)
    link, slab = DeviceLink(CUDA), np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    back: list[np.ndarray[Any, Any]] = []

    def there_and_back() -> None:
        leaving = link.leaving(link.arrived(link.upload(slab))[0])
        back.append(link.download(leaving))

    thread = threading.Thread(target=there_and_back)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(back[0], slab[0])
    inside = [number for what, number in cuda.said if what in ("enter", "leave", "pin")]
    assert len(inside) == 5
    assert set(inside) == {3}


@pytest.mark.parametrize("device", [torch.device("cpu"), META])
def test_without_streams_only_the_thread_that_computes_touches_the_device(device: torch.device) -> None:
    link, slab = DeviceLink(device), np.ones((1, 2, 3, 4), np.float32)
    sent = link.upload(slab)
    assert sent.device.type == "cpu"
    assert link.arrived(sent).device == device


def test_float32_is_float32_while_it_matters_and_as_it_was_afterwards() -> None:
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    with exact_float32():
        assert convolutions.fp32_precision == "ieee"
    assert convolutions.fp32_precision == before
