"""Small ResNets with random weights, each written the way one exporter or one family of models is written.

What is imitated was read off files and sources of the exporters named: operators, opset and IR version, where constants
live, how pads, batch and the head are expressed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10
PX = 32
Activation = Callable[["Writer", str], str]


class Writer:
    """Writes layers one behind the other; every method returns the name of the tensor it made."""

    def __init__(self, *, constants: Literal["initializer", "node"] = "initializer", opset: int = 17) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.opset = opset
        self._constants = constants
        self._rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def const(self, values: Any) -> str:
        tensor = numpy_helper.from_array(np.asarray(values), f"const_{len(self.nodes)}_{len(self.initializers)}")
        if self._constants == "node":
            return self.op("Constant", value=tensor)
        self.initializers.append(tensor)
        return tensor.name

    def random(self, *shape: int, mean: float = 0.0, std: float = 1.0) -> str:
        return self.const((mean + std * self._rng.standard_normal(shape)).astype(np.float32))

    def conv(self, x: str, channels: tuple[int, int], kernel: int = 3, stride: int = 1, **attributes: Any) -> str:
        """``bias=True`` adds one; pads are half a kernel unless the attributes say otherwise."""
        fan_in = channels[0] // attributes.get("group", 1) * kernel * kernel
        weight = self.random(channels[1], fan_in // kernel**2, kernel, kernel, std=float(np.sqrt(2 / fan_in)))
        bias = [self.random(channels[1], std=0.1)] if attributes.pop("bias", False) else []
        if "auto_pad" not in attributes:
            attributes.setdefault("pads", [kernel // 2] * 4)
        return self.op("Conv", x, weight, *bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, **attributes)

    def bn(self, x: str, channels: int, **attributes: Any) -> str:
        scale, variance = (self.const(self._rng.uniform(0.5, 1.5, channels).astype(np.float32)) for _ in range(2))
        shift, mean = self.random(channels, std=0.1), self.random(channels, std=0.1)
        return self.op("BatchNormalization", x, scale, shift, mean, variance, epsilon=1e-5, **attributes)

    def head(self, x: str, channels: int) -> str:
        """Global mean, Flatten, Gemm."""
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.op("Gemm", flat, self.random(CLASSES, channels), self.random(CLASSES), transB=1)

    def model(
        self,
        *outputs: str,
        shape: Sequence[int | str | None] = ("N", 3, PX, PX),
        output_shape: Sequence[int | str | None] | None = ("N", CLASSES),
        ir: int = 8,
        kind: int = TensorProto.FLOAT,
        initializers_as_inputs: bool = False,
    ) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info("data", kind, shape)]
        if initializers_as_inputs:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initializers]
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, output_shape) for name in outputs],
            self.initializers,
        )
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def relu(w: Writer, x: str) -> str:
    return w.op("Relu", x)


def basic_block(w: Writer, x: str, channels: tuple[int, int], act: Activation = relu, **conv: Any) -> str:
    """conv, bn, act, conv, bn, plus a projection where the number of channels changes."""
    stride = 1 if channels[0] == channels[1] else 2
    main = act(w, w.bn(w.conv(x, channels, stride=stride), channels[1]))
    main = w.bn(w.conv(main, (channels[1], channels[1]), **conv), channels[1])
    skip = x if stride == 1 else w.bn(w.conv(x, channels, 1, stride), channels[1])
    return act(w, w.op("Add", main, skip))


def body(w: Writer, x: str, act: Activation = relu, **conv: Any) -> str:
    """Stem with max pooling, an identity block of 16 channels, a projection block to 32."""
    x = act(w, w.bn(w.conv(x, (3, 16), stride=2), 16))
    x = w.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return basic_block(w, basic_block(w, x, (16, 16), act, **conv), (16, 32), act, **conv)


def mxnet_v1() -> onnx.ModelProto:
    """The ONNX model zoo's resnet*-v1-7: opset 7, IR 3, initializers among the inputs, fixed batch, no shape inside."""
    w = Writer(opset=7)
    x = relu(w, w.bn(w.conv("data", (3, 16), 7, 2), 16, momentum=0.9))
    x = w.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for channels in ((16, 16), (16, 32)):
        x = basic_block(w, x, channels)
    flat = w.op("Flatten", w.op("GlobalAveragePool", x))
    y = w.op("Gemm", flat, w.random(CLASSES, 32), w.random(CLASSES), alpha=1.0, beta=1.0, transA=0, transB=1)
    return w.model(y, shape=(1, 3, PX, PX), output_shape=(1, CLASSES), ir=3, initializers_as_inputs=True)


