"""Lengths in the units of image files."""

from __future__ import annotations

import pytest

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
