"""The door of foreign graphs: float types, free sizes, post-processing, and outputs that are no scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from foreign_graphs import CLASSES, PX, Writer, relu
from onnx import TensorProto, helper, numpy_helper

from edgeres.errors import ModelError, UsageError
from edgeres.graph.normalize import Canonical, normalize
from edgeres.pipeline.take import ModelChoice, take

IMAGES = np.random.default_rng(0).standard_normal((3, 3, PX, PX)).astype(np.float32)


def residual(w: Writer, image: str = "data") -> str:
    """A residual block with batch norm; 8 channels."""
    x = relu(w, w.bn(w.conv(image, (3, 8), 3, 2), 8))
    return relu(w, w.op("Add", x, w.bn(w.conv(x, (8, 8)), 8)))


def scores(w: Writer, image: str = "data") -> str:
    return w.head(residual(w, image), 8)


def plain(**options: Any) -> onnx.ModelProto:
    w = Writer()
    return w.model(scores(w), **options)


def run(model: onnx.ModelProto, images: Any, output: str | None = None) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([output] if output else None, {session.get_inputs()[0].name: images})[0]


def assert_computes(found: Canonical, expected: Any, *, images: Any = IMAGES, within: float = 1e-5) -> None:
    got = run(found.model, images)
    np.testing.assert_allclose(got, expected, atol=within * np.abs(expected).max(), rtol=0)


# Float types


def in_type(model: onnx.ModelProto, kind: int, *, interface: bool) -> onnx.ModelProto:
    """The same graph with weights of this type, and its interface, or between Casts."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    image, output = model.graph.input[0], model.graph.output[0]
    if interface:
        image.type.tensor_type.elem_type = output.type.tensor_type.elem_type = kind
        return model
    for node in model.graph.node:
        node.input[:] = ["narrow" if name == image.name else name for name in node.input]
        node.output[:] = ["wide" if name == output.name else name for name in node.output]
    model.graph.node.insert(0, helper.make_node("Cast", [image.name], ["narrow"], to=kind))
    model.graph.node.append(helper.make_node("Cast", ["wide"], [output.name], to=TensorProto.FLOAT))
    return model


