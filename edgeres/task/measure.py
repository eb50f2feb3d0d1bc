"""Runs candidates over images for a task whose answers are no classes; each image is reduced as soon as it is answered.

The FP32 reference and every candidate see the same images. What is kept of an image is the task's: rows of numbers, or
sums over a map, never the maps of all images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from edgeres.data.loader import Batch, Loader
from edgeres.data.pixels import Pixels, PixelTally
from edgeres.data.record import DataRecord
from edgeres.device.environment import environment, recorded_time
from edgeres.errors import ModelError, SourceError, UsageError
from edgeres.progress import Progress
from edgeres.records import F32, I64, ModelSpec
from edgeres.runtime.prepared import fed
from edgeres.runtime.runner import Feed, Runner
from edgeres.task.record import TaskMeasured
from edgeres.verify.accuracy import answered
from edgeres.verify.answers import REFERENCE
from edgeres.verify.candidates import Candidates
from edgeres.verify.measure import MAX_WORKERS, Measured, MeasurePlan, Validation, measure_common


class Reducer(Protocol):
    """What is kept of one candidate's answers."""

    def add(self, batch: Batch, reference: Feed, own: Feed) -> None:
        """Reduce the outputs of one batch, beside those of the reference on it; both by the outputs' names."""


class Rows:
    """The one output of all images, a row each, as one candidate gives them."""

    def __init__(self) -> None:
        self._parts: list[F32] = []

    def add(self, batch: Batch, reference: Feed, own: Feed) -> None:
        (rows,) = own.values()
        self._parts.append(rows)

    @property
    def rows(self) -> F32:
        """float32 (N, K)."""
        return np.concatenate(self._parts)


@dataclass(frozen=True)
class Columns:
    """What was kept of the answers to all images.

    Attributes:
        by_name: of the reference and each candidate.
        runners: names of the backends.
        positions: of the images in the source, in their order, int64 (N,).
        pixels: mean colours of the images.
    """

    by_name: Mapping[str, Any]
    runners: Mapping[str, str]
    positions: I64
    pixels: Pixels | None


def measure_columns(
    candidates: Candidates,
    spec: ModelSpec,
    images: Validation,
    new_column: Callable[[], Reducer],
    progress: Progress,
    plan: MeasurePlan,
) -> TaskMeasured:
    """Run every image through every candidate once, then measure the noise of each layer and the latency.

    Args:
        new_column: makes what keeps the answers of one candidate.

    Returns:
        The measurements; ``answers`` is a :class:`Columns`.

    Raises:
        SourceError: images cannot be read, or there are none. ModelError: an output is not finite.
        UsageError: a cluster is asked for, which only answers of classes are computed on.
    """
    if plan.scheduler is not None:
        what = f"is for classification alone, and the task is {' and '.join(spec.tasks)}"
        raise UsageError(what, where="--scheduler", hint="leave it out")
    start, created, loader = perf_counter(), recorded_time(), images.loader
    with progress.stage("compare", f"comparing INT8 with FP32 on {len(loader.source):,} images"):
        columns = _columns(candidates, loader, spec, new_column, progress)
    every = measure_common(candidates, loader, plan, progress)
    common = Measured(
        images=DataRecord.of(loader, len(columns.positions), columns.pixels),
        headline=candidates.headline,
        latency=every.latency,
        layer_noise=every.layer_noise,
        seconds=perf_counter() - start,
        reasons={**images.reasons, **every.reasons, "accuracy": "the answers are no classes: see the part task"},
        created=created,
        environment=environment(),
    )
    return TaskMeasured(common, columns)


def _columns(
    candidates: Candidates, loader: Loader, spec: ModelSpec, new_column: Callable[[], Reducer], progress: Progress
) -> Columns:
    cores, source = os.cpu_count() or 1, loader.source
    workers = min(cores, MAX_WORKERS)

    def answer(runner: Runner, batch: Batch) -> Feed:
        return _finite(
            runner.infer({runner.input_name: fed(runner, batch.inputs, loader.preprocess)}), runner, batch, loader
        )

    with ExitStack() as stack:
        opened = {REFERENCE: candidates.reference, **candidates.others}
        runners = {name: stack.enter_context(one.open(cores // workers)) for name, one in opened.items()}
        kept = {name: new_column() for name in runners}
        pixels, positions = PixelTally(loader.preprocess), [np.empty(0, np.int64)]
        with progress.task("comparing INT8 with FP32", total=len(source)) as advance:
            for batch, outputs in answered([*runners.values()], loader, answer, workers):
                for column, own in zip(kept.values(), outputs, strict=True):
                    column.add(batch, outputs[0], own)
                pixels.add(batch.inputs)
                positions.append(batch.indices)
                advance(len(batch.indices))
        if len(positions) == 1:
            raise SourceError("there is no image to compare on", where=source.description)
        names = {name: runner.name for name, runner in runners.items()}
    return Columns(kept, names, np.concatenate(positions), pixels.pixels)


def _finite(outputs: Feed, runner: Runner, batch: Batch, loader: Loader) -> Feed:
    """The outputs as float32.

    Raises:
        ModelError: one is not finite, with the image's name.
    """
    for name, output in outputs.items():
        wrong = np.flatnonzero(~np.isfinite(output.reshape(len(output), -1)).all(axis=1))
        if len(wrong):
            raise ModelError(
                f"{runner.name} gives an output {name} that is not finite",
                where=loader.source.name(int(batch.indices[wrong[0]])),
                hint="check the weights and the preprocessing for values out of range",
            )
    return {name: output.astype(np.float32, copy=False) for name, output in outputs.items()}
