"""Table and plot of the JSON that :mod:`accuracy` writes.

accuracy.json -> accuracy.svg beside it, and the table between two comments of quantization.md beside it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import link, put, save_plot

BEGIN = "<!-- accuracy table: written by benchmarks/accuracy.py, change nothing between these comments -->"
END = "<!-- end of accuracy table -->"
PAGE = "quantization.md"

NOTES = """\
Agreement with FP32 and SQNR of the logits on ONNX Runtime. Off: float arithmetic between Q/DQ pairs, as TensorRT
computes; on: ONNX Runtime's integer kernels. Cost: quantizing with calibration, in plain FP32 forward passes over
the calibration images, measured alternately, and in seconds.
"""

Json = Mapping[str, Any]
# Okabe and Ito's colours, distinct for every kind of colour vision; shapes repeat the distinction.
MARKS = {"ONNX Runtime": ("#E69F00", "s"), "Model Optimizer": ("#D55E00", "D"), "edgeres": ("#0072B2", "o")}
OTHER = ("#000000", "^")
METRICS = {"agreement": "agreement with FP32, %", "logit_sqnr_db": "logit SQNR, dB"}


def read(path: Path) -> dict[str, Any]:
    """The figures of earlier runs; no models where the file has another form.

    Raises:
        SystemExit: the file cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read ({error}); benchmarks/accuracy.py --out writes it") from None
    return document if isinstance(document, dict) and "models" in document else {"models": {}}


def write(path: Path) -> list[str]:
    """Write plot and table of the figures in ``path``; returns messages on what was written and what was not.

    Raises:
        SystemExit: the file holds no figures.
    """
    found = read(path)
    if not found["models"]:
        raise SystemExit(f"{path}: holds no figures; benchmarks/accuracy.py --out {path} measures them")
    plot = path.with_suffix(".svg")
    drawn = save_plot(plot, lambda: _draw(found["models"]))
    content = link("Agreement and SQNR of every graph", plot) + tables(found)
    return [drawn, put(path.with_name(PAGE), BEGIN, END, content)]


def tables(found: Json) -> str:
    """Markdown: one table per model; each graph with ONNX Runtime's integer optimizations off and on."""
    lines = [line for name, model in found["models"].items() for line in _table(name, model)]
    return "\n".join([*lines, NOTES])


def _table(name: str, model: Json) -> Iterator[str]:
    rows = model["results"]
    images = f"on {model['validation']}; calibrated on {model['calibration']}"
    yield f"**{name}** {images}; FP32 top-1 {rows[0]['fp32_top1']:.2f} %."
    yield ""
    yield "| graph | off: agreement, SQNR | top-1 drop, 95 % interval | on: agreement, SQNR | top-1 drop | cost |"
    yield "|---|---|---|---|---|---|"
    yield from (_row(row) for row in rows)
    yield ""
    for peer, reason in model.get("skipped", {}).items():
        yield f"{peer} was skipped: {reason}."
        yield ""


def _row(row: Json) -> str:
    off, on, cost = row["off"], row["on"], row.get("cost")
    low, high = off["drop_pp_ci95"]
    price = f"{_number(cost['forward_passes'])} passes, {_number(cost['seconds'])} s" if cost else ""
    cells = (
        row["graph"],
        f"{off['agreement']:.2f} %, {off['logit_sqnr_db']:.1f} dB",
        f"{off['drop_pp']:+.2f} pp, {low:+.2f} to {high:+.2f}",
        f"{on['agreement']:.2f} %, {on['logit_sqnr_db']:.1f} dB",
        f"{on['drop_pp']:+.2f} pp",
        price,
    )
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Two decimals below 10, one below 100, none above."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _draw(models: Json) -> Any:
    """Metrics in rows, models in columns; one line per graph for TensorRT, in the order of measurement."""
    from matplotlib.figure import Figure

    graphs = list(
        dict.fromkeys(row["graph"] for m in models.values() for row in m["results"] if row["style"] == "tensorrt")
    )
    figure = Figure(figsize=(2.2 + 3.6 * len(models), 1.2 + 2 * 0.22 * len(graphs)), layout="constrained")
    axes = figure.subplots(len(METRICS), len(models), squeeze=False, sharey=True)
    for line, (metric, label) in enumerate(METRICS.items()):
        for axis, (name, model) in zip(axes[line], models.items(), strict=True):
            rows = [row for row in model["results"] if row["style"] == "tensorrt"]
            _draw_panel(axis, rows, graphs, metric)
            axis.set_xlabel(label)
            axis.set_title(f"{name}: {model['images']:,} images" if line == 0 else "")
    axes[0][0].set_ylim(len(graphs) - 0.4, -0.6)
    handles = _legend(models)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3 * len(models)), frameon=False)
    return figure


def _draw_panel(axis: Any, rows: Sequence[Json], graphs: Sequence[str], metric: str) -> None:
    axis.set_yticks(range(len(graphs)), graphs)
    axis.tick_params(axis="y", length=0)
    axis.grid(True, color="#E3E3E3", linewidth=0.7)
    axis.set_axisbelow(True)
    peers = [row["off"][metric] for row in rows if row["by"] != "edgeres"]
    if peers:
        axis.axvline(max(peers), color="#767676", linewidth=1, linestyle=(0, (4, 3)))
    for row in rows:
        colour, shape = MARKS.get(row["by"], OTHER)
        place, off, on = graphs.index(row["graph"]), row["off"], row["on"]
        axis.plot([off[metric], on[metric]], [place, place], color=colour, linewidth=1)
        axis.plot(on[metric], place, shape, color=colour, markerfacecolor="white", markersize=6)
        axis.plot(off[metric], place, shape, color=colour, markersize=6)


def _legend(models: Json) -> list[Any]:
    from matplotlib.lines import Line2D

    present = {row["by"] for model in models.values() for row in model["results"]}
    handles = [
        Line2D([], [], color=colour, marker=shape, linestyle="", label=by)
        for by, (colour, shape) in MARKS.items()
        if by in present
    ]
    for label, face in (("integer kernels off", "#555555"), ("on", "white")):
        handles.append(Line2D([], [], color="#555555", marker="o", markerfacecolor=face, linestyle="", label=label))
    handles.append(Line2D([], [], color="#767676", linestyle=(0, (4, 3)), label="best peer, off"))
    return handles
