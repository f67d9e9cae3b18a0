"""The page: self-contained, safe whatever the names are, and there whatever is missing."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from denoise.report.curves import figures
from denoise.report.images import KINDS, Picture, Pictures, Plate, Trial, Window
from denoise.report.page import cited, render_page
from denoise.report.page import tests as findings_of

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x>"
PIXEL = "data:image/png;base64,AAAA"


def interval(value: float | None, low: float | None = 1.0, high: float | None = 12.0) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def finding(name: str, severity: str, value: float | None = 0.25) -> dict[str, Any]:
    return {
        "name": name, "question": f"Is {name} well?", "value": value, "unit": "dB", "threshold": 0.5,
        "why": f"why of {name}", "severity": severity, "sentence": f"sentence of {name}",
    }  # fmt: skip


CONTENT: dict[str, Any] = {
    "format": "ct-denoise report",
    "sample": "tooth",
    "headline": ["Gain: 10 dB.", "Equivalent dose: would have this squared error.", "Resolution: 4 before."],
    "verdict": "usable with reservations",
    "sentence": "Usable with reservations: sentence of seams",
    "findings": [finding("gain", "fine"), finding("seams", "reservation"), finding("odd", "invalid", None)],
    "scores": {
        "gain": interval(9.87), "equivalent_dose": interval(9.7), "psnr_before": interval(20.0),
        "psnr_after": interval(29.9), "resolution_before": interval(0.25), "resolution_after": interval(0.4),
        "resolution_is_bound": True,
    },
    "voxel_size_um": 1.5,
    "correlation": {
        "frequency_per_voxel": [0.1, 0.2, 0.3], "before": [1.0, 0.8, None], "after": [1.0, 0.9, 0.6],
        "after_standard_error": [0.0, 0.1, None], "after_for_one_view": [1.0, 0.8, 0.5], "threshold": 0.5,
    },
    "power_spectra": {
        "frequency_per_voxel": [0.1, 0.2, 0.3], "noise_before": [1.0, 2.0, 3.0], "noise_after": [0.1, 0.1, 0.1],
        "object": [9.0, 1.0, -0.1], "result": [9.0, 1.0, 0.1],
    },
    "histograms": {"edges": [0.0, 1.0, 2.0], "before": [3, 1], "after": [2, 2]},
    "materials": [{"share": 0.5, "grey_before": 0.51, "grey_after": 0.52, "width_before": 0.3, "width_after": 0.1}],
    "grey_values": {"result": [0.1, 0.9], "unseen": [0.1, 0.8]},
    "bands": [{"low": 0.25, "high": 0.5, "support": 0.97, "kept": 0.8, "linear": 0.6}],
    "profiles": [
        {"place_zyx": [11, 120, 30], "distance": [-1.0, 0.0, 1.0], "noisy": [0.0, 1.0, 2.0],
         "denoised": [0.1, 1.0, 1.9], "other": [0.0, 1.1, 2.2]}
    ],
    "history": [
        {"step": s, "train_loss": 1 / s, "val_l1": 1 / s, "val_mse": 1 / s, "val_lcl": 0.1, "val_edge": 2.0}
        for s in (1, 2, 3)
    ],
    "held_out": {"slices": [10, 14], "start_zyx": [10, 100, 0], "shape_zyx": [5, 64, 64],
                 "why": "held out in training"},
    "provenance": {
        "inputs": [{"path": "/data/split0", "shape_zyx": [48, 64, 64], "dtype": "float32", "slices_hashed": [0, 24],
                    "sha256": "ab" * 32}],
        "model": {"path": "/run/best_val_model.pth", "sha256": "cd" * 32, "options": {"width": 16}},
        "software": {"torch": "2.13"}, "seed": 0, "config": "train: {}\n", "config_sha256": "ef" * 32,
        "repeat": ["denoise train --config CONFIG"], "cite": ["Stein 1981, doi 10.1214/aos/1176345632; and others"],
        "device": "CPU", "seconds": 1.5, "created": "2030-01-01",
    },
}  # fmt: skip


def pictures(label: str = "slice 12") -> Pictures:
    picture = Picture(2, label, dict.fromkeys(KINDS, PIXEL))
    plate = Plate("axial", "Axial", "xy", (0, 0), (64, 64), 2, (picture, Picture(3, "slice 13", picture.images)))
    return Pictures((plate,), Window(0.0, 1.0), 0.25)


class Read(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def hostile(value: Any) -> Any:
    """The same content with every text replaced."""
    if isinstance(value, dict):
        return {f"{name}": hostile(v) for name, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


def test_the_page_asks_for_nothing_but_what_it_holds() -> None:
    page = render_page(CONTENT, pictures(), [Trial("before", PIXEL), Trial("val", PIXEL)])
    for tag, attributes in Read(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            if name in ("src", "srcset", "href", "action", "background", "poster", "data", "xlink:href") and tag != "a":
                assert (value or "").startswith("data:")
    assert not re.search(r"url\((?!#clip-)|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", page)
    policy = next(a["content"] for t, a in Read(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_hostile_names_are_text() -> None:
    plain = Read(render_page(CONTENT, pictures(), [Trial("before", PIXEL), Trial("val", PIXEL)]))
    page = render_page(hostile(CONTENT), pictures(HOSTILE), [Trial(HOSTILE, PIXEL), Trial("val", PIXEL)])
    read = Read(page)
    assert [t for t, _ in read.tags].count("script") == 1
    assert HOSTILE in read.text
    count = [[t for t, _ in r.tags].count("img") for r in (plain, read)]
    assert count[0] == count[1]
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)


def test_a_limit_says_whether_it_is_a_minimum_or_a_maximum() -> None:
    low = {**finding("counts", "fine"), "threshold_is": "minimum"}
    words = Read(render_page({**CONTENT, "findings": [low, {**finding("seams", "fine"), "threshold": 1.25}]})).words
    assert "counts 0.25 dB at least 0.5, but this may be chance" in words
    assert "seams 0.25 dB at most 1.25" in words
    assert words.count("chance") == 1
    grave = render_page({**CONTENT, "findings": [{**low, "severity": "reservation"}]})
    assert "chance" not in Read(grave).words


def test_numbers_of_the_headline_are_said_with_their_intervals() -> None:
    words = Read(render_page(CONTENT)).words
    assert "+9.9 dB" in words
    assert "95 % interval 1.0 to 12.0 dB" in words
    assert "4.0 voxels (6 µm) → 2.5 voxels (3.75 µm) or finer" in words
    assert "as if exposed 9.7 times as long" in words
    assert "Equivalent dose: would have this squared error." in words
    assert "Slices 10 to 14, 5 × 64 × 64 voxels: held out in training." in words
    of_rows = CONTENT | {"held_out": {**CONTENT["held_out"], "rows": [100, 163]}}
    assert "Rows 100 to 163 of slices 10 to 14, 5 × 64 × 64 voxels" in Read(render_page(of_rows)).words


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (16.8, None, "95 % interval 16.8 dB or more"),
        (None, 12.0, "95 % interval 12.0 dB or less"),
        (-2.5, 12.0, "95 % interval −2.5 to 12.0 dB"),
        (None, None, "95 % interval unknown"),
    ],
)
def test_ends_of_an_interval_that_are_not_known_are_put_in_words(
    low: float | None, high: float | None, said: str
) -> None:
    scores = {**CONTENT["scores"], "psnr_after": interval(9.0, low, high)}
    assert f"{said}, after" in Read(render_page({**CONTENT, "scores": scores})).words


def test_what_is_not_known_of_streaks_is_no_upper_bound() -> None:
    unknown, told = interval(None, None, None), interval(9.0, None, 12.0)
    scores = {**CONTENT["scores"], "error_is_bound": True, "gain": told, "psnr_after": unknown,
              "equivalent_dose": unknown, "resolution_after": None}  # fmt: skip
    words = Read(render_page({**CONTENT, "scores": scores})).words
    assert "Gainat most +12.0 dBupper bound: streaks hide a part of the error" in words
    assert "PSNR20.0 dB → unknownstreaks hide the error: not even a bound can be told" in words
    assert "Equivalent doseunknownstreaks hide the error" in words
    assert "Resolution4.0 voxels (6 µm) → unknownperiod" in words


def test_commands_in_sentences_are_code_and_nothing_else_is() -> None:
    told = {**finding("seams", "reservation"), "sentence": "as `prepare --x <b>` does, 5 ` more"}
    assert "as <code>prepare --x &lt;b&gt;</code> does, 5 ` more" in render_page({**CONTENT, "findings": [told]})


@pytest.mark.parametrize(("last", "drawn"), [(401, 4), (480, 5)])
def test_the_loss_of_the_few_steps_that_were_left_is_chance(last: int, drawn: int) -> None:
    history = [{"step": s, "train_loss": 1.0 / s} for s in (100, 200, 300, 400, last)]
    loss = figures({"history": history})["training"][0].svg
    assert loss.count("<circle") == drawn


def test_the_gravest_findings_come_first_and_a_test_that_was_not_made_says_so() -> None:
    found = findings_of(CONTENT)
    assert [f.name for f in found] == ["odd", "seams", "gain"]
    assert [f.number for f in found] == ["not measured", "0.25 dB", "0.25 dB"]
    words = Read(render_page(CONTENT)).words
    for stored in CONTENT["findings"]:
        assert all(stored[part] in words for part in ("question", "sentence", "why"))


def test_every_chart_is_there_with_labels_and_units() -> None:
    words = Read(render_page(CONTENT)).text
    for label in (
        "distance from the edge / voxels", "grey value / input units", "voxels / % per bin", "power / grey value²",
        "spatial frequency / cycles per voxel", "correlation with the truth / 1", "training step / steps", "loss / σ",
        "resolved above 0.5", "mean squared error / σ²", "Laplacian edge score / 1",
    ):  # fmt: skip
        assert label in words
    assert "Slice 11, row 120, column 30." in " ".join(words.split())


def test_the_page_says_where_it_comes_from() -> None:
    read = Read(render_page(CONTENT))
    for part in (
        "/data/split0",
        "ab" * 32,
        "cd" * 32,
        "width 16",
        "train: {}",
        "denoise train --config CONFIG",
        "1.5 s",
    ):
        assert part in read.text
    assert ("a", "https://doi.org/10.1214/aos/1176345632") in [(t, a.get("href")) for t, a in read.tags]


@pytest.mark.parametrize(
    "missing",
    [*CONTENT, *(("provenance", n) for n in CONTENT["provenance"]), *(("scores", n) for n in CONTENT["scores"])],
)
@pytest.mark.parametrize("null", [True, False])
def test_whatever_is_missing_the_rest_is_shown(missing: Any, null: bool) -> None:
    content = copy.deepcopy(CONTENT)
    *outer, name = [missing] if isinstance(missing, str) else missing
    part = content[outer[0]] if outer else content
    if null:
        part[name] = None
    else:
        del part[name]
    words = Read(render_page(content)).words
    assert "What these numbers cannot tell" in words
    assert "None" not in words


def test_an_empty_report_is_a_page() -> None:
    assert "unknown" in render_page({})


def test_pictures_are_there_without_script_and_reduction_is_said() -> None:
    read = Read(render_page(CONTENT, pictures()))
    shown = [a for t, a in read.tags if t == "img"]
    assert len(shown) == 2 * len(KINDS)
    assert all(a["src"] == PIXEL and a["alt"] for a in shown)
    assert "mean of 2 × 2 voxels" in read.words
    assert ("div", {"id": "viewer", "hidden": None}) in read.tags


def test_one_model_alone_is_not_compared() -> None:
    assert "The models of this run" not in render_page(CONTENT, None, [Trial("before", PIXEL)])


def test_citations_link_what_can_be_looked_up_and_escape_the_rest() -> None:
    assert cited("A <b> 2020, doi 10.1109/TIP.2008.2001404 (error)") == (
        'A &lt;b&gt; 2020, doi <a href="https://doi.org/10.1109/TIP.2008.2001404" rel="noreferrer noopener">'
        "10.1109/TIP.2008.2001404</a> (error)"
    )
    assert 'href="https://arxiv.org/abs/2210.05553"' in cited("M. 2023, arXiv 2210.05553 (one view)")
