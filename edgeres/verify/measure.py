"""A bundle's graphs against their FP32 baseline: accuracy on images, latency on this machine's CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgeres.bundle import CALIBRATION
from edgeres.data.choose import DataChoice
from edgeres.data.loader import Loader
from edgeres.graph.forms import FORMS
from edgeres.progress import SILENT, Progress
from edgeres.records import Measurement, ModelSpec
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.runner import Feed, Runner
from edgeres.verify import layer_noise
from edgeres.verify.accuracy import Comparison, compare
from edgeres.verify.distributed import compare_on
from edgeres.verify.latency import LatencyPlan, measure
from edgeres.verify.layer_noise import Anatomy
from edgeres.verify.preprocessing import better_input, zeros_of
from edgeres.verify.thumbnails import thumbnails

# Graphs that run at a time; each holds the activations of a batch, so more cores give each of them more threads.
MOST_WORKERS = 4
LATENCY_SCOPE = "host to host, batch 1, 1 thread"


@dataclass(frozen=True)
class Graphs:
    """Files to verify: the FP32 graph, and INT8 graphs by style."""

    fp32: Path
    int8: Mapping[str, Path]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, FP32's under ``fp32``."""
        return {name: path.stat().st_size for name, path in {"fp32": self.fp32, **self.int8}.items()}

    @property
    def headline(self) -> str:
        """The graph whose figures stand first: the one that runs here."""
        return "cpu" if "cpu" in self.int8 else next(iter(self.int8))


@dataclass(frozen=True)
class Verified:
    """What was measured, and why something was not (by its path in the report).

    Attributes:
        anatomy: each INT8 graph from the inside.
        thumbnails: pictures of images that INT8 gets wrong, by name.
    """

    comparison: Comparison
    latency: Mapping[str, Measurement] | None
    reasons: Mapping[str, str] = field(default_factory=dict)
    anatomy: Mapping[str, Anatomy] | None = None
    thumbnails: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VerifyPlan:
    """How to verify.

    Attributes:
        scheduler: address of a Dask scheduler whose workers run the graphs over the images; None: this machine does.
        data: the user's words for the images, by which those workers open them.
        thumbnails: whether pictures of what INT8 gets wrong leave with the report.
    """

    scheduler: str | None = None
    data: DataChoice = DataChoice()
    thumbnails: bool = True


def verify(
    graphs: Graphs,
    spec: ModelSpec,
    loader: Loader,
    progress: Progress = SILENT,
    plan: VerifyPlan = VerifyPlan(),
) -> Verified:
    """Run every image through every graph once, look inside, then time FP32 and the CPU graph side by side.

    The graph for TensorRT runs with float arithmetic between its Q/DQ pairs, as TensorRT computes; its latency on a CPU
    would say nothing about a GPU and is not measured.

    Raises:
        SourceError: images cannot be read, or labels do not fit.
        ModelError: a graph cannot be loaded, or gives outputs that are not finite.
    """
    if plan.scheduler is None:
        comparison = _compare(graphs, spec, loader, progress)
    else:
        files = {"fp32": graphs.fp32, **graphs.int8}
        comparison = compare_on(plan.scheduler, files, spec, plan.data, loader, progress)
    comparison = replace(comparison, better_input=better_input(graphs.fp32, loader, comparison))
    reasons: dict[str, str] = {}
    inside, latency = None, None
    if why := layer_noise.missing():
        reasons["anatomy"] = why
    else:
        zeros = zeros_of(graphs.fp32.with_name(CALIBRATION))
        own = {name: path for name, path in graphs.int8.items() if FORMS[name].made_from is None}
        inside = layer_noise.dissect(graphs.fp32, own, loader, progress, zeros)
    if "cpu" in graphs.int8:
        latency = _latency(graphs, loader, progress)
    else:
        reasons["latency"] = "the bundle has no graph for this machine's CPU, and engines run on their device only"
    pictures = thumbnails(loader.source, comparison, graphs.headline) if plan.thumbnails else {}
    return Verified(comparison, latency, reasons, inside, pictures)


def _compare(graphs: Graphs, spec: ModelSpec, loader: Loader, progress: Progress) -> Comparison:
    cores = os.cpu_count() or 1
    workers = min(cores, MOST_WORKERS)
    with ExitStack() as stack:
        fp32 = stack.enter_context(OrtRunner(graphs.fp32, threads=cores // workers))
        int8: dict[str, Runner] = {
            style: stack.enter_context(OrtRunner(path, threads=cores // workers, integer=style == "cpu"))
            for style, path in graphs.int8.items()
        }
        return compare(fp32, int8, loader, spec, progress, workers=workers)


def _latency(graphs: Graphs, loader: Loader, progress: Progress) -> Mapping[str, Measurement]:
    image = next(iter(Loader(loader.source, loader.preprocess, 1, on_unreadable="skip"))).inputs
    with OrtRunner(graphs.fp32, threads=1) as fp32, OrtRunner(graphs.int8["cpu"], threads=1) as int8:

        def feed(runner: Runner) -> Feed:
            return {runner.input_name: np.ascontiguousarray(image)}

        return measure({"fp32": fp32, "int8": int8}, feed, LatencyPlan(LATENCY_SCOPE), progress)
