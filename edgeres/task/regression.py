"""Regression: the output is one row of values, such as a steering angle, or a point.

The truth comes from a table (``image,y1,..``), from the names of files (``xy_<x>_<y>_<id>.jpg``, as JetRacer writes
them) or from the array ``values`` of an .npz. Without it, INT8 is compared with FP32 alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeres.errors import EdgeresError
from edgeres.judge.gates import COMMON, METRICS, Metric
from edgeres.records import F32, F64, Head, ModelSpec
from edgeres.runtime.classifier import Predictor
from edgeres.runtime.runner import Backend, Feed
from edgeres.task.record import Clues, Task, TaskGate, TaskMeasured
from edgeres.verify.answers import REFERENCE

if TYPE_CHECKING:
    from edgeres.data.base import Source
    from edgeres.data.choose import DataChoice
    from edgeres.judge.asked import Asked
    from edgeres.judge.checks import Finding
    from edgeres.judge.document import Json, Section
    from edgeres.judge.part import Checks
    from edgeres.made import Made
    from edgeres.progress import Progress
    from edgeres.task.page import Listed, Page, Plot
    from edgeres.verify.candidates import Candidates
    from edgeres.verify.measure import MeasurePlan, Validation

NAME = "regression"
MAE_INCREASE = TaskGate(
    Metric(
        "mae_increase",
        "MAE increase",
        "ceiling",
        "%",
        "task.gated.*.mae_increase_percent",
        "max_mae_increase",
        "{}",
        labelled=True,
    ),
    2.0,
    "%",
    "Gate of regression: by how much INT8's mean absolute error of any output is above FP32's.  [default: 2]",
)


LISTED = 10  # images that INT8 changes most
LEAST = 8  # images; with fewer, nothing is said of how values and truth are related
LOW = 0.25  # share of the truth's variance that FP32 explains, below which it is warned of
CLEAR = 0.7  # correlation from which a value surely follows a column
CHANCE = 3.3  # standard errors; a correlation of nothing is above in 1 of 1,000 draws
OTHER_UNITS = 0.5  # share of the error that is left with another unit, where the unit is surely another
SHOWN = 3  # values of a headline, of tiles and plots


@dataclass(frozen=True)
class Values:
    """The answer of a regression for one image.

    Attributes:
        values: float32 (K,), in the units that the network was trained on.
        names: of the values.
    """

    values: F32
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> float:
        return float(self.values[self.names.index(name)])

    def words(self) -> list[str]:
        """One line per value."""
        width = max(map(len, self.names))
        return [f"{name:<{width}}  {value:.6g}" for name, value in zip(self.names, self.values.tolist(), strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"values": dict(zip(self.names, map(float, self.values), strict=True))}


class Regressor(Predictor[Values]):
    """A bundle's INT8 network of values, ready to be called; :class:`~edgeres.runtime.Predictor` has its arguments.

    Example:
        >>> steer = Regressor("jetracer.edgeres")            # doctest: +SKIP
        >>> steer(frame).values, steer(frame)["x"]           # doctest: +SKIP
        (array([ 0.12, -0.4 ], dtype=float32), 0.12)
    """

    task = NAME

    def answers(self, outputs: Feed, runner: Backend) -> list[Values]:
        """The values of each image."""
        rows = outputs[runner.output_name].astype(np.float32, copy=False)
        return [Values(row, self.labels) for row in rows]


@dataclass(frozen=True)
class Answered:
    """The values that every candidate gives for every image.

    Attributes:
        names: of the values.
        images: names of the images.
        truth: float64 (N, K); K is 0 where there is none.
        rows: float64 (N, K) by candidate, the reference's under its name.
        runners: names of the backends.
    """

    names: tuple[str, ...]
    images: tuple[str, ...]
    truth: F64
    rows: Mapping[str, F64]
    runners: Mapping[str, str]

    @property
    def has_truth(self) -> bool:
        return bool(self.truth.shape[1])

    @property
    def candidates(self) -> tuple[str, ...]:
        return tuple(name for name in self.rows if name != REFERENCE)

    def errors(self, name: str) -> F64:
        """Absolute errors, float64 (N, K)."""
        found: F64 = np.abs(self.rows[name] - self.truth)
        return found

    def moved(self, name: str) -> F64:
        """Absolute differences to the reference, float64 (N, K)."""
        found: F64 = np.abs(self.rows[name] - self.rows[REFERENCE])
        return found

    @property
    def spread(self) -> F64:
        """Standard deviation of the reference's values over the images, float64 (K,)."""
        found: F64 = self.rows[REFERENCE].std(axis=0)
        return found


