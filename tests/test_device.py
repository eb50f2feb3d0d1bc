"""Verification on a device: a simulated GPU runs the bundle's engines, and the report is about these."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import classifier, spec, write_bundle, write_images
from click.testing import CliRunner
from fake_gpu import Gpu, Planted, machine, plan
from onnx import helper, numpy_helper

import edgeres
from edgeres.bundle import ANSWERS, FP32, Bundle
from edgeres.cli.verify import command
from edgeres.data.arrays import open_npz
from edgeres.data.choose import DataChoice
from edgeres.data.corruptions import CORRUPTIONS, Corrupted
from edgeres.data.loader import Loader
from edgeres.judge.asked import GateChoice
from edgeres.judge.gates import Limits
from edgeres.pipeline.options import VerifyOptions
from edgeres.pipeline.verify import verify_bundle
from edgeres.records import EngineRecord, FormTrial, Portability
from edgeres.report.text import remarks, top1_line
from edgeres.reports import read_report
from edgeres.runtime import OrtRunner
from edgeres.verify.candidates import KnownAnswers
from edgeres.verify.known import write_known

FLOAT = classifier()
IMAGES = 40


def quantized(model: bytes = FLOAT, step: float = 0.02) -> bytes:
    """The classifier with codes of this step in front of its convolution."""
    graph = onnx.load_from_string(model)
    scale = [numpy_helper.from_array(np.float32(step), "step"), numpy_helper.from_array(np.int8(0), "zero")]
    graph.graph.initializer.extend(scale)
    graph.graph.node[0].input[0] = "dq"
    for node in (
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"]),
        helper.make_node("QuantizeLinear", ["pixels", "step", "zero"], ["q"]),
    ):
        graph.graph.node.insert(0, node)
    return bytes(graph.SerializeToString())


INT8 = quantized()
RECORD = EngineRecord("tensorrt", "tensorrt", "10.3.0", "int8", "built, not run here", "engines/int8.engine", 9,
                      portability=Portability(("8.6",)))  # fmt: skip


def record(precision: Any, **changes: Any) -> EngineRecord:
    return replace(RECORD, precision=precision, file=f"engines/{precision}.engine", **changes)


@dataclass(frozen=True)
class Device:
    """A bundle on the machine with the simulated GPU."""

    gpu: Gpu
    folder: Path

    def bundle(self, engines: Mapping[EngineRecord, bytes], files: Mapping[str, bytes] = {}) -> Path:
        graphs = {FP32: FLOAT, "model.int8.onnx": INT8, **files}
        path = write_bundle(self.folder / "tiny.edgeres", spec(), graphs)
        Bundle(path).add_engines(engines)
        return path

    def verify(self, path: Path, **limits: float | None) -> dict[str, Any]:
        gates = GateChoice(Limits.of(**{"max_drop": None, "max_class_drop": None, **limits}))
        return verify_bundle(path, DataChoice(validation=str(self.images)), VerifyOptions(gates))

    @property
    def images(self) -> Path:
        path = self.folder / "images.npz"
        return path if path.is_file() else write_images(path, IMAGES)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    gpu = Gpu()
    with machine(monkeypatch, gpu, cache=tmp_path / "cache"):
        yield Device(gpu, tmp_path)


def engines(fp32: float = 40.0, fp16: float = 20.0, int8: float = 10.0, **more: Any) -> dict[EngineRecord, bytes]:
    """An engine of each precision with these times in ms."""
    return {
        record("fp32"): plan(FLOAT, planted=Planted(fp32, 0.01)),
        record("fp16"): plan(FLOAT, planted=Planted(fp16, 0.01, seed=1)),
        record("int8"): plan(INT8, planted=Planted(int8, 0.01, seed=2, **more)),
    }


def check(report: dict[str, Any], name: str) -> tuple[str, str]:
    (found,) = [one for one in report["checks"] if one["name"] == name]
    return found["outcome"], found["reason"]


def test_the_report_is_about_the_engine_that_is_loaded(device: Device) -> None:
    path = device.bundle(engines())
    report = device.verify(path)
    assert report["accuracy"]["graph"] == "tensorrt int8 engine"
    with edgeres.load(path) as classify:
        assert classify.backend == report["accuracy"]["int8"]["runner"] == "TensorRT 10.3.0 on Fake GPU"
    copies = 1.25
    for name, ms in (("fp32", 40), ("fp16", 20), ("int8", 10)):
        assert report["latency"][name]["p50_ms"] == pytest.approx(ms + copies, rel=0.01)
    assert report["latency"]["speedup"] == pytest.approx(41.25 / 11.25, rel=0.01)
    assert report["latency"]["speedup_fp16"] == pytest.approx(21.25 / 11.25, rel=0.01)
    assert {engine["status"] for engine in report["engines"]} == {"run here, on TensorRT 10.3.0 on Fake GPU"}
    assert check(report, "engine")[0] == "passed"


def test_engines_answer_to_corrupted_images_too(device: Device) -> None:
    """Their rows are those of ONNX Runtime on the engine's graph."""
    path = device.bundle(engines())
    gates = GateChoice(Limits(max_drop=None, max_class_drop=None), corruptions=True)
    report = verify_bundle(path, DataChoice(validation=str(device.images)), VerifyOptions(gates))
    source, rows = open_npz(device.images, "validation"), report["corruptions"]
    assert len(rows) == 1 + len(CORRUPTIONS)
    for row, corruption in zip(rows, (None, *CORRUPTIONS), strict=True):
        loader = Loader(Corrupted(source, corruption, 0), spec().preprocess, 16)
        inputs = np.concatenate([batch.inputs for batch in loader])
        labels = np.concatenate([batch.labels for batch in loader])
        with OrtRunner(FLOAT) as fp32, OrtRunner(INT8) as int8:
            want = [runner.infer({"pixels": inputs})["scores"].argmax(1) for runner in (fp32, int8)]
        found = row["graphs"]["tensorrt int8 engine"]
        assert (row["fp32"], found["correct"]) == tuple(int((answers == labels).sum()) for answers in want)
        assert found["same"] == (want[0] == want[1]).sum()


