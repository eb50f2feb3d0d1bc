"""Features: the outputs are maps or vectors for another network, such as a detector's neck or a policy's decoder.

There is no truth: INT8 is compared with FP32 alone, output by output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeres.judge.gates import COMMON, METRICS, Metric
from edgeres.records import F64, Head, ModelSpec
from edgeres.runtime.classifier import Predictor
from edgeres.runtime.runner import Backend, Feed
from edgeres.task.embedding import MIN_COSINE
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
    from edgeres.task.page import Listed, Page, Plot
    from edgeres.verify.candidates import Candidates
    from edgeres.verify.measure import MeasurePlan, Validation

NAME = "features"
COSINE = TaskGate(
    Metric("cosine", "cosine to FP32", "floor", "", "task.gated.*.cosine", MIN_COSINE.metric.option, "{}"),
    MIN_COSINE.default,
    MIN_COSINE.metavar,
    MIN_COSINE.help,
)
LISTED = 10
SHOWN = 4  # outputs of tiles and plots
SMALL = 1e-30


@dataclass(frozen=True)
class Features:
    """The answer for one image: arrays by the names of the outputs, float32, without the batch axis."""

    features: Mapping[str, Any]

    def words(self) -> list[str]:
        """Shape and size of each output."""
        shapes = {name: " x ".join(map(str, one.shape)) for name, one in self.features.items()}
        return [f"{name}: {shapes[name]}, mean {one.mean():.4g}" for name, one in self.features.items()]

    def to_dict(self) -> dict[str, Any]:
        """Shape, mean and standard deviation of each output; the values are for programs."""
        return {
            "features": {
                name: {"shape": list(one.shape), "mean": float(one.mean()), "std": float(one.std())}
                for name, one in self.features.items()
            }
        }


class FeatureExtractor(Predictor[Features]):
    """A bundle's INT8 network of features, ready to be called; :class:`~edgeres.runtime.Predictor` has its arguments.

    Example:
        >>> backbone = FeatureExtractor("resnet18.edgeres")  # doctest: +SKIP
        >>> backbone(frame).features["layer4"].shape         # doctest: +SKIP
        (512, 7, 7)
    """

    task = NAME

    def answers(self, outputs: Feed, runner: Backend) -> list[Features]:
        """The arrays of each image."""
        names = [head.output for head in self.spec.heads]
        arrays = list(outputs.values()) if len(names) == 1 else [outputs[name] for name in names]
        made = zip(*(array.astype(np.float32, copy=False) for array in arrays), strict=True)
        return [Features(dict(zip(names, one, strict=True))) for one in made]


class Powers:
    """What is kept of one candidate: four sums per image and output."""

    def __init__(self) -> None:
        self._parts: list[F64] = []

    def add(self, batch: Batch, reference: Feed, own: Feed) -> None:
        given = list(own.values()) if len(reference) == 1 else [own[name] for name in reference]
        sums = []
        for before, after in zip(reference.values(), given, strict=True):
            a, b = (one.reshape(len(one), -1).astype(np.float64) for one in (before, after))
            sums.append(
                np.stack([(a * a).sum(axis=1), (b * b).sum(axis=1), (a * b).sum(axis=1), ((a - b) ** 2).sum(axis=1)])
            )
        self._parts.append(np.stack(sums, axis=1))

    @property
    def sums(self) -> F64:
        """Of a^2, b^2, a b and (a - b)^2, where a is FP32's output and b this one's: float64 (4, outputs, N)."""
        return np.concatenate(self._parts, axis=2)


@dataclass(frozen=True)
class Extracted:
    """What was kept of all candidates.

    Attributes:
        outputs: names of the outputs.
        images: names of the images.
        sums: by candidate, see :class:`Powers`.
        runners: names of the backends.
    """

    outputs: tuple[str, ...]
    images: tuple[str, ...]
    sums: Mapping[str, F64]
    runners: Mapping[str, str]

    @property
    def candidates(self) -> tuple[str, ...]:
        return tuple(name for name in self.sums if name != REFERENCE)

    def cosines(self, name: str) -> F64:
        """Of each image's outputs to the reference's, float64 (outputs, N); 1 where both are zero."""
        before, after, both, noise = self.sums[name]
        found: F64 = np.where(noise == 0, 1.0, both / np.sqrt(np.maximum(before * after, SMALL)))
        return found

    def sqnr_db(self, name: str) -> list[float | None]:
        """Of each output over all images; None where it equals the reference's, or that is zero."""
        signal, noise = self.sums[name][0].sum(axis=1), self.sums[name][3].sum(axis=1)
        pairs = zip(signal.tolist(), noise.tolist(), strict=True)
        return [float(10 * np.log10(s / n)) if s and n else None for s, n in pairs]


