"""Charts: what is labelled, what is drawn, and what is left out."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from denoise.report.svg import Axis, Curve, Mark, chart, number_text

X = Axis("distance", "voxels")
Y = Axis("grey value", "input units")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag == "text"]


def test_axes_have_labels_and_units_and_curves_are_named() -> None:
    svg = chart("profile", [Curve("before", "before", [0, 1, 2], [3, 5, 4])], X, Y, [Mark(4.5, "half")])
    assert {"distance / voxels", "grey value / input units", "before", "half", "0", "1", "2"} <= set(texts(svg))


def test_names_are_shown_as_text_and_never_as_markup() -> None:
    svg = chart('<b>"x"', [Curve("<script>alert(1)</script>", "after", [0, 1], [0, 1])], X, Axis("<i>", "&"))
    assert "<script>alert(1)</script>" in texts(svg)
    assert "<i> / &" in texts(svg)
    assert "<script" not in svg


def test_what_is_not_known_is_a_gap() -> None:
    path = ElementTree.fromstring(chart("gap", [Curve("c", "after", [0, 1, 2, 3, 4], [1, 2, None, 3, 4])], X, Y)).find(
        ".//path[@class='curve s-after']"
    )
    assert path is not None
    assert path.attrib["d"].count("M") == 2


@pytest.mark.parametrize("y", [[], [None, None], [float("nan"), float("inf")]])
def test_nothing_to_draw_is_no_chart(y: list[float | None]) -> None:
    assert chart("nothing", [Curve("c", "after", [0.0, 1.0][: len(y)], y)], X, Y) == ""


def test_a_logarithmic_axis_leaves_out_what_is_not_positive_and_writes_powers_of_ten() -> None:
    svg = chart("log", [Curve("c", "after", [0, 1, 2], [-1, 1e-6, 1e-2])], X, Axis("power", "1", logarithmic=True))
    assert {"10⁻⁶", "10⁻⁴", "10⁻²"} & set(texts(svg))
    line = ElementTree.fromstring(svg).find(".//g/path[@class='curve s-after']")
    assert line is not None
    assert line.attrib["d"].count("L") == 1


@pytest.mark.parametrize("values", [[5.0, 5.0], [0.0, 0.0], [-1e-12, -1e-12], [1e30, -1e30]])
def test_flat_and_extreme_curves_are_drawn(values: list[float]) -> None:
    svg = chart("flat", [Curve("c", "after", [0, 1], values)], X, Y)
    assert "nan" not in svg
    assert len(texts(svg)) > 6


def test_higher_values_lie_higher() -> None:
    svg = chart("dots", [Curve("c", "after", [0, 1], [1, 2], dots=True)], X, Y)
    first, second = (float(e.attrib["cy"]) for e in ElementTree.fromstring(svg).iter("circle"))
    assert first > second


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, "0.5"),
        (-3.0, "−3"),
        (1.2e-07, "1.2·10⁻⁷"),
        (1000000000.0, "10⁹"),
        (-1000000000.0, "−10⁹"),
        (0.0, "0"),
        (3000.0, "3000"),
        (123456.0, "1.23·10⁵"),
        (0.123456, "0.123"),
    ],
)
def test_numbers_are_written_as_people_do(value: float, shown: str) -> None:
    assert number_text(value) == shown
