"""Embedding: the output is one vector, compared by its direction: of persons, places, products.

The truth is who or what an image shows: a folder per identity, or a table ``image,identity``. Identities need not be
those of the training. Without them, INT8 is compared with FP32 alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeres.judge.gates import COMMON, METRICS, Metric
from edgeres.records import F32, F64, I64, Head, ModelSpec
from edgeres.runtime.classifier import Predictor
from edgeres.runtime.runner import Backend, Feed
from edgeres.task.record import Clues, Task, TaskGate, TaskMeasured
from edgeres.verify.answers import REFERENCE, Mask

if TYPE_CHECKING:
    from edgeres.data.base import Source
    from edgeres.data.choose import DataChoice
    from edgeres.judge.asked import Asked
    from edgeres.judge.checks import Finding
    from edgeres.judge.document import Json, Section
    from edgeres.judge.part import Checks
    from edgeres.made import Made
    from edgeres.progress import Progress
    from edgeres.task.page import Page
    from edgeres.verify.candidates import Candidates
    from edgeres.verify.measure import MeasurePlan, Validation

NAME = "embedding"
MIN_COSINE = TaskGate(
    Metric("cosine", "cosine to FP32", "floor", "", "task.gated.*.cosine", "min_cosine"),
    0.995,
    "X",
    "Gate of embeddings and features: mean cosine to FP32's.  [default: 0.995]",
)
RECALL_DROP = TaskGate(
    Metric(
        "recall_drop", "recall drop", "ceiling", "pp", "task.gated.*.recall_drop_pp", "max_recall_drop", labelled=True
    ),
    1.0,
    "PP",
    "Gate of embeddings: recall@1 lost against FP32, in points.  [default: 1]",
)
RANKS = (1, 5)
FARS = (1e-2, 1e-3)
MOST = 4000  # images that are compared with each other; of more, so many are taken, evenly spread
LISTED = 10
BLIND = 1e-3  # probability of FP32's recall by chance, from which on it sees the images
COLLAPSED = 0.99  # mean cosine of two images, from which on all look the same
SMALL = 1e-12


@dataclass(frozen=True)
class Embedding:
    """The answer for one image.

    Attributes:
        embedding: float32 (D,), of length 1.
        length: of the network's own vector; 1 where the network normalizes.
    """

    embedding: F32
    length: float

    def similarity(self, other: Embedding) -> float:
        """Cosine of the angle between both, -1 to 1."""
        return float(self.embedding @ other.embedding)

    def words(self) -> list[str]:
        """The first values."""
        first = " ".join(f"{value:.4f}" for value in self.embedding[:6].tolist())
        more = f" ... ({len(self.embedding)} values)" if len(self.embedding) > 6 else ""
        return [f"{first}{more}"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"embedding": [float(value) for value in self.embedding], "length": self.length}


class Embedder(Predictor[Embedding]):
    """A bundle's INT8 network of embeddings, ready to be called; :class:`~edgeres.runtime.Predictor` has its arguments.

    Example:
        >>> embed = Embedder("person.edgeres")               # doctest: +SKIP
        >>> embed(face).similarity(embed(other))             # doctest: +SKIP
        0.83
    """

    task = NAME

    def answers(self, outputs: Feed, runner: Backend) -> list[Embedding]:
        """The embedding of each image, brought to length 1."""
        rows = outputs[runner.output_name].astype(np.float32, copy=False)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        unit = (rows / np.maximum(lengths, SMALL)[:, None]).astype(np.float32)
        return [Embedding(row, float(length)) for row, length in zip(unit, lengths, strict=True)]


@dataclass(frozen=True)
class Embedded:
    """The embeddings that every candidate gives.

    Attributes:
        images: names of the images.
        identities: index of who each shows, int64 (N,); -1 where it is not known.
        rows: float32 (N, D) of length 1, by candidate, the reference's under its name.
        lengths: of the reference's vectors before, float64 (N,).
        runners: names of the backends.
    """

    images: tuple[str, ...]
    identities: I64
    rows: Mapping[str, F32]
    lengths: F64
    runners: Mapping[str, str]

    @property
    def candidates(self) -> tuple[str, ...]:
        return tuple(name for name in self.rows if name != REFERENCE)

    @property
    def compared(self) -> I64:
        """Positions of the images that are compared with each other: those whose identity another one shares."""
        from edgeres.data.base import evenly_spread

        shared = np.flatnonzero(self.identities >= 0)
        shared = shared[evenly_spread(len(shared), MOST)] if len(shared) else shared
        sizes = np.bincount(self.identities[shared], minlength=1)
        found: I64 = shared[sizes[self.identities[shared]] > 1]
        return found

    @property
    def has_truth(self) -> bool:
        """Whether any two images show the same, and any two do not."""
        return len(np.unique(self.identities[self.compared])) > 1

    def cosines(self, name: str) -> F64:
        """Of each image's embedding to the reference's, float64 (N,)."""
        found: F64 = (self.rows[name].astype(np.float64) * self.rows[REFERENCE]).sum(axis=1)
        return found


@dataclass(frozen=True)
class Retrieval:
    """How well one candidate finds images of the same identity among all others.

    Attributes:
        found: whether one of the k nearest other images shows the same, by k, bool (M,).
        accepted: for each image, how many others of the same identity are nearer than the threshold of each FAR, int64
            (M, len(FARS)).
        genuine: for each image, how many others are of the same identity, int64 (M,).
        resolved: whether there are enough pairs of different identities for each FAR.
    """

    found: Mapping[int, Mask]
    accepted: I64
    genuine: I64
    resolved: tuple[bool, ...]


def retrieval(rows: F32, identities: I64) -> Retrieval:
    """Compare every image with every other one by cosine.

    Args:
        rows: float32 (M, D) of length 1.
        identities: int64 (M,).
    """
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2.0)
    same = identities[:, None] == identities[None, :]
    np.fill_diagonal(same, val=False)
    found: dict[int, Mask] = {}
    for rank in RANKS:
        nearest = np.argpartition(-cosines, min(rank, len(rows) - 1) - 1, axis=1)[:, :rank]
        found[rank] = np.asarray(np.take_along_axis(same, nearest, axis=1).any(axis=1))
    different = ~same
    np.fill_diagonal(different, val=False)
    impostors = cosines[different]
    thresholds = [np.quantile(impostors, 1 - far, method="higher") for far in FARS]
    accepted = np.stack([((cosines > limit) & same).sum(axis=1) for limit in thresholds], axis=1)
    return Retrieval(found, accepted, same.sum(axis=1), tuple(len(impostors) * far >= 10 for far in FARS))


def _recognises(clues: Clues) -> bool:
    return False  # folders of identities look as folders of classes


def _describe(spec: ModelSpec, outputs: Sequence[str]) -> ModelSpec:
    return replace(spec, labels=(), output="logits", heads=(Head(outputs[0], NAME),))


def _validate(choice: DataChoice, spec: ModelSpec, progress: Progress) -> tuple[Source, Mapping[str, str]]:
    from edgeres.data.base import View
    from edgeres.data.choose import choose_identities

    source, why = choose_identities(choice, spec, progress)
    view = View(source, np.arange(len(source)), source.labels, (), source.description)
    known = source.labels[source.labels >= 0]
    if why is None and len(known) and np.bincount(known).max() > 1 and len(np.unique(known)) > 1:
        return view, {}
    told = why.what if why is not None else "no two images show the same identity, or all do"
    reason = f"no recall: {told}; give a folder per identity, or --validation-labels FILE"
    progress.say(f"{reason}; INT8 is compared with FP32 alone")
    return view, {"task.retrieval": reason}


def _measure(
    candidates: Candidates, spec: ModelSpec, images: Validation, progress: Progress, plan: MeasurePlan
) -> TaskMeasured:
    from edgeres.task.measure import Rows, measure_columns

    measured = measure_columns(candidates, spec, images, Rows, progress, plan)
    source, columns = images.loader.source, measured.answers
    raw = {name: column.rows for name, column in columns.by_name.items()}
    lengths = {name: np.linalg.norm(rows.astype(np.float64), axis=1) for name, rows in raw.items()}
    unit = {name: (rows / np.maximum(lengths[name], SMALL)[:, None]).astype(np.float32) for name, rows in raw.items()}
    names = tuple(source.name(index) for index in columns.positions.tolist())
    identities = source.labels[columns.positions]
    return replace(measured, answers=Embedded(names, identities, unit, lengths[REFERENCE], columns.runners))


def _judge(asked: Asked, made: Made, measured: TaskMeasured) -> Json:
    from edgeres.judge.judge import judge
    from edgeres.task.part import part_of

    answers = measured.answers
    why = measured.common.reasons.get("task.retrieval", "too few images show the same identity")
    at = answers.compared
    found = {name: retrieval(rows[at], answers.identities[at]) for name, rows in answers.rows.items()}
    section = _section(answers, found if answers.has_truth else {}, measured.common.headline, why)
    checks = checks_of(answers, found if answers.has_truth else {})
    part = part_of(asked.gates, section, checks, TASK.gates, truth=answers.has_truth)
    return judge(asked, made, measured.common, part)


def _section(answers: Embedded, found: Mapping[str, Retrieval], headline: str, why: str) -> Section:
    """The part ``task`` of the report."""
    from edgeres.judge.document import Section
    from edgeres.task.page import content

    figures = {name: _figures(answers, found, name) for name in answers.rows}
    gated: Json = {
        name: {key: figures[name][key] for key in (*_COSINE, *_DROP)} | {"images": len(answers.images)}
        for name in answers.candidates
    }
    reasons = {} if found else {f"gated.{name}.recall_drop_pp": why for name in gated}
    page = _page(answers, figures, headline)
    own: Json = {"figures": figures, "gated": gated}
    return Section(content(NAME, page, headline, len(answers.images), own), reasons)


_COSINE = ("cosine", "cosine_ci95", "cosine_p1")
_DROP = ("recall_drop_pp", "recall_drop_pp_ci95", "lost", "gained", "total")


def _figures(answers: Embedded, found: Mapping[str, Retrieval], name: str) -> Json:
    """The figures of one candidate; null where there is no truth, or nothing to compare with."""
    from edgeres.verify.statistics import Z95, paired_drop_pp, ratios_of_means

    tars = [f"tar_at_far_{far:g}" for far in FARS]
    own: Json = {"runner": answers.runners[name], **dict.fromkeys((*_COSINE, *_DROP))}
    own |= dict.fromkeys((*(f"recall{rank}" for rank in RANKS), *tars, *(f"{tar}_drop_pp" for tar in tars)))
    if name != REFERENCE:
        cosines = answers.cosines(name)
        half = float(Z95 * cosines.std(ddof=1) / len(cosines) ** 0.5) if len(cosines) > 1 else 0.0
        mean = float(cosines.mean())
        own |= {"cosine": mean, "cosine_ci95": [mean - half, min(1.0, mean + half)] if half else None}
        own["cosine_p1"] = float(np.quantile(cosines, 0.01))
    if not found:
        return own
    mine, fp32 = found[name], found[REFERENCE]
    own |= {f"recall{rank}": 100 * float(mine.found[rank].mean()) for rank in RANKS}
    shares = 100 * mine.accepted.sum(axis=0) / mine.genuine.sum()
    own |= {tar: float(share) if ok else None for tar, share, ok in zip(tars, shares, mine.resolved, strict=True)}
    if name != REFERENCE:
        lost, gained = (int(one.sum()) for one in (fp32.found[1] & ~mine.found[1], mine.found[1] & ~fp32.found[1]))
        drop = paired_drop_pp(lost, gained, len(mine.genuine))
        own |= {"recall_drop_pp": drop.value, "recall_drop_pp_ci95": [drop.low, drop.high]}
        own |= {"lost": lost, "gained": gained, "total": len(mine.genuine)}
        pairs = np.repeat(mine.genuine.astype(np.float64)[:, None], len(FARS), axis=1)
        falls = ratios_of_means((fp32.accepted - mine.accepted).astype(np.float64), pairs)
        for tar, fall, ok in zip(tars, falls, mine.resolved, strict=True):
            known = fall if ok else None
            own[f"{tar}_drop_pp"] = 100 * known.value if known else None
            own[f"{tar}_drop_pp_ci95"] = [100 * known.low, 100 * known.high] if known else None
    return own


def _page(answers: Embedded, figures: Json, headline: str) -> Page:
    from edgeres.task.page import Listed, Page, Plot, Tile, bars

    fp32, int8 = figures[REFERENCE], figures[headline]
    cosine = f"cosine to FP32 {int8['cosine']:.5f}, worst 1 % {int8['cosine_p1']:.5f}"
    recall = ""
    tiles = [
        Tile("Cosine to FP32", f"{int8['cosine']:.5f}", f"mean; 1 % of the images are below {int8['cosine_p1']:.5f}")
    ]
    if fp32["recall1"] is not None:
        recall = f"recall@1: FP32 {_percent(fp32['recall1'])}, INT8 {_percent(int8['recall1'])}; "
        tiles += [
            Tile(
                f"Recall@{rank}",
                f"{_percent(fp32[f'recall{rank}'])} to {_percent(int8[f'recall{rank}'])}",
                "FP32 to INT8",
            )
            for rank in RANKS
        ]
    tars = [f"tar_at_far_{far:g}" for far in FARS]
    keys = ("cosine", "cosine_p1", "recall1", "recall5", *tars)
    head = ("Graph", "Cosine", "Worst 1 %", "Recall@1", "Recall@5", *(f"TAR at FAR {far:g}" for far in FARS))
    rows = tuple((_title(name), *(_cell(key, figures[name][key]) for key in keys)) for name in figures)
    note = (
        "Recall@k: one of the k nearest other images shows the same identity. TAR at FAR: pairs of one identity that "
        "are nearer than all but this share of the pairs of different ones. Each graph is its own gallery."
    )
    cosines = answers.cosines(headline)
    edges = np.linspace(min(float(cosines.min()), 0.99), 1.0, 41).tolist()
    said = f"{len(cosines):,} images, half of them above {np.median(cosines):.5f}"
    plot = Plot(
        "Cosine of INT8's embedding to FP32's",
        "bars",
        "cosine",
        "% of images",
        said,
        (bars(cosines.tolist(), edges, "INT8", "int8"),),
    )
    short, long = float(answers.lengths.min()), float(answers.lengths.max())
    return Page(
        f"{recall}{cosine}, of {len(answers.images):,} images",
        tuple(tiles),
        ("recall@1", "recall@5", "cosine"),
        {
            name: tuple(_cell(key, own[key]) for key in ("recall1", "recall5", "cosine"))
            for name, own in figures.items()
        },
        (
            ("cosine to FP32", cosine.removeprefix("cosine to FP32 ")),
            *_tars(fp32, int8),
            (
                "lengths",
                f"the network's vectors are {short:.3g} to {long:.3g} long; edgeres.load brings them to length 1",
            ),
        ),
        (Listed("Embeddings", head, rows, tuple(range(1, len(head))), note), _furthest(answers, headline)),
        (plot,),
    )


def _title(name: str) -> str:
    from edgeres.judge.document import titled

    return "FP32" if name == REFERENCE else titled(name)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _cell(key: str, value: float | None) -> str:
    return ("-" if value is None else f"{value:.5f}") if key.startswith("cosine") else _percent(value)


def _tars(fp32: Json, int8: Json) -> list[tuple[str, str]]:
    rows = []
    for far in FARS:
        before, after = fp32[f"tar_at_far_{far:g}"], int8[f"tar_at_far_{far:g}"]
        if before is not None:
            drop, limits = int8[f"tar_at_far_{far:g}_drop_pp"], int8[f"tar_at_far_{far:g}_drop_pp_ci95"]
            told = f"FP32 {_percent(before)}, INT8 {_percent(after)}, drop {drop:.2f} pp"
            rows.append((f"TAR at FAR {far:g}", f"{told}, 95 % interval {limits[0]:.2f} to {limits[1]:.2f}"))
    return rows


def _furthest(answers: Embedded, headline: str) -> Any:
    """The images whose embedding INT8 turns furthest."""
    from edgeres.task.page import Listed

    cosines = answers.cosines(headline)
    order = np.argsort(cosines, kind="stable")[:LISTED].tolist()
    rows = tuple((answers.images[index], f"{cosines[index]:.5f}") for index in order)
    return Listed("Images that INT8 turns furthest", ("Image", "Cosine to FP32"), rows, (1,))


def checks_of(answers: Embedded, found: Mapping[str, Retrieval]) -> Checks:
    """The checks of embeddings, then those of every network."""
    from edgeres.judge.part import common_checks

    own: Checks = {"fp32": ("FP32 sees the images", lambda _: _sees(answers, found))}
    return {**own, **common_checks()}


def _sees(answers: Embedded, found: Mapping[str, Retrieval]) -> Finding:
    """Fails where FP32 gives nearly one embedding for all images, or finds identities no better than chance."""
    rows = answers.rows[REFERENCE].astype(np.float64)
    count = len(rows)
    if count > 1:
        mean = float((np.square(rows.sum(axis=0)).sum() - count) / (count * (count - 1)))
        if mean > COLLAPSED:
            what = f"FP32 gives nearly the same embedding for all images: the mean cosine of two of them is {mean:.4f}"
            return "failed", f"{what}; look at preprocessing and weights"
    if not found:
        return "unsure", "no two images are known to show the same identity"
    from edgeres.verify.statistics import binomials

    mine = found[REFERENCE]
    right, total = int(mine.found[1].sum()), len(mine.genuine)
    chance = mine.genuine / (total - 1)
    tail = float(binomials(np.ones(total, np.int64), chance)[right:].sum()) if total <= MOST else 0.0
    told = f"FP32's nearest other image shows the same identity for {right:,} of {total:,} images"
    told += f"; by chance it would for {100 * chance.mean():.2f} %"
    if tail >= BLIND:
        return "failed", f"{told}: look at preprocessing, weights and the identities"
    return "passed", told


TASK = Task(
    name=NAME,
    outputs="values",
    recognises=_recognises,
    describe=_describe,
    validate=_validate,
    measure=_measure,
    judge=_judge,
    predictor=Embedder,
    limits=tuple(METRICS[name].option for name in COMMON),
    gates=(MIN_COSINE, RECALL_DROP),
)
