"""ONNX operators and fake quantization in torch, compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import foreign_graphs
import hypothesis.extra.numpy as hnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeres.calibrate.forward import with_outputs
from edgeres.errors import ModelError
from edgeres.graph.graph import Graph
from edgeres.graph.normalize import normalize
from edgeres.quantize.affine import affine_uint8, codes, symmetric_int8
from edgeres.quantize.placement import place
from edgeres.quantize.plan import make_plan, plan_digest
from edgeres.records import QuantParams, Style, TensorRange
from edgeres.refine.blocks import Block, whole
from edgeres.refine.candidate import CandidatePlan
from edgeres.refine.torch_graph import FakeQuantizer, TorchGraph

Maker = Callable[[], onnx.ModelProto]
GRAPHS: list[Maker] = [
    foreign_graphs.mxnet_v1,
    foreign_graphs.mxnet_v2,
    foreign_graphs.caffe2,
    foreign_graphs.dynamo,
    foreign_graphs.tf2onnx,
    foreign_graphs.paddle,
    foreign_graphs.squeeze_excite,
    foreign_graphs.option_a,
    lambda: foreign_graphs.bottleneck(group=4),
    lambda: foreign_graphs.bottleneck(dilation=2),
    foreign_graphs.three_way,
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def single(
    op: str, shape: tuple[int, ...], constants: list[Any], opset: int, attributes: dict[str, Any], kind: int = 1
) -> Any:
    """A graph of one node ``y = op(x, *constants)``; None stands for an optional input that is left out.

    With ``outputs`` among the attributes it has so many, y0 and so on; x has the type ``kind``.
    """
    names = ["" if value is None else f"c{i}" for i, value in enumerate(constants)]
    count = attributes.get("outputs", 1)
    outputs = ["y"] if count == 1 else [f"y{i}" for i in range(count)]
    attributes = {name: value for name, value in attributes.items() if name != "outputs"}
    node = helper.make_node(op, ["x", *names], outputs, name="node", **attributes)
    found = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        found,
        [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names, constants, strict=True) if n],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def normal(*shape: int) -> np.ndarray:
    return rng(1).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


IMAGE = (2, 6, 9, 8)
CASES: dict[str, tuple[str, tuple[int, ...], list[Any], int, dict[str, Any]]] = {
    "conv grouped": ("Conv", IMAGE, [normal(4, 3, 3, 3), normal(4)], 17, {"group": 2, "pads": [1, 2, 1, 2]}),
    "conv uneven": ("Conv", IMAGE, [normal(4, 6, 3, 3)], 17, {"pads": [0, 1, 1, 2], "strides": [2, 1]}),
    "conv dilated": ("Conv", IMAGE, [normal(4, 6, 3, 3)], 17, {"dilations": [2, 1]}),
    "conv same": ("Conv", IMAGE, [normal(4, 6, 3, 2)], 17, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv same lower": ("Conv", IMAGE, [normal(4, 6, 4, 3)], 17, {"auto_pad": "SAME_LOWER"}),
    "max pool same": ("MaxPool", IMAGE, [], 17, {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    "gemm": ("Gemm", (3, 5), [normal(4, 5), normal(4)], 17, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "gemm transposed": ("Gemm", (5, 3), [normal(5, 4)], 17, {"transA": 1}),
    "matmul": ("MatMul", (3, 5), [normal(5, 4)], 17, {}),
    "max pool": ("MaxPool", IMAGE, [], 17, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max pool uneven": ("MaxPool", IMAGE, [], 17, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "max pool ceil": ("MaxPool", IMAGE, [], 17, {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "average pool": ("AveragePool", IMAGE, [], 17, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average counted": (
        "AveragePool",
        IMAGE,
        [],
        17,
        {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1},
    ),
    "global average": ("GlobalAveragePool", IMAGE, [], 17, {}),
    "mean by attribute": ("ReduceMean", IMAGE, [], 17, {"axes": [2, 3], "keepdims": 0}),
    "mean by input": ("ReduceMean", IMAGE, [ints(-1, -2)], 18, {}),
    "mean of all": ("ReduceMean", IMAGE, [], 17, {}),
    "flatten": ("Flatten", IMAGE, [], 17, {}),
    "flatten at 3": ("Flatten", IMAGE, [], 17, {"axis": 3}),
    "flatten at 0": ("Flatten", IMAGE, [], 17, {"axis": 0}),
    "reshape": ("Reshape", IMAGE, [ints(0, -1)], 17, {}),
    "slice": ("Slice", IMAGE, [ints(1, 0), ints(2**31, -1), ints(-1, 2), ints(2, 3)], 17, {}),
    "slice without axes": ("Slice", IMAGE, [ints(0, 2), ints(2, 5)], 17, {}),
    "pad": ("Pad", IMAGE, [ints(0, 1, 2, 3, 0, 0, 1, 2), np.float32(0.5)], 17, {}),
    "pad by axes": ("Pad", IMAGE, [ints(1, 2), None, ints(1)], 18, {}),
    "pad reflected": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 1)], 17, {"mode": "reflect"}),
    "pad by edge": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 1)], 17, {"mode": "edge"}),
    "batch norm": (
        "BatchNormalization",
        IMAGE,
        [normal(6), normal(6), normal(6), np.abs(normal(6))],
        17,
        {"epsilon": 0.1},
    ),
    "clip": ("Clip", IMAGE, [np.float32(0), np.float32(0.6)], 17, {}),
    "clip above": ("Clip", IMAGE, [None, np.float32(0.6)], 17, {}),
    "softmax": ("Softmax", IMAGE, [], 17, {"axis": 1}),
    "transpose": ("Transpose", IMAGE, [], 17, {"perm": [0, 2, 3, 1]}),
    "transpose reversed": ("Transpose", IMAGE, [], 17, {}),
    "squeeze": ("Squeeze", (2, 3, 1, 1), [ints(2, -1)], 17, {}),
    "unsqueeze": ("Unsqueeze", (2, 3), [ints(-1, 2)], 17, {}),
    "add": ("Add", IMAGE, [normal(6, 1, 1)], 17, {}),
    "mul": ("Mul", IMAGE, [normal(6, 1, 1)], 17, {}),
    "sub": ("Sub", IMAGE, [normal(6, 1, 1)], 17, {}),
    "div": ("Div", IMAGE, [normal(6, 1, 1) + 5], 17, {}),
    "elu": ("Elu", IMAGE, [], 17, {"alpha": 0.7}),
    "leaky relu": ("LeakyRelu", IMAGE, [], 17, {"alpha": 0.2}),
    "prelu": ("PRelu", IMAGE, [np.abs(normal(6, 1, 1))], 17, {}),
    "hard sigmoid": ("HardSigmoid", IMAGE, [], 17, {"alpha": 0.3}),
    "hard swish": ("HardSwish", IMAGE, [], 17, {}),
    "tanh": ("Tanh", IMAGE, [], 17, {}),
    "gather": ("Gather", IMAGE, [ints(2, 1, -6)], 17, {"axis": 1}),
    "gather one": ("Gather", IMAGE, [np.int64(-1)], 17, {"axis": 2}),
    "gather table": ("Gather", IMAGE, [np.array([[0, 1], [1, 1]])], 17, {}),
    "concat": ("Concat", IMAGE, [normal(2, 1, 9, 8)], 17, {"axis": 1}),
    "sigmoid": ("Sigmoid", IMAGE, [], 17, {}),
    "relu": ("Relu", IMAGE, [], 17, {}),
    "identity": ("Identity", IMAGE, [], 17, {}),
    "slice backwards": ("Slice", IMAGE, [ints(-1, 100), ints(-(2**40), 1), ints(3, 1), ints(-1, -2)], 17, {}),
    "slice beyond": ("Slice", IMAGE, [ints(-100, 2), ints(2**62, 100), ints(2, -1)], 17, {}),
    "slice of nothing": ("Slice", IMAGE, [ints(5), ints(2), ints(1)], 17, {}),
    "split": ("Split", IMAGE, [ints(1, 3, 2)], 17, {"axis": 1, "outputs": 3}),
    "split evenly": ("Split", IMAGE, [], 17, {"axis": -3, "outputs": 2}),
    "split with a rest": ("Split", IMAGE, [], 18, {"axis": 2, "num_outputs": 2, "outputs": 2}),
    "expand": ("Expand", (2, 6, 1, 1), [ints(1, 9, 1)], 17, {}),
    "expand ranks": ("Expand", (6, 1), [ints(2, 1, 3)], 17, {}),
    "tile": ("Tile", IMAGE, [ints(1, 2, 1, 3)], 17, {}),
    "gather from the end": ("Gather", (5,), [np.int64(-2)], 17, {}),
    "gather elements": ("GatherElements", (2, 3), [np.array([[0, -1], [2, 2]])], 17, {"axis": 1}),
    "reshape zero": ("Reshape", (2, 0, 3), [ints(3, 0)], 17, {"allowzero": 1}),
    "flatten from the end": ("Flatten", IMAGE, [], 17, {"axis": -2}),
    "squeeze all": ("Squeeze", (2, 1, 3, 1), [], 17, {}),
    "depth to space": ("DepthToSpace", (2, 8, 3, 4), [], 17, {"blocksize": 2}),
    "depth to space, columns": ("DepthToSpace", (2, 8, 3, 4), [], 17, {"blocksize": 2, "mode": "CRD"}),
    "space to depth": ("SpaceToDepth", (2, 3, 4, 6), [], 17, {"blocksize": 2}),
    "pad cut": ("Pad", IMAGE, [ints(0, -1, 2, 0, 0, 0, -3, 1)], 17, {}),
    "pad channels by edge": ("Pad", IMAGE, [ints(0, 2, 0, 0, 0, 1, 0, 0)], 17, {"mode": "edge"}),
    "pad by axes from the end": ("Pad", IMAGE, [ints(1, 2, 0, 1), None, ints(-1, 1)], 19, {"mode": "reflect"}),
    "pad wrapped": ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 1)], 19, {"mode": "wrap"}),
    "sum by input": ("ReduceSum", IMAGE, [ints(1, -1)], 17, {"keepdims": 0}),
    "sum of all": ("ReduceSum", IMAGE, [], 17, {}),
    "sum of none": ("ReduceSum", IMAGE, [], 17, {"noop_with_empty_axes": 1}),
    "largest": ("ReduceMax", IMAGE, [], 17, {"axes": [2, 3]}),
    "largest by input": ("ReduceMax", IMAGE, [ints(1)], 18, {"keepdims": 0}),
    "least": ("ReduceMin", IMAGE, [], 17, {"axes": [-1]}),
    "product": ("ReduceProd", IMAGE, [], 17, {"axes": [1, 3], "keepdims": 0}),
    "length": ("ReduceL2", IMAGE, [], 17, {"axes": [1]}),
    "length by input": ("ReduceL2", IMAGE, [ints(1, 2, 3)], 18, {}),
    "absolute sum": ("ReduceL1", IMAGE, [], 17, {"axes": [1]}),
    "sum of squares": ("ReduceSumSquare", IMAGE, [], 17, {"axes": [1]}),
    "log of sum of exp": ("ReduceLogSumExp", IMAGE, [], 17, {"axes": [1, 2]}),
    "layer norm": ("LayerNormalization", IMAGE, [normal(8), normal(8)], 17, {"epsilon": 0.1}),
    "layer norm of the image": ("LayerNormalization", IMAGE, [normal(6, 9, 8)], 17, {"axis": 1}),
    "instance norm": ("InstanceNormalization", IMAGE, [normal(6), normal(6)], 17, {"epsilon": 0.1}),
    "group norm": ("GroupNormalization", IMAGE, [normal(3), normal(3)], 18, {"num_groups": 3}),
    "group norm by channel": ("GroupNormalization", IMAGE, [normal(6), normal(6)], 21, {"num_groups": 3}),
    "lp norm": ("LpNormalization", IMAGE, [], 17, {"axis": 1}),
    "lp norm 1": ("LpNormalization", IMAGE, [], 17, {"axis": -1, "p": 1}),
    "lrn": ("LRN", IMAGE, [], 17, {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}),
    "global max": ("GlobalMaxPool", IMAGE, [], 17, {}),
    "max pool dilated": ("MaxPool", IMAGE, [], 17, {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [2, 1, 2, 1]}),
    "max pool ceil padded": (
        "MaxPool",
        IMAGE,
        [],
        17,
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
    "max pool of a row": ("MaxPool", (2, 6, 9), [], 17, {"kernel_shape": [2], "strides": [2]}),
    "average uneven": ("AveragePool", IMAGE, [], 17, {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    "average same": (
        "AveragePool",
        IMAGE,
        [],
        17,
        {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 1]},
    ),
    "average ceil": ("AveragePool", IMAGE, [], 19, {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}),
    "average ceil counted": (
        "AveragePool",
        IMAGE,
        [],
        19,
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1, "pads": [1, 1, 1, 1]},
    ),
    "average dilated": (
        "AveragePool",
        IMAGE,
        [],
        19,
        {"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1, 1, 1, 1]},
    ),
    "conv valid": ("Conv", IMAGE, [normal(4, 6, 3, 3)], 17, {"auto_pad": "VALID"}),
    "conv of a row": ("Conv", (2, 6, 9), [normal(4, 6, 3)], 17, {"pads": [1, 1]}),
    "conv of a volume": ("Conv", (2, 2, 4, 5, 6), [normal(4, 2, 3, 3, 3)], 17, {}),
    "conv transposed": (
        "ConvTranspose",
        IMAGE,
        [normal(6, 2, 3, 3), normal(4)],
        17,
        {"group": 2, "strides": [2, 2], "pads": [1, 0, 1, 1], "output_padding": [1, 1]},
    ),
    "conv transposed same": (
        "ConvTranspose",
        IMAGE,
        [normal(6, 4, 3, 3)],
        17,
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ),
    "conv transposed to a size": (
        "ConvTranspose",
        IMAGE,
        [normal(6, 4, 4, 4)],
        17,
        {"output_shape": [17, 16], "strides": [2, 2]},
    ),
    "matmul of batches": ("MatMul", IMAGE, [normal(6, 8, 5)], 17, {}),
    "matmul with a vector": ("MatMul", IMAGE, [normal(8)], 17, {}),
    "einsum": ("Einsum", IMAGE, [normal(6, 4)], 17, {"equation": "nchw,cd->ndhw"}),
    "selu": ("Selu", IMAGE, [], 17, {}),
    "celu": ("Celu", IMAGE, [], 17, {"alpha": 0.7}),
    "gelu": ("Gelu", IMAGE, [], 20, {}),
    "gelu by tanh": ("Gelu", IMAGE, [], 20, {"approximate": "tanh"}),
    "mish": ("Mish", IMAGE, [], 18, {}),
    "softplus": ("Softplus", IMAGE, [], 17, {}),
    "softsign": ("Softsign", IMAGE, [], 17, {}),
    "thresholded relu": ("ThresholdedRelu", IMAGE, [], 17, {"alpha": 0.3}),
    "log softmax": ("LogSoftmax", IMAGE, [], 17, {"axis": 1}),
    "pow": ("Pow", IMAGE, [np.float32(2)], 17, {}),
    "pow by an integer": ("Pow", IMAGE, [np.int64(3)], 17, {}),
    "mod": ("Mod", IMAGE, [np.float32(0.3)], 17, {"fmod": 1}),
    "min": ("Min", IMAGE, [normal(6, 1, 1), np.float32(0.5)], 17, {}),
    "max": ("Max", IMAGE, [normal(6, 1, 1)], 17, {}),
    "max of one": ("Max", IMAGE, [], 17, {}),
    "sum of three": ("Sum", IMAGE, [normal(6, 1, 1), np.float32(0.5)], 17, {}),
    "mean of three": ("Mean", IMAGE, [normal(6, 1, 1), np.float32(0.5)], 17, {}),
    "equal": ("Equal", IMAGE, [normal(6, 1, 1)], 17, {}),
    "greater": ("Greater", IMAGE, [np.float32(0)], 17, {}),
    "greater or equal": ("GreaterOrEqual", IMAGE, [np.float32(0)], 17, {}),
    "less": ("Less", IMAGE, [np.float32(0)], 17, {}),
    "less or equal": ("LessOrEqual", IMAGE, [np.float32(0)], 17, {}),
    "cast to integers": ("Cast", IMAGE, [], 17, {"to": TensorProto.INT32}),
    "cast to bool": ("Cast", IMAGE, [], 17, {"to": TensorProto.BOOL}),
    "cast to half": ("Cast", IMAGE, [], 17, {"to": TensorProto.FLOAT16}),
    "largest index": ("ArgMax", IMAGE, [], 17, {"axis": 1, "keepdims": 0}),
    "shape": ("Shape", IMAGE, [], 17, {"start": 1, "end": -1}),
    "size": ("Size", IMAGE, [], 17, {}),
    "dropout": ("Dropout", IMAGE, [], 17, {}),
    **{
        name.lower(): (name, IMAGE, [], 17, {}) for name in ("Abs", "Neg", "Exp", "Erf", "Floor", "Ceil", "Sign", "Sin")
    },
    **{name.lower(): (name, IMAGE, [], 17, {}) for name in ("Cos", "Round", "Reciprocal", "Sqrt", "Log")},
}


def resized(scales: list[float] | None, sizes: list[int] | None, opset: int = 18, **attributes: Any) -> Any:
    given = [None, None if scales is None else np.array(scales, np.float32), None if sizes is None else ints(*sizes)]
    return "Resize", (2, 3, 6, 5), given[: 3 if sizes else 2], opset, attributes


COORDINATES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
CASES |= {
    f"resize {mode} {place} {nearest} {scale}": resized(
        [1, 1, *scale], None, mode=mode, coordinate_transformation_mode=place, nearest_mode=nearest
    )
    for mode, nearest in (
        ("nearest", "floor"),
        ("nearest", "round_prefer_ceil"),
        ("nearest", "ceil"),
        ("linear", "floor"),
    )
    for place in COORDINATES
    for scale in ((2.0, 2.0), (1.5, 0.6))
}
CASES |= {
    "resize to sizes": resized(None, [2, 3, 11, 3], mode="linear"),
    "resize by default": resized([1, 1, 2, 2], None, 17),
    "resize cubic": resized(None, [2, 3, 11, 4], mode="cubic", cubic_coeff_a=-0.5),
    "resize cubic inside": resized([1, 1, 2, 1.5], None, mode="cubic", exclude_outside=1),
    "resize smoothly": resized([1, 1, 0.5, 0.4], None, mode="linear", antialias=1),
    "resize by axes": resized([2, 0.5], None, mode="linear", axes=[3, -2]),
    "resize symmetric": resized(
        [1, 1, 0.7, 0.7], None, 19, mode="linear", coordinate_transformation_mode="half_pixel_symmetric"
    ),
    "resize with its aspect": resized(
        None, [12, 12], mode="nearest", axes=[2, 3], keep_aspect_ratio_policy="not_larger"
    ),
}
# Sizes are computed in integers: op, x, further inputs, attributes.
INTEGER_CASES: dict[str, tuple[str, np.ndarray, list[Any], dict[str, Any]]] = {
    "div": ("Div", ints(-7, 7, 9, -9), [ints(2, 2, -2, -2)], {}),
    "mod": ("Mod", ints(-7, 7, 9, -9), [ints(2, -2, 4, -4)], {}),
    "mod as in C": ("Mod", ints(-7, 7, 9, -9), [ints(2, -2, 4, -4)], {"fmod": 1}),
    "pow": ("Pow", ints(2, 3), [ints(3, 2)], {}),
    "gather": ("Gather", ints(4, 5, 6), [np.int64(1)], {}),
    "unsqueeze": ("Unsqueeze", np.array(3), [ints(0)], {}),
    "concat": ("Concat", ints(4), [ints(5, 6)], {"axis": 0}),
    "slice": ("Slice", ints(4, 5, 6, 7), [ints(-1), ints(-100), ints(0), ints(-2)], {}),
    "range": ("Range", np.array(2), [np.int64(11), np.int64(3)], {}),
    "cast": ("Cast", ints(2, 0), [], {"to": TensorProto.FLOAT}),
    "not": ("Not", np.array([True, False]), [], {}),
    "and": ("And", np.array([True, False]), [np.array([True, True])], {}),
    "or": ("Or", np.array([True, False]), [np.array([False, False])], {}),
    "xor": ("Xor", np.array([True, False]), [np.array([True, True])], {}),
    "where": ("Where", np.array([True, False]), [normal(3, 1), normal(2)], {}),
    "equal": ("Equal", ints(1, 2), [ints(1, 3)], {}),
    "max": ("Max", ints(1, 5), [ints(3)], {}),
    "sum": ("ReduceSum", ints(1, 5), [ints(0)], {"keepdims": 0}),
    "product": ("ReduceProd", ints(2, 5), [], {"keepdims": 0}),
    "shape of ones": ("ConstantOfShape", ints(2, 3), [], {"value": numpy_helper.from_array(np.array([1], np.int64))}),
    "shape of nothing": ("ConstantOfShape", ints(), [], {}),
    "clip": ("Clip", ints(-2, 3, 9), [np.int64(0), np.int64(4)], {}),
    "pad": ("Pad", ints(1, 2), [ints(1, 1), np.int64(7)], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_operators_compute_what_onnx_runtime_computes(case: str) -> None:
    op, shape, constants, opset, attributes = CASES[case]
    x = normal(*shape)
    if op in {"Sqrt", "Log"}:
        x = np.abs(x) + np.float32(0.1)
    assert_as_onnx_runtime(single(op, shape, constants, opset, attributes), x)


@pytest.mark.parametrize("case", INTEGER_CASES)
def test_shape_arithmetic_is_that_of_onnx_runtime(case: str) -> None:
    op, x, constants, attributes = INTEGER_CASES[case]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    assert_as_onnx_runtime(single(op, x.shape, constants, 18, attributes, kind), x)


def assert_as_onnx_runtime(model: Any, x: np.ndarray) -> None:
    names = [output.name for output in model.graph.output]
    every = ort.InferenceSession(model.SerializeToString()).run(names, {"x": x})
    for name, expected in zip(names, every, strict=True):
        found = TorchGraph(model).run(Block(("node",), "x", name), torch.from_numpy(x))
        assert tuple(found.shape) == expected.shape
        assert found.numpy().dtype == expected.dtype
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [
        ("Hardmax", [], {}),
        ("Cast", [], {"to": TensorProto.STRING}),
        (
            "Resize",
            [normal(8), np.ones(4, np.float32)],
            {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"},
        ),
    ],
)
def test_what_has_no_counterpart_is_named(op: str, constants: list[Any], attributes: dict[str, Any]) -> None:
    model = single(op, IMAGE, constants, 17, attributes)
    with pytest.raises(ModelError, match="node node: "):
        TorchGraph(model).run(Block(("node",), "x", "y"), torch.zeros(IMAGE))


def planned(graph: Maker, style: Style, count: int = 6) -> tuple[CandidatePlan, np.ndarray]:
    """A candidate plan with ranges from its tensors' largest values, and the images that they were measured on."""
    model = normalize(graph()).model
    view = Graph(model)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    x = rng().standard_normal((count, *shape)).astype(np.float32)
    placement = place(view, style)
    inner = [name for name in placement.observed if name != view.input]
    values = ort.InferenceSession(with_outputs(model, inner)).run(inner, {view.input: x})
    seen = dict(zip(inner, values, strict=True)) | {view.input: x}
    ranges = {
        name: TensorRange(name, min(0.0, float(seen[name].min())), max(0.0, float(seen[name].max())), "minmax", count)
        for name in placement.observed
    }
    return CandidatePlan(model, make_plan(view, placement, ranges, "digest")), x


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_quantized_network_is_that_of_onnx_runtime(graph: Maker) -> None:
    for style in ("tensorrt", "cpu"):
        candidate, x = planned(graph, style)  # type: ignore[arg-type]
        learner = TorchGraph(candidate.graph, candidate.plan)
        scores = whole(learner.graph)
        expected = tapped(candidate.quantized(), scores.output, x)
        with torch.no_grad():
            found = learner.run(scores, torch.from_numpy(x)).numpy()
        error = np.abs(found - expected) / np.abs(expected).max()
        # A value between two codes falls to either side; most images have none such.
        assert np.median(error) < 1e-5
        assert error.max() < 0.05
        exact = tapped(candidate.graph, scores.output, x)
        assert np.abs(exact - expected).max() > 100 * np.median(np.abs(found - expected))


