"""Write tables between two comments of a page, and plots that are reproducible byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeres.files import write_file


def put(page: Path, begin: str, end: str, content: str) -> str:
    """Replace the text between two comments; returns a message on what was done, or why not."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        return f"no table written: {page} has no two lines {begin} and {end}"
    before, rest = text.split(begin)
    write_file(page, f"{before}{begin}\n\n{content}\n{end}{rest.split(end)[1]}".encode())
    return f"{page}: table written"


def link(words: str, plot: Path) -> str:
    """Markdown of a plot beside the page; "" where it was not drawn."""
    return f"![{words}]({plot.name})\n\n" if plot.is_file() else ""


def save_plot(path: Path, draw: Callable[[], Any]) -> str:
    """Write the figure of ``draw``; returns a message on what was done, or why not."""
    try:
        import matplotlib
    except ImportError:
        return f"no plot written: {path} needs matplotlib (pip install matplotlib)"
    # No date and no random id, so that the same figures give the same bytes.
    style: Any = {
        "svg.hashsalt": "edgeres",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        draw().savefig(path, metadata={"Date": None}, facecolor="white")
    return f"{path}: plot written"
