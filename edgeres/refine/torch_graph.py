"""A canonical ONNX graph with a plan's fake quantization, as a differentiable function in torch.

    an activation that the plan quantizes for a reader  ->  FakeQuantizer: codes forward, gradients to x and the scale
    weights that the plan codes                         ->  CodedWeight: scale * (base + h), 0 <= h <= 1
    the bias of such a node                             ->  LearnedBias: a shift in units of the input's step

Its results are those of the Q/DQ graph on ONNX Runtime with float arithmetic, up to float32 rounding and the rare code
that this rounding changes. Tensors that the plan keeps in float16 are float32 here: float16 rounds by 2**-11 only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from edgeres.errors import ModelError
from edgeres.graph.graph import Graph, attributes, input_at
from edgeres.quantize.affine import codes, per_channel
from edgeres.records import F32, QuantParams, QuantPlan, WeightEdge
from edgeres.refine.blocks import Block
from edgeres.refine.candidate import CandidatePlan
from edgeres.refine.torch_ops import OPS

_WEIGHT_LIMIT = 127
_ZETA, _GAMMA = 1.1, -0.1  # limits of the stretched sigmoid


class _Quantize(torch.autograd.Function):
    """Round and saturate; gradients as in LSQ (Esser et al. 2020, eq. 3 and 5).

    For ``y = scale * clip(round(v))`` with ``v = x / scale``: dy/dx is 1 inside the range and 0 outside; dy/dscale is
    ``round(v) - v`` inside and the limit outside.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        # x is kept for the gradient of its own operator anyway; anything else would take memory of its own.
        ctx.save_for_backward(x, scale)
        ctx.limits = low, high
        return (x / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale = ctx.saved_tensors
        v = x / scale
        rounded = v.round().clamp_(*ctx.limits)
        error = rounded - v
        inside = error.abs() <= 0.5
        return grad * inside, (grad * torch.where(inside, error, rounded)).sum(), None, None


class FakeQuantizer(nn.Module):
    """The Q/DQ pair of an activation, with one learnable scale.

    ``change`` is the log of the scale over the one it began with, so that a step of an optimizer is relative.
    """

    def __init__(self, params: QuantParams) -> None:
        super().__init__()
        self.params = params
        first, last = params.code_limits
        self.limits = (first - params.zero_point, last - params.zero_point)
        self.change = nn.Parameter(torch.zeros(()))

    @property
    def scale(self) -> Tensor:
        return float(self.params.scale) * self.change.exp()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _Quantize.apply(x, self.scale, *self.limits)  # type: ignore[no-untyped-call]
        return result

    def learned(self) -> QuantParams:
        return replace(self.params, scale=np.asarray(self.scale.item(), np.float32))


class CodedWeight(nn.Module):
    """Weights as ``scale * (base + h(v))``, each with the choice between two codes (Nagel et al. 2020, section 3).

    Until ``v`` is asked for, the weights are the plan's codes, and nothing else is in memory.

    Attributes:
        base: the lower of the two codes, of the weights' shape.
        v: real, of the weights' shape; h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1) (eq. 23). It begins where
            ``base + h(v)`` is the float weight; where the plan's code is no neighbour of that, at the code.
        soft: whether ``forward`` uses h itself, or rounds it to the nearer code.
    """

    def __init__(self, values: F32, edge: WeightEdge) -> None:
        super().__init__()
        self.edge = edge
        self.soft = False
        self.scale = torch.from_numpy(
            per_channel(np.asarray(edge.params.scale, np.float32), edge.params.axis, values.ndim)
        )
        self._values = values
        self._given = torch.from_numpy(edge.codes)
        self.is_open = False

    @cached_property
    def base(self) -> Tensor:
        exact, given = self._values / self.scale.numpy(), self.edge.codes.astype(np.float32)
        base = np.where(np.abs(given - exact) < 1, np.floor(exact), given).clip(-_WEIGHT_LIMIT, _WEIGHT_LIMIT - 1)
        return torch.from_numpy(base.astype(np.float32))

    @cached_property
    def v(self) -> nn.Parameter:
        base = self.base.numpy()
        fraction = (self._values / self.scale.numpy() - base).clip(0, 1)
        # h must round to the plan's code, whichever way a tie was rounded.
        up = self.edge.codes > base
        fraction = np.where(up, np.maximum(fraction, 0.501), np.minimum(fraction, 0.499)).astype(np.float32)
        return nn.Parameter(torch.logit((torch.from_numpy(fraction) - _GAMMA) / (_ZETA - _GAMMA)))

    def open(self) -> None:
        """Make ``v``, so that the codes follow it."""
        self.is_open = self.v is not None

    def h(self) -> Tensor:
        return (torch.sigmoid(self.v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def undecided(self, beta: float) -> Tensor:
        """Mean of ``1 - |2h - 1|**beta``: 0 where every choice is made (eq. 24)."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).mean()

    def codes(self) -> Tensor:
        if not self.is_open:
            return self._given.float()
        return self.base + (self.h() if self.soft else (self.h() >= 0.5).float())

    def forward(self) -> Tensor:
        return self.scale * self.codes()

    def learned(self) -> npt.NDArray[np.int8]:
        return self.codes().detach().numpy().astype(np.int8)

    def gain(self) -> Tensor:
        """(C,) change of the output per output channel when every input changes by one, in random directions."""
        weight = self.forward().detach().movedim(self.edge.params.axis or 0, 0)
        return weight.flatten(1).square().sum(dim=1).sqrt()


class LearnedBias(nn.Module):
    """A bias with a learnable shift, in units of the output's change for one step of the input's codes."""

    def __init__(self, first: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.first = first
        self.unit = unit.reshape(first.shape)
        self.shift = nn.Parameter(torch.zeros_like(self.first))

    def forward(self) -> Tensor:
        return self.first + self.shift * self.unit

    def learned(self) -> F32:
        return self.forward().detach().numpy()


class TorchGraph:
    """A canonical FP32 graph, quantized if a plan for it is given, that computes any consecutive nodes in torch.

    Raises:
        ModelError: an operator, or a form of it, has no counterpart in torch; names the node.
    """

    def __init__(self, model: ModelProto, plan: QuantPlan | None = None) -> None:
        self.graph = Graph(model)
        self._plan = plan
        self._attributes = {node.name: {**attributes(node), "outputs": len(node.output)} for node in self.graph.nodes}
        for node in self.graph.nodes:
            if node.op_type not in OPS:
                raise ModelError(f"operator {node.op_type} cannot be learned through", where=f"node {node.name}")
        coded = {(edge.tensor, edge.node) for edge in plan.weights if edge.params.dtype == "int8"} if plan else set()
        self._constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in model.graph.initializer
            if any((tensor.name, node.name) not in coded for node in self.graph.consumers(tensor.name))
        }
        # By (tensor, node that reads it).
        self._readings: dict[tuple[str, str], FakeQuantizer] = {}
        self._weights: dict[tuple[str, str], CodedWeight] = {}
        self._biases: dict[str, LearnedBias] = {}
        if plan is not None:
            self._quantize(plan)

    def _quantize(self, plan: QuantPlan) -> None:
        quantized = {(edge.tensor, reader) for edge in plan.edges for reader in edge.consumers}
        by_tensor: dict[str, FakeQuantizer] = {}
        edges = {edge.tensor: edge for edge in plan.edges}
        for tensor, edge in sorted(edges.items(), key=lambda item: self._position(item[0])):
            source = self._source_of_codes(tensor, quantized)
            by_tensor[tensor] = FakeQuantizer(edge.params) if source is None else by_tensor[source]
            self._readings |= {(tensor, reader): by_tensor[tensor] for reader in edge.consumers}
        for weight in plan.weights:
            if weight.params.dtype != "int8":  # a bias, or a constant with one scale
                real = (weight.codes.astype(np.float64) - weight.params.zero_point) * weight.params.scale
                self._constants[weight.tensor] = torch.from_numpy(real.astype(np.float32))
        for weight in plan.weights:
            if weight.params.dtype == "int8":
                coded = CodedWeight(self.graph.constant(weight.tensor), weight)
                self._weights[weight.tensor, weight.node] = coded
                self._learn_bias(self.graph.node(weight.node), coded.gain())

    def _learn_bias(self, node: NodeProto, gain: Tensor) -> None:
        bias = input_at(node, 2)
        data = self._readings.get((node.input[0], node.name))
        if not bias or data is None or len(self.graph.consumers(bias)) > 1:
            return
        if self._constants[bias].numel() == gain.numel():
            self._biases[bias] = LearnedBias(self._constants[bias], gain * data.scale.detach())

    def _position(self, tensor: str) -> int:
        producer = self.graph.producer(tensor)
        return -1 if producer is None else self.graph.position(producer)

    def _source_of_codes(self, tensor: str, quantized: set[tuple[str, str]]) -> str | None:
        """The tensor whose codes arrive here through nodes that only move them; both share one scale."""
        while (node := self.graph.producer(tensor)) is not None and self.graph.moves_codes(node):
            tensor = str(node.input[0])
            if (tensor, node.name) in quantized:
                return tensor
        return None

    def run(self, block: Block, inputs: Tensor) -> Tensor:
        """The block's output, (B, ...), for its input, (B, ...) float32.

        Raises:
            ModelError: a form of an operator that has no counterpart here; names the node.
        """
        values = {block.input: inputs}
        codes_of: dict[str, Tensor] = {}
        last = self._last_reads(block)
        for name in block.nodes:
            node = self.graph.node(name)
            arguments = [self._argument(tensor, name, values, codes_of) if tensor else None for tensor in node.input]
            try:
                made = OPS[node.op_type](self._attributes[name], arguments)
            except ModelError as error:
                raise ModelError(error.what, where=f"node {name}") from error
            values.update(zip(node.output, [made] if isinstance(made, Tensor) else made, strict=False))
            for tensor in last.get(name, ()):  # else the values of a whole network would lie in memory
                values.pop(tensor, None)
                codes_of.pop(tensor, None)
        return values[block.output]

    def _last_reads(self, block: Block) -> dict[str, list[str]]:
        """By node, the tensors that no later node of the block reads."""
        last = {tensor: name for name in block.nodes for tensor in self.graph.node(name).input if tensor}
        found: dict[str, list[str]] = {}
        for tensor, name in last.items():
            if tensor != block.output:
                found.setdefault(name, []).append(tensor)
        return found

    def _argument(self, tensor: str, node: str, values: dict[str, Tensor], codes_of: dict[str, Tensor]) -> Tensor:
        if (tensor, node) in self._readings:
            if tensor not in codes_of:
                codes_of[tensor] = self._readings[tensor, node].forward(values[tensor])
            return codes_of[tensor]
        if (tensor, node) in self._weights:
            return self._weights[tensor, node].forward()
        if tensor in self._biases:
            return self._biases[tensor].forward()
        return self._constants[tensor] if tensor in self._constants else values[tensor]

    def scales(self, nodes: Sequence[str]) -> list[nn.Parameter]:
        """Log changes of the scales of these nodes' inputs, each once."""
        return list(dict.fromkeys(q.change for (_, node), q in self._readings.items() if node in nodes))

    def weights(self, nodes: Sequence[str]) -> list[CodedWeight]:
        """The coded weights of these nodes, with a choice of rounding from now on."""
        found = [weight for (_, node), weight in self._weights.items() if node in nodes]
        for weight in found:
            weight.open()
        return found

    def shifts(self, nodes: Sequence[str]) -> list[nn.Parameter]:
        """Shifts of the biases of these nodes, in steps of their inputs' codes."""
        read = {tensor for name in nodes for tensor in self.graph.node(name).input}
        return [bias.shift for tensor, bias in self._biases.items() if tensor in read]

    def state(self) -> dict[str, Tensor]:
        """The present values of all that can be learned."""
        return {name: parameter.detach().clone() for name, parameter in self._parameters().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for (tensor, node), weight in self._weights.items():
            if f"rounding {tensor} {node}" in state:
                weight.open()
        for name, parameter in self._parameters().items():
            parameter.data.copy_(state[name])

    def _parameters(self) -> dict[str, nn.Parameter]:
        scales = {f"scale {tensor} {node}": reading.change for (tensor, node), reading in self._readings.items()}
        rounding = {
            f"rounding {tensor} {node}": weight.v for (tensor, node), weight in self._weights.items() if weight.is_open
        }
        return scales | rounding | {f"bias {tensor}": bias.shift for tensor, bias in self._biases.items()}

    def candidate(self) -> CandidatePlan:
        """The candidate plan with all that has been learned so far."""
        assert self._plan is not None
        graph = Graph.copy_of(self.graph.model)
        for name, bias in self._biases.items():
            graph.set_constant(name, bias.learned())
        read = ((edge, self._readings[edge.tensor, edge.consumers[0]].learned()) for edge in self._plan.edges)
        edges = tuple(replace(edge, params=replace(edge.params, scale=learned.scale)) for edge, learned in read)
        weights = tuple(self._learned_weight(weight) for weight in self._plan.weights)
        return CandidatePlan(graph.model, replace(self._plan, edges=edges, weights=weights))

    def _learned_weight(self, edge: WeightEdge) -> WeightEdge:
        node = self.graph.node(edge.node)
        if edge.params.dtype == "int8":
            return replace(edge, codes=self._weights[edge.tensor, edge.node].learned())
        if edge.params.dtype == "uint8":
            return edge
        # An int32 bias counts in the accumulator's unit, which moves with the input's scale.
        data = self._readings[node.input[0], edge.node].learned()
        weight = self._weights[node.input[1], edge.node].edge.params
        unit = QuantParams((weight.scale * data.scale).astype(np.float32), 0, "int32", 0)
        bias = self._biases[edge.tensor].learned() if edge.tensor in self._biases else self.graph.constant(edge.tensor)
        return replace(edge, params=unit, codes=codes(bias.astype(np.float64), unit).astype(np.int32))
