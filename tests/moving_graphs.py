"""Small residual networks whose channels move: what Reshape, Transpose, Split and the like do in published networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from foreign_graphs import CLASSES, PX, Writer


def channel_shuffle() -> onnx.ModelProto:
    """ShuffleNet's unit: half of the channels pass, half go through layers, and both halves are interleaved."""
    w = Writer()
    x = w.op("Relu", w.conv("data", (3, 16), stride=2, bias=True))
    left, right = f"left{PX}", f"right{PX}"
    w.nodes.append(onnx.helper.make_node("Split", [x, w.const([8, 8])], [left, right], name="halves", axis=1))
    y = w.op("Relu", w.conv(right, (8, 8), bias=True))
    y = w.op("Concat", left, y, axis=1)
    y = w.op("Reshape", y, w.const([-1, 2, 8, PX // 2, PX // 2]))
    y = w.op("Reshape", w.op("Transpose", y, perm=[0, 2, 1, 3, 4]), w.const([-1, 16, PX // 2, PX // 2]))
    y = w.op("Add", w.conv(y, (16, 16), bias=True), x)
    return w.model(w.head(w.op("Relu", y), 16))


def split_attention() -> onnx.ModelProto:
    """ResNeSt: the channels of two branches in one tensor, weighted by a softmax over the branches and summed."""
    w = Writer()
    x = w.op("Relu", w.conv("data", (3, 16), stride=2, bias=True))
    y = w.op("Relu", w.conv(x, (16, 32), group=2, bias=True))
    y = w.op("Reshape", y, w.const([0, 2, 16, PX // 2, PX // 2]))
    g = w.op("GlobalAveragePool", w.op("ReduceSum", y, w.const([1]), keepdims=0))
    a = w.conv(w.op("Relu", w.conv(g, (16, 8), 1, bias=True)), (8, 32), 1, bias=True)
    a = w.op("Softmax", w.op("Transpose", w.op("Reshape", a, w.const([0, 1, 2, 16])), perm=[0, 2, 1, 3]), axis=1)
    a = w.op("Reshape", a, w.const([0, 2, 16, 1, 1]))
    y = w.op("ReduceSum", w.op("Mul", y, a), w.const([1]), keepdims=0)
    return w.model(w.head(w.op("Relu", w.op("Add", w.conv(y, (16, 16), bias=True), x)), 16))


def channel_attention() -> onnx.ModelProto:
    """ECA: a convolution along the channels of the mean."""
    w = Writer()
    x = w.op("Relu", w.conv("data", (3, 16), stride=2, bias=True))
    mean = w.op("Transpose", w.op("Squeeze", w.op("GlobalAveragePool", x), w.const([-1])), perm=[0, 2, 1])
    gate = w.op("Conv", mean, w.random(1, 1, 3, std=0.5), kernel_shape=[3], pads=[1, 1])
    gate = w.op("Sigmoid", w.op("Unsqueeze", w.op("Transpose", gate, perm=[0, 2, 1]), w.const([-1])))
    y = w.op("Mul", x, w.op("Expand", gate, w.op("Shape", x)))
    return w.model(w.head(w.op("Relu", w.op("Add", w.conv(y, (16, 16), bias=True), x)), 16))


def channels_last_tail() -> onnx.ModelProto:
    """tf2onnx: the mean as an NHWC image, flattened, into a MatMul."""
    w = Writer()
    x = w.op("Relu", w.conv("data", (3, 16), stride=2, bias=True))
    x = w.op("Relu", w.op("Add", w.conv(x, (16, 16), bias=True), x))
    mean = w.op("Reshape", w.op("GlobalAveragePool", x), w.const([-1, 1, 1, 16]))
    return w.model(w.op("MatMul", w.op("Reshape", mean, w.const([-1, 16])), w.random(16, CLASSES)))


def computed_padding() -> onnx.ModelProto:
    """Pads from the image's size, as integers: (size + 1) // 2 outputs at stride 2."""
    w = Writer()
    size = w.op("Gather", w.op("Shape", "data"), w.const(np.int64(2)), axis=0)
    outputs = w.op("Div", w.op("Add", size, w.const(np.int64(1))), w.const(np.int64(2)))
    twice = w.op("Mul", w.op("Sub", outputs, w.const(np.int64(1))), w.const(np.int64(2)))
    total = w.op("Unsqueeze", w.op("Sub", w.op("Add", twice, w.const(np.int64(3))), size), w.const([0]))
    none = w.const(np.zeros(6, np.int64))
    x = w.op("Pad", "data", w.op("Concat", none, total, total, axis=0))
    x = w.op("Relu", w.conv(x, (3, 16), stride=2, bias=True, pads=[0] * 4))
    return w.model(w.head(w.op("Relu", w.op("Add", w.conv(x, (16, 16), bias=True), x)), 16))


def blocks_of_pixels() -> onnx.ModelProto:
    """Pixels moved into channels and back, a bilinear and a nearest Resize, and halves that are swapped by Gather."""
    w = Writer()
    x = w.op("Relu", w.conv(w.op("SpaceToDepth", "data", blocksize=2), (12, 16), bias=True))
    y = w.op("Relu", w.conv(w.op("DepthToSpace", x, blocksize=2), (4, 16), stride=4, bias=True))
    y = w.op("Gather", y, w.const(np.roll(np.arange(16), 8)), axis=1)
    scales = w.const(np.array([1, 1, 2, 2], np.float32))
    y = w.op("Add", w.op("Resize", y, "", scales, mode="linear"), w.op("Resize", y, "", scales, mode="nearest"))
    return w.model(w.head(w.op("Relu", w.op("Add", w.conv(y, (16, 16), bias=True), x)), 16))


def channels_last_block() -> onnx.ModelProto:
    """ConvNeXt: layer normalization and dense layers over the last axis."""
    w = Writer()
    x = w.op("Relu", w.conv("data", (3, 16), stride=2, bias=True))
    y = w.op("Transpose", w.conv(x, (16, 16), bias=True), perm=[0, 2, 3, 1])
    y = w.op("LayerNormalization", y, w.random(16, mean=1.0, std=0.1), w.random(16, std=0.1), axis=-1)
    y = w.op("Add", w.op("MatMul", y, w.random(16, 32, std=0.3)), w.random(32, std=0.1))
    y = w.op("Mul", y, w.op("Mul", w.const(np.float32(0.5)), w.op("Add", w.op("Erf", y), w.const(np.float32(1)))))
    y = w.op("Transpose", w.op("MatMul", y, w.random(32, 16, std=0.3)), perm=[0, 3, 1, 2])
    return w.model(w.head(w.op("Relu", w.op("Add", y, x)), 16))


MOVING: dict[str, Callable[[], onnx.ModelProto]] = {
    "channel shuffle": channel_shuffle,
    "split attention": split_attention,
    "channel attention": channel_attention,
    "channels last tail": channels_last_tail,
    "computed padding": computed_padding,
    "blocks of pixels": blocks_of_pixels,
    "channels last block": channels_last_block,
}
