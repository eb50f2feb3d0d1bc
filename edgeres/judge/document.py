"""The finished report document: plain JSON that every page, table and file is drawn from.

The shape never changes: a figure that was not measured is null, and ``reasons`` says why, under the figure's dotted
path or that of a group it belongs to (``"accuracy": "the validation source has no labels"``).
``edgeres/report/schema.json`` describes all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of a document, and why figures in it are null.

    Attributes:
        content: plain JSON types.
        reasons: by dotted path below this part; "" is the part itself.
    """

    content: Json
    reasons: Mapping[str, str] = field(default_factory=dict)

    def reasons_below(self, path: str) -> dict[str, str]:
        """The reasons as they stand in a document where this part is at ``path``."""
        return {f"{path}.{name}" if name else path: why for name, why in self.reasons.items()}


def to_json(report: Json) -> str:
    """The text of report.json: strict JSON, readable, UTF-8."""
    return json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def look_up(path: str, figures: Mapping[str, Any]) -> Any:
    """The value at a dotted path; None where it was not measured or does not exist."""
    value: Any = figures
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def expand(path: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """The paths that a path with a ``*`` stands for; a path without one stands for itself."""
    head, star, tail = path.partition(".*")
    if not star:
        yield path
        return
    yield from (f"{head}.{key}{tail}" for key in look_up(head, figures) or {})


def why_missing(path: str, figures: Mapping[str, Any]) -> str:
    """Why a figure is null: the reason given for it, or for the nearest group it belongs to."""
    reasons: Mapping[str, str] = figures.get("reasons", {})
    keys = path.replace(".*", "").split(".")
    prefixes = (".".join(keys[:n]) for n in range(len(keys), 0, -1))
    return next((reasons[p] for p in prefixes if p in reasons), "no reason was recorded")
