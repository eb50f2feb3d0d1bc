"""Zero points for a runtime that takes none: moved into biases and borders.

Behind a ReLU no value is negative, and symmetric int8 leaves its 128 negative codes unused. With zero_point -128 all
256 are used, at half the step: 6 dB less noise from every such tensor. TensorRT takes zero_point 0 only. But with
t = 128 scale, the codes of x with zero_point -128 are the codes of x - t with zero_point 0,

    round(x / scale) - 128 = round((x - t) / scale),

and all nodes around can be changed to write and to read x - t:

    writer  Conv -> ReLU -> Q      the bias falls by t, and the ReLU goes: saturation at code -128 does the same
    reader  DQ -> Conv, Gemm       W (x - t) + b + t sum(W) = W x + b: the bias rises by t sum(W)
            DQ -> Add <- Conv      the bias of that Conv rises by t; without a Conv the sum is raised behind the Add
            border of a Conv       zeros are code -128 now, so the padding becomes a Pad with -t

All of that is exact, and costs nothing at run time but the Pad, which moves a byte per value twice. Where a node cannot
be changed because something else reads its output too, an Add of a constant is inserted.

Worked number: scale 0.02, x = 3.0 and bias 0.5: code 150 - 128 = 22. The writer gives 3.0 - 2.56 = 0.44 = 22 * 0.02; a
reader with weight 2 computes 2 * 0.44 + (0.5 + 2.56 * 2) = 6.5 = 2 * 3.0 + 0.5.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgeres.graph.graph import PASS_THROUGH, Graph, Values, attributes, input_at
from edgeres.quantize.affine import per_channel
from edgeres.quantize.placement import weight_axis
from edgeres.records import F64

_LOWEST = -128


def fold_zero_points(model: ModelProto) -> ModelProto:
    """The same codes and the same function with every activation's zero_point 0; the model given is not changed.

    Before:
        Conv -> ReLU -> Q(zero_point -128) -> DQ -> Conv
    After:
        Conv(bias - t) -> Q(zero_point 0) -> DQ -> Pad(-t) -> Q -> DQ -> Conv(bias + t sum(W))

    The Q/DQ pairs are int8; weights are symmetric and stay as they are.
    """
    folding = _Folding(Graph.copy_of(model))
    for quantize in folding.graph.of("QuantizeLinear"):
        folding.fold(quantize)
    for node in list(folding.graph.nodes):
        folding.raise_bias(node)
    folding.graph.prune()
    return folding.graph.model


class _Folding:
    """The pass over one graph.

    Attributes:
        held: by tensor, how much less than its own value it holds by now.
        raised: by node, what its bias gains per output channel, or one number for all.
        inserted: constants of the Adds that were inserted.
        padded: by (tensor, pads), the tensor with a border.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.held: dict[str, float] = {}
        self.raised: dict[str, F64] = {}
        self.inserted: set[str] = set()
        self.padded: dict[tuple[str, tuple[int, ...]], str] = {}

    def fold(self, quantize: NodeProto) -> None:
        """Give one quantizer the zero point 0, and change its writer and its readers."""
        zero = self.graph.constant(quantize.input[2])
        offset = -float(zero) * float(self.graph.constant(quantize.input[1]))  # t
        lowered = self._lowered(quantize.input[0], offset, saturates=int(zero) == _LOWEST)
        self.graph.set_inputs(quantize, [lowered, *quantize.input[1:]])
        if not offset:
            return
        self.graph.set_constant(quantize.input[2], np.zeros_like(zero))
        for dequantize in self.graph.consumers(quantize.output[0]):
            self._adjust_readers(dequantize.output[0], offset)

    # Writers.

    def _lowered(self, tensor: str, offset: float, saturates: bool) -> str:
        """A tensor that holds ``offset`` less; with ``saturates``, what would be negative may be anything below."""
        missing = offset - self.held.get(tensor, 0.0)
        if missing == 0.0:
            return tensor
        node = self.graph.producer(tensor)
        if node is None or not self._has_one_reader(tensor) or tensor in self.held:
            return self._add(tensor, -missing)
        before = node.input[0]
        if node.op_type == "Relu" and saturates and self._has_one_reader(before):
            self.graph.remove(node)
            return self._lowered(before, offset, saturates)
        if node.op_type == "MaxPool" and self._has_one_reader(before):
            self.graph.redirect(node, before, self._lowered(before, offset, saturates))
            return tensor
        if node.op_type == "Add" and (constant := self._inserted_constant(node)):
            self.graph.set_constant(constant, np.float32(float(self.graph.constant(constant)) - missing))
            return tensor
        conv = node if node.op_type == "Conv" else self._conv_into(node)
        if conv is None:
            return self._add(tensor, -missing)
        self._raise(conv, np.array(-missing))
        return tensor

    def _inserted_constant(self, add: NodeProto) -> str:
        """The constant of an Add that this pass inserted; "" for any other Add."""
        return next((name for name in add.input if name in self.inserted), "")

    def _conv_into(self, add: NodeProto) -> NodeProto | None:
        """A Conv whose output only this residual Add reads; None if neither input comes from one."""
        if add.op_type != "Add":
            return None
        found = (self.graph.producer(name) for name in add.input if self._has_one_reader(name))
        return next((node for node in found if node is not None and node.op_type == "Conv"), None)

    # Readers.

    def _adjust_readers(self, tensor: str, offset: float) -> None:
        """Make every reader of a tensor that now holds ``offset`` less compute the same as before."""
        self.held[tensor] = offset
        restored = ""
        for node in self.graph.consumers(tensor):
            if node.op_type == "QuantizeLinear" or self._compensates(node, tensor, offset):
                continue
            restored = restored or self._add(tensor, offset)
            self.graph.redirect(node, tensor, restored)

    def _compensates(self, node: NodeProto, tensor: str, offset: float) -> bool:
        """Make one reader compute the same as before, if it can be changed so."""
        if node.op_type in {"Conv", "Gemm"} and node.input[0] == tensor:
            sums = self._weight_sums(node)
            if sums is None:
                return False
            self._raise(node, offset * sums)
            if node.op_type == "Conv" and any(pads := attributes(node).get("pads", [])):
                self._border(node, offset, tuple(pads))
            return True
        if node.op_type == "Add" and not self._inserted_constant(node):
            conv = self._conv_into(node)
            if conv is not None:
                self._raise(conv, np.array(offset))
            elif node.output[0] in self.graph.outputs or node.input[0] == node.input[1]:
                return False
            else:
                self._adjust_readers(node.output[0], offset)
            return True
        if node.op_type in PASS_THROUGH and node.output[0] not in self.graph.outputs:
            if node.op_type == "Pad":
                filled = input_at(node, 2)
                fill = float(self.graph.constant(filled)) if filled else 0.0
                lower = self._constant(f"{node.name}_fill", np.float32(fill - offset))
                self.graph.set_inputs(node, [*node.input[:2], lower, *node.input[3:]])
            self._adjust_readers(node.output[0], offset)
            return True
        return False

    def _border(self, conv: NodeProto, offset: float, pads: tuple[int, ...]) -> None:
        """Pad with what stands for zero, in codes: DQ -> Pad -> Q -> DQ -> Conv. Convolutions share the border."""
        source = conv.input[0]
        if (source, pads) not in self.padded:
            dequantize = self.graph.writer(source)
            name = f"{source}_border{len(self.padded)}"
            half = len(pads) // 2
            both = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
            fill = self._constant(f"{name}_fill", np.float32(-offset))
            parameters = list(dequantize.input[1:])
            made = [
                helper.make_node("Pad", [source, self._constant(f"{name}_pads", both), fill], [name], f"{name}_Pad"),
                helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"], f"{name}_QuantizeLinear"),
                helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_dq"], f"{name}_Dequantize"),
            ]
            self.graph.insert(made, behind=dequantize)
            self.padded[source, pads] = f"{name}_dq"
        self.graph.set_inputs(conv, [self.padded[source, pads], *conv.input[1:]])
        kept = [attribute for attribute in conv.attribute if attribute.name != "pads"]
        del conv.attribute[:]
        conv.attribute.extend(kept)

    def _weight_sums(self, node: NodeProto) -> F64 | None:
        """Per output channel, the sum of the weights as they are dequantized; None where they are not constant."""
        weights = self._weights(node.input[1])
        if weights is None:
            return None
        weights = np.moveaxis(weights, weight_axis(node), 0)
        return np.asarray(weights.reshape(len(weights), -1).sum(axis=1), np.float64)

    def _weights(self, tensor: str) -> F64 | None:
        if self.graph.is_constant(tensor):
            return self.graph.constant(tensor).astype(np.float64)
        node = self.graph.producer(tensor)
        if node is None or node.op_type != "DequantizeLinear" or not self.graph.is_constant(node.input[0]):
            return None
        codes, scale = (self.graph.constant(name).astype(np.float64) for name in node.input[:2])
        axis = int(attributes(node).get("axis", 1)) if scale.ndim else None
        return np.asarray(codes * per_channel(scale, axis, codes.ndim), np.float64)

    # Edits.

    def _has_one_reader(self, tensor: str) -> bool:
        return len(self.graph.consumers(tensor)) < 2 and tensor not in self.graph.outputs

    def _constant(self, name: str, values: Values | np.float32) -> str:
        return self.graph.add_constant(self.graph.free_name(name), values)

    def _add(self, tensor: str, value: float) -> str:
        """Insert an Add of a constant behind a tensor; its readers stay where they are."""
        name = self.graph.free_name(f"{tensor}_{'lowered' if value < 0 else 'restored'}")
        constant = self._constant(f"{name}_by", np.float32(value))
        self.inserted.add(constant)
        node = helper.make_node("Add", [tensor, constant], [name], f"{name}_Add")
        self.graph.insert([node], behind=self.graph.producer(tensor))
        return name

    def _raise(self, node: NodeProto, values: F64) -> None:
        self.raised[node.name] = self.raised.get(node.name, np.zeros(())) + values

    def raise_bias(self, node: NodeProto) -> None:
        """Add to a node's bias what all its tensors together ask for; a node without a bias gets one."""
        if node.name not in self.raised:
            return
        weights = self._weights(node.input[1])
        assert weights is not None, node.name
        old = input_at(node, 2)
        before = self.graph.constant(old).astype(np.float64) if old else np.zeros(weights.shape[weight_axis(node)])
        name = self._constant(f"{node.name}.raised_bias", (before + self.raised[node.name]).astype(np.float32))
        self.graph.set_inputs(node, [*node.input[:2], name])
