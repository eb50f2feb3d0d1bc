"""Segmentation: the output is a map of scores, one per class and place.

The truth is a mask beside each image, PNG of class indices with 255 where a pixel is not judged. Without masks, INT8 is
compared with FP32 alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeres.judge.gates import COMMON, METRICS, Metric
from edgeres.records import F32, F64, I64, Head, ModelSpec
from edgeres.runtime.classifier import Predictor
from edgeres.runtime.runner import Backend, Feed
from edgeres.task.record import Clues, Task, TaskGate, TaskMeasured
from edgeres.verify.answers import REFERENCE

if TYPE_CHECKING:
    from edgeres.data.base import Source
    from edgeres.data.choose import DataChoice
    from edgeres.data.loader import Batch
    from edgeres.judge.asked import Asked
    from edgeres.judge.checks import Finding
    from edgeres.judge.document import Json, Section
    from edgeres.judge.part import Checks
    from edgeres.made import Made
    from edgeres.progress import Progress
    from edgeres.task.page import Page
    from edgeres.verify.candidates import Candidates
    from edgeres.verify.measure import MeasurePlan, Validation

NAME = "segmentation"
MIOU_DROP = TaskGate(
    Metric("miou_drop", "mIoU drop", "ceiling", "pp", "task.gated.*.miou_drop_pp", "max_miou_drop", labelled=True),
    1.0,
    "PP",
    "Gate of segmentation: mean IoU lost against FP32, in points.  [default: 1]",
)
LISTED = 10
MIN_MOVED = 2  # classes whose pixels all are another class by the same step
SEEN = 0.05  # mIoU of FP32 from which on it sees the images

Classes = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Segmentation:
    """The answer for one image.

    Attributes:
        mask: class of each place of the network's map, (h, w); it covers what the network sees of the image.
        names: of the classes.
    """

    mask: Classes
    names: tuple[str, ...]

    def shares(self) -> dict[str, float]:
        """Share of the mask of each class that is in it, largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.names))
        order = np.argsort(-counts, kind="stable").tolist()
        return {self.names[index]: float(counts[index]) / self.mask.size for index in order if counts[index]}

    def words(self) -> list[str]:
        """One line per class."""
        return [f"{100 * share:5.1f} %  {name}" for name, share in self.shares().items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the mask itself is for programs."""
        return {"mask": list(self.mask.shape), "shares": self.shares()}


class Segmenter(Predictor[Segmentation]):
    """A bundle's INT8 network of masks, ready to be called; :class:`~edgeres.runtime.Predictor` has its arguments.

    Example:
        >>> segment = Segmenter("fcn.edgeres")               # doctest: +SKIP
        >>> segment(frame).mask                              # doctest: +SKIP
        array([[0, 0, 7, ...
    """

    task = NAME

    def answers(self, outputs: Feed, runner: Backend) -> list[Segmentation]:
        """The mask of each image."""
        return [Segmentation(mask, self.labels) for mask in classes_of(outputs[runner.output_name])]


def classes_of(scores: F32) -> Classes:
    """The class with the highest score at each place, (N, h, w), of (N, C, h, w)."""
    kind = np.uint8 if scores.shape[1] <= 256 else np.uint16
    found: Classes = scores.argmax(axis=1).astype(kind)
    return found


class Counts:
    """What is kept of one candidate: per image, pixels of each class that are right, said and true, and agreement.

    Args:
        truth: gives the true classes, (h, w), of an image by its position; None: there are none.
    """

    def __init__(self, truth: Truth | None) -> None:
        self._truth = truth
        self._rows: list[I64] = []
        self._same: list[float] = []
        self.confusion: I64 | None = None

    def add(self, batch: Batch, reference: Feed, own: Feed) -> None:
        (scores,), (before,) = own.values(), reference.values()
        said, first = classes_of(scores), classes_of(before)
        self._same += (said == first).reshape(len(said), -1).mean(axis=1).tolist()
        if self._truth is None:
            return
        count = scores.shape[1]
        for mask, index in zip(said, batch.indices.tolist(), strict=True):
            true = self._truth(index, mask.shape, count)
            judged = true < count
            pairs = np.bincount(true[judged].astype(np.int64) * count + mask[judged], minlength=count * count)
            table = pairs.reshape(count, count)
            self._rows.append(np.stack([table.diagonal(), table.sum(axis=0), table.sum(axis=1)]))
            self.confusion = table if self.confusion is None else self.confusion + table

    @property
    def rows(self) -> I64 | None:
        """Pixels that are right, said and true, int64 (N, 3, C); None where there is no truth."""
        return np.stack(self._rows) if self._rows else None

    @property
    def same(self) -> F64:
        """Share of each image that has FP32's class, float64 (N,)."""
        return np.array(self._same)


class Truth:
    """The masks of a source, at the size of the network's map."""

    def __init__(self, source: Any, preprocess: Any) -> None:
        self._source, self._preprocess = source, preprocess

    def __call__(self, index: int, size: tuple[int, ...], count: int) -> Classes:
        """The class of each place, the number of classes where it is not judged.

        Raises:
            SourceError: a class is not one of the network's.
        """
        from edgeres.data.masks import IGNORED
        from edgeres.errors import SourceError

        mask = self._source.mask(index, self._preprocess)
        rows, columns = (
            ((np.arange(want) + 0.5) * have / want).astype(np.int64)
            for have, want in zip(mask.shape, size, strict=True)
        )
        mask = mask[rows[:, None], columns]
        beyond = mask[(mask >= count) & (mask != IGNORED)]
        if len(beyond):
            what = f"holds class {int(beyond.max())}, and the network has {count}, 0 to {count - 1}"
            hint = "give masks of the network's own classes, 255 where a pixel is not judged"
            raise SourceError(what, where=self._source.masks[index], hint=hint)
        return np.where(mask == IGNORED, count, mask.astype(np.int64))


@dataclass(frozen=True)
class Segmented:
    """What was kept of all candidates.

    Attributes:
        names: of the classes.
        images: names of the images.
        rows: pixels that are right, said and true, int64 (N, 3, C), by candidate; empty without truth.
        same: share of each image that has FP32's class, float64 (N,), by candidate.
        confusion: pixels of FP32 by true class and answer, int64 (C, C); None without truth.
        runners: names of the backends.
    """

    names: tuple[str, ...]
    images: tuple[str, ...]
    rows: Mapping[str, I64]
    same: Mapping[str, F64]
    confusion: I64 | None
    runners: Mapping[str, str]

    @property
    def candidates(self) -> tuple[str, ...]:
        return tuple(name for name in self.same if name != REFERENCE)


def ious(rows: F64) -> F64:
    """Intersection over union of each class, nan where a class is neither said nor true; of sums (..., 3, C)."""
    right, said, true = rows[..., 0, :], rows[..., 1, :], rows[..., 2, :]
    union = said + true - right
    found: F64 = np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)
    return found


def _recognises(clues: Clues) -> bool:
    return False


def _describe(spec: ModelSpec, outputs: Sequence[str]) -> ModelSpec:
    return replace(spec, output="logits", heads=(Head(outputs[0], NAME),))


def _validate(choice: DataChoice, spec: ModelSpec, progress: Progress) -> tuple[Source, Mapping[str, str]]:
    from edgeres.data.choose import choose_with_truth
    from edgeres.data.masks import Masked, with_masks
    from edgeres.errors import SourceError

    why: list[str] = []

    def read(source: Source, table: Path | None) -> Source:
        root = Path(choice.validation or "").expanduser()
        if choice.validation is not None and root.is_dir():
            try:
                return with_masks(source, root, table)
            except SourceError as error:
                if table is not None or not str(error.what).startswith("has no masks"):
                    raise
        elif table is not None:
            raise SourceError("are masks of images in a folder", where=table, hint="give --validation a folder")
        why.append("the validation images have no masks; --validation-labels FOLDER has them")
        return Masked(source, np.arange(len(source)), (), source.description)

    source = choose_with_truth(choice, spec, read, progress)
    for line in why:
        progress.say(f"no IoU, and INT8 is compared with FP32 alone: {line}")
    return source, {"task": why[0]} if why else {}


def _measure(
    candidates: Candidates, spec: ModelSpec, images: Validation, progress: Progress, plan: MeasurePlan
) -> TaskMeasured:
    from edgeres.data.masks import Masked
    from edgeres.task.measure import measure_columns

    source = images.loader.source
    assert isinstance(source, Masked)
    truth = Truth(source, spec.preprocess) if source.masks else None
    measured = measure_columns(candidates, spec, images, lambda: Counts(truth), progress, plan)
    columns = measured.answers
    rows = {name: one.rows for name, one in columns.by_name.items() if one.rows is not None}
    same = {name: one.same for name, one in columns.by_name.items()}
    names = tuple(source.name(index) for index in columns.positions.tolist())
    confusion = columns.by_name[REFERENCE].confusion
    return replace(measured, answers=Segmented(spec.labels, names, rows, same, confusion, columns.runners))


def _judge(asked: Asked, made: Made, measured: TaskMeasured) -> Json:
    from edgeres.judge.judge import judge
    from edgeres.task.part import part_of

    answers = measured.answers
    section = _section(answers, measured.common.headline)
    part = part_of(asked.gates, section, checks_of(answers), TASK.gates, truth=bool(answers.rows))
    return judge(asked, made, measured.common, part)


def _section(answers: Segmented, headline: str) -> Section:
    """The part ``task`` of the report."""
    from edgeres.judge.document import Section
    from edgeres.task.page import content

    figures = {name: _figures(answers, name) for name in answers.same}
    keys = ("miou_drop_pp", "miou_drop_pp_ci95", "agreement", "images")
    gated: Json = {name: {key: figures[name][key] for key in keys} for name in answers.candidates}
    reasons = {} if answers.rows else {"": "the validation images have no masks"}
    own: Json = {"figures": figures, "gated": gated}
    return Section(content(NAME, _page(answers, figures, headline), headline, len(answers.images), own), reasons)


def _figures(answers: Segmented, name: str) -> Json:
    """The figures of one candidate in per cent; null where there is no truth, or nothing to compare with."""
    own: Json = {"runner": answers.runners[name], "images": len(answers.images)}
    own |= dict.fromkeys(("miou", "iou", "pixel_accuracy", "miou_drop_pp", "miou_drop_pp_ci95", "agreement"))
    if name != REFERENCE:
        own["agreement"] = 100 * float(answers.same[name].mean())
    if answers.rows:
        sums = answers.rows[name].sum(axis=0).astype(np.float64)
        each = ious(sums)
        own |= {"miou": 100 * float(np.nanmean(each)), "pixel_accuracy": 100 * float(sums[0].sum() / sums[2].sum())}
        own["iou"] = {n: None if np.isnan(v) else 100 * float(v) for n, v in zip(answers.names, each, strict=True)}
        if name != REFERENCE:
            own["miou_drop_pp"], own["miou_drop_pp_ci95"] = _drop(answers.rows[REFERENCE], answers.rows[name])
    return own


def _drop(before: I64, after: I64) -> tuple[float, list[float]]:
    """Mean IoU lost, in points, with the interval of a paired bootstrap over the images."""
    from edgeres.verify.statistics import resamplings

    pairs = [one.reshape(len(one), -1).astype(np.float64) for one in (before, after)]
    shape = before.shape[1:]

    def lost(counts: F64) -> F64:
        means = [np.nanmean(ious((counts @ rows).reshape(-1, *shape)), axis=1) for rows in pairs]
        found: F64 = 100 * (means[0] - means[1])
        return found

    draws = np.concatenate([lost(counts) for counts in resamplings(len(before))])
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(lost(np.ones((1, len(before))))[0]), [float(low), float(high)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _page(answers: Segmented, figures: Json, headline: str) -> Page:
    from edgeres.judge.document import titled
    from edgeres.task.page import Listed, Page, Tile

    fp32, int8 = figures[REFERENCE], figures[headline]
    agreement = f"{_percent(int8['agreement'])} of the pixels have FP32's class"
    line, tiles = agreement, [Tile("Agreement", _percent(int8["agreement"]), "of the pixels have FP32's class")]
    tables = [_least_same(answers, headline)]
    findings = [("agreement", agreement)]
    if answers.rows:
        low, high = int8["miou_drop_pp_ci95"]
        drop = f"drop {int8['miou_drop_pp']:.2f} pp, 95 % interval {low:.2f} to {high:.2f}"
        line = f"mIoU: FP32 {_percent(fp32['miou'])}, INT8 {_percent(int8['miou'])}; {agreement}"
        tiles = [Tile("mIoU", f"{_percent(fp32['miou'])} to {_percent(int8['miou'])}", f"FP32 to INT8; {drop}"), *tiles]
        findings = [("mIoU drop", drop), *findings]
        graphs = tuple(answers.same)
        rows = tuple((name, *(_percent(figures[graph]["iou"][name]) for graph in graphs)) for name in answers.names)
        head = ("Class", *("FP32" if graph == REFERENCE else titled(graph) for graph in graphs))
        note = "Intersection over union of all images together; the drop's interval is a paired bootstrap over images."
        tables = [Listed("IoU by class", head, rows, tuple(range(1, len(head))), note), *tables]
    cells = {name: (_percent(own["miou"]), _percent(own["agreement"])) for name, own in figures.items()}
    return Page(
        f"{line}, of {len(answers.images):,} images",
        tuple(tiles),
        ("mIoU", "agreement"),
        cells,
        tuple(findings),
        tuple(tables),
    )


def _least_same(answers: Segmented, headline: str) -> Any:
    """The images of which INT8 changes most."""
    from edgeres.task.page import Listed

    same = answers.same[headline]
    order = np.argsort(same, kind="stable")[:LISTED].tolist()
    rows = tuple((answers.images[index], _percent(100 * same[index])) for index in order)
    return Listed("Images that INT8 changes most", ("Image", "Pixels with FP32's class"), rows, (1,))


def checks_of(answers: Segmented) -> Checks:
    """The checks of masks, then those of every network."""
    from edgeres.judge.part import common_checks

    own: Checks = {
        "labels": ("masks of the network's classes", lambda _: _classes(answers)),
        "fp32": ("FP32 sees the images", lambda _: _sees(answers)),
    }
    return {**own, **common_checks()}


def _classes(answers: Segmented) -> Finding:
    """Fails where FP32 puts the pixels of most classes into another one, all by the same step."""
    if answers.confusion is None:
        return "unsure", "the validation images have no masks"
    count = len(answers.names)
    present = np.flatnonzero(answers.confusion.sum(axis=1))
    steps = (answers.confusion[present].argmax(axis=1) - present) % count
    moved = steps[steps != 0]
    if len(moved) >= MIN_MOVED and 2 * len(moved) > len(present) and len(set(moved.tolist())) == 1:
        step = int(moved[0]) if 2 * int(moved[0]) <= count else int(moved[0]) - count
        off = f"{abs(step)} too {'low' if step > 0 else 'high'}"
        told = f"FP32 puts most pixels of {len(moved)} of {len(present)} classes into the one {step:+d} beside it"
        return "failed", f"classes of the masks are {off}: {told}; they count from 0, as the map's channels do"
    return "passed", f"no classes look moved ({len(present)} checked)"


def _sees(answers: Segmented) -> Finding:
    """Fails where FP32's masks have next to nothing to do with the true ones."""
    if not answers.rows:
        return "unsure", "the validation images have no masks"
    miou = float(np.nanmean(ious(answers.rows[REFERENCE].sum(axis=0).astype(np.float64))))
    told = f"FP32's mean IoU is {100 * miou:.2f} %"
    if miou < SEEN:
        return "failed", f"{told}: look at preprocessing, weights and the classes of the masks"
    return "passed", told


TASK = Task(
    name=NAME,
    outputs="map",
    recognises=_recognises,
    describe=_describe,
    validate=_validate,
    measure=_measure,
    judge=_judge,
    predictor=Segmenter,
    limits=tuple(METRICS[name].option for name in COMMON),
    gates=(MIOU_DROP,),
)
