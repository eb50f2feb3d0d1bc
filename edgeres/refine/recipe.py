"""Which refinements a network gets: each is kept only if it lowers the error on images held back from calibration.

    calibrate -> equalize and calibrate again -> residual precision -> learned ranges -> bias correction

``fast`` is the calibration pass alone. ``balanced`` costs up to 20 forward passes over the calibration images; ``best``
learns the rounding of weights too, in minutes. The error is the noise power of the logits against FP32's, typical of an
image, with float arithmetic between Q/DQ pairs. Validation images play no part.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from edgeres.data.loader import Loader
from edgeres.errors import EdgeresError, needs
from edgeres.graph.graph import Graph
from edgeres.progress import SILENT, Progress
from edgeres.quantize.graphs import Quantized, RangeChoice, quantize
from edgeres.quantize.rewrite import rewrite
from edgeres.records import F32, I64, Codes, Style
from edgeres.refine.bias import correct_bias
from edgeres.refine.candidate import Draft, logits, typical_noise
from edgeres.refine.choice import RefineChoice
from edgeres.refine.equalize import equalize
from edgeres.refine.residual import SkipCost, choose_residual, keep_in_half, skips
from edgeres.zoo.download import cache_dir

if TYPE_CHECKING:
    from edgeres.refine.reconstruct import ReconstructOptions

# Of the inputs that refinement holds in memory: 512 images at 32 px, 111 at 224 px.
_IMAGE_BYTES = 64 << 20
_HELD_BACK = 96
_LEAST_IMAGES = 32
# Of the inputs that statistics per channel are taken from: large images have more positions, and fewer of them will do.
_STATISTICS_BYTES = 16 << 20
_EQUALIZE_IMAGES, _BIAS_IMAGES, _TRIAL_IMAGES = 128, 128, 64
_LEARNING_PASSES = 8  # that balanced may cost, in forward passes over the calibration images
# A learning step on images above 128 px takes seconds an image: fewer of them make one.
_LARGE_INPUT = 3 * 128 * 128
_LARGE_INPUT_BATCH = 8


@dataclass(frozen=True)
class Step:
    """One refinement of one graph.

    Attributes:
        style: of the graph it was tried on.
        before_db, after_db: logit SQNR, mean over the held-back images; ``after_db`` None where it could not be done.
        note: why it was not kept, or "".
    """

    name: str
    style: str
    before_db: float
    after_db: float | None
    kept: bool
    seconds: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return vars(self).copy()


@dataclass(frozen=True)
class Refined:
    """Graphs and plans after refinement, with what each step brought and what each block's precision costs.

    Attributes:
        note: why nothing was refined, or "".
    """

    quantized: Quantized
    steps: tuple[Step, ...] = ()
    skips: tuple[SkipCost, ...] = ()
    note: str = ""


def quantize_with_recipe(
    graph: onnx.ModelProto,
    styles: Sequence[Style],
    loader: Loader,
    ranges: RangeChoice,
    choice: RefineChoice,
    progress: Progress = SILENT,
) -> Refined:
    """Calibrate, plan, and refine for every style.

    Args:
        graph: canonical FP32.
        loader: calibration images; a fifth of them, at most 96, is held back to judge refinements. Too few images to
            spare any, or ``fast`` without a choice of residual precision: all calibrate and nothing is refined.

    Raises:
        SourceError: images cannot be read.
        ModelError: a tensor is not finite.
    """
    refines = choice.effort != "fast" or choice.residual == "auto"
    count = len(loader.source)
    if not refines or count < _LEAST_IMAGES:
        note = f"{count} calibration images are too few to hold any back" if refines else ""
        quantized = quantize(graph, styles, loader, ranges, progress)
        plan = quantized.plans.get("tensorrt")
        if plan is None or choice.residual != "fp16":
            return Refined(quantized, note=note)
        view = Graph(graph)
        half = Draft(graph, keep_in_half(view, plan, skips(view, plan)))
        return Refined(_with_drafts(quantized, {"tensorrt": half}), note=note)
    # Sources come sorted by class: both parts, and what is taken first of them, must hold every class.
    order = np.random.RandomState(0).permutation(count).astype(np.int64)
    held_count = min(max(count // 5, 16), _HELD_BACK)
    fit, held = _part(loader, order[held_count:]), _part(loader, order[:held_count])
    quantized = quantize(graph, styles, fit, ranges, progress)
    bench = _Bench(graph, _inputs(replace(fit), _IMAGE_BYTES), _inputs(held, _IMAGE_BYTES), choice, progress)
    loader.unreadable[:] = fit.unreadable + held.unreadable
    if choice.effort != "fast":
        few = _part(loader, order[held_count:][:_TRIAL_IMAGES])
        quantized = bench.equalize(
            quantized,
            ranges.codes,
            lambda equal, trial: quantize(equal, styles, few if trial else fit, ranges, SILENT if trial else progress),
        )
    drafts = {style: bench.refine(Draft(bench.graphs[style], plan)) for style, plan in quantized.plans.items()}
    return Refined(_with_drafts(quantized, drafts), tuple(bench.steps), bench.skips)


def _with_drafts(quantized: Quantized, drafts: dict[Style, Draft]) -> Quantized:
    """The refined graphs and plans beside the others; the calibration stays what the images said."""
    plans = {style: draft.plan for style, draft in drafts.items()}
    graphs = {style: rewrite(draft.graph, draft.plan) for style, draft in drafts.items()}
    return replace(quantized, plans={**quantized.plans, **plans}, graphs={**quantized.graphs, **graphs})


def _part(loader: Loader, chosen: I64) -> Loader:
    source = loader.source
    view = source.at(chosen, f"{len(chosen):,} of {source.description}")
    return Loader(view, loader.preprocess, loader.batch_size, loader.on_unreadable, loader.workers)


def _inputs(loader: Loader, limit: int) -> F32:
    """As many network inputs as fit ``limit`` bytes, in the loader's order."""
    found: list[F32] = []
    size = 0
    for batch in loader:
        found.append(batch.inputs)
        size += batch.inputs.nbytes
        if size >= limit:
            break
    return np.concatenate(found)


