"""Find the graph that RTX fuses best for the same INT8 arithmetic: ``python benchmarks/formulations.py [--page FILE]``.

ResNet-18 at 224x224 is quantized once and written in many ways. Each graph is built into an RTX engine, without a GPU,
and :mod:`edgeres.engine.kernels` reads its kernels and the bytes that they move. Nothing is timed. ONNX Runtime checks
whether a formulation computes the same: with scales that are powers of two and biases of few bits, every sum is exact
in float32, and the logits must equal those of the plain graph bit for bit.

A second table has two INT8 layers with one step between them, to see what a layer can write.

Both tables are written between two comments of docs/formulations.md. It takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from formulation_endings import endings
from formulation_passes import (
    Pass,
    add_biases,
    border_maps,
    own_pairs,
    pad_after_codes,
    pad_before_codes,
    pad_codes,
    relu_as,
    swap_adds,
)
from onnx import numpy_helper

from edgeres.data.choose import DataChoice, choose_sources
from edgeres.data.loader import Loader
from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.engine.kernels import Program, read_program
from edgeres.errors import EngineError
from edgeres.files import write_file
from edgeres.graph.graph import Graph
from edgeres.graph.half import half_between, to_fp16
from edgeres.graph.rtx import channel_factor
from edgeres.pipeline.take import ModelChoice, take, with_exact_input
from edgeres.quantize.affine import codes, quantize_weight
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.quantize.placement import weight_axis
from edgeres.quantize.rewrite import rewrite
from edgeres.records import CODES, F32, Codes, QuantParams, QuantPlan

PAGE = Path(__file__).parents[1] / "docs" / "formulations.md"
BEGIN = "<!-- formulations: written by benchmarks/formulations.py, change nothing between these comments -->"
END = "<!-- end of formulations -->"
CALIBRATION_IMAGES, VALIDATION_IMAGES = 128, 32
STEM = ("/conv1", "/Relu", "/maxpool")
STAGES = tuple(f"/layer{n}" for n in (1, 2, 3, 4))

Planned = Callable[[QuantPlan, Graph], QuantPlan]


@dataclass(frozen=True)
class Formulation:
    """One way to write it.

    Attributes:
        codes: behind a ReLU.
        plan: changes what is quantized; then the plain graph to compare with is that of the changed plan.
        passes: change how it is written.
        exact: the logits must be those of the plain graph wherever float32 is exact; not so in float16.
    """

    name: str
    passes: tuple[Pass, ...] = ()
    codes: Codes = "half"
    plan: Planned = lambda plan, view: plan
    request: BuildRequest = field(default_factory=lambda: BuildRequest("int8"))

    @property
    def exact(self) -> bool:
        return half_between not in self.passes


@dataclass(frozen=True)
class Network:
    """The inputs of all formulations: the FP32 graph, its plans, images, and the logits to compare with."""

    graph: onnx.ModelProto
    plans: dict[Codes, QuantPlan]
    images: F32
    fp32: F32


@dataclass(frozen=True)
class Row:
    """The figures of one formulation; ``same`` is None where float16 rounds differently anyway."""

    name: str
    program: Program | None = None
    engine_bytes: int = 0
    sqnr_db: float | None = None
    same: bool | None = None
    refused: str = ""


def only(*prefixes: str) -> Planned:
    """INT8 only for the layers and Adds whose names begin with one of these."""

    def apply(plan: QuantPlan, view: Graph) -> QuantPlan:
        edges = (
            replace(edge, consumers=tuple(name for name in edge.consumers if name.startswith(prefixes)))
            for edge in plan.edges
        )
        weights = tuple(weight for weight in plan.weights if weight.node.startswith(prefixes))
        return replace(plan, edges=tuple(edge for edge in edges if edge.consumers), weights=weights)

    return apply


def per_tensor(plan: QuantPlan, view: Graph) -> QuantPlan:
    """One scale for all weights of a layer."""
    coarse = []
    for weight in plan.weights:
        values = view.constant(weight.tensor)
        params = QuantParams(np.asarray(np.abs(values).max() / 127, np.float32), 0, "int8")
        coarse.append(replace(weight, params=params, codes=codes(values, params).astype(np.int8)))
    return replace(plan, weights=tuple(coarse))


def float_skips(plan: QuantPlan, view: Graph) -> QuantPlan:
    """Residual Adds read the input of the Q/DQ pair."""
    adds = {node.name for node in view.nodes if node.op_type == "Add"}
    edges = (replace(edge, consumers=tuple(n for n in edge.consumers if n not in adds)) for edge in plan.edges)
    return replace(plan, edges=tuple(edge for edge in edges if edge.consumers))


def both(first: Planned, second: Planned) -> Planned:
    return lambda plan, view: second(first(plan, view), view)


def formulations() -> Iterator[Formulation]:
    """The formulations: each variation alone, and combinations of those that help."""
    half, factor = half_between, channel_factor
    yield Formulation("a scale per channel, float32 between")
    yield Formulation("the same, float16 between", (half,))
    for capability in ("8.6", "8.9", "12.0"):
        request = BuildRequest("int8", compute_capabilities=(capability,))
        yield Formulation(f"float32 between, for compute capability {capability}", request=request)
    yield Formulation("float32 between, builder level 5", request=BuildRequest("int8", optimization_level=5))
    yield Formulation("one scale and a factor per channel behind the Conv", (factor,))
    yield Formulation("the same, float16 between", (factor, half))
    yield Formulation("one scale per layer", plan=per_tensor)
    yield Formulation("the same, float16 between", (half,), plan=per_tensor)
    yield Formulation("the same, skips in float16 as well", (half,), plan=both(per_tensor, float_skips))
    for name, border in {
        "DQ, Pad, Q, DQ": (),
        "Pad, Q, DQ": (pad_before_codes,),
        "Q, DQ, Pad": (pad_after_codes,),
        "Q, Pad, DQ": (pad_codes,),
        "zeros, and a map behind the Conv": (border_maps,),
    }.items():
        yield Formulation(f"full range; border: {name}", border, "full")
    yield Formulation("full range, factor, float16 between; border: DQ, Pad, Q, DQ", (factor, half), "full")
    yield Formulation("full range, factor, float16 between; border: map", (border_maps, factor, half), "full")
    yield Formulation("ReLU as Max", (relu_as("Max"),))
    yield Formulation("ReLU as Clip", (relu_as("Clip"),))
    yield Formulation("ReLU as Clip to the range of the codes", (relu_as("clip to the range"),))
    yield Formulation("Adds with their inputs swapped", (swap_adds,))
    yield Formulation("biases as Adds", (add_biases,))
    yield Formulation("a Q/DQ pair of its own for every reader", (own_pairs,))
    yield Formulation("skips in float32", plan=float_skips)
    yield Formulation("classifier in float32", plan=only(*STEM, *STAGES))
    for first in (1, 2, 3, 4):
        kept = STAGES[first - 1 :]
        yield Formulation(f"INT8 from layer{first} on, factor, float16 elsewhere", (factor, half), plan=only(*kept))
    yield Formulation("INT8 from layer3 on, a scale per channel, float16 elsewhere", (half,), plan=only(*STAGES[2:]))
    yield Formulation("INT8 from layer3 on, factor, float32 elsewhere", (factor,), plan=only(*STAGES[2:]))
    yield Formulation(
        "INT8 from layer3 on, skips in float16 as well", (factor, half), plan=both(only(*STAGES[2:]), float_skips)
    )
    yield Formulation(
        "INT8 from layer3 on, full range, factor, float16 elsewhere", (factor, half), "full", only(*STAGES[2:])
    )


def load(model: str = "resnet18") -> Network:
    fp32 = with_exact_input(take(ModelChoice(model)))
    source = f"signs:{CALIBRATION_IMAGES}"
    sources = choose_sources(DataChoice(calibration=source, validation=f"signs:{VALIDATION_IMAGES}@1"), fp32.spec)
    calibration = Loader(sources.calibration, fp32.spec.preprocess, 8)
    (batch,) = Loader(sources.validation, fp32.spec.preprocess, VALIDATION_IMAGES)
    plans = {}
    for kind in CODES:
        done = quantize(fp32.graph, ["tensorrt"], calibration, RangeChoice(known=fp32.known, codes=kind))
        plans[kind] = done.plans["tensorrt"]
    return Network(fp32.graph, plans, batch.inputs, run(fp32.graph, batch.inputs))


def run(graph: onnx.ModelProto, images: F32) -> F32:
    """Logits, computed as the graph is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: F32 = session.run(None, {session.get_inputs()[0].name: images})[0]
    return found


