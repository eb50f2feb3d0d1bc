"""ONNX Runtime's providers for TensorRT and TensorRT-RTX, on a stand-in that takes the calls that are documented.

Graphs are computed by ONNX Runtime's CPU provider. Names of options are held against a list from the providers'
documentation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from bundles import classifier, write_bundle

import edgeres
from edgeres.bundle import FP32
from edgeres.errors import EngineError, UsageError
from edgeres.graph.forms import FORMS
from edgeres.records import FormRecord
from edgeres.runtime import OrtRunner
from edgeres.runtime.conformance import CHECKS, Subject
from edgeres.runtime.ort_engines import EngineProvider
from edgeres.runtime.runner import Feed

TRT, CUDA, CPU, RTX = (f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CPU", "NvTensorRTRTX"))
# From TensorRT-ExecutionProvider.md of ONNX Runtime, and provider-options.html of NVIDIA's TensorRT-RTX plugin.
DOCUMENTED = {
    TRT: {"device_id", "trt_int8_enable", "trt_fp16_enable", "trt_engine_cache_enable", "trt_engine_cache_path"}
    | {"trt_timing_cache_enable", "trt_timing_cache_path"}
    | {"trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"},
    RTX: {"nv_runtime_cache_path", "nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes"},
    CUDA: {"device_id"},
}  # fmt: skip
MODEL = classifier()


@dataclass
class Machine:
    """An ONNX Runtime with more providers.

    Attributes:
        available: names of those that are built in.
        starts: names of those that start.
        devices: how many GPUs the plugin finds; None: its library does not load.
        opened: providers and options of each session that was asked for one of ours.
    """

    available: list[str]
    starts: set[str]
    devices: int | None = 1
    registered: list[str] = field(default_factory=list)
    opened: list[list[tuple[str, dict[str, Any]]]] = field(default_factory=list)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine([TRT, CUDA, CPU], {TRT, CUDA, CPU, RTX})
    real = ort.InferenceSession

    class Options(ort.SessionOptions):
        plugins: tuple[tuple[str, dict[str, Any]], ...] = ()

        def add_provider_for_devices(self, devices: Any, options: dict[str, Any]) -> None:
            assert len(devices) == 1 and all(isinstance(value, str) for value in options.values())
            self.plugins = ((devices[0].ep_name, options),)

    class Session:
        def __init__(self, graph: Any, options: Any = None, providers: Any = None) -> None:
            given = list(getattr(options, "plugins", ())) or [
                one if isinstance(one, tuple) else (one, {}) for one in providers
            ]
            if [name for name, _ in given] != [CPU]:
                machine.opened.append(given)
            self.names = [name for name, _ in given if name in machine.starts]
            self.real = real(graph, options, providers=[CPU])

        def get_providers(self) -> list[str]:
            return self.names

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    def register(name: str, path: str) -> None:
        if machine.devices is None:
            raise RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : Failed to load library x.so with error: no libcuda.so.1"
            )
        assert name not in machine.registered, "registered twice"
        machine.registered.append(name)

    def devices() -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in machine.registered for _ in range(machine.devices or 0)]

    plugin = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    plugin.__dict__.update(get_ep_name=lambda: RTX, get_library_path=lambda: "x.so")
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {
        "get_available_providers": lambda: machine.available,
        "SessionOptions": Options,
        "InferenceSession": Session,
        "register_execution_provider_library": register,
        "get_ep_devices": devices,
    }.items():
        monkeypatch.setattr(ort, name, value)
    yield machine
    for session in machine.opened:
        assert [name for name, options in session if options.keys() - DOCUMENTED.get(name, set())] == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    graphs = {FORMS[name].file: MODEL for name in ("tensorrt", "rtx", "cpu")}
    forms = tuple(FORMS[name].record("half") for name in ("tensorrt", "rtx"))
    default = {form.runtimes[0]: form.name for form in forms}
    return write_bundle(tmp_path / "b.edgeres", files={FP32: MODEL, **graphs}, forms=forms, default_form=default)


def answers(path: Path, backend: Any) -> tuple[str, list[float]]:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    with edgeres.load(path, backend=backend) as classify:
        return classify.backend, classify(image).logits.tolist()


def test_tensorrts_provider_runs_the_int8_graph_with_a_cache_of_its_own(here: Machine, path: Path) -> None:
    name, found = answers(path, "ort-tensorrt")
    assert name == f"ONNX Runtime {ort.__version__} TensorRT" and found == pytest.approx(answers(path, "cpu")[1])
    (providers,) = here.opened
    assert [one for one, _ in providers] == [TRT, CUDA, CPU]
    options = providers[0][1]
    assert (options["device_id"], options["trt_int8_enable"], options["trt_fp16_enable"]) == (0, True, False)
    folder = Path(options["trt_engine_cache_path"])
    assert folder.is_dir() and options["trt_engine_cache_enable"] is True and folder.name == ort.__version__
    assert options["trt_profile_min_shapes"] == options["trt_profile_opt_shapes"] == "pixels:1x3x8x8"
    assert options["trt_profile_max_shapes"] == "pixels:8x3x8x8"


def test_another_network_has_another_cache(here: Machine, path: Path, tmp_path: Path) -> None:
    """TensorRT's provider names engines by operators: of two networks of one architecture, it would take either."""
    other = write_bundle(
        tmp_path / "c.edgeres", files={FP32: MODEL, FORMS["tensorrt"].file: classifier(seed=1)}, forms=()
    )
    for one in (path, other):
        answers(one, "ort-tensorrt")
    first, second = (opened[0][1]["trt_engine_cache_path"] for opened in here.opened)
    assert first != second


