"""The recipe of refinements: each is kept only if it lowers the error on images held back from it.

    calibrate -> equalize and calibrate again -> residual precision -> learned ranges -> bias correction

``fast`` is the calibration pass only, but for the constants of pruned networks. ``best`` learns the rounding of
weights too, in minutes. The error is the noise power of the logits against FP32's, with float arithmetic between Q/DQ
pairs; :mod:`edgeres.refine.verdict` says how it decides. Validation images are not used.

Where no step is kept, or the result is worse than the calibration with all images, that calibration is used, as in
``fast``: it knows the images that were held back, too.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from edgeres.data.loader import Loader
from edgeres.device.memory import return_freed
from edgeres.errors import EdgeresError, needs
from edgeres.graph.graph import Graph
from edgeres.progress import SILENT, Progress
from edgeres.quantize.graphs import Quantized, RangeChoice, each_style, quantize
from edgeres.quantize.rewrite import rewrite
from edgeres.records import F32, I64, Codes, QuantPlan, Style
from edgeres.refine.bias import correct_bias
from edgeres.refine.candidate import CandidatePlan, logits
from edgeres.refine.choice import RefineChoice
from edgeres.refine.constants import constant_channels
from edgeres.refine.equalize import equalize
from edgeres.refine.residual import SkipCost, choose_residual, keep_in_half, skips
from edgeres.refine.verdict import ImageErrors, ImageJudge, why_refused
from edgeres.zoo.download import cache_dir

# Most bytes of inputs that refinement holds in memory: all images at 32 px, 79 at 224 px.
_IMAGE_BYTES = 48 << 20
_HELD_BACK = 96
_JUDGED = 256  # images that judge a step, held back or not
_LEAST_IMAGES = 32
# Equalization takes from channels the room above their values, so that rare values may saturate. On networks that lost
# 5 dB to one image in a hundred, 24 held-back images did not show it, and 32 did.
_LEAST_HELD_TO_EQUALIZE = 32
# Most bytes of inputs for statistics per channel: large images have more positions, so fewer of them are enough.
_STATISTICS_BYTES = 16 << 20
_EQUALIZE_IMAGES, _BIAS_IMAGES, _TRIAL_IMAGES = 128, 128, 64
# Duration of ``balanced`` in calibration passes, for the user's orientation.
_REFINE_PASSES = 20
_LEARNING_PASSES = 8  # forward passes over the calibration images that learning may cost in ``balanced``
# With images above 128 px, a learning step takes seconds per image, so it uses fewer of them.
_LARGE_INPUT = 3 * 128 * 128
_LARGE_INPUT_BATCH = 8


@dataclass(frozen=True)
class Step:
    """One refinement that was tried on the graph of one style; ``note`` says why it was not kept.

    The figures are the logit SQNR, mean over the held-back images; ``after_db`` is None if the step failed. A step
    that raises them may be left out all the same: see :mod:`edgeres.refine.verdict`.
    """

    name: str
    style: str
    before_db: float
    after_db: float | None
    kept: bool
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Refined:
    """Graphs and plans after refinement, the gain of each step, the cost of each skip, and why nothing was refined.

    ``calibrated`` is the plan for TensorRT of the calibration alone, for the network as it was given.
    """

    quantized: Quantized
    steps: tuple[Step, ...] = ()
    skips: tuple[SkipCost, ...] = ()
    note: str = ""
    calibrated: QuantPlan | None = None


def quantize_with_recipe(
    model: ModelProto,
    styles: Sequence[Style],
    loader: Loader,
    ranges: RangeChoice,
    choice: RefineChoice,
    progress: Progress = SILENT,
) -> Refined:
    """Calibrate, plan, and refine for every style.

    Args:
        model: canonical FP32.
        loader: calibration images; a quarter of them, at most 96, is held back to judge refinements. If there are too
            few images for that, or the effort is ``fast`` without ``auto`` residuals, all of them calibrate and nothing
            is refined.

    Raises:
        SourceError: images cannot be read.
        ModelError: a tensor is not finite.
    """
    refines = choice.effort != "fast" or choice.residual == "auto"
    count = len(loader.source)
    if not refines or count < _LEAST_IMAGES:
        note = f"{count} calibration images are too few to hold any back" if refines else ""
        with progress.stage("calibrate", _calibrating(count, ranges)):
            every = quantize(model, styles, loader, ranges, progress)
        plain = replace(_unrefined(model, every, choice), note=note, calibrated=every.plans.get("tensorrt"))
        return plain if count < _LEAST_IMAGES else _with_corrected_constants(model, plain, loader, progress)
    # Sources are sorted by class: both parts, and the first images of each, must hold every class.
    order = np.random.RandomState(0).permutation(count).astype(np.int64)
    held_count = min(max(count // 4, 16), _HELD_BACK)
    fit, held = _part(loader, order[held_count:]), _part(loader, order[:held_count])
    start = time.perf_counter()
    with progress.stage("calibrate", _calibrating(count, ranges, held_count)):
        quantized = quantize(model, styles, fit, ranges, progress)
    with progress.stage("refine", _refining(choice, time.perf_counter() - start)):
        refiner = _Refiner(model, _inputs(replace(fit), _IMAGE_BYTES), _inputs(held, _IMAGE_BYTES), choice, progress)
        quantized = _running(quantized, refiner.held[:1])
        calibrated = quantized.plans.get("tensorrt")
        loader.unreadable[:] = fit.unreadable + held.unreadable
        if choice.effort != "fast":
            parts = _part(loader, order[held_count:][:_TRIAL_IMAGES]), fit
            quantized = _equalized(refiner, quantized, parts, ranges)
        found = {
            style: refiner.refined(CandidatePlan(refiner.graphs[style], p)) for style, p in quantized.plans.items()
        }
        if choice.effort == "fast" or choice.residual != "int8":
            return Refined(
                _with_candidates(quantized, found), tuple(refiner.steps), refiner.skips, calibrated=calibrated
            )
        refiner.graphs.clear()  # the equalized graph is not needed any more
        every = _running(quantize(model, styles, loader, ranges, progress), refiner.held[:1])
        plain = _with_corrected_constants(model, Refined(every), loader, progress)
        plain = replace(plain, calibrated=every.plans.get("tensorrt"))
        return _better(refiner, quantized, found, plain)


def _equalized(refiner: _Refiner, quantized: Quantized, parts: tuple[Loader, Loader], ranges: RangeChoice) -> Quantized:
    """Equalize, calibrated on the first part to see whether it is worth a pass over the second."""
    few, fit = parts

    def again(graph: ModelProto, trial: bool) -> Quantized:
        shown = SILENT if trial else refiner.progress
        return quantize(graph, tuple(quantized.plans), few if trial else fit, ranges, shown)

    return refiner.equalize(quantized, ranges.codes, again)


def _better(refiner: _Refiner, quantized: Quantized, found: dict[Style, CandidatePlan], plain: Refined) -> Refined:
    """Each style's refined candidate, or its calibration with all images where that is better."""
    better = {style: candidate for style, candidate in found.items() if refiner.gains(plain.quantized, style)}
    base, steps = (quantized, ()) if len(better) == len(found) else (plain.quantized, plain.steps)
    made = _with_candidates(base, better)
    return Refined(made, (*refiner.steps, *steps), refiner.skips, calibrated=plain.calibrated)


