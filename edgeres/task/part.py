"""What a task whose answers are no classes adds to the judgement, from its section, checks and gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeres.judge.asked import GateChoice
from edgeres.judge.document import Section
from edgeres.judge.part import Checks, TaskPart, common_gates, common_metrics
from edgeres.records import Gate
from edgeres.task.record import TaskGate


def part_of(
    gates: GateChoice, section: Section, checks: Checks, brought: Sequence[TaskGate], *, truth: bool
) -> TaskPart:
    """The part of a task.

    Args:
        brought: the gates of the task.
        truth: whether there is anything to compare the answers with, beside FP32's. Without, a gate is set only where
            its limit was asked for, and fails.
    """
    metrics = {**common_metrics(), **{one.metric.name: one.metric for one in brought}}
    return TaskPart(metrics, (*_set(gates, brought, truth=truth), *common_gates(gates)), checks, section)


def _set(gates: GateChoice, brought: Sequence[TaskGate], *, truth: bool) -> Iterator[Gate]:
    for one in brought:
        asked = one.metric.option in gates.task_limits
        limit = gates.task_limits[one.metric.option] if asked else one.default
        if limit is not None and (asked or truth or not one.metric.labelled):
            yield Gate(one.metric.name, float(limit), one.metric.unit)
