"""Choose the images for calibration and validation: those that the user names, or those of the model's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeres.data.base import FORMS, Role, Source, View, subset
from edgeres.data.image_labels import label_images
from edgeres.data.matching import match_labels
from edgeres.data.sources import locate, open_source
from edgeres.errors import SourceError, UsageError
from edgeres.progress import SILENT, Progress
from edgeres.records import ModelSpec


@dataclass(frozen=True)
class DataChoice:
    """The user's choice of images; None: the default.

    Attributes:
        calibration_size, validation_size: images chosen from these sources; None takes all.
        seed: of the random choice of images.
        validation_labels: a table with the labels of the validation images, which then need no class folders.
    """

    calibration: str | None = None
    validation: str | None = None
    calibration_size: int = 512
    validation_size: int | None = None
    seed: int = 0
    validation_labels: str | None = None


@dataclass(frozen=True)
class Sources:
    """The images of a build. ``reasons`` says why a figure will be missing, by the figure's path in the report."""

    calibration: Source
    validation: Source
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def overlap(self) -> int:
        """How many calibration images are validation images too, which makes INT8 look better than it is."""
        validation = set(self.validation.origins())
        return sum(origin in validation for origin in self.calibration.origins())

    @property
    def warnings(self) -> list[str]:
        """Warnings on the choice of images, to show before anything is computed."""
        told = [f"no gate on the drop: {self.reasons['accuracy']}"] if "accuracy" in self.reasons else []
        return told + self._overlap()

    def with_overlap_noted(self) -> Sources:
        """The same images; those of calibration that are validation images too are in its notes, for the report."""
        self.calibration.notes = (*self.calibration.notes, *self._overlap())
        return self

    def _overlap(self) -> list[str]:
        shared = self.overlap
        many = f"{shared:,} of {len(self.calibration):,} calibration images"
        return [f"{many} are validation images too, which makes INT8 look better than it is"] if shared else []


def check_paths(choice: DataChoice) -> None:
    """Raise a SourceError for a path that does not exist, before a model is loaded."""
    for text in (choice.calibration, choice.validation):
        if text is not None:
            locate(text)
    if (table := _table(choice)) is not None and not table.exists():
        raise SourceError("no such file", where=table, hint="check the path of the labels")


def choose_calibration(choice: DataChoice, spec: ModelSpec, progress: Progress = SILENT) -> Source:
    """The calibration images of a model; what was left out of them is said.

    Raises:
        UsageError: none are named, and the weights have no images of their own.
        SourceError: the images cannot be used.
    """
    source = subset(_open(choice.calibration, spec, "calibration"), choice.calibration_size, choice.seed)
    return _said(source, "calibration", progress)


def choose_validation(
    choice: DataChoice, spec: ModelSpec, progress: Progress = SILENT
) -> tuple[Source, Mapping[str, str]]:
    """The validation images of a model, their labels as indices of its outputs, and why figures will be missing.

    What was left out is said, and how the labels were matched where names do not tell. The ``classes`` of the source
    are the names of the outputs; where the model has none, they come from the images.

    Random weights are validated without labels: they have no accuracy to lose, but agreement and SQNR are still
    meaningful.

    Raises:
        UsageError, SourceError: as :func:`choose_calibration`, and where labels do not match the model's.
    """
    table = _table(choice)
    source = _open(choice.validation, spec, "validation", labelled=table is not None)
    if table is not None:
        source = label_images(source, table, spec.labels)
    if choice.validation_size is not None:
        source = subset(source, choice.validation_size, choice.seed)
    if choice.validation is None and spec.weights == "random":
        unlabelled = np.full(len(source), -1, np.int64)
        view = View(source, np.arange(len(source)), unlabelled, (), f"{source.description}, labels ignored")
        return view, {"accuracy": "the weights are random, so there is no accuracy to lose"}
    return _said(match_labels(source, spec.labels), "validation", progress), {}