def test_answers_are_those_of_onnx_runtime_on_the_graphs(device: Device) -> None:
    """The SQNR of the INT8 engine is that of its graph, which is computed here by other means."""
    coarse = quantized(step=0.8)
    data = {record("int8"): plan(coarse), record("fp32"): plan(FLOAT)}
    report = device.verify(device.bundle(data, {"model.int8.onnx": coarse}))
    source = open_npz(device.images, "validation")
    inputs = np.concatenate([batch.inputs for batch in Loader(source, spec().preprocess, 16)])
    with OrtRunner(FLOAT) as fp32, OrtRunner(coarse) as int8:
        said, noisy = (runner.infer({"pixels": inputs})["scores"] for runner in (fp32, int8))
    sqnr = 10 * np.log10((said**2).sum() / ((said - noisy) ** 2).sum())
    found = report["accuracy"]["graphs"]["tensorrt int8 engine"]
    assert found["logit_sqnr_db"] == pytest.approx(sqnr, abs=1e-3) and sqnr < 35
    assert found["same"] == int((said.argmax(axis=1) == noisy.argmax(axis=1)).sum())
    assert report["accuracy"]["images"] == IMAGES


def test_an_fp32_engine_that_agrees_is_the_reference(device: Device) -> None:
    report = device.verify(device.bundle(engines()))
    assert report["accuracy"]["fp32"]["runner"] == "TensorRT 10.3.0 on Fake GPU"
    assert report["accuracy"]["reference"].startswith("tensorrt fp32 engine, ")
    assert "tensorrt fp32 engine" not in report["accuracy"]["graphs"]


def test_an_fp32_engine_that_rounds_is_not_the_reference(device: Device) -> None:
    """As with TF32: its answers are compared with those of ONNX Runtime like any other's."""
    coarse = quantized(step=0.0005)
    report = device.verify(device.bundle(engines() | {record("fp32"): plan(coarse, planted=Planted(40.0))}))
    assert report["accuracy"]["reference"] == "FP32 graph on ONNX Runtime"
    assert report["accuracy"]["fp32"]["runner"].startswith("ONNX Runtime")
    assert "tensorrt fp32 engine" in report["accuracy"]["graphs"]


