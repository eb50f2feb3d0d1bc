"""An input without quantization error: the first convolution takes the camera's byte minus 128.

``byte - 128`` is an int8 code, so with scale 1 its quantization is the identity. With x = (byte * ps - mean_c) / std_c
the normalized image and q = byte - 128, the first convolution's term for channel c is

    W_c x_c = (W_c ps / std_c) q_c + W_c (128 ps - mean_c) / std_c.

The second part is constant where the kernel lies inside the image. In the border the network was trained with x = 0,
which is no byte (ImageNet's red: 123.675), and both parts are missing there; so it cannot join the bias. It becomes the
weights of a fourth channel that holds ``FILL`` inside the image and, as the other three, 0 in the border:

    byte - 128 -> Pad(3 to 4 channels, with FILL) -> Conv(W'), W'_c = W_c ps / std_c,
                                                     W'_4 = sum_c W_c (128 ps - mean_c) / (std_c FILL)

That is exact everywhere. Alternatives, measured with ResNet-18 at 224x224: a constant map added behind the convolution
costs 3.2 MB of engine, a copy of the activation, and a float Add between integer kernels on ONNX Runtime; a border of
another value per channel takes Split, three Pads and Concat; a grey border is wrong by up to 0.99 of a logit
(resnet20). The fourth channel takes as many kernels as the FP32 image does, since INT8 convolutions of GPUs read
channels by fours anyway, and the same time on ONNX Runtime (5.2 ms).

Where the network's interface is to stay the normalized float image, the way back to bytes goes ahead of it, and the
quantize behind it rounds away what the float arithmetic left over:

    x -> Mul(std / ps) -> Add(mean / ps - 128) -> Pad -> Q -> ...

An image that was resized in float is rounded to whole bytes by that, which is finer than int8 over its range: a step of
1 / (255 std) = 0.0174 against 2.64 / 127 = 0.0208 for ImageNet's red.

Worked number: ImageNet's red, byte 200: x = (200/255 - 0.485) / 0.229 = 1.307; q = 72 gives
72 / (255 * 0.229) + (128/255 - 0.485) / 0.229 = 1.233 + 0.074 = 1.307.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeres.graph.graph import GraphView, prune
from edgeres.records import F32, Preprocess, Skipped, TensorRange

ZERO_BYTE = 128
# Large enough that the fourth channel's weights stay below the others' and no weight scale grows (with ImageNet's
# statistics they are at most 0.64 of them), and no larger: their rounding is multiplied by it.
FILL = 64
_NAME = "exact_input"
Interface = Literal["bytes", "normalized"]


@dataclass(frozen=True)
class ExactInput:
    """A network that takes bytes.

    Attributes:
        graph: computes from ``byte - 128`` (float32 integers) what the original does, to float rounding.
        preprocess: gives that input.
        known: the range of the first convolution's input, not to be measured: [-128, 127] is scale 1 for int8 with
            zero_point 0 as for uint8 with zero_point 128.
    """

    graph: onnx.ModelProto
    preprocess: Preprocess
    known: Mapping[str, TensorRange]


def exact_input(graph: onnx.ModelProto, preprocess: Preprocess, interface: Interface = "bytes") -> ExactInput | Skipped:
    """Fold the normalization of ``preprocess`` into the first convolution; the graph given is not changed.

    Between input and convolution there may be what exporters write there: Transpose (an NHWC image), Pad with zeros.

    Args:
        graph: canonical FP32.
        preprocess: of the graph's input.
        interface: what the new graph takes: ``byte - 128`` as float32, or the ``normalized`` image as before.

    Returns:
        Skipped with the reason where the image meets anything else first.
    """
    view = GraphView(graph)
    path = _path_to_conv(view)
    if isinstance(path, str):
        return Skipped("exact input", path)
    conv = path[-1]
    weight = view.constant(conv.input[1]).astype(np.float64)
    mean, std = (np.array(values, np.float64).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    if weight.shape[1] != len(mean):
        return Skipped("exact input", f"{conv.name} does not read all {len(mean)} channels of the image at once")
    inside = weight * ((ZERO_BYTE * preprocess.pixel_scale - mean) / std)
    folded = np.concatenate([weight * (preprocess.pixel_scale / std), inside.sum(1, keepdims=True) / FILL], axis=1)
    channel_axis = 1 if preprocess.layout == "NCHW" else 3
    tensor = conv.input[0] if len(path) > 1 else _NAME
    known = {tensor: TensorRange(tensor, -float(ZERO_BYTE), ZERO_BYTE - 1.0, "exact", 0)}
    made = _with_fourth_channel(graph, path, folded.astype(np.float32), channel_axis)
    if interface == "normalized":
        return ExactInput(_from_normalized(made, preprocess, channel_axis), preprocess, known)
    level = (float(ZERO_BYTE),) * len(mean)
    return ExactInput(made, replace(preprocess, pixel_scale=1.0, mean=level, std=(1.0,) * len(mean)), known)


def _path_to_conv(view: GraphView) -> list[onnx.NodeProto] | str:
    """The nodes from the graph's input to its first Conv, or why there is no such way."""
    path: list[onnx.NodeProto] = []
    tensor = view.input
    while not path or path[-1].op_type != "Conv":
        readers = view.consumers(tensor)
        if len(readers) != 1:
            return f"{tensor} has {len(readers)} readers, not one convolution"
        node = readers[0]
        if node.op_type == "Conv" and not view.is_constant(node.input[1]):
            return f"the weights of {node.name} are not constant"
        if node.op_type not in {"Conv", "Transpose", "Pad"} or (node.op_type == "Pad" and not view.keeps_codes(node)):
            return f"the image meets {node.op_type} before the first convolution"
        path.append(node)
        tensor = node.output[0]
    return path