def _recognises(clues: Clues) -> bool:
    """Whether the labels are numbers with fractions, or the names of all images are those of JetRacer."""
    from edgeres.data.sources import open_source
    from edgeres.data.values import has_jetracer_names, numeric_columns

    with suppress(EdgeresError):  # whoever reads them for good says what is wrong
        if clues.table is not None:
            return any(any(float(cell) % 1 for cell in column) for column in numeric_columns(clues.table))
        if clues.validation is not None and Path(clues.validation).expanduser().is_dir():
            source = open_source(clues.validation, role="validation", px=1, labelled=True)
            return has_jetracer_names([source.name(index) for index in range(len(source))])
    return False


def _describe(spec: ModelSpec, outputs: Sequence[str]) -> ModelSpec:
    from edgeres.data.values import generic_names

    return replace(spec, labels=generic_names(spec.num_classes), output="logits", heads=(Head(outputs[0], NAME),))


def _validate(choice: DataChoice, spec: ModelSpec, progress: Progress) -> tuple[Source, Mapping[str, str]]:
    from edgeres.data.choose import choose_with_truth
    from edgeres.data.values import Valued, from_jetracer_names, from_npz, has_jetracer_names, with_values

    def read(source: Source, table: Path | None) -> Source:
        path = Path(choice.validation or "").expanduser()
        if table is not None:
            return with_values(source, table, spec.labels)
        if path.suffix.lower() == ".npz" and (found := from_npz(source, path, spec.labels)) is not None:
            return found
        if spec.num_classes <= 2 and has_jetracer_names([source.name(index) for index in range(len(source))]):
            return from_jetracer_names(source, spec.labels)
        return Valued(source, np.arange(len(source)), np.empty((len(source), 0)), spec.labels)

    source = choose_with_truth(choice, spec, read, progress)
    assert isinstance(source, Valued)
    if source.values.shape[1]:
        return source, {}
    why = "the validation images have no values; --validation-labels FILE.csv has them"
    progress.say(f"no errors, and INT8 is compared with FP32 alone: {why}")
    return source, {"task": why}


def _measure(
    candidates: Candidates, spec: ModelSpec, images: Validation, progress: Progress, plan: MeasurePlan
) -> TaskMeasured:
    from edgeres.data.values import Valued
    from edgeres.task.measure import Rows, measure_columns

    measured = measure_columns(candidates, spec, images, Rows, progress, plan)
    source, columns = images.loader.source, measured.answers
    assert isinstance(source, Valued)
    rows = {name: column.rows.astype(np.float64) for name, column in columns.by_name.items()}
    names = tuple(source.name(index) for index in columns.positions.tolist())
    answers = Answered(spec.labels, names, source.values[columns.positions], rows, columns.runners)
    return replace(measured, answers=answers)


def _judge(asked: Asked, made: Made, measured: TaskMeasured) -> Json:
    from edgeres.judge.judge import judge
    from edgeres.task.part import part_of

    answers = measured.answers
    section = _section(answers, measured.common.headline)
    part = part_of(asked.gates, section, checks_of(answers), (MAE_INCREASE,), truth=answers.has_truth)
    return judge(asked, made, measured.common, part)