def _recognises(clues: Clues) -> bool:
    return False


def describe_all(spec: ModelSpec, outputs: Sequence[str]) -> ModelSpec:
    """The spec with all outputs as features."""
    return replace(spec, labels=(), output="logits", heads=tuple(Head(output, NAME) for output in outputs))


def _validate(choice: DataChoice, spec: ModelSpec, progress: Progress) -> tuple[Source, Mapping[str, str]]:
    from edgeres.data.choose import choose_unlabelled

    return choose_unlabelled(choice, spec, progress), {}


def _measure(
    candidates: Candidates, spec: ModelSpec, images: Validation, progress: Progress, plan: MeasurePlan
) -> TaskMeasured:
    from edgeres.task.measure import measure_columns

    measured = measure_columns(candidates, spec, images, Powers, progress, plan)
    source, columns = images.loader.source, measured.answers
    sums = {name: column.sums for name, column in columns.by_name.items()}
    names = tuple(source.name(index) for index in columns.positions.tolist())
    outputs = tuple(head.output for head in spec.heads)
    return replace(measured, answers=Extracted(outputs, names, sums, columns.runners))


def _judge(asked: Asked, made: Made, measured: TaskMeasured) -> Json:
    from edgeres.judge.judge import judge
    from edgeres.task.part import part_of

    answers = measured.answers
    section = _section(answers, measured.common.headline)
    part = part_of(asked.gates, section, checks_of(answers), TASK.gates, truth=False)
    return judge(asked, made, measured.common, part)


def _section(answers: Extracted, headline: str) -> Section:
    """The part ``task`` of the report."""
    from edgeres.judge.document import Section, titled
    from edgeres.task.page import content

    figures = {name: _figures(answers, name) for name in answers.candidates}
    gated: Json = {
        f"{titled(name)}: {output}".replace(".", "_"): row | {"graph": name, "output": output}
        for name, own in figures.items()
        for output, row in own["outputs"].items()
    }
    own: Json = {"figures": {REFERENCE: {"runner": answers.runners[REFERENCE]}, **figures}, "gated": gated}
    return Section(content(NAME, _page(answers, figures, headline), headline, len(answers.images), own))


