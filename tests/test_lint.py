"""Each rule of the lint on a graph made for it; TensorRT-RTX's parser gets the same graphs where it is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_graphs import Layer, constant, model, node_of, resnet
from onnx import TensorProto, helper

from edgeres.engine.builder import BuildRequest, BuiltEngine, build_engine
from edgeres.errors import EngineError
from edgeres.graph.lint import _INTEGER_OPS, _MISSING_OPS, lint

Q, DQ = "QuantizeLinear", "DequantizeLinear"
SCALE, ZERO = constant("s", np.float32(0.1)), constant("z", np.int8(0))
PAIR = [helper.make_node(Q, ["x", "s", "z"], ["q"], name="q"), helper.make_node(DQ, ["q", "s", "z"], ["y"], name="dq")]


def conv(**changed: Any) -> onnx.ModelProto:
    """A quantized Conv in which named constants have other values (by name), or nodes other attributes."""
    built = Layer().graph()
    for tensor in built.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(constant(tensor.name, changed[tensor.name]))
    return built


def with_bias() -> onnx.ModelProto:
    built = Layer().graph()
    built.graph.initializer.extend(
        [constant("b", np.zeros(8, np.int32)), constant("bs", np.float32(0.002)), constant("bz", np.int32(0))]
    )
    built.graph.node.insert(0, helper.make_node(DQ, ["b", "bs", "bz"], ["bd"], name="dqb"))
    node_of(built, "Conv").input.append("bd")
    return built


def half(side: str) -> onnx.ModelProto:
    built = Layer().graph()
    layer = node_of(built, "Conv")
    if side == "input":
        layer.input[0] = "x"
        del built.graph.node[:2]
    else:
        layer.input[1] = "float"
        del built.graph.node[2]
        built.graph.initializer.append(constant("float", np.ones((8, 3, 3, 3), np.float32)))
    return built


def chain(*ops: tuple[str, dict[str, Any]]) -> onnx.ModelProto:
    """A chain of float operators with one input each."""
    names = ["x", *(f"t{i}" for i in range(len(ops) - 1)), "y"]
    nodes = [
        helper.make_node(op, [names[i]], [names[i + 1]], name=op.lower(), **attributes)
        for i, (op, attributes) in enumerate(ops)
    ]
    return model(nodes, [])


def cast_through(data_type: int) -> onnx.ModelProto:
    return chain(("Cast", {"to": data_type}), ("Cast", {"to": TensorProto.FLOAT}))


def between_pair(op: str, **attributes: Any) -> onnx.ModelProto:
    nodes = [PAIR[0], helper.make_node(op, ["q"], ["r"], **attributes), helper.make_node(DQ, ["r", "s", "z"], ["y"])]
    return model(nodes, [SCALE, ZERO])


def qlinear_conv() -> onnx.ModelProto:
    inputs = ["q", "s", "z", "w", "s", "z", "s", "z"]
    nodes = [PAIR[0], helper.make_node("QLinearConv", inputs, ["r"]), helper.make_node(DQ, ["r", "s", "z"], ["y"])]
    return model(nodes, [SCALE, ZERO, constant("w", np.ones((8, 3, 3, 3), np.int8))])


def dynamic_quantize() -> onnx.ModelProto:
    first = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    return model([first, helper.make_node(DQ, ["q", "s", "z"], ["y"])], [])


def contributed(op: str, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(op, ["x", "w"], ["y"], domain="com.microsoft", **attributes)
    weights = constant("w", np.ones((8, 3, 3, 3), np.float32))
    return model([node], [weights], opsets={"": 17, "com.microsoft": 1})


def computed_scale() -> onnx.ModelProto:
    absolute = helper.make_node("Abs", ["x"], ["a"])
    largest = helper.make_node("ReduceMax", ["a"], ["s"], keepdims=0)
    return model([absolute, largest, *PAIR], [ZERO])


def without_zero_point() -> onnx.ModelProto:
    nodes = [helper.make_node(Q, ["x", "s"], ["q"], name="q"), helper.make_node(DQ, ["q", "s"], ["y"], name="dq")]
    return model(nodes, [SCALE])


def per_block() -> onnx.ModelProto:
    nodes = [
        helper.make_node(DQ, ["w", "s"], ["wd"], name="dqw", axis=1, block_size=4),
        helper.make_node("Gemm", ["x", "wd"], ["y"], name="layer", transB=1),
    ]
    constants = [constant("w", np.ones((8, 16), np.int8)), constant("s", np.ones((8, 4), np.float32))]
    return model(nodes, constants, shape=("n", 16), opsets={"": 21})


def vector_scale() -> onnx.ModelProto:
    return conv(s=np.full(1, 0.1, np.float32), z=np.zeros(1, np.int8))


def channel_scales() -> onnx.ModelProto:
    return conv(s=np.full(3, 0.1, np.float32), z=np.zeros(3, np.int8))


def typed_input(data_type: int) -> onnx.ModelProto:
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    return model([cast], [], types=(data_type, TensorProto.FLOAT))


def odd_constant(dtype: type) -> onnx.ModelProto:
    nodes = [helper.make_node("Cast", ["k"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["x", "f"], ["y"])]
    return model(nodes, [constant("k", np.full((), 2, dtype))])


def codes_out() -> onnx.ModelProto:
    return model([helper.make_node(Q, ["x", "s", "z"], ["y"])], [SCALE, ZERO], types=(1, TensorProto.INT8))


def opset(version: int) -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])], [], opsets={"": version})


def one(op: str, *constants: Any, version: int = 17, outputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    """One operator behind the input; None stands for an input that is left out."""
    tensors = [constant(f"c{i}", values) for i, values in enumerate(constants) if values is not None]
    names = ["x", *("" if values is None else f"c{i}" for i, values in enumerate(constants))]
    outs = ["y", *(f"more{i}" for i in range(1, outputs))]
    built = model([helper.make_node(op, names, outs, name="op", **attributes)], tensors, opsets={"": version})
    for name in outs[1:]:
        built.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
    return onnx.shape_inference.infer_shapes(built)


def resize(version: int = 17, **attributes: Any) -> onnx.ModelProto:
    roi = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32) if "crop" in str(attributes) else None
    return one("Resize", roi, np.array([1, 1, 0.5, 0.5], np.float32), version=version, mode="linear", **attributes)


def keeps_aspect() -> onnx.ModelProto:
    policy = "not_larger"
    sizes = np.array([4, 4])
    return one("Resize", None, None, sizes, version=18, mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy)


def computed_weights() -> onnx.ModelProto:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0, 2, 3], keepdims=1),
        helper.make_node("Mul", ["w", "m"], ["k"]),
        helper.make_node("Conv", ["x", "k"], ["y"], name="conv", kernel_shape=[1, 1]),
    ]
    return model(nodes, [constant("w", np.ones((8, 3, 1, 1), np.float32))])


def scales(value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    per_channel = np.full(8, 0.02, np.float32)
    per_channel[3] = value
    return per_channel


# name, graph, (rule, effect) of every finding
CASES: tuple[tuple[str, Callable[[], onnx.ModelProto], set[tuple[str, str]]], ...] = (
    ("activation zero-point", lambda: conv(z=np.int8(3)), {("zero-point", "refused")}),
    ("weight zero-point", lambda: conv(wz=np.ones(8, np.int8)), {("zero-point", "refused")}),
    ("uint8 activation", lambda: conv(z=np.uint8(0)), {("codes", "wrong")}),
    ("uint8 by default", without_zero_point, {("codes", "wrong")}),
    (
        "uint8 weights",
        lambda: conv(w=np.full((8, 3, 3, 3), 200, np.uint8), wz=np.zeros(8, np.uint8)),
        {("codes", "refused")},
    ),
    ("int32 bias", with_bias, {("codes", "refused")}),
    ("QLinearConv", qlinear_conv, {("operator", "refused"), ("pair", "version")}),
    (
        "DynamicQuantizeLinear",
        dynamic_quantize,
        {("operator", "refused")} | {("scale", "version"), ("zero-point", "version")},
    ),
    ("FusedConv", lambda: contributed("FusedConv", activation="Relu"), {("operator", "refused")}),
    ("ONNX operator in a contributed domain", lambda: contributed("Conv"), {("operator", "version")}),
    ("scales per channel of an activation", channel_scales, {("activation-axis", "slow")}),
    ("scale of an activation as a vector", vector_scale, {("activation-axis", "slow")}),
    ("Conv weights per input channel", Layer(axis=1, count=3).graph, {("weight-axis", "slow")}),
    ("Conv weights, axis left out", Layer(axis=None, count=3).graph, {("weight-axis", "slow")}),
    (
        "Gemm weights per input, transposed",
        Layer("Gemm", (8, 16), 1, 16, {"transB": 1}, 16).graph,
        {("weight-axis", "slow")},
    ),
    ("Gemm weights per input", Layer("Gemm", (16, 8), 0, 16, None, 16).graph, {("weight-axis", "slow")}),
    ("MatMul weights per input", Layer("MatMul", (16, 8), 0, 16, None, 16).graph, {("weight-axis", "slow")}),
    (
        "ConvTranspose weights per input channel",
        Layer("ConvTranspose", (3, 8, 2, 2), 0, 3).graph,
        {("weight-axis", "slow")},
    ),
    ("Gemm weights, axis left out", Layer("Gemm", (16, 8), None, 8, None, 16).graph, {("weight-axis", "version")}),
    ("too few scales", Layer(count=5).graph, {("scale-count", "refused")}),
    ("scale 0", lambda: conv(s=np.float32(0)), {("scale", "refused")}),
    ("negative scale of one channel", lambda: conv(ws=scales(-0.1)), {("scale", "refused")}),
    ("NaN scale of one channel", lambda: conv(ws=scales(np.nan)), {("scale", "refused")}),
    ("infinite scale", lambda: conv(s=np.float32(np.inf)), {("scale", "wrong")}),
    ("computed scale", computed_scale, {("scale", "version")}),
    ("codes as output", codes_out, {("pair", "version")}),
    ("codes through Relu", lambda: between_pair("Relu"), {("pair", "version")}),
    ("float weights", lambda: half("weights"), {("half", "slow")}),
    ("float input", lambda: half("input"), {("half", "slow")}),
    ("scales per block", per_block, {("block", "version"), ("opset", "version"), ("half", "slow")}),
    ("opset 21", lambda: opset(21), {("opset", "version")}),
    ("opset 8", lambda: opset(8), {("opset", "version")}),
    ("float64 input", lambda: typed_input(TensorProto.DOUBLE), {("type", "wrong")}),
    ("float64 inside", lambda: cast_through(TensorProto.DOUBLE), {("type", "wrong")}),
    ("int64 input", lambda: typed_input(TensorProto.INT64), {("type", "version")}),
    ("uint16 input", lambda: typed_input(TensorProto.UINT16), {("type", "refused")}),
    ("uint32 inside", lambda: cast_through(TensorProto.UINT32), {("type", "refused")}),
    ("int16 constant", lambda: odd_constant(np.int16), {("type", "refused")}),
    ("uint8 inside", lambda: cast_through(TensorProto.UINT8), {("type", "refused")}),
    ("dilated MaxPool", lambda: one("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), {("pool", "refused")}),
    (
        "dilated AveragePool",
        lambda: one("AveragePool", version=19, kernel_shape=[2, 2], dilations=[2, 1]),
        {("pool", "refused")},
    ),
    ("dilated LpPool", lambda: one("LpPool", version=18, kernel_shape=[2, 2], dilations=[2, 2]), {("pool", "refused")}),
    ("LpPool with p=3", lambda: one("LpPool", kernel_shape=[2, 2], p=3), {("pool", "refused")}),
    ("MaxPool with places", lambda: one("MaxPool", outputs=2, kernel_shape=[2, 2]), {("pool", "refused")}),
    (
        "Resize by crops",
        lambda: resize(coordinate_transformation_mode="tf_crop_and_resize"),
        {("resize", "refused")},
    ),
    (
        "symmetric Resize",
        lambda: resize(19, coordinate_transformation_mode="half_pixel_symmetric"),
        {("resize", "refused")},
    ),
    ("Resize with antialias", lambda: resize(18, antialias=1), {("resize", "refused")}),
    ("Resize that keeps the aspect ratio", keeps_aspect, {("resize", "refused")}),
    ("rank 9", lambda: one("Reshape", np.array([0, 3, 2, 2, 2, 2, 2, 2, 1])), {("rank", "refused")}),
    ("Det", lambda: one("Det"), {("operator", "refused")}),
    ("Compress", lambda: one("Compress", np.array([True, False, True]), axis=1), {("operator", "refused")}),
    ("weights computed at run time", computed_weights, {("weights", "version")}),
)
INT8_LAYERS: tuple[tuple[str, Callable[[], onnx.ModelProto]], ...] = (
    ("Conv", Layer().graph),
    ("Gemm, transposed", Layer("Gemm", (8, 16), 0, 8, {"transB": 1}, 16).graph),
    ("Gemm", Layer("Gemm", (16, 8), 1, 8, None, 16).graph),
    ("MatMul", Layer("MatMul", (16, 8), -1, 8, None, 16).graph),
    ("one scale for all weights", lambda: conv(ws=np.float32(0.02), wz=np.int8(0))),
)
OTHER_GOOD: tuple[tuple[str, Callable[[], onnx.ModelProto]], ...] = (
    ("Q/DQ alone", lambda: model(PAIR, [SCALE, ZERO])),
    ("uint8 input", lambda: typed_input(TensorProto.UINT8)),
    ("float network", lambda: resnet(quantized=False, width=8, px=8)),
    ("quantized network", lambda: resnet(quantized=True, width=8, px=8)),
    ("pool without dilation", lambda: one("MaxPool", kernel_shape=[2, 2], dilations=[1, 1])),
    ("Resize", lambda: resize(coordinate_transformation_mode="align_corners")),
    ("rank 8", lambda: one("Reshape", np.array([0, 3, 2, 2, 2, 2, 2, 2]))),
    ("opset 9", lambda: opset(9)),
    ("opset 20", lambda: opset(20)),
)


def _named(cases: tuple[Any, ...]) -> list[str]:
    return [case[0] for case in cases]


def _rtx(built: onnx.ModelProto) -> BuiltEngine:
    pytest.importorskip("tensorrt_rtx", reason="the parser that the lint stands in for is not installed")
    return build_engine(built.SerializeToString(), BuildRequest("int8", max_batch=4), "rtx")


def _dequantizes_first(engine: BuiltEngine) -> bool:
    """Whether a kernel dequantizes codes before a layer reads them: RTX names its kernels after their operations."""
    return any(b"CastMul" in name for name in re.findall(rb"__myl_[A-Za-z]+", engine.data))


@pytest.mark.parametrize(("name", "graph", "expected"), CASES, ids=_named(CASES))
def test_finds_exactly_what_is_wrong(name: str, graph: Callable[[], onnx.ModelProto], expected: set[Any]) -> None:
    assert {(finding.rule, finding.effect) for finding in lint(graph())} == expected


@pytest.mark.parametrize(("name", "graph"), INT8_LAYERS + OTHER_GOOD, ids=_named(INT8_LAYERS + OTHER_GOOD))
def test_finds_nothing_where_nothing_is_wrong(name: str, graph: Callable[[], onnx.ModelProto]) -> None:
    assert lint(graph()) == []
    assert _rtx(graph()).data


@pytest.mark.parametrize(("name", "graph"), INT8_LAYERS, ids=_named(INT8_LAYERS))
def test_layers_without_findings_multiply_codes(name: str, graph: Callable[[], onnx.ModelProto]) -> None:
    assert not _dequantizes_first(_rtx(graph()))


@pytest.mark.parametrize(("name", "graph", "expected"), CASES, ids=_named(CASES))
def test_the_parser_agrees(name: str, graph: Callable[[], onnx.ModelProto], expected: set[Any]) -> None:
    effects = {effect for _, effect in expected}
    if "refused" in effects:
        with pytest.raises(EngineError):
            _rtx(graph())
        return
    engine = _rtx(graph())
    if "slow" in effects:
        assert _dequantizes_first(engine)
    if ("codes", "wrong") in expected and name != "uint8 by default":  # which passes without even a warning
        assert any("Defaulting to INT8" in line for line in engine.log)


def test_constants_are_found_behind_identity_and_constant_nodes() -> None:
    built = conv(z=np.int8(3))
    inputs = node_of(built, Q).input
    zero = next(tensor for tensor in built.graph.initializer if tensor.name == "z")
    built.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=zero))
    built.graph.node.insert(1, helper.make_node("Identity", ["k"], ["i"]))
    inputs[2] = "i"
    assert {finding.tensor for finding in lint(built) if finding.rule == "zero-point"} == {"i", "z"}


def test_a_function_of_the_model_is_no_foreign_operator() -> None:
    body = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    built = model([helper.make_node("Twice", ["x"], ["y"], domain="mine")], [], opsets={"": 17, "mine": 1})
    assert [finding.rule for finding in lint(built)] == ["operator"]
    built.functions.append(body)
    assert lint(built) == []
    _rtx(built)


def test_the_parser_knows_every_other_operator() -> None:
    """The list of operators that TensorRT lacks, against the parser's own list."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="the parser that the lint stands in for is not installed")
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)  # must outlive its network
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, logger)
    names = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    known = {name for name in names if parser.supports_operator(name)}
    assert names - known == names & (_MISSING_OPS | _INTEGER_OPS)