def _section(answers: Answered, headline: str) -> Section:
    """The part ``task`` of the report."""
    from edgeres.judge.document import Section
    from edgeres.task.page import content

    gated, reasons = _increases(answers), {}
    if not answers.has_truth:
        reasons[""] = "the validation images have no values"
    for key, row in gated.items():
        if row["mae_increase_percent"] is None:
            reasons[f"gated.{key}.mae_increase_percent"] = "FP32 has no error on these images"
    figures: Json = {"figures": {name: _figures(answers, name) for name in answers.rows}, "gated": gated}
    return Section(content(NAME, _page(answers, gated, headline), headline, len(answers.images), figures), reasons)


def _key(candidate: str, value: str) -> str:
    """What a gate names; it has no dots, because dots separate the keys in a figure's path."""
    from edgeres.judge.document import titled

    return f"{titled(candidate)}: {value}".replace(".", "_")


def _increases(answers: Answered) -> Json:
    """By how much each candidate's mean absolute error is above the reference's, by candidate and value."""
    from edgeres.verify.statistics import ratios_of_means

    found: Json = {}
    for name in answers.candidates if answers.has_truth else ():
        for value, ratio in zip(
            answers.names, ratios_of_means(answers.errors(name), answers.errors(REFERENCE)), strict=True
        ):
            limits = [100 * (ratio.low - 1), 100 * (ratio.high - 1)] if ratio else None
            found[_key(name, value)] = {
                "graph": name,
                "value": value,
                "mae_increase_percent": 100 * (ratio.value - 1) if ratio else None,
                "mae_increase_percent_ci95": limits,
                "images": len(answers.images),
            }
    return found


def _figures(answers: Answered, name: str) -> Json:
    """The figures of one candidate, by value; null where there is no truth, or nothing to compare with."""
    rows = answers.rows[name]
    found: Json = {"runner": answers.runners[name], "values": {}}
    for column, value in enumerate(answers.names):
        own: Json = dict.fromkeys(("mae", "rmse", "r2", "moved", "moved_p99", "sqnr_db"))
        if answers.has_truth:
            errors, truth = answers.errors(name)[:, column], answers.truth[:, column]
            squares, power = float((errors**2).mean()), float(truth.var())
            own |= {"mae": float(errors.mean()), "rmse": squares**0.5, "r2": 1 - squares / power if power else None}
        if name != REFERENCE:
            moved = answers.moved(name)[:, column]
            own |= {"moved": float(moved.mean()), "moved_p99": float(np.quantile(moved, 0.99))}
            noise, signal = float((moved**2).sum()), float((rows[:, column] ** 2).sum())
            own["sqnr_db"] = float(10 * np.log10(signal / noise)) if noise and signal else None
        found["values"][value] = own
    return found