def measure(network: Network, formulation: Formulation) -> Row:
    view = Graph(network.graph)
    graph = rewrite(network.graph, formulation.plan(network.plans[formulation.codes], view))
    for change in formulation.passes:
        graph = change(graph)
    logits = run(graph, network.images)
    sqnr = 10 * np.log10(np.square(network.fp32).sum() / np.square(network.fp32 - logits).sum())
    same = is_same(network, formulation) if formulation.exact else None
    try:
        engine = build_engine(graph.SerializeToString(), formulation.request, "rtx").data
    except EngineError as error:
        return Row(formulation.name, sqnr_db=float(sqnr), same=same, refused=error.what)
    return Row(formulation.name, read_program(engine), len(engine), float(sqnr), same)


def is_same(network: Network, formulation: Formulation) -> bool:
    """Whether the logits equal those of the affine graph bit for bit, if all numbers are short binary fractions."""
    graph = onnx.ModelProto()
    graph.CopyFrom(network.graph)
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 1 and values.dtype == np.float32:  # biases
            tensor.CopyFrom(numpy_helper.from_array((np.round(values * 64) / 64).astype(np.float32), tensor.name))
    view = Graph(graph)
    plan = short(formulation.plan(network.plans[formulation.codes], view), view)
    written = rewrite(graph, plan)
    for change in formulation.passes:
        written = change(written)
    plain = rewrite(graph, replace(plan, style="cpu"))  # keeps the zero points
    images = network.images[:8]
    return np.array_equal(run(plain, images), run(written, images))


