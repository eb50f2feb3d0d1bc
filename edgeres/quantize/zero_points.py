"""Zero points for a runtime that has none: moved into biases and borders.

Behind a ReLU no value is negative, and symmetric int8 leaves its 128 negative codes unused. With zero_point -128 all
256 serve, at half the step: 6 dB less noise from every such tensor. TensorRT takes zero_point 0 only. But with t = 128
scale, the codes of x with zero_point -128 are the codes of x - t with zero_point 0,

    round(x / scale) - 128 = round((x - t) / scale),

and everything around can be made to give and to take x - t:

    writer  Conv -> ReLU -> Q      the bias falls by t, and the ReLU goes: saturation at code -128 is what it did
    reader  DQ -> Conv, Gemm       W (x - t) + b + t sum(W) = W x + b: the bias rises by t sum(W)
            DQ -> Add <- Conv      the bias of that Conv rises by t; what else it may add to, the sum is raised behind
            border of a Conv       zeros are code -128 now, so the padding becomes a Pad with -t

All of that is exact, and costs nothing at run time but the Pad, which moves a byte per value twice. What cannot be
changed so, because something else reads it too, gets an Add of a constant.

Worked number: scale 0.02, x = 3.0 and bias 0.5: code 150 - 128 = 22. The writer gives 3.0 - 2.56 = 0.44 = 22 * 0.02; a
reader with weight 2 computes 2 * 0.44 + (0.5 + 2.56 * 2) = 6.5 = 2 * 3.0 + 0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgeres.graph.graph import PASS_THROUGH, prune
from edgeres.records import F64

_LOWEST = -128


def fold_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same codes and the same function with every activation's zero_point 0; the model given is not changed.

    Args:
        model: with int8 Q/DQ pairs. Weights are symmetric and stay as they are.
    """
    return _Folding(model).run()


