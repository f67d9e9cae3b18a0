"""The page of a report in a real browser: its script, driven as a reader would. Skipped where there is no Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tiny_dataset import Tools  # noqa: F401

pytest_plugins = ("tiny_dataset",)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")

#: Before the page's own script: what goes wrong is noted.
WATCH = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(event.message));
addEventListener("securitypolicyviolation", (event) => wrong.push(event.violatedDirective + " " + event.blockedURI));
</script>"""
#: After it: actions, and what is seen then. The answer is the text of an element that the browser prints.
ASK = """<script>
addEventListener("load", () => setTimeout(() => {
  const answer = document.createElement("pre");
  answer.id = "answer";
  const told = (() => { %s })();
  answer.textContent = JSON.stringify({ told, wrong });
  document.body.append(answer);
}, 100));
</script></body>"""


@pytest.fixture(scope="module")
def page(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the tiny dataset."""
    from denoise.commands.report import Request, write_report
    from denoise.config import load_config
    from denoise.launch import Compute

    folder = tmp_path_factory.mktemp("page")
    made = write_report(load_config(trained_folder / "foam.yaml"), Compute("cpu"), Request(output=folder / "r"))
    return made.page.read_text(encoding="utf-8")


@pytest.fixture
def seen(page: str, tmp_path: Path) -> Callable[..., Any]:
    """What a script finds on the page; nothing may have gone wrong on it."""

    def ask(script: str, *, width: int = 1200, of: str = page) -> Any:
        path = tmp_path / "page.html"
        path.write_text(of.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", ASK % script, 1), encoding="utf-8")
        assert BROWSER is not None
        done = subprocess.run(
            [
                BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
                f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
                "--virtual-time-budget=5000", "--dump-dom", path.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]
        answer = json.loads(html.unescape(found[1]))
        assert answer["wrong"] == []
        return answer["told"]

    return ask


def test_every_image_is_shown_and_nothing_comes_from_elsewhere(seen: Callable[..., Any]) -> None:
    told = seen("""
        const images = [...document.querySelectorAll(".pane img")];
        return { hidden: document.getElementById("viewer").hidden, widths: images.map((i) => i.naturalWidth),
                 panes: [...document.querySelectorAll(".pane")].length,
                 fetched: performance.getEntriesByType("resource").filter((e) => !/^data:/.test(e.name)).length };
    """)
    assert told["hidden"] is False
    assert told["panes"] >= 1
    assert min(told["widths"]) > 0
    assert told["fetched"] == 0


def test_the_divider_uncovers_the_image_before(seen: Callable[..., Any]) -> None:
    left, handle = seen("""
        const divider = document.getElementById("divider");
        divider.value = 25;
        divider.dispatchEvent(new Event("input"));
        const pane = document.querySelector(".pane");
        return [getComputedStyle(pane.querySelector(".left")).clipPath, pane.querySelector(".handle").style.left];
    """)
    assert left.startswith("inset(0px 75% 0px 0px")
    assert handle == "25%"


def test_what_was_taken_away_is_one_choice_away(seen: Callable[..., Any]) -> None:
    told = seen("""
        const pane = document.querySelector(".pane"), row = document.querySelector(".plate .row");
        const choice = document.querySelector("[name=mode][value=residual]");
        choice.checked = true;
        choice.dispatchEvent(new Event("change"));
        const shown = pane.querySelector("img").src;
        const kinds = [...document.querySelectorAll(".plate:first-child .row img")].filter((i) => i.src === shown);
        return { kinds: kinds.map((i) => i.dataset.kind), divider: document.getElementById("divider").disabled,
                 covered: !pane.querySelector(".left").hidden, tag: pane.querySelector(".of-left").textContent };
    """)
    assert told == {"kinds": ["residual"], "divider": True, "covered": False, "tag": "taken away"}


def test_a_wheel_zooms_around_the_pointer_and_reset_comes_home(seen: Callable[..., Any]) -> None:
    told = seen("""
        const stage = document.querySelector(".stage"), image = stage.querySelector("img");
        const box = stage.getBoundingClientRect(), x = 0.6 * box.width, y = 0.55 * box.height;
        const under = () => [(x - parseFloat(image.style.left)) / parseFloat(image.style.width),
                             (y - parseFloat(image.style.top)) / parseFloat(image.style.height)];
        const wheel = (deltaY, ctrlKey) => stage.dispatchEvent(new WheelEvent("wheel",
          { deltaY, ctrlKey, clientX: box.left + x, clientY: box.top + y, cancelable: true, bubbles: true }));
        const before = under(), plain = [wheel(-100, false), document.getElementById("scale").textContent];
        wheel(-100, true); wheel(-100, true);
        const after = under(), scale = document.getElementById("scale").textContent;
        document.querySelector("[data-zoom=reset]").click();
        return { before, after, plain, scale, home: document.getElementById("scale").textContent };
    """)
    assert told["plain"] == [True, "1×"], "without Ctrl the page scrolls"
    assert told["scale"] == "2.7×"
    assert told["after"] == pytest.approx(told["before"], abs=0.01)
    assert told["home"] == "1×"


@pytest.mark.parametrize("width", [500, 800, 1600])
def test_nothing_is_wider_than_the_window(seen: Callable[..., Any], width: int) -> None:
    told = seen("return [document.documentElement.scrollWidth, innerWidth];", width=width)
    assert told[0] <= told[1]


def test_a_script_in_a_name_does_not_run(seen: Callable[..., Any], page: str) -> None:
    """The title of the page is the sample's name."""
    from denoise.report.page import render_page

    trap = '</title><script>wrong.push("ran")</script><img src=x onerror=\'wrong.push("ran")\'>'
    content = {"format": "ct-denoise report", "format_version": 2, "sample": trap, "headline": [trap], "verdict": trap}
    assert trap in seen("return document.title;", of=render_page(content, None, []))
