"""Rounding, clipping and counting on the way to integers."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from denoise.errors import OutputError
from denoise.volumes.integer_output import GreyValueEncoder


@pytest.mark.parametrize(
    ("dtype", "values", "expected", "clipped"),
    [
        ("u1", [-0.6, -0.4, 0.5, 1.5, 254.6, 255.4, 255.6, 1e9], [0, 0, 0, 2, 255, 255, 255, 255], 3),
        ("u2", [-1, 65535, 65535.4, 65536, np.inf], [0, 65535, 65535, 65535, 65535], 3),
        ("i2", [-32768.4, -32769, 32767.4, 32768, -np.inf, -1.6], [-32768, -32768, 32767, 32767, -32768, -2], 3),
    ],
)
def test_integers_are_rounded_to_the_nearest_and_clipped(dtype, values, expected, clipped):
    encoder = GreyValueEncoder(np.dtype(dtype))
    slab = np.array(values, "f4").reshape(1, 1, -1)
    before = slab.copy()
    encoded = encoder.encode(slab, "out")
    assert encoded.dtype == np.dtype(dtype)
    assert encoded.ravel().tolist() == expected
    assert encoder.clipped == clipped
    np.testing.assert_array_equal(slab, before)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats_keep_every_value(dtype):
    slab = np.array([[[np.nan, np.inf, -1e30, 0.1]]], "f4")
    encoder = GreyValueEncoder(np.dtype(dtype))
    np.testing.assert_array_equal(encoder.encode(slab, "out"), slab.astype(dtype))
    assert encoder.clipped == 0


def test_nan_for_an_integer_output_is_counted_and_refused():
    slab = np.array([[[np.nan, 1.0, np.nan]]], "f4")
    with pytest.raises(OutputError, match=r"out, slice 7: 2 of 3 voxels are NaN, which uint8 cannot hold"):
        GreyValueEncoder(np.dtype("u1")).encode(slab, "out, slice 7")


def test_clipping_is_reported_once_with_the_count_and_only_if_there_was_any(caplog):
    encoder = GreyValueEncoder(np.dtype("u1"))
    encoder.report("out")
    for _ in range(3):
        encoder.encode(np.array([[[300.0, 1.0]]], "f4"), "out")
    with caplog.at_level(logging.WARNING):
        encoder.report("out")
    assert [r.getMessage().partition(";")[0] for r in caplog.records] == [
        "out: 3 of 6 voxels were outside the range of uint8 (0..255) and were clipped to it"
    ]
