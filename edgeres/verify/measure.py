"""Measures candidates against the FP32 reference: answers on images, noise of each layer, latency."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from time import perf_counter

import numpy as np

from edgeres.data.base import Source
from edgeres.data.choose import DataChoice
from edgeres.data.corruptions import CORRUPTIONS, Corrupted
from edgeres.data.loader import Loader
from edgeres.data.record import DataRecord
from edgeres.data.thumbnails import encode, thumbnail
from edgeres.device.environment import environment
from edgeres.errors import SourceError, why_left_out
from edgeres.progress import SILENT, Progress
from edgeres.records import Measurement, ModelSpec
from edgeres.verify.accuracy import Comparison, CorruptedAnswers, compare
from edgeres.verify.candidates import Candidates
from edgeres.verify.distributed import compare_on
from edgeres.verify.latency import LatencyPlan, measure_latency
from edgeres.verify.layer_noise import LayerNoise, layer_noise, why_unavailable
from edgeres.verify.preprocessing import search

# Graphs that run at the same time. Each holds the activations of a batch, so with more cores each gets more threads.
MAX_WORKERS = 4
MAX_THUMBNAILS = 24
LATENCY_SCOPE = "host to host, batch 1, 1 thread"


@dataclass(frozen=True)
class Measured:
    """The measurements of one run.

    Attributes:
        images: the validation images, as they were used.
        headline: name of the candidate that comes first in the report.
        latency: of ``fp32`` and ``int8``, in one run; None where no candidate is timed on this machine.
        layer_noise: by candidate; None where it was not measured.
        thumbnails: JPEG files in base64 of images that INT8 gets wrong, by the image's name.
        seconds: wall time of the measurements.
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
        loader: loads the images in this process.
        data: the user's choice of images, by which the workers of a cluster open them.
        reasons: why figures will be missing, by their path in the report; without labels there is no accuracy.
    """

    loader: Loader
    data: DataChoice = DataChoice()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasurePlan:
    """How to measure.

    Attributes:
        scheduler: address of a Dask scheduler whose workers run the graphs on the images; None: this machine does.
        thumbnails: whether the report shows images that INT8 gets wrong.
        zeros: share of zeros on the calibration images, by tensor of the FP32 graph.
        corruptions: whether the graphs also run on corrupted images; the seed is that of the images.
    """

    scheduler: str | None = None
    thumbnails: bool = True
    zeros: Mapping[str, float] = field(default_factory=dict)
    corruptions: bool = False


def measure(
    candidates: Candidates,
    spec: ModelSpec,
    images: Validation,
    progress: Progress = SILENT,
    plan: MeasurePlan = MeasurePlan(),
) -> Measured:
    """Run every image through every candidate once, then measure the noise of each layer and the latency.

    Raises:
        SourceError: images cannot be read, or labels do not fit.
        ModelError: a graph cannot be loaded, or gives outputs that are not finite.
    """
    start, loader = perf_counter(), images.loader
    comparison = _compare_where(plan, candidates, spec, images, progress)
    if plan.corruptions:
        corrupted = _compare_corrupted(plan, candidates, spec, images, progress)
        comparison = replace(comparison, corrupted=corrupted)
    searched = search(candidates, spec, loader, comparison, progress)
    comparison = replace(comparison, better_input=searched.better, tried=searched.tried)
    reasons = dict(images.reasons)
    noise = None
    if why := why_unavailable():
        reasons["anatomy"] = why
    else:
        try:
            noise = layer_noise(candidates, loader, progress, plan.zeros)
        except SourceError:
            raise
        except Exception as error:  # it explains other figures; without it they are all there
            reasons["anatomy"] = f"noise was not measured layer by layer: {why_left_out(error)}"
            progress.say(reasons["anatomy"])
    latency = _latency(candidates, loader, progress)
    if latency is None:
        why = "the bundle has no graph for this machine's CPU, and engines are timed on their device only"
        reasons["latency"] = why
    return Measured(
        images=DataRecord.of(loader, comparison.images, comparison.pixels),
        headline=candidates.headline,
        comparison=comparison,
        latency=latency,
        layer_noise=noise,
        thumbnails=_thumbnails(loader.source, comparison, candidates.headline) if plan.thumbnails else {},
        seconds=perf_counter() - start,
        reasons=reasons,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        environment=environment(),
    )


def _compare_where(
    plan: MeasurePlan, candidates: Candidates, spec: ModelSpec, images: Validation, progress: Progress
) -> Comparison:
    """Compare on this machine or on a cluster."""
    if plan.scheduler is None:
        return _compare(candidates, spec, images.loader, progress)
    return compare_on(plan.scheduler, candidates, spec, images.data, images.loader, progress)


def _compare_corrupted(
    plan: MeasurePlan, candidates: Candidates, spec: ModelSpec, images: Validation, progress: Progress
) -> tuple[CorruptedAnswers, ...]:
    """The answers of graphs with codes of their own, under one corruption after the other; images are not kept."""
    own = {name: one for name, one in candidates.others.items() if one.layers} or candidates.others
    chosen, loader, found = replace(candidates, others=own), images.loader, []
    for corruption in (None, *CORRUPTIONS):
        source = Corrupted(loader.source, corruption, images.data.seed)
        some = replace(images, loader=Loader(source, loader.preprocess, loader.batch_size, loader.on_unreadable))
        found.append(CorruptedAnswers(corruption, _compare_where(plan, chosen, spec, some, progress).table))
    return tuple(found)


def _compare(candidates: Candidates, spec: ModelSpec, loader: Loader, progress: Progress) -> Comparison:
    cores = os.cpu_count() or 1
    workers = min(cores, MAX_WORKERS)
    with ExitStack() as stack:
        reference = stack.enter_context(candidates.reference.open(cores // workers))
        others = {name: stack.enter_context(other.open(cores // workers)) for name, other in candidates.others.items()}
        return compare(reference, others, loader, spec, progress, workers=workers)


def _latency(candidates: Candidates, loader: Loader, progress: Progress) -> Mapping[str, Measurement] | None:
    """Latency of the reference and of the first candidate with ``timed`` set, one thread each; None where none has.

    Candidates that are timed run on the processor; engines are timed by ``edgeres bench`` on their device.
    """
    timed = next((candidate for candidate in candidates.others.values() if candidate.timed), None)
    if timed is None:
        return None
    first = next(iter(Loader(loader.source, loader.preprocess, 1, on_unreadable="skip")))
    image, plan = np.ascontiguousarray(first.inputs), LatencyPlan(LATENCY_SCOPE, on_cpu=True)
    with candidates.reference.open(1) as fp32, timed.open(1) as int8:
        runners = {"fp32": fp32, "int8": int8}
        return measure_latency(runners, lambda runner: {runner.input_name: image}, plan, progress)


def _thumbnails(source: Source, comparison: Comparison, headline: str) -> dict[str, str]:
    """JPEG files in base64 by the image's name, at most :data:`MAX_THUMBNAILS`; the headline's losses first."""
    table = comparison.table
    order = sorted(table.candidates, key=lambda name: name != headline)
    lost = dict.fromkeys(image.image for name in order for image in comparison.disagreements(name, table.lost(name)))
    index = {name: comparison.indices[i] for i, name in comparison.names.items() if i in comparison.indices}
    pictures: dict[str, str] = {}
    for name in [name for name in lost if name in index][:MAX_THUMBNAILS]:
        try:
            pictures[name] = encode(thumbnail(source.image(index[name])))
        except SourceError:  # it became unreadable during the run; the report leaves its picture out
            continue
    return pictures
