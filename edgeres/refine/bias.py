"""Bias correction: subtract from each layer's bias the shift that quantization adds to the mean of its output.

Rounding errors of weights do not cancel over a layer's inputs, clipping cuts one tail, and ReLU turns noise into a
shift. So the mean of each output channel moves, by the same amount for every image, and later layers cannot tell it
from signal. With y the FP32 output and y' the quantized one, per output channel (Nagel et al. 2019, Data-Free
Quantization, section 4.2, in its empirical form; Finkelstein et al. 2019, Fighting Quantization Bias with Bias)

    b' = b + E[y] - E[y'].

Layers are corrected in graph order, each measured with all earlier corrections in place. Correcting all layers from one
pass would count each shift again in every later layer that it reaches: resnet20 falls from 26.4 to 23.0 dB that way,
and further with every repetition. The order costs little: the activations of the images are kept at the residual
stream, and only the current block is run again. That makes about four forward passes for networks of basic blocks.

Where a Conv ends in a residual Add, the mean is measured behind the Add, so that the error of the rounded skip is
corrected too.

Worked number: weights 0.30 and 0.40 rounded to 0.28 and 0.42, inputs with means 5 and 2: the output's mean moves by
-0.02 * 5 + 0.02 * 2 = -0.06, and the bias rises by 0.06.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, shape_inference

from edgeres.device.memory import return_freed
from edgeres.graph.graph import Graph, input_at
from edgeres.progress import SILENT, Progress
from edgeres.quantize.affine import codes
from edgeres.records import F32, F64, QuantParams, WeightEdge
from edgeres.refine.blocks import Block, split
from edgeres.refine.candidate import CandidatePlan, batches
from edgeres.runtime.ort import OrtRunner


def correct_bias(candidate: CandidatePlan, fp32: ModelProto, images: F32, progress: Progress = SILENT) -> CandidatePlan:
    """Shift the biases of quantized Convs and Gemms so that their outputs keep their FP32 means over ``images``.

    Args:
        candidate: of either style; in the ``cpu`` style, codes of biases change too. Layers without bias get one.
        fp32: the float graph with the candidate's tensors and input, after rewrites and before any bias correction.
        images: (N, ...) float32 inputs of the graph; they are not changed. Two copies of the values at one place of the
            residual stream are held in memory: for each, 0.8 MB an image where a ResNet-18 at 224x224 is widest. Where
            a block changes their shape, its input and output are.

    Returns:
        A candidate with other biases and nothing else changed.
    """
    candidate = _with_own_biases(candidate)
    shifts = _shifts(candidate, fp32, images, progress)
    return_freed()  # the activations
    return _shift(candidate, shifts)


def _shifts(candidate: CandidatePlan, fp32: ModelProto, images: F32, progress: Progress) -> dict[str, F64]:
    """By layer, what is added to its bias, per channel."""
    graph = Graph(candidate.graph)
    measured = _measured(graph, {edge.node for edge in candidate.plan.weights})
    reference = carried = images
    shifts: dict[str, F64] = {}
    blocks = split(graph)
    with progress.task("correcting biases", total=len(blocks)) as advance:
        for block in blocks:
            inside = {name: measured[name] for name in block.nodes if name in measured}
            outputs = [*(tensor for tensor in inside.values() if tensor != block.output), block.output]
            exact = _cut(fp32, block, outputs, reference.ndim)
            wanted, reference = _means(exact, reference, outputs, block.output, into=_reused(reference, images))
            part = _part(candidate, block, outputs, carried.ndim)
            for layer, tensor in inside.items():
                found, _ = _means(part.quantized(), carried, [tensor])
                shifts[layer] = wanted[tensor] - found[tensor]
                part = _shift(part, {layer: shifts[layer]})
            _, carried = _means(part.quantized(), carried, [], block.output, into=_reused(carried, images))
            advance(1)
    return shifts


def _reused(values: F32, images: F32) -> F32 | None:
    """The array that a block's output may be written to: that of its input, which nothing reads again."""
    return None if values is images else values


def _measured(graph: Graph, coded: set[str]) -> dict[str, str]:
    """By layer, the tensor whose mean is measured: its output, or that of the residual Add that it reaches last."""
    layers = [node for node in graph.of("Conv", "Gemm") if node.name in coded]
    found = {node.name: str(node.output[0]) for node in layers}
    last: dict[str, str] = {}
    for node in layers:
        readers = graph.consumers(node.output[0])
        if len(readers) == 1 and graph.is_residual_add(readers[0]):
            last[readers[0].output[0]] = node.name
    return found | {layer: tensor for tensor, layer in last.items()}


