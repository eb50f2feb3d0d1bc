"""The GPU benchmark without a GPU, and on a simulated GPU with every figure compared with brute force."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bundles import CLASSES, SIDE, classifier

from edgeres.device import libraries
from edgeres.device.gpu import Gpu
from edgeres.engine.builder import BuildRequest, BuiltEngine
from edgeres.errors import EngineError
from edgeres.records import F32

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COUNT = 10
INPUTS = np.random.default_rng(0).standard_normal((COUNT, 3, SIDE, SIDE)).astype(np.float32)
LABELS = np.arange(COUNT) % len(CLASSES)
QUICK = ["--seconds", "0.02"]


@pytest.fixture(scope="module")
def gpu_script() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    yield import_module("gpu")
    sys.path.remove(str(BENCHMARKS))


def scores(model: bytes, inputs: F32 = INPUTS) -> F32:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: F32 = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return found


def write_cases(folder: Path, graphs: Mapping[str, bytes], reference: Mapping[str, F32] | None = None) -> Path:
    """The files of ``--prepare``, for a small model."""
    (folder / "tiny").mkdir(parents=True)
    for name, graph in graphs.items():
        (folder / "tiny" / f"{name}.onnx").write_bytes(graph)
    told = {name: scores(graph) for name, graph in graphs.items()} | dict(reference or {})
    np.savez(folder / "tiny" / "data.npz", inputs=INPUTS, labels=LABELS, **told)
    index = {"models": {"tiny": {"weights": "made up", "formulations": list(graphs)}}}
    (folder / "cases.json").write_text(json.dumps(index))
    return folder


GRAPHS = {"fp32": classifier(), "int8": classifier(seed=1), "int8-rtx": classifier()}


def measure(script: Any, cases: Path, output: Path, *words: str) -> tuple[int, Any]:
    code = script.main(["--cases", str(cases), "--output", str(output), *QUICK, *words])
    return code, json.loads(output.read_text())


def no_gpu(monkeypatch: pytest.MonkeyPatch, script: Any, found: Gpu | None = None) -> None:
    """The machine has this GPU, or none."""
    for module in (script, libraries):
        monkeypatch.setattr(module, "this_gpu", lambda: (found, "" if found else "no NVIDIA driver"))


def test_without_a_gpu_it_tells_what_engines_tell(
    gpu_script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="it builds without a GPU")
    no_gpu(monkeypatch, gpu_script)
    code, document = measure(gpu_script, write_cases(tmp_path / "cases", GRAPHS), tmp_path / "gpu.json")
    out, err = capsys.readouterr()
    assert code == 3
    assert err.startswith("no GPU, so nothing was timed (no NVIDIA driver)") and err.count("\n") == 1
    assert (document["gpu"], document["reason"]) == (None, "no NVIDIA driver")
    rtx = document["runtimes"]["rtx"]
    assert (rtx["runs"], rtx["listed"]) == (None, None) and rtx["version"] in out
    engines = rtx["models"]["tiny"]["engines"]
    assert list(engines) == list(GRAPHS)
    for engine in engines.values():
        assert engine["program"]["kernels"]["convolution"] == 1
        assert engine["program"]["constant_bytes"] >= 4 * 3 * 3 * 3 * 2  # the Conv's weights, in two bytes or more
        assert engine["size_bytes"] > 0 and engine["build_seconds"] > 0
        assert engine["host_to_host"] is engine["trtexec"] is engine["accuracy"] is engine["images_per_second"] is None
    assert rtx["models"]["tiny"]["speedup"] == {}


def test_without_any_vendor_package_it_says_so(
    gpu_script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_gpu(monkeypatch, gpu_script)
    for name in libraries.MODULES.values():
        monkeypatch.setitem(sys.modules, name, None)
    code, document = measure(gpu_script, write_cases(tmp_path / "cases", GRAPHS), tmp_path / "gpu.json")
    assert code == 3
    assert "nothing could be built" in capsys.readouterr().err
    assert {found["version"] for found in document["runtimes"].values()} == {None}


# --- on the stand-in for a GPU ---------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, gpu_script: Any) -> Iterator[fake_gpu.Gpu]:
    """A simulated GPU with H100's compute capability, which RTX does not list, and both vendor packages."""
    found = fake_gpu.Gpu(sm=(9, 0))
    no_gpu(monkeypatch, gpu_script, Gpu("Fake GPU", "9.0", 1 << 30, "13.0"))
    monkeypatch.setattr(gpu_script, "build_engine", built)
    with (
        fake_gpu.installed(monkeypatch, found, "cuda-python", "tensorrt"),
        fake_gpu.installed(monkeypatch, found, "cuda-python", "rtx"),
    ):
        yield found
    assert (found.faults, found.live(), found.stack) == ([], [], [])


