"""Engines that take prepared images as bytes: written with the bundle, built, measured and run on a simulated GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bundles import SIDE, classifier, spec, write_images
from fake_gpu import Gpu, installed, machine, plan

from edgeres import build, verify_bundle
from edgeres.bundle import FP16, FP32, Bundle, bytes_file, new_bundle, seal
from edgeres.data.preprocess import geometry, normalize
from edgeres.deploy.network import network_of
from edgeres.deploy.programs import deepstream, triton
from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.engine.engines import EngineChoice
from edgeres.engine.kernels import read_program
from edgeres.errors import BundleError, InputError
from edgeres.files import write_file
from edgeres.graph.frame import with_bytes
from edgeres.pipeline.engines import add_engines
from edgeres.pipeline.tune import TuneChoice
from edgeres.records import FormRecord, Manifest, Preprocess
from edgeres.runtime import Classifier, EngineFile, TensorRTRunner
from edgeres.runtime.conformance import CHECKS, Subject
from edgeres.runtime.prepared import bytes_of, fed
from edgeres.runtime.runner import Feed

CONTRACT = spec(resize_px=10, channel_order="BGR").preprocess
OF_BYTES = with_bytes(onnx.load_from_string(classifier()), CONTRACT).SerializeToString()


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def reference(feed: Feed) -> Feed:
    session = ort.InferenceSession(OF_BYTES, providers=["CPUExecutionProvider"])
    return {"scores": session.run(None, feed)[0]}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gpu]:
    found = Gpu()
    with machine(monkeypatch, found, cache=tmp_path / "cache"):
        yield found
    assert found.faults == []


def bundle_with(folder: Path, *, of_bytes: bool) -> Path:
    path = folder / f"{'bytes' if of_bytes else 'floats'}.edgeres"
    forms = (
        FormRecord("tensorrt", "model.int8.onnx", ("tensorrt",), "int8", None, "float32", ""),
        FormRecord("fp16", FP16, ("tensorrt",), "fp16", None, "float16", ""),
    )
    with new_bundle(path) as made:
        for name in ("model.int8.onnx", FP16, FP32):
            write_file(made / name, classifier())
            if of_bytes:
                write_file(made / bytes_file(name), OF_BYTES)
        model = spec(resize_px=10, channel_order="BGR")
        seal(made, Manifest(model, {}, {}, {}, {}, forms=forms, default_form={"tensorrt": "tensorrt"}))
    return path


@pytest.mark.parametrize("check", CHECKS)
def test_an_engine_of_bytes_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    found = Gpu()
    with installed(monkeypatch, found, "driver", "tensorrt"):
        CHECKS[check](Subject(lambda: TensorRTRunner(EngineFile(plan(OF_BYTES), "tensorrt")), reference))
    assert found.faults == [] and found.live() == []


@pytest.mark.parametrize("tune", [True, False])
def test_engines_take_bytes_where_the_bundle_has_graphs_for_them(gpu: Gpu, tmp_path: Path, tune: bool) -> None:
    images = [noise(9, 30, 3, seed=seed) for seed in range(3)]
    answers = {}
    for of_bytes in (True, False):
        path = bundle_with(tmp_path, of_bytes=of_bytes)
        records = add_engines(path, "tensorrt", EngineChoice(also=("fp32",)), tune=TuneChoice(tune=tune))
        assert {one.origin.takes_bytes for one in records if one.file} == {of_bytes}
        with Classifier(path) as classify:
            assert classify._runner.inputs[0].dtype == (np.uint8 if of_bytes else np.float32)
            classify.warm_up(2)
            answers[of_bytes] = [one.logits for one in classify.batch(images)]
            prepared = classify.batch_of_prepared([classify.prepare(image) for image in images])
            np.testing.assert_array_equal([one.logits for one in prepared], answers[of_bytes])
            assert classify.health().images == 2 * len(images)
    np.testing.assert_allclose(answers[True], answers[False], rtol=1e-4, atol=1e-4)
    inputs = np.stack([normalize(geometry(image, CONTRACT), CONTRACT) for image in images])
    session = ort.InferenceSession(classifier(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(answers[True], session.run(None, {"pixels": inputs})[0], rtol=1e-4, atol=1e-4)


def test_a_build_writes_graphs_of_bytes_that_say_what_those_of_float32_say(tmp_path: Path) -> None:
    onnx.save(onnx.load_from_string(classifier()), str(tmp_path / "net.onnx"))
    images = write_images(tmp_path / "images.npz", 24)
    made = build(
        tmp_path / "net.onnx",
        calibration=str(images),
        validation=str(images),
        targets=("cpu", "jetson-orin-nano"),
        max_drop=None,
        output=tmp_path / "net.edgeres",
    )
    bundle = Bundle(made.path)
    p = bundle.manifest.model.preprocess
    pixels = noise(4, *p.crop_px, p.channels)
    files = [FP32, *(form.file for form in bundle.forms if set(form.runtimes) != {"onnxruntime"})]
    assert len(files) > 3 and not bundle.has(bytes_file("model.int8.cpu.onnx"))
    for file in files:
        sessions = (ort.InferenceSession(bundle.file(name)) for name in (file, bytes_file(file)))
        floats, of_bytes = ((one, one.get_inputs()[0]) for one in sessions)
        assert (of_bytes[1].type, of_bytes[1].shape[1:]) == ("tensor(uint8)", [*p.crop_px, p.channels])
        wanted = floats[0].run(None, {floats[1].name: normalize(pixels, p)})[0]
        found = of_bytes[0].run(None, {of_bytes[1].name: pixels})[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max(), err_msg=file)
        assert bundle.for_engines(file).name == bytes_file(file)
        assert bundle.for_engines(file).stat().st_size < bundle.file(file).stat().st_size + 2000
    (bundle.path / bytes_file(FP32)).write_bytes(b"changed")
    with pytest.raises(Exception, match="was changed"):
        bundle.for_engines(FP32)


@pytest.mark.parametrize("listed", [True, False])
def test_no_engine_is_built_from_a_graph_of_bytes_that_is_not_the_bundles(
    gpu: Gpu, tmp_path: Path, listed: bool
) -> None:
    path = bundle_with(tmp_path, of_bytes=listed)
    (path / bytes_file("model.int8.onnx")).write_bytes(OF_BYTES + b"\x00" * listed)
    with pytest.raises(BundleError, match="was changed" if listed else "does not list"):
        add_engines(path, "tensorrt", EngineChoice(), tune=TuneChoice(tune=False))
    assert not Bundle(path).manifest.engines


def test_rtx_builds_a_graph_of_bytes_that_moves_less(tmp_path: Path) -> None:
    if not available("rtx").can_build:
        pytest.skip(available("rtx").reason)
    (tmp_path / FP32).write_bytes(classifier())
    (tmp_path / bytes_file(FP32)).write_bytes(OF_BYTES)
    request = BuildRequest("fp32", max_batch=1)
    floats, of_bytes = (build_engine(tmp_path / name, request, "rtx") for name in (FP32, bytes_file(FP32)))
    assert (floats.takes_bytes, of_bytes.takes_bytes) == (False, True)
    assert read_program(of_bytes.data).moved_bytes < read_program(floats.data).moved_bytes


def test_verification_and_bench_feed_bytes(gpu: Gpu, tmp_path: Path) -> None:
    from edgeres.bench.contenders import BenchOptions
    from edgeres.bench.session import bench

    path, images = bundle_with(tmp_path, of_bytes=True), write_images(tmp_path / "images.npz", 24)
    add_engines(path, "tensorrt", EngineChoice())
    report = verify_bundle(path, validation=str(images), max_drop=None).report
    assert report["accuracy"]["graph"].endswith("engine")
    assert report["accuracy"]["agreement"] == 100
    assert [one["takes_bytes"] for one in report["engines"] if one["file"]] == [True] * 3
    measured = bench(path, BenchOptions(min_seconds=0.02, warmup_seconds=0.01, power_seconds=0.01))
    assert measured["precisions"].keys() >= {"fp32", "int8"}


def test_inputs_that_are_not_of_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = normalize(noise(2, SIDE, SIDE, 3), CONTRACT)
    assert np.array_equal(normalize(bytes_of(inputs, CONTRACT), CONTRACT), inputs)
    found = Gpu()
    with (
        installed(monkeypatch, found, "driver", "tensorrt"),
        TensorRTRunner(EngineFile(plan(OF_BYTES), "tensorrt")) as runner,
    ):
        assert fed(runner, inputs, CONTRACT).dtype == np.uint8
        for wrong in (inputs + 0.001, inputs * 2, np.full_like(inputs, np.nan)):
            with pytest.raises(InputError, match="not of bytes"):
                fed(runner, wrong.astype(np.float32), CONTRACT)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_bytes_are_recovered_from_inputs(layout: Any) -> None:
    p = Preprocess((SIDE, SIDE), mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), layout=layout)
    pixels = noise(3, SIDE, SIDE, 3)
    assert np.array_equal(bytes_of(normalize(pixels, p), p), pixels)


def test_programs_are_told_of_bytes(gpu: Gpu, tmp_path: Path) -> None:
    path = bundle_with(tmp_path, of_bytes=True)
    add_engines(path, "tensorrt", EngineChoice())
    network = network_of(Bundle(path))
    served = triton(network, None)
    config = served.files["bytes/config.pbtxt"].decode()
    given = onnx.load_from_string(OF_BYTES).graph.input[0].name
    assert f'input [ {{ name: "{given}" data_type: TYPE_UINT8 dims: [ 8, 8, 3 ] }} ]' in config
    assert any("uint8 NHWC BGR" in note for note in served.notes)
    streamed = deepstream(network, None)
    assert "model.engine" not in streamed.files and "model-engine-file" not in streamed.files["bytes.txt"].decode()
    assert any("takes bytes" in note for note in streamed.notes)
