"""Convert an FP32 graph to FP16, for engines that INT8 is compared with."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from edgeres.errors import ModelError, needs

if TYPE_CHECKING:
    import onnx


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in float16, with float32 inputs and outputs and casts between.

    A strongly typed TensorRT network takes its precision from the graph, so an FP16 engine needs an FP16 graph.
    onnxruntime's converter clips weights to +-65504.

    Raises:
        ModelError: the graph is quantized.
        EnvironmentError_: onnx is not installed.
    """
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise needs("export", "onnx") from error

    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise ModelError("the graph is quantized", hint="make the FP16 graph from the float graph")
    converted: onnx.ModelProto = convert_float_to_float16(deepcopy(model), keep_io_types=True)  # it works in place
    return converted
