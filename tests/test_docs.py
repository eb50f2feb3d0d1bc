"""Pages that are made from the code are as their scripts make them; links in all pages lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from edgeres._version import __version__
from edgeres.bundle import MANIFEST_KIND
from edgeres.calibrate import shards
from edgeres.calibrate.record import CALIBRATION_KIND
from edgeres.judge import differences, history
from edgeres.reports import BASELINE_FORMAT, REPORT_FORMAT

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md")])


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_public_api_is_what_all_says() -> None:
    made = script("make_api").page()
    assert made == (DOCS / "api.md").read_text(encoding="utf-8"), "run: python docs/make_api.py"
    for module in script("make_api").MODULES:
        for name in import_module(module).__all__:
            assert re.search(rf"^### .*`{name}\b", made, re.M), name


def test_signatures_are_written_as_in_the_source() -> None:
    make_api = script("make_api")
    for written in ("f()", "f(a, b: int = 2, *rest, c: str = 'x', **more) -> int", "f(a, *, b = None)"):
        (function,) = ast.parse(f"def {written}: ...").body
        assert make_api._signature(function) == written


def test_what_pages_and_examples_import_is_public() -> None:
    make_api = script("make_api")
    sources = [*PAGES, *DOCS.rglob("examples/**/*.py")]
    found = [
        (module, name.strip())
        for source in sources
        for module, names in re.findall(r"^ *from (edgeres[\w.]*) import ([\w, ]+)$", source.read_text("utf-8"), re.M)
        for name in names.split(",")
    ]
    assert ("edgeres.runtime", "Frame") in found
    public = {module: make_api.public(module) for module in make_api.MODULES}
    assert [pair for pair in found if pair[1] not in public.get(pair[0], ())] == []


def test_the_floors_are_drawn_from_the_imports() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert script("make_floors").written(page) == page, "run: python docs/make_floors.py"


def test_every_folder_says_what_it_is_for() -> None:
    rows = script("make_floors").table().splitlines()[2:]
    assert [row for row in rows if not re.fullmatch(r"\| `\w+(/|\.py)` \| .+\. \|", row)] == []


def test_the_changelog_knows_the_version_and_every_format() -> None:
    page = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(__version__)}\b", page, re.M)
    stated = dict(re.findall(r"^\| (.+?) \| (\d+) \|", page, re.M))
    newest = {
        "`manifest.json` of a bundle": MANIFEST_KIND.schemas,
        "`report.json`": REPORT_FORMAT,
        "`calibration.json`": CALIBRATION_KIND.schemas,
        "`baseline.json`": BASELINE_FORMAT,
        "state of a calibration or of its shard": shards._STATE.schemas,
        "`edgeres compare --json`": differences.SCHEMA,
        "`edgeres history --json`": history.SCHEMA,
    }
    assert stated == {name: str(found if isinstance(found, int) else found[1]) for name, found in newest.items()}


def test_floors_of_a_small_example() -> None:
    make_floors = script("make_floors")
    edges = {"roof": {"wall", "ground"}, "wall": {"ground"}, "ground": set(), "shed": {"ground"}}
    assert make_floors.floors(edges) == [["ground"], ["shed", "wall"], ["roof"]]
    assert make_floors.direct(edges) == edges | {"roof": {"wall"}}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    roots = (REPOSITORY, REPOSITORY / "edgeres")
    folders = {path.name for root in roots for path in root.iterdir() if path.is_dir()}
    named = {name for name in re.findall(r"`([\w.]+/[\w./]*)`", text) if name.split("/")[0] in folders}
    assert {name for name in named if not any((root / name).exists() for root in roots)} == set()
    assert named


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_classes_and_tables_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"`([A-Z][a-z]+[A-Z]\w*|[A-Z]{3,}(?:_[A-Z]+)*)`", (REPOSITORY / page).read_text("utf-8")))
    sources = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "edgeres").rglob("*.py"))
    sources += (REPOSITORY / "tests" / "conftest.py").read_text(encoding="utf-8")
    assert {name for name in named if not re.search(rf"^(class )?{name}\b", sources, re.M)} == set()
    assert len(named) > 5


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "api.md"], ids=lambda page: page.name)
def test_lines_of_pages_are_short_enough_to_be_read_as_text(page: Path) -> None:
    """120 columns, apart from tables, code, and one piece of code or link that is longer."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if len(line) > 120 and not line.lstrip().startswith(("|", "#", "!["))]
    assert not [line for line in lines if len(re.findall(r"(?:`[^`]*`|\[[^]]*\]\([^)]*\)|\S)+", line)) > 1]
