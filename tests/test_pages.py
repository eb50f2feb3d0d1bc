"""All pages in a browser, light and dark, on a desk and on a phone: axe-core finds nothing, and their structure stays.

axe-core is a package of npm: ``.ci/run`` puts it below ``.axe/`` where npm is there, ``AXE_CORE`` names another file.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from browser import Tab, browser, needs_browser
from bundles import CLASSES, write_bundle
from judged import judged, limits
from test_report import described
from test_try import FILES, picture

from edgeres.data.thumbnails import thumbnail
from edgeres.judge.differences import compare_builds
from edgeres.judge.document import to_json
from edgeres.judge.history import read_history
from edgeres.judge.sides import read_side
from edgeres.live.server import TryServer
from edgeres.live.side_by_side import SideBySide
from edgeres.records import ImageFile, ImagePrediction, Prediction
from edgeres.report.history import render_history
from edgeres.report.html import render_html
from edgeres.report.html_compare import render_comparisons
from edgeres.report.sheet import render_sheet

AXE = Path(os.environ.get("AXE_CORE") or Path(__file__).parents[1] / ".axe/node_modules/axe-core/axe.min.js")
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason="no axe-core; with npm, .ci/axe installs it")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SCREENS = [(1100, False), (1100, True), (390, False), (390, True)]
# Headings of each page with their levels, one below another as they stand there.
OUTLINES = {
    "report": (
        *("1 resnet18 in INT8", "2 Gates", "2 Checks", "2 Accuracy", "3 Top-1 by class, largest change first"),
        *("2 Latency", "2 Noise by layer", "2 Sizes and engines", "3 Engines", "2 Quantization", "3 cpu graph"),
        *("3 tensorrt graph", "2 Provenance", "3 To reproduce"),
    ),
    "compare": (
        *("1 monday.json to tuesday.json", "2 Builds", "2 Losses", "2 Accuracy", "2 Latency", "2 Scales"),
        *("2 Q/DQ pairs", "2 Sizes", "2 Options and versions"),
    ),
    "sheet": ("1 What tiny says",),
    "history": ("1 resnet18: 3 builds", "2 Over time", "2 Builds"),
    "try": (
        *("1 Try tiny", "2 Images", "2 Camera"),
        *("2 Camera: same class", "3 FP32", "3 INT8"),
        *("2 b.png: same class", "3 FP32", "3 INT8", "2 a.png: same class", "3 FP32", "3 INT8"),
    ),
}


def sheet() -> str:
    rng = np.random.default_rng(0)
    answers = []
    for i in range(6):
        scores = rng.dirichlet(np.ones(len(CLASSES))).astype(np.float32)
        file = ImageFile(Path(f"photos/{CLASSES[i]}/{i}.png"), named=False, label=CLASSES[i])
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        answers.append(ImagePrediction(file, Prediction(scores, scores, CLASSES), thumbnail(pixels)))
    return render_sheet("What tiny says", ["6 images"], answers, "unsure")


def write_pages(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The report, its comparison with another, a history and a contact sheet; all folds are open."""
    patch.chdir(folder)
    reports = [
        judged(**described(created=f"2026-01-0{day}T00:00:00+00:00", **changes))
        for day, changes in enumerate(({}, {"limits": limits(max_drop=0.0)}, {"limits": limits(max_drop=3.0)}), 1)
    ]
    paths = [Path(f"{day}.json") for day in ("monday", "tuesday", "sunday")]
    for path, report in zip(paths, reports, strict=True):
        (folder / path).write_text(to_json(report), encoding="utf-8")
    pages = {
        "report": render_html(reports[1]),
        "compare": render_comparisons([compare_builds(read_side(paths[0]), read_side(paths[1]))]),
        "history": render_history(read_history(paths)),
        "sheet": sheet(),
    }
    for name, page in pages.items():
        opened = page.replace("<details>", "<details open>")
        (folder / f"{name}.html").write_text(opened, encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Pages:
    """A browser, and how each page is brought to a state in which all of it is seen."""

    tab: Tab
    folder: Path
    url: str

    def open(self, name: str) -> Tab:
        if name != "try":
            self.tab.open((self.folder / f"{name}.html").as_uri())
            return self.tab
        self.tab.open(self.url)
        self.tab.choose("#files", self.folder / "a.png", self.folder / "b.png")
        self.tab.wait_for("document.querySelectorAll('#answers .answer').length === 2")
        self.tab.run("document.getElementById('camera').click()")
        self.tab.wait_for("document.querySelector('#live-answer .answer')")
        return self.tab


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        write_pages(folder, patch)
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture(1, side=32))
    # FP32 twice: both columns agree, so that the outline below does not depend on weights
    made = write_bundle(folder / "tiny.edgeres", files=dict.fromkeys(FILES, FILES["model.fp32.onnx"]))
    with SideBySide(made) as both, TryServer(both, 0) as server, browser(folder / "profile") as tab:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Pages(tab, folder, server.url)
        tab.run("location.href = 'about:blank'")
        server.shutdown()
        thread.join()


@needs_browser
@needs_axe
@pytest.mark.parametrize("name", OUTLINES)
def test_axe_finds_no_violation(name: str, pages: Pages) -> None:
    tab = pages.open(name)
    tab.run(f"(() => {{ {AXE.read_text(encoding='utf-8')} ; return true }})()")
    options = json.dumps({"runOnly": RULES, "resultTypes": ["violations"]})
    for px, dark in (SCREENS[0], SCREENS[-1]):
        tab.show(px, dark=dark)
        found = tab.run(f"axe.run(document, {options}).then(r => ({{broken: r.violations, made: r.passes.length}}))")
        told = [(one["id"], one["help"], node["target"]) for one in found["broken"] for node in one["nodes"][:3]]
        assert told == [], (px, dark)
        assert found["made"] > 10


OUTLINE = """[...document.querySelectorAll("h1, h2, h3, h4")].filter(h => h.offsetParent).map(
  h => `${h.tagName[1]} ${h.textContent.replace(/, [\\d.]+ ms$/, "").trim()}`)"""


@needs_browser
@pytest.mark.parametrize("name", OUTLINES)
def test_the_structure_of_a_page_is_the_same_on_every_screen(name: str, pages: Pages) -> None:
    """Headings as above, one first one, no level left out; tables with headers; nothing wider than the screen."""
    tab = pages.open(name)
    for px, dark in SCREENS:
        tab.show(px, dark=dark)
        outline = tab.run(OUTLINE)
        assert tuple(outline) == OUTLINES[name]
        levels = [int(line[0]) for line in outline]
        assert levels.count(1) == 1 and levels[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert tab.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        unnamed = "[...document.querySelectorAll('table')].filter(t => !t.querySelector('thead th[scope=col]'))"
        assert tab.run(f"{unnamed}.length") == 0
        assert tab.run("[...document.querySelectorAll('img')].every(i => i.alt && i.naturalWidth > 0)")
