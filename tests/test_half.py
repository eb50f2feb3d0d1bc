"""What becomes float16, operator by operator: ONNX Runtime loads the form for RTX, and TensorRT-RTX builds from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from engine_graphs import constant, model
from onnx import TensorProto, helper, shape_inference
from test_zero_points import plan_for, run

from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.graph.graph import Graph
from edgeres.graph.half import half_between, to_fp16
from edgeres.graph.normalize import normalize
from edgeres.graph.rtx import rtx_form
from edgeres.quantize.rewrite import rewrite

needs_rtx = pytest.mark.skipif(not available("rtx").importable, reason="TensorRT-RTX is not installed")

Node = tuple[str, list[str], list[str], dict[str, Any]]
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
# Constants that the operators below read, by name.
CONSTANTS: dict[str, Any] = {
    "two": np.float32(2),
    "half": np.float32(0.5),
    "tiny": np.float32(1e-9),
    "huge": np.float32(3.4e38),
    "slope": np.full((8, 1, 1), 0.1, np.float32),
    "ones": np.ones(8, np.float32),
    "zeros": np.zeros(8, np.float32),
    "map": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8),
    "bounds": np.array([0, 8], np.float32),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "sizes": np.array([1, 8, 8, 8], np.int64),
    "roi": np.array([0, 0, 0.25, 0.25, 1, 1, 0.75, 0.75], np.float32),
    "axes": np.array([2, 3], np.int64),
    "one": np.array([1], np.int64),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "first": np.array([0, 1, 2, 3, 4, 5, 6, 7], np.int64),
    "whole": np.array([0, 8, 64], np.int64),
    "image": np.array([0, 8, 8, 8], np.int64),
    "depth": np.int64(8),
    "last": np.int64(3),
    "block": np.ones((1, 1, 8, 8), np.float32),
    "square": np.eye(8, dtype=np.float32) * 0.5,
    "kernel": np.full((8, 8, 3, 3), 0.02, np.float32),
    "tiles": np.array([1, 1, 2, 2], np.int64),
    "small": np.float32(1 / 64),
    "best": np.array([1], np.int64),
    "zero": np.float32(0),
    "unit": np.float32(1),
    "minus": np.float32(-1e9),
    "starts": np.array([0], np.int64),
    "ends": np.array([2], np.int64),
    "channels": np.array([1], np.int64),
}


def op(name: str, *inputs: str, **attributes: Any) -> list[Node]:
    """One node from ``a``, whose output is ``b``."""
    return [(name, ["a", *inputs], ["b"], attributes)]


OPERATORS: dict[str, list[Node]] = {
    **{name: op(name) for name in ("Abs", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid")},
    **{name: op(name) for name in ("HardSwish", "Identity", "LeakyRelu", "Neg", "Relu", "Round", "Selu")},
    **{name: op(name) for name in ("Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "ThresholdedRelu")},
    **{name: op(name) for name in ("Atan", "Sinh", "Shrink", "LogSoftmax", "Softmax", "Hardmax")},
    "Sqrt": [("Abs", ["a"], ["s"], {}), ("Sqrt", ["s"], ["b"], {})],
    "Pow": op("Pow", "two"),
    "Pow, variable exponent": [("Sigmoid", ["a"], ["s"], {}), ("Pow", ["s", "s"], ["b"], {})],
    "Div": op("Div", "two"),
    "Sub": op("Sub", "two"),
    "Mod": op("Mod", "two", fmod=1),
    "Max": op("Max", "half"),
    "Min": op("Min", "two", "half"),
    "Mean": op("Mean", "half"),
    "PRelu": op("PRelu", "slope"),
    "Clip": op("Clip", "", "half"),
    "Clip to float32's limits": op("Clip", "half", "huge"),
    "Pad": op("Pad", "pads", "half"),
    "Pad, reflected": op("Pad", "pads", mode="reflect"),
    "Transpose": op("Transpose", perm=[0, 1, 3, 2]),
    "DepthToSpace": [
        ("Concat", ["a", "a", "a", "a"], ["s"], {"axis": 1}),
        ("DepthToSpace", ["s"], ["b"], {"blocksize": 2}),
    ],
    "SpaceToDepth": [
        ("SpaceToDepth", ["a"], ["s"], {"blocksize": 2}),
        ("DepthToSpace", ["s"], ["b"], {"blocksize": 2}),
    ],
    "Gather": op("Gather", "first", axis=1),
    "Split": [("Split", ["a"], ["s", "t"], {"axis": 1}), ("Concat", ["t", "s"], ["b"], {"axis": 1})],
    "Tile": [("Tile", ["a", "tiles"], ["b"], {})],
    "Expand": [("ReduceMean", ["a"], ["s"], {"axes": [2, 3]}), ("Expand", ["s", "sizes"], ["b"], {})],
    "Resize by scales": op("Resize", "", "scales", mode="nearest"),
    "Resize, linear": op("Resize", "", "scales", mode="linear"),
    "Resize, cubic": op("Resize", "", "scales", mode="cubic"),
    "Upsample by a crop": op(
        "Resize", "roi", "scales", mode="linear", coordinate_transformation_mode="tf_crop_and_resize"
    ),
    "AveragePool": op("AveragePool", kernel_shape=[2, 2]),
    "MaxPool": op("MaxPool", kernel_shape=[2, 2]),
    "LpPool": op("LpPool", kernel_shape=[2, 2]),
    "GlobalMaxPool": [("GlobalMaxPool", ["a"], ["s"], {}), ("Mul", ["a", "s"], ["b"], {})],
    **{
        name: [(name, ["a"], ["s"], {"axes": [2, 3]}), ("Add", ["a", "s"], ["b"], {})]
        for name in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp")
    },
    "ReduceSum": [
        ("ReduceSum", ["a", "axes"], ["s"], {"keepdims": 1}),
        ("Mul", ["s", "half"], ["t"], {}),
        ("Add", ["a", "t"], ["b"], {}),
    ],
    "CumSum": op("CumSum", "last"),
    "Log and Reciprocal": [
        ("Sigmoid", ["a"], ["s"], {}),
        ("Add", ["s", "unit"], ["t"], {}),
        ("Log", ["t"], ["u"], {}),
        ("Reciprocal", ["t"], ["v"], {}),
        ("Add", ["u", "v"], ["b"], {}),
    ],
    "BatchNormalization": [
        ("Relu", ["a"], ["s"], {}),
        ("BatchNormalization", ["s", "ones", "zeros", "zeros", "ones"], ["b"], {}),
    ],
    "InstanceNormalization": op("InstanceNormalization", "ones", "zeros"),
    "LayerNormalization": op("LayerNormalization", "map", "map", axis=2),
    "LRN": op("LRN", size=3),
    "LpNormalization": op("LpNormalization", axis=1),
    "a norm written out": [
        ("Mul", ["a", "a"], ["s"], {}),
        ("ReduceSum", ["s", "one"], ["t"], {"keepdims": 1}),
        ("Add", ["t", "tiny"], ["u"], {}),
        ("Sqrt", ["u"], ["v"], {}),
        ("Div", ["a", "v"], ["b"], {}),
    ],
    "ConvTranspose": op("ConvTranspose", "kernel"),
    "MatMul": [
        ("Reshape", ["a", "whole"], ["s"], {}),
        ("Transpose", ["s"], ["t"], {"perm": [0, 2, 1]}),
        ("MatMul", ["s", "t"], ["u"], {}),
        ("Mul", ["u", "small"], ["v"], {}),
        ("MatMul", ["v", "s"], ["w"], {}),
        ("Reshape", ["w", "image"], ["b"], {}),
    ],
    "Einsum": [("Einsum", ["a", "square"], ["b"], {"equation": "bchw,cd->bdhw"})],
    "Where": [("Greater", ["a", "half"], ["s"], {}), ("Where", ["s", "a", "half"], ["b"], {})],
    "Where against a mask": [("Greater", ["a", "half"], ["s"], {}), ("Where", ["s", "a", "block"], ["b"], {})],
    "a mask cast to float": [
        ("Greater", ["a", "half"], ["s"], {}),
        ("Cast", ["s"], ["t"], {"to": FLOAT}),
        ("Mul", ["a", "t"], ["b"], {}),
    ],
    "a mask cast through int64": [
        ("LessOrEqual", ["a", "half"], ["s"], {}),
        ("Cast", ["s"], ["t"], {"to": TensorProto.INT64}),
        ("Cast", ["t"], ["u"], {"to": FLOAT}),
        ("Mul", ["a", "u"], ["b"], {}),
    ],
    "Not, And, Equal": [
        ("Equal", ["a", "half"], ["s"], {}),
        ("Less", ["a", "two"], ["t"], {}),
        ("Not", ["s"], ["u"], {}),
        ("And", ["u", "t"], ["v"], {}),
        ("Cast", ["v"], ["w"], {"to": FLOAT}),
        ("Mul", ["w", "a"], ["b"], {}),
    ],
    "ArgMax and OneHot": [
        ("ArgMax", ["a"], ["s"], {"axis": 1, "keepdims": 0}),
        ("OneHot", ["s", "depth", "bounds"], ["t"], {"axis": 1}),
        ("Mul", ["a", "t"], ["b"], {}),
    ],
    "TopK": [("TopK", ["a", "best"], ["s", "t"], {"axis": 3}), ("Mul", ["a", "s"], ["b"], {})],
    "ConstantOfShape": [
        ("Shape", ["a"], ["s"], {}),
        ("ConstantOfShape", ["s"], ["t"], {"value": constant("", np.array([0.5], np.float32))}),
        ("Add", ["a", "t"], ["b"], {}),
    ],
    "Range": [
        ("Shape", ["a"], ["s"], {"start": 3, "end": 4}),
        ("Squeeze", ["s"], ["t"], {}),
        ("Cast", ["t"], ["u"], {"to": FLOAT}),
        ("Range", ["zero", "u", "unit"], ["v"], {}),
        ("Add", ["a", "v"], ["b"], {}),
    ],
    "sizes in float": [
        ("Shape", ["a"], ["s"], {"start": 2, "end": 4}),
        ("Cast", ["s"], ["t"], {"to": FLOAT}),
        ("ReduceProd", ["t"], ["u"], {"keepdims": 0}),
        ("Div", ["two", "u"], ["v"], {}),
        ("Mul", ["a", "v"], ["b"], {}),
    ],
    "rounded through int32": [
        ("Cast", ["a"], ["s"], {"to": TensorProto.INT32}),
        ("Cast", ["s"], ["t"], {"to": FLOAT}),
        ("Sub", ["a", "t"], ["b"], {}),
    ],
    "CastLike": [
        ("Greater", ["a", "half"], ["s"], {}),
        ("CastLike", ["s", "a"], ["t"], {}),
        ("Mul", ["a", "t"], ["b"], {}),
    ],
    "GridSample": [
        ("Slice", ["a", "starts", "ends", "channels"], ["s"], {}),
        ("Transpose", ["s"], ["t"], {"perm": [0, 2, 3, 1]}),
        ("Tanh", ["t"], ["u"], {}),
        ("GridSample", ["a", "u"], ["b"], {}),
    ],
    "a very negative mask": [
        ("Greater", ["a", "half"], ["s"], {}),
        ("Where", ["s", "a", "minus"], ["t"], {}),
        ("Softmax", ["t"], ["b"], {"axis": 1}),
    ],
}


def network(nodes: list[Node], opset: int = 17) -> onnx.ModelProto:
    """Conv, ReLU, the nodes, Conv, mean, Gemm."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    used = {name for _, inputs, _, _ in nodes for name in inputs}
    constants = [constant(name, values) for name, values in CONSTANTS.items() if name in used]
    constants += [
        constant("w1", weight(8, 3, 3, 3)),
        constant("w2", weight(8, 8, 3, 3)),
        constant("w3", weight(8, 8, 3, 3)),
    ]
    constants += [constant("b", weight(8, 8)[0]), constant("w4", weight(5, 8)), constant("b4", weight(5, 8)[:, 0])]
    written = [
        helper.make_node("Conv", ["x", "w1", "bias"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["a"], name="conv2", pads=[1] * 4),
        *(helper.make_node(kind, i, o, name=f"n{at}", **given) for at, (kind, i, o, given) in enumerate(nodes)),
        helper.make_node("Conv", ["b", "w3"], ["c3"], name="conv3", pads=[1] * 4),
        helper.make_node("Relu", ["c3"], ["r3"], name="relu3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["m"], name="mean"),
        helper.make_node("Flatten", ["m"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], name="scores", transB=1),
    ]
    constants[-3].name = "bias"
    return model(written, constants, output=("n", 5), opsets={"": opset})


def quantized(nodes: list[Node], opset: int = 17) -> tuple[onnx.ModelProto, onnx.ModelProto, np.ndarray]:
    """The canonical float graph, its graph for TensorRT, and images."""
    graph = normalize(network(nodes, opset)).model
    x = np.random.default_rng(1).uniform(-2, 2, (8, 3, 8, 8)).astype(np.float32)
    return graph, rewrite(graph, plan_for(graph, x)), x


def scores(graph: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return run(graph, x)["y"]


def noise(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sum((found - exact) ** 2, dtype=np.float64) / np.sum(exact**2, dtype=np.float64))


def types(graph: onnx.ModelProto) -> dict[str, int]:
    """Types by ONNX's own inference, which refuses operators whose inputs do not fit each other."""
    inferred = shape_inference.infer_shapes(graph, check_type=True, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}


@pytest.mark.parametrize("name", OPERATORS)
def test_float16_around_any_operator_costs_no_more_than_int8_does(name: str) -> None:
    graph, plain, x = quantized(OPERATORS[name])
    form, half = rtx_form(plain), to_fp16(graph)
    found = types(form)
    types(half)
    assert {found[node.output[0]] for node in form.graph.node if node.op_type == "Conv"} == {HALF}
    exact, int8 = scores(graph, x), scores(plain, x)
    # Codes fall the other way where a value lies near the middle of a step: as much noise again at most.
    assert noise(scores(form, x), exact) < 2 * noise(int8, exact) + 1e-6
    assert noise(scores(half, x), exact) < 1e-5


# Those that stay in float32, and those with several type parameters or fixed types: a build takes half a second.
BUILT = ["Celu", "Resize by scales", "Resize, linear", "Pow", "ReduceSum", "a mask cast to float", "ArgMax and OneHot"]
BUILT += ["BatchNormalization", "LayerNormalization", "ConvTranspose", "sizes in float", "a very negative mask", "TopK"]


@needs_rtx
@pytest.mark.parametrize("name", BUILT)
def test_tensorrt_rtx_builds_from_both_graphs(name: str) -> None:
    graph, plain, _ = quantized(OPERATORS[name])
    for precision, made in (("int8", rtx_form(plain)), ("fp16", to_fp16(graph))):
        assert build_engine(made.SerializeToString(), BuildRequest(precision), "rtx").data  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Relu", {}),
        ("Resize by scales", {}),
        ("Clip to float32's limits", {}),
        ("a mask cast to float", {}),
        ("Celu", {"b": "schema"}),
        ("Pow", {"b": "range"}),
        # From the sum of squares on, up to the next quantize: its epsilon is no float16.
        ("a norm written out", {"t": "range", "u": "range", "v": "range", "b": "range"}),
        ("sizes in float", {"t": "no image", "u": "no image", "v": "no image", "b": "range"}),
        ("a very negative mask", {"t": "range", "b": "range"}),
        ("a mask cast through int64", {"u": "range", "b": "range"}),
    ],
)
def test_only_what_float16_cannot_hold_stays_in_float32(name: str, kept: dict[str, str]) -> None:
    half = to_fp16(network(OPERATORS[name]))
    inner = {output for _, _, outputs, _ in OPERATORS[name] for output in outputs}
    found = {tensor for tensor, kind in types(half).items() if tensor in inner and kind == FLOAT}
    assert found == kept.keys()
    assert types(half)["r1"] == HALF


def test_values_of_codes_reach_a_float32_operator_without_rounding() -> None:
    """Celu reads what the dequantize writes, not that cast to float16 and back."""
    graph, _, x = quantized([("Relu", ["a"], ["s"], {}), ("MaxPool", ["s"], ["b"], {"kernel_shape": [2, 2]})])
    plain = rewrite(graph, plan_for(graph, x))
    edited = Graph.copy_of(plain)
    last = next(node for node in edited.of("DequantizeLinear") if edited.consumers(node.output[0])[0].op_type == "Gemm")
    edited.put_behind(last, "Celu", [], "celu")
    form = half_between(edited.done())
    (celu,) = (node for node in form.graph.node if node.op_type == "Celu")
    assert next(node.op_type for node in form.graph.node if celu.input[0] in node.output) == "DequantizeLinear"
    types(form)
