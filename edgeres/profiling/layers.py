"""Layers with their times over some runs, and what of a run is outside of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Json = dict[str, Any]
# The first that is found in a tensor's format decides: "Int8 NHWC", "Thirty-two wide ... Int8 format", "tensor(float)".
_TYPES = (
    ("bf16|bfloat16", "bfloat16"),
    ("fp8|float8", "float8"),
    ("fp4|float4", "float4"),
    ("half|fp16|float16", "float16"),
    ("tf32|fp32|float", "float32"),
    ("uint8", "uint8"),
    ("int8", "int8"),
    ("int4", "int4"),
    ("int32", "int32"),
    ("int64", "int64"),
    ("bool", "bool"),
)
_DISTURBED = 1.25


@dataclass(frozen=True)
class Facts:
    """What is known of a layer besides its time.

    Attributes:
        kind: its operator or the vendor's type of layer; None: not known.
        reads, writes: types of its first input and output, as NumPy names them; None: not known.
        told: all that the engine inspector says of it.
    """

    kind: str | None = None
    reads: str | None = None
    writes: str | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> str | None:
        """``int8``, or ``float32 -> int8`` where a layer reads another type than it writes."""
        known = [name for name in (self.reads, self.writes) if name is not None]
        return " -> ".join(dict.fromkeys(known)) or None


@dataclass(frozen=True)
class Slice:
    """One layer in one run, in ms; ``start_ms`` None: the profiler gives no start, and it follows the one before."""

    name: str
    ms: float
    start_ms: float | None = None


@dataclass(frozen=True)
class Run:
    """One inference.

    Attributes:
        ms: from its start to its end; None: nobody measured it.
        start_ms: by the clock of its slices; None where those have none.
    """

    slices: tuple[Slice, ...]
    ms: float | None = None
    start_ms: float | None = None

    @property
    def layers_ms(self) -> float:
        return sum(one.ms for one in self.slices)

    @property
    def length_ms(self) -> float:
        return self.layers_ms if self.ms is None else self.ms


@dataclass(frozen=True)
class Profile:
    """Runs under a profiler.

    Attributes:
        source: whose profiler it is.
        runs: at least one.
        counted: how many runs one of ``runs`` stands for: 1, or all of trtexec's where only their means are known.
        facts: by the name of the layer.
        outside: ms of an inference outside any layer, by what it is; measured without the profiler.
        without_ms: median time of an inference without the profiler; None: not measured.
        notes: what a reader of the figures has to know, a line each.
    """

    source: str
    runs: tuple[Run, ...]
    counted: int = 1
    facts: Mapping[str, Facts] = field(default_factory=dict)
    outside: Mapping[str, float] = field(default_factory=dict)
    without_ms: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> Json:
        """Plain JSON types; what is not known is None.

        Times are medians over the runs, so that a run that the machine disturbed does not count. What is outside the
        layers is the median of each run's own rest; it need not be the difference of the medians.
        """
        rows = _rows(self.runs, self.facts)
        layers_ms = sum(row["ms"] for row in rows)
        whole = [(run.ms, run.ms - run.layers_ms) for run in self.runs if run.ms is not None]
        run_ms, rest_ms = np.median(whole, axis=0).tolist() if whole else (None, None)
        for row in rows:
            row["share"] = row["ms"] / layers_ms if layers_ms else None
        timed = {row["name"] for row in rows}
        silent = (_row(name, facts) for name, facts in self.facts.items() if name not in timed)
        return {
            "source": self.source,
            "runs": len(self.runs) * self.counted,
            "statistic": "mean" if self.counted > 1 else "median",
            "layers": [*rows, *silent],
            "layers_ms": layers_ms,
            "run_ms": run_ms,
            "outside_ms": rest_ms,
            "outside": dict(self.outside),
            "without_profiler_ms": self.without_ms,
            "kinds": _sums(rows, "kind", layers_ms),
            "precisions": _sums(rows, "precision", layers_ms),
            "notes": [*self.notes, *_disturbed(run_ms, layers_ms, rest_ms)],
        }


def type_in(words: object) -> str | None:
    """The type of a tensor in a library's words, as NumPy names it; None: there is none.

    >>> type_in("Thirty-two wide channel vectorized row major Int8 format")
    'int8'
    """
    text = str(words).lower()
    return next((name for pattern, name in _TYPES if re.search(pattern, text)), None)


def _disturbed(run_ms: float | None, layers_ms: float, rest_ms: float | None) -> list[str]:
    """A note where a run takes much longer than the medians of its parts: each run had another part disturbed."""
    if run_ms is None or rest_ms is None or run_ms <= _DISTURBED * (layers_ms + rest_ms):
        return []
    what = f"the medians of the parts add up to {layers_ms + rest_ms:.3f} ms, and a run takes {run_ms:.3f} ms"
    return [f"{what}: other programs disturbed the runs"]


def _rows(runs: Sequence[Run], facts: Mapping[str, Facts]) -> list[Json]:
    """Layers in the order in which they first ran; one that runs twice in a run has two rows."""
    times: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        seen: dict[str, int] = {}
        for one in run.slices:
            seen[one.name] = seen.get(one.name, 0) + 1
            times.setdefault((one.name, seen[one.name]), []).append(one.ms)
    found = []
    for (name, _), ms in times.items():
        all_ms = np.pad(ms, (0, len(runs) - len(ms)))  # a run without the layer spent no time in it
        figures = {"ms": float(np.median(all_ms)), "mean_ms": float(np.mean(all_ms))}
        found.append({**_row(name, facts.get(name, Facts())), **figures})
    return found


def _row(name: str, facts: Facts) -> Json:
    """A layer without its time, which a profiler does not give for those that take none."""
    known = {"kind": facts.kind, "precision": facts.precision}
    return {"name": name, **known, "ms": None, "mean_ms": None, "share": None, "told": dict(facts.told)}


def _sums(rows: Iterable[Json], key: str, whole: float) -> list[Json]:
    """Time by kind or precision, the largest first."""
    found: dict[str | None, Json] = {}
    for row in rows:
        one = found.setdefault(row[key], {key: row[key], "layers": 0, "ms": 0.0, "share": None})
        one["layers"] += 1
        one["ms"] += row["ms"]
    for one in found.values():
        one["share"] = one["ms"] / whole if whole else None
    return sorted(found.values(), key=lambda one: -float(one["ms"]))
