"""The report's figures as OpenMetrics text: GitLab shows how a merge request changes them, Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

from edgeres.report.text import Report
from edgeres.words import escaped


def render_metrics(report: Report) -> str:
    """The whole text; a figure that was not measured is left out."""
    lines = []
    for name, told, samples in _families(report):
        known = [(labels, value) for labels, value in samples if value is not None]
        if known:
            lines += [f"# TYPE {name} gauge", f"# HELP {name} {told}"]
            lines += [f"{name}{{{_labels(report, labels)}}} {float(value)!r}" for labels, value in known]
    return "\n".join([*lines, "# EOF\n"])


_Samples = list[tuple[dict[str, str], float | None]]


def _families(report: Report) -> Iterator[tuple[str, str, _Samples]]:
    """Name, words and samples of each figure."""
    a, latency, sizes = report["accuracy"], report["latency"], report["sizes"]
    both = ("fp32", "int8")
    yield "edgeres_passed", "1: the run passed, 0: it failed.", [({}, report["passed"])]
    yield (
        "edgeres_top1_percent",
        "Images whose class is the first of the answers.",
        [({"precision": one}, a[one]["top1"]) for one in both],
    )
    yield "edgeres_top1_drop_points", "Top-1 of FP32 less that of INT8.", [({}, a["drop_pp"])]
    yield "edgeres_agreement_percent", "Images that both put into the same class.", [({}, a["agreement"])]
    yield "edgeres_logit_sqnr_decibels", "Signal to noise of the logits.", [({}, a["logit_sqnr_db"])]
    yield (
        "edgeres_latency_p50_milliseconds",
        "Median time of an inference.",
        [({"precision": one}, latency[one]["p50_ms"]) for one in both],
    )
    yield "edgeres_speedup_ratio", "Median of FP32 over that of INT8.", [({}, latency["speedup"])]
    yield (
        "edgeres_size_bytes",
        "Size of the network's file.",
        [({"precision": one}, sizes[f"{one}_bytes"]) for one in both],
    )


def _labels(report: Report, labels: dict[str, str]) -> str:
    told = {"model": report["model"]["name"], **labels}
    return ",".join(f'{key}="{_value(value)}"' for key, value in told.items())


def _value(text: str) -> str:
    return escaped(text, keep="\n").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