def _page(answers: Answered, gated: Json, headline: str) -> Page:
    from edgeres.task.page import Listed, Page, Tile

    by_graph = {name: _figures(answers, name)["values"] for name in answers.rows}
    rises = {value: gated.get(_key(headline, value)) for value in answers.names}
    words = {value: _words(by_graph[REFERENCE][value], by_graph[headline][value], rises[value]) for value in rises}
    shown = "; ".join(f"{value} {told}" for value, told in [*words.items()][:SHOWN])
    more = f"; and {len(words) - SHOWN} more values" if len(words) > SHOWN else ""
    told, key = ("MAE", "mae") if answers.has_truth else ("moved", "moved")
    some = answers.names[:SHOWN]
    errors = Listed(
        "Errors of each value",
        ("Value", "Graph", "MAE", "RMSE", "R2", "MAE increase", "Moved", "99 % moved less", "SQNR"),
        tuple(
            _row(value, name, by_graph[name][value], gated.get(_key(name, value)))
            for value in answers.names
            for name in answers.rows
        ),
        tuple(range(2, 9)),
        "Moved: how far INT8's value is from FP32's, on the mean of all images. Intervals of the increase: 95 %, by a "
        "paired bootstrap over the images.",
    )
    return Page(
        f"{told} of {shown}{more}, of {len(answers.images):,} images",
        tuple(Tile(f"{told} of {v}", *_tile(by_graph[REFERENCE][v], by_graph[headline][v], rises[v])) for v in some),
        tuple(f"{told} {value}" for value in some),
        {name: tuple(_number(by_graph[name][value][key]) for value in some) for name in answers.rows},
        tuple(words.items()),
        (errors, _moved_most(answers, headline)),
        tuple(_plot(answers, headline, column) for column in range(len(some))),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _rise(row: Json | None) -> str:
    """By how much the error rises, with its interval."""
    if row is None or row["mae_increase_percent"] is None:
        return "-"
    low, high = row["mae_increase_percent_ci95"]
    return f"{row['mae_increase_percent']:+.2f} % ({low:+.2f} to {high:+.2f})"


def _words(fp32: Json, int8: Json, rise: Json | None) -> str:
    if fp32["mae"] is None:
        return f"{_number(int8['moved'])} from FP32's"
    return f"FP32 {_number(fp32['mae'])}, INT8 {_number(int8['mae'])}, {_rise(rise)}"


def _tile(fp32: Json, int8: Json, rise: Json | None) -> tuple[str, str]:
    if fp32["mae"] is None:
        return _number(int8["moved"]), f"from FP32's value; 99 % of the images less than {_number(int8['moved_p99'])}"
    return f"{_number(fp32['mae'])} to {_number(int8['mae'])}", f"FP32 to INT8; increase {_rise(rise)}"


def _row(value: str, graph: str, own: Json, rise: Json | None) -> tuple[str, ...]:
    from edgeres.judge.document import titled

    name = "FP32" if graph == REFERENCE else titled(graph)
    numbers = (_number(own[key]) for key in ("mae", "rmse", "r2"))
    sqnr = "-" if own["sqnr_db"] is None else f"{own['sqnr_db']:.1f} dB"
    return value, name, *numbers, _rise(rise), _number(own["moved"]), _number(own["moved_p99"]), sqnr


def _moved_most(answers: Answered, headline: str) -> Listed:
    """The images whose values INT8 moves furthest, in units of FP32's spread."""
    from edgeres.task.page import Listed

    far = (answers.moved(headline) / np.maximum(answers.spread, 1e-30)).max(axis=1)
    rows = []
    for index in np.argsort(-far, kind="stable")[:LISTED].tolist():
        columns = [answers.rows[REFERENCE][index], answers.rows[headline][index]]
        columns = [answers.truth[index], *columns] if answers.has_truth else columns
        rows.append((answers.images[index], *(", ".join(f"{one:.4g}" for one in column) for column in columns)))
    head = ("Image", *(("True",) if answers.has_truth else ()), "FP32", "INT8")
    return Listed("Images that INT8 moves furthest", head, tuple(rows), tuple(range(1, len(head))))


def _plot(answers: Answered, headline: str, column: int) -> Plot:
    """Predicted against true values; without truth, INT8's against FP32's."""
    from edgeres.task.page import MAX_POINTS, Colour, Plot, Series, thinned

    name, step = answers.names[column], -(-len(answers.images) // MAX_POINTS)
    across = answers.truth if answers.has_truth else answers.rows[REFERENCE]
    shown: tuple[tuple[str, Colour, str], ...] = (("FP32", "fp32", REFERENCE), ("INT8", "int8", headline))
    series = tuple(
        Series(title, colour, thinned(across[:, column], step), thinned(answers.rows[graph][:, column], step))
        for title, colour, graph in (shown if answers.has_truth else shown[1:])
    )
    axis = f"true {name}" if answers.has_truth else f"FP32's {name}"
    title = f"{name}, predicted against {'true' if answers.has_truth else 'FP32'}"
    said = f"{title}: {len(answers.images):,} images, on the diagonal where both are equal"
    return Plot(title, "points", axis, f"predicted {name}", said, series, diagonal=True)


def checks_of(answers: Answered) -> Checks:
    """The checks of values, then those of every network."""
    from edgeres.judge.part import common_checks

    own: Checks = {
        "labels": ("values in the units and order of the outputs", lambda _: _units(answers)),
        "fp32": ("FP32 sees the images", lambda _: _sees(answers)),
    }
    return {**own, **common_checks()}


def _correlations(answers: Answered) -> F64:
    """Of FP32's values (rows) with the true ones (columns), float64 (K, K); 0 where one of them is constant."""
    said, true = answers.rows[REFERENCE], answers.truth
    said, true = said - said.mean(axis=0), true - true.mean(axis=0)
    power = np.sqrt(np.outer((said**2).sum(axis=0), (true**2).sum(axis=0)))
    found: F64 = np.divide(said.T @ true, power, out=np.zeros_like(power), where=power > 0)
    return found


def _unsure(answers: Answered) -> str:
    """Why values and truth cannot be compared; "" where they can."""
    if not answers.has_truth:
        return "the validation images have no values"
    return f"{len(answers.images)} images are too few to tell" if len(answers.images) < LEAST else ""


def _units(answers: Answered) -> Finding:
    """Fails where FP32 sees the images, but its values are another unit's or another column's."""
    if why := _unsure(answers):
        return "unsure", why
    related, names = _correlations(answers), answers.names
    order = np.abs(related).argmax(axis=1).tolist()
    own, best = np.abs(related.diagonal()), np.abs(related).max(axis=1)
    if sorted(order) == [*range(len(names))] != order and (best[own < best] > CLEAR).all() and own.max() < best.min():
        wanted = ", ".join(names[column] for column in order)
        given = ", ".join(names)
        return "failed", f"columns look exchanged: outputs follow {wanted}, and they are given as {given}"
    for column, name in enumerate(names):
        if best[column] < CLEAR or order[column] != column:
            continue
        said, true = answers.rows[REFERENCE][:, column], answers.truth[:, column]
        factor = float(related[column, column] * true.std() / said.std())
        offset = float(true.mean() - factor * said.mean())
        fitted = np.abs(factor * said + offset - true).mean()
        if fitted < OTHER_UNITS * np.abs(said - true).mean():
            told = f"{name} looks to be in other units than the output: true {name} is about {factor:.3g} x output"
            return "failed", f"{told} {offset:+.3g} on these images; give the values as in training"
    return "passed", "no other unit, offset or order of columns fits better"


def _sees(answers: Answered) -> Finding:
    """Fails where no value of FP32 has to do with the truth; warns where one explains little of it."""
    if why := _unsure(answers):
        return "unsure", why
    related = _correlations(answers)
    images, r = len(answers.images), np.abs(related.diagonal())
    told = ", ".join(f"{name} {value:.2f}" for name, value in zip(answers.names, related.diagonal(), strict=True))
    told = f"correlation of FP32's values with the true ones: {told}"
    chance = CHANCE / np.sqrt(images)  # standard errors of a correlation of nothing, about 1 / sqrt(N)
    if (np.abs(related) < chance).all():
        return "failed", f"{told}: no more than chance; look at preprocessing, weights and the table of values"
    if weak := [name for name, one in zip(answers.names, r, strict=True) if one**2 < LOW]:
        return "unsure", f"{told}: {', '.join(weak)} explains less than {LOW:.0%} of the truth", True
    return "passed", told


TASK = Task(
    name=NAME,
    outputs="values",
    recognises=_recognises,
    describe=_describe,
    validate=_validate,
    measure=_measure,
    judge=_judge,
    predictor=Regressor,
    limits=tuple(METRICS[name].option for name in COMMON),
    gates=(MAE_INCREASE,),
)
