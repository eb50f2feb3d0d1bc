"""Figures over builds: rows of a table, a page, and an SVG file. The charts need no package and no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgeres.judge.document import Json
from edgeres.report.figures import NOT_MEASURED, significant
from edgeres.report.markup import Html, el, join, prose, render_page, section, table
from edgeres.report.text import NOT_CERTAIN

HEAD = ("measured", "top-1", "drop", "SQNR", "ms", "MB", "verdict", "build")
UNITS = (
    "top-1 of INT8 in per cent, drop against FP32 in points, logit SQNR in dB,",
    "p50 latency of INT8 in ms, its size in MB; times are UTC",
)
_KEY = "square: failed, ring: not certain"
_OUTCOMES = {"passed": "passed", "failed": "failed", "unsure": NOT_CERTAIN}
_CLASSES = {"passed": "pass", "failed": "fail", "unsure": "unsure"}


class HistoryRow(NamedTuple):
    """A build as text, in the order of :data:`HEAD`."""

    measured: str
    top1: str
    drop: str
    sqnr: str
    ms: str
    megabytes: str
    verdict: str
    name: str


def history_rows(found: Json) -> list[HistoryRow]:
    """One row a build, oldest first; times are UTC."""
    return [
        HistoryRow(
            build["created"][:16].replace("T", " "),
            _fixed(build["top1"], 2),
            _fixed(build["drop_pp"], 2),
            _fixed(build["logit_sqnr_db"], 1),
            significant(build["p50_ms"]),
            NOT_MEASURED if build["size_bytes"] is None else significant(build["size_bytes"] / 1e6),
            _OUTCOMES[build["outcome"]],
            build["name"],
        )
        for build in found["builds"]
    ]


def history_title(found: Json) -> str:
    count = len(found["builds"])
    return f"{found['model']}: {count:,} build{'s' * (count != 1)}"


def _fixed(value: float | None, digits: int) -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def render_history(found: Json) -> str:
    """The page, to be written as UTF-8."""
    rows = (
        (row.measured, *row[1:6], el("span", row.verdict, class_=_CLASSES[build["outcome"]]), prose(row.name))
        for row, build in zip(history_rows(found), found["builds"], strict=True)
    )
    title = history_title(found)
    head = (el("h1", title), *(el("p", line, class_="soft small") for line in filter(None, [found["images"]])))
    notes = [el("p", f"{note[:1].upper()}{note[1:]}.", class_="remark") for note in found["notes"]]
    charts = (el("div", _svg([figure], found), class_="chart") for figure in _measured(found))
    key = el("p", f"Points: {_KEY}.", class_="soft small") if _has_marks(found) else ""
    told = el("p", f"In this table: {' '.join(UNITS)}.", class_="soft small")
    body = (
        section("Over time", *notes, *charts, key),
        section("Builds", table("Builds", HEAD, rows, range(1, 6)), told),
    )
    return render_page(title, join(*head, *body))


def render_history_svg(found: Json) -> str:
    """All charts as one SVG file for light and dark pages, to be written as UTF-8."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{_svg(_measured(found), found, alone=True)}\n'


def _has_marks(found: Json) -> bool:
    return any(build["outcome"] != "passed" for build in found["builds"])


class _Figure(NamedTuple):
    """What a chart shows: ``keys`` are those of a build, INT8 first, then FP32 where there is one."""

    title: str
    keys: tuple[str, ...]
    scale: float = 1.0


_FIGURES = (
    _Figure("top-1, %", ("top1", "fp32_top1")),
    _Figure("drop, points", ("drop_pp",)),
    _Figure("logit SQNR, dB", ("logit_sqnr_db",)),
    _Figure("p50 latency, ms", ("p50_ms", "fp32_p50_ms")),
    _Figure("size of INT8, MB", ("size_bytes",), 1e-6),
)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 150, 56, 14, 26, 22
_COLOURS = ("--int8", "--fp32")
_NAMES = ("INT8", "FP32")
# For a file of its own, which has no page around it.
_STYLE = (
    "svg{--ink:#1b1f24;--soft:#57606a;--line:#d9dde3;--fp32:#64748b;--int8:#0b7285;--fail:#b3261e;--unsure:#7a5200;"
    "background:#fff;font-family:system-ui,sans-serif}@media(prefers-color-scheme:dark){svg{--ink:#e8ebef;--soft:#a2acb8;"
    "--line:#313843;--fp32:#94a3b8;--int8:#3bc9db;--fail:#ff9a92;--unsure:#f2c14e;background:#181c22}}"
)


def _measured(found: Json) -> list[_Figure]:
    """The figures that at least one build has."""
    return [one for one in _FIGURES if any(build[one.keys[0]] is not None for build in found["builds"])]


