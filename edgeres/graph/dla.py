"""The graph and the calibration cache for a Deep Learning Accelerator (DLA), and which layers it can run.

Through JetPack 6 (TensorRT up to 10.7) a DLA takes implicit INT8: a float graph of fixed sizes and a calibration cache.
Rules are NVIDIA's: the notes "if executing this layer on DLA" in TensorRT 10's ``NvInfer.h``, the guide's "DLA
Supported Layers and Restrictions", and the operator table of github.com/NVIDIA/Deep-Learning-Accelerator-SW. They were
not tried on a DLA.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgeres.device.targets import Target
from edgeres.errors import UsageError
from edgeres.graph.graph import Graph, attributes, input_at
from edgeres.graph.plain_input import with_plain_input
from edgeres.records import Preprocess

Where = Literal["dla", "gpu", "unsure"]

MAX_BATCH, MAX_SIZE, MAX_LOADABLES = 4096, 8192, 16
_POOL_WINDOW, _SOFTMAX_NARROW = 8, 1024
_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu"})
_ELEMENTWISE = frozenset({"Add", "Sum", "Sub", "Mul", "Max"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})
_REMOVED = frozenset({"Identity", "Constant", "Dropout"})  # by the builder
# The operator table lists them, each with limits of its own.
_LIMITED = frozenset({"Abs", "Concat", "ConvTranspose", "Cos", "Equal", "LRN", "PRelu", "Resize", "Sin", "Slice"})


@dataclass(frozen=True)
class DlaLayer:
    """A node of the network, and what runs it.

    Attributes:
        reason: why the DLA does not run it, or not in int8; "" otherwise.
        precision: on the DLA, ``int8`` where the cache has scales for all its tensors, else ``fp16``; "" on the GPU.
    """

    node: str
    op: str
    where: Where
    reason: str = ""
    precision: str = "int8"


@dataclass(frozen=True)
class DlaModel:
    """A network for a DLA: a float graph with TensorRT's calibration cache for it.

    Attributes:
        graph: of fixed sizes; operators that a DLA refuses are replaced where others compute the same.
        layers: one per node of the graph, in its order.
        preprocess: of its input.
        rewritten, notes: what was changed, and what to check before it is used, in words.
    """

    graph: ModelProto
    cache: str
    preprocess: Preprocess
    layers: tuple[DlaLayer, ...]
    rewritten: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def loadables(self) -> int:
        """How many parts the DLA runs, with layers on the GPU between them: each change costs a copy."""
        on = [layer.where == "dla" for layer in self.layers]
        return sum(now and not before for before, now in zip([False, *on], on, strict=False))


def for_dla(model: ModelProto, target: Target, batch: int, cache: str, preprocess: Preprocess) -> DlaModel:
    """The graph, cache and verdict for a target with a DLA, from a canonical FP32 graph and TensorRT's cache for it.

    Raises:
        UsageError: the target has no DLA, or the batch is too large for it.
    """
    if target.board.dla[1] == 0:
        raise UsageError(f"{target.title} has no DLA", where=target.name, hint="see: edgeres targets")
    if not 1 <= batch <= MAX_BATCH:
        raise UsageError(f"a DLA takes batches of 1 to {MAX_BATCH}, not {batch}", where="--batch")
    graph = Graph.copy_of(model)
    header, scales = _read(cache)
    plain = with_plain_input(graph, preprocess)
    if plain is not None:
        scales.pop(graph.input, None)  # of another preprocessing
    _fix_sizes(graph.model, batch)
    rewritten = (*_input_in_words(plain), *_pool_in_windows(graph), *_classify_by_convolution(graph))
    graph.prune()
    preprocess = plain or preprocess
    scales = _complete(graph, scales, preprocess)
    layers = tuple(_layer(_Node(graph, node, target), scales) for node in graph.nodes)
    found = DlaModel(graph.model, _write(header, scales), preprocess, layers, rewritten)
    return replace(found, notes=tuple(_notes(found, target)))


def _notes(found: DlaModel, target: Target) -> Iterator[str]:
    if found.loadables > MAX_LOADABLES:
        yield f"{found.loadables} parts on the DLA, but a core holds {MAX_LOADABLES} at a time"
    elif found.loadables > 1:
        yield f"{found.loadables} parts on the DLA with layers on the GPU between them: each change is a copy"
    if target.tensorrt and float(target.tensorrt[0].split(".")[0]) >= 10:
        yield "for JetPack 6 (TensorRT 10.3): 10.8 to 11.3 have no DLA, and 11.4.1 takes Q/DQ on AGX Orin only"
    yield "this float graph has no refinements of the INT8 graph (biases, rounding): verify the engine on the device"
    yield "this was not tried on a DLA: the builder's log names what runs each layer"


def _input_in_words(plain: Preprocess | None) -> Iterator[str]:
    if plain is not None:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (plain.mean, plain.std))
        formula = f"(pixel * {plain.pixel_scale:.6g} - [{mean}]) / [{std}]"
        yield f"the image has its three channels, for a DLA has no Pad: give it {formula}"


# --- the graph -------------------------------------------------------------------------------------------------------


def _fix_sizes(model: ModelProto, batch: int) -> None:
    """Fix the batch: a DLA takes no dynamic sizes."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = batch
    del model.graph.value_info[:]