def _calibrating(images: int, ranges: RangeChoice, held: int = 0) -> str:
    """What the calibration's stage shows."""
    if ranges.recorded is not None:
        return "taking recorded ranges"
    parts = f": {images - held:,} to calibrate, {held:,} held back" if held else ""
    return f"calibrating {images:,} images{parts}"


def _refining(choice: RefineChoice, calibration_seconds: float) -> str:
    """What the refinement's stage shows, with its rough duration."""
    if choice.effort == "fast":
        return f"choosing the residual stream's precision, --residual {choice.residual}"
    if choice.effort == "best":
        return "refining with --effort best, some minutes"
    minutes = calibration_seconds * _REFINE_PASSES / 60
    about = f"up to {math.ceil(minutes)} min" if minutes > 1 else "up to a minute"
    return f"refining, --effort {choice.effort}: {about}; fast leaves it out"


def _running(quantized: Quantized, images: F32) -> Quantized:
    """Without the styles whose graph ONNX Runtime cannot run: every refinement runs it."""
    failed = dict(quantized.left_out)
    plans, floats = quantized.plans, quantized.floats
    ran = each_style(plans, lambda s: logits(CandidatePlan(floats[s], plans[s]).quantized(), images), failed)
    return replace(
        quantized,
        graphs={style: quantized.graphs[style] for style in ran},
        plans={style: plans[style] for style in ran},
        left_out=failed,
    )