def short(plan: QuantPlan, view: Graph) -> QuantPlan:
    """The plan with every scale raised to a power of two."""

    def raised(params: QuantParams) -> QuantParams:
        return replace(params, scale=np.exp2(np.ceil(np.log2(params.scale))).astype(np.float32))

    nodes = {node.name: node for node in view.nodes}
    weights = []
    for weight in plan.weights:
        values, params = view.constant(weight.tensor), raised(weight.params)
        if weight.params.axis is not None:
            params = raised(quantize_weight(values, weight_axis(nodes[weight.node]))[0])
        weights.append(replace(weight, params=params, codes=codes(values, params).astype(np.int8)))
    edges = tuple(replace(edge, params=raised(edge.params)) for edge in plan.edges)
    return replace(plan, edges=edges, weights=tuple(weights))


def float_rows(network: Network) -> Iterator[Row]:
    for name, graph in {"FP32": network.graph, "FP16": to_fp16(network.graph)}.items():
        engine = build_engine(graph.SerializeToString(), BuildRequest("fp32"), "rtx").data
        yield Row(name, read_program(engine), len(engine))


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| formulation | pointwise kernels | their MB | all activations, MB | with weights, MB | engine, MB | SQNR, dB"
        " | same arithmetic |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sqnr = "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
        same = {None: "", True: "bit for bit", False: "NO"}[row.same]
        if row.program is None:
            lines.append(f"| {row.name} | refused | | | | | {sqnr} | {same} |")
            continue
        outside = row.program.of_kind("pointwise")
        moved = row.program.moved_bytes
        figures = (sum(k.moved_bytes for k in outside), moved, moved + row.program.constant_bytes, row.engine_bytes)
        cells = " | ".join(f"{value / 1e6:.2f}" for value in figures)
        lost = f", INT8 lost in {len(row.program.lost)} layers" if row.program.lost else ""
        lines.append(f"| {row.name}{lost} | {len(outside)} | {cells} | {sqnr} | {same} |")
    lines += ["", *(f"Refused, {row.name}: {row.refused}" for row in rows if row.refused)]
    return "\n".join(lines).rstrip() + "\n"


def endings_table() -> str:
    lines = ["| between two INT8 layers | the first one writes | kernels between them |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in endings())]) + "\n"


def into_page(page: Path, content: str) -> None:
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_file(page, f"{before}{BEGIN}\n\n{content}\n{END}{after}".encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file to write the table into")
    page = parser.parse_args().page
    here = available("rtx")
    if not here.importable:
        print(f"skipped: {here.reason}; {here.next_step}")
        return 0
    network = load()
    rows = list(float_rows(network))
    for formulation in formulations():
        rows.append(measure(network, formulation))
        print(table(rows[-1:]).splitlines()[2], flush=True)
    note = f"TensorRT-RTX {here.version}, ResNet-18, 224x224, batch 1, {VALIDATION_IMAGES} images.\n\n"
    into_page(page, note + table(rows) + "\n" + endings_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
