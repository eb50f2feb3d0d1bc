"""Foreign graphs, normalized and quantized, compared with the original files on ONNX Runtime."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foreign_graphs as foreign
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from foreign_graphs import CLASSES, FOREIGN, PX, Writer, body, relu
from onnx import TensorProto, helper, numpy_helper

from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.data.preprocess import apply
from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.errors import ModelError
from edgeres.graph.graph import Graph
from edgeres.graph.lint import lint
from edgeres.graph.normalize import BATCH, Canonical, load_onnx, normalize
from edgeres.pipeline.options import weight_bits
from edgeres.quantize.graphs import Quantized, RangeChoice, quantize
from edgeres.records import Preprocess
from edgeres.runtime.ort import OrtRunner

# Patches of colour: images of noise alone would hardly differ behind the mean of the last layer.
IMAGES = np.random.default_rng(1).integers(0, 256, (16, 4, 4, 3)).astype(np.uint8).repeat(PX // 4, 1).repeat(PX // 4, 2)
Build = Callable[[], onnx.ModelProto]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A foreign graph, its canonical form, both quantized graphs and the inputs of all images."""

    original: onnx.ModelProto
    canonical: Canonical
    quantized: Quantized
    inputs: Array

    def scores(self, model: onnx.ModelProto, *, integer: bool = True) -> Array:
        with OrtRunner(model.SerializeToString(), integer=integer) as runner:
            return runner.infer({runner.input_name: self.inputs})[runner.output_name]


@functools.cache
def case(name: str) -> Case:
    original = FOREIGN[name]()
    onnx.checker.check_model(original, full_check=True)
    canonical = normalize(original, where=name)
    preprocess = canonical.preprocess
    loader = Loader(Arrays(IMAGES, np.full(len(IMAGES), -1), (), "random"), preprocess, 8)
    quantized = quantize(canonical.model, ["tensorrt", "cpu"], loader, RangeChoice("minmax", weight_bits()))
    return Case(original, canonical, quantized, np.stack([apply(image, preprocess) for image in IMAGES]))


