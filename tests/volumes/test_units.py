"""Lengths in the units of image files."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from denoise.volumes import create_sink, open_volume
from denoise.volumes.units import in_micrometres


@pytest.mark.parametrize(
    ("length", "unit", "expected"),
    [
        (0.65, "µm", 0.65),
        (0.65, "μm", 0.65),
        (0.65, "\\u00B5m", 0.65),
        (0.65, " Microns ", 0.65),
        (650, "nm", 0.65),
        (650, "nanometer", 0.65),
        (-1.5e-3, "mm", 1.5),
        (0.001, "inch", 25.4),
        (1e-5, "meter", 10.0),
        (1.0, "pixel", None),
        (1.0, "", None),
        (1.0, "s", None),
        (0.0, "um", None),
        (float("nan"), "um", None),
        (float("inf"), "um", None),
        (1.0, "m", None),
        (1e-6, "um", None),
    ],
)
def test_a_length_is_converted_or_refused(length, unit, expected):
    assert in_micrometres(length, unit) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("length", "unit"),
    [(0.65e-6, "m"), (0.65e-4, "cm"), (0.65e-3, "mm"), (0.65 / 25400, "inch"), (float(np.float32(0.65)), "um")],
)
def test_a_length_has_no_more_digits_than_were_meant(length, unit):
    assert in_micrometres(length, unit) == 0.65


@pytest.mark.parametrize("name", ["v", "v.tif", "v.h5", "v.zarr"])
def test_a_voxel_size_is_written_and_read_as_it_was_meant(tmp_path, name):
    with create_sink(tmp_path / name, shape=(1, 2, 3), voxel_size_um=(0.65e-4 * 1e4,) * 3) as sink:
        sink.write(0, np.zeros((1, 2, 3), np.float32))
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"0.6499999" in text for text in texts)
    assert open_volume(tmp_path / name).voxel_size_um == (0.65, 0.65, 0.65)


def test_a_voxel_size_in_single_precision_is_read_as_it_was_meant(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["data"] = np.zeros((1, 2, 3), np.float32)
        file["data"].attrs["element_size_um"] = np.float32([0.65] * 3)
    assert open_volume(tmp_path / "v.h5").voxel_size_um == (0.65, 0.65, 0.65)