@pytest.mark.parametrize("interface", [True, False])
def test_float16_graphs_are_taken_in_float32(interface: bool) -> None:
    half = in_type(plain(), TensorProto.FLOAT16, interface=interface)
    found = normalize(half)
    expected = run(half, IMAGES.astype(np.float16) if interface else IMAGES).astype(np.float32)
    assert_computes(found, expected, images=IMAGES.astype(np.float16).astype(np.float32), within=0.01)
    assert {t.data_type for t in found.model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    assert found.model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert not [node for node in found.model.graph.node if node.op_type == "Cast"]
    words = {"float16 parts made float32", "float16 input made float32"}
    assert set(found.notes) == (words if interface else words - {"float16 input made float32"})


def test_float16_weights_are_the_exact_ones() -> None:
    """Beside float32 Casts, a float16 weight becomes the float32 number that it is."""
    half = in_type(plain(), TensorProto.FLOAT16, interface=False)
    exact = plain()
    for tensor in exact.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert_computes(normalize(half), run(exact, IMAGES))


@pytest.mark.parametrize("interface", [True, False])
def test_bfloat16_graphs_are_taken_in_float32(interface: bool) -> None:
    found = normalize(in_type(plain(), TensorProto.BFLOAT16, interface=interface))
    assert_computes(found, run(plain(), IMAGES), within=0.03)
    assert "bfloat16 parts made float32" in found.notes


def test_a_float16_graph_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    half = in_type(plain(), TensorProto.FLOAT16, interface=False)
    real = numpy_helper.to_array
    monkeypatch.setattr(
        "edgeres.graph.plain.numpy_helper.to_array",
        lambda tensor, *given: real(tensor, *given) * (1.2 if tensor.data_type == TensorProto.FLOAT16 else 1),
    )
    with pytest.raises(ModelError, match="scores differ by"):
        normalize(half)


# Free sizes


@pytest.mark.parametrize("shape", [("N", 3, "h", "w"), (1, 3, -1, -1), ("N", "h", "w", 3)])
def test_a_size_is_given_to_a_graph_that_leaves_it_free(shape: tuple[Any, ...]) -> None:
    w = Writer()
    image = w.op("Transpose", "data", perm=[0, 3, 1, 2]) if shape[-1] == 3 else "data"
    model = w.model(scores(w, image), shape=shape, output_shape=None)
    with pytest.raises(ModelError, match="height and width of the input are dynamic; give --input-px, such as 224"):
        normalize(model)
    found = normalize(model, size_px=(48, 64))
    assert found.size_px == (48, 64)
    images = np.random.default_rng(0).standard_normal((1, 3, 48, 64)).astype(np.float32)
    images = images.transpose(0, 2, 3, 1) if shape[-1] == 3 else images
    assert_computes(found, run(model, images), images=images)


def test_sizes_computed_from_the_image_become_constants() -> None:
    w = Writer()
    x = residual(w)
    pixels = w.op("ReduceProd", w.op("Gather", w.op("Shape", x), w.const([2, 3])), keepdims=0)
    total = w.op("ReduceSum", x, w.const([2, 3]), keepdims=0)
    mean = w.op("Div", total, w.op("Cast", pixels, to=TensorProto.FLOAT))
    model = w.model(w.op("Gemm", mean, w.random(8, CLASSES)), shape=("N", 3, "h", "w"), output_shape=None)
    found = normalize(model, size_px=(PX, PX))
    assert_computes(found, run(model, IMAGES))
    assert "Shape" not in {node.op_type for node in found.model.graph.node}


def test_another_size_than_the_graphs_own_is_refused() -> None:
    assert normalize(plain(), size_px=(PX, PX)).size_px == (PX, PX)
    with pytest.raises(UsageError, match="the graph takes images of 32x32 px, not 48x32; leave out --input-px"):
        normalize(plain(), size_px=(48, PX))


def test_input_px_reaches_files_and_models_of_the_zoo(tmp_path: Path) -> None:
    w = Writer()
    onnx.save(w.model(scores(w), shape=("N", 3, "h", "w")), tmp_path / "a.onnx")
    assert take(ModelChoice(tmp_path / "a.onnx", input_px=(48, 64))).spec.preprocess.crop_px == (48, 64)
    preprocess = take(ModelChoice("resnet18", weights="random", num_classes=2, input_px=(112, 160))).spec.preprocess
    assert (preprocess.crop_px, preprocess.resize_px) == ((112, 160), (128, 183))


# Post-processing


def top_k(w: Writer, x: str, k: int = 5, **attributes: Any) -> tuple[str, str]:
    values, indices = (f"top{len(w.nodes)}:{i}" for i in (0, 1))
    count = w.const(np.array([k], np.int64))
    w.nodes.append(helper.make_node("TopK", [x, count], [values, indices], name=values, **attributes))
    return values, indices


def softmax_top5(w: Writer) -> tuple[str, list[str]]:
    probabilities = w.op("Softmax", scores(w), axis=1)
    return probabilities, list(top_k(w, probabilities))


def sorted_scores(w: Writer) -> tuple[str, list[str]]:
    logits = scores(w)
    return logits, [top_k(w, logits, CLASSES, axis=-1)[0]]


def best_class(w: Writer) -> tuple[str, list[str]]:
    logits = scores(w)
    return logits, [w.op("ArgMax", logits, axis=1, keepdims=0)]


def class_and_confidence(w: Writer) -> tuple[str, list[str]]:
    probabilities = w.op("Softmax", scores(w), axis=1)
    return probabilities, [
        w.op("ArgMax", probabilities, axis=1, keepdims=0),
        w.op("ReduceMax", probabilities, axes=[1], keepdims=0),
    ]


def scores_and_class(w: Writer) -> tuple[str, list[str]]:
    logits = scores(w)
    return logits, [logits, w.op("Cast", w.op("ArgMax", logits, axis=1), to=TensorProto.FLOAT)]


def rescaled_values(w: Writer) -> tuple[str, list[str]]:
    logits = scores(w)
    values, indices = top_k(w, logits)
    return logits, [w.op("Softmax", values, axis=1), w.op("Cast", indices, to=TensorProto.INT32)]


def one_hot(w: Writer) -> tuple[str, list[str]]:
    logits = scores(w)
    return logits, [w.op("Hardmax", logits, axis=1)]


SELECTIONS: list[Callable[[Writer], tuple[str, list[str]]]] = [
    *(softmax_top5, sorted_scores, best_class, class_and_confidence, scores_and_class, rescaled_values, one_hot)
]


def with_outputs(w: Writer, names: list[str]) -> onnx.ModelProto:
    """The model with these outputs, of the types and shapes that onnx infers."""
    model = w.model(names[0], output_shape=None)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    inferred = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(inferred)
    return inferred


@pytest.mark.parametrize("build", SELECTIONS)
def test_post_processing_is_taken_off_with_a_note(build: Callable[[Writer], tuple[str, list[str]]]) -> None:
    w = Writer()
    before, names = build(w)
    model = with_outputs(w, names)
    found = normalize(model)
    onnx.checker.check_model(found.model, full_check=True)
    reference = with_outputs(w, [before])
    assert_computes(found, run(reference, IMAGES))
    assert found.num_classes == CLASSES
    noted = [note for note in found.notes if f"the output is {before}, the scores before it" in note]
    assert len(noted) == 1 and any(name in noted[0] for name in names if name != before)


def test_selections_from_several_tensors_are_refused() -> None:
    w = Writer()
    x = residual(w)
    heads = [w.head(x, 8), w.head(x, 8)]
    model = with_outputs(w, [w.op("ArgMax", head, axis=1) for head in heads])
    with pytest.raises(ModelError, match=r"ArgMax select from 2 tensors .*export the scores themselves"):
        normalize(model)


def test_a_selection_within_the_network_stays() -> None:
    w = Writer()
    flat = w.op("Flatten", w.op("GlobalAveragePool", residual(w)))
    values, _ = top_k(w, flat, 4)
    model = w.model(w.op("Gemm", values, w.random(4, CLASSES)))
    found = normalize(model)
    assert_computes(found, run(model, IMAGES))
    assert not any("taken off" in note for note in found.notes)


# Outputs that are no scores


def pooled(w: Writer) -> str:
    return w.op("Flatten", w.op("GlobalAveragePool", residual(w)))


def pooled_by_mean(w: Writer) -> str:
    return w.op("ReduceMean", residual(w), axes=[2, 3], keepdims=0)


def unit_length(w: Writer) -> str:
    x = scores(w)
    norm = w.op("Clip", w.op("ReduceL2", x, axes=[1], keepdims=1), w.const(np.float32(1e-12)))
    return w.op("Div", x, norm)


def unit_length_by_squares(w: Writer) -> str:
    x = scores(w)
    return w.op("Div", x, w.op("Sqrt", w.op("ReduceSum", w.op("Mul", x, x), w.const([1]), keepdims=1)))


def lp_normalized(w: Writer) -> str:
    return w.op("LpNormalization", scores(w), axis=1)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (pooled, "is pooled features"),
        (pooled_by_mean, "is pooled features"),
        (unit_length, "is normalized to length 1, as embeddings are"),
        (unit_length_by_squares, "is normalized to length 1"),
        (lp_normalized, "is normalized to length 1"),
    ],
)
def test_features_and_embeddings_are_refused(build: Callable[[Writer], str], words: str) -> None:
    w = Writer()
    with pytest.raises(ModelError, match=words + r".*export the network with its classifier"):
        normalize(with_outputs(w, [build(w)]))


def test_a_softmax_in_its_parts_is_no_embedding() -> None:
    w = Writer()
    powers = w.op("Exp", scores(w))
    model = with_outputs(w, [w.op("Div", powers, w.op("ReduceSum", powers, w.const([1]), keepdims=1))])
    assert_computes(normalize(model), run(model, IMAGES))


def test_a_classifier_of_pooled_maps_is_taken_with_a_note() -> None:
    w = Writer()
    x = relu(w, w.conv(residual(w), (8, CLASSES), 1, bias=True))
    model = with_outputs(w, [w.op("Flatten", w.op("GlobalAveragePool", x))])
    found = normalize(model)
    assert_computes(found, run(model, IMAGES))
    assert any("figures are void if the output is features" in note for note in found.notes)
