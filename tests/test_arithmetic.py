"""Number format and memory layout on the devices that a test machine may or may not have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from denoise import arithmetic
from denoise.arithmetic import autocast, fast_layout, has_bf16, resolve_precision
from denoise.errors import DeviceError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "in_hardware", "expected"),
    [
        ("float32", True, torch.float32),
        ("float32", False, torch.float32),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bf16", True, torch.bfloat16),
    ],
)
def test_the_number_format_follows_the_wish_and_the_hardware(monkeypatch, name, in_hardware, expected):
    monkeypatch.setattr(arithmetic, "has_bf16", lambda device: in_hardware)
    assert resolve_precision(name, CPU) == expected


def test_bf16_in_emulation_is_refused_and_says_what_to_use(monkeypatch):
    monkeypatch.setattr(arithmetic, "has_bf16", lambda device: False)
    with pytest.raises(DeviceError, match="use auto or float32"):
        resolve_precision("bf16", CPU)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu sse avx512_bf16 amx_tile\n", True),
        ("flags : amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags : fpu avx512f avx2\n", False),
        ("flags : not_bf16 bf16x\n", False),  # whole words only
        ("model name : bf16 machine\n", False),
        ("", False),
    ],
)
def test_the_cpu_says_whether_it_multiplies_bf16(monkeypatch, tmp_path, cpuinfo, expected):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(arithmetic.platform, "system", lambda: "Linux")
    monkeypatch.setattr(arithmetic, "Path", lambda name: tmp_path / "cpuinfo")
    assert has_bf16(CPU) is expected


def test_a_cpu_that_cannot_be_asked_computes_float32(monkeypatch):
    monkeypatch.setattr(arithmetic.platform, "system", lambda: "Darwin")
    assert has_bf16(CPU) is False


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_bf16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bf16(torch.device("cuda", 0)) is expected
    assert has_bf16(torch.device("mps")) is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_compute_in_the_chosen_format_and_losses_in_float32(dtype):
    convolution, block = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 8, 8)
    with autocast(CPU, dtype):
        prediction = convolution(block)
        loss = nn.functional.l1_loss(prediction.float(), torch.zeros(1, 3, 6, 6))
    assert prediction.dtype == dtype
    assert loss.dtype == torch.float32
    assert convolution.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("network", "block", "order"),
    [
        (nn.Conv2d(4, 3, 3, padding=1), torch.randn(2, 4, 8, 8), torch.channels_last),
        (nn.Conv3d(4, 3, 3, padding=1), torch.randn(2, 4, 6, 6, 6), torch.channels_last_3d),
    ],
)
def test_the_fast_layout_changes_the_order_in_memory_and_no_value(network, block, order):
    before = network(block)
    laid_out = fast_layout(network)
    assert laid_out.weight.is_contiguous(memory_format=order)
    torch.testing.assert_close(laid_out(block), before, rtol=1e-5, atol=1e-5)
