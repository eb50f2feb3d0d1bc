"""Measures candidates against the FP32 reference: answers on images, noise of each layer, latency."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from edgeres.data.base import Source
from edgeres.data.choose import DataChoice
from edgeres.data.corruptions import CORRUPTIONS, Corrupted
from edgeres.data.loader import Loader
from edgeres.data.record import DataRecord
from edgeres.data.thumbnails import encode, thumbnail
from edgeres.device.environment import environment, recorded_time
from edgeres.errors import SourceError, why_left_out
from edgeres.progress import SILENT, Progress
from edgeres.records import Measurement, ModelSpec
from edgeres.runtime.prepared import fed
from edgeres.verify.accuracy import Comparison, CorruptedAnswers, compare
from edgeres.verify.candidates import Candidate, Candidates
from edgeres.verify.device import DeviceRun
from edgeres.verify.distributed import compare_on
from edgeres.verify.engines import choose_reference, sample_engines
from edgeres.verify.frames import sample_frames
from edgeres.verify.latency import LatencyPlan, measure_latency
from edgeres.verify.layer_noise import LayerNoise, layer_noise, why_unavailable
from edgeres.verify.preprocessing import search

# Graphs that run at the same time. Each holds the activations of a batch, so with more cores each gets more threads.
MAX_WORKERS = 4
MAX_THUMBNAILS = 24
LATENCY_SCOPE = "host to host, batch 1, 1 thread"
ENGINE_SCOPE = "host to host, batch 1"


@dataclass(frozen=True)
class Measured:
    """The measurements of one run.

    Attributes:
        images: the validation images, as they were used.
        headline: name of the candidate that comes first in the report.
        latency: of ``fp32``, ``int8`` and for engines ``fp16``, in one run; None where nothing is timed here.
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
    start, created, loader = perf_counter(), recorded_time(), images.loader
    with progress.stage("compare", f"comparing INT8 with FP32 on {len(loader.source):,} images"):
        comparison = _compared(candidates, spec, images, plan, progress)
    common = measure_common(candidates, loader, plan, progress)
    return Measured(
        images=DataRecord.of(loader, comparison.images, comparison.pixels),
        headline=candidates.headline,
        comparison=comparison,
        latency=common.latency,
        layer_noise=common.layer_noise,
        thumbnails=_thumbnails(loader.source, comparison, candidates.headline) if plan.thumbnails else {},
        seconds=perf_counter() - start,
        reasons={**images.reasons, **common.reasons},
        created=created,
        environment=environment(),
    )


@dataclass(frozen=True)
class CommonFigures:
    """What is measured of every network, whatever its outputs are for; as in :class:`Measured`."""

    latency: Mapping[str, Measurement] | None
    layer_noise: Mapping[str, LayerNoise] | None
    reasons: Mapping[str, str]


def measure_common(candidates: Candidates, loader: Loader, plan: MeasurePlan, progress: Progress) -> CommonFigures:
    """Measure the noise of each layer and the latency."""
    with progress.stage("time", "measuring noise layer by layer, and latency"):
        noise, why_none = _noise(candidates, loader, plan, progress)
        latency = _latency(candidates, loader, progress)
    return CommonFigures(latency, noise, {**why_none, **_no_latency(candidates, latency)})


def _compared(
    candidates: Candidates, spec: ModelSpec, images: Validation, plan: MeasurePlan, progress: Progress
) -> Comparison:
    """The answers of all candidates, on corrupted images too where asked, and a better preprocessing."""
    loader = images.loader
    if candidates.engines and plan.scheduler is None:
        comparison = _on_device(candidates, spec, loader, progress)
    else:
        comparison = _compare_where(plan, candidates, spec, images, progress)
    if plan.corruptions:
        corrupted = _compare_corrupted(plan, candidates, spec, images, progress)
        comparison = replace(comparison, corrupted=corrupted)
    searched = search(candidates, spec, loader, comparison, progress)
    frames = sample_frames(candidates, loader, spec, progress)
    device = replace(comparison.device, not_run=candidates.not_run, frames=frames)
    return replace(comparison, better_input=searched.better, tried=searched.tried, device=device)