def tapped(model: onnx.ModelProto, tensor: str, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(with_outputs(model, [tensor]), options)
    result: np.ndarray = session.run([tensor], {session.get_inputs()[0].name: x})[0]
    return result


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
def test_nothing_learned_is_the_same_candidate(style: Style) -> None:
    candidate, _ = planned(foreign_graphs.option_a, style)
    again = TorchGraph(candidate.graph, candidate.plan).candidate()
    assert plan_digest(again.plan) == plan_digest(candidate.plan)


def test_codes_that_pass_through_keep_one_scale() -> None:
    candidate, _ = planned(foreign_graphs.option_a, "tensorrt")
    learner = TorchGraph(candidate.graph, candidate.plan)
    with torch.no_grad():
        for index, change in enumerate(learner.scales(whole(learner.graph).nodes)):
            change += 0.1 + 0.01 * index
    before = {edge.tensor: float(edge.params.scale) for edge in candidate.plan.edges}
    after = {edge.tensor: float(edge.params.scale) for edge in learner.candidate().plan.edges}
    view = Graph(candidate.graph)
    shortcut = next(tensor for tensor in after if (node := view.producer(tensor)) and node.op_type == "Pad")
    source = view.source_of(shortcut)
    assert after[shortcut] == after[source] != before[source]
    assert len(set(after.values())) == len(set(before.values()))


@given(hnp.arrays(np.float32, 20, elements=st.floats(-50, 50, width=32)), st.floats(0.01, 1), st.floats(0.1, 30))
def test_a_quantizer_rounds_as_the_plan_does(x: np.ndarray, low: float, high: float) -> None:
    for params in (
        symmetric_int8(TensorRange("x", -low, high, "", 1)),
        affine_uint8(TensorRange("x", -low, high, "", 1)),
    ):
        real = (codes(x, params) - params.zero_point) * np.float32(params.scale)
        assert np.allclose(FakeQuantizer(params)(torch.from_numpy(x)).detach().numpy(), real, rtol=1e-6)


def test_gradients_of_a_quantizer_by_hand() -> None:
    """scale 0.5: 0.6 -> code 1, 100 -> code 127, -0.9 -> code -2; d/dlog(scale) = scale * (code - x/scale)."""
    quantizer = FakeQuantizer(QuantParams(np.asarray(0.5, np.float32), 0, "int8"))
    x = torch.tensor([0.6, 100.0, -0.9], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None and quantizer.change.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 1.0]
    assert quantizer.change.grad.item() == pytest.approx(0.5 * ((1 - 1.2) + 127 + (-2 + 1.8)))


def test_an_int32_bias_counts_in_the_learned_scale() -> None:
    candidate, x = planned(foreign_graphs.mxnet_v1, "cpu")
    learner = TorchGraph(candidate.graph, candidate.plan)
    block = whole(learner.graph)
    with torch.no_grad():
        for change in learner.scales(block.nodes):
            change += 0.05
        for shift in learner.shifts(block.nodes):
            shift += 0.3
        expected = learner.run(block, torch.from_numpy(x)).numpy()
    learned = learner.candidate()
    assert {edge.params.dtype for edge in learned.plan.weights} == {"int8", "int32"}
    found = tapped(learned.quantized(), block.output, x)
    assert np.median(np.abs(found - expected)) < 5e-3 * np.abs(expected).max()
    units = {edge.tensor: edge for edge in candidate.plan.weights}
    stale = tuple(units[edge.tensor] for edge in learned.plan.weights)
    unlearned = tapped(CandidatePlan(learned.graph, replace(learned.plan, weights=stale)).quantized(), block.output, x)
    assert np.median(np.abs(unlearned - expected)) > 2 * np.median(np.abs(found - expected))
