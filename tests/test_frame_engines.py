"""Engines that take a camera's frames, from the command that builds them to the answer, on a simulated GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from bundles import classifier, spec, write_images
from click.testing import CliRunner
from fake_gpu import Gpu, Planted, machine
from PIL import Image

from edgeres.bundle import FP32, Bundle, new_bundle, seal
from edgeres.cli.engine import command
from edgeres.data.choose import DataChoice
from edgeres.data.filmed import filmed
from edgeres.errors import BundleError, InputError
from edgeres.files import write_file
from edgeres.graph.forms import FORMS
from edgeres.graph.frame import with_frame
from edgeres.pipeline.options import VerifyOptions
from edgeres.pipeline.verify import verify_bundle
from edgeres.records import BYTE_FORMATS, U8, FormRecord, Manifest
from edgeres.runtime import Classifier, Frame
from edgeres.runtime.frames import frame_from, frame_spec

GRAPH = classifier()
OTHER = classifier(seed=5)


def noise(*shape: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gpu]:
    found = Gpu()
    with machine(monkeypatch, found, cache=tmp_path / "cache"):
        yield found


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.edgeres"
    forms = tuple(
        FormRecord(n, f"model.{n}.onnx", ("tensorrt",), "int8", None, "float32", "") for n in ("free", "int8")
    )
    with new_bundle(path) as folder:
        for form in forms:
            write_file(folder / form.file, OTHER if form.name == "free" else GRAPH)
        write_file(folder / FP32, GRAPH)
        seal(folder, Manifest(spec(resize_px=10), {}, {}, {}, {}, forms=forms, default_form={"tensorrt": "int8"}))
    return path


def engine(bundle: Path, *arguments: str) -> Any:
    return CliRunner().invoke(command, [str(bundle), "--target", "tensorrt", "--no-tune", *arguments])


@pytest.fixture
def built_elsewhere(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Adds an engine for a frame to the bundle, built on a GPU that this machine does not have."""

    def build(frame: str) -> None:
        with machine(monkeypatch, Gpu(), cache=tmp_path / "cache"):
            assert engine(bundle, "--frame", frame).exit_code == 0

    return build