def built(model: Path, request: BuildRequest, flavour: Any) -> BuiltEngine:
    batch = (request.min_batch, request.max_batch)
    data = fake_gpu.plan(model.read_bytes(), flavour, batch)
    return BuiltEngine(data, flavour, fake_gpu.VERSIONS[flavour], request.precision, request.batch, (), 1.5, ())


def agreement(first: F32, second: F32) -> float:
    return 100 * sum(a.argmax() == b.argmax() for a, b in zip(first, second, strict=True)) / len(first)


def sqnr(first: F32, second: F32) -> float:
    noise = (first.astype(np.float64) - second) ** 2
    return float(10 * np.log10((first.astype(np.float64) ** 2).sum() / noise.sum()))


@pytest.mark.parametrize("batch", [1, 4])
def test_every_engine_is_compared_and_timed(gpu: fake_gpu.Gpu, gpu_script: Any, tmp_path: Path, batch: int) -> None:
    cases = write_cases(tmp_path / "cases", GRAPHS)
    code, document = measure(gpu_script, cases, tmp_path / "gpu.json", "--batch", str(batch))
    assert code == 0
    assert document["gpu"]["sm"] == "9.0"
    assert [(found["runs"], found["listed"], found["said"]) for found in document["runtimes"].values()] == [
        (True, None, ""),
        (True, False, ""),
    ]
    reference = scores(GRAPHS["fp32"])
    for found in document["runtimes"].values():
        engines = found["models"]["tiny"]["engines"]
        for name, engine in engines.items():
            said = scores(GRAPHS[name])
            assert engine["accuracy"]["images"] == COUNT
            assert engine["accuracy"]["onnx_runtime"]["agreement"]["value"] == 100
            assert engine["accuracy"]["onnx_runtime"]["largest_difference"] < 1e-5
            assert engine["accuracy"]["fp32"]["agreement"]["value"] == pytest.approx(agreement(reference, said))
            assert engine["accuracy"]["top1"] == pytest.approx(100 * np.mean(said.argmax(axis=1) == LABELS))
            for title, ms in {
                "H2D Latency": fake_gpu.UPLOAD_MS,
                "GPU Compute Time": fake_gpu.KERNELS_MS,
                "D2H Latency": fake_gpu.DOWNLOAD_MS,
            }.items():
                assert engine["trtexec"][title]["median_ms"] == pytest.approx(ms)
            latency = engine["host_to_host"]
            assert 0 < latency["min_ms"] <= latency["median_ms"] <= latency["p99_ms"] <= latency["max_ms"]
            assert engine["images_per_second"] > 0 and engine["build_seconds"] == 1.5
        assert engines["int8"]["accuracy"]["fp32"]["sqnr_db"] == pytest.approx(sqnr(reference, scores(GRAPHS["int8"])))
        pairs = {"int8 over fp32", "int8-rtx over fp32", "int8-rtx over int8"}
        assert found["models"]["tiny"]["speedup"].keys() == pairs
        for ratio in found["models"]["tiny"]["speedup"].values():
            assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"]


def test_an_engine_that_answers_otherwise_than_onnx_runtime_is_seen(
    gpu: fake_gpu.Gpu, gpu_script: Any, tmp_path: Path
) -> None:
    reference = scores(classifier(seed=2))
    cases = write_cases(tmp_path / "cases", GRAPHS, {"int8": reference})
    _, document = measure(gpu_script, cases, tmp_path / "gpu.json")
    found = document["runtimes"]["tensorrt"]["models"]["tiny"]["engines"]["int8"]["accuracy"]["onnx_runtime"]
    said = scores(GRAPHS["int8"])
    assert (
        found["agreement"]["value"] == pytest.approx(agreement(reference, said)) and found["agreement"]["value"] < 100
    )
    assert found["sqnr_db"] == pytest.approx(sqnr(reference, said), abs=1e-3)