def test_float16_is_allowed_where_the_graph_has_it(here: Machine, tmp_path: Path) -> None:
    form = FormRecord("between", "model.int8.onnx", ("tensorrt",), "int8", None, "float16", "in words")
    files = {FP32: MODEL, "model.int8.onnx": MODEL}
    path = write_bundle(tmp_path / "h.edgeres", files=files, forms=(form,), default_form={"tensorrt": "between"})
    answers(path, "ort-tensorrt")
    assert here.opened[0][0][1]["trt_fp16_enable"] is True


def test_rtx_is_registered_once_and_given_its_own_form(here: Machine, path: Path) -> None:
    for _ in range(2):
        name, found = answers(path, "ort-rtx")
    assert name == f"ONNX Runtime {ort.__version__} TensorRT-RTX" and found == pytest.approx(answers(path, "cpu")[1])
    assert here.registered == [RTX]
    ((provider, options),) = here.opened[0]
    assert provider == RTX and Path(options["nv_runtime_cache_path"]).is_dir()
    assert options["nv_profile_max_shapes"] == "pixels:8x3x8x8"


@pytest.mark.parametrize(
    ("backend", "change", "why"),
    [
        ("ort-tensorrt", {"available": [CPU]}, "has no TensorrtExecutionProvider; pip install onnxruntime-gpu"),
        (
            "ort-tensorrt",
            {"starts": {CPU, CUDA}},
            "cannot start its TensorrtExecutionProvider here; see: edgeres doctor",
        ),
        ("ort-rtx", {"starts": {CPU}}, "cannot start its NvTensorRTRTXExecutionProvider here"),
        ("ort-rtx", {"devices": 0}, "NvTensorRTRTXExecutionProvider finds no GPU 0 that it runs on"),
        ("ort-rtx", {"devices": None}, "onnxruntime_ep_nv_tensorrt_rtx does not load (no libcuda.so.1)"),
        ("cuda", {"available": [CPU]}, "has no CUDAExecutionProvider; pip install onnxruntime-gpu"),
        ("cuda", {"starts": {CPU}}, "cannot start its CUDAExecutionProvider here"),
    ],
)
def test_what_is_missing_is_one_line(here: Machine, path: Path, backend: Any, change: dict[str, Any], why: str) -> None:
    vars(here).update(change)
    with pytest.raises(EngineError) as failed:
        edgeres.load(path, backend=backend)
    assert why in str(failed.value) and "\n" not in str(failed.value)


def test_a_plugin_that_is_not_installed_and_a_bundle_without_the_graph(
    here: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / "cpu.edgeres", files={FP32: MODEL, FORMS["cpu"].file: MODEL})
    with pytest.raises(EngineError, match="holds no INT8 graph for TensorRT-RTX; build the bundle with --target rtx"):
        edgeres.load(path, backend="ort-rtx")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(EngineError, match="is not installed; pip install onnxruntime-ep-nv-tensorrt-rtx"):
        OrtRunner(MODEL, device=EngineProvider("rtx"))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="give auto, tensorrt, rtx, cuda, cpu, ort-tensorrt, ort-rtx"):
        edgeres.load(path, backend="ort-trt")  # type: ignore[arg-type]


def test_auto_builds_no_engine_and_the_cuda_backend_runs_the_fp32_graph(here: Machine, path: Path) -> None:
    """INT8 in float between Q/DQ pairs would cost time and accuracy."""
    assert answers(path, "auto")[0] == f"ONNX Runtime {ort.__version__} CUDA"
    answers(path, "cuda")
    assert [[name for name, _ in opened] for opened in here.opened] == [[CUDA, CPU]] * 2


def test_a_cache_that_cannot_be_written_is_left_out(here: Machine, path: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    answers(path, "ort-tensorrt")
    assert "trt_engine_cache_enable" not in here.opened[0][0][1]


@pytest.mark.parametrize("check", CHECKS)
def test_they_keep_the_contract_of_backends(here: Machine, check: str) -> None:
    def reference(feed: Feed) -> Feed:
        with OrtRunner(MODEL, threads=1) as runner:
            return runner.infer(feed)

    for runtime in ("tensorrt", "rtx"):
        made = EngineProvider(runtime, max_batch=2)  # type: ignore[arg-type]
        CHECKS[check](Subject(lambda made=made: OrtRunner(MODEL, threads=1, device=made), reference))  # type: ignore[misc]