def test_the_answer_to_a_frame_is_that_to_its_prepared_image(gpu: Gpu, bundle: Path) -> None:
    asked = ("32x24:BGRx", "32x24:nv12:step=40:rows=26:bt709")
    found = engine(bundle, *(word for text in asked for word in ("--frame", text)))
    assert found.exit_code == 0, found.output
    records = Bundle(bundle).manifest.engines
    assert [str(one.frame) for one in records] == ["None", "32x24:bgra8", asked[1]]
    assert [one.origin.form for one in records] == ["", "int8", "int8"]
    assert records[1].file == "engines/tensorrt-10.3.0-sm86-32x24-bgra8.engine"
    packed, rows = noise(24, 32, 4), noise(39, 40)
    half = Frame(rows.tobytes(), "NV12", 24, 32, (40, 40), (0, 26 * 40), colour="bt709")
    images: list[Any] = [
        Frame(packed, "bgra8"),
        noise(9, 30, 3),  # no frame
        Frame(noise(24, 32, 7)[..., :4], "bgra8"),  # a part of wider pixels, so no view of whole rows
        half,
        Frame(noise(24, 32, 3), "bgr8"),  # no engine takes it
        Frame(np.ascontiguousarray(noise(20, 32, 4)), "bgra8"),  # too few rows
        Frame(packed.tobytes(), "BGRA", 24, 32),
    ]
    with Classifier(bundle) as classify:
        assert classify.backend.startswith("TensorRT") and not classify.passed_over
        assert {str(frame) for frame in classify.frames} == {"32x24:bgra8", asked[1]}
        ways = [classify.way(image) for image in images]
        assert [way.split(":")[0] for way in ways] == [
            *("as it is", "prepared on the CPU", "as it is", "as it is", "prepared on the CPU", "prepared on the CPU"),
            "as it is",
        ]
        assert "edgeres engine BUNDLE --frame 32x24:bgr8" in ways[4]
        before = gpu.executions
        together = classify.batch(images)
        assert gpu.executions > before
        for image, answer in zip(images, together, strict=True):
            prepared = classify.batch_of_prepared([classify.prepare(image)])[0]
            np.testing.assert_allclose(answer.logits, prepared.logits, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(classify(image).logits, prepared.logits, rtol=1e-5, atol=1e-5)
        # In the batch, prepared, and alone: frames that go in as they are count, too.
        assert classify.health().images == 3 * len(images)


def test_the_way_of_a_frame_names_the_engine_that_would_take_it(gpu: Gpu, bundle: Path) -> None:
    assert engine(bundle, "--frame", "32x24:yuyv").exit_code == 0
    other = Frame(noise(24, 32, 2), "YUY2", colour="bt709")
    with Classifier(bundle) as classify:
        assert classify.way(Frame(noise(24, 32, 2), "yuyv")) == "as it is: 32x24:yuyv is prepared in the engine"
        (asked,) = re.findall("--frame (.*) builds one", classify.way(other))
        assert (
            classify.way(Frame(noise(24, 32), "bayer_rggb8")) == "prepared on the CPU: no engine can take bayer_rggb8"
        )
    assert asked == "32x24:yuyv:bt709"
    assert engine(bundle, "--frame", asked).exit_code == 0
    with Classifier(bundle) as classify:
        assert classify.way(other) == f"as it is: {asked} is prepared in the engine"


def test_bytes_that_lie_as_the_engine_takes_them_are_not_copied(gpu: Gpu) -> None:
    data = noise(24, 32, 3)
    laid = Frame(data, "bgr8").laid_as(frame_spec("32x24:bgr8"))
    assert laid is not None and np.shares_memory(laid, data)
    rows = noise(24, 128)
    padded = frame_spec("32x24:bgr8:step=128")
    laid = Frame(rows.reshape(-1), "bgr8", 24, 32, 128).laid_as(padded)
    assert laid is not None and np.shares_memory(laid, rows)
    short = Frame(rows.reshape(-1)[:-32], "bgr8", 24, 32, 128).laid_as(padded)  # a driver that omits the last gap
    assert short is not None and short.shape == (24, 128) and np.array_equal(short[:, :96], rows[:, :96])
    with pytest.raises(InputError):
        Frame(rows.reshape(-1)[:-33], "bgr8", 24, 32, 128).laid_as(padded)


def test_the_form_that_was_asked_for_is_built(gpu: Gpu, bundle: Path) -> None:
    assert engine(bundle).exit_code == 0
    first = Bundle(bundle).manifest.engines
    assert engine(bundle, "--frame", "32x24:rgb8").exit_code == 0
    found = engine(bundle, "--frame", "32x24:rgb8", "--form", "free", "--json")
    assert found.exit_code == 0, found.output
    (told,) = json.loads(found.stdout)
    assert told["form"] == "free" and told["frame"]["format"] == "rgb8"
    records = Bundle(bundle).manifest.engines
    assert records[0] == first[0] and len(records) == 2  # the second replaced the first of this frame
    image = Frame(noise(24, 32, 3), "rgb8")
    with Classifier(bundle) as classify:
        prepared = classify.batch_of_prepared([classify.prepare(image)])[0]
        assert np.abs(classify(image).logits - prepared.logits).max() > 0.01  # another network, as planted


def test_an_engine_for_frames_is_no_engine_for_images(gpu: Gpu, bundle: Path) -> None:
    assert engine(bundle, "--frame", "32x24:rgb8").exit_code == 0
    frame = Bundle(bundle).manifest.engines[1]
    path = bundle / str(frame.file)
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(BundleError, match="was changed"):
        Classifier(bundle)


def test_what_prevents_it_is_told_in_one_line(gpu: Gpu, bundle: Path) -> None:
    for text, what in (("32x24:bayer_rggb8", "no place"), ("32:bgr8", "WIDTHxHEIGHT"), ("33x24:nv12", "even")):
        found = engine(bundle, "--frame", text)
        assert found.exit_code != 0 and what in str(found.exception), found.output
    assert not Bundle(bundle).manifest.engines


def test_frames_are_prepared_where_no_engine_runs(bundle: Path, built_elsewhere: Callable[[str], None]) -> None:
    built_elsewhere("32x24:rgb8")
    (bundle / FORMS["cpu"].file).write_bytes(GRAPH)
    seal(bundle, Bundle(bundle).manifest)
    image = Frame(noise(24, 32, 3), "rgb8")
    with Classifier(bundle, backend="cpu") as classify:
        assert classify.frames == () and "the network runs on ONNX Runtime" in classify.way(image)
        assert classify.passed_over == (
            f"frames 32x24:rgb8: prepared on the CPU: no engine runs on {classify.backend}",
        )
        assert classify(image).logits.shape == (6,)


def frames_in(report: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the report has of the one kind of frame, and the check of engines."""
    (found,) = report["accuracy"]["frames"].values()
    (check,) = [check for check in report["checks"] if check["name"] == "engine"]
    return found, check


def verified(bundle: Path) -> dict[str, Any]:
    images = bundle.parent / "images.npz"
    data = DataChoice(validation=str(images if images.is_file() else write_images(images)))
    return dict(verify_bundle(bundle, data, VerifyOptions()))


def test_verify_sends_frames_through_the_engine_and_through_the_contract(gpu: Gpu, bundle: Path) -> None:
    assert engine(bundle, "--frame", "32x24:i420").exit_code == 0
    report = verified(bundle)
    found, check = frames_in(report)
    assert found["runner"].startswith("TensorRT") and (found["images"], found["same"]) == (12, 12)
    assert found["agrees"] and found["equal_percent"] == 100 and found["right"][0] == found["right"][1]
    assert check["outcome"] == "passed" and "for 32x24:i420 against frames prepared by the contract" in check["reason"]
    assert any(one["status"].startswith("run here") for one in report["engines"] if "frame" in one)


def test_verify_sees_an_engine_that_prepares_frames_in_another_way(gpu: Gpu, bundle: Path) -> None:
    """Red and blue are exchanged in what the device computes."""
    model, p = onnx.load_from_string(GRAPH), Bundle(bundle).manifest.model.preprocess
    swapped = with_frame(model, p, frame_spec("32x24:bgr8")).SerializeToString()
    gpu.plants = lambda built: Planted(answers=swapped if built.graph.input[0].name == "frame" else None)
    assert engine(bundle, "--frame", "32x24:rgb8").exit_code == 0
    found, check = frames_in(verified(bundle))
    assert not found["agrees"] and found["sqnr_db"] < 20
    assert check["outcome"] == "failed" and "build it again" in check["reason"]


def test_verify_computes_the_graph_where_no_engine_runs(bundle: Path, built_elsewhere: Callable[[str], None]) -> None:
    built_elsewhere("32x24:yuyv:step=80:bt709-full")
    report = verified(bundle)
    told, check = frames_in(report)
    assert (told["runner"], told["agrees"], told["equal_percent"]) == ("", True, 100)
    assert told["sqnr_db"] > 100  # float32 rounds mean and std once more
    assert check["outcome"] == "unsure" and "its graph on ONNX Runtime" in check["reason"]
    assert not any(one["status"].startswith("run here") for one in report["engines"])
    schema = json.loads(files("edgeres.report").joinpath("schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(report, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", BYTE_FORMATS)
def test_a_filmed_picture_is_seen_again(name: Any) -> None:
    """A smooth picture, because two or four pixels share their chroma."""
    y, x = np.mgrid[0:48, 0:64]
    picture = np.stack([40 + 2 * x, 50 + 2 * y, 200 - x - y], axis=-1).astype(np.uint8)
    colour = "" if name.endswith("8") else ":bt709"
    frame = frame_spec(f"64x48:{name}:step={64 * 4 + 8}{colour}")
    seen = frame_from(frame, filmed(picture, frame)).rgb()
    wanted = np.asarray(Image.fromarray(picture).convert("L"))[..., None] if name == "mono8" else picture
    assert np.abs(seen.astype(int) - wanted).max() <= (0 if name.endswith("8") else 4)