def test_answers_that_travel_with_the_bundle_come_first(device: Device) -> None:
    """They are used for the same images, and not for others."""
    scores = np.eye(6, dtype=np.float32)[np.arange(IMAGES) % 6]
    file = device.folder / "known.npz"
    images = device.verify(device.bundle(engines()))["data"]["validation"]["sha256"]
    write_known(file, KnownAnswers(images, scores, "ONNX Runtime 1.32 CPU"))
    report = device.verify(device.bundle(engines(), {ANSWERS: file.read_bytes()}))
    assert report["accuracy"]["reference"] == "answers in the bundle, computed on ONNX Runtime 1.32 CPU"
    assert report["accuracy"]["fp32"]["top1"] == 100
    write_images(device.images, IMAGES, seed=1)
    report = device.verify(device.folder / "tiny.edgeres")
    assert report["accuracy"]["reference"].startswith("tensorrt fp32 engine")


def test_an_engine_that_computes_something_else_is_caught(device: Device) -> None:
    report = device.verify(device.bundle(engines() | {record("int8"): plan(quantized(classifier(seed=1)))}))
    outcome, reason = check(report, "engine")
    assert (outcome, report["passed"]) == ("failed", False)
    assert "tensorrt int8 engine against its graph (tensorrt)" in reason and "furthest on" in reason
    assert "build it again" in reason and "\n" not in reason


def test_int8_that_does_not_beat_fp16_is_told_first(device: Device) -> None:
    path = device.bundle(engines(int8=25.0))
    report = device.verify(path, min_speedup_fp16=1.0)
    (verdict,) = report["verdicts"]
    assert (verdict["gate"]["metric"], verdict["outcome"], report["passed"]) == ("speedup_fp16", "failed", False)
    words = ["--validation", str(device.images), "--max-drop", "off", "--max-class-drop", "off"]
    ran = CliRunner().invoke(command, [str(path), *words])
    lines = ran.stdout.splitlines()
    assert any(line.startswith("INT8 is slower than FP16 here: 0.8") for line in lines[:5])
    assert max(map(len, lines)) <= 80


def test_gates_on_speedups_hold_engines(device: Device) -> None:
    report = device.verify(device.bundle(engines()), min_speedup=3.0, min_speedup_fp16=3.0)
    found = {verdict["gate"]["metric"]: verdict["outcome"] for verdict in report["verdicts"]}
    assert found == {"speedup": "passed", "speedup_fp16": "failed"}


def test_without_an_fp32_engine_the_speedup_says_why(device: Device) -> None:
    two = {one: data for one, data in engines().items() if one.precision != "fp32"}
    report = device.verify(device.bundle(two), min_speedup=3.0)
    assert report["latency"]["speedup"] is None and report["latency"]["int8"]["p50_ms"] > 0
    assert "no FP32 engine that runs here; edgeres engine BUNDLE builds one" in report["verdicts"][0]["reason"]
    assert report["accuracy"]["reference"] == "FP32 graph on ONNX Runtime"


def test_an_fp16_engine_that_was_chosen_is_what_is_judged(device: Device) -> None:
    faster = record("fp16", trial=FormTrial("fp16", True, "the fastest"))
    path = device.bundle({one: data for one, data in engines().items() if one.precision != "fp16"}
                         | {faster: plan(FLOAT, planted=Planted(5.0))})  # fmt: skip
    report = device.verify(path)
    assert report["accuracy"]["graph"] == "tensorrt fp16 engine"
    with edgeres.load(path) as classify:
        image = np.zeros((8, 8, 3), np.uint8)
        classify(image)
    assert remarks(report)[0].startswith("FP16 is what edgeres.load takes on this device")
    assert "FP16" in top1_line(report)


def test_an_engine_for_another_gpu_is_said_not_to_run(device: Device) -> None:
    other = (
        record(
            "int8",
        )
        if False
        else replace(record("int8"), portability=Portability(("8.7",)))
    )
    report = device.verify(device.bundle({other: plan(INT8)}))
    assert report["accuracy"]["graph"] == "tensorrt" and report["accuracy"].get("engines") is None
    (engine,) = report["engines"]
    assert engine["status"].startswith("built, not run here: this engine cannot run here: it was built for SM 8.7")
    assert check(report, "engine") == ("unsure", "no engine runs on this machine")


def test_a_report_of_a_device_is_read_back(device: Device) -> None:
    report = device.verify(device.bundle(engines()))
    path = device.folder / "report.json"
    path.write_text(json.dumps(report))
    found = read_report(path)
    assert found["latency"]["fp16"] == report["latency"]["fp16"]
    assert found["accuracy"]["engines"] == report["accuracy"]["engines"]
