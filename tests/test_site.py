"""The docs as a site: built without a warning, complete, and whole without a network."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from browser import browser, needs_browser

ROOT = Path(__file__).parents[1]
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="no mkdocs-material: pip install '.[docs]'"
)


def make_site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_site", ROOT / "docs/make_site.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in strict mode: a page that no menu leads to, a broken link or anchor ends it."""
    built: Path = make_site().build(tmp_path_factory.mktemp("site"))
    return built


def test_links_lead_to_pages_of_the_site_and_links_to_code_become_words(tmp_path: Path) -> None:
    make_site().assemble(tmp_path)
    start = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "(security.md)" in start and "](docs/" not in start and "(contributing.md)" in start
    assert "(../changelog.md)" not in (tmp_path / "api.md").read_text(encoding="utf-8")
    assert "](../jetson.md" in (tmp_path / "howto/checkpoint-to-jetson.md").read_text(encoding="utf-8")
    code = [page for page in tmp_path.rglob("*.md") if re.search(r"\]\([^)]*\.(py|cpp|sh)\)", page.read_text("utf-8"))]
    assert code == []


@needs_mkdocs
def test_the_site_is_complete_and_takes_nothing_from_elsewhere(site: Path) -> None:
    for name in make_site().pages():
        name = name.replace("README.md", "index.md")
        assert (site / f"{name.removesuffix('.md')}.html").is_file(), name
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'(?:src="|<link [^>]*href=")(https?://[^"]+)', text) == [], page


@needs_mkdocs
def test_the_search_knows_the_pages(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    known = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"glossary.html", "howto/not-faster.html", "api.html", "index.html"} <= known


@needs_browser
@needs_mkdocs
def test_the_search_works_in_a_browser_without_a_server(site: Path, tmp_path: Path) -> None:
    look = """(() => { const field = document.querySelector(".md-search__input"); field.focus();
      field.value = "equalization"; field.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }));
      field.dispatchEvent(new Event("input", { bubbles: true })); })()"""
    with browser(tmp_path / "profile") as tab:
        tab.show(1200)
        tab.open((site / "howto/ros2.html").as_uri())
        tab.run(look)
        tab.wait_for("document.querySelector('.md-search-result__link')")
        links = tab.run("[...document.querySelectorAll('.md-search-result__link')].map(a => a.getAttribute('href'))")
        assert any("quantization.html" in link for link in links)
        assert tab.complaints == []
