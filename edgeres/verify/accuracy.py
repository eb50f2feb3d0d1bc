"""FP32 against its INT8 candidates on the same images, in one pass over the data."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgeres.data.pixels import Pixels, PixelTally
from edgeres.errors import ModelError, SourceError
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, I64, Accuracy, ModelSpec
from edgeres.verify.classes import ClassFalls, paired_falls
from edgeres.verify.statistics import Estimate, Sqnr, paired_drop_pp, proportion_percent

if TYPE_CHECKING:
    from edgeres.data.base import Source
    from edgeres.data.loader import Batch, Loader
    from edgeres.runtime.runner import Runner

TOP_K = 5


@dataclass(frozen=True)
class Answers:
    """What one graph said about every image.

    Attributes:
        runner: the backend that ran it.
        predicted: int64 (N,), the class with the highest score; the first of equals.
        in_top5: bool (N,), whether the label is among the five highest; False where there is no label.
        sqnr_db: of its logits against the reference's; None for the reference itself, inf where they are equal.
        sqnr_db_ci95: its limits over the choice of images; None where there are none.
    """

    runner: str
    predicted: I64
    in_top5: npt.NDArray[np.bool_]
    sqnr_db: float | None = None
    sqnr_db_ci95: tuple[float, float] | None = None


@dataclass(frozen=True)
class Disagreement:
    """An image that one graph gets right and the other wrong: the classes by index."""

    image: str
    label: int
    reference: int
    candidate: int


@dataclass(frozen=True)
class Confusion:
    """How many images of class ``label`` the reference and the candidate put into class ``answer``."""

    label: int
    answer: int
    reference: int
    candidate: int


@dataclass(frozen=True)
class BetterInput:
    """Another way to prepare pixels, with which FP32 is right more often than luck allows.

    Attributes:
        way: in words, e.g. ``channels in the order BGR``.
        right, right_otherwise: of ``images``.
        p: that it is luck, over all ways that were tried.
    """

    way: str
    images: int
    right: int
    right_otherwise: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """Raw answers; every figure is derived from them.

    Attributes:
        labels: int64 (N,), -1 where unlabelled.
        num_classes: outputs of the network.
        names: of the images about which any candidate differs from the reference, by position in ``labels``.
        indices: of those images in the source.
        pixels: what the images look like on average; None where nobody looked.
        better_input: another way to prepare images with which FP32 is right far more often; None where none was found.
    """

    labels: I64
    num_classes: int
    reference: Answers
    candidates: dict[str, Answers]
    names: dict[int, str]
    indices: dict[int, int] = field(default_factory=dict)
    pixels: Pixels | None = None
    better_input: BetterInput | None = None

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> int:
        return int((self.labels >= 0).sum())

    def accuracy(self, answers: Answers) -> Accuracy | None:
        """Over the labelled images; None where there are none."""
        if not self.labelled:
            return None
        return Accuracy(int(self.right(answers).sum()), int(answers.in_top5.sum()), self.labelled)

    def per_class(self, answers: Answers) -> I64:
        """Hits by class, int64 (num_classes,)."""
        return np.bincount(self.labels[self.right(answers)], minlength=self.num_classes)

    @property
    def class_sizes(self) -> I64:
        """Labelled images by class, int64 (num_classes,)."""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.num_classes)

    def drop_pp(self, candidate: str) -> Estimate | None:
        """Top-1 lost against the reference in percentage points; None where there are no labels."""
        if not self.labelled:
            return None
        return paired_drop_pp(len(self.lost(candidate)), len(self.gained(candidate)), self.labelled)

    def agreement(self, candidate: str) -> Estimate:
        """Share of all images, labelled or not, that candidate and reference put into the same class, in per cent."""
        same = int((self.candidates[candidate].predicted == self.reference.predicted).sum())
        return proportion_percent(same, self.images)

    def lost(self, candidate: str) -> list[Disagreement]:
        """The images the reference gets right and the candidate wrong."""
        answers = self.candidates[candidate]
        return self._listed(answers, self.right(self.reference) & ~self.right(answers))

    def gained(self, candidate: str) -> list[Disagreement]:
        """The images the reference gets wrong and the candidate right."""
        answers = self.candidates[candidate]
        return self._listed(answers, self.right(answers) & ~self.right(self.reference))

    def falls(self, candidate: str) -> ClassFalls | None:
        """Classes that the candidate answers worse than the reference; None where there are no labels."""
        if not self.labelled:
            return None
        before, after = self.right(self.reference), self.right(self.candidates[candidate])
        return paired_falls(self.labels, before, after, self.num_classes)

    def confusions(self, candidate: str) -> list[Confusion]:
        """The wrong answers that the candidate gives more or less often than the reference, largest change first."""
        pairs = (
            self.labels[known] * self.num_classes + answers.predicted[known]
            for known in (self.labels >= 0,)
            for answers in (self.reference, self.candidates[candidate])
        )
        before, after = (dict(zip(*map(list, np.unique(p, return_counts=True)), strict=True)) for p in pairs)
        changed = [pair for pair in before.keys() | after.keys() if before.get(pair, 0) != after.get(pair, 0)]
        found = [
            Confusion(*divmod(int(pair), self.num_classes), int(before.get(pair, 0)), int(after.get(pair, 0)))
            for pair in changed
        ]
        wrong = [c for c in found if c.label != c.answer]
        return sorted(wrong, key=lambda c: (-abs(c.candidate - c.reference), c.label, c.answer))

    def right(self, answers: Answers) -> npt.NDArray[np.bool_]:
        """Which images are answered right, bool (N,); never those without a label."""
        right: npt.NDArray[np.bool_] = answers.predicted == self.labels
        return right

    def _listed(self, answers: Answers, chosen: npt.NDArray[np.bool_]) -> list[Disagreement]:
        return [
            Disagreement(
                self.names[i], int(self.labels[i]), int(self.reference.predicted[i]), int(answers.predicted[i])
            )
            for i in np.flatnonzero(chosen).tolist()
        ]


class _Tally:
    """Answers of one graph, batch by batch; memory grows by some 25 bytes an image."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._predicted: list[I64] = []
        self._in_top5: list[npt.NDArray[np.bool_]] = []
        self._sqnr = Sqnr()

    def add(self, scores: F32, labels: I64) -> None:
        self._predicted.append(scores.argmax(axis=1))
        self._in_top5.append((labels >= 0) & (_rank(scores, labels) < TOP_K))

    def add_noise(self, reference: F32, scores: F32) -> None:
        self._sqnr.add(reference, scores)

    def answers(self, *, is_reference: bool) -> Answers:
        said = (self.runner.name, np.concatenate(self._predicted), np.concatenate(self._in_top5))
        return Answers(*said) if is_reference else Answers(*said, self._sqnr.decibels, self._sqnr.interval)


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

    The signal in a candidate's SQNR is the reference's logits. Where the graph ends in Softmax it is log p, centred per
    image: the logits up to a constant per image that no answer depends on.

    Args:
        reference: the FP32 graph.
        candidates: INT8 graphs by name (``tensorrt``, ``cpu``).
        spec: of the network; its labels say how many outputs there must be.
        workers: graphs that run at a time, each in a thread of its own; the answers are the same. Runners of one
            thread each then keep all cores busy, where one of many threads waits for its slowest after every layer.

    Raises:
        ModelError: an output is not finite (with the image's name) or does not fit the labels.
        SourceError: there is no image, or a label is outside the network's classes.
    """
    source = loader.source
    tallies = {name: _Tally(runner) for name, runner in candidates.items()}
    first = _Tally(reference)
    pixels = PixelTally(loader.preprocess)
    labels: list[I64] = []
    positions: list[I64] = []
    with progress.task("comparing INT8 with FP32", total=len(source)) as advance:
        for batch, scores in _scored([reference, *candidates.values()], loader, spec, workers):
            truth = scores[0]
            first.add(truth, batch.labels)
            signal = _logits(truth, spec)
            for tally, found in zip(tallies.values(), scores[1:], strict=True):
                tally.add(found, batch.labels)
                tally.add_noise(signal, _logits(found, spec))
            pixels.add(batch.inputs)
            labels.append(batch.labels)
            positions.append(batch.indices)
            advance(len(batch.labels))
    if not labels:
        raise SourceError("there is no image to compare on", where=source.description)
    answers = {name: tally.answers(is_reference=False) for name, tally in tallies.items()}
    base = first.answers(is_reference=True)
    indices = np.concatenate(positions)
    differing = np.flatnonzero(np.any([a.predicted != base.predicted for a in answers.values()], axis=0)).tolist()
    where = {i: int(indices[i]) for i in differing}
    names = {i: source.name(index) for i, index in where.items()}
    return Comparison(np.concatenate(labels), spec.num_classes, base, answers, names, where, pixels.pixels)


def _scored(
    runners: Sequence[Runner], loader: Loader, spec: ModelSpec, workers: int
) -> Iterator[tuple[Batch, list[F32]]]:
    """Batches in order with the scores of every runner; a few batches are under way at a time."""
    source = loader.source
    if workers == 1:
        for batch in loader:
            _check_labels(batch, spec, source)
            yield batch, [_scores(runner, batch, spec, source) for runner in runners]
        return
    waiting: deque[tuple[Batch, list[Future[F32]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="edgeres-verify")
    try:
        for batch in loader:
            _check_labels(batch, spec, source)
            waiting.append((batch, [pool.submit(_scores, runner, batch, spec, source) for runner in runners]))
            if len(waiting) > workers:
                done, scores = waiting.popleft()
                yield done, [score.result() for score in scores]
        while waiting:
            done, scores = waiting.popleft()
            yield done, [score.result() for score in scores]
    finally:
        pool.shutdown(cancel_futures=True)


def _scores(runner: Runner, batch: Batch, spec: ModelSpec, source: Source) -> F32:
    """Class scores, float32 (B, classes); refuses what cannot be one."""
    output = runner.infer({runner.input_name: batch.inputs})[runner.output_name]
    scores: F32 = output.reshape(len(batch.labels), -1)
    if scores.shape[1] != spec.num_classes:
        raise ModelError(
            f"the graph has {scores.shape[1]} outputs for {spec.num_classes} labels",
            where=spec.name,
            hint="give labels that belong to this model",
        )
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(broken):
        raise ModelError(
            f"{runner.name} gives an output that is not finite",
            where=source.name(int(batch.indices[broken[0]])),
            hint="check the weights and the preprocessing for values out of range",
        )
    return scores


def _logits(scores: F32, spec: ModelSpec) -> F32:
    if spec.output == "logits":
        return scores
    log_p: F32 = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    centred: F32 = log_p - log_p.mean(axis=1, keepdims=True)
    return centred


def _rank(scores: F32, labels: I64) -> I64:
    """How many classes stand before the label's, 0 for the best; equals stand in the order of argmax. int64 (B,)"""
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
