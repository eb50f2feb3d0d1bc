"""The task of a run: found where nobody says it, and held against the gates that were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgeres.data.choose import DataChoice
from edgeres.errors import UsageError
from edgeres.judge.asked import GateChoice
from edgeres.judge.gates import LIMITS, Limits
from edgeres.pipeline.take import ModelChoice
from edgeres.progress import SILENT, Progress
from edgeres.task import TASKS, Clues, Task, recognised


def with_task(model: ModelChoice, data: DataChoice, progress: Progress = SILENT) -> ModelChoice:
    """The choice of a network with the task that the validation images show, where nobody says it."""
    if model.task is not None or model.labels is not None:
        return model
    table = Path(data.validation_labels).expanduser() if data.validation_labels else None
    found = recognised(Clues(str(data.validation) if data.validation else None, table))
    if found is None:
        return model
    progress.say(f"taken as {found.name}, as the validation images show; --task says another one")
    return replace(model, task=found.name)


def task_notes(task: Task, gates: GateChoice) -> Iterator[str]:
    """What was asked for that this task has not.

    Raises:
        UsageError: a baseline, which is compared for classes alone.
    """
    if gates.baseline is not None and "max_regression" not in task.limits:
        what = f"builds of {task.name} are not compared with a baseline yet"
        raise UsageError(what, where="--baseline", hint="leave it out")
    if gates.corruptions and "max_drop" not in task.limits:
        what = f"is for classification alone, and the task is {task.name}"
        raise UsageError(what, where="--corruptions", hint="leave it out")
    default, own = Limits(), _options(task)
    asked = [name for name in LIMITS if gates.limits.limit(name) != default.limit(name)]
    for name in (*asked, *gates.task_limits):
        if name not in own:
            others = ", ".join(other.name for other in TASKS.values() if name in _options(other))
            yield f"--{name.replace('_', '-')} is no gate of {task.name}, but of {others}"


def _options(task: Task) -> set[str]:
    return {*task.limits, *(gate.metric.option for gate in task.gates)}
