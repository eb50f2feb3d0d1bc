"""Profile what :func:`edgeres.load` would run of a bundle on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgeres.bundle import Bundle, steady
from edgeres.device.cpu import this_cpu
from edgeres.errors import EngineError, UsageError
from edgeres.profiling.files import from_events, layer_facts
from edgeres.profiling.layers import Profile, Run, Slice
from edgeres.progress import SILENT, Progress
from edgeres.runtime.choose import Choice, open_backend
from edgeres.runtime.engine import TensorRTRunner
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.prepared import takes_bytes
from edgeres.runtime.runner import Backend, Feed
from edgeres.signing import Anyone, permit_for

Json = dict[str, Any]
_NO_LAYERS = "the engine says nothing of its layers' types: build it again with this edgeres"


@dataclass(frozen=True)
class ProfileOptions:
    """How to profile.

    Attributes:
        backend: as of :func:`edgeres.load`.
        batch: images per inference.
        threads: per operator on the CPU; 0 takes every core.
        runs: inferences under the profiler; before them a fifth as many, at least three, warm up.
        seed: of the random input images.
        trust: as of :class:`edgeres.runtime.Classifier`.
    """

    backend: Choice = "auto"
    batch: int = 1
    threads: int = 1
    runs: int = 50
    seed: int = 0
    trust: Path | Anyone | None = None

    @property
    def warmup(self) -> int:
        return max(3, self.runs // 5)


@dataclass(frozen=True)
class Profiled:
    """A profile, and the model and the backend by their names.

    Attributes:
        device: the CPU that ran it; None: the backend names its GPU.
        passed_over: a line for each runtime that the bundle has an engine for and that does not run here.
    """

    profile: Profile
    model: str
    backend: str
    device: str | None
    passed_over: tuple[str, ...]


def profile_bundle(path: Path, options: ProfileOptions, progress: Progress = SILENT) -> Profiled:
    """Profile the engine or the graph that :func:`edgeres.load` takes; the bundle is not changed.

    Raises:
        UsageError: a number is out of range.
        BundleError: a file is missing or was changed.
        EnvironmentError_: the backend does not run here.
    """
    for name, most in (("batch", 65536), ("runs", 1000)):
        if not 1 <= getattr(options, name) <= most:
            raise UsageError(f"must be a number from 1 to {most:,}, not {getattr(options, name)}", where=name)

    def opened(bundle: Bundle) -> tuple[Bundle, Backend, tuple[str, ...]]:
        permit = permit_for(bundle, options.trust)
        return bundle, *open_backend(bundle, options.backend, options.threads, 0, permit)

    bundle, backend, passed_over = steady(path, opened, lambda old: old[1].close())
    with backend:
        if backend.max_batch is not None and options.batch > backend.max_batch:
            hint = f"--batch {backend.max_batch}, or build an engine that takes more: --max-batch"
            raise UsageError(f"{backend.name} takes at most {backend.max_batch} images at once", hint=hint)
        shape = (options.batch, *(size or 1 for size in backend.inputs[0].shape[1:]))
        rng = np.random.default_rng(options.seed)
        images = rng.integers(0, 256, shape) if takes_bytes(backend) else rng.standard_normal(shape)
        feed = {backend.input_name: images.astype(backend.inputs[0].dtype)}
        with progress.task("profiling layers", total=options.runs) as advance:
            if isinstance(backend, TensorRTRunner):
                profile = _engine(backend, feed, options, advance)
            elif isinstance(backend, OrtRunner):
                profile = _graph(backend, feed, options)
                advance(options.runs)
            else:
                raise EngineError(f"{backend.name} has no profiler")
    built = {record.runtime for record in bundle.manifest.engines if record.file}
    device = None if isinstance(backend, TensorRTRunner) else this_cpu().model
    missing = tuple(line for line in passed_over if line.partition(":")[0] in built)
    return Profiled(profile, bundle.manifest.model.name, backend.name, device, missing)


def _engine(runner: TensorRTRunner, feed: Feed, options: ProfileOptions, advance: Callable[[int], None]) -> Profile:
    """An engine's layers, and the time between and around them from inferences without the profiler."""
    for _ in range(options.warmup):
        runner.timed(feed)
    times = [runner.timed(feed)[1] for _ in range(options.runs)]
    upload, compute, download = (
        1e3 * float(np.median([getattr(one, name) for one in times])) for name in ("upload", "compute", "download")
    )
    runs = []
    for index, layers in enumerate(runner.layer_times(feed, options.warmup + options.runs)):
        if index >= options.warmup:
            runs.append(Run(tuple(Slice(name, ms) for name, ms in layers)))
            advance(1)
    facts = layer_facts(_json(runner.layers()))
    profile = Profile(runner.name, tuple(runs), facts=facts, without_ms=upload + compute + download)
    between = compute - profile.to_dict()["layers_ms"]
    outside = {"copy to the GPU": upload, "copy from the GPU": download, "between layers": max(between, 0.0)}
    notes = [] if any(one.told for one in facts.values()) else [_NO_LAYERS]
    if between < 0:
        notes.append(f"timed one by one, the layers take {-between:.3f} ms more than the engine without the profiler")
    return replace(profile, outside=outside, notes=tuple(notes))


def _graph(runner: OrtRunner, feed: Feed, options: ProfileOptions) -> Profile:
    """A graph's kernels on ONNX Runtime, and what an inference takes without its profiler."""
    for _ in range(options.warmup):
        runner.infer(feed)
    seconds = []
    for _ in range(options.runs):
        begin = perf_counter()
        runner.infer(feed)
        seconds.append(perf_counter() - begin)
    profile = from_events(json.loads(runner.trace(feed, options.warmup + options.runs)))
    runs = profile.runs[options.warmup :]
    return replace(profile, runs=runs, without_ms=1e3 * float(np.median(seconds)))


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return {}