def test_one_refused_engine_leaves_the_others(
    gpu: fake_gpu.Gpu, gpu_script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(model: Path, request: BuildRequest, flavour: Any) -> BuiltEngine:
        if request.precision == "fp32":
            raise EngineError("TensorRT refuses the graph: too old")
        return built(model, request, flavour)

    monkeypatch.setattr(gpu_script, "build_engine", some)
    code, document = measure(gpu_script, write_cases(tmp_path / "cases", GRAPHS), tmp_path / "gpu.json")
    found = document["runtimes"]["tensorrt"]["models"]["tiny"]
    assert code == 0 and found["speedup"].keys() == {"int8-rtx over int8"}
    assert found["engines"]["fp32"]["reasons"]["build"] == "TensorRT refuses the graph: too old"
    assert found["engines"]["fp32"]["size_bytes"] is found["engines"]["fp32"]["host_to_host"] is None


def test_an_engine_that_fails_while_it_is_timed_keeps_what_was_found(
    gpu: fake_gpu.Gpu, gpu_script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise EngineError("CUDA: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_script, "times", fail)
    code, document = measure(gpu_script, write_cases(tmp_path / "cases", GRAPHS), tmp_path / "gpu.json")
    engine = document["runtimes"]["tensorrt"]["models"]["tiny"]["engines"]["int8"]
    assert code == 3 and document["runtimes"]["tensorrt"]["runs"] is False
    assert document["runtimes"]["tensorrt"]["said"] == engine["reasons"]["latency"]
    assert engine["accuracy"]["onnx_runtime"]["agreement"]["value"] == 100 and engine["host_to_host"] is None


def test_a_runtime_that_does_not_run_is_named_with_the_reason(
    gpu: fake_gpu.Gpu,
    gpu_script: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = {"rtx"}

    def some(model: Path, request: BuildRequest, flavour: Any) -> BuiltEngine:
        made = built(model, request, flavour)
        return made if flavour not in broken else BuiltEngine(**{**vars(made), "data": made.data[:28]})

    monkeypatch.setattr(gpu_script, "build_engine", some)
    cases = write_cases(tmp_path / "cases", GRAPHS)
    code, document = measure(gpu_script, cases, tmp_path / "gpu.json")
    rtx = document["runtimes"]["rtx"]
    assert code == 0 and (rtx["listed"], rtx["runs"]) == (False, False)
    assert "this engine cannot be loaded" in rtx["said"]
    assert "does not run on this GPU, not listed: this engine cannot be loaded" in capsys.readouterr().out
    broken.add("tensorrt")
    code, _ = measure(gpu_script, cases, tmp_path / "gpu.json")
    assert code == 3 and "no runtime runs on Fake GPU" in capsys.readouterr().err


def test_what_takes_the_process_down_is_seen_in_the_file(
    gpu: fake_gpu.Gpu, gpu_script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(model: Path, request: BuildRequest, flavour: Any) -> BuiltEngine:
        if flavour == "rtx":
            raise SystemExit(139)
        return built(model, request, flavour)

    monkeypatch.setattr(gpu_script, "build_engine", crash)
    with pytest.raises(SystemExit):
        measure(gpu_script, write_cases(tmp_path / "cases", GRAPHS), tmp_path / "gpu.json")
    left = json.loads((tmp_path / "gpu.json").read_text())["runtimes"]
    assert left["tensorrt"]["runs"] is True
    assert left["rtx"] == {"said": "it began, and the process ended"}


# --- prepare ---------------------------------------------------------------------------------------------------------


def test_cases_hold_each_formulation_and_what_onnx_runtime_says(
    gpu_script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_script, "CALIBRATION_IMAGES", 8)
    monkeypatch.setattr(gpu_script, "IMAGES", 4)
    assert gpu_script.main(["--prepare", str(tmp_path), "--models", "resnet20"]) == 0
    (case,) = gpu_script.read_cases(tmp_path)
    assert list(case.graphs) == list(gpu_script.FORMULATIONS)
    models = {name: onnx.load(file) for name, file in case.graphs.items()}
    for name, model in models.items():
        assert ("QuantizeLinear" in {node.op_type for node in model.graph.node}) == name.startswith("int8")
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
        assert half == (name == "fp16" or name.endswith("-rtx"))
        # Computed again by other means; values that are rounded to float16 or codes may round differently.
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        said = session.run(None, {session.get_inputs()[0].name: case.inputs})[0]
        assert sqnr(said, case.scores[name] + np.float32(1e-6)) > (100 if name == "fp32" else 20), name
    assert case.labels.shape == (4,) and (case.labels >= 0).all()


def test_cases_that_are_not_whole_are_one_line_and_exit_3(
    gpu_script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (None, "{", "[]", '{"models": {"tiny": {}}}', '{"models": {"gone": {"formulations": []}}}'):
        if content is not None:
            (tmp_path / "cases.json").write_text(content)
        assert gpu_script.main(["--cases", str(tmp_path), "--output", str(tmp_path / "gpu.json")]) == 3
        err = capsys.readouterr().err
        assert err.startswith(f"error: {tmp_path}: holds no complete cases") and err.count("\n") == 1
    assert not (tmp_path / "gpu.json").exists()
