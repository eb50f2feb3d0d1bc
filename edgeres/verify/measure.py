"""Candidates against the FP32 reference: answers on images, noise layer by layer, latency side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from time import perf_counter

import numpy as np

from edgeres.data.choose import DataChoice
from edgeres.data.loader import Loader
from edgeres.data.record import DataRecord
from edgeres.device.environment import environment
from edgeres.progress import SILENT, Progress
from edgeres.records import Measurement, ModelSpec
from edgeres.runtime.runner import Feed, Runner
from edgeres.verify.accuracy import Comparison, compare
from edgeres.verify.candidates import Candidates
from edgeres.verify.distributed import compare_on
from edgeres.verify.latency import LatencyPlan, measure_latency
from edgeres.verify.layer_noise import LayerNoise, layer_noise, missing
from edgeres.verify.preprocessing import better_input
from edgeres.verify.thumbnails import thumbnails

# Candidates that run at a time; each holds the activations of a batch, so more cores give each of them more threads.
MOST_WORKERS = 4
LATENCY_SCOPE = "host to host, batch 1, 1 thread"


@dataclass(frozen=True)
class Measured:
    """What was measured in one run.

    Attributes:
        images: the validation images, as they were used.
        headline: the candidate in ``comparison`` that stands first in the report, and whose latency was measured.
        latency: of ``fp32`` and ``int8``, in one run; None where no candidate is timed here.
        layer_noise: by candidate; None where it was not measured.
        thumbnails: JPEG files in base64 of images that INT8 gets wrong, by the image's name.
        seconds: wall time of all of it.
        reasons: why something was not measured, by its path in the report.
        created: time in ISO 8601 with its zone.
        environment: versions and machine.
    """

    images: DataRecord | None = None
    headline: str = ""
    comparison: Comparison | None = None
    latency: Mapping[str, Measurement] | None = None
    layer_noise: Mapping[str, LayerNoise] | None = None
    thumbnails: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    reasons: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Validation:
    """The images to measure on.

    Attributes:
        loader: opens them here.
        data: the user's words for them, by which the workers of a cluster open them.
        reasons: why figures will be missing, by their path in the report: images without labels have no accuracy.
    """

    loader: Loader
    data: DataChoice = DataChoice()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasurePlan:
    """How to measure.

    Attributes:
        scheduler: address of a Dask scheduler whose workers run the graphs over the images; None: this machine does.
        thumbnails: whether the report gets pictures of what INT8 gets wrong.
        zeros: share of zeros by tensor of the FP32 graph on the calibration images.
    """

    scheduler: str | None = None
    thumbnails: bool = True
    zeros: Mapping[str, float] = field(default_factory=dict)


def measure(
    candidates: Candidates,
    spec: ModelSpec,
    images: Validation,
    progress: Progress = SILENT,
    plan: MeasurePlan = MeasurePlan(),
) -> Measured:
    """Run every image through every candidate once, measure noise layer by layer, then time what is timed here.

    Raises:
        SourceError: images cannot be read, or labels do not fit.
        ModelError: a graph cannot be loaded, or gives outputs that are not finite.
    """
    start, loader = perf_counter(), images.loader
    if plan.scheduler is None:
        comparison = _compare(candidates, spec, loader, progress)
    else:
        comparison = compare_on(plan.scheduler, candidates, spec, images.data, loader, progress)
    comparison = replace(comparison, better_input=better_input(candidates.reference, loader, comparison))
    reasons = dict(images.reasons)
    noise = None
    if why := missing():
        reasons["anatomy"] = why
    else:
        noise = layer_noise(candidates, loader, progress, plan.zeros)
    latency = _latency(candidates, loader, progress)
    if latency is None:
        reasons["latency"] = "the bundle has no graph for this machine's CPU, and engines run on their device only"
    return Measured(
        images=DataRecord.of(loader, comparison.images, comparison.pixels),
        headline=candidates.headline,
        comparison=comparison,
        latency=latency,
        layer_noise=noise,
        thumbnails=thumbnails(loader.source, comparison, candidates.headline) if plan.thumbnails else {},
        seconds=perf_counter() - start,
        reasons=reasons,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        environment=environment(),
    )


def _compare(candidates: Candidates, spec: ModelSpec, loader: Loader, progress: Progress) -> Comparison:
    cores = os.cpu_count() or 1
    workers = min(cores, MOST_WORKERS)
    with ExitStack() as stack:
        reference = stack.enter_context(candidates.reference.open(cores // workers))
        others = {name: stack.enter_context(one.open(cores // workers)) for name, one in candidates.others.items()}
        return compare(reference, others, loader, spec, progress, workers=workers)


def _latency(candidates: Candidates, loader: Loader, progress: Progress) -> Mapping[str, Measurement] | None:
    """The reference and the candidate that is timed here, one thread each; None where none is."""
    timed = next((candidate for candidate in candidates.others.values() if candidate.timed), None)
    if timed is None:
        return None
    image = next(iter(Loader(loader.source, loader.preprocess, 1, on_unreadable="skip"))).inputs

    def feed(runner: Runner) -> Feed:
        return {runner.input_name: np.ascontiguousarray(image)}

    with candidates.reference.open(1) as fp32, timed.open(1) as int8:
        return measure_latency({"fp32": fp32, "int8": int8}, feed, LatencyPlan(LATENCY_SCOPE), progress)
