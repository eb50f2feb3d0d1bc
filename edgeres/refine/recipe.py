"""Which refinements a network gets: each is kept only if it lowers the error on images held back from calibration.

    calibrate -> equalize and calibrate again -> residual precision -> learned ranges -> bias correction

``fast`` is the calibration pass alone. ``balanced`` costs a few passes more; ``best`` learns at length. The error is
the noise power of the logits against FP32's, with float arithmetic between Q/DQ pairs. Validation images play no part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from edgeres.data.base import View
from edgeres.data.loader import Loader
from edgeres.errors import EdgeresError
from edgeres.graph.view import GraphView
from edgeres.progress import SILENT, Progress
from edgeres.quantize.rewrite import rewrite
from edgeres.quantize.stage import Quantized, RangeChoice, quantize
from edgeres.records import F32, Style
from edgeres.refine.bias import correct_bias
from edgeres.refine.choice import RefineChoice
from edgeres.refine.draft import Draft, logits, noise_power
from edgeres.refine.equalize import equalize
from edgeres.refine.residual import SkipCost, choose_residual, keep_in_half, skips

# Of the inputs that refinement holds in memory: 512 images at 32 px, 111 at 224 px.
_IMAGE_BYTES = 64 << 20
_EQUALIZE_BYTES = 16 << 20
_HELD_BACK = 64
# A learning step on images above 128 px takes seconds an image: fewer of them make one.
_LARGE_INPUT = 3 * 128 * 128
_LARGE_INPUT_BATCH = 8
_LEAST_IMAGES = 32


@dataclass(frozen=True)
class Step:
    """One refinement of one graph.

    Attributes:
        before_db, after_db: logit SQNR on the held-back images; ``after_db`` None where the step could not be done.
        note: why it was not kept, or "".
    """

    name: str
    style: Style
    before_db: float
    after_db: float | None
    kept: bool
    seconds: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return vars(self).copy()


@dataclass(frozen=True)
class Refined:
    """Graphs and plans after refinement, with what each step brought and what each block's precision costs."""

    quantized: Quantized
    steps: tuple[Step, ...] = ()
    skips: tuple[SkipCost, ...] = ()


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
        loader: calibration images; an eighth of them, at most 64, is held back to judge refinements. Too few images to
            spare any, or ``fast`` without a choice of residual precision: all calibrate and nothing is refined.

    Raises:
        SourceError: images cannot be read.
        ModelError: a tensor is not finite.
    """
    count = len(loader.source)
    nothing_to_judge = choice.effort == "fast" and choice.residual != "auto"
    if count < _LEAST_IMAGES or nothing_to_judge:
        quantized = quantize(graph, styles, loader, ranges, progress)
        if choice.residual == "int8" or "tensorrt" not in quantized.plans:
            return Refined(quantized)
        view, plan = GraphView(graph), quantized.plans["tensorrt"]
        return Refined(_with_drafts(quantized, {"tensorrt": Draft(graph, keep_in_half(view, plan, skips(view, plan)))}))
    held_count = min(max(count // 8, 16), _HELD_BACK)
    fit, held = _part(loader, 0, count - held_count), _part(loader, count - held_count, count)
    quantized = quantize(graph, styles, fit, ranges, progress)
    bench = _Bench(graph, _inputs(fit, _IMAGE_BYTES), _inputs(held, _IMAGE_BYTES), choice, progress)
    if choice.effort != "fast":
        quantized = bench.equalize(quantized, lambda equal: quantize(equal, styles, fit, ranges, progress))
    loader.unreadable[:] = fit.unreadable + held.unreadable
    drafts = {style: bench.refine(Draft(bench.graph, plan)) for style, plan in quantized.plans.items()}
    return Refined(_with_drafts(quantized, drafts), tuple(bench.steps), bench.skips)


def _with_drafts(quantized: Quantized, drafts: dict[Style, Draft]) -> Quantized:
    plans = {**quantized.plans, **{style: draft.plan for style, draft in drafts.items()}}
    graphs = {**quantized.graphs, **{style: rewrite(draft.graph, draft.plan) for style, draft in drafts.items()}}
    return replace(quantized, graphs=graphs, plans=plans)


def _part(loader: Loader, start: int, stop: int) -> Loader:
    source = loader.source
    classes, labels = source.classes, source.labels[start:stop]
    view = View(source, np.arange(start, stop), labels, classes, f"{stop - start:,} of {source.description}")
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
        graph: FP32, equalized where that helped.
    """

    def __init__(self, graph: onnx.ModelProto, fit: F32, held: F32, choice: RefineChoice, progress: Progress) -> None:
        self.graph, self.fit, self.held = graph, fit, held
        self.choice, self.progress = choice, progress
        self.reference = logits(graph, held)
        self.steps: list[Step] = []
        self.skips: tuple[SkipCost, ...] = ()

    def equalize(self, quantized: Quantized, again: Callable[[onnx.ModelProto], Quantized]) -> Quantized:
        """Equalize the float graph and calibrate it anew, for all styles; judged on the graph for TensorRT where there
        is one."""
        start = time.perf_counter()
        graph = equalize(self.graph, self.fit[: max(16, _EQUALIZE_BYTES // self.fit[0].nbytes)], self.progress)
        equal = again(graph)
        style: Style = "tensorrt" if "tensorrt" in quantized.plans else "cpu"
        before = self._noise(Draft(self.graph, quantized.plans[style]))
        after = self._noise(Draft(graph, equal.plans[style]))
        self._record("equalization", style, before, after, time.perf_counter() - start)
        if after >= before:
            return quantized
        self.graph = graph
        return equal

    def refine(self, draft: Draft) -> Draft:
        if draft.plan.style == "tensorrt":
            draft = self._residual(draft)
        if self.choice.effort == "best" or (self.choice.effort == "balanced" and draft.plan.style == "tensorrt"):
            draft = self._try("learned ranges", draft, self._learn)
        if self.choice.effort != "fast":
            # Last: it takes off what mean everything before it has left.
            draft = self._try("bias correction", draft, lambda d: correct_bias(d, self.graph, self.fit, self.progress))
        return draft

    def _residual(self, draft: Draft) -> Draft:
        if self.choice.residual == "auto":
            draft, self.skips = choose_residual(draft, self.reference, self.held, progress=self.progress)
        elif self.choice.residual == "fp16":
            view = GraphView(draft.graph)
            draft = replace(draft, plan=keep_in_half(view, draft.plan, skips(view, draft.plan)))
        return draft

    def _learn(self, draft: Draft) -> Draft:
        from edgeres.refine.reconstruct import BALANCED, ReconstructOptions, reconstruct

        options = BALANCED if self.choice.effort == "balanced" else ReconstructOptions()
        if self.fit[0].size > _LARGE_INPUT:
            options = replace(options, batch=_LARGE_INPUT_BATCH)
        return reconstruct(draft, self.graph, self.fit, options, self.progress)

    def _try(self, name: str, draft: Draft, step: Callable[[Draft], Draft]) -> Draft:
        start, before = time.perf_counter(), self._noise(draft)
        try:
            changed = step(draft)
        except EdgeresError as error:  # an operator that a refinement does not know is no reason to stop
            self._record(name, draft.plan.style, before, None, time.perf_counter() - start, str(error))
            return draft
        after = self._noise(changed)
        self._record(name, draft.plan.style, before, after, time.perf_counter() - start)
        return changed if after < before else draft

    def _noise(self, draft: Draft) -> float:
        return noise_power(self.reference, logits(draft.quantized(), self.held))

    def _record(
        self, name: str, style: Style, before: float, after: float | None, seconds: float, note: str = ""
    ) -> None:
        kept = after is not None and after < before
        note = note or ("" if kept else "no gain on the held-back images")
        self.steps.append(Step(name, style, _db(before), None if after is None else _db(after), kept, seconds, note))


def _db(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-30))
