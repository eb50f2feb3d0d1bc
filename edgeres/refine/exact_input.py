"""An input without quantization error: the first convolution reads the camera's byte minus 128.

``byte - 128`` is an int8 code, so with scale 1 its quantization is the identity. With x = (byte * ps - mean_c) / std_c
the normalized image and q = byte - 128, the first convolution's term for channel c is

    W_c x_c = (W_c ps / std_c) q_c + W_c (128 ps - mean_c) / std_c.

The second part is constant where the kernel lies inside the image. In the border the network was trained with x = 0,
which no byte stands for (ImageNet's red: 123.675), so both parts must be 0 there, and the second cannot join the bias.
It becomes the weights of a fourth channel that holds ``FILL`` inside the image and 0 in the border, as the other three:

    byte - 128 -> Pad(3 to 4 channels, with FILL) -> Conv(W'), W'_c = W_c ps / std_c,
                                                     W'_4 = sum_c W_c (128 ps - mean_c) / (std_c FILL)

That is exact everywhere. Alternatives, measured with ResNet-18 at 224x224: a constant map added behind the convolution
costs 3.2 MB of engine, a copy of the activation, and a float Add between integer kernels on ONNX Runtime; a border of
another value per channel takes Split, three Pads and Concat; a grey border is wrong by up to 0.99 of a logit
(resnet20). The fourth channel takes as many kernels as the FP32 image does, since INT8 convolutions of GPUs read
channels by fours anyway, and the same time on ONNX Runtime (5.2 ms).

Where the input must stay the normalized float image, it is converted back to bytes first, and the quantize behind
rounds away the error of the float arithmetic:

    x -> Mul(std / ps) -> Add(mean / ps - 128) -> Pad -> Q -> ...

This rounds an image that was resized in float to whole bytes, which is finer than int8 over its range: a step of
1 / (255 std) = 0.0174 against 2.64 / 127 = 0.0208 for ImageNet's red.

Worked number: ImageNet's red, byte 200: x = (200/255 - 0.485) / 0.229 = 1.307; q = 72 gives
72 / (255 * 0.229) + (128/255 - 0.485) / 0.229 = 1.233 + 0.074 = 1.307.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgeres.graph.graph import Graph
from edgeres.records import F32, Preprocess, Skipped, TensorRange

ZERO_BYTE = 128
# Large enough that the fourth channel's weights stay below the others' and no weight scale grows (with ImageNet's
# statistics they are at most 0.64 of them), and no larger: their rounding is multiplied by it.
FILL = 64
_NAME = "exact_input"
Interface = Literal["bytes", "normalized"]


@dataclass(frozen=True)
class ExactInput:
    """A network whose first convolution reads bytes; it computes the same as the original, up to float rounding.

    ``known`` is the range of the first convolution's input, which needs no measuring: [-128, 127] gives scale 1, for
    int8 with zero_point 0 and for uint8 with zero_point 128.
    """

    graph: ModelProto
    preprocess: Preprocess
    known: Mapping[str, TensorRange]


def exact_input(model: ModelProto, preprocess: Preprocess, interface: Interface = "bytes") -> ExactInput | Skipped:
    """Fold the normalization of ``preprocess`` into the first convolution; the model given is not changed.

    Between input and convolution there may be what exporters write there: Transpose (an NHWC image), Pad with zeros.

    Args:
        model: canonical FP32.
        preprocess: of the graph's input.
        interface: the input of the new graph: ``byte - 128`` as float32, or the ``normalized`` image as before.

    Returns:
        Skipped with the reason where another operator stands between the image and its first convolution.
    """
    graph = Graph.copy_of(model)
    path = _path_to_conv(graph)
    if isinstance(path, str):
        return Skipped("exact input", path)
    conv = path[-1]
    weight = graph.constant(conv.input[1]).astype(np.float64)
    mean, std = (np.array(values, np.float64).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    if weight.shape[1] != len(mean):
        return Skipped("exact input", f"{conv.name} does not read all {len(mean)} channels of the image at once")
    inside = weight * ((ZERO_BYTE * preprocess.pixel_scale - mean) / std)
    folded = np.concatenate([weight * (preprocess.pixel_scale / std), inside.sum(1, keepdims=True) / FILL], axis=1)
    channel_axis = 1 if preprocess.layout == "NCHW" else 3
    tensor = conv.input[0] if len(path) > 1 else _NAME
    known = {tensor: TensorRange(tensor, -float(ZERO_BYTE), ZERO_BYTE - 1.0, "exact", 0)}
    _add_fourth_channel(graph, path, folded.astype(np.float32), channel_axis)
    level = (float(ZERO_BYTE),) * len(mean)
    bytes_in = replace(preprocess, pixel_scale=1.0, mean=level, std=(1.0,) * len(mean))
    if interface == "normalized":
        _undo_normalization(graph, preprocess, channel_axis)
    graph.prune()
    return ExactInput(graph.model, preprocess if interface == "normalized" else bytes_in, known)


def _path_to_conv(graph: Graph) -> list[NodeProto] | str:
    """The nodes from the graph's input to its first Conv, or the reason why they cannot be followed."""
    path: list[NodeProto] = []
    tensor = graph.input
    while not path or path[-1].op_type != "Conv":
        readers = graph.consumers(tensor)
        if len(readers) != 1:
            return f"{tensor} has {len(readers)} readers, not one convolution"
        node = readers[0]
        if node.op_type == "Conv" and not graph.is_constant(node.input[1]):
            return f"the weights of {node.name} are not constant"
        if node.op_type not in {"Conv", "Transpose", "Pad"} or (node.op_type == "Pad" and not graph.keeps_codes(node)):
            return f"the image meets {node.op_type} before the first convolution"
        path.append(node)
        tensor = node.output[0]
    return path