def _figures(answers: Extracted, name: str) -> Json:
    from edgeres.verify.statistics import Z95

    cosines, found = answers.cosines(name), {}
    count = cosines.shape[1]
    for index, output in enumerate(answers.outputs):
        own, mean = cosines[index], float(cosines[index].mean())
        half = float(Z95 * own.std(ddof=1) / count**0.5) if count > 1 else 0.0
        found[output] = {
            "sqnr_db": answers.sqnr_db(name)[index],
            "cosine": mean,
            "cosine_ci95": [mean - half, min(1.0, mean + half)] if half else None,
            "cosine_worst": float(own.min()),
            "worst_image": answers.images[int(own.argmin())],
            "images": count,
        }
    return {"runner": answers.runners[name], "outputs": found}


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _page(answers: Extracted, figures: Json, headline: str) -> Page:
    from edgeres.judge.document import titled
    from edgeres.task.page import Listed, Page, Tile

    mine = figures[headline]["outputs"]
    worst = min(mine, key=lambda output: mine[output]["cosine"])
    told = {name: f"cosine {one['cosine']:.5f}, SQNR {_decibels(one['sqnr_db'])}" for name, one in mine.items()}
    many = f"the worst of {len(mine)} outputs, " if len(mine) > 1 else ""
    rows = tuple(
        (
            output,
            titled(name),
            f"{one['cosine']:.5f}",
            f"{one['cosine_worst']:.5f}",
            _decibels(one["sqnr_db"]),
            one["worst_image"],
        )
        for name, own in figures.items()
        for output, one in own["outputs"].items()
    )
    head = ("Output", "Graph", "Cosine", "Worst image's", "SQNR", "Worst image")
    note = "Against FP32: the mean cosine of the images, that of the worst one, and the SQNR over all of them."
    some = list(mine)[:SHOWN]
    return Page(
        f"{worst}: {told[worst]} against FP32, {many}of {len(answers.images):,} images",
        tuple(
            Tile(name, f"{mine[name]['cosine']:.5f}", f"cosine to FP32; SQNR {_decibels(mine[name]['sqnr_db'])}")
            for name in some
        ),
        ("cosine", "SQNR"),
        {REFERENCE: ("-", "-"), **{name: _worst(own["outputs"]) for name, own in figures.items()}},
        tuple(told.items()),
        (Listed("Outputs against FP32", head, rows, (2, 3, 4), note), _furthest(answers, headline)),
        tuple(_plot(answers, headline, list(mine).index(name)) for name in some),
    )


def _worst(outputs: Json) -> tuple[str, str]:
    """Cosine and SQNR of the output with the lowest cosine."""
    one = min(outputs.values(), key=lambda row: row["cosine"])
    return f"{one['cosine']:.5f}", _decibels(one["sqnr_db"])


def _furthest(answers: Extracted, headline: str) -> Listed:
    from edgeres.task.page import Listed

    cosines = answers.cosines(headline)
    order = np.argsort(cosines.min(axis=0), kind="stable")[:LISTED].tolist()
    rows = tuple(
        (answers.images[i], answers.outputs[int(cosines[:, i].argmin())], f"{cosines[:, i].min():.5f}") for i in order
    )
    return Listed("Images that INT8 changes most", ("Image", "Output", "Cosine to FP32"), rows, (2,))


def _plot(answers: Extracted, headline: str, index: int) -> Plot:
    from edgeres.task.page import Plot, bars

    cosines = answers.cosines(headline)[index]
    edges = np.linspace(min(float(cosines.min()), 0.99), 1.0, 41).tolist()
    said = f"{len(cosines):,} images, half of them above {np.median(cosines):.5f}"
    shown = (bars(cosines.tolist(), edges, "INT8", "int8"),)
    return Plot(f"{answers.outputs[index]}: cosine to FP32", "bars", "cosine", "% of images", said, shown)


def checks_of(answers: Extracted) -> Checks:
    """The checks of features, then those of every network."""
    from edgeres.judge.part import common_checks

    own: Checks = {"fp32": ("FP32 sees the images", lambda _: _sees(answers))}
    return {**own, **common_checks()}


def _sees(answers: Extracted) -> Finding:
    """Fails where an output of FP32 is zero for every image."""
    power = answers.sums[REFERENCE][0].sum(axis=1)
    dead = [name for name, own in zip(answers.outputs, power.tolist(), strict=True) if own == 0]
    if dead:
        return "failed", f"{', '.join(dead)} is zero on all images: look at preprocessing and weights"
    return "passed", "no output is zero on all images"


TASK = Task(
    name=NAME,
    outputs="any",
    recognises=_recognises,
    describe=describe_all,
    validate=_validate,
    measure=_measure,
    judge=_judge,
    predictor=FeatureExtractor,
    limits=tuple(METRICS[name].option for name in COMMON),
    gates=(COSINE,),
)
