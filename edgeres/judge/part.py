"""What a task adds to the report: its section, its gates and its checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeres.judge.asked import GateChoice
from edgeres.judge.checks import CHECKS, Evidence, Finding
from edgeres.judge.document import Section
from edgeres.judge.gates import COMMON, METRICS, Metric, gate
from edgeres.records import Gate

Checks = Mapping[str, tuple[str, Callable[[Evidence], Finding]]]
# The checks that hold for every network, whatever its outputs are for.
COMMON_CHECKS = ("calibration", "weights", "ranges", "engines", "targets")


@dataclass(frozen=True)
class TaskPart:
    """What a task adds to the report.

    Attributes:
        metrics: the figures that gates limit, by name.
        gates: those that are set.
        checks: title and function by name, in the order of the report.
        section: the report's part ``task``; None: the report has the part ``accuracy`` in its place.
    """

    metrics: Mapping[str, Metric]
    gates: tuple[Gate, ...]
    checks: Checks
    section: Section | None = None


def part_of_scores(gates: GateChoice, *, baseline: bool, labels: bool) -> TaskPart:
    """The part of a network that scores classes.

    Args:
        baseline: whether there is one to compare with.
        labels: whether the validation images have labels.
    """
    return TaskPart(METRICS, gates.limits.gates(baseline=baseline, labels=labels), CHECKS)


def common_metrics() -> dict[str, Metric]:
    """The figures that every network has."""
    return {name: METRICS[name] for name in COMMON}


def common_gates(gates: GateChoice) -> tuple[Gate, ...]:
    """The gates on figures that every network has."""
    limits = ((name, gates.limits.limit(METRICS[name].option)) for name in COMMON)
    return tuple(gate(name, limit) for name, limit in limits if limit is not None)


def common_checks() -> Checks:
    """The checks that hold for every network."""
    return {name: CHECKS[name] for name in COMMON_CHECKS}