def choose_with_truth(
    choice: DataChoice, spec: ModelSpec, read: Callable[[Source, Path | None], Source], progress: Progress = SILENT
) -> Source:
    """The validation images of a model whose answers are no classes.

    Args:
        read: gives the images with their truth, from all images of the source and the table of their labels, if any.

    Raises:
        UsageError, SourceError: as :func:`choose_validation`.
    """
    table = _table(choice)
    source = read(_open(choice.validation, spec, "validation", labelled=True), table)
    if choice.validation_size is not None:
        source = subset(source, choice.validation_size, choice.seed)
    return _said(source, "validation", progress)


def choose_unlabelled(choice: DataChoice, spec: ModelSpec, progress: Progress = SILENT) -> Source:
    """The validation images of a model whose answers are compared with nothing but FP32's; labels are not read.

    Raises:
        UsageError: labels are given. UsageError, SourceError: as :func:`choose_calibration`.
    """
    if choice.validation_labels is not None:
        what = "is not read: the answers are compared with FP32's alone"
        raise UsageError(what, where=choice.validation_labels, hint="leave out --validation-labels")
    source = _open(choice.validation, spec, "validation", labelled=True)
    if choice.validation_size is not None:
        source = subset(source, choice.validation_size, choice.seed)
    return _said(source, "validation", progress)


def choose_identities(
    choice: DataChoice, spec: ModelSpec, progress: Progress = SILENT
) -> tuple[Source, SourceError | None]:
    """The validation images with their class folders or the labels of a table, whatever their names.

    Returns:
        The images, and why they have no labels; None: they have. Labels of -1 are of images without.

    Raises:
        UsageError, SourceError: as :func:`choose_validation`, but images without any labels are taken.
    """
    table, why = _table(choice), None
    if table is not None:
        source = label_images(_open(choice.validation, spec, "validation", labelled=True), table, ())
    else:
        try:
            source = _open(choice.validation, spec, "validation")
        except SourceError as error:
            source, why = _open(choice.validation, spec, "validation", labelled=True), error
    if choice.validation_size is not None:
        source = subset(source, choice.validation_size, choice.seed)
    return _said(source, "validation", progress), why


Validate = Callable[[DataChoice, ModelSpec, Progress], tuple[Source, Mapping[str, str]]]


def choose_sources(
    choice: DataChoice, spec: ModelSpec, progress: Progress = SILENT, validate: Validate = choose_validation
) -> Sources:
    """Open both sources; wrong labels are found before anything is computed.

    Args:
        validate: opens the validation images with their truth, and says why figures will be missing.
    """
    validation, reasons = validate(choice, spec, progress)
    return Sources(choose_calibration(choice, spec, progress), validation, reasons).with_overlap_noted()


def _table(choice: DataChoice) -> Path | None:
    """The file with the labels of the validation images."""
    if choice.validation_labels is None:
        return None
    if choice.validation is None:
        raise UsageError("labels need images", where=choice.validation_labels, hint="add --validation SRC")
    return Path(choice.validation_labels).expanduser()


def _said(source: Source, role: Role, progress: Progress) -> Source:
    for note in source.notes:
        progress.say(f"note: {role}: {note}")
    return source


def _open(text: str | None, spec: ModelSpec, role: Role, *, labelled: bool = False) -> Source:
    """Open the images that the user names, or the generated set, at the size that the model's resize produces.

    Args:
        labelled: labels come from a table, so that images need none here.
    """
    if text is None:
        from edgeres.data.signs import CLASSES

        if spec.labels != CLASSES and spec.weights != "random":
            raise UsageError(f"{spec.name} ({spec.weights}) needs {role} images", hint=f"--{role} SRC: {FORMS}")
    resize = spec.preprocess.resize_px or spec.preprocess.crop_px
    px = resize if isinstance(resize, int) else min(resize)
    return open_source("signs" if text is None else text, role=role, px=px, known=spec.labels, labelled=labelled)
