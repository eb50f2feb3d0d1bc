"""Helpers for report documents: plain JSON from which every page, table and file is rendered.

The shape never changes: a figure that was not measured is null, and ``reasons`` says why, under the figure's dotted
path or that of a group it belongs to (``"accuracy": "the validation source has no labels"``).
``edgeres/report/schema.json`` describes the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeres.words import escaped

Json = dict[str, Any]

# Largest factor between the speedup by the clock and that in processor time. On a machine without load they differ by
# 2 % and less; a process that takes turns with the slower graph alone makes it three times as large by the clock.
MAX_FACTOR = 1.15


@dataclass(frozen=True)
class Section:
    """A part of a document, and the reasons why figures in it are null.

    Attributes:
        content: plain JSON types.
        reasons: by dotted path below this part; "" is the part itself.
    """

    content: Json
    reasons: Mapping[str, str] = field(default_factory=dict)

    def reasons_below(self, path: str) -> dict[str, str]:
        """The reasons with the paths they have in a document where this part is at ``path``."""
        return {f"{path}.{name}" if name else path: why for name, why in self.reasons.items()}


def to_json(report: Json) -> str:
    """The text of report.json: indented UTF-8 without NaN and infinity."""
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return escaped(text, keep="\n", form="json")


def look_up(path: str, figures: Mapping[str, Any]) -> Any:
    """The value at a dotted path; None where it was not measured or does not exist."""
    value: Any = figures
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def expand(path: str, figures: Mapping[str, Any]) -> list[str]:
    """The paths that match a path with a ``*``; a path without one matches itself."""
    head, star, tail = path.partition(".*")
    return [f"{head}.{key}{tail}" for key in look_up(head, figures) or {}] if star else [path]


def why_missing(path: str, figures: Mapping[str, Any]) -> str:
    """The reason why a figure is null: its own, or that of the nearest group it belongs to."""
    reasons: Mapping[str, str] = figures.get("reasons", {})
    keys = path.replace(".*", "").split(".")
    prefixes = (".".join(keys[:n]) for n in range(len(keys), 0, -1))
    return next((reasons[p] for p in prefixes if p in reasons), "no reason was recorded")


def is_measurable(speedup: float, cpu_speedup: float) -> bool:
    """Whether the speedup by the clock is that in processor time."""
    return max(speedup / cpu_speedup, cpu_speedup / speedup) <= MAX_FACTOR


def not_measurable(latency: Mapping[str, Any]) -> str:
    """Why the speedup in a section ``latency`` is no figure of the graphs; "" where it is one, or was not measured."""
    if latency.get("measurable") is not False:
        return ""
    figures = f"{latency['speedup']:.3g}x by the clock, but {latency['cpu_speedup']:.3g}x in processor time"
    return f"not measurable: {figures}, because other processes took turns with it; measure on a machine with less load"


def slower(latency: Mapping[str, Any]) -> str:
    """A sentence where INT8 is no faster than FP32; "" elsewhere."""
    speedup, limits = latency["speedup"], latency["speedup_ci95"]
    if speedup is None or speedup >= 1 or not_measurable(latency):
        return ""
    return _no_faster(latency, "fp32", speedup, limits)


def slower_than_fp16(latency: Mapping[str, Any]) -> str:
    """A sentence where INT8 does not beat FP16 on this device; "" elsewhere, and where FP16 was not timed."""
    speedup, limits = latency.get("speedup_fp16"), latency.get("speedup_fp16_ci95")
    return _no_faster(latency, "fp16", speedup, limits) if speedup is not None and limits and limits[0] <= 1 else ""


def _no_faster(latency: Mapping[str, Any], other: str, speedup: float, limits: Sequence[float]) -> str:
    sure = f"{'slower' if limits[1] < 1 else 'not faster'} than {other.upper()}"
    ms = " to ".join(f"{latency[name]['p50_ms']:.3g}" for name in (other, "int8"))
    return f"INT8 is {sure} here: {speedup:.2f}x, 95 % interval {limits[0]:.2f} to {limits[1]:.2f} ({ms} ms)"


def titled(name: str) -> str:
    """A candidate's name in text: ``cpu graph``, ``tensorrt int8 engine``."""
    return name if name.endswith(" engine") else f"{name} graph"