def test_a_finding_reads_as_one_line() -> None:
    (finding,) = lint(conv(z=np.uint8(0)))[:1]
    assert str(finding) == "q (q): uint8 codes become int8 and clip above 127; write an int8 zero_point [wrong: codes]"
    assert str(lint(opset(21))[0]).startswith("graph: opset 21, and TensorRT 10.3 takes 9 to 20")


def test_uint8_codes_are_wrong_because_they_clip_at_127() -> None:
    """The error that the rule "codes" warns of: 25.5 / 0.1 is code 255 as uint8, and 127 as int8."""
    import onnxruntime

    pixels = np.full((1, 3, 8, 8), 25.5, np.float32)
    seen = {}
    for zero in (np.uint8(0), np.int8(0)):
        session = onnxruntime.InferenceSession(model(PAIR, [SCALE, constant("z", zero)]).SerializeToString())
        seen[zero.dtype.name] = float(session.run(None, {"x": pixels})[0].max())
    assert seen == pytest.approx({"uint8": 25.5, "int8": 12.7})


class _Images:
    """The reader that onnxruntime's calibration takes."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._feeds = iter([{"x": rng.standard_normal((2, 3, 8, 8)).astype(np.float32)} for _ in range(2)])

    def get_next(self) -> Any:
        return next(self._feeds, None)


@pytest.mark.parametrize("for_tensorrt", [False, True])
def test_graphs_as_onnxruntime_quantizes_them(for_tensorrt: bool, tmp_path: Path) -> None:
    """By default unsymmetric uint8 with int32 biases, all of it refused; with the options for TensorRT, none of it."""
    from onnxruntime.quantization import QuantType, quantize_static

    onnx.save(resnet(quantized=False, width=8, px=8), tmp_path / "float.onnx")
    options: dict[str, Any] = {"activation_type": QuantType.QUInt8}
    if for_tensorrt:
        extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
        options = {"activation_type": QuantType.QInt8, "per_channel": True, "extra_options": extra}
    quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", _Images(), **options)
    built = onnx.load(tmp_path / "int8.onnx")
    if for_tensorrt:
        assert lint(built) == []
        assert _rtx(built).data
    else:
        assert {("zero-point", "refused"), ("codes", "refused")} <= {(f.rule, f.effect) for f in lint(built)}
        with pytest.raises(EngineError):
            _rtx(built)


def test_dynamic_sizes_are_fine() -> None:
    assert lint(model(PAIR, [SCALE, ZERO], shape=("n", 3, "height", "width"))) == []