def mxnet_v2() -> onnx.ModelProto:
    """resnet*-v2-7: pre-activation, and a batch norm on the image itself."""
    w = Writer(opset=7)
    x = w.conv(w.bn("data", 3), (3, 16), stride=2)
    for channels in ((16, 16), (16, 32)):
        stride = 1 if channels[0] == channels[1] else 2
        ready = relu(w, w.bn(x, channels[0]))
        main = relu(w, w.bn(w.conv(ready, channels, stride=stride), channels[1]))
        main = w.conv(main, (channels[1], channels[1]))
        x = w.op("Add", main, x if stride == 1 else w.conv(ready, channels, 1, stride))
    y = w.head(relu(w, w.bn(x, 32)), 32)
    return w.model(y, ir=3, initializers_as_inputs=True)


def caffe2(opset: int = 7) -> onnx.ModelProto:
    """resnet50-caffe2: Sum for the residual, a mean over a fixed window, Reshape to (1, C), Softmax without axis."""
    w = Writer(opset=opset)
    x = relu(w, w.bn(w.conv("data", (3, 16), 7, 2), 16))
    x = w.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for channels in ((16, 16), (16, 32)):
        x = basic_block(w, x, channels)
    for node in w.nodes:
        if node.op_type == "Add":
            node.op_type = "Sum"
    flat = w.op("Reshape", w.op("AveragePool", x, kernel_shape=[4, 4], strides=[1, 1]), w.const([1, 32]))
    y = w.op("Softmax", w.op("Gemm", flat, w.random(CLASSES, 32, std=0.1), w.random(CLASSES), transB=1))
    return w.model(y, shape=(1, 3, PX, PX), output_shape=(1, CLASSES), ir=3, initializers_as_inputs=True)


def dynamo() -> onnx.ModelProto:
    """torch's graph-capturing exporter: opset 20, IR 10, ReduceMean with axes as an input, Reshape with allowzero."""
    w = Writer(opset=20)
    x = body(w, "data")
    mean = w.op("ReduceMean", x, w.const([-1, -2]), keepdims=1, noop_with_empty_axes=0)
    size = w.op("Concat", w.op("Shape", "data", start=0, end=1), w.const([32]), axis=0)
    flat = w.op("Reshape", mean, size, allowzero=1)
    y = w.op("Gemm", flat, w.random(CLASSES, 32), w.random(CLASSES), alpha=1.0, beta=1.0, transA=0, transB=1)
    return w.model(y, shape=("s77", 3, PX, PX), output_shape=("s77", CLASSES), ir=10)


def tf2onnx(opset: int = 13) -> onnx.ModelProto:
    """Keras through tf2onnx: an NHWC image, SAME padding (one-sided at stride 2), MatMul and Add, Softmax."""
    w = Writer(opset=opset)
    x = w.op("Transpose", "data", perm=[0, 3, 1, 2])
    pads = w.const(np.array([0, 0, 3, 3, 0, 0, 3, 3], np.int64))
    x = w.conv(w.op("Pad", x, pads), (3, 16), 7, 2, pads=[0, 0, 0, 0], bias=True)
    pads = w.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    x = w.op("MaxPool", w.op("Pad", relu(w, x), pads), kernel_shape=[3, 3], strides=[2, 2])
    main = relu(w, w.conv(x, (16, 32), 3, 2, auto_pad="SAME_UPPER", bias=True))
    main = w.conv(main, (32, 32), auto_pad="SAME_UPPER", bias=True)
    x = relu(w, w.op("Add", w.conv(x, (16, 32), 1, 2, auto_pad="SAME_UPPER", bias=True), main))
    main = w.conv(relu(w, w.conv(x, (32, 16), 1, bias=True)), (16, 32), pads=[1, 1, 1, 1], bias=True)
    x = relu(w, w.op("Add", x, main))
    mean = w.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    y = w.op("Softmax", w.op("Add", w.op("MatMul", mean, w.random(32, CLASSES, std=0.05)), w.random(CLASSES)), axis=-1)
    return w.model(y, shape=("unk__1", PX, PX, 3), output_shape=("unk__2", CLASSES), ir=7)


