"""Lists the differences of two builds as plain JSON: options, scales, placements, accuracy, latency and sizes.

Figures are compared by the same code as in ``verify --baseline``: image by image where both were measured on the same
images, latency in units of FP32's, by default only on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from edgeres.judge.build_figures import BuildFigures, figures_of
from edgeres.judge.causes import causes
from edgeres.judge.document import Json, Section
from edgeres.judge.regression import DROP, regression, was_busy
from edgeres.judge.sides import Side
from edgeres.verify.answers import REFERENCE
from edgeres.verify.statistics import proportion_percent

SCHEMA = 1
CHANGED_PERCENT = 10.0  # a scale counts as changed above this
_TIMES = ("p50_ms", "p99_ms")


def compare_builds(before: Side, after: Side, *, any_machine: bool = False) -> Json:
    """List all differences; figures that cannot be compared are null, and ``reasons`` says why.

    Args:
        any_machine: compare latency between different machines, too.
    """
    first, second = figures_of(before.report, "the first"), figures_of(after.report, "the second")
    regressed = regression(first, second, any_machine=any_machine)
    since, scales, placements = regressed.content, _scales(before, after), _placements(before, after)
    found: Json = {
        "before": _head(before),
        "after": _head(after),
        "same_images": since["same_images"],
        "changed": since["changed"],
        "files": _files(before.files, after.files),
        "scales": scales.content or None,
        "placements": placements.content if not placements.reasons else None,
        "accuracy": _accuracy(before.report, after.report, since, _same_answers(first, second, since)),
        "latency": _latency(before.report, after.report, since),
        "sizes": _sizes(before.report["sizes"], after.report["sizes"]),
        "reasons": {
            **{name or "baseline": why for name, why in regressed.reasons.items()},
            **scales.reasons_below("scales"),
            **placements.reasons_below("placements"),
        },
    }
    return {"schema": SCHEMA, "causes": causes(found), **found}


def _head(side: Side) -> Json:
    report = side.report
    validation = report["data"]["validation"]
    return {
        "name": side.name,
        "model": report["model"]["name"],
        "created": report["created"],
        "outcome": report["outcome"],
        "validation": validation["description"] if validation else None,
        "images": report["accuracy"]["images"],
    }


def _files(before: Mapping[str, str], after: Mapping[str, str]) -> Json:
    """Names of the graphs and engines, by whether they are the same, changed, gone or new."""
    both = [name for name in after if name in before]
    return {
        "same": [name for name in both if before[name] == after[name]],
        "changed": [name for name in both if before[name] != after[name]],
        "gone": [name for name in before if name not in after],
        "new": [name for name in after if name not in before],
    }


def _widths(side: Side, style: str, *, graphs: bool) -> Mapping[str, float] | None:
    """The scale of each tensor's codes, or the width of its range, which is proportional to the scale."""
    if graphs:
        graph = (side.graphs or {}).get(style)
        return graph.scales if graph else None
    ranges = (side.ranges or {}).get(style)
    return {name: high - low for name, (low, high) in ranges.items()} if ranges else None


def _scales(before: Side, after: Side) -> Section:
    """Scales of the tensors that are quantized in both, by graph, the largest change first."""
    graphs = before.graphs is not None and after.graphs is not None
    content, reasons = {}, {}
    for style in _styles(before, after):
        old, new = _widths(before, style, graphs=graphs), _widths(after, style, graphs=graphs)
        if old is None or new is None:
            reasons[style] = f"{(before if old is None else after).name} has no {style} graph"
            continue
        pairs = [(name, old[name], new[name]) for name in new if name in old]
        rows = [{"tensor": name, "before": a, "after": b, "ratio": b / a} for name, a, b in pairs if a > 0 and b > 0]
        rows.sort(key=lambda row: -abs(math.log(row["ratio"])))  # type: ignore[arg-type]
        changed = sum(abs(math.log(row["ratio"])) > math.log1p(CHANGED_PERCENT / 100) for row in rows)  # type: ignore[arg-type]
        of = "graph" if graphs else "calibration.json"
        content[style] = {"of": of, "tensors": len(rows), "changed": changed, "rows": rows}
    if not content:
        reasons[""] = _why("ranges" if not graphs else "graphs", before, after)
    return Section(content, reasons)