def _means(
    model: ModelProto, images: F32, tensors: Sequence[str], whole: str = "", into: F32 | None = None
) -> tuple[dict[str, F64], F32]:
    """The mean per channel of each named output, and all values of ``whole``, one of them, if it is given.

    They are written to ``into``, which may be ``images``, where it has their shape.
    """
    totals: dict[str, F64] = {}
    kept = np.empty(0, np.float32)
    with OrtRunner(model.SerializeToString(), integer=False) as runner:
        done = 0
        for part in batches(images):
            found = runner.infer({runner.input_name: part})
            for name in tensors:
                others = (0, *range(2, found[name].ndim))
                mean = found[name].mean(axis=others, dtype=np.float64) * (len(part) / len(images))
                totals[name] = totals[name] + mean if name in totals else mean
            if whole:
                if not done:
                    shape = (len(images), *found[whole].shape[1:])
                    kept = into if into is not None and into.shape == shape else np.empty(shape, np.float32)
                kept[done : done + len(part)] = found[whole]
            done += len(part)
    return totals, kept


def _part(candidate: CandidatePlan, block: Block, outputs: Sequence[str], rank: int) -> CandidatePlan:
    """The candidate plan of one block, with a graph of that block only."""
    whole, inside = candidate.plan, set(block.nodes)
    edges = (replace(e, consumers=tuple(name for name in e.consumers if name in inside)) for e in whole.edges)
    halves = (replace(h, consumers=tuple(name for name in h.consumers if name in inside)) for h in whole.halves)
    plan = replace(
        whole,
        edges=tuple(edge for edge in edges if edge.consumers),
        halves=tuple(half for half in halves if half.consumers),
        weights=tuple(edge for edge in whole.weights if edge.node in inside),
    )
    return CandidatePlan(_cut(candidate.graph, block, outputs, rank), plan)


def _cut(model: ModelProto, block: Block, outputs: Sequence[str], rank: int) -> ModelProto:
    inside = set(block.nodes)
    nodes = [node for node in model.graph.node if node.name in inside]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        block.name,
        [helper.make_tensor_value_info(block.input, TensorProto.FLOAT, [None] * rank)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    cut = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return shape_inference.infer_shapes(cut)  # the checker requires the outputs' ranks


def _with_own_biases(candidate: CandidatePlan) -> CandidatePlan:
    """Give every coded layer a bias of its own: zeros if it has none, a copy if it shares one."""
    before = Graph(candidate.graph)
    weights = {(edge.node, edge.tensor): edge for edge in candidate.plan.weights}
    scales = {edge.tensor: edge.params.scale for edge in candidate.plan.edges}
    lacking = [
        node.name
        for node in before.of("Conv", "Gemm")
        if (node.name, node.input[1]) in weights and len(before.consumers(input_at(node, 2) or "")) != 1
    ]
    if not lacking:
        return candidate
    graph = Graph.copy_of(candidate.graph)
    for node in map(graph.node, lacking):
        layer, old = weights[node.name, node.input[1]], input_at(node, 2)
        values = graph.constant(old) if old else np.zeros(layer.params.scale.size, np.float32)
        own = graph.add_constant(f"{node.name}.bias", values)
        graph.set_inputs(node, [*node.input[:2], own])
        if candidate.plan.style == "cpu":
            weights.pop((node.name, old), None)
            unit = QuantParams((layer.params.scale * scales[node.input[0]]).astype(np.float32), 0, "int32", 0)
            weights[node.name, own] = WeightEdge(own, node.name, unit, _bias_codes(values, unit))
    return CandidatePlan(graph.model, replace(candidate.plan, weights=tuple(weights.values())))


def _bias_codes(values: F32, unit: QuantParams) -> npt.NDArray[np.int32]:
    return codes(values.reshape(-1).astype(np.float64), unit).astype(np.int32)


def _shift(candidate: CandidatePlan, shifts: Mapping[str, F64]) -> CandidatePlan:
    """Add to the biases of the named layers, and code them again."""
    graph = Graph.copy_of(candidate.graph)
    changed: dict[str, F32] = {}
    for layer, shift in shifts.items():
        name = graph.node(layer).input[2]
        values = graph.constant(name)
        changed[name] = (values + shift.reshape(values.shape)).astype(np.float32)
        graph.set_constant(name, changed[name])
    weights = tuple(
        replace(edge, codes=_bias_codes(changed[edge.tensor], edge.params)) if edge.tensor in changed else edge
        for edge in candidate.plan.weights
    )
    return CandidatePlan(graph.model, replace(candidate.plan, weights=weights))
