"""The record of a task: what the stages of a build, a verification and a robot's program call.

Modules of tasks import the stages inside their functions, because a robot's program needs their predictors alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgeres.data.base import Source
    from edgeres.data.choose import DataChoice
    from edgeres.graph.interface import Outputs
    from edgeres.judge.asked import Asked
    from edgeres.judge.document import Json
    from edgeres.judge.gates import Metric
    from edgeres.made import Made
    from edgeres.progress import Progress
    from edgeres.records import ModelSpec
    from edgeres.runtime.classifier import Predictor
    from edgeres.verify.candidates import Candidates
    from edgeres.verify.measure import Measured, MeasurePlan, Validation


@dataclass(frozen=True)
class TaskGate:
    """A gate that a task brings.

    Attributes:
        metric: the figure that is limited; its ``option`` is the name of the option.
        default: the limit where none is given; None: no gate.
        metavar, help: of the option.
    """

    metric: Metric
    default: float | None
    metavar: str
    help: str


@dataclass(frozen=True)
class Clues:
    """What may tell the task where nobody says it.

    Attributes:
        validation: the validation images in the user's words.
        table: the table of their labels.
    """

    validation: str | None = None
    table: Path | None = None


@dataclass(frozen=True)
class TaskMeasured:
    """What was measured, for the task's own ``judge``.

    Attributes:
        common: what every network has.
        answers: what the task kept of the answers; None: it is in ``common``.
    """

    common: Measured
    answers: Any = None


@dataclass(frozen=True)
class Task:
    """What the outputs of a network are for.

    Attributes:
        name: the word for ``--task``, and the name of the module.
        outputs: what the output of the graph has to be.
        recognises: whether the validation images show this task without doubt.
        describe: the spec with its heads and names, from that of a graph and the names of its outputs.
        validate: opens the validation images with their truth, and says why figures will be missing.
        measure: runs every candidate on the images.
        judge: makes the report.
        predictor: class that opens a bundle for a program.
        limits: the options of :class:`edgeres.judge.gates.Limits` that are gates of it.
        gates: that it brings beside these.
    """

    name: str
    outputs: Outputs
    recognises: Callable[[Clues], bool]
    describe: Callable[[ModelSpec, Sequence[str]], ModelSpec]
    validate: Callable[[DataChoice, ModelSpec, Progress], tuple[Source, Mapping[str, str]]]
    measure: Callable[[Candidates, ModelSpec, Validation, Progress, MeasurePlan], TaskMeasured]
    judge: Callable[[Asked, Made, TaskMeasured], Json]
    predictor: type[Predictor[Any]]
    limits: tuple[str, ...]
    gates: tuple[TaskGate, ...] = field(default=())
