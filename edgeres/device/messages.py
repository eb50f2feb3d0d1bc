"""Explain the vendor's error messages and tell the next step."""

from __future__ import annotations

import re

_START_FLOAT = "start from the float graph: edgeres quantize MODEL.onnx --target tensorrt"

# Pattern in the vendor's message, its meaning, the next step; the first match counts.
_MEANINGS = (
    (r"[Nn]on-zero zero point|only supports symmetric quantization", "zero_point is not 0", _START_FLOAT),
    (r"has type Int32 but must have type", "DequantizeLinear reads int32, a quantized bias", _START_FLOAT),
    (r"Scale coefficients must all be positive", "a scale is 0, negative or not a number", "calibrate again"),
    (r"number of scales is not equal", "the scales do not match the channels of the axis", "check the node's axis"),
    (r"input type of UINT8|legalUINT8", "uint8 inside the graph", _START_FLOAT),
    (r"unsupported datatype|import initializer", "weights of a type that it does not support", "export in float32"),
    (r"data type|date type", "a data type that it does not support", "export the graph in float32"),
    (r"Plugin not found|^false$|No importer registered", "it does not support this operator", _START_FLOAT),
    (r"violate shape constraints", "a layer cannot take the sizes asked for", "check the input's size and the batch"),
    (r"within workspace limit|any implementation", "a layer does not fit into the workspace", "raise the workspace"),
    (r"[Oo]ut ?[Oo]f ?[Mm]emory", "not enough memory", "lower the largest batch, or close other programs"),
    (r"CUDA init|cudaError|Cuda Runtime", "the GPU or its driver does not work with it", "see: edgeres doctor"),
)
# Printed with every error where there is no GPU, although RTX needs none to build.
_NOISE = re.compile(r"^Invalid Node - |catchCudaError")
_FRAME = re.compile(r"^.*Error Code \d+: [\w ]+\(| In \w+ at \S+$")


def explain(message: str) -> tuple[str, str]:
    """The meaning of a message and the next step; an unknown message is returned without its C++ location.

    >>> explain("Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported.")[0]
    'zero_point is not 0'
    >>> explain("IBuilder::f: Error Code 4: Internal Error (x: too many axes. In g at /_src/h.cpp:1)")[0]
    'x: too many axes.'
    """
    lines = [line for line in message.splitlines() if not _NOISE.search(line)] or [message]
    lines = [line.removeprefix("Assertion failed: ").strip() for line in lines]
    for pattern, what, hint in _MEANINGS:
        if any(re.search(pattern, line) for line in lines):
            return what, hint
    return _FRAME.sub("", lines[0]), "--debug shows the vendor's log"