def _placements(before: Side, after: Side) -> Section:
    """The tensors that gained or lost their Q/DQ pair, and what is newly left in float, by graph."""
    if before.graphs is None or after.graphs is None:
        return Section({}, {"": _why("graphs", before, after)})
    content = {}
    for style in (style for style in after.graphs if style in before.graphs):
        old, new = before.graphs[style], after.graphs[style]
        content[style] = {
            "both": len(old.scales.keys() & new.scales.keys()),
            "gained": [name for name in new.scales if name not in old.scales],
            "lost": [name for name in old.scales if name not in new.scales],
            "left_in_float": [
                {"what": what, "reason": reason} for what, reason in new.skipped.items() if what not in old.skipped
            ],
        }
    return Section(content)


def _styles(before: Side, after: Side) -> Iterable[str]:
    """Styles of the graphs of both sides; calibration.json may have styles without a graph, which are left out."""
    reported = {*before.report["accuracy"]["graphs"], *after.report["accuracy"]["graphs"]}
    known = {*(before.graphs or before.ranges or {}), *(after.graphs or after.ranges or {})}
    return sorted(known & reported if reported else known)


def _why(part: str, before: Side, after: Side) -> str:
    reasons = (side.reasons[part] for side in (before, after) if part in side.reasons)
    return next(reasons, "the two have no graph in common")


def _accuracy(before: Json, after: Json, since: Json, same: Mapping[str, Json]) -> Json:
    old, new = before["accuracy"], after["accuracy"]

    def figures(one: Json, other: Json, row: Json | None) -> Json:
        both = {side: {key: graph.get(key) for key in _FIGURES} for side, graph in (("before", one), ("after", other))}
        return both | {f"since_{key}": row[key] if row else None for key in DROP}

    graphs = {}
    for name in (name for name in new["graphs"] if name in old["graphs"]):
        row = since["graphs"][name]
        graphs[name] = figures(old["graphs"][name], new["graphs"][name], row) | {
            **{key: row[key] for key in ("sqnr_loss_db", "sqnr_loss_db_ci95")},
            **same.get(name, _NOT_THE_SAME),
            "fallen_classes": _fallen(row["classes"]),
        }
    return {
        "interval_percent": since["interval_percent"],
        "fp32": figures(old["fp32"], new["fp32"], since["fp32"]) | same.get(REFERENCE, _NOT_THE_SAME),
        "graphs": graphs,
        "missing_classes": [row["name"] for row in since["missing_classes"]],
    }


_FIGURES = ("top1", "top1_ci95", "drop_pp", "drop_pp_ci95", "agreement", "agreement_ci95", "logit_sqnr_db")
_NOT_THE_SAME: Json = {"same_answers": None, "same_answers_ci95": None}


def _same_answers(before: BuildFigures, after: BuildFigures, since: Json) -> dict[str, Json]:
    """Per cent of the images that both builds put into the same class, by candidate; empty on other images."""
    if not since["same_images"] or before.table is None or after.table is None:
        return {}
    old, new, shares = before.table.answers, after.table.answers, {}
    for name in (name for name in new if name in old):
        share = proportion_percent(int((old[name] == new[name]).sum()), len(new[name]))
        shares[name] = {"same_answers": share.value, "same_answers_ci95": [share.low, share.high]}
    return shares


def _fallen(classes: Json | None) -> list[Json]:
    """Classes whose loss is significant."""
    significant = [row for row in classes["falling"] if row["p_holm"] < classes["alpha"]] if classes else []
    return [{"name": row["name"], "drop_pp": row["drop_pp"], "p": row["p_holm"]} for row in significant]


def _latency(before: Json, after: Json, since: Json) -> Json:
    """Latency of both sides, and the change of INT8's in units of FP32's, where they are comparable."""

    def figures(report: Json) -> Json:
        latency = report["latency"]
        return {
            "machine": report["environment"].get("processor"),
            **{key: latency[key] for key in ("scope", "speedup", "speedup_ci95")},
            **{key: latency.get(key) for key in ("cpu_speedup", "measurable")},
            "crowded": None if latency["speedup"] is None else was_busy(latency),
            **{precision: {key: latency[precision][key] for key in _TIMES} for precision in ("fp32", "int8")},
        }

    slowdown = {key: since[key] for key in ("slowdown_percent", "slowdown_percent_ci95")}
    return {"before": figures(before), "after": figures(after), **slowdown}


def _sizes(before: Json, after: Json) -> list[Json]:
    """Bytes of the graphs and engines of both sides, by name."""
    old, new = ({"fp32 graph": sizes["fp32_bytes"], **sizes["deployed_bytes"]} for sizes in (before, after))
    rows = ((name, old.get(name), new.get(name)) for name in dict.fromkeys((*old, *new)))
    return [{"name": name, "before": a, "after": b, "ratio": b / a if a and b else None} for name, a, b in rows]
