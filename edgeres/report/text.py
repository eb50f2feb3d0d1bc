"""Figures as text, the same in the terminal and on the page. None becomes a dash."""

from __future__ import annotations

from typing import Any

from edgeres.judge.document import look_up, why_missing

Report = dict[str, Any]

NOT_MEASURED = "-"


def percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f} %"


def points(value: float | None) -> str:
    """Percentage points."""
    return NOT_MEASURED if value is None else f"{value:.2f} pp"


def decibels(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.1f} dB"


def times(value: float | None) -> str:
    """A ratio."""
    return NOT_MEASURED if value is None else f"{value:.2f}x"


def significant(value: float | None) -> str:
    """Three significant digits without exponents: 0.412, 9.98, 33.9, 1,284."""
    if value is None:
        return NOT_MEASURED
    size = abs(float(f"{value:.3g}"))  # rounded first: 9.996 is 10.0
    digits = next((d for d, limit in ((3, 1.0), (2, 10.0), (1, 100.0)) if size < limit), 0)
    return f"{value:,.{digits}f}"


def megabytes(value: int | None) -> str:
    """Decimal megabytes (10^6 bytes)."""
    return NOT_MEASURED if value is None else f"{significant(value / 1e6)} MB"


def interval(limits: list[float] | None) -> str:
    return NOT_MEASURED if limits is None else f"{limits[0]:.2f} to {limits[1]:.2f}"


def observed(verdict: dict[str, Any]) -> str:
    value = verdict["observed"]
    return "not measured" if value is None else f"{value:.3g} {verdict['gate']['unit']}"


def verdict_word(verdict: dict[str, Any]) -> str:
    """``pass``, ``unsure`` where an uncertain gate does not fail, or ``FAIL``."""
    if verdict["outcome"] == "unsure" and verdict["passed"]:
        return "unsure"
    return "pass" if verdict["passed"] else "FAIL"


def check_word(check: dict[str, Any]) -> str:
    """``pass``, ``FAIL``, ``allowed``, or ``unsure`` where the check could not be made."""
    if check["outcome"] == "failed":
        return "allowed" if check["allowed"] else "FAIL"
    return "pass" if check["outcome"] == "passed" else "unsure"


def verdict_line(report: Report) -> list[tuple[str, str]]:
    """Titles and reasons of all gates and checks that did not pass, the worst first."""
    told = [(verdict_word(v), v["title"], v["reason"]) for v in report["verdicts"]]
    told += [(check_word(c), c["title"], c["reason"]) for c in report["checks"] if c["outcome"] == "failed"]
    order = ("FAIL", "unsure", "allowed")
    return [(title, reason) for wanted in order for word, title, reason in told if word == wanted]


def unreadable(data: dict[str, Any]) -> str:
    """The number of unreadable images of a source as text; "" where all could be read."""
    names = data["unreadable"]
    return f"{len(names):,} unreadable image{'s' * (len(names) > 1)} left out" if names else ""


def headline(report: Report) -> str:
    model, calibration = report["model"], report["calibration"]
    line = f"edgeres {report['edgeres']}: {model['name']} ({model['weights']}) to INT8"
    if calibration["method"] is None:
        return line
    return f"{line}, {calibration['method']} ranges from {calibration['images']:,} images"


def findings(report: Report) -> list[tuple[str, str]]:
    """Comparisons of INT8 with FP32: name, and figure with interval or the reason why it is missing."""
    figures = [
        ("top-1 drop", "accuracy.drop_pp", _drop),
        ("agreement", "accuracy.agreement", _agreement),
        ("logit SQNR", "accuracy.logit_sqnr_db", _sqnr),
        ("speedup", "latency.speedup", _speedup),
    ]
    told = [
        (name, words(report) if look_up(path, report) is not None else f"not measured: {why_missing(path, report)}")
        for name, path, words in figures
    ]
    told += [(step["name"], _step(step)) for step in report["refinement"]]
    told += [("noise", what) for what in report["latency"]["noise"]]
    accuracy = report["accuracy"]
    told += [(f"{name} graph", _graph(graph, name == accuracy["graph"])) for name, graph in accuracy["graphs"].items()]
    return told


def _step(step: dict[str, Any]) -> str:
    change = f"{decibels(step['before_db'])} to {decibels(step['after_db'])} on held-back images, {step['style']} graph"
    return change if step["kept"] else f"left out: {step['note']} ({change})"


def _drop(report: Report) -> str:
    a = report["accuracy"]
    pairs = f"{a['lost']} lost, {a['gained']} gained, McNemar p = {a['mcnemar_p']:.2g}"
    return f"{points(a['drop_pp'])}, 95 % interval {interval(a['drop_pp_ci95'])} ({pairs})"


def _agreement(report: Report) -> str:
    a = report["accuracy"]
    return f"{percent(a['agreement'])}, 95 % interval {interval(a['agreement_ci95'])}"


def _sqnr(report: Report) -> str:
    return decibels(report["accuracy"]["logit_sqnr_db"])


def _speedup(report: Report) -> str:
    m = report["latency"]
    return f"{times(m['speedup'])}, 95 % interval {interval(m['speedup_ci95'])}, on {m['backend']}, {m['scope']}"


def _graph(graph: dict[str, Any], is_headline: bool) -> str:
    if is_headline:
        return f"the INT8 above; {graph['note'] or graph['runner']}"
    words = f"agreement {percent(graph['agreement'])}"
    if graph["drop_pp"] is not None:
        words = f"top-1 {percent(graph['top1'])}, drop {points(graph['drop_pp'])}, {words}"
    return f"{words}; {graph['note'] or graph['runner']}"