def original_scores(original: onnx.ModelProto, inputs: Array) -> Array:
    """The last output of the original file, (N, classes), run with the batch that it was exported for."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(original.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    batch = image.shape[0] if isinstance(image.shape[0], int) else len(inputs)
    given = inputs.astype(np.uint8 if image.type == "tensor(uint8)" else np.float32)
    parts = [session.run(None, {image.name: given[i : i + batch]})[-1] for i in range(0, len(given), batch)]
    return np.concatenate(parts).reshape(len(inputs), -1)


def sqnr_db(expected: Array, found: Array) -> float:
    """SQNR of the differences between images: a part that all scores share does not count."""
    signal = expected - expected.mean(axis=0)
    return float(10 * np.log10((signal**2).sum() / ((found - expected) ** 2).sum()))


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def normalized_operators(build: Build) -> Counter[str]:
    return operators(normalize(build()).model)


@pytest.mark.parametrize("name", FOREIGN)
def test_computes_what_the_file_computes(name: str) -> None:
    found = case(name)
    expected = original_scores(found.original, found.inputs)
    scores = found.scores(found.canonical.model)
    assert scores.shape == (len(IMAGES), CLASSES)
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max(), "the images must make a difference"
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    assert found.canonical.max_error < 1e-5


@pytest.mark.parametrize("name", FOREIGN)
def test_is_canonical(name: str) -> None:
    model = case(name).canonical.model
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert [(entry.domain, 17 <= entry.version <= 20) for entry in model.opset_import] == [("", True)]
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    size = [PX, PX, 3] if case(name).canonical.layout == "NHWC" else [3, PX, PX]
    assert shapes == [[BATCH, *size], [BATCH, CLASSES]]
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    names = [node.name for node in graph.node]
    assert all(names) and len(set(names)) == len(names)
    assert not operators(model).keys() & {"Identity", "Dropout", "Constant", "Sum", "Cast"}
    view = Graph(model)
    for node in graph.node:
        producer = view.producer(node.input[0]) if node.input else None
        if node.op_type in {"BatchNormalization", "Mul", "Add"} and producer is not None and producer.op_type == "Conv":
            alone = len(view.consumers(node.input[0])) == 1 and view.is_constant(node.input[1])
            assert not alone, f"{node.name} was not folded into {producer.name}"


@pytest.mark.parametrize("name", FOREIGN)
def test_canonical_graphs_stay_as_they_are(name: str) -> None:
    once = case(name).canonical
    twice = normalize(once.model)
    assert operators(twice.model) == operators(once.model)
    assert (twice.preprocess, twice.ends_in_softmax) == (once.preprocess, once.ends_in_softmax)
    assert twice.max_error < 1e-6


@pytest.mark.parametrize("name", FOREIGN)
def test_cpu_graph_is_integer_from_the_first_conv_to_the_last_gemm(name: str, tmp_path: Path) -> None:
    found = case(name)
    int8 = found.quantized.graphs["cpu"]
    assert sqnr_db(found.scores(found.canonical.model), found.scores(int8)) > 15
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(int8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = operators(onnx.load(str(tmp_path / "optimized.onnx")))
    view = Graph(found.canonical.model)
    joins = Counter(node.op_type for node in view.nodes if view.joins_activations(node))
    assert optimized["QLinearConv"] == operators(found.canonical.model)["Conv"]
    assert optimized["QLinearAdd"] >= joins["Add"]  # and those of constants
    assert optimized["QLinearMul"] == joins["Mul"]
    assert not optimized.keys() & {"Conv", "FusedConv", "Gemm", "Relu", "Clip"}


@pytest.mark.parametrize("name", FOREIGN)
def test_tensorrt_graph_has_codes_where_they_belong(name: str) -> None:
    found = case(name)
    int8 = found.quantized.graphs["tensorrt"]
    assert [str(finding) for finding in lint(int8)] == []
    assert sqnr_db(found.scores(found.canonical.model), found.scores(int8, integer=False)) > 15
    view, plain = Graph(int8), Graph(found.canonical.model)
    residual = {node.name for node in plain.nodes if plain.is_residual_add(node)}
    for node in view.nodes:
        producers = [view.producer(tensor) for tensor in node.input]
        coded = [producer is not None and producer.op_type == "DequantizeLinear" for producer in producers]
        if node.op_type in {"Conv", "Gemm"}:
            assert coded[:2] == [True, True]
        elif node.name in residual:
            assert sorted(coded) == [False, True], f"{node.name} must have codes on its skip alone"


@pytest.mark.skipif(not available("rtx").can_build, reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("name", FOREIGN)
def test_rtx_takes_the_tensorrt_graph(name: str) -> None:
    int8 = case(name).quantized.graphs["tensorrt"].SerializeToString()
    assert build_engine(int8, BuildRequest("int8", optimization_level=0), "rtx").data


@pytest.mark.parametrize(
    ("name", "values"),
    [("keras pixels, opset 15", "pixels"), ("uint8 pixels", "pixels"), ("mxnet v2, opset 7", "normalized")],
)
def test_tells_what_the_input_takes(name: str, values: str) -> None:
    canonical = case(name).canonical
    assert canonical.input_values == values
    assert (canonical.preprocess.pixel_scale, canonical.preprocess.mean[0]) == (
        (1.0, 0.0) if values == "pixels" else (Preprocess((PX, PX)).pixel_scale, 0.485)
    )
    assert any("0 to 255" in note for note in canonical.notes) == (values == "pixels")


def test_tells_inputs_of_zero_to_one_and_pixels_behind_a_batch_norm() -> None:
    unit = Writer()
    x = unit.op("Sub", "data", unit.const(np.full((1, 3, 1, 1), 0.45, np.float32)))
    x = unit.op("Div", x, unit.const(np.full((1, 3, 1, 1), 0.22, np.float32)))
    canonical = normalize(unit.model(unit.head(body(unit, x), 32)))
    assert canonical.input_values == "unit"
    assert (canonical.preprocess.pixel_scale, canonical.preprocess.std) == (1 / 255, (1, 1, 1))

    twice = Writer()
    x = twice.op("Mul", "data", twice.const(np.float32(2)))
    assert normalize(twice.model(twice.head(body(twice, x), 32))).input_values == "normalized", "zero stays zero"

    pixels = Writer(opset=8)
    ones = np.ones(3, np.float32)
    statistics = [pixels.const(values) for values in (ones, 0 * ones, 120 * ones, 3600 * ones)]
    x = pixels.op("BatchNormalization", "data", *statistics)
    assert normalize(pixels.model(pixels.head(body(pixels, x), 32))).input_values == "pixels"


def test_ends_in_softmax() -> None:
    flags = {name for name in FOREIGN if case(name).canonical.ends_in_softmax}
    assert flags == {"caffe2, opset 7", "paddle, opset 11", "tf2onnx, opset 13"}


def test_softmax_before_the_flatten_is_seen() -> None:
    w = Writer()
    scores = w.conv(w.op("GlobalAveragePool", body(w, "data")), (32, CLASSES), 1)
    model = w.model(w.op("Softmax", scores, axis=1), output_shape=("N", CLASSES, 1, 1))
    assert normalize(model).ends_in_softmax


def test_notes_say_what_was_changed() -> None:
    assert case("mxnet v1, opset 7").canonical.notes == ("opset 7 converted to 17", "batch of 1 made dynamic")
    assert case("two outputs").canonical.notes == ("output Flatten_21:0 dropped",)
    assert case("dynamo, opset 20").canonical.notes == ()


def test_stack_traces_of_the_exporting_machine_do_not_travel() -> None:
    model = foreign.torchscript()
    for node in model.graph.node:
        node.doc_string = "/home/someone/net.py(3): forward"
    assert b"/home/someone" not in normalize(model).model.SerializeToString()


def test_older_than_what_onnx_runtime_runs() -> None:
    model = foreign.caffe2(opset=6)
    for node in model.graph.node:
        if node.op_type in {"BatchNormalization", "Gemm"}:
            name = "is_test" if node.op_type == "BatchNormalization" else "broadcast"
            node.attribute.append(helper.make_attribute(name, 1))
    onnx.checker.check_model(model)
    newer = normalize(foreign.caffe2(opset=7)).model
    images = np.stack([apply(image, Preprocess((PX, PX))) for image in IMAGES])
    older = normalize(model)
    assert older.notes[0] == "opset 6 converted to 17"
    np.testing.assert_allclose(original_scores(older.model, images), original_scores(newer, images), atol=1e-6)


@pytest.mark.parametrize("opset", [21, 25])
def test_newer_than_what_tensorrt_takes(opset: int) -> None:
    model = foreign.dynamo()
    model.opset_import[0].version = opset
    assert normalize(model).notes == (f"opset {opset} converted to 20",)


def test_constant_first_in_an_add_is_folded_too() -> None:
    w = Writer()
    x = relu(w, w.op("Add", w.random(1, 16, 1, 1), w.conv("data", (3, 16), 3, 2)))
    x = relu(w, w.op("Mul", w.random(16, 1, 1), w.conv(x, (16, 16))))
    found = normalized_operators(lambda: w.model(w.head(x, 16)))
    assert found == {"Conv": 2, "Relu": 2, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}


def test_batch_of_one_inside_a_file_that_calls_it_free() -> None:
    w = Writer()
    flat = w.op("Reshape", w.op("GlobalAveragePool", body(w, "data")), w.const([1, -1]))
    assert normalize(w.model(w.op("Gemm", flat, w.random(32, CLASSES)))).num_classes == CLASSES


def test_names_that_the_rewrite_would_give_are_left_to_the_exporter() -> None:
    model = foreign.two_outputs()
    pooled = next(node for node in model.graph.node if node.op_type == "MaxPool").output[0]
    mean = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    values = np.full((1, 32, 1, 1), 0.5, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, f"{pooled}_scale"))
    shifted = helper.make_node("Sub", [mean.input[0], f"{pooled}_scale"], [f"{pooled}_q"])
    model.graph.node.insert(list(model.graph.node).index(mean), shifted)
    mean.input[0] = f"{pooled}_q"
    canonical = normalize(model)
    loader = Loader(Arrays(IMAGES, np.full(len(IMAGES), -1), (), "random"), canonical.preprocess, 8)
    for int8 in quantize(canonical.model, ["tensorrt", "cpu"], loader, RangeChoice("minmax")).graphs.values():
        onnx.checker.check_model(int8, full_check=True)


def test_pads_that_are_not_zero_keep_their_values() -> None:
    w = Writer()
    x = relu(w, w.conv("data", (3, 16), 3, 2, bias=True))
    padded = w.op("Pad", x, w.const([0, 0, 1, 1, 0, 0, 1, 1]), w.const(np.float32(np.finfo(np.float32).min)))
    x = w.op("MaxPool", padded, kernel_shape=[3, 3], strides=[2, 2])
    canonical = normalize(w.model(w.head(relu(w, w.conv(x, (16, 32))), 32)))
    loader = Loader(Arrays(IMAGES, np.full(len(IMAGES), -1), (), "random"), canonical.preprocess, 8)
    plan = quantize(canonical.model, ["cpu"], loader, RangeChoice("minmax")).plans["cpu"]
    assert padded not in {edge.tensor for edge in plan.edges}


# Graphs that are refused.


def plain(shape: tuple[Any, ...] = ("N", 3, PX, PX), **options: Any) -> onnx.ModelProto:
    w = Writer()
    return w.model(w.head(relu(w, w.conv("data", (3, 8), 3, 2)), 8), shape=shape, **options)


def second_input() -> onnx.ModelProto:
    model = plain()
    model.graph.input.append(helper.make_tensor_value_info("threshold", TensorProto.FLOAT, [1]))
    return model


def already_quantized() -> onnx.ModelProto:
    return case("option A").quantized.graphs["tensorrt"]


def feature_map() -> onnx.ModelProto:
    w = Writer()
    return w.model(w.conv("data", (3, 8)), output_shape=("N", 8, PX, PX))


def one_score() -> onnx.ModelProto:
    w = Writer()
    x = w.op("Flatten", w.op("GlobalAveragePool", w.conv("data", (3, 8))))
    return w.model(w.op("Gemm", x, w.random(8, 1)), output_shape=("N", 1))


def two_heads() -> onnx.ModelProto:
    w = Writer()
    x = relu(w, w.conv("data", (3, 8), 3, 2))
    return w.model(w.head(x, 8), w.head(x, 8))


def contributed() -> onnx.ModelProto:
    w = Writer()
    x = w.conv("data", (3, 8))
    w.nodes.append(helper.make_node("QuickGelu", [x], ["gelu"], domain="com.microsoft"))
    model = w.model(w.head("gelu", 8))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def unknown_operator() -> onnx.ModelProto:
    w = Writer()
    w.nodes.append(helper.make_node("Swirl", [w.conv("data", (3, 8))], ["swirled"], name="swirl", domain="my.ops"))
    model = w.model(w.head("swirled", 8))
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    return model


def batch_inside() -> onnx.ModelProto:
    w = Writer()
    rows = w.op("Reshape", w.op("Transpose", w.conv("data", (3, 8)), perm=[1, 0, 2, 3]), w.const([8, 1, -1]))
    y = w.op("Gemm", w.op("Flatten", w.op("ReduceMean", rows, axes=[2]), axis=1), w.random(1, CLASSES))
    y = w.op("ReduceMean", y, axes=[0])
    return w.model(y, shape=(1, 3, PX, PX), output_shape=(1, CLASSES))


def not_finite() -> onnx.ModelProto:
    model = plain()
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.full(list(weight.dims), np.nan, np.float32), weight.name))
    return model


def control_flow() -> onnx.ModelProto:
    w = Writer()
    x = w.conv("data", (3, 8))
    bright = w.op("Greater", w.op("ReduceMean", "data", keepdims=0), w.const(np.float32(0)))
    branches = {
        name: helper.make_graph(
            [helper.make_node(kind, [x], [name])], name, [], [helper.make_tensor_value_info(name, 1, None)]
        )
        for name, kind in (("then", "Relu"), ("otherwise", "Abs"))
    }
    return w.model(w.head(w.op("If", bright, then_branch=branches["then"], else_branch=branches["otherwise"]), 8))


REFUSED: dict[Build, str] = {
    second_input: "g: expected one image input, found 2 (data, threshold); export the classifier alone",
    lambda: plain(shape=("N", 3 * PX * PX)): "g: input has rank 2; images of rank 4 are taken: (N, 3, H, W)",
    lambda: plain(shape=("N", 2, PX, PX)): (
        "g: input (?, 2, 32, 32) has no axis of three channels, nor one of 1 or 4; RGB or BGR, gray, and RGB with a "
        "fourth channel are taken"
    ),
    lambda: plain(shape=("N", 3, "h", "w")): (
        "g: height and width of the input are dynamic; give --input-px, such as 224 or 224x320 (height x width)"
    ),
    lambda: plain(shape=(-1, 3, -1, -1)): (
        "g: height and width of the input are dynamic; give --input-px, such as 224 or 224x320 (height x width)"
    ),
    lambda: plain(kind=TensorProto.DOUBLE): "g: input data is double; float32, float16 or uint8 images are taken",
    already_quantized: "g: already quantized (node data_QuantizeLinear); give the FP32 graph",
    feature_map: (
        "g: output Conv_0:0 is float (batch, 8, 32, 32), and a classifier's is float (N, classes); "
        "export the scores themselves: no argmax, no feature map"
    ),
    one_score: (
        "g: output Gemm_3:0 is float (batch, 1), and a classifier's is float (N, classes); "
        "export the scores themselves: no argmax, no feature map"
    ),
    two_heads: (
        "g: 2 outputs (Gemm_4:0, Gemm_7:0), and 2 may be the scores: Gemm_4:0 (N, 10), Gemm_7:0 (N, 10); "
        "export one (N, classes) output"
    ),
    contributed: (
        "g: operators outside standard ONNX (QuickGelu of com.microsoft); "
        "give the file as it was exported, before another tool optimized it"
    ),
    unknown_operator: "Swirl",
    batch_inside: (
        "g: a batch of 1 is built into the graph (1 rows of scores for 3 images); export with a dynamic batch"
    ),
    not_finite: ("g: the scores of random images are not finite; the weights may be damaged: export again"),
    control_flow: "g: control flow that depends on the image (node If_3); export in eval mode",
}


@pytest.mark.parametrize(("build", "line"), REFUSED.items())
def test_refusals_say_what_and_what_next(build: Build, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = build()
    with pytest.raises(ModelError) as caught:
        normalize(model, where="g")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert capfd.readouterr() == ("", ""), "one line, and nothing beside it"


def test_opset_that_cannot_be_converted() -> None:
    model = plain()
    model.opset_import[0].version = 99
    with pytest.raises(ModelError, match=r"g: opset 99 cannot be converted to 20 \(.+\); export with an opset between"):
        normalize(model, where="g")


def test_load_with_and_without_the_weights_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = foreign.dynamo()
    expected = normalize(model)
    onnx.save(model, str(path), save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    assert path.stat().st_size < 20_000 < (tmp_path / "net.onnx.data").stat().st_size
    found = normalize(load_onnx(path))
    assert (found.model.graph.node, found.max_error) == (expected.model.graph.node, expected.max_error)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"net\.onnx: not a valid ONNX file \(.*net\.onnx\.data.*\); export or copy"):
        load_onnx(path)


def test_files_that_are_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(ModelError, match="no such file; edgeres export writes one"):
        load_onnx(path)
    with pytest.raises(ModelError, match="no such file"):
        load_onnx(tmp_path)
    path.touch()
    with pytest.raises(ModelError, match=r"the file is empty; export or copy it again"):
        load_onnx(path)
    whole = plain().SerializeToString()
    for content in (b"PK\x03\x04 a checkpoint, not a graph", whole[: len(whole) // 2], b"\x00" * 64, whole[:3]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"net\.onnx: not a valid ONNX file \(.+\); export or copy it again"):
            load_onnx(path)
