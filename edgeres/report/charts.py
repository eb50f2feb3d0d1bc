"""Charts by matplotlib as SVG in the page: they scale, use the page's colours, and need no script.

matplotlib is installed by ``edgeres[report]``. Without it the page has no charts; all figures are in tables as well.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeres.report.markup import Html, el

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_IN = 4.6  # at 72 points per inch: full size on a phone, 1.5 times as large on a wide screen
# Colours that are used nowhere else; they are replaced by the page's colours, which depend on its theme.
_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--soft)", "#030303": "var(--line)", "#040404": "var(--fp32)"}
_COLOURS |= {"#050505": "var(--int8)", "#060606": "var(--pass)", "#070707": "var(--fail)", "#080808": "var(--other)"}
INK, SOFT, LINE, FP32, INT8, PASS, FAIL, OTHER = _COLOURS
_COLOUR_OF = {"fp32": FP32, "int8": INT8, "other": OTHER}
_STYLE: dict[str, Any] = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9.0, "text.color": INK}
_STYLE |= dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), SOFT)
_STYLE |= dict.fromkeys(("axes.edgecolor", "grid.color"), LINE)
_STYLE |= dict.fromkeys(("axes.grid", "axes.axisbelow"), True)
_STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False)
_STYLE |= dict.fromkeys(("ytick.left", "legend.frameon"), False)


def missing() -> str | None:
    """The reason why there are no charts; None where there are charts."""
    return None if importlib.util.find_spec("matplotlib") else "pip install 'edgeres[report]' draws charts here"


def latency_chart(latency: dict[str, Any]) -> Html:
    """Two histograms over one axis that starts at zero, so that lengths can be compared."""
    histogram = latency["histogram"]
    width = histogram["bin_ms"]

    def draw(axes: Axes) -> None:
        for name, colour in (("fp32", FP32), ("int8", INT8)):
            counts = histogram[name]
            middles = [width * (i + 0.5) for i in range(len(counts))]
            shares = [100 * count / sum(counts) for count in counts]
            label = f"{name.upper()}, p50 {latency[name]['p50_ms']:.3g} ms"
            axes.bar(middles, shares, width, color=colour, label=label)
        axes.set_xlim(0, width * len(histogram["fp32"]))
        axes.set_xlabel("milliseconds per inference; the last bin holds all longer ones")
        axes.set_ylabel("per cent")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)

    said = "; ".join(
        f"{name.upper()}: half within {latency[name]['p50_ms']:.3g} ms, 99 % within {latency[name]['p99_ms']:.3g} ms"
        for name in ("fp32", "int8")
    )
    return _chart("latency", said, draw, height_in=2.3)


def interval_chart(
    rows: Sequence[tuple[str, float, Sequence[float]]], limit: float | None, unit: str, name: str
) -> Html:
    """Figures with their intervals, one per line, and the limit."""

    def draw(axes: Axes) -> None:
        for i, (_, value, (low, high)) in enumerate(rows):
            axes.plot([low, high], [i, i], color=INT8, linewidth=2.5, solid_capstyle="butt")
            axes.plot([value], [i], "o", color=INT8, markersize=6)
        if limit is not None:
            axes.axvline(limit, color=FAIL, linewidth=1.5, linestyle="--")
            axes.annotate("limit", (limit, -0.5), (3, 0), textcoords="offset points", va="top", color=FAIL)
        axes.set_yticks(range(len(rows)), [_words(row[0]) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.75)
        axes.axvline(0, color=SOFT, linewidth=0.8)
        axes.set_xlabel(unit)
        axes.grid(axis="y", visible=False)

    told = "; ".join(f"{label} {value:.2f}, {low:.2f} to {high:.2f}" for label, value, (low, high) in rows)
    return _chart(name, f"{unit}, with 95 % intervals: {told}", draw, height_in=0.75 + 0.35 * len(rows))


def class_chart(rows: Sequence[tuple[str, float]]) -> Html:
    """Change of accuracy by class, the largest first; losses are on the left."""

    def draw(axes: Axes) -> None:
        colours = [FAIL if change < 0 else PASS for _, change in rows]
        axes.barh(range(len(rows)), [change for _, change in rows], 0.62, color=colours)
        axes.set_yticks(range(len(rows)), [_words(name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.axvline(0, color=SOFT, linewidth=0.8)
        axes.set_xlabel("top-1 of INT8 against FP32, points")
        axes.grid(axis="y", visible=False)

    told = ", ".join(f"{name} {change:+.1f}" for name, change in rows)
    return _chart("classes", f"Change of top-1 by class in points: {told}", draw, height_in=0.6 + 0.24 * len(rows))


def depth_chart(anatomy: dict[str, Any]) -> Html:
    """SQNR of every layer along the depth of the network; a line connects the residual stream."""

    def draw(axes: Axes) -> None:
        for (name, graph), colour in zip(anatomy.items(), (INT8, OTHER), strict=False):
            points = [(i, layer) for i, layer in enumerate(graph["layers"]) if layer["sqnr_db"] is not None]
            stream = [(i, layer["sqnr_db"]) for i, layer in points if layer["stream"]]
            others = [(i, layer["sqnr_db"]) for i, layer in points if not layer["stream"]]
            axes.plot(*_columns(others), "o", color=colour, markersize=3.0, alpha=0.55)
            axes.plot(*_columns(stream), "-s", color=colour, markersize=4.0, linewidth=1.8, label=f"{name} graph")
        axes.set_xlabel("layers in order; squares are the residual stream")
        axes.set_ylabel("SQNR, dB")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)

    ends = []
    for name, graph in anatomy.items():
        stream = [layer["sqnr_db"] for layer in graph["layers"] if layer["stream"] and layer["sqnr_db"] is not None]
        if stream:
            ends.append(f"{name} graph from {stream[0]:.1f} to {stream[-1]:.1f} dB, least {min(stream):.1f} dB")
    return _chart("depth", f"SQNR of the residual stream along the depth: {'; '.join(ends)}", draw, height_in=2.6)


def point_chart(plot: dict[str, Any], name: str) -> Html:
    """Points of several series, with the line y = x where ``plot`` asks for it."""

    def draw(axes: Axes) -> None:
        for number, one in enumerate(plot["series"]):
            style: Any = {"marker": "os"[number % 2], "linestyle": "none", "markersize": 3.2 - number, "alpha": 0.75}
            axes.plot(one["x"], one["y"], color=_COLOUR_OF[one["colour"]], label=_words(one["name"]), **style)
        if plot["diagonal"]:
            ends = [value for one in plot["series"] for value in (*one["x"], *one["y"])]
            axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=SOFT, linewidth=0.8)
        _labelled(axes, plot)

    return _chart(name, plot["said"], draw, height_in=3.2)


def bar_chart(plot: dict[str, Any], name: str) -> Html:
    """Bars of equal width, those of several series beside each other."""

    def draw(axes: Axes) -> None:
        series = plot["series"]
        for number, one in enumerate(series):
            step = (one["x"][1] - one["x"][0]) if len(one["x"]) > 1 else 1.0
            width = 0.9 * step / len(series)
            middles = [x + (number - (len(series) - 1) / 2) * width for x in one["x"]]
            axes.bar(middles, one["y"], width, color=_COLOUR_OF[one["colour"]], label=_words(one["name"]))
        axes.grid(axis="x", visible=False)
        _labelled(axes, plot)

    return _chart(name, plot["said"], draw, height_in=2.3)


def _labelled(axes: Axes, plot: dict[str, Any]) -> None:
    axes.set_xlabel(_words(plot["x"]))
    axes.set_ylabel(_words(plot["y"]))
    if len(plot["series"]) > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=2)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _words(label: str) -> str:
    """A label that fits beside a chart and holds nothing that cannot be drawn."""
    shown = "".join(character if character.isprintable() else "?" for character in label)
    return shown if len(shown) <= 22 else f"{shown[:20]}..."


def _chart(name: str, said: str, draw: Callable[[Axes], None], height_in: float) -> Html:
    """A figure with words for those who do not see it; nothing where matplotlib is missing."""
    if missing():
        return Html()
    import matplotlib
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    stream = io.StringIO()
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph its font lacks; the page has fonts of its own
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return el("div", Html(_inline(stream.getvalue(), name)), class_="chart", role="img", aria_label=said)


def _inline(svg: str, name: str) -> str:
    """An SVG file as a part of a page: names of its own, colours and fonts of the page, nothing to fetch."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", svg, count=5)
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', lambda match: f"{match[1].replace('xlink:', '')}{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for sentinel, colour in _COLOURS.items():
        svg = svg.replace(sentinel, colour)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