def keras_pixels() -> onnx.ModelProto:
    """A Keras model with its preprocessing inside: raw RGB pixels, flipped to BGR, mean subtracted; Squeeze."""
    w = Writer(opset=15)
    flipped = w.op("Gather", "data", w.const([2, 1, 0]), axis=3)
    centred = w.op("Sub", flipped, w.const(np.array([103.939, 116.779, 123.68], np.float32)))
    x = w.op("Mul", centred, w.const(np.float32(1 / 64)))
    x = body(w, w.op("Transpose", x, perm=[0, 3, 1, 2]))
    flat = w.op("Squeeze", w.op("GlobalAveragePool", x), w.const([2, 3]))
    y = w.op("Add", w.op("MatMul", flat, w.random(32, CLASSES)), w.random(CLASSES))
    return w.model(y, shape=(None, PX, PX, 3), output_shape=(None, CLASSES))


def uint8_pixels() -> onnx.ModelProto:
    """A camera's bytes: uint8 NHWC, cast, moved and normalized inside."""
    w = Writer()
    x = w.op("Transpose", w.op("Cast", "data", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = w.op("Div", x, w.const(np.float32(255)))
    x = w.op("Sub", x, w.const(np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)))
    x = w.op("Div", x, w.const(np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)))
    return w.model(w.head(body(w, x), 32), shape=("N", PX, PX, 3), kind=TensorProto.UINT8)


def paddle() -> onnx.ModelProto:
    """paddle2onnx: every constant a node, ResNet-vd with a ceil-mode mean in the shortcut, the head's size computed."""
    w = Writer(opset=11, constants="node")
    x = relu(w, w.bn(w.conv("data", (3, 8), 3, 2), 8, momentum=0.9))
    x = relu(w, w.bn(w.conv(x, (8, 16)), 16))
    x = w.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=0)
    x = basic_block(w, x, (16, 16))
    main = relu(w, w.bn(w.conv(x, (16, 32), stride=2), 32))
    main = w.bn(w.conv(main, (32, 32)), 32)
    mean = w.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=0)
    x = relu(w, w.op("Add", w.bn(w.conv(mean, (16, 32), 1), 32), main))
    pooled = w.op("GlobalAveragePool", x)
    batch = w.op("Slice", w.op("Shape", pooled), w.const([0]), w.const([1]), w.const([0]))
    flat = w.op("Reshape", pooled, w.op("Concat", batch, w.const([-1]), axis=0))
    y = w.op("Add", w.op("MatMul", flat, w.random(32, CLASSES, std=0.1)), w.random(CLASSES))
    return w.model(w.op("Identity", w.op("Softmax", y, axis=1)), shape=(-1, 3, PX, PX), output_shape=(-1, CLASSES))


def torchscript(opset: int = 9) -> onnx.ModelProto:
    """torch's tracing exporter with ``x.view(x.size(0), -1)``: Shape, Gather, Unsqueeze, Concat, Reshape; Dropout."""
    w = Writer(opset=opset, constants="node")
    pooled = w.op("GlobalAveragePool", body(w, "data"))
    batch = w.op("Gather", w.op("Shape", pooled), w.const(np.int64(0)), axis=0)
    batch, rest = w.op("Unsqueeze", batch, axes=[0]), w.op("Unsqueeze", w.const(np.int64(-1)), axes=[0])
    flat = w.op("Dropout", w.op("Reshape", pooled, w.op("Concat", batch, rest, axis=0)), ratio=0.5)
    y = w.op("Gemm", flat, w.random(CLASSES, 32), w.random(CLASSES), transB=1)
    return w.model(y, shape=("batch", 3, PX, PX), output_shape=("batch", CLASSES), ir=4)