def _svg(figures: Sequence[_Figure], found: Json, *, alone: bool = False) -> Html:
    """Charts below each other. In a file of its own they have a heading and bring their colours."""
    top = 28 if alone else 0
    height = top + _HEIGHT * len(figures)
    parts = [_chart(figure, found["builds"], top + i * _HEIGHT) for i, figure in enumerate(figures)]
    own: dict[str, object] = {}
    if alone:
        heading = _text(history_title(found), _LEFT, 20, fill="var(--ink)", font_size=14, font_weight=600)
        key = _text(_KEY if _has_marks(found) else "", _WIDTH - _RIGHT, 20, text_anchor="end")
        parts = [el("style", Html(_STYLE)), heading, key, *parts]
        own = {"xmlns": "http://www.w3.org/2000/svg", "width": _WIDTH, "height": height}
    said = "; ".join(_said(figure, found["builds"]) for figure in figures)
    return el("svg", *parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=said, **own)


def _said(figure: _Figure, builds: Sequence[Json]) -> str:
    values = [build[figure.keys[0]] for build in builds]
    told = (NOT_MEASURED if value is None else significant(value * figure.scale) for value in values)
    return f"{figure.title}, oldest build first: {', '.join(told)}"


def _chart(figure: _Figure, builds: Sequence[Json], top: float) -> Html:
    """One figure over the builds, which stand at equal distances; a build that lacks it leaves a gap."""
    lines = [[None if build[key] is None else figure.scale * build[key] for build in builds] for key in figure.keys]
    low, high = _range([value for line in lines for value in line if value is not None])

    def x(i: int) -> float:
        room = _WIDTH - _LEFT - _RIGHT
        return round(_LEFT + room * ((i + 0.5) / len(builds)), 1)

    def y(value: float) -> float:
        room = _HEIGHT - _TOP - _BOTTOM
        return round(top + _TOP + room * (high - value) / (high - low), 1)

    parts = [_text(figure.title, _LEFT, top + 16, fill="var(--ink)", font_size=12, font_weight=600)]
    for value in _ticks(low, high):
        parts += [
            el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(value), y2=y(value), stroke="var(--line)"),
            _text(f"{value:.10g}", _LEFT - 6, y(value) + 4, text_anchor="end"),
        ]
    for name, colour, line in zip(_NAMES, _COLOURS, lines, strict=False):
        points = [(x(i), y(value)) for i, value in enumerate(line) if value is not None]
        path = " ".join(f"{a},{b}" for a, b in points)
        parts.append(el("polyline", points=path, fill="none", stroke=f"var({colour})", stroke_width=1.5))
        for i, known in enumerate(line):
            if known is not None:
                parts.append(_point(builds[i], f"{name} {significant(known)}", (x(i), y(known)), colour))
    for i in sorted({0, len(builds) - 1}):
        anchor = "start" if i == 0 and len(builds) > 1 else "end" if i else "middle"
        parts.append(_text(builds[i]["created"][:10], x(i), top + _HEIGHT - 6, text_anchor=anchor))
    if len(lines) > 1:
        parts += [
            _text(name, _WIDTH - _RIGHT - 40 * i, top + 16, fill=f"var({colour})", text_anchor="end", font_weight=600)
            for i, (name, colour) in enumerate(zip(_NAMES, _COLOURS, strict=True))
        ]
    return el("g", *parts)


def _point(build: Json, figure: str, at: tuple[float, float], colour: str) -> Html:
    """A dot; of INT8 a square where the build failed, a ring where its verdict is not certain."""
    title = el("title", f"{build['name']}, {build['created'][:16].replace('T', ' ')}: {figure}, {build['outcome']}")
    a, b = at
    if colour != _COLOURS[0]:
        return el("circle", title, cx=a, cy=b, r=2.5, fill=f"var({colour})")
    if build["outcome"] == "failed":
        return el("rect", title, x=a - 4, y=b - 4, width=8, height=8, fill="var(--fail)")
    ring = {"fill": "none", "stroke": "var(--unsure)", "stroke_width": 2}
    return el(
        "circle", title, cx=a, cy=b, r=4, **(ring if build["outcome"] == "unsure" else {"fill": f"var({colour})"})
    )


def _text(text: str, x: float, y: float, **more: object) -> Html:
    return el("text", text, x=x, y=y, **{"fill": "var(--soft)", "font_size": 11, **more})


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Room for these values and a little more; of equal values, one step around them."""
    low, high = min(values), max(values)
    edge = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - edge, high + edge


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between these."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 2)
    first = math.ceil(low / step)
    return [round(step * i, 12) for i in range(first, math.floor(high / step) + 1)]
