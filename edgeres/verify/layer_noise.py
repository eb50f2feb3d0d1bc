"""Measures the quantization noise at each tensor of the network, and how well ranges and weight scales fit.

A tensor x of the FP32 graph is compared with the tensor y that the same node reads in the INT8 graph, on a few
validation images:

    SQNR = 10 log10( sum x^2 / sum (x - a_c y - b_c)^2 )

Factor a and offset b are fitted per channel, because equalization and folded zero points change both and nothing else.
This needs ``onnx``, which adds the tensors to the outputs of the graphs.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeres.data.base import evenly_spread
from edgeres.data.loader import Loader
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, F64
from edgeres.verify.candidates import Candidates, OpenGraph

if TYPE_CHECKING:
    from edgeres.graph.graph import Graph

IMAGES = 16
_BATCH = 4  # small, because every tensor of the network is held in memory for all images of a batch
_INSERTED = frozenset({"QuantizeLinear", "DequantizeLinear", "Pad", "Cast", "Add"})


@dataclass(frozen=True)
class TensorNoise:
    """The noise that INT8 has added up to one tensor.

    Attributes:
        tensor: its name in the FP32 graph.
        node: name of the Conv, Gemm or Add that writes it.
        stream: whether it belongs to the residual stream: the output of an Add, or the first tensor of the stream.
        sqnr_db: SQNR in the INT8 graph; None where the tensors are equal, or before it is measured.
    """

    tensor: str
    node: str
    stream: bool
    sqnr_db: float | None = None


@dataclass(frozen=True)
class RangeFit:
    """How well the codes of a quantized activation fit its values.

    Attributes:
        covered: width of the range of the codes, divided by the width from the lowest code to the highest value.
        own_db: SQNR of this quantization alone; clipping below the lowest code is no noise, because it replaces a ReLU.
    """

    tensor: str
    covered: float
    own_db: float


@dataclass(frozen=True)
class ZeroShares:
    """Share of exact zeros in a tensor, on the calibration images and on the validation images."""

    tensor: str
    calibration: float
    validation: float

    @property
    def difference(self) -> float:
        return abs(self.calibration - self.validation)


@dataclass(frozen=True)
class LayerNoise:
    """The noise of one INT8 graph, layer by layer.

    Attributes:
        images: number of images it was measured on.
        layers: noise after each layer, in the order of the network.
        ranges: fit of every quantized activation.
        per_tensor: nodes whose weights share one scale for all output channels.
        weights: number of nodes with quantized weights.
        zeros: shares of zeros in the FP32 tensors after a ReLU whose share calibration recorded.
    """

    images: int
    layers: tuple[TensorNoise, ...] = ()
    ranges: tuple[RangeFit, ...] = ()
    per_tensor: tuple[str, ...] = ()
    weights: int = 0
    zeros: tuple[ZeroShares, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = asdict(self)
        del plain["zeros"]  # only a check uses them
        return plain | {name: list(plain[name]) for name in ("layers", "ranges", "per_tensor")}


def why_unavailable() -> str | None:
    """The reason why layer noise cannot be measured on this machine; None where it can."""
    return None if importlib.util.find_spec("onnx") else "it needs onnx; pip install 'edgeres[export]'"


def layer_noise(
    candidates: Candidates,
    loader: Loader,
    progress: Progress = SILENT,
    zeros: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, LayerNoise]:
    """Measure every candidate with ``layers`` set, with float arithmetic between Q/DQ pairs.

    Args:
        candidates: graphs of one network, with the same node names.
        loader: loads the validation images; :data:`IMAGES` of them are used, evenly spread.
        zeros: share of zeros on the calibration images, by tensor of the FP32 graph.
    """
    from edgeres.graph.graph import Graph
    from edgeres.graph.normalize import load_onnx

    assert candidates.reference.graph is not None
    reference = Graph(load_onnx(candidates.reference.graph))
    source = loader.source
    view = source.at(evenly_spread(len(source), IMAGES))
    few = Loader(view, loader.preprocess, _BATCH, on_unreadable="skip")
    noise = {}
    for name, candidate in {**candidates.others, **candidates.stand_ins}.items():
        if candidate.graph is None or not candidate.layers:
            continue
        quantized = Graph(load_onnx(candidate.graph))
        noise[name] = _measure(reference, quantized, candidates.open_graph, few, zeros, progress)
    return noise


@dataclass
class _ChannelFit:
    """Sums over a tensor in both graphs, per channel; a factor and an offset are fitted from them."""

    count: int = 0
    sums: F64 = field(default_factory=lambda: np.zeros((5, 1)))  # of x, y, xx, yy and xy

    def add(self, x: F32, y: F32) -> None:
        x64, y64 = (v.astype(np.float64).reshape(*v.shape[:2], -1) for v in (x, y))
        parts = (x64, y64, x64 * x64, y64 * y64, x64 * y64)
        self.sums = self.sums + np.array([part.sum(axis=(0, 2)) for part in parts])
        self.count += x64.shape[0] * x64.shape[2]

    @property
    def sqnr_db(self) -> float | None:
        n, (x, y, power, yy, xy) = self.count, self.sums
        xx, yy, xy = power - x * x / n, yy - y * y / n, xy - x * y / n
        residual = np.where(yy > 0, xx - xy * xy / np.where(yy > 0, yy, 1.0), xx)
        noise = float(np.maximum(residual, 0.0).sum()) * n / max(1, n - 2)  # two parameters per channel were fitted
        signal = float(power.sum())
        return 10 * math.log10(signal / noise) if noise > 1e-14 * signal else None


@dataclass
class _CodeRange:
    """Sums over the input of one QuantizeLinear.

    Attributes:
        low, high: values of the lowest and the highest code.
        step: the scale.
        varies: whether any channel had two values. A tensor of constants, such as a branch that gives zero, has no
            signal that its codes could lose.
    """

    low: float
    high: float
    step: float
    count: int = 0
    highest: float = -math.inf
    clipped: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    constants: F32 | None = None
    varies: bool = False

    def add(self, values: F32) -> None:
        by_channel = values.reshape(*values.shape[:2], -1) if values.ndim > 1 else values.reshape(1, 1, -1)
        if self.constants is None:
            self.constants = by_channel[:1, :, :1].copy()
        self.varies = self.varies or not bool((by_channel == self.constants).all())
        kept = np.maximum(values.astype(np.float64), self.low)
        self.count += kept.size
        self.highest = max(self.highest, float(kept.max()))
        self.clipped += float(np.square(np.maximum(kept - self.high, 0.0)).sum())
        self.total += float(kept.sum())
        self.squares += float(np.square(kept).sum())

    def fit(self, tensor: str) -> RangeFit:
        signal = self.squares - self.total**2 / self.count
        noise = self.clipped + self.count * self.step**2 / 12
        span = self.highest - self.low
        covered = (self.high - self.low) / span if span > 0 else 1.0
        carries = self.varies and signal > 0
        return RangeFit(tensor, covered, 10 * math.log10(signal / noise) if carries else math.inf)


def _measure(
    reference: Graph,
    candidate: Graph,
    open_graph: OpenGraph,
    loader: Loader,
    zeros: Mapping[str, float],
    progress: Progress,
) -> LayerNoise:
    from edgeres.calibrate.forward import with_outputs

    places = [(layer, counterpart, _ChannelFit()) for layer, counterpart in _places(reference, candidate)]
    ranges = dict(_ranges(candidate))
    wanted = dict.fromkeys((*(counterpart for _, counterpart, _ in places), *ranges))
    reference_model = with_outputs(reference.model, [layer.tensor for layer, _, _ in places])
    candidate_model = with_outputs(candidate.model, [name for name in wanted if name != candidate.input])
    images, shares = 0, dict.fromkeys((layer.tensor for layer, _, _ in places), 0.0)
    with (
        open_graph(reference_model) as fp32,
        open_graph(candidate_model, integer=False) as int8,
        progress.task("measuring layer noise", total=len(loader.source)) as advance,
    ):
        for batch in loader:
            expected = fp32.infer({reference.input: batch.inputs})
            actual = int8.infer({candidate.input: batch.inputs}) | {candidate.input: batch.inputs}
            for layer, counterpart, fit in places:
                values = expected[layer.tensor]
                fit.add(values, actual[counterpart])
                shares[layer.tensor] += len(values) * (1 - np.count_nonzero(values) / values.size)
            for tensor, code_range in ranges.items():
                code_range.add(actual[tensor])
            images += len(batch.inputs)
            advance(len(batch.inputs))
    weights = list(_weights(candidate))
    return LayerNoise(
        images,
        tuple(replace(layer, sqnr_db=fit.sqnr_db) for layer, _, fit in places),
        tuple(code_range.fit(tensor) for tensor, code_range in ranges.items()),
        tuple(node for node, per_tensor in weights if per_tensor),
        len(weights),
        tuple(ZeroShares(name, zeros[name], share / max(images, 1)) for name, share in shares.items() if name in zeros),
    )


def _places(reference: Graph, candidate: Graph) -> Iterator[tuple[TensorNoise, str]]:
    """Outputs of convolutions and residual Adds after their activation, each with its tensor in the INT8 graph.

    The tensor in the INT8 graph is the one that the same node reads; where no reader is left or it reads codes, the
    output is left out, as are the scores, which have an own SQNR.
    """
    own = {node.name for node in reference.nodes}
    inputs = {(node.name, i): name for node in candidate.nodes for i, name in enumerate(node.input)}
    before_stream = True  # the residual stream begins at the first tensor with several readers
    for node in reference.nodes:
        residual = reference.is_residual_add(node)
        if not residual and node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        tensor = _behind_pool(reference, reference.activation_after(node))
        begins = before_stream and len(reference.consumers(tensor)) > 1
        before_stream = before_stream and not begins
        readers = ((reader.name, list(reader.input).index(tensor)) for reader in reference.consumers(tensor))
        read = next((inputs[reader] for reader in readers if reader in inputs), None)
        counterpart = read and _before_codes(candidate, read, own)
        if counterpart and not _are_codes(candidate, counterpart):
            yield TensorNoise(tensor, node.name, begins or residual), counterpart


def _behind_pool(reference: Graph, tensor: str) -> str:
    """The output of the MaxPool that alone reads ``tensor``, or ``tensor`` itself.

    The quantizer may have replaced a ReLU by clipping at the lowest code after the MaxPool; only from there on do both
    graphs hold the same values.
    """
    readers = reference.consumers(tensor)
    return str(readers[0].output[0]) if len(readers) == 1 and readers[0].op_type == "MaxPool" else tensor


def _before_codes(candidate: Graph, tensor: str, own: set[str]) -> str:
    """Go back from a node's input over the inserted nodes; return the first dequantized tensor among them.

    Args:
        own: names of the nodes that the FP32 graph has, too.
    """
    first = tensor
    while (node := candidate.producer(tensor)) is not None and node.name not in own and node.op_type in _INSERTED:
        if node.op_type == "DequantizeLinear":
            first = tensor
        tensor = node.input[0]
    return first


def _are_codes(candidate: Graph, tensor: str) -> bool:
    """Whether a node of both graphs, such as a Pad, reads codes: their tensor is no float to compare."""
    node = candidate.producer(candidate.source_of(tensor))
    return node is not None and node.op_type == "QuantizeLinear"


def _ranges(candidate: Graph) -> Iterator[tuple[str, _CodeRange]]:
    """Every quantized activation once; a padded copy of another quantized activation is left out."""
    for node in candidate.nodes:
        if node.op_type != "QuantizeLinear" or not candidate.is_constant(node.input[1]):
            continue
        pad = candidate.producer(node.input[0])
        padded = candidate.producer(pad.input[0]) if pad is not None and pad.op_type == "Pad" else None
        if padded is not None and padded.op_type == "DequantizeLinear":
            continue
        scale = float(candidate.constant(node.input[1]).flat[0])
        stored: Any = candidate.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        codes, zero_point = np.iinfo(stored.dtype), int(stored.flat[0])
        yield node.input[0], _CodeRange(scale * (codes.min - zero_point), scale * (codes.max - zero_point), scale)


def _weights(candidate: Graph) -> Iterator[tuple[str, bool]]:
    """Every layer with quantized weights, and whether its output channels share one scale."""
    for node in candidate.nodes:
        source = candidate.producer(node.input[1]) if node.op_type in {"Conv", "Gemm", "MatMul"} else None
        if source is None or source.op_type != "DequantizeLinear" or not candidate.is_constant(source.input[0]):
            continue
        axis = next((attribute.i for attribute in source.attribute if attribute.name == "axis"), 1)
        codes, scale = (candidate.constant(name) for name in source.input[:2])
        yield node.name, codes.shape[axis] > 1 and (scale.size == 1 or _is_repeated(codes, scale, axis))


def _is_repeated(codes: Any, scale: F32, axis: int) -> bool:
    """Whether a scale per channel is the same number for all, and not because their weights are equally large.

    The channels of a fixed filter have equal weights, and a layer of zeros has none: each channel uses all codes, or
    needs none. If some use a tenth less than others, the number is that of the whole tensor.
    """
    used = np.abs(np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1).astype(np.int64)).max(axis=1)
    live = used[used > 0]
    return bool((scale == scale.flat[0]).all() and live.size and live.min() < 0.9 * live.max())