def squeeze_excite() -> onnx.ModelProto:
    """SE-ResNet: the main branch is scaled per channel before it meets the skip."""

    def block(w: Writer, x: str, channels: tuple[int, int]) -> str:
        stride = 1 if channels[0] == channels[1] else 2
        main = relu(w, w.bn(w.conv(x, channels, stride=stride), channels[1]))
        main = w.bn(w.conv(main, (channels[1], channels[1])), channels[1])
        gate = relu(w, w.conv(w.op("GlobalAveragePool", main), (channels[1], 8), 1, bias=True))
        main = w.op("Mul", main, w.op("Sigmoid", w.conv(gate, (8, channels[1]), 1, bias=True)))
        skip = x if stride == 1 else w.bn(w.conv(x, channels, 1, stride), channels[1])
        return relu(w, w.op("Add", main, skip))

    w = Writer()
    x = relu(w, w.bn(w.conv("data", (3, 16), stride=2), 16))
    return w.model(w.head(block(w, block(w, x, (16, 16)), (16, 32)), 32))


def option_a() -> onnx.ModelProto:
    """He et al.'s shortcut without weights: every other pixel, zero channels on both sides."""
    w = Writer()
    x = relu(w, w.bn(w.conv("data", (3, 16)), 16))
    x = basic_block(w, x, (16, 16))
    main = relu(w, w.bn(w.conv(x, (16, 32), stride=2), 32))
    main = w.bn(w.conv(main, (32, 32)), 32)
    every_other = w.op("Slice", x, w.const([0, 0]), w.const([2**62, 2**62]), w.const([2, 3]), w.const([2, 2]))
    skip = w.op("Pad", every_other, w.const([0, 8, 0, 0, 0, 8, 0, 0]), w.const(np.float32(0)))
    return w.model(w.head(relu(w, w.op("Add", main, skip)), 32))


def option_a_concat() -> onnx.ModelProto:
    """The same by ``torch.cat((x, torch.zeros_like(x)), 1)``: zeros of the batch's size are made at run time."""
    w = Writer()
    x = relu(w, w.bn(w.conv("data", (3, 16)), 16))
    main = relu(w, w.bn(w.conv(x, (16, 32), stride=2), 32))
    main = w.bn(w.conv(main, (32, 32)), 32)
    half = w.op("AveragePool", x, kernel_shape=[1, 1], strides=[2, 2])
    skip = w.op("Concat", half, w.op("ConstantOfShape", w.op("Shape", half)), axis=1)
    return w.model(w.head(relu(w, w.op("Add", main, skip)), 32))


def bottleneck(group: int = 1, dilation: int = 1) -> onnx.ModelProto:
    """1x1, 3x3, 1x1 with groups (ResNeXt) or dilation (segmentation backbones)."""
    w = Writer()
    x = relu(w, w.bn(w.conv("data", (3, 16), stride=2), 16))
    for channels in ((16, 32), (32, 32)):
        main = relu(w, w.bn(w.conv(x, (channels[0], 16), 1), 16))
        spread = {"dilations": [dilation] * 2, "pads": [dilation] * 4}
        main = relu(w, w.bn(w.conv(main, (16, 16), group=group, **spread), 16))
        main = w.bn(w.conv(main, (16, 32), 1), 32)
        skip = x if channels[0] == 32 else w.bn(w.conv(x, channels, 1), 32)
        x = relu(w, w.op("Add", main, skip))
    return w.model(w.head(x, 32))


def activated(name: str) -> onnx.ModelProto:
    """A ResNet with another activation than ReLU."""

    def act(w: Writer, x: str) -> str:
        if name == "Clip":
            return w.op("Clip", x, w.const(np.float32(0)), w.const(np.float32(6)))
        if name == "LeakyRelu":
            return w.op("LeakyRelu", x, alpha=0.1)
        if name == "PRelu":
            return w.op("PRelu", x, w.const(np.full((1, 1, 1), 0.25, np.float32)))
        if name == "Silu":
            return w.op("Mul", x, w.op("Sigmoid", x))
        return w.op(name, x)

    w = Writer()
    return w.model(w.head(body(w, "data", act), 32))


def three_way() -> onnx.ModelProto:
    """Two branches and a skip in one sum, written as nested Adds and as one Sum; batch norm on the sum."""
    w = Writer()
    x = relu(w, w.bn(w.conv("data", (3, 16), stride=2), 16))
    branches = [w.bn(w.conv(relu(w, w.conv(x, (16, 16), bias=True)), (16, 16)), 16) for _ in range(2)]
    x = relu(w, w.op("Add", w.op("Add", *branches), x))
    branches = [w.bn(w.conv(relu(w, w.conv(x, (16, 16), bias=True)), (16, 16)), 16) for _ in range(2)]
    x = relu(w, w.bn(w.op("Sum", *branches, x), 16))
    return w.model(w.head(x, 16))