def _pool_in_windows(graph: Graph) -> Iterator[str]:
    """Write GlobalAveragePool, which TensorRT runs on the GPU, as an AveragePool over the whole image, if it is small.

    Before:
        GlobalAveragePool (N, C, H, W), H and W at most 8
    After:
        AveragePool with kernel_shape (H, W)
    """
    for node in graph.of("GlobalAveragePool"):
        sides = graph.shape(node.input[0])[2:]
        if len(sides) == 2 and all(1 <= side <= _POOL_WINDOW for side in sides):
            node.op_type = "AveragePool"
            window = {"kernel_shape": sides, "strides": [1, 1]}
            node.attribute.extend(helper.make_attribute(name, value) for name, value in window.items())
            yield f"{node.name}: the global average is a {sides[0]} x {sides[1]} average pool"


def _classify_by_convolution(graph: Graph) -> Iterator[str]:
    """Write the classifier as a convolution: a DLA runs Gemm as a fully connected layer, which TensorRT 10 removed.

    Before:
        (N, C, 1, 1) -> Flatten -> Gemm
    After:
        (N, C, 1, 1) -> Conv 1x1 -> Flatten
    """
    for gemm in graph.of("Gemm"):
        flatten, given = graph.producer(gemm.input[0]), attributes(gemm)
        if flatten is None or flatten.op_type not in ("Flatten", "Reshape") or not graph.is_constant(gemm.input[1]):
            continue
        if given.get("transA") or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
            continue
        if graph.shape(flatten.input[0])[2:] != (1, 1):
            continue
        matrix = graph.constant(gemm.input[1])
        matrix = matrix if given.get("transB") else matrix.T
        weight = graph.add_constant(f"{gemm.input[1]}_1x1", np.ascontiguousarray(matrix[:, :, None, None]))
        scores, inputs = f"{gemm.output[0]}_1x1", [flatten.input[0], weight, *gemm.input[2:]]
        conv = helper.make_node("Conv", inputs, [scores], name=f"{gemm.name}_1x1")
        back = helper.make_node("Flatten", [scores], [gemm.output[0]], name=f"{gemm.name}_flatten")
        graph.insert([conv, back], behind=gemm)
        graph.remove(gemm)
        yield f"{gemm.name}: the classifier is a 1x1 convolution"


