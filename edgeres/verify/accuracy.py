"""Compares the answers of the FP32 reference and of its candidates on the same images, in one pass over the data."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from edgeres.data.base import Source
from edgeres.data.corruptions import Corruption
from edgeres.data.loader import Batch, Loader
from edgeres.data.pixels import Pixels, PixelTally
from edgeres.errors import ModelError, SourceError
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, F64, I64, Accuracy, ModelSpec
from edgeres.runtime.prepared import fed
from edgeres.runtime.runner import Feed, Runner
from edgeres.verify.answers import REFERENCE, AnswerTable, Mask
from edgeres.verify.device import DeviceRun
from edgeres.verify.statistics import Sqnr

R = TypeVar("R")
TOP_K = 5
KEPT_SCORES = 1 << 20  # so many scores of the reference travel with a bundle, 4 MB of float32


@dataclass(frozen=True)
class Scored:
    """Figures from the scores of one candidate, besides its answers.

    Attributes:
        runner: name of the backend that ran it.
        in_top5: number of labelled images whose label is among the five highest scores.
        sqnr_db: SQNR of its logits against the reference's; None for the reference itself, inf where they are equal.
        sqnr_db_ci95: 95 % interval over the choice of images; None where it is not defined.
        power: of each image's noise, for the reference of each image's logits, float64 (N,); None: not measured.
    """

    runner: str
    in_top5: int
    sqnr_db: float | None = None
    sqnr_db_ci95: tuple[float, float] | None = None
    power: F64 | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Disagreement:
    """An image that reference and candidate put into different classes, given by index."""

    image: str
    label: int
    reference: int
    candidate: int


@dataclass(frozen=True)
class BetterInput:
    """Another preprocessing with which FP32 is right significantly more often.

    Attributes:
        way: the other preprocessing in words, e.g. ``channels in the order BGR``.
        right, right_otherwise: how many of ``images`` FP32 gets right as configured, and with the other preprocessing.
        p: p-value, corrected for all ways that were tried.
        options: of the command line, with which the next build computes it; empty where there is none.
    """

    way: str
    images: int
    right: int
    right_otherwise: int
    p: float
    options: str = ""


@dataclass(frozen=True)
class CorruptedAnswers:
    """The answers to images under a corruption; None: the same images as they are."""

    corruption: Corruption | None
    table: AnswerTable


@dataclass(frozen=True)
class Comparison:
    """The FP32 reference and its candidates on the same images.

    Attributes:
        table: the answers.
        scored: figures from the scores, by candidate and for the reference.
        names: names of the images that a candidate answers differently from the reference, by position in the table.
        indices: indices of those images in the source, by position in the table.
        pixels: mean colours of the images; None where they were not measured.
        better_input: another preprocessing with which FP32 is significantly more often right; None: none was found.
        tried: the other preprocessings that were tried, in words.
        corrupted: the answers to corrupted images, those as they are first; empty where none were corrupted.
        reference_scores: of the reference, float32 (N, classes), by position; None: more than :data:`KEPT_SCORES`.
        device: what was found of the bundle's engines on this machine.
    """

    table: AnswerTable
    scored: Mapping[str, Scored]
    names: Mapping[int, str]
    indices: Mapping[int, int] = field(default_factory=dict)
    pixels: Pixels | None = None
    better_input: BetterInput | None = None
    tried: tuple[str, ...] = ()
    corrupted: tuple[CorruptedAnswers, ...] = ()
    reference_scores: F32 | None = field(default=None, compare=False)
    device: DeviceRun = DeviceRun()

    @property
    def images(self) -> int:
        return self.table.images

    def accuracy(self, name: str) -> Accuracy | None:
        """Hits on the labelled images; None where there are none."""
        table = self.table
        if not table.labelled:
            return None
        return Accuracy(int(table.right(name).sum()), self.scored[name].in_top5, table.labelled)

    def disagreements(self, candidate: str, chosen: Mask) -> list[Disagreement]:
        """The images in ``chosen``, bool (N,), with both answers; they must differ on each of them."""
        labels, reference, answers = self.table.labels, self.table.answers[REFERENCE], self.table.answers[candidate]
        return [
            Disagreement(self.names[i], int(labels[i]), int(reference[i]), int(answers[i]))
            for i in np.flatnonzero(chosen).tolist()
        ]


class KnownRunner:
    """A runner that gives known scores by an image's position in its source, and computes nothing.

    Args:
        scores: float32 (N, classes).
    """

    input_name, output_name = "image", "scores"

    def __init__(self, name: str, scores: F32) -> None:
        self.name, self._scores = name, scores

    def scores_at(self, batch: Batch) -> F32:
        found: F32 = self._scores[batch.indices]
        return found

    def infer(self, feed: Feed) -> Feed:
        raise AssertionError("known scores are read by position")

    def __enter__(self) -> KnownRunner:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class _Column:
    """Collects the answers of one candidate, batch by batch, in about 16 bytes per image."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._predicted: list[I64] = []
        self._in_top5 = 0
        self._sqnr = Sqnr()
        self.kept: list[F32] | None = None

    def add(self, scores: F32, labels: I64) -> None:
        if self.kept is not None:
            self.kept.append(scores)
        self._predicted.append(scores.argmax(axis=1))
        self._in_top5 += int(((labels >= 0) & (_rank(scores, labels) < TOP_K)).sum())

    def add_noise(self, reference: F32, logits: F32) -> None:
        self._sqnr.add(reference, logits)

    @property
    def answers(self) -> I64:
        return np.concatenate(self._predicted)

    def scored(self, *, is_reference: bool) -> Scored:
        if is_reference:
            return Scored(self.runner.name, self._in_top5, power=self._sqnr.signal)
        return Scored(self.runner.name, self._in_top5, self._sqnr.decibels, self._sqnr.interval, self._sqnr.noise)


