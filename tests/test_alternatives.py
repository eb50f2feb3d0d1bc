"""Further forms of a network in a bundle, and the probe images that a device tries them on."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import foreign_graphs
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bundles import CLASSES, SIDE, spec, write_bundle, write_images

from edgeres import build
from edgeres.bundle import FP16, FP32, PROBES, Bundle
from edgeres.data.preprocess import normalize
from edgeres.engine.engines import graph_of
from edgeres.errors import BundleError, ModelError
from edgeres.graph.half import to_fp16
from edgeres.graph.lint import lint
from edgeres.graph.normalize import normalize as canonical
from edgeres.graph.shared_weights import cast_weights
from edgeres.quantize.alternatives import Alternative, Material, alternatives, try_alternatives
from edgeres.quantize.trial import Probes
from edgeres.records import FormRecord, ModelSpec, Preprocess
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.probes import ProbeSet, read_probes

PX = foreign_graphs.PX
NORMALIZATIONS = {
    "imagenet": spec(),
    "imagenet, channels last, BGR": spec(layout="NHWC", channel_order="BGR"),
    "bytes minus 128": spec(mean=(128.0,) * 3, std=(1.0,) * 3, pixel_scale=1.0),
}

IMAGES = np.zeros((2, SIDE, SIDE, 3), np.uint8)
SCORES = np.zeros((2, len(CLASSES)), np.float32)


def scores_of(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def npz(**arrays: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.savez(file, **arrays)
        return file.getvalue()


@pytest.mark.parametrize("model", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_probes_of_pixels_are_kept_as_bytes_and_read_back_exactly(tmp_path: Path, model: ModelSpec) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    given = ProbeSet(normalize(pixels, model.preprocess), np.random.default_rng(1).random((5, 6), np.float32))
    content = given.to_npz(model.preprocess)
    with np.load(io.BytesIO(content)) as arrays:
        for row in range(SIDE):  # each pixel is the one on its left and its step, in bytes
            assert np.array_equal(arrays["steps"][:, row, 0], pixels[:, row, 0])
            steps = pixels[:, row, :-1] + arrays["steps"][:, row, 1:]
            assert np.array_equal(steps, pixels[:, row, 1:])
    path = write_bundle(tmp_path / "b.edgeres", model, {PROBES: content})
    found = read_probes(Bundle(path))
    assert np.array_equal(found.inputs, given.inputs)
    assert np.array_equal(found.scores, given.scores)


def test_probes_of_older_bundles_are_pixels_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    bundle = Bundle(write_bundle(tmp_path / "b.edgeres", files={PROBES: npz(pixels=pixels, scores=SCORES)}))
    assert np.array_equal(read_probes(bundle).inputs, normalize(pixels, spec().preprocess))


def test_probes_that_no_bytes_give_are_kept_as_they_are(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).random((3, 3, SIDE, SIDE), np.float32)
    content = ProbeSet(inputs, np.zeros((3, 6), np.float32)).to_npz(spec().preprocess)
    found = read_probes(Bundle(write_bundle(tmp_path / "b.edgeres", files={PROBES: content})))
    assert np.array_equal(found.inputs, inputs)


WRONG = {
    "no archive": b"probes",
    "cut": npz(pixels=IMAGES, scores=SCORES)[:200],
    "no scores": npz(pixels=IMAGES),
    "no images": npz(scores=SCORES),
    "none": npz(pixels=IMAGES[:0], scores=SCORES[:0]),
    "other count": npz(pixels=IMAGES, scores=SCORES[:1]),
    "other classes": npz(pixels=IMAGES, scores=SCORES[:, :5]),
    "other size": npz(pixels=IMAGES[:, :4], scores=SCORES),
    "other rank": npz(pixels=IMAGES[0, 0, 0], scores=SCORES),
    "other type": npz(inputs=np.zeros((2, 3, SIDE, SIDE)), scores=SCORES),
    "pixels of another type": npz(pixels=IMAGES.astype(np.float32) + 300, scores=SCORES),
    "steps of another type": npz(steps=IMAGES.astype(np.float32) + 0.5, scores=SCORES),
    "steps without rows": npz(steps=IMAGES[0, 0], scores=SCORES),
    "objects": npz(pixels=IMAGES, scores=np.array([None])),
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_wrong_probes_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    bundle = Bundle(write_bundle(tmp_path / "b.edgeres", files={PROBES: content}))
    with pytest.raises(BundleError, match=r"probes\.npz") as caught:
        read_probes(bundle)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def network() -> tuple[onnx.ModelProto, np.ndarray]:
    x = np.random.default_rng(0).uniform(0, 1, (8, 3, PX, PX)).astype(np.float32)
    return canonical(foreign_graphs.option_a()).model, x


def test_the_fp16_form_computes_in_float16(network: tuple[onnx.ModelProto, np.ndarray]) -> None:
    fp32, x = network
    found = {form.record.name: form for form in alternatives(Material(fp32))}
    tried = try_alternatives([found["fp16"]], Probes.of(fp32, x))
    assert not tried.left_out
    graph = tried.graphs["fp16"]
    casts = {node.output[0] for node in graph.graph.node if node.op_type == "Cast"}
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer} | dict.fromkeys(
        casts, onnx.TensorProto.FLOAT16
    )
    weights = {types[node.input[1]] for node in graph.graph.node if node.op_type == "Conv"}
    assert weights == {onnx.TensorProto.FLOAT16}
    exact, rounded = scores_of(fp32, x), scores_of(graph, x)
    noise = ((exact - rounded) ** 2).sum() / (exact**2).sum()
    assert 0 < noise < 1e-4
    assert tried.sqnr_db["fp16"] == pytest.approx(-10 * np.log10(noise), abs=0.5)


def test_weights_that_are_cast_from_float32_give_the_same_bits_as_float16_ones(
    network: tuple[onnx.ModelProto, np.ndarray],
) -> None:
    fp32, x = network
    own = to_fp16(fp32)
    cast = cast_weights(to_fp16(fp32), fp32)
    onnx.checker.check_model(cast)
    assert np.array_equal(scores_of(own, x), scores_of(cast, x))
    large = [tensor for tensor in cast.graph.initializer if len(tensor.raw_data) >= 1024]
    assert large
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT}
    assert not lint(cast)


def single_product(weights: np.ndarray, kind: int) -> onnx.ModelProto:
    values = [onnx.helper.make_tensor_value_info(name, kind, ["n", 32]) for name in "xy"]
    node, stored = (
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
        onnx.numpy_helper.from_array(weights, "w"),
    )
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [stored])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


@pytest.mark.parametrize("changed", [False, True])
def test_only_weights_of_the_same_bits_are_cast(changed: bool) -> None:
    weights = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    half = weights.astype(np.float16)
    half[3, 4] += np.float16(changed * 0.01)
    made = cast_weights(single_product(half, onnx.TensorProto.FLOAT16), single_product(weights, onnx.TensorProto.FLOAT))
    assert [node.op_type for node in made.graph.node] == (["MatMul"] if changed else ["Cast", "MatMul"])
    x = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float16)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    exact = x.astype(np.float64) @ half.astype(np.float64)
    assert np.abs(session.run(None, {"x": x})[0] - exact).max() < 0.05


def test_a_form_that_fails_is_left_out_with_its_reason(network: tuple[onnx.ModelProto, np.ndarray]) -> None:
    fp32, x = network

    def negated() -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(fp32)
        weight = next(tensor for tensor in made.graph.initializer if len(tensor.dims) == 4)
        weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        return made

    def cannot() -> onnx.ModelProto:
        raise ModelError("no such layer")

    def form(name: str) -> FormRecord:
        return FormRecord(name, f"{name}.onnx", ("rtx",), "int8", "half", "float32", "")

    def given() -> Iterator[Alternative]:
        yield Alternative(form("good"), lambda: fp32, 1e-2)
        yield Alternative(form("wrong"), negated, 1e-2)
        yield Alternative(form("failing"), cannot, 1e-2)

    tried = try_alternatives(list(given()), Probes.of(fp32, x))
    assert tried.graphs.keys() == {"good"}
    assert "dB SQNR" in tried.left_out["wrong"]
    assert tried.left_out["failing"] == "no such layer"


def test_no_onnx_is_needed_for_an_fp16_engine_of_a_bundle_with_that_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (FP16, FP32):
        (tmp_path / name).write_bytes(b"graph")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert graph_of(tmp_path, "fp16", "tensorrt", Preprocess(crop_px=(8, 8))) == tmp_path / FP16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("forms")
    onnx.save(foreign_graphs.option_a(), str(folder / "net.onnx"))
    images = write_images(folder / "images.npz", 40, px=PX)
    build(
        folder / "net.onnx",
        calibration=str(images),
        validation=str(images),
        targets=("cpu", "rtx", "jetson-orin-nano"),
        max_drop=None,
        output=folder / "net.edgeres",
    )
    return Bundle(folder / "net.edgeres")


def test_a_bundle_lists_its_forms_and_they_compute_what_it_says(bundle: Bundle) -> None:
    """The first probes are the images that the manifest's figures are of."""
    probes = read_probes(bundle)
    assert len(probes.inputs) == 40
    for_engines = [form for form in bundle.forms if set(form.runtimes) != {"onnxruntime"}]
    assert 4 < len(for_engines) <= 8
    assert {form.name for form in bundle.forms} > {"tensorrt", "rtx", "cpu", "fp16"}
    assert bundle.manifest.default_form == {"tensorrt": "tensorrt", "rtx": "rtx", "onnxruntime": "cpu"}
    for form in bundle.forms:
        with OrtRunner(bundle.file(form.file), integer=form.name == "cpu") as runner:
            found = runner.infer({runner.input_name: probes.inputs[:8]})[runner.output_name]
        exact = probes.scores[:8]
        sqnr = 10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum())
        assert form.sqnr_db == pytest.approx(sqnr, abs=0.2), form.name


def test_default_forms_hold_their_weights_and_others_share_them(bundle: Bundle) -> None:
    alone = {form.name for form in bundle.forms if not form.weights}
    assert alone >= {"tensorrt", "cpu"}
    assert next(form for form in bundle.forms if form.name == "fp16").weights == (FP32,)
    assert (bundle.path / FP16).stat().st_size < 0.1 * (bundle.path / FP32).stat().st_size
    for form in bundle.forms:
        tensors = onnx.load(str(bundle.path / form.file), load_external_data=False).graph.initializer
        places = {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}
        assert places == set(form.weights), form.name
    shared = [form.file for form in bundle.forms if "model.int8.onnx" in form.weights]
    assert shared
    (bundle.path / "model.int8.onnx").rename(bundle.path / "gone.onnx")
    try:
        for file in shared:
            with pytest.raises(BundleError, match=r"model\.int8\.onnx is missing"):
                bundle.file(file)
    finally:
        (bundle.path / "gone.onnx").rename(bundle.path / "model.int8.onnx")
