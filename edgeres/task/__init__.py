"""What a network's outputs are for: each task is one module, with its truth, figures, gates and answers.

No other folder asks which task a network has: the stages call what its record holds.
"""

from __future__ import annotations

from edgeres.errors import ModelError, UsageError
from edgeres.records import ModelSpec
from edgeres.task import classification, embedding, features, regression, segmentation
from edgeres.task.record import Clues, Task, TaskGate, TaskMeasured
from edgeres.words import did_you_mean

__all__ = ["TASKS", "Clues", "Task", "TaskGate", "TaskMeasured", "brought_gates", "recognised", "task_named", "task_of"]

_ALL = (classification.TASK, regression.TASK, embedding.TASK, features.TASK, segmentation.TASK)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in TASKS:
        hint = did_you_mean(name, TASKS) or f"one of {', '.join(TASKS)}"
        raise UsageError(f"there is no task {name!r}", where="--task", hint=hint)
    return TASKS[name]


def task_of(spec: ModelSpec) -> Task:
    """The task of a network.

    Raises:
        ModelError: this edgeres does not know it, or it has heads of several.
    """
    if len(spec.tasks) > 1:
        raise ModelError(f"it has heads of several tasks: {', '.join(spec.tasks)}", where=spec.name)
    if spec.tasks[0] not in TASKS:
        raise ModelError(
            f"its task is {spec.tasks[0]}, which is not known here", where=spec.name, hint="upgrade edgeres"
        )
    return TASKS[spec.tasks[0]]


def recognised(clues: Clues) -> Task | None:
    """The one task that the validation images show without doubt; None: none, or several."""
    found = [task for task in TASKS.values() if task.recognises(clues)]
    return found[0] if len(found) == 1 else None


def brought_gates() -> dict[str, TaskGate]:
    """The gates that tasks bring beside those of classification, by option."""
    return {gate.metric.option: gate for task in TASKS.values() for gate in task.gates}
