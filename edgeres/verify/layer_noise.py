"""Inside the network: how much noise INT8 has gathered at each tensor, and whether ranges and weight scales fit.

A tensor of the FP32 graph is compared with what the same reader gets in the INT8 graph, on a few validation images,

    SQNR = 10 log10( sum x^2 / sum (x - a_c y - b_c)^2 )

with factor a and offset b fitted per channel: equalization and folded zero points change both and nothing else. It
needs ``onnx``, since the tensors are made outputs of the graphs.
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
_BATCH = 4  # every tensor of the network is held for so many images at once
_INSERTED = frozenset({"QuantizeLinear", "DequantizeLinear", "Pad", "Cast", "Add"})


@dataclass(frozen=True)
class TensorNoise:
    """One tensor on the way through the network.

    Attributes:
        tensor: its name in the FP32 graph.
        node: of the Conv, Gemm or Add that writes it.
        stream: whether it is the residual stream, after an Add or at its beginning.
        sqnr_db: in the INT8 graph, up to here; None where it is equal to the last bit.
    """

    tensor: str
    node: str
    stream: bool
    sqnr_db: float | None


@dataclass(frozen=True)
class RangeFit:
    """A quantized activation: what its codes cover against what the images put there.

    Attributes:
        covered: highest value that a code stands for, as a share of the highest that was seen, both above the lowest.
        own_db: signal over the noise of this quantization alone; values below the lowest code are ReLU's business.
    """

    tensor: str
    covered: float
    own_db: float


@dataclass(frozen=True)
class Zeros:
    """Share of exact zeros in a tensor, on the calibration images and on those at hand."""

    tensor: str
    calibration: float
    validation: float

    @property
    def apart(self) -> float:
        return abs(self.calibration - self.validation)


@dataclass(frozen=True)
class LayerNoise:
    """One INT8 graph from the inside.

    Attributes:
        layers: in the order of the network.
        ranges: of every quantized activation.
        per_tensor: nodes whose weights share one scale for all output channels.
        weights: quantized weights in all.
        zeros: of the FP32 tensors behind a ReLU that calibration saw, too.
    """

    images: int
    layers: tuple[TensorNoise, ...] = ()
    ranges: tuple[RangeFit, ...] = ()
    per_tensor: tuple[str, ...] = ()
    weights: int = 0
    zeros: tuple[Zeros, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = asdict(self)
        del plain["zeros"]  # for a check alone
        return plain | {name: list(plain[name]) for name in ("layers", "ranges", "per_tensor")}


def missing() -> str | None:
    """Why noise cannot be measured layer by layer on this machine; None where it can."""
    return None if importlib.util.find_spec("onnx") else "it needs onnx; pip install 'edgeres[export]'"


def layer_noise(
    candidates: Candidates,
    loader: Loader,
    progress: Progress = SILENT,
    zeros: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, LayerNoise]:
    """Measure every candidate that asks for it, with float arithmetic between Q/DQ pairs.

    Args:
        candidates: graphs of one network, with the same node names.
        loader: of the validation images; :data:`IMAGES` of them are used, evenly spread.
        zeros: share of zeros by tensor of the FP32 graph on the calibration images.
    """
    from edgeres.graph.graph import Graph
    from edgeres.graph.normalize import load_onnx

    assert candidates.reference.graph is not None
    reference = Graph(load_onnx(candidates.reference.graph))
    source = loader.source
    view = source.at(evenly_spread(len(source), IMAGES))
    few = Loader(view, loader.preprocess, _BATCH, on_unreadable="skip")
    found = {}
    for name, candidate in candidates.others.items():
        if candidate.graph is None or not candidate.layers:
            continue
        both = _Both(reference, Graph(load_onnx(candidate.graph)))
        noise, now = _measure(both, candidates.open_graph, few, progress)
        known = (Zeros(tensor, zeros[tensor], share) for tensor, share in now.items() if tensor in zeros)
        found[name] = replace(noise, zeros=tuple(known))
    return found


@dataclass(frozen=True)
class _Both:
    """The FP32 graph, and the INT8 graph that was made from it."""

    reference: Graph
    candidate: Graph


@dataclass
class _ChannelFit:
    """Sums over a tensor in both graphs, per channel: enough to fit a factor and an offset."""

    count: int = 0
    sums: dict[str, F64] = field(default_factory=dict)

    def add(self, x: F32, y: F32) -> None:
        x64, y64 = (v.astype(np.float64).reshape(*v.shape[:2], -1) for v in (x, y))
        parts = {"x": x64, "y": y64, "xx": x64 * x64, "yy": y64 * y64, "xy": x64 * y64}
        for name, values in parts.items():
            self.sums[name] = self.sums.get(name, np.zeros(1)) + values.sum(axis=(0, 2))
        self.count += x64.shape[0] * x64.shape[2]

    @property
    def sqnr_db(self) -> float | None:
        n, s = self.count, self.sums
        xx, yy, xy = (s[a + b] - s[a] * s[b] / n for a, b in ("xx", "yy", "xy"))
        left = np.where(yy > 0, xx - xy * xy / np.where(yy > 0, yy, 1.0), xx)
        noise = float(np.maximum(left, 0.0).sum()) * n / max(1, n - 2)  # two numbers per channel were fitted
        signal = float(s["xx"].sum())
        return 10 * math.log10(signal / noise) if noise > 1e-14 * signal else None


@dataclass
class _CodeRange:
    """What goes into one QuantizeLinear against what its codes stand for."""

    low: float
    high: float
    step: float
    count: int = 0
    highest: float = -math.inf
    clipped: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: F32) -> None:
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
        return RangeFit(tensor, covered, 10 * math.log10(signal / noise) if signal > 0 else math.inf)


@dataclass(frozen=True)
class _Place:
    """A tensor of the FP32 graph, the node that writes it, and what stands for it in the INT8 graph."""

    tensor: str
    node: str
    stream: bool
    theirs: str


def _measure(
    both: _Both, open_graph: OpenGraph, loader: Loader, progress: Progress
) -> tuple[LayerNoise, dict[str, float]]:
    """The noise of the INT8 graph, and the share of zeros in the tensors of the FP32 graph that were compared."""
    from edgeres.calibrate.forward import with_outputs

    reference, candidate = both.reference, both.candidate
    places = list(_places(reference, candidate))
    ranges = dict(_ranges(candidate))
    pairs = [_ChannelFit() for _ in places]
    ours = with_outputs(reference.model, [place.tensor for place in places])
    theirs = dict.fromkeys((*(place.theirs for place in places), *ranges))
    taps = with_outputs(candidate.model, [name for name in theirs if name != candidate.input])
    seen = 0
    zeros = dict.fromkeys((place.tensor for place in places), 0.0)
    with (
        open_graph(ours) as first,
        open_graph(taps, integer=False) as second,
        progress.task("looking inside", total=len(loader.source)) as advance,
    ):
        for batch in loader:
            expected = first.infer({reference.input: batch.inputs})
            found = second.infer({candidate.input: batch.inputs}) | {candidate.input: batch.inputs}
            for place, pair in zip(places, pairs, strict=True):
                pair.add(expected[place.tensor], found[place.theirs])
                values = expected[place.tensor]
                zeros[place.tensor] += len(values) * (1 - np.count_nonzero(values) / values.size)
            for tensor, fit in ranges.items():
                fit.add(found[tensor])
            seen += len(batch.inputs)
            advance(len(batch.inputs))
    layers = (TensorNoise(p.tensor, p.node, p.stream, pair.sqnr_db) for p, pair in zip(places, pairs, strict=True))
    fits = (fit.fit(tensor) for tensor, fit in ranges.items())
    weights = list(_weights(candidate))
    shared = tuple(node for node, scales, channels in weights if scales == 1 < channels)
    noise = LayerNoise(seen, tuple(layers), tuple(fits), shared, len(weights))
    return noise, {tensor: share / max(seen, 1) for tensor, share in zeros.items()}


def _places(reference: Graph, candidate: Graph) -> Iterator[_Place]:
    """Outputs of convolutions and residual Adds, behind their activation; the scores have a figure of their own."""
    fork = True  # the residual stream begins at the first tensor that is read twice
    for node in reference.nodes:
        residual = reference.is_residual_add(node)
        if not residual and node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        tensor = _behind_pool(reference, reference.activation_after(node))
        begins = fork and len(reference.consumers(tensor)) > 1
        fork = fork and not begins
        theirs = _counterpart(reference, candidate, tensor)
        if theirs:
            yield _Place(tensor, node.name, begins or residual, theirs)


def _behind_pool(reference: Graph, tensor: str) -> str:
    """A ReLU may have become the lowest code behind the MaxPool that reads it: there both graphs hold the same."""
    readers = reference.consumers(tensor)
    return str(readers[0].output[0]) if len(readers) == 1 and readers[0].op_type == "MaxPool" else tensor


def _counterpart(reference: Graph, candidate: Graph, tensor: str) -> str | None:
    """What the same reader gets in the INT8 graph; None where it is no more the same."""
    own = {node.name for node in reference.nodes}
    readers = {(node.name, i): name for node in candidate.nodes for i, name in enumerate(node.input)}
    for reader in reference.consumers(tensor):
        read = readers.get((reader.name, list(reader.input).index(tensor)))
        if read is not None:
            return _before_codes(candidate, read, own)
    return None


def _before_codes(candidate: Graph, tensor: str, own: set[str]) -> str:
    """Back over what quantization put between a reader and a node of the network: the first dequantized tensor."""
    found = tensor
    while (node := candidate.producer(tensor)) is not None and node.name not in own and node.op_type in _INSERTED:
        if node.op_type == "DequantizeLinear":
            found = tensor
        tensor = node.input[0]
    return found


def _ranges(candidate: Graph) -> Iterator[tuple[str, _CodeRange]]:
    """Every activation that is quantized, once; a border that repeats another's codes is left out."""
    for node in candidate.nodes:
        if node.op_type != "QuantizeLinear" or not candidate.is_constant(node.input[1]):
            continue
        border = candidate.producer(node.input[0])
        inside = candidate.producer(border.input[0]) if border is not None and border.op_type == "Pad" else None
        if inside is not None and inside.op_type == "DequantizeLinear":
            continue
        scale = float(candidate.constant(node.input[1]).flat[0])
        zero: Any = candidate.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        limits, point = np.iinfo(zero.dtype), int(zero.flat[0])
        yield node.input[0], _CodeRange(scale * (limits.min - point), scale * (limits.max - point), scale)


def _weights(candidate: Graph) -> Iterator[tuple[str, int, int]]:
    """Of every layer with quantized weights: its name, how many different scales, how many output channels."""
    for node in candidate.nodes:
        source = candidate.producer(node.input[1]) if node.op_type in {"Conv", "Gemm", "MatMul"} else None
        if source is None or source.op_type != "DequantizeLinear" or not candidate.is_constant(source.input[0]):
            continue
        axis = next((attribute.i for attribute in source.attribute if attribute.name == "axis"), 1)
        shape = candidate.constant(source.input[0]).shape
        yield node.name, len(np.unique(candidate.constant(source.input[1]))), int(shape[axis])
