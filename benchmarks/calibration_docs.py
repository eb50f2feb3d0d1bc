"""Table and plot of the JSON that :mod:`calibration` writes.

calibration.json -> calibration.svg beside it, and the table between two comments of calibration.md beside it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import link, put, save_plot

BEGIN = "<!-- calibration table: written by benchmarks/calibration.py, change nothing between these comments -->"
END = "<!-- end of calibration table -->"
PAGE = "calibration.md"

NOTES = """\
Passes: wall time of the whole call, from graph and images to a quantized graph, divided by that of a plain ONNX Runtime
pass over the same images in the same process; in brackets calibration alone, where the tool allows to measure it.
Memory: peak of the process, with interpreter, libraries and graph. Each further image: passes per image between the
smallest and the largest count, without fixed costs.
"""

Json = Mapping[str, Any]
# Okabe and Ito's colours, distinct for every kind of colour vision; shapes and dashes repeat the distinction.
LINES = {
    "edgeres, graph for TensorRT": ("#0072B2", "o", "-"),
    "edgeres, both graphs": ("#0072B2", "o", ":"),
    "ONNX Runtime MinMax": ("#E69F00", "s", "-"),
    "ONNX Runtime Percentile": ("#E69F00", "s", ":"),
    "Model Optimizer max": ("#D55E00", "D", "-"),
    "Model Optimizer entropy": ("#D55E00", "D", ":"),
}


def write(path: Path) -> list[str]:
    """Write plot and table of the figures in ``path``; returns messages on what was written and what was not.

    Raises:
        SystemExit: the file cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read ({error}); benchmarks/calibration.py --out writes it") from None
    plot = path.with_suffix(".svg")
    drawn = save_plot(plot, lambda: _draw(found))
    content = link("Time and memory of calibration", plot) + tables(found)
    return [drawn, put(path.with_name(PAGE), BEGIN, END, content)]


def tables(found: Json) -> str:
    """Markdown: one table per model, tools in rows, numbers of images in columns."""
    lines = [line for model in dict.fromkeys(row["model"] for row in found["rows"]) for line in _table(model, found)]
    skipped = [f"{tool} was skipped: {reason}.\n" for tool, reason in found["skipped"].items()]
    return "\n".join([*lines, *skipped, NOTES])


def _table(model: str, found: Json) -> Iterator[str]:
    rows = {(row["tool"], row["images"]): row for row in found["rows"] if row["model"] == model}
    counts = sorted({images for _, images in rows})
    yield f"**{model}**, 224x224, {found['environment']['cores']} cores."
    yield ""
    yield f"| images | {' | '.join(map(str, counts))} | each further image |"
    yield "|---|" + "---|" * (len(counts) + 1)
    for tool in dict.fromkeys(tool for tool, _ in rows):
        cells = (_cell(rows[tool, count]) if (tool, count) in rows else "" for count in counts)
        measured = [rows[tool, count] for count in counts if "passes" in rows.get((tool, count), {})]
        yield f"| {tool} | {' | '.join(cells)} | {_slope(measured)} |"
    yield ""


def _slope(rows: Sequence[Json]) -> str:
    """Passes per image between the smallest and the largest count, so that fixed costs drop out."""
    first, *_, last = rows if len(rows) > 1 else (*rows, *rows)
    more = last["forward_seconds"] - first["forward_seconds"]
    return f"{(last['seconds'] - first['seconds']) / more:.2f}" if more > 0 else ""


def _cell(row: Json) -> str:
    if "expected_bytes" in row:
        return f"not run: about {row['expected_bytes'] / 1e9:.0f} GB"
    alone = row["calibration_passes"]
    brackets = "" if alone is None else f" ({alone:.2f})"
    return f"{row['passes']:.2f}{brackets}, {row['peak_bytes'] / 1e9:.2f} GB"


def _draw(found: Json) -> Any:
    """Time above, memory below; models in columns."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in found["rows"]))
    figure = Figure(figsize=(1.5 + 3.4 * len(models), 5.6), layout="constrained")
    axes = figure.subplots(2, len(models), squeeze=False, sharex=True, sharey="row")
    for column, model in enumerate(models):
        for line, (key, unit) in enumerate((("passes", 1.0), ("peak_bytes", 1e9))):
            axis = axes[line][column]
            for tool, (colour, shape, dash) in LINES.items():
                rows = [r for r in found["rows"] if (r["model"], r["tool"]) == (model, tool) and key in r]
                points = sorted((row["images"], row[key] / unit) for row in rows)
                axis.plot(*zip(*points, strict=True), color=colour, marker=shape, linestyle=dash, label=tool) if (
                    points
                ) else None
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.grid(True, color="#E3E3E3", linewidth=0.7)
            axis.set_axisbelow(True)
        axes[0][column].set_title(model)
        axes[1][column].set_xlabel("calibration images")
        counts = sorted({row["images"] for row in found["rows"]})
        axes[1][column].set_xticks(counts, [str(count) for count in counts])
    for axis, label in zip(axes[:, 0], ("time, in plain forward passes", "peak memory, GB"), strict=True):
        axis.set_ylabel(label)
        axis.yaxis.set_major_formatter("{x:g}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure
