"""The runtime: images in, labels out, with exactly the scores of the bare session."""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime as ort
import pytest
from bundles import CLASSES, SIDE, classifier, spec, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

import edgeres
from edgeres.data.preprocess import geometry
from edgeres.errors import BundleError, EdgeresError, InputError, ModelError, SourceError
from edgeres.graph.forms import FORMS
from edgeres.records import F32, U8
from edgeres.runtime import Classifier, Frame, OrtRunner, Prediction, load

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def noise(height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def prepared(image: U8) -> F32:
    """The default preprocessing written in Pillow and NumPy: (3, 8, 8)."""
    small = image
    if image.shape[:2] != (SIDE, SIDE):
        wide = Image.fromarray(image).resize((SIDE, image.shape[0]), Image.Resampling.BILINEAR)
        small = np.asarray(wide.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(((small / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1))


def bare(model: bytes, inputs: F32) -> F32:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores: F32 = session.run(None, {"pixels": inputs})[0]
    return scores


def softmax(logits: F32) -> F32:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("runtime") / "tiny.edgeres")


@pytest.mark.parametrize("size", [(SIDE, SIDE), (31, 17), (5, 40)])
def test_a_prediction_is_what_the_bare_session_gives(path: Path, size: tuple[int, int]) -> None:
    image = noise(*size)
    expected = bare(classifier(), prepared(image)[None])[0]
    with Classifier(path, threads=1) as classify:
        got = classify(image)
    np.testing.assert_allclose(got.logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.scores, softmax(expected), rtol=1e-5, atol=1e-6)
    assert got.index == int(expected.argmax())
    assert got.label == CLASSES[got.index]
    assert got.score == pytest.approx(float(softmax(expected).max()), rel=1e-5)


def test_a_batch_of_mixed_sizes_is_each_image_alone(path: Path) -> None:
    images = [noise(8, 8, 1), noise(50, 20, 2), noise(9, 33, 3), noise(8, 8, 4)]
    with load(path) as classify:
        together, alone = classify.batch(images), [classify(image) for image in images]
        assert classify.batch([]) == []
    assert len({t.logits.tobytes() for t in together}) == len(images)
    for one, same in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.logits, same.logits, rtol=1e-5, atol=1e-5)


def test_files_and_arrays_give_the_same(path: Path, tmp_path: Path) -> None:
    image = noise(20, 30)
    Image.fromarray(image).save(tmp_path / "phöto 1.png")
    Image.fromarray(image).convert("RGBA").save(tmp_path / "alpha.png")
    with load(str(path)) as classify:
        files = [tmp_path / "phöto 1.png", str(tmp_path / "phöto 1.png"), tmp_path / "alpha.png"]
        for one in classify.batch(files):
            np.testing.assert_array_equal(one.logits, classify.batch([image] * 3)[0].logits)


def test_frames_have_the_depth_and_channels_of_the_bundle(tmp_path: Path) -> None:
    """The prepared pixels of frames are those of the same image in an array, or computed by hand."""
    depth = np.random.default_rng(0).integers(0, 6000, (SIDE, SIDE), np.uint16)
    made = spec()
    reading = replace(made.preprocess.reading, full_scale=5000)
    scaled = write_bundle(tmp_path / "a.edgeres", replace(made, preprocess=replace(made.preprocess, reading=reading)))
    with Classifier(scaled, threads=1) as classify:
        wanted = np.floor(np.minimum(depth, 5000) / 5000 * 255 + 0.5)
        for name in ("mono16", "16UC1"):
            np.testing.assert_array_equal(classify.prepare(Frame(depth, name))[..., 1], wanted)
    four = {"mean": (0.5,) * 4, "std": (0.5,) * 4, "reading": replace(reading, channels=4)}
    rgba = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 4), np.uint8)
    p = replace(made.preprocess, **four)
    np.testing.assert_array_equal(geometry(Frame(rgba, "rgba8").pixels(p.reading), p), geometry(rgba, p))


def test_images_come_as_robots_have_them(path: Path, tmp_path: Path) -> None:
    """The content of a file in any buffer, as ROS's CompressedImage and OpenCV's imencode give it; images of Pillow."""
    Image.fromarray(noise(9, 12)).save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    flat = np.frombuffer(content, np.uint8)
    with Classifier(path, threads=1) as classify, Image.open(tmp_path / "photo.png") as opened:
        wanted = classify(noise(9, 12)).logits.tobytes()
        images = [
            content,
            bytearray(content),
            memoryview(content),
            array("B", content),
            flat,
            flat.repeat(2)[::2],
            flat[:, None],
        ]
        images += [opened, Image.fromarray(noise(9, 12)), opened.convert("RGBA"), tmp_path / "photo.png"]
        for image in images:
            assert classify(image).logits.tobytes() == wanted
        for several in (iter(images), (image for image in images), tuple(images), {0: content}.values()):
            assert {one.logits.tobytes() for one in classify.batch(several)} == {wanted}
        for several in (np.stack([noise(9, 12)] * 2), np.array([content], object)):
            assert {one.logits.tobytes() for one in classify.batch(several)} == {wanted}


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("photo.png", "found str"),
        (b"abc", "found bytes"),
        (noise(8, 8), r"found an array \(8, 8, 3\)"),
        (Path("a"), "found PosixPath"),
        (None, "found NoneType"),
        (Image.new("RGB", (8, 8)), "found Image"),
        (5, "found int"),
    ],
)
def test_one_image_is_no_batch(path: Path, images: Any, words: str) -> None:
    with Classifier(path, threads=1) as classify, pytest.raises(InputError, match=f"a sequence of images, {words}"):
        classify.batch(images)


@pytest.mark.parametrize("image", [array("H", [1]), np.zeros(4), memoryview(b"1234").cast("I"), np.array(3), [1], None])
def test_what_is_no_image_is_named(path: Path, image: Any) -> None:
    with Classifier(path, threads=1) as classify, pytest.raises(InputError, match=r"(an|expected an RGB) image"):
        classify(image)


def test_probabilities_are_not_normalized_twice(tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "logits.edgeres")
    normal = write_bundle(
        tmp_path / "softmax.edgeres", spec(output="probabilities"), {FORMS["cpu"].file: classifier(softmax=True)}
    )
    image = noise(12, 12)
    with load(plain) as logits, load(normal) as probabilities:
        one, other = logits(image), probabilities(image)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(other.scores, other.logits)
    assert one.label == other.label


@pytest.mark.parametrize(
    ("changes", "turned"),
    [
        ({"channel_order": "BGR", "mean": tuple(MEAN[::-1]), "std": tuple(STD[::-1])}, lambda x: x[::-1]),
        ({"layout": "NHWC"}, lambda x: x.transpose(1, 2, 0)),
    ],
    ids=["BGR", "NHWC"],
)
def test_the_bundle_says_how_pixels_become_the_input(tmp_path: Path, changes: dict[str, Any], turned: Any) -> None:
    model = classifier(layout=changes.get("layout", "NCHW"))
    path = write_bundle(tmp_path / "tiny.edgeres", spec(**changes), {FORMS["cpu"].file: model})
    image = noise(SIDE, SIDE)
    with load(path) as classify:
        got = classify(image).logits
    expected = bare(model, np.ascontiguousarray(turned(prepared(image)))[None])[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-80, 80, width=32), min_size=len(CLASSES), max_size=len(CLASSES)),
    st.integers(1, 2 * len(CLASSES)),
)
def test_top_is_in_falling_order_and_begins_with_the_label(logits: list[float], count: int) -> None:
    scores = softmax(np.array(logits, np.float32))
    one = Prediction(scores, np.array(logits, np.float32), CLASSES)
    best = one.top(count)
    assert best[0] == (one.label, one.score)
    assert [score for _, score in best] == sorted(scores.tolist(), reverse=True)[:count]
    assert len({label for label, _ in best}) == min(count, len(CLASSES))
    assert all(score == float(scores[CLASSES.index(label)]) for label, score in best)


def test_large_logits_do_not_overflow(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "tiny.edgeres", spec(pixel_scale=1e6))
    with load(path) as classify, np.errstate(all="raise", under="ignore"):
        one = classify(noise(8, 8))
    assert np.abs(one.logits).max() > 100  # exp() of it overflows float32
    assert one.scores.sum() == pytest.approx(1, rel=1e-5)


def test_the_graph_for_tensorrt_serves_where_there_is_no_other(tmp_path: Path) -> None:
    first, second = classifier(seed=1), classifier(seed=2)
    image = noise(SIDE, SIDE)
    only = write_bundle(tmp_path / "a.edgeres", files={FORMS["tensorrt"].file: first})
    both = write_bundle(tmp_path / "b.edgeres", files={FORMS["tensorrt"].file: first, FORMS["cpu"].file: second})
    for path, model in ((only, first), (both, second)):
        with load(path) as classify:
            np.testing.assert_allclose(classify(image).logits, bare(model, prepared(image)[None])[0], rtol=1e-4)


def test_the_classifier_says_what_it_is(path: Path) -> None:
    with load(path) as classify:
        assert classify.labels == CLASSES
        assert classify.preprocess == spec().preprocess
        assert classify.backend == f"ONNX Runtime {ort.__version__} CPU"