def _unrefined(model: ModelProto, quantized: Quantized, choice: RefineChoice) -> Refined:
    """The quantized graphs, with skips in float16 where the user asked for that."""
    plan = quantized.plans.get("tensorrt")
    if plan is None or choice.residual != "fp16":
        return Refined(quantized)
    return Refined(_with_candidates(quantized, {"tensorrt": _all_half(CandidatePlan(model, plan))}))


def _with_corrected_constants(model: ModelProto, plain: Refined, loader: Loader, progress: Progress) -> Refined:
    """Correct the biases of a pruned network (:mod:`edgeres.refine.constants`); other networks stay as they are."""
    plans = plain.quantized.plans
    if not any(constant_channels(model, plan) for plan in plans.values()):
        return plain
    order = np.random.RandomState(0).permutation(len(loader.source)).astype(np.int64)
    images = _inputs(_part(loader, order[:_BIAS_IMAGES]), _STATISTICS_BYTES)
    refiner = _Refiner(model, images, images, RefineChoice("fast"), progress)
    found = {style: refiner.correct(CandidatePlan(model, plan)) for style, plan in plans.items()}
    return replace(plain, quantized=_with_candidates(plain.quantized, found), steps=tuple(refiner.steps))


def _all_half(candidate: CandidatePlan) -> CandidatePlan:
    """The candidate plan with every skip input in float16."""
    graph = Graph(candidate.graph)
    return replace(candidate, plan=keep_in_half(graph, candidate.plan, skips(graph, candidate.plan)))


def _with_candidates(quantized: Quantized, candidates: dict[Style, CandidatePlan]) -> Quantized:
    """The record with these graphs and plans in place of its own; the calibration stays.

    A style whose graph cannot be written is left out.
    """
    failed = dict(quantized.left_out)
    graphs = each_style(candidates, lambda style: rewrite(candidates[style].graph, candidates[style].plan), failed)
    kept = {style: candidate for style, candidate in candidates.items() if style in graphs}
    return replace(
        quantized,
        graphs={style: graph for style, graph in {**quantized.graphs, **graphs}.items() if style not in failed},
        plans={**quantized.plans, **{style: candidate.plan for style, candidate in kept.items()}},
        floats={**quantized.floats, **{style: candidate.graph for style, candidate in kept.items()}},
        left_out=failed,
    )


def _part(loader: Loader, chosen: I64) -> Loader:
    source = loader.source
    view = source.at(chosen, f"{len(chosen):,} of {source.description}")
    return Loader(view, loader.preprocess, loader.batch_size, loader.on_unreadable, loader.workers)


def _inputs(loader: Loader, limit: int) -> F32:
    """The first network inputs of a loader, until they reach ``limit`` bytes."""
    found: list[F32] = []
    for batch in loader:
        found.append(batch.inputs)
        if sum(inputs.nbytes for inputs in found) >= limit:
            break
    return np.concatenate(found)