# --- where a layer runs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Node:
    """A node, its graph and the target: what the rules look at."""

    graph: Graph
    node: NodeProto
    target: Target

    def ints(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(attributes(self.node).get(name, default))

    def number(self, name: str, default: int) -> int:
        return int(attributes(self.node).get(name, default))

    def shape(self, index: int = 0) -> tuple[int, ...]:
        return self.graph.shape(input_at(self.node, index))


def _layer(n: _Node, scales: Mapping[str, float]) -> DlaLayer:
    node = n.node
    where, reason = _verdict(n)
    name = node.name or node.output[0]
    tensors = (tensor for tensor in (*node.input, *node.output) if tensor and not n.graph.is_constant(tensor))
    short = [tensor for tensor in tensors if tensor not in scales]
    if where == "dla" and short:
        reason = f"{short[-1]} in float16, for it has no range in the calibration"
        return DlaLayer(name, node.op_type, where, reason, "fp16")
    return DlaLayer(name, node.op_type, where, reason, "int8" if where == "dla" else "")


def _verdict(n: _Node) -> tuple[Where, str]:
    op = n.node.op_type
    if op in _REMOVED:
        return "dla", ""
    rule = _RULES.get(op)
    if op in _LIMITED:
        return "unsure", f"a DLA takes {op} within limits that are not looked at here"
    if rule is None:
        return "gpu", f"a DLA has no {op}"
    sizes = [size for index in range(len(n.node.input)) for size in n.shape(index)[1:]]
    if any(size > MAX_SIZE for size in sizes):
        return "gpu", f"a size of {max(sizes)} is above {MAX_SIZE}"
    return rule(n)


def _outside(what: str, values: tuple[int, ...], low: int, high: int) -> str:
    wrong = [value for value in values if not low <= value <= high]
    return f"{what} {' x '.join(map(str, values))} is outside {low} to {high}" if wrong else ""


def _first(*reasons: str) -> tuple[Where, str]:
    found = next((reason for reason in reasons if reason), "")
    return ("gpu", found) if found else ("dla", "")


def _conv(n: _Node) -> tuple[Where, str]:
    weight = n.shape(1)
    if len(weight) != 4:
        return "gpu", "only convolutions of images"
    kernel, pads, groups = weight[2:], n.ints("pads", (0, 0, 0, 0)), n.number("group", 1)
    sides = zip(pads, kernel * 2, strict=False)
    deep = (f"padding {pad} is not below the kernel's {size}" for pad, size in sides if pad >= size)
    of_group = (weight[1], weight[0] // groups)
    odd = groups > 1 and any(channels % 4 for channels in of_group)
    return _first(
        _outside("kernel", kernel, 1, 32),
        _outside("stride", n.ints("strides", (1, 1)), 1, 8),
        _outside("dilation", n.ints("dilations", (1, 1)), 1, 32),
        _outside("padding", pads, 0, 31),
        *(deep if any(pads) else ()),
        _outside("output channels", weight[:1], 1, MAX_SIZE),
        f"groups of {of_group[0]} and {of_group[1]} channels are no multiples of 4" if odd else "",
    )


def _pool(n: _Node) -> tuple[Where, str]:
    pads = n.ints("pads", (0, 0, 0, 0))
    verdict = _first(
        _outside("window", n.ints("kernel_shape", ()), 1, _POOL_WINDOW),
        _outside("stride", n.ints("strides", (1, 1)), 1, 16),
        _outside("padding", pads, 0, 7),
        "dilated" if any(value != 1 for value in n.ints("dilations", (1, 1))) else "",
    )
    if verdict[0] == "dla" and n.node.op_type == "AveragePool" and any(pads):
        return "unsure", "whether the average counts the padding is not documented for a DLA"
    return verdict


def _global_pool(n: _Node) -> tuple[Where, str]:
    sides = n.shape()[2:]
    return "gpu", f"TensorRT gives it to the GPU, and {' x '.join(map(str, sides))} is too large for an average pool"


def _elementwise(n: _Node) -> tuple[Where, str]:
    shapes = {n.shape(index) for index in range(len(n.node.input))}
    if any(len(shape) != 4 for shape in shapes):
        return "gpu", "only images of four dimensions"
    return ("dla", "") if len(shapes) == 1 else ("unsure", "inputs of different sizes")


def _activation(n: _Node) -> tuple[Where, str]:
    return _first("" if len(n.shape()) == 4 else "only images of four dimensions")


def _shuffle(n: _Node) -> tuple[Where, str]:
    before, after = n.shape(), n.graph.shape(n.node.output[0])
    return _first("its input and output must have four dimensions" if (len(before), len(after)) != (4, 4) else "")


def _softmax(n: _Node) -> tuple[Where, str]:
    shape = n.shape()
    if n.target.sm == ("7.2",):
        return "gpu", "Softmax needs Orin's DLA"
    axis = n.number("axis", -1) % max(len(shape), 1)
    if len(shape) != 4 or axis == 0:
        return "gpu", "only over channels, rows or columns of four dimensions"
    others = [size for index, size in enumerate(shape) if index not in (0, axis)]
    limit = MAX_SIZE if all(size == 1 for size in others) else _SOFTMAX_NARROW
    return _first(f"{shape[axis]} values are above {limit}" if shape[axis] > limit else "")


_RULES: dict[str, Callable[[_Node], tuple[Where, str]]] = {
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "Softmax": _softmax,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys(("Flatten", "Reshape", "Transpose"), _shuffle),
}


# --- the cache -------------------------------------------------------------------------------------------------------


def _read(cache: str) -> tuple[str, dict[str, float]]:
    header, *lines = cache.splitlines()
    parts = (line.rpartition(": ") for line in lines)
    return header, {name: struct.unpack("!f", bytes.fromhex(digits))[0] for name, _, digits in parts}


def _write(header: str, scales: Mapping[str, float]) -> str:
    lines = (f"{name}: {struct.pack('!f', scale).hex()}\n" for name, scale in scales.items())
    return f"{header}\n{''.join(lines)}"


def _complete(graph: Graph, scales: Mapping[str, float], preprocess: Preprocess) -> dict[str, float]:
    """Add the scales that follow from others: a layer whose tensors lack one runs in float16.

    The input's scale follows from the preprocessing. A tensor that only a ReLU reads is fused with it and takes its
    scale. A pool's input and output share one scale on a DLA.
    """
    found = {name: scale for name, scale in scales.items() if name in graph}
    found.setdefault(graph.input, _input_scale(preprocess))
    for node in graph.nodes:
        before, after = input_at(node, 0), node.output[0]
        if node.op_type in _POOLS and before in found:
            found[after] = found[before]
        if node.op_type == "Flatten" and after in found:
            found.setdefault(before, found[after])
        if node.op_type == "Relu" and len(graph.consumers(before)) == 1 and after in found:
            found.setdefault(before, found[after])
    return found


def _input_scale(preprocess: Preprocess) -> float:
    """Of the network's input over all that a pixel can be; bytes minus 128 are codes already."""
    ends = np.array([0.0, 255.0])[:, None] * preprocess.pixel_scale
    values = (ends - np.array(preprocess.mean)) / np.array(preprocess.std)
    if values.min() == -128 and values.max() == 127:
        return 1.0
    return float(np.abs(values).max() / 127)
