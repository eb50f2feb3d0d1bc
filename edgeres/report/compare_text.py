"""Differences between builds as text, the same in the terminal and on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator

from edgeres.judge.document import Json, not_measurable, titled, why_missing
from edgeres.report.figures import NOT_MEASURED, interval, megabytes, percent, points, significant, times

SHORT = 64


def title(found: Json) -> str:
    return f"{found['before']['name']} to {found['after']['name']}"


def graphs(found: Json) -> Iterator[tuple[str, Json]]:
    """FP32 and the INT8 graphs that both builds have, by name."""
    accuracy = found["accuracy"]
    yield "FP32", accuracy["fp32"]
    yield from accuracy["graphs"].items()


def with_interval(value: float | None, limits: list[float] | None) -> str:
    """``-0.20 (-0.73 to 0.18)``; the unit is in the table's header."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.2f}" if limits is None else f"{value:.2f} ({interval(limits)})"


def since(found: Json) -> list[tuple[str, str]]:
    """Losses of the second build against the first: name and text."""
    told = []
    for name, row in graphs(found):
        path = "fp32" if name == "FP32" else f"graphs.{name}"
        told.append((f"{name} lost", _lost(found, row, path)))
        for fall in row.get("fallen_classes", ()):
            told.append(
                ("class fell", f"{fall['name']} by {points(fall['drop_pp'])} (p = {fall['p']:.2g}), {titled(name)}")
            )
    return [*told, ("latency", _latency(found)), ("speedup", _speedup(found))]


def _lost(found: Json, row: Json, path: str) -> str:
    if row["since_drop_pp"] is None:
        return f"unknown: {why_missing(path, found)}"
    level = found["accuracy"]["interval_percent"]
    words = f"{points(row['since_drop_pp'])}, {level:g} % interval {interval(row['since_drop_pp_ci95'])}"
    if row["since_lost"] is not None:
        words += f" ({row['since_lost']} lost, {row['since_gained']} gained of {row['since_total']:,})"
    if row["same_answers"] is not None:
        words += f"; {percent(row['same_answers'])} same answers, {interval(row['same_answers_ci95'])}"
    if row.get("sqnr_loss_db") is not None:
        low, high = row["sqnr_loss_db_ci95"]
        words += f"; logit SQNR {0.0 - row['sqnr_loss_db']:+.1f} dB, {interval([0.0 - high, 0.0 - low])}"
    return words


def _latency(found: Json) -> str:
    slower = found["latency"]["slowdown_percent"]
    if slower is None:
        return f"not compared: {why_missing('slowdown_percent', found)}"
    low, high = found["latency"]["slowdown_percent_ci95"]
    sure = "" if low > 0 or high < 0 else ", so it may be none"
    more = f"{abs(slower):.1f} % {'more' if slower > 0 else 'less'} time in units of FP32"
    crowded = any(found["latency"][side]["crowded"] for side in ("before", "after"))
    why = "; the machine was busy in one run, so the interval is wide" if crowded else ""
    return f"INT8 takes {more}, 95 % interval {low:.1f} to {high:.1f} %{sure}{why}"


def _speedup(found: Json) -> str:
    sides = [found["latency"][side] for side in ("before", "after")]
    doubts = {name: not_measurable(side) for name, side in zip(("before", "after"), sides, strict=True)}
    if any(doubts.values()):
        return "; ".join(f"{name} {doubt}" for name, doubt in doubts.items() if doubt)
    told = [
        f"{times(side['speedup'])} ({' to '.join(significant(side[p]['p50_ms']) for p in ('fp32', 'int8'))} ms)"
        for side in sides
    ]
    return " to ".join(told) if all(side["speedup"] is not None for side in sides) else "not measured in both"


def ratio(value: float) -> str:
    """A ratio with three significant digits: 0.0967x, 1.70x, 12.4x."""
    return f"{value:#.3g}".rstrip(".") + "x"


def scale(value: float) -> str:
    return f"{value:.4g}"


def size(row: Json) -> tuple[str, str, str, str]:
    times_ = NOT_MEASURED if row["ratio"] is None else ratio(row["ratio"])
    return row["name"], megabytes(row["before"]), megabytes(row["after"]), times_


def changed(found: Json) -> Iterator[tuple[str, str, str]]:
    """Settings that differ between the builds; for a table of values, only the values that differ."""
    for row in found["changed"]:
        before, after = row["before"], row["after"]
        if isinstance(before, dict) and isinstance(after, dict):
            for name in dict.fromkeys((*before, *after)):
                if before.get(name) != after.get(name):
                    yield f"{row['what']}, {name}", short(before.get(name)), short(after.get(name))
        else:
            yield row["what"], short(before), short(after)


def short(value: object) -> str:
    text = NOT_MEASURED if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]  # a digest
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."
