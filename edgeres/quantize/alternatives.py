"""Further forms of a network for engines, of which a device's own clock picks one.

Each is written from what the default form was written from: no image is read again, and nothing is refined again. Each
is loaded and compared with FP32 on the probe images before it is written; one that fails is left out, and the others
are kept. :mod:`edgeres.quantize.cost` says which forms are worth a device's time; docs/formulations.md shows both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto

from edgeres.bundle import FP16
from edgeres.calibrate.activations import ActivationRunner
from edgeres.device.targets import Runtime
from edgeres.errors import why_left_out
from edgeres.graph.graph import Graph
from edgeres.graph.half import to_fp16
from edgeres.graph.half_scales import OPSET, half_with_scales
from edgeres.graph.rtx import rtx_form
from edgeres.graph.shared_weights import cast_weights
from edgeres.progress import SILENT, Progress
from edgeres.quantize.cost import Cost, cost_of, stages
from edgeres.quantize.replan import only, pools_between_codes, with_codes, with_half_scales, with_pools
from edgeres.quantize.rewrite import rewrite
from edgeres.quantize.trial import Probes, Tried, compared
from edgeres.records import CODES, F32, Codes, FormRecord, QuantPlan

MOST_FORMS = 8  # for engines, in one bundle
_POOL_IMAGES = 16  # that the range of what a pool reads is taken from


@dataclass(frozen=True)
class Material:
    """What forms are written from.

    Attributes:
        fp32: the canonical graph.
        graph, plan: of the default form for TensorRT: its float graph, refined, and its plan; None: it has none.
        codes: of that plan.
        plain: the plan of the calibration alone, for ``fp32``: where a layer stays in float, what refinement changed to
            make good for its codes would be wrong.
        zeros: tensors that are zero on every calibration image.
        pooled: the largest magnitude of each tensor of ``graph`` that an average pool reads, where it is known.
        max_opset, min_opset: the newest ONNX opset that a target takes, and that every target takes.
    """

    fp32: ModelProto
    graph: ModelProto | None = None
    plan: QuantPlan | None = None
    codes: Codes = "free"
    plain: QuantPlan | None = None
    zeros: frozenset[str] = frozenset()
    pooled: Mapping[str, float] = field(default_factory=dict)
    max_opset: int = 20
    min_opset: int = 20


@dataclass(frozen=True)
class Alternative:
    """A form besides the default one: how the manifest describes it, and what writes it.

    Attributes:
        noise: of the scores on the probe images, as a share of their power, that is no fault of the form.
        cost: by runtime.
    """

    record: FormRecord
    write: Callable[[], ModelProto]
    noise: float
    costs: Mapping[Runtime, Cost] = field(default_factory=dict)


# float16 has 11 bits, INT8 has 8 and keeps 20 dB on any network that is of use.
_FP16_NOISE = 1e-2
# 10 dB: with fewer bits than the default form, a form may be far worse and still what a robot needs.
_INT8_NOISE = 1e-1
_HALF = FormRecord("fp16", FP16, ("tensorrt", "rtx"), "fp16", None, "float16", "float16 from the image to the scores")
_TOLD: dict[Codes, str] = {
    "half": "the codes behind ReLU that are not negative, as NVIDIA documents it",
    "free": "all 256 codes behind ReLU where that takes no Pad",
    "full": "all 256 codes behind ReLU, with Pads before convolutions",
}


def alternatives(material: Material) -> Iterator[Alternative]:
    """Every form besides the default ones that a bundle may hold, the most useful ones first."""
    float_graph = Graph(material.fp32)
    costs = {runtime: cost_of(float_graph, None, 2, runtime) for runtime in _runtimes(_HALF)}
    yield Alternative(_HALF, lambda: cast_weights(to_fp16(material.fp32), material.fp32), _FP16_NOISE, costs)
    if material.graph is not None and material.plan is not None:
        for form in _in_int8(_Writer(material, material.graph, material.plan, material.codes)):
            scales_in_half = form.record.between == "float16" and "tensorrt" in form.record.runtimes
            if not scales_in_half or material.max_opset >= OPSET:
                yield form


def _runtimes(record: FormRecord) -> tuple[Runtime, ...]:
    return tuple(runtime for runtime in ("tensorrt", "rtx") if runtime in record.runtimes)


@dataclass(frozen=True)
class _Writer:
    """Makes forms in INT8 from a float graph and its plan, which has these codes."""

    material: Material
    graph: ModelProto
    plan: QuantPlan
    codes: Codes

    def form(
        self, name: str, told: str, plan: QuantPlan, *, codes: Codes | None = None, half: bool = True
    ) -> Alternative:
        """A form of a plan, for TensorRT unless its name begins with another runtime's."""
        runtime: Runtime = "rtx" if name.startswith("rtx") else "tensorrt"
        float_graph, used = self.graph, codes or self.codes
        file = f"model.int8.{name}.onnx"
        record = FormRecord(name, file, (runtime,), "int8", used, "float16" if half else "float32", told)
        cost = cost_of(Graph(self.material.fp32), plan, 2 if half else 4, runtime)
        finish = rtx_form if runtime == "rtx" else half_with_scales if half else _as_it_is
        chosen = with_half_scales(plan) if finish is half_with_scales else plan

        def write() -> ModelProto:
            return cast_weights(finish(rewrite(float_graph, chosen)), self.material.fp32)

        return Alternative(record, write, _INT8_NOISE, {runtime: cost})