@pytest.mark.parametrize(
    "image",
    [
        noise(8, 8)[:, :, 0],
        noise(8, 8).astype(np.float32) / 255,
        noise(8, 8).transpose(2, 0, 1),
        noise(8, 8)[None],
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["gray", "float", "CHW", "batch", "empty"],
)
def test_an_array_that_is_no_image_is_refused(path: Path, image: Any) -> None:
    with load(path) as classify, pytest.raises(InputError) as caught:
        classify(image)
    assert "(H, W, 3)" in str(caught.value)


@pytest.mark.parametrize(("content", "cause"), [(None, "No such file"), (b"no image", "not an image")])
def test_a_file_that_is_no_image_is_named(path: Path, tmp_path: Path, content: bytes | None, cause: str) -> None:
    file = tmp_path / "photo.jpg"
    if content is not None:
        file.write_bytes(content)
    with load(path) as classify, pytest.raises(SourceError, match=cause) as caught:
        classify.batch([noise(8, 8), file])
    assert str(file) in str(caught.value)


def test_a_changed_graph_is_not_run(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "tiny.edgeres")
    (path / FORMS["cpu"].file).write_bytes(classifier(seed=1))
    with pytest.raises(BundleError, match="was changed"):
        load(path)


def test_a_bundle_without_an_int8_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no INT8 graph"):
        load(write_bundle(tmp_path / "tiny.edgeres", files={"model.fp32.onnx": classifier()}))


def test_a_graph_that_does_not_load_is_named(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "tiny.edgeres", files={FORMS["cpu"].file: b"no graph"})
    with pytest.raises(ModelError) as caught:
        load(path)
    assert FORMS["cpu"].file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_runner_takes_a_file_or_bytes_and_names_its_tensors(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(classifier())
    inputs = prepared(noise(SIDE, SIDE))[None]
    for model in (file, classifier()):
        with OrtRunner(model, threads=1) as runner:
            assert (runner.input_name, runner.output_name) == ("pixels", "scores")
            np.testing.assert_array_equal(runner.infer({"pixels": inputs})["scores"], bare(classifier(), inputs))
    with pytest.raises(ModelError, match="no such file"):
        OrtRunner(tmp_path / "nowhere.onnx")


def test_the_package_offers_the_runtime_by_name(path: Path) -> None:
    with edgeres.load(path) as classify:
        assert isinstance(classify, edgeres.Classifier)
    with pytest.raises(EdgeresError, match="no such bundle"):
        edgeres.load(path / "nowhere")
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = edgeres.lode


def test_the_benchmark_measures_each_thing(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    benchmark: Any = __import__("runtime")
    monkeypatch.setattr(benchmark, "PROCESSES", 1)
    benchmark.main([str(path), "--rounds", "3", "--inferences", "80", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["import"]["edgeres.runtime_s"] > result["import"]["numpy_s"] / 2 > 0
    assert result["overhead"]["call_ms"] > 0 and result["overhead"]["rounds"] == 3
    assert result["1280x720 by the bundle"]["crop_px"] == [SIDE, SIDE]
    assert result["1280x720 by ImageNet's usual"]["resize_px"] == 256
    assert result["steady memory"]["inferences"] == 80 and result["steady memory"]["wrong"] == 0


def test_a_large_batch_takes_the_memory_of_a_part_of_it() -> None:
    """On the CPU all layers of all images would be in memory, and ONNX Runtime keeps what it has taken."""
    inputs = np.random.default_rng(0).normal(size=(300, 3, SIDE, SIDE)).astype(np.float32)
    with OrtRunner(classifier(), threads=1) as runner:
        session = mock.Mock(wraps=runner._session)
        runner._session = session
        found = runner.infer({runner.input_name: inputs})[runner.output_name]
        sizes = [len(call.args[1][runner.input_name]) for call in session.run.call_args_list]
        assert sum(sizes) == 300 and max(sizes) <= 128
        alone = np.concatenate([runner.infer({runner.input_name: one[None]})[runner.output_name] for one in inputs])
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)


def test_a_graph_that_fails_when_it_runs_is_an_error_of_the_model() -> None:
    """It loads, because its sizes are not known before there is an image."""
    given = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 6])
    wrong = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 7])
    nodes = [helper.make_node("Reshape", ["pixels", "shape"], ["r"]), helper.make_node("Identity", ["r"], ["scores"])]
    graph = helper.make_graph(nodes, "wrong", [given], [scores], [wrong])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with OrtRunner(model) as runner, pytest.raises(ModelError, match="ONNX Runtime cannot run this graph") as told:
        runner.infer({"pixels": np.zeros((1, 3, SIDE, SIDE), np.float32)})
    assert "\n" not in str(told.value)