def loose_constants() -> onnx.ModelProto:
    """Batch norm taken apart into Mul and Add, bias as an Add, one Reshape target for both the head and a constant."""
    w = Writer()

    def conv(x: str, channels: tuple[int, int], kernel: int = 3, stride: int = 1) -> str:
        scaled = w.op("Mul", w.conv(x, channels, kernel, stride), w.random(channels[1], 1, 1, mean=1, std=0.1))
        return w.op("Add", scaled, w.random(1, channels[1], 1, 1, std=0.1))

    x = relu(w, conv("data", (3, 16), 3, 2))
    x = relu(w, w.op("Add", conv(relu(w, conv(x, (16, 16))), (16, 16)), x))
    x = relu(w, w.op("Add", conv(x, (16, 32), 1, 2), conv(relu(w, conv(x, (16, 32), 3, 2)), (32, 32))))
    target = w.const([4, 32])
    shift = w.op("Reshape", w.random(4, 32, 1, 1), target)
    flat = w.op("Add", w.op("Reshape", w.op("GlobalAveragePool", x), target), w.op("Slice", shift, *_row(w)))
    y = w.op("Gemm", flat, w.random(32, CLASSES), w.random(CLASSES))
    return w.model(y, shape=(4, 3, PX, PX), output_shape=(4, CLASSES))


def _row(w: Writer) -> tuple[str, str, str]:
    return w.const([0]), w.const([1]), w.const([0])


def convolutional_head() -> onnx.ModelProto:
    """timm's or Caffe's fully convolutional head: the output is (N, classes, 1, 1)."""
    w = Writer()
    y = w.conv(w.op("GlobalAveragePool", body(w, "data")), (32, CLASSES), 1, bias=True)
    return w.model(y, output_shape=("N", CLASSES, 1, 1))


def two_outputs() -> onnx.ModelProto:
    """Features and scores, features first."""
    w = Writer()
    flat = w.op("Flatten", w.op("GlobalAveragePool", body(w, "data")))
    y = w.op("Gemm", flat, w.random(CLASSES, 32), w.random(CLASSES), transB=1)
    model = w.model(flat, y)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(flat, TensorProto.FLOAT, ("N", 32)))
    return model


def local_function() -> onnx.ModelProto:
    """A block as a model-local function, as torch 2.1 to 2.4 wrote modules."""
    w = Writer(opset=18)
    x = body(w, "data")
    w.nodes.append(helper.make_node("Shortcut", [x], ["shortcut:0"], name="shortcut", domain="pkg.torch"))
    model = w.model(w.head("shortcut:0", 32))
    inner = [helper.make_node("Relu", ["v"], ["r"]), helper.make_node("Add", ["r", "v"], ["w"])]
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("pkg.torch", "Shortcut", ["v"], ["w"], inner, opsets))
    model.opset_import.append(helper.make_opsetid("pkg.torch", 1))
    return model


FOREIGN: dict[str, Callable[[], onnx.ModelProto]] = {
    "mxnet v1, opset 7": mxnet_v1,
    "mxnet v2, opset 7": mxnet_v2,
    "caffe2, opset 7": caffe2,
    "torchscript, opset 9": torchscript,
    "paddle, opset 11": paddle,
    "tf2onnx, opset 13": tf2onnx,
    "keras pixels, opset 15": keras_pixels,
    "dynamo, opset 20": dynamo,
    "uint8 pixels": uint8_pixels,
    "local function": local_function,
    "squeeze and excite": squeeze_excite,
    "option A": option_a,
    "option A by Concat": option_a_concat,
    "three branches": three_way,
    "loose constants, batch 4": loose_constants,
    "convolutional head": convolutional_head,
    "two outputs": two_outputs,
    "bottleneck": bottleneck,
    "groups": lambda: bottleneck(group=4),
    "dilation": lambda: bottleneck(dilation=2),
    **{name: lambda name=name: activated(name) for name in ("Clip", "LeakyRelu", "PRelu", "HardSwish", "Silu", "Elu")},
}