def _noise(
    candidates: Candidates, loader: Loader, plan: MeasurePlan, progress: Progress
) -> tuple[Mapping[str, LayerNoise] | None, dict[str, str]]:
    """Noise layer by layer, or why there is none: it explains other figures, which are all there without it."""
    if why := why_unavailable():
        return None, {"anatomy": why}
    try:
        return layer_noise(candidates, loader, progress, plan.zeros), {}
    except SourceError:
        raise
    except Exception as error:
        why = f"noise was not measured layer by layer: {why_left_out(error)}"
        progress.say(why)
        return None, {"anatomy": why}


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
    """The answers of engines, or of graphs with codes of their own, one corruption after the other."""
    graphs = {name: one for name, one in candidates.others.items() if one.layers}
    own = candidates.engines or graphs or candidates.others
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


def _on_device(candidates: Candidates, spec: ModelSpec, loader: Loader, progress: Progress) -> Comparison:
    """Compare where engines run: they see every image, their graphs a sample."""
    samples = sample_engines(candidates, loader, spec, progress)
    known = candidates.known
    reference = choose_reference(candidates, samples, loader.source.digest() if known else "")
    others = {name: one for name, one in candidates.others.items() if one is not reference.candidate}
    chosen = replace(candidates, reference=reference.candidate, others=others)
    return replace(_compare(chosen, spec, loader, progress), device=DeviceRun(reference.why, samples))


def _latency(candidates: Candidates, loader: Loader, progress: Progress) -> Mapping[str, Measurement] | None:
    """Latency by precision, in alternating blocks of one run; None where nothing is timed on this machine.

    Where engines run, those of the headline's runtime are timed; else the reference and the first candidate with
    ``timed`` set, on one thread of the processor each.
    """
    timed = next((candidate for candidate in candidates.others.values() if candidate.timed), None)
    networks = _engines_to_time(candidates)
    on_cpu = not networks
    if on_cpu and timed is not None:
        networks = {"fp32": candidates.reference, "int8": timed}
    if not networks:
        return None
    first = next(iter(Loader(loader.source, loader.preprocess, 1, on_unreadable="skip")))
    image = np.ascontiguousarray(first.inputs)
    plan = LatencyPlan(LATENCY_SCOPE if on_cpu else ENGINE_SCOPE, on_cpu=on_cpu)
    with ExitStack() as stack:
        runners = {name: stack.enter_context(network.open(1)) for name, network in networks.items()}
        return measure_latency(
            runners, lambda runner: {runner.input_name: fed(runner, image, loader.preprocess)}, plan, progress
        )


def _engines_to_time(candidates: Candidates) -> dict[str, Candidate]:
    """The engines of the headline's runtime by precision, FP32 first; empty where the headline is no engine."""
    engines, head = candidates.engines, candidates.headline.partition(" ")[0]
    same = {engine.precision: engine for name, engine in engines.items() if name.partition(" ")[0] == head}
    return {precision: same[precision] for precision in ("fp32", "fp16", "int8") if precision in same}


def _no_latency(candidates: Candidates, latency: Mapping[str, Measurement] | None) -> dict[str, str]:
    """Why a latency was not measured, by its path in the report."""
    if latency is None:
        why = "; ".join(f"{file}: {reason}" for file, reason in candidates.not_run.items())
        told = f"and no engine runs on this machine ({why})" if why else "and engines are timed on their device only"
        return {"latency": f"the bundle has no graph for this machine's CPU, {told}"}
    missing = [name for name in ("fp32", "fp16", "int8") if name not in latency] if candidates.engines else []
    why = "the bundle has no {} engine that runs here; edgeres engine BUNDLE builds one"
    paths = {"fp32": ("fp32", "speedup"), "fp16": ("fp16", "speedup_fp16"), "int8": ("int8", "speedup", "speedup_fp16")}
    return {f"latency.{path}": why.format(name.upper()) for name in missing for path in paths[name]}


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
