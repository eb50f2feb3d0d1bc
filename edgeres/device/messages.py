"""The vendor's error messages in words that a user can act on."""

from __future__ import annotations

import re

_START_FLOAT = "start from the float graph: edgeres quantize MODEL.onnx --target tensorrt"

# A pattern in the vendor's message, what it means, what to do next; the first match counts.
_WORDS = (
    (r"[Nn]on-zero zero point|only supports symmetric quantization", "zero_point is not 0", _START_FLOAT),
    (r"has type Int32 but must have type", "DequantizeLinear reads int32, a quantized bias", _START_FLOAT),
    (r"Scale coefficients must all be positive", "a scale is 0, negative or not a number", "calibrate again"),
    (r"number of scales is not equal", "the scales do not match the channels of the axis", "check the node's axis"),
    (r"input type of UINT8|legalUINT8", "uint8 inside the graph", _START_FLOAT),
    (r"unsupported datatype|import initializer", "weights of a data type it does not have", "export in float32"),
    (r"data type|date type", "a data type it does not have", "export the graph in float32"),
    (r"Plugin not found|^false$|No importer registered", "it does not have this operator", _START_FLOAT),
    (r"violate shape constraints", "a layer cannot take the sizes asked for", "check the input's size and the batch"),
    (r"within workspace limit|any implementation", "a layer does not fit into the workspace", "raise the workspace"),
    (r"[Oo]ut ?[Oo]f ?[Mm]emory", "not enough memory", "lower the largest batch, or close other programs"),
    (r"CUDA init|cudaError|Cuda Runtime", "the GPU or its driver does not work with it", "see: edgeres doctor"),
)
# Said beside every error where there is no GPU, though RTX needs none to build.
_NOISE = re.compile(r"^Invalid Node - |catchCudaError")
_FRAME = re.compile(r"^.*Error Code \d+: [\w ]+\(| In \w+ at \S+$")


def in_words(message: str) -> tuple[str, str]:
    """What happened and the next step. A message that is not known yet is passed on without its C++ frame.

    >>> in_words("Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported.")[0]
    'zero_point is not 0'
    >>> in_words("IBuilder::f: Error Code 4: Internal Error (x: too many axes. In g at /_src/h.cpp:1)")[0]
    'x: too many axes.'
    """
    lines = [line for line in message.splitlines() if not _NOISE.search(line)] or [message]
    lines = [line.removeprefix("Assertion failed: ").strip() for line in lines]
    for pattern, what, hint in _WORDS:
        if any(re.search(pattern, line) for line in lines):
            return what, hint
    return _FRAME.sub("", lines[0]), "--debug shows the vendor's log"
