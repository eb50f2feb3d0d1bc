"""The report's part ``task`` as data: words, tiles, tables and plots, which renderers show without knowing the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

from edgeres.judge.document import Json

Colour = Literal["fp32", "int8", "other"]
MAX_POINTS = 1000  # of a series, so that a page stays small


@dataclass(frozen=True)
class Tile:
    """One figure at the top of the page; ``below`` stands under it."""

    title: str
    figure: str
    below: str


@dataclass(frozen=True)
class Listed:
    """A table; ``numbers`` are the columns of figures, ``note`` stands under it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points, or the heights of bars at ``x``; ``fp32`` and ``int8`` have colours of their own."""

    name: str
    colour: Colour
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        form: ``points``, or ``bars`` of equal width.
        said: in words, for those who do not see it.
        diagonal: whether the line y = x is drawn.
    """

    title: str
    form: Literal["points", "bars"]
    x: str
    y: str
    said: str
    series: tuple[Series, ...]
    diagonal: bool = False


@dataclass(frozen=True)
class Page:
    """What a task shows.

    Attributes:
        line: the headline in one sentence.
        columns: of the table of figures beside latency and size.
        cells: of these columns, by ``fp32`` and by candidate.
        findings: name and words.
    """

    line: str
    tiles: tuple[Tile, ...]
    columns: tuple[str, ...]
    cells: Mapping[str, tuple[str, ...]]
    findings: tuple[tuple[str, str], ...] = ()
    tables: tuple[Listed, ...] = ()
    plots: tuple[Plot, ...] = field(default=())


def content(task: str, page: Page, headline: str, images: int, figures: Mapping[str, Any]) -> Json:
    """The part ``task`` of the report.

    Args:
        headline: the candidate that comes first.
        figures: for programs, in plain JSON types.
    """
    return {"name": task, "graph": headline, "images": images, **asdict(page), **figures}


def thinned(values: Iterable[float], step: int) -> tuple[float, ...]:
    """Every ``step``-th value, to six digits."""
    return tuple(float(f"{value:.6g}") for value in list(values)[::step])


def bars(values: Sequence[float], edges: Sequence[float], name: str, colour: Colour) -> Series:
    """How many values lie between each two edges, as shares in per cent."""
    import numpy as np

    counts, _ = np.histogram(values, edges)
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    return Series(name, colour, thinned(middles, 1), thinned(100 * counts / max(1, counts.sum()), 1))