class _Bench:
    """Tries refinements and keeps those that lower the error on the held-back images.

    Attributes:
        graphs: FP32 by style, equalized where that helped.
    """

    def __init__(self, graph: onnx.ModelProto, fit: F32, held: F32, choice: RefineChoice, progress: Progress) -> None:
        self.graphs: defaultdict[Style, onnx.ModelProto] = defaultdict(lambda: graph)
        self.fit, self.held = fit, held
        self.choice, self.progress = choice, progress
        self.reference = logits(graph, held)
        self.steps: list[Step] = []
        self.skips: tuple[SkipCost, ...] = ()

    def equalize(
        self, quantized: Quantized, codes: Codes, again: Callable[[onnx.ModelProto, bool], Quantized]
    ) -> Quantized:
        """Equalize the float graph and calibrate it anew; each style keeps the graph that serves it better.

        Args:
            again: calibrates a graph, on a few images where the second argument is true: they tell whether it is worth
                another pass over all of them.
        """
        start = time.perf_counter()
        graph = equalize(self.graphs[next(iter(quantized.plans))], self._some(_EQUALIZE_IMAGES), codes, self.progress)
        before = {style: self._noise(Draft(self.graphs[style], plan)) for style, plan in quantized.plans.items()}
        found = again(graph, True)
        after = {style: self._noise(Draft(graph, plan)) for style, plan in found.plans.items()}
        if any(after[style] < before[style] for style in before):
            found = again(graph, False)
            after = {style: self._noise(Draft(graph, plan)) for style, plan in found.plans.items()}
        plans = dict(quantized.plans)
        for style in before:
            self._record("equalization", style, before[style], after[style], time.perf_counter() - start)
            start = time.perf_counter()  # both graphs took it together: the first one is charged
            if after[style] < before[style]:
                self.graphs[style], plans[style] = graph, found.plans[style]
        return replace(quantized, plans=plans)  # the calibration stays that of the network which was given

    def _some(self, images: int) -> F32:
        return self.fit[: min(max(32, _STATISTICS_BYTES // self.fit[0].nbytes), images)]

    def refine(self, draft: Draft) -> Draft:
        if draft.plan.style == "tensorrt":
            draft = self._residual(draft)
        if self.choice.effort == "best" or (self.choice.effort == "balanced" and draft.plan.style == "tensorrt"):
            draft = self._try("learned ranges", draft, self._learn_ranges)
        if self.choice.effort == "best" and draft.plan.style == "tensorrt":
            draft = self._try("learned rounding", draft, self._learn_rounding)
        if self.choice.effort != "fast":
            # Last: it takes off what mean everything before it has left.
            teacher, images = self.graphs[draft.plan.style], self._some(_BIAS_IMAGES)
            draft = self._try("bias correction", draft, lambda d: correct_bias(d, teacher, images, self.progress))
        return draft

    def _residual(self, draft: Draft) -> Draft:
        if self.choice.residual == "auto":
            draft, self.skips = choose_residual(draft, self.reference, self.held, progress=self.progress)
        elif self.choice.residual == "fp16":
            view = Graph(draft.graph)
            draft = replace(draft, plan=keep_in_half(view, draft.plan, skips(view, draft.plan)))
        return draft

    def _learn_ranges(self, draft: Draft) -> Draft:
        from edgeres.refine.reconstruct import ReconstructOptions

        if self.choice.effort == "best":
            return self._learn(draft, ReconstructOptions(batch=self._batch))
        return self._learn(draft, ReconstructOptions.balanced(_LEARNING_PASSES * len(self.fit), self._batch))

    def _learn_rounding(self, draft: Draft) -> Draft:
        from edgeres.refine.reconstruct import ReconstructOptions

        return self._learn(draft, ReconstructOptions.with_rounding(self._batch))

    @property
    def _batch(self) -> int:
        return _LARGE_INPUT_BATCH if self.fit[0].size > _LARGE_INPUT else 32

    def _learn(self, draft: Draft, options: ReconstructOptions) -> Draft:
        from edgeres.refine.reconstruct import reconstruct

        options = replace(options, resume=cache_dir() / "learning")
        return reconstruct(draft, self.graphs[draft.plan.style], self.fit, options, self.progress)

    def _try(self, name: str, draft: Draft, step: Callable[[Draft], Draft]) -> Draft:
        start, before = time.perf_counter(), self._noise(draft)
        try:
            if name.startswith("learned") and importlib.util.find_spec("torch") is None:
                raise needs("export", "torch")
            changed = step(draft)
        except EdgeresError as error:  # an operator that a refinement does not know is no reason to stop
            self._record(name, draft.plan.style, before, None, time.perf_counter() - start, str(error))
            return draft
        after = self._noise(changed)
        self._record(name, draft.plan.style, before, after, time.perf_counter() - start)
        return changed if after < before else draft

    def _noise(self, draft: Draft) -> float:
        return typical_noise(self.reference, logits(draft.quantized(), self.held))

    def _record(
        self, name: str, style: str, before: float, after: float | None, seconds: float, note: str = ""
    ) -> None:
        kept = after is not None and after < before
        note = note or ("" if kept else "no gain on the held-back images")
        self.steps.append(Step(name, style, _db(before), None if after is None else _db(after), kept, seconds, note))


def _db(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-30))
