"""Choose the images for calibration and validation: those that the user names, or those of the model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeres.data.base import FORMS, Role, Source, View, subset
from edgeres.data.matching import match_labels
from edgeres.data.sources import locate, open_source
from edgeres.errors import UsageError
from edgeres.records import ModelSpec


@dataclass(frozen=True)
class DataChoice:
    """The user's choice of images; None: the default.

    Attributes:
        calibration_size: images chosen from the calibration source.
        validation_size: images chosen from the validation source; None takes all.
        seed: of the random choice of images.
    """

    calibration: str | None = None
    validation: str | None = None
    calibration_size: int = 512
    validation_size: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Sources:
    """The images of a build. ``reasons`` says why a figure will be missing, by the figure's path in the report."""

    calibration: Source
    validation: Source
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def overlap(self) -> bool:
        """Whether the same images calibrate and validate, which makes INT8 look better than it is."""
        return self.calibration.digest() == self.validation.digest()

    @property
    def warnings(self) -> list[str]:
        """Warnings on the choice of images, to show before anything is computed."""
        told = [f"no gate on the drop: {self.reasons['accuracy']}"] if "accuracy" in self.reasons else []
        if self.overlap:
            told.append("calibration and validation are the same images, which makes INT8 look better than it is")
        return told


def check_paths(choice: DataChoice) -> None:
    """Check the paths before a model is loaded.

    Raises:
        SourceError: a path does not exist.
    """
    for text in (choice.calibration, choice.validation):
        if text is not None:
            locate(text)


def choose_calibration(choice: DataChoice, spec: ModelSpec) -> Source:
    """The calibration images of a model.

    Raises:
        UsageError: none are named, and the weights have no images of their own.
        SourceError: the images cannot be used.
    """
    source = open_source(_named(choice.calibration, spec, "calibration"), role="calibration", px=_side(spec))
    return subset(source, choice.calibration_size, choice.seed)


def choose_validation(choice: DataChoice, spec: ModelSpec) -> tuple[Source, Mapping[str, str]]:
    """The validation images of a model, their labels as indices of its outputs, and why figures will be missing.

    Random weights are validated without labels: they have no accuracy to lose, but agreement and SQNR are still
    meaningful.

    Raises:
        UsageError, SourceError: as :func:`choose_calibration`, and where labels do not match the model's.
    """
    source = open_source(_named(choice.validation, spec, "validation"), role="validation", px=_side(spec))
    if choice.validation_size is not None:
        source = subset(source, choice.validation_size, choice.seed)
    if choice.validation is None and spec.weights == "random":
        unlabelled = np.full(len(source), -1, np.int64)
        description = f"{source.description}, labels ignored"
        view = View(source, np.arange(len(source)), unlabelled, (), description)
        return view, {"accuracy": "the weights are random, so there is no accuracy to lose"}
    return match_labels(source, spec.labels), {}


def choose_sources(choice: DataChoice, spec: ModelSpec) -> Sources:
    """Open both sources; wrong labels are found before anything is computed."""
    validation, reasons = choose_validation(choice, spec)
    return Sources(choose_calibration(choice, spec), validation, reasons)


def _named(text: str | None, spec: ModelSpec, role: Role) -> str:
    if text is not None:
        return text
    from edgeres.data.signs import CLASSES

    if spec.labels == CLASSES or spec.weights == "random":
        return "signs"
    raise UsageError(f"{spec.name} ({spec.weights}) needs {role} images", hint=f"--{role} SRC: {FORMS}")


def _side(spec: ModelSpec) -> int:
    """Side in pixels at which a generated set is rendered: the size that the resize produces."""
    return spec.preprocess.resize_px or min(spec.preprocess.crop_px)