def _as_it_is(model: ModelProto) -> ModelProto:
    return model


def _in_int8(writer: _Writer) -> Iterator[Alternative]:
    material, view = writer.material, Graph(writer.graph)
    others = {codes: with_codes(view, writer.plan, codes, material.zeros) for codes in CODES if codes != material.codes}
    # No Pads in float16: ONNX Runtime 1.32 takes their fill for 0, so nothing could judge such a form.
    lean = replace(writer, plan=others["free"], codes="free") if material.codes == "full" else writer
    accurate = others.pop("full", None)
    half = material.min_opset >= OPSET
    for codes, plan in others.items():
        yield writer.form(codes, _TOLD[codes], plan, codes=codes, half=half)
    if lean is writer or not half:  # else it is among the above
        yield lean.form("float16", "float16 in place of float32 between the codes", lean.plan)
    gemms = {node.name for node in view.of("Gemm", "MatMul")}
    headless = only(lean.plan, lambda name: name not in gemms)
    if headless.weights and headless.weights != lean.plan.weights:
        told = "float16 in place of float32 between the codes, and the classifier in float16"
        yield lean.form("head", told, headless)
    yield from _mixed(lean)
    if pooled := with_pools(view, lean.plan, material.pooled):
        yield lean.form("pool", "float16 in place of float32 between the codes, and average pools in INT8", pooled)
    if accurate is not None:
        yield writer.form("full", _TOLD["full"], accurate, codes="full", half=False)


def _mixed(writer: _Writer) -> Iterator[Alternative]:
    """INT8 from the stage on where RTX would move the fewest bytes, float16 before it."""
    material = writer.material
    if material.plain is not None:
        plan = with_codes(Graph(material.fp32), material.plain, writer.codes, material.zeros)
        writer = replace(writer, graph=material.fp32, plan=plan)
    view = Graph(material.fp32)
    plans = [only(writer.plan, later.__contains__) for _, later in stages(view)[1:]]
    plans = [kept for kept in plans if kept.weights]
    if not plans:
        return
    best = min(plans, key=lambda kept: cost_of(view, kept, 2, "rtx").moved_bytes)
    first = next(node.name for node in view.nodes if any(weight.node == node.name for weight in best.weights))
    told = f"INT8 from {first} on, float16 before it"
    yield writer.form("mixed", told, best)
    yield writer.form("rtx-mixed", told, best)


def worthwhile(
    found: Sequence[Alternative], defaults: Mapping[Runtime, Cost], sqnr_db: Mapping[str, float], room: int
) -> list[Alternative]:
    """The forms, ``room`` at most, that could be the best on some device.

    A form is dropped where for each of its runtimes another one, kept before it or the default one, does nothing more
    than it by :class:`Cost` and is as accurate.

    Args:
        defaults: cost of the default form by runtime.
        sqnr_db: by name of a form; of a default form by its runtime.
    """
    kept: list[Alternative] = []
    for form in found:
        if form.record.name not in sqnr_db or len(kept) >= room:
            continue
        rivals = {runtime: [(cost, sqnr_db.get(runtime, 0.0))] for runtime, cost in defaults.items()}
        for other in kept:
            for runtime, cost in other.costs.items():
                rivals.setdefault(runtime, []).append((cost, sqnr_db[other.record.name]))
        own = sqnr_db[form.record.name]
        beaten = [
            any(cost.is_no_better(rival) and accuracy >= own - 0.1 for rival, accuracy in rivals.get(runtime, ()))
            for runtime, cost in form.costs.items()
        ]
        if not (beaten and all(beaten)):
            kept.append(form)
    return kept


def try_alternatives(found: Sequence[Alternative], probes: Probes, progress: Progress = SILENT) -> Tried:
    """Write each, load it and compare it; each that fails is left out with a line."""
    graphs: dict[str, ModelProto] = {}
    figures: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for form in found:
        name = form.record.name
        try:
            graph = form.write()
            figures[name] = compared(graph, probes, form.noise)
            graphs[name] = graph
        except Exception as error:  # whatever is wrong with one form must not end the others
            left_out[name] = why_left_out(error)
            progress.say(f"{form.record.file} is left out: {left_out[name]}")
    return Tried(graphs, figures, left_out)


def largest_pooled(graph: ModelProto, plan: QuantPlan, images: F32) -> dict[str, float]:
    """The largest magnitude of each tensor that an average pool could read as codes, over a few images."""
    tensors = list(pools_between_codes(Graph(graph), plan))
    if not tensors:
        return {}
    found = dict.fromkeys(tensors, 0.0)
    with ActivationRunner(graph, tensors) as runner:
        for image in images[:_POOL_IMAGES]:
            for name, values in runner.infer(image[None]).items():
                found[name] = max(found[name], float(np.abs(values).max()))
    return found
