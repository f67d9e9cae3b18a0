"""Slabs on their way to the device and back; on a CPU, where nothing needs to travel."""

from __future__ import annotations

import numpy as np
import torch

from denoise.inference.transfer import DeviceLink


def test_what_goes_to_the_device_comes_back_as_it_was() -> None:
    link = DeviceLink(torch.device("cpu"))
    slab = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    uploaded = link.arrived(link.upload(slab))
    assert uploaded.device == torch.device("cpu")
    np.testing.assert_array_equal(link.download(link.leaving(uploaded[0, 1:])), slab[0, 1:])
