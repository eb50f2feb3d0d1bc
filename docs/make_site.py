"""Builds the docs as a site that works without a network, search included; a warning is an error.

    pip install mkdocs-material
    python docs/make_site.py [FOLDER]     writes FOLDER/site, by default build/site

README.md is its first page; links to files that are no page, as to source code, become plain text.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
_TOP = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_FETCHED = "https://unpkg.com/iframe-worker/shim"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def pages() -> dict[str, Path]:
    """Every page by its name on the site."""
    found = {name: REPOSITORY / own for own, name in _TOP.items()}
    return found | {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}


def assemble(folder: Path) -> None:
    """Write all pages and pictures into a folder, with the links as they are on the site."""
    shutil.rmtree(folder, ignore_errors=True)
    names = {path: name for name, path in pages().items()}
    pictures = {
        path: path.relative_to(DOCS).as_posix() for ending in ("svg", "png") for path in DOCS.rglob(f"*.{ending}")
    }
    for path, name in names.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_linked(path, name, names | pictures), encoding="utf-8")
    for path, name in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def _linked(path: Path, name: str, names: dict[Path, str]) -> str:
    """A page whose links lead to the site's pages."""

    def link(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        place, _, anchor = target.partition("#")
        if not place or re.match(r"[a-z]+:", target):
            return found[0]
        other = (path.parent / place).resolve()
        other = other / "README.md" if other.is_dir() else other
        if other not in names:
            return words
        there = os.path.relpath(names[other], Path(name).parent)
        return f"{mark}[{words}]({Path(there).as_posix()}{'#' + anchor if anchor else ''})"

    text = path.read_text(encoding="utf-8")
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if i % 2 else _LINK.sub(link, part) for i, part in enumerate(parts))


def build(folder: Path) -> Path:
    """The site below a folder."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from mkdocs.commands.build import build as run
    from mkdocs.config import load_config

    assemble(folder / "site-source")
    places = {"docs_dir": str(folder / "site-source"), "site_dir": str(folder / "site")}
    config = load_config(str(DOCS / "mkdocs.yml"), strict=True, **places)
    config.plugins.run_event("startup", command="build", dirty=False)
    run(config)
    _without_network(folder / "site")
    return folder / "site"


def _without_network(site: Path) -> None:
    """Put our own stand-in for workers in the place of the one that the theme would fetch."""
    shutil.copyfile(DOCS / "site_worker.js", site / "assets" / "worker.js")
    for page in site.rglob("*.html"):
        there = "../" * len(page.relative_to(site).parts[1:])
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(f'src="{_FETCHED}"', f'src="{there}assets/worker.js"'), encoding="utf-8")


if __name__ == "__main__":
    made = build(Path(sys.argv[1]) if sys.argv[1:] else REPOSITORY / "build")
    sys.stdout.write(f"{made / 'index.html'}\n")