def _with_fourth_channel(
    graph: onnx.ModelProto, path: list[onnx.NodeProto], weight: F32, channel_axis: int
) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    nodes = {node.name: node for node in result.graph.node}
    nodes[path[0].name].input[0] = _NAME
    nodes[path[-1].name].input[1] = f"{_NAME}.weight"
    pads = np.zeros(8, np.int64)
    pads[4 + channel_axis] = 1
    inputs = {f"{_NAME}.pads": pads, f"{_NAME}.fill": np.float32(FILL), f"{_NAME}.weight": weight}
    result.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in inputs.items())
    pad = helper.make_node("Pad", [graph.graph.input[0].name, *list(inputs)[:2]], [_NAME], name=f"{_NAME}_Pad")
    result.graph.node.insert(0, pad)
    prune(result.graph, [output.name for output in result.graph.output])
    return result


def _from_normalized(graph: onnx.ModelProto, preprocess: Preprocess, channel_axis: int) -> onnx.ModelProto:
    """The graph behind the way back from the normalized image to ``byte - 128``; ``graph`` is changed."""
    shape = [1] * 4
    shape[channel_axis] = -1
    mean, std = (np.array(values, np.float64).reshape(shape) for values in (preprocess.mean, preprocess.std))
    scale, shift = std / preprocess.pixel_scale, mean / preprocess.pixel_scale - ZERO_BYTE
    for name, values in (("scale", scale), ("shift", shift)):
        graph.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), f"{_NAME}.{name}"))
    first = graph.graph.node[0]
    steps = [
        helper.make_node("Mul", [first.input[0], f"{_NAME}.scale"], [f"{_NAME}.pixels"], name=f"{_NAME}_Mul"),
        helper.make_node("Add", [f"{_NAME}.pixels", f"{_NAME}.shift"], [f"{_NAME}.bytes"], name=f"{_NAME}_Add"),
    ]
    first.input[0] = f"{_NAME}.bytes"
    for node in reversed(steps):
        graph.graph.node.insert(0, node)
    return graph