class _Folding:
    """A model in the making.

    Attributes:
        held: by tensor, how much less than its own value it holds by now.
        raised: by node, what its bias gains per output channel, or one number for all.
        inserted: constants of Adds that were put in.
        padded: by (tensor, pads), the tensor with a border.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes = list(self.model.graph.node)
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.outputs = {output.name for output in self.model.graph.output}
        self.held: dict[str, float] = {}
        self.raised: dict[str, F64] = {}
        self.inserted: set[str] = set()
        self.padded: dict[tuple[str, tuple[int, ...]], str] = {}

    def run(self) -> onnx.ModelProto:
        for node in [node for node in self.nodes if node.op_type == "QuantizeLinear"]:
            self._fold(node)
        for node in self.nodes:
            if node.name in self.raised:
                self._raise_bias(node, self.raised[node.name])
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        prune(self.model.graph, self.outputs)
        return self.model

    def _fold(self, quantize: onnx.NodeProto) -> None:
        zero = self._values(quantize.input[2])
        offset = -float(zero) * float(self._values(quantize.input[1]))  # t
        quantize.input[0] = self._lowered(quantize.input[0], offset, saturates=int(zero) == _LOWEST)
        if not offset:
            return
        self.constants[quantize.input[2]].CopyFrom(numpy_helper.from_array(np.zeros_like(zero), quantize.input[2]))
        for dequantize in self._readers(quantize.output[0]):
            self._tell_readers(dequantize.output[0], offset)

    # Writers.

    def _lowered(self, tensor: str, offset: float, saturates: bool) -> str:
        """A tensor that holds ``offset`` less; with ``saturates``, what would be negative may be anything below."""
        missing = offset - self.held.get(tensor, 0.0)
        if missing == 0.0:
            return tensor
        node = self._producer(tensor)
        if node is None or not self._lonely(tensor) or tensor in self.held:
            return self._add(tensor, -missing)
        if node.op_type == "Relu" and saturates and self._lonely(node.input[0]):
            self.nodes.remove(node)
            return self._lowered(node.input[0], offset, saturates)
        if node.op_type == "MaxPool" and self._lonely(node.input[0]):
            node.input[0] = self._lowered(node.input[0], offset, saturates)
            return tensor
        if node.op_type == "Add" and (constant := self._own_constant(node)):
            value = np.float32(float(self._values(constant)) - missing)
            self.constants[constant].CopyFrom(numpy_helper.from_array(np.asarray(value), constant))
            return tensor
        conv = node if node.op_type == "Conv" else self._conv_into(node)
        if conv is None:
            return self._add(tensor, -missing)
        self._raise(conv, np.array(-missing))
        return tensor

    def _own_constant(self, add: onnx.NodeProto) -> str:
        """The constant of an Add that was inserted here."""
        return next((name for name in add.input if name in self.inserted), "")

    def _conv_into(self, add: onnx.NodeProto) -> onnx.NodeProto | None:
        """The Conv of which nothing but this residual Add reads the output."""
        if add.op_type != "Add":
            return None
        found = (self._producer(name) for name in add.input if self._lonely(name))
        return next((node for node in found if node is not None and node.op_type == "Conv"), None)

    # Readers.

    def _tell_readers(self, tensor: str, offset: float) -> None:
        """Make every reader of a tensor that holds ``offset`` less compute what it did."""
        self.held[tensor] = offset
        restored = ""
        for node in self._readers(tensor):
            if node.op_type == "QuantizeLinear" or self._compensates(node, tensor, offset):
                continue
            restored = restored or self._add(tensor, offset)
            _redirect(node, tensor, restored)

    def _compensates(self, node: onnx.NodeProto, tensor: str, offset: float) -> bool:
        if node.op_type in {"Conv", "Gemm"} and node.input[0] == tensor:
            sums = self._weight_sums(node)
            if sums is None:
                return False
            self._raise(node, offset * sums)
            if node.op_type == "Conv" and any(pads := _attribute(node, "pads", [])):
                self._border(node, offset, tuple(pads))
            return True
        if node.op_type == "Add" and not self._own_constant(node):
            conv = self._conv_into(node)
            if conv is not None:
                self._raise(conv, np.array(offset))
            elif node.output[0] in self.outputs or node.input[0] == node.input[1]:
                return False
            else:
                self._tell_readers(node.output[0], offset)
            return True
        if node.op_type in PASS_THROUGH and node.output[0] not in self.outputs:
            if node.op_type == "Pad":
                filled = node.input[2] if len(node.input) > 2 else ""
                fill = float(self._values(filled)) if filled else 0.0
                node.input[2:3] = [self._constant(f"{node.name}_fill", np.float32(fill - offset))]
            self._tell_readers(node.output[0], offset)
            return True
        return False

    def _border(self, conv: onnx.NodeProto, offset: float, pads: tuple[int, ...]) -> None:
        """Padding with what stands for zero, in codes: DQ -> Pad -> Q -> DQ -> Conv; convolutions share it."""
        source = conv.input[0]
        if (source, pads) not in self.padded:
            dequantize = self._producer(source)
            assert dequantize is not None
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
            at = self.nodes.index(dequantize) + 1
            self.nodes[at:at] = made
            self.padded[source, pads] = f"{name}_dq"
        conv.input[0] = self.padded[source, pads]
        kept = [attribute for attribute in conv.attribute if attribute.name != "pads"]
        del conv.attribute[:]
        conv.attribute.extend(kept)

    def _weight_sums(self, node: onnx.NodeProto) -> F64 | None:
        """Per output channel, the sum of the weights as they are dequantized."""
        weights = self._weights(node.input[1])
        if weights is None:
            return None
        transposed = node.op_type == "Conv" or bool(_attribute(node, "transB", 0))
        weights = weights if transposed else weights.T
        found: F64 = weights.reshape(len(weights), -1).sum(axis=1)
        return found

    def _weights(self, tensor: str) -> F64 | None:
        if tensor in self.constants:
            return self._values(tensor).astype(np.float64)
        node = self._producer(tensor)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.constants:
            return None
        codes, scale = (self._values(name).astype(np.float64) for name in node.input[:2])
        shape = [1] * codes.ndim
        if scale.ndim:
            shape[int(_attribute(node, "axis", 1))] = -1
        found: F64 = codes * scale.reshape(shape)
        return found

    # The graph.

    def _producer(self, tensor: str) -> onnx.NodeProto | None:
        return next((node for node in self.nodes if tensor in node.output), None)

    def _readers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def _lonely(self, tensor: str) -> bool:
        return len(self._readers(tensor)) < 2 and tensor not in self.outputs

    def _values(self, constant: str) -> npt.NDArray[np.generic]:
        return numpy_helper.to_array(self.constants[constant])

    def _constant(self, name: str, values: npt.NDArray[np.generic] | np.generic) -> str:
        while name in self.constants:
            name += "_"
        tensor = numpy_helper.from_array(np.asarray(values), name)
        self.model.graph.initializer.append(tensor)
        self.constants[name] = self.model.graph.initializer[-1]
        return name

    def _add(self, tensor: str, value: float) -> str:
        """Insert an Add of a constant behind a tensor; its readers stay where they are."""
        name = f"{tensor}_{'lowered' if value < 0 else 'restored'}"
        while self._producer(name) is not None:
            name += "_"
        constant = self._constant(f"{name}_by", np.float32(value))
        self.inserted.add(constant)
        node = helper.make_node("Add", [tensor, constant], [name], f"{name}_Add")
        producer = self._producer(tensor)
        self.nodes.insert(0 if producer is None else self.nodes.index(producer) + 1, node)
        return name

    def _raise(self, node: onnx.NodeProto, values: F64) -> None:
        self.raised[node.name] = self.raised.get(node.name, np.zeros(())) + values

    def _raise_bias(self, node: onnx.NodeProto, values: F64) -> None:
        weights = self._weights(node.input[1])
        assert weights is not None, node.name
        channels = len(weights) if node.op_type == "Conv" or _attribute(node, "transB", 0) else weights.shape[1]
        old = node.input[2] if len(node.input) > 2 else ""
        before = self._values(old).astype(np.float64) if old else np.zeros(channels)
        name = self._constant(f"{node.name}.raised_bias", (before + values).astype(np.float32))
        del node.input[2:]
        node.input.append(name)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _redirect(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new