def _add_fourth_channel(graph: Graph, path: list[NodeProto], weight: F32, channel_axis: int) -> None:
    """Pad the image with a channel that holds ``FILL``.

    Before:
        image (3 channels) -> Conv(W)
    After:
        image -> Pad(4 channels) -> Conv(W')
    """
    pads = np.zeros(8, np.int64)
    pads[4 + channel_axis] = 1
    inputs = [graph.input, graph.add_constant(f"{_NAME}.pads", pads)]
    inputs.append(graph.add_constant(f"{_NAME}.fill", np.float32(FILL)))
    graph.redirect(path[0], graph.input, _NAME)
    conv = path[-1]
    graph.set_inputs(conv, [conv.input[0], graph.add_constant(f"{_NAME}.weight", weight), *conv.input[2:]])
    graph.insert([helper.make_node("Pad", inputs, [_NAME], name=f"{_NAME}_Pad")])


def _undo_normalization(graph: Graph, preprocess: Preprocess, channel_axis: int) -> None:
    """Compute ``byte - 128`` from the normalized image, ahead of the Pad.

    Before:
        image -> Pad
    After:
        image -> Mul(std / ps) -> Add(mean / ps - 128) -> Pad
    """
    shape = [1] * 4
    shape[channel_axis] = -1
    mean, std = (np.array(values, np.float64).reshape(shape) for values in (preprocess.mean, preprocess.std))
    scale, shift = std / preprocess.pixel_scale, mean / preprocess.pixel_scale - ZERO_BYTE
    graph.add_constant(f"{_NAME}.scale", scale.astype(np.float32))
    graph.add_constant(f"{_NAME}.shift", shift.astype(np.float32))
    steps = [
        helper.make_node("Mul", [graph.input, f"{_NAME}.scale"], [f"{_NAME}.pixels"], name=f"{_NAME}_Mul"),
        helper.make_node("Add", [f"{_NAME}.pixels", f"{_NAME}.shift"], [f"{_NAME}.bytes"], name=f"{_NAME}_Add"),
    ]
    graph.redirect(graph.nodes[0], graph.input, f"{_NAME}.bytes")
    graph.insert(steps)
