"""Helpers for report documents: plain JSON from which every page, table and file is rendered.

The shape never changes: a figure that was not measured is null, and ``reasons`` says why, under the figure's dotted
path or that of a group it belongs to (``"accuracy": "the validation source has no labels"``).
``edgeres/report/schema.json`` describes the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


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
    return json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


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
