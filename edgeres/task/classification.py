"""Classification: the output is one row of scores, one per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgeres.judge.gates import LIMITS
from edgeres.records import CLASSIFICATION, ModelSpec
from edgeres.runtime.classifier import Classifier
from edgeres.task.record import Clues, Task, TaskMeasured

if TYPE_CHECKING:
    from edgeres.data.base import Source
    from edgeres.data.choose import DataChoice
    from edgeres.judge.asked import Asked
    from edgeres.judge.document import Json
    from edgeres.made import Made
    from edgeres.progress import Progress
    from edgeres.verify.candidates import Candidates
    from edgeres.verify.measure import MeasurePlan, Validation


def _recognises(clues: Clues) -> bool:
    return False  # it is what a network is for where nothing shows another task


def _describe(spec: ModelSpec, outputs: Sequence[str]) -> ModelSpec:
    return spec


def _validate(choice: DataChoice, spec: ModelSpec, progress: Progress) -> tuple[Source, Mapping[str, str]]:
    from edgeres.data.choose import choose_validation

    return choose_validation(choice, spec, progress)


def _measure(
    candidates: Candidates, spec: ModelSpec, images: Validation, progress: Progress, plan: MeasurePlan
) -> TaskMeasured:
    from edgeres.verify.measure import measure

    return TaskMeasured(measure(candidates, spec, images, progress, plan))


def _judge(asked: Asked, made: Made, measured: TaskMeasured) -> Json:
    from edgeres.judge.judge import judge

    return judge(asked, made, measured.common)


TASK = Task(
    name=CLASSIFICATION,
    outputs="scores",
    recognises=_recognises,
    describe=_describe,
    validate=_validate,
    measure=_measure,
    judge=_judge,
    predictor=Classifier,
    limits=LIMITS,
)