class _Refiner:
    """Tries refinements on the inputs ``fit`` and keeps those that lower the error on the inputs ``held``.

    ``graphs`` are FP32, by style, equalized where that helped.
    """

    def __init__(self, model: ModelProto, fit: F32, held: F32, choice: RefineChoice, progress: Progress) -> None:
        self.graphs: defaultdict[Style, ModelProto] = defaultdict(lambda: model)
        self.fit, self.held = fit, held
        self.choice, self.progress = choice, progress
        self.judge = ImageJudge(model, held, self._some(_JUDGED - len(held)))
        # Errors by style: of the calibration alone, and of what has been kept since.
        self.start: dict[Style, ImageErrors] = {}
        self.now: dict[Style, ImageErrors] = {}
        self.steps: list[Step] = []
        self.skips: tuple[SkipCost, ...] = ()

    def equalize(self, quantized: Quantized, codes: Codes, again: Callable[[ModelProto, bool], Quantized]) -> Quantized:
        """Equalize the float graph and calibrate it again; each style keeps the graph with the lower error.

        ``again`` calibrates a graph; with True on a few images, which show whether a pass over all of them is worth it.
        """
        start = time.perf_counter()
        for style, plan in quantized.plans.items():
            self._begin(CandidatePlan(self.graphs[style], plan))
        if len(self.held) < _LEAST_HELD_TO_EQUALIZE:
            need = 4 * _LEAST_HELD_TO_EQUALIZE
            why = f"{len(self.held)} held-back images are too few to judge it: give {need} images"
            for style in quantized.plans:
                self._record("equalization", style, None, 0.0, why)
            return quantized
        try:
            return_freed()
            fp32, images = self.graphs[next(iter(quantized.plans))], self._some(_EQUALIZE_IMAGES)
            graph = equalize(fp32, images, codes, self.progress)
            found = again(graph, True)
            after = self._all_errors(graph, found)
            if any(not why_refused(self.now[style], after[style]) for style in after):
                found = again(graph, False)
                after = self._all_errors(graph, found)
        except Exception as error:  # see _left_out
            why = self._left_out("equalization", error)
            for style in quantized.plans:
                self._record("equalization", style, None, time.perf_counter() - start, why)
            return quantized
        plans = dict(quantized.plans)
        for style, errors in after.items():
            if self._record("equalization", style, errors, time.perf_counter() - start):
                self.graphs[style], plans[style] = graph, found.plans[style]
            start = time.perf_counter()  # the time was spent once for all styles: it counts for the first one
        return replace(quantized, plans=plans)  # with the calibration of the network before equalization

    def _all_errors(self, graph: ModelProto, quantized: Quantized) -> dict[Style, ImageErrors]:
        return {style: self.judge.errors(CandidatePlan(graph, plan)) for style, plan in quantized.plans.items()}

    def _some(self, images: int) -> F32:
        return self.fit[: min(max(32, _STATISTICS_BYTES // self.fit[0].nbytes), images)]

    def refined(self, candidate: CandidatePlan) -> CandidatePlan:
        """The plan after the steps of the effort, or as it is where they fail."""
        try:
            return self.refine(candidate)
        except Exception as error:  # see _left_out
            self._left_out(f"refinement, {candidate.plan.style} graph", error)
            return candidate

    def refine(self, candidate: CandidatePlan) -> CandidatePlan:
        """Take one style's plan through the steps of the effort."""
        effort, for_tensorrt = self.choice.effort, candidate.plan.style == "tensorrt"
        if for_tensorrt and self.choice.residual == "auto":
            try:
                reference = self.judge.reference[: len(self.held)]
                candidate, self.skips = choose_residual(candidate, reference, self.held, progress=self.progress)
            except Exception as error:  # see _left_out
                self._left_out("residual precision", error)
        elif for_tensorrt and self.choice.residual == "fp16":
            candidate = _all_half(candidate)
        if effort == "fast":
            return candidate
        if for_tensorrt and self.choice.residual != "int8":
            self._begin(candidate)  # with another precision of the skips, which is no step
        if effort == "best" or for_tensorrt:
            candidate = self._learn("learned ranges", candidate, rounding=False)
        if effort == "best" and for_tensorrt:
            candidate = self._learn("learned rounding", candidate, rounding=True)
        # The last step: it corrects the mean error that all others have left.
        return self.correct(candidate)

    def correct(self, candidate: CandidatePlan) -> CandidatePlan:
        """Correct one style's biases."""
        if candidate.plan.style not in self.now:
            self._begin(candidate)
        fp32, images = self.graphs[candidate.plan.style], self._some(_BIAS_IMAGES)
        return self._try("bias correction", candidate, lambda c: correct_bias(c, fp32, images, self.progress))

    def _learn(self, name: str, candidate: CandidatePlan, *, rounding: bool) -> CandidatePlan:
        """Learn for the least typical error; if that raises the error of few images, once more with these in view."""
        learned = self._try(name, candidate, lambda c: self._learned(c, rounding=rounding, guarded=False))
        if "rises" in self.steps[-1].note:
            again = f"{name}, mean error in view"
            learned = self._try(again, candidate, lambda c: self._learned(c, rounding=rounding, guarded=True))
        return learned

    def _learned(self, candidate: CandidatePlan, *, rounding: bool, guarded: bool) -> CandidatePlan:
        if importlib.util.find_spec("torch") is None:
            raise needs("export", "torch")
        from edgeres.refine.reconstruct import ReconstructOptions, reconstruct

        batch = _LARGE_INPUT_BATCH if self.fit[0].size > _LARGE_INPUT else 32
        if rounding:
            options = ReconstructOptions.with_rounding(batch)
        elif self.choice.effort == "best":
            options = ReconstructOptions(batch=batch)
        else:
            options = ReconstructOptions.balanced(_LEARNING_PASSES * len(self.fit), batch)
        options = replace(options, guarded=guarded, resume=cache_dir() / "learning")
        return reconstruct(candidate, self.graphs[candidate.plan.style], self.fit, options, self.progress)

    def _try(
        self, name: str, candidate: CandidatePlan, step: Callable[[CandidatePlan], CandidatePlan]
    ) -> CandidatePlan:
        start, style = time.perf_counter(), candidate.plan.style
        return_freed()
        try:
            changed = step(candidate)
            errors = self.judge.errors(changed)
        except Exception as error:  # see _left_out
            why = self._left_out(f"{name}, {style} graph", error)
            self._record(name, style, None, time.perf_counter() - start, why)
            return candidate
        return changed if self._record(name, style, errors, time.perf_counter() - start) else candidate

    def gains(self, plain: Quantized, style: Style) -> bool:
        """Whether the steps that were kept are worth the images that were held back for them.

        ``plain`` is the calibration of all images. It knows those that are held back here, so that it is in favour;
        a refined plan that is worse on them clips what was rare in its own images.
        """
        if style not in plain.plans:
            return True
        if not any(step.kept for step in self.steps if step.style == style):
            return False
        start, before = time.perf_counter(), self.judge.errors(CandidatePlan(plain.floats[style], plain.plans[style]))
        why, after = why_refused(before, self.now[style]), self.now[style]
        if why:
            note = f"used instead of the refined ranges: {why}"
            seconds = time.perf_counter() - start
            name = "calibration on all images"
            self.steps.append(Step(name, style, _db(after.typical), _db(before.typical), True, seconds, note))
        return not why

    def _left_out(self, what: str, error: Exception) -> str:
        """Say that a step is left out, and why: refinement is optional, so whatever fails in it ends no build.

        Raises:
            MemoryError: the machine has no memory left, which what follows would meet, too.
        """
        if isinstance(error, MemoryError):
            raise error
        why = str(error) if isinstance(error, EdgeresError) else f"{type(error).__name__}: {error}"
        why = " ".join(why.split())
        self.progress.say(f"{what} left out: {why}")
        return why

    def _begin(self, candidate: CandidatePlan) -> None:
        style = candidate.plan.style
        self.start[style] = self.now[style] = self.judge.errors(candidate)

    def _record(self, name: str, style: Style, after: ImageErrors | None, seconds: float, why: str = "") -> bool:
        """Enter a step, failed if it has no errors; returns whether it is kept."""
        before = self.now[style]
        why = why if after is None else why_refused(before, after, self.start[style])
        self.steps.append(
            Step(name, style, _db(before.typical), None if after is None else _db(after.typical), not why, seconds, why)
        )
        if after is not None and not why:
            self.now[style] = after
        return not why


def _db(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-30))
