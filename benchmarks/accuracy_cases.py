"""Networks with their images for :mod:`accuracy`, and measuring the cost of quantization."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from edgeres.data.arrays import CIFAR10_CLASSES, Arrays
from edgeres.data.base import Source, subset
from edgeres.data.choose import DataChoice, choose_sources
from edgeres.data.loader import Loader
from edgeres.errors import UsageError
from edgeres.pipeline.options import RangeOptions
from edgeres.pipeline.take import Fp32Model, ModelChoice, take
from edgeres.records import Style
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.runner import Feed

_T = TypeVar("_T")

CALIBRATION_IMAGES = 512
# Short measurements are repeated for a stable median.
_REPEATS, _REPEAT_UNTIL_S = 5, 15.0
# Size of a validation batch in pixels: 250 images at 32 px.
_BATCH_PIXELS, _LEAST_BATCH = 256_000, 16


@dataclass(frozen=True)
class Subject:
    """A trained network and its images; paths are relative to ``--data``.

    Attributes:
        model: zoo name, or an ONNX file.
        calibration, validation: as ``edgeres build`` takes them; ``signs...`` is the generated set.
        weights: a checkpoint; None: the bundled ones.
        labels: class names in the order of the outputs, where the weights do not have them.
        default: whether it is measured without ``--model``.
    """

    model: str
    calibration: str
    validation: str
    weights: str | None = None
    labels: Sequence[str] | None = None
    default: bool = True


def _cifar10(model: str, weights: str) -> Subject:
    train, test = "data/cifar10_train4000.npz", "data/cifar10_test10000_jpeg.zip"
    return Subject(model, train, test, f"weights/{weights}", CIFAR10_CLASSES)


_SIGNS = (f"signs:{CALIBRATION_IMAGES}@0", "signs:5000@1")

MODELS = {
    "resnet20": _cifar10("resnet20", "resnet20-12fca82f.th"),
    "resnet32": _cifar10("resnet32", "resnet32-d509ac18.th"),
    # Only on demand, because of 224 px. Calibration and validation of signs never share an image, whatever their seeds.
    "resnet18-signs": Subject("resnet18", *_SIGNS, default=False),
    "resnet20-signs": Subject("resnet20", *_SIGNS, default=False),
}


class Recorded:
    """A runner that replays FP32 scores of every batch, which are computed once."""

    def __init__(self, graph: onnx.ModelProto, images: Loader, threads: int) -> None:
        with OrtRunner(graph.SerializeToString(), threads=threads) as runner:
            self.name, self.input_name, self.output_name = runner.name, runner.input_name, runner.output_name
            self._scores = [runner.infer({self.input_name: batch.inputs}) for batch in images]
        self._turn = iter(self._scores)

    def infer(self, feed: Feed) -> Feed:
        return next(self._turn)

    def __enter__(self) -> Recorded:
        self._turn = iter(self._scores)
        return self

    def __exit__(self, *error: object) -> None:
        return None


@dataclass(frozen=True)
class Case:
    """One network with its images, and its FP32 scores on the validation images.

    Attributes:
        threads: of ONNX Runtime when graphs are compared; 0: every core.
    """

    name: str
    fp32: Fp32Model
    calibration: Loader
    validation: Loader
    reference: Recorded
    threads: int


@dataclass(frozen=True)
class Cost:
    """Cost of quantizing, including calibration.

    Attributes:
        seconds: wall time, the median of ``runs``.
        forward_passes: that over one plain FP32 forward pass over the calibration images, median of the ratios.
    """

    seconds: float
    forward_passes: float
    runs: int


@dataclass(frozen=True)
class Result:
    """A quantized graph.

    Attributes:
        by: who quantized it.
        images: for validation, in the form its input takes.
        steps: what each refinement brought, as the recipe reports it.
        environment: of a peer that ran elsewhere.
    """

    name: str
    by: str
    graph: onnx.ModelProto
    images: Loader
    style: Style = "tensorrt"
    cost: Cost | None = None
    steps: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conditions:
    """Of a run.

    Attributes:
        data: what a subject's paths are relative to.
        cache: folder that keeps rendered images, outside the repository.
        seed: of the calibration images; None takes the first of their source, which any other tool can take too.
        threads: see :class:`Case`.
    """

    data: Path
    cache: Path
    seed: int | None = None
    threads: int = 0


def load_case(name: str, subject: Subject, run: Conditions) -> Case:
    """Open a network and its images, and run FP32 once.

    Raises:
        EdgeresError: something is not there or does not fit.
    """

    def located(text: str) -> str:
        return text if text.startswith("signs") else str(run.data / text)

    model = located(subject.model) if subject.model.endswith(".onnx") else subject.model
    fp32 = take(ModelChoice(model, subject.weights and located(subject.weights), labels=subject.labels))
    data = DataChoice(located(subject.calibration), located(subject.validation), sys.maxsize)
    sources = choose_sources(data, fp32.spec)
    if sources.overlap:
        raise UsageError("calibration and validation are the same images", where=name)
    pre = fp32.spec.preprocess
    batch = max(_LEAST_BATCH, _BATCH_PIXELS // (pre.crop_px[0] * pre.crop_px[1]))
    calibration, validation = (
        rendered_once(source, run.cache) if text.startswith("signs") else source
        for source, text in (
            (_some(sources.calibration, run.seed), subject.calibration),
            (sources.validation, subject.validation),
        )
    )
    images = Loader(validation, pre, batch)
    recorded = Recorded(fp32.graph, images, run.threads)
    return Case(name, fp32, Loader(calibration, pre, RangeOptions.batch), images, recorded, run.threads)


def _some(source: Source, seed: int | None) -> Source:
    """The calibration images: the first ones, or drawn evenly over the classes."""
    if seed is not None:
        return subset(source, CALIBRATION_IMAGES, seed)
    if len(source) <= CALIBRATION_IMAGES:
        return source
    first = np.arange(CALIBRATION_IMAGES)
    description = f"the first {CALIBRATION_IMAGES} of {source.description}"
    return source.at(first, description)


def rendered_once(source: Source, folder: Path) -> Source:
    """Render a generated set into a file in ``folder``, which later passes and runs read."""
    path = folder / f"{source.digest()[:16]}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{path.stem}.partial-{os.getpid()}.npy"
        # A forked child would inherit the locks of ONNX Runtime's threads.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            images = pool.map(source.image, range(len(source)), chunksize=32)
            first = next(images)
            shape = (len(source), *first.shape)
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            for index, image in enumerate(chain([first], images)):
                array[index] = image
        array.flush()
        partial.replace(path)
    held = Arrays(np.load(path, mmap_mode="r"), source.labels, source.classes, "")
    held.description = source.description
    return held


def timed(case: Case, work: Callable[[], tuple[_T, float]], *, repeat: bool = False) -> tuple[_T, Cost]:
    """Result and cost of ``work``, which returns its own seconds; plain forward passes run before and after it."""
    seconds: list[float] = []
    passes = [_forward_seconds(case)]
    while not seconds or (repeat and len(seconds) < _REPEATS and sum(seconds) < _REPEAT_UNTIL_S):
        made, spent = work()
        seconds.append(spent)
        passes.append(_forward_seconds(case))
    ratios = [2 * s / (before + after) for s, before, after in zip(seconds, passes, passes[1:], strict=False)]
    return made, Cost(statistics.median(seconds), statistics.median(ratios), len(seconds))


def clocked(work: Callable[[], _T]) -> Callable[[], tuple[_T, float]]:
    """The same function, which also returns its wall time in seconds."""

    def run() -> tuple[_T, float]:
        start = time.perf_counter()
        made = work()
        return made, time.perf_counter() - start

    return run


def _forward_seconds(case: Case) -> float:
    """Seconds of one plain FP32 pass over the calibration images, with reading them but without loading the graph."""
    with OrtRunner(case.fp32.graph.SerializeToString()) as runner:
        start = time.perf_counter()
        for batch in case.calibration:
            runner.infer({runner.input_name: batch.inputs})
        return time.perf_counter() - start