def compare(
    reference: Runner,
    candidates: dict[str, Runner],
    loader: Loader,
    spec: ModelSpec,
    progress: Progress = SILENT,
    *,
    workers: int = 1,
) -> Comparison:
    """Run the reference and every candidate over the same batches.

    The signal in a candidate's SQNR is the reference's logits. Where the graph ends in Softmax, the signal is log p,
    centred per image: this equals the logits up to a constant per image, which changes no answer.

    Args:
        reference: the FP32 graph.
        candidates: INT8 graphs by name (``tensorrt``, ``cpu``).
        spec: the network; the graph must have one output per label.
        workers: how many graphs run at the same time, each in a thread of its own; the answers do not depend on it.
            Several runners with one thread each keep all cores busy; one runner with many threads waits for the slowest
            of them after every layer.

    Raises:
        ModelError: an output is not finite (with the image's name), or the number of outputs is not that of the labels.
        SourceError: there is no image, or a label is outside the network's classes.
    """
    source = loader.source
    base = _Column(reference)
    base.kept = [] if len(source) * spec.num_classes <= KEPT_SCORES else None
    columns = {REFERENCE: base, **{name: _Column(runner) for name, runner in candidates.items()}}
    pixels = PixelTally(loader.preprocess)
    labels: list[I64] = []
    positions: list[I64] = []
    with progress.task("comparing INT8 with FP32", total=len(source)) as advance:

        def answer(runner: Runner, batch: Batch) -> F32:
            _check_labels(batch, spec, source)
            return scores_of(runner, batch, spec, source)

        for batch, all_scores in answered([reference, *candidates.values()], loader, answer, workers):
            signal = logits(all_scores[0], spec)
            for column, scores in zip(columns.values(), all_scores, strict=True):
                column.add(scores, batch.labels)
                column.add_noise(signal, signal if column is base else logits(scores, spec))
            pixels.add(batch.inputs)
            labels.append(batch.labels)
            positions.append(batch.indices)
            advance(len(batch.labels))
    if not labels:
        raise SourceError("there is no image to compare on", where=source.description)
    answers = {name: column.answers for name, column in columns.items()}
    table = AnswerTable(np.concatenate(labels), spec.num_classes, answers)
    scored = {name: column.scored(is_reference=column is base) for name, column in columns.items()}
    differs = np.any([column != answers[REFERENCE] for column in answers.values()], axis=0)
    index_of = np.concatenate(positions)
    indices = {i: int(index_of[i]) for i in np.flatnonzero(differs).tolist()}
    names = {i: source.name(index) for i, index in indices.items()}
    kept = None if base.kept is None else np.concatenate(base.kept)
    return Comparison(table, scored, names, indices, pixels.pixels, reference_scores=kept)


def answered(
    runners: Sequence[Runner], loader: Loader, answer: Callable[[Runner, Batch], R], workers: int
) -> Iterator[tuple[Batch, list[R]]]:
    """Batches in order with the answers of every runner; a few batches are computed ahead.

    Args:
        answer: what a runner says to a batch.
        workers: how many graphs run at the same time.
    """
    if workers == 1:
        for batch in loader:
            yield batch, [answer(runner, batch) for runner in runners]
        return
    waiting: deque[tuple[Batch, list[Future[R]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="edgeres-verify")
    try:
        for batch in loader:
            waiting.append((batch, [pool.submit(answer, runner, batch) for runner in runners]))
            if len(waiting) > workers:
                done, answers = waiting.popleft()
                yield done, [one.result() for one in answers]
        while waiting:
            done, answers = waiting.popleft()
            yield done, [one.result() for one in answers]
    finally:
        pool.shutdown(cancel_futures=True)


def scores_of(runner: Runner, batch: Batch, spec: ModelSpec, source: Source) -> F32:
    """Class scores, float32 (B, classes).

    Raises:
        ModelError: there is not one score per label, or a score is not finite.
    """
    if isinstance(runner, KnownRunner):
        return runner.scores_at(batch)
    output = runner.infer({runner.input_name: fed(runner, batch.inputs, spec.preprocess)})[runner.output_name]
    scores: F32 = output.reshape(len(batch.labels), -1).astype(np.float32, copy=False)
    if scores.shape[1] != spec.num_classes:
        raise ModelError(
            f"the graph has {scores.shape[1]} outputs for {spec.num_classes} labels",
            where=spec.name,
            hint="give labels that belong to this model",
        )
    not_finite = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(not_finite):
        raise ModelError(
            f"{runner.name} gives an output that is not finite",
            where=source.name(int(batch.indices[not_finite[0]])),
            hint="check the weights and the preprocessing for values out of range",
        )
    return scores


def logits(scores: F32, spec: ModelSpec) -> F32:
    if spec.output == "logits":
        return scores
    log_p: F32 = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    centred: F32 = log_p - log_p.mean(axis=1, keepdims=True)
    return centred


def _rank(scores: F32, labels: I64) -> I64:
    """Rank of the label's class by score, int64 (B,); 0 is the highest, equal scores rank by index as in argmax."""
    label = np.maximum(labels, 0)[:, None]
    own = np.take_along_axis(scores, label, axis=1)
    earlier = np.arange(scores.shape[1]) < label
    rank: I64 = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return rank


def _check_labels(batch: Batch, spec: ModelSpec, source: Source) -> None:
    beyond = np.flatnonzero(batch.labels >= spec.num_classes)
    if len(beyond):
        raise SourceError(
            f"label {batch.labels[beyond[0]]} is outside the model's {spec.num_classes} classes",
            where=source.name(int(batch.indices[beyond[0]])),
            hint="validate on data with the model's own classes",
        )
