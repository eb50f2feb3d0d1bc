"""Recognize a network on any machine.

A hash of the whole graph would differ between machines: exporting and folding batch norm is float arithmetic, and the
last bits of the weights depend on the processor. So exact parts are hashed, and float weights are summed.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeres.documents import is_sha256, require

if TYPE_CHECKING:
    import onnx

# Rounding changes the sums by about 1e-8 of the absolute sum; a training step changes them by far more.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Identity:
    """What identifies a network.

    Attributes:
        graph: SHA-256 of operators, attributes, names and shapes of tensors, and integer constants.
        weights: number of float weights.
        weights_sum, weights_sum_abs: sums over all float weights, in float64.
        name: for messages; it is not compared.
    """

    graph: str
    weights: int
    weights_sum: float
    weights_sum_abs: float
    name: str = ""

    def __post_init__(self) -> None:
        require(is_sha256(self.graph), "graph must have 64 hex digits")
        require(self.weights >= 0 and self.weights_sum_abs >= 0, "weights and weights_sum_abs must not be negative")

    def matches(self, other: Identity) -> bool:
        """Whether both are the same network, up to rounding of the weights."""
        return not self.difference(other)

    def difference(self, other: Identity) -> str:
        """How this network differs from ``other``, in words; "" where it does not."""
        of = f"it was made for {self.name}" if self.name else "it was made for another network"
        if (self.graph, self.weights) != (other.graph, other.weights):
            return f"{of}, whose graph differs"
        slack = TOLERANCE * max(self.weights_sum_abs, other.weights_sum_abs)
        sums = (self.weights_sum, other.weights_sum), (self.weights_sum_abs, other.weights_sum_abs)
        return "" if all(math.isclose(*pair, rel_tol=0, abs_tol=slack) for pair in sums) else f"{of} with other weights"


def identify(model: onnx.ModelProto, name: str = "") -> Identity:
    """The identity of a graph."""
    from onnx import numpy_helper

    hasher = hashlib.sha256()
    count, total, absolute = 0, 0.0, 0.0
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        values = numpy_helper.to_array(tensor)
        hasher.update(repr((tensor.name, values.shape, str(values.dtype))).encode())
        if values.dtype.kind == "f":
            count += values.size
            total += float(values.sum(dtype=np.float64))
            absolute += float(np.abs(values).sum(dtype=np.float64))
        else:
            hasher.update(values.tobytes())
    for node in model.graph.node:
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        hasher.update(repr((node.domain, node.op_type, list(node.input), list(node.output), attributes)).encode())
    for value in (*model.graph.input, *model.graph.output):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        hasher.update(repr((value.name, value.type.tensor_type.elem_type, dims)).encode())
    return Identity(hasher.hexdigest(), count, total, absolute, name)
