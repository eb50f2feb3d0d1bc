"""The builder on real RTX engines, and around the vendor: availability, translation, progress, cancellation."""

from __future__ import annotations

import ctypes
import json
import re
import signal
import subprocess
import sys
import textwrap
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from engine_graphs import Layer, constant, model, node_of, resnet
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeres.device import gpu, libraries
from edgeres.device.cpu import describe, has_vnni, this_cpu
from edgeres.device.gpu import Gpu, find_gpu, run_command
from edgeres.device.libraries import Flavour, available, load
from edgeres.device.messages import explain
from edgeres.device.targets import TARGETS
from edgeres.documents import DocumentKind
from edgeres.engine.builder import BuildRequest, BuiltEngine, _capabilities, build_engine
from edgeres.engine.meter import Meter
from edgeres.errors import EngineError, ModelError, UsageError
from edgeres.graph.half import to_fp16
from edgeres.records import EngineRecord

ORIN = Gpu("Orin", "8.7", 8 << 30, "12.6")
NO_GPU = "no NVIDIA driver (libcuda is not installed)"


class Bar:
    """A progress bar that keeps what it was told."""

    def __init__(self) -> None:
        self.name, self.total, self.steps = "", None, list[int]()

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Any]:
        self.name, self.total = name, total
        yield self.steps.append

    def say(self, line: str) -> None:
        raise AssertionError(line)


class Impatient(Bar):
    """Presses Ctrl-C, as far as the build can tell, at the tenth step."""

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Any]:
        def advance(steps: int) -> None:
            self.steps.append(steps)
            if len(self.steps) == 10:
                raise KeyboardInterrupt

        yield advance


def read_record(content: object) -> EngineRecord:
    """A record from its JSON."""
    return DocumentKind(EngineRecord, "engine", "").decode(json.dumps(content).encode(), "here")


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="builds real engines with TensorRT-RTX")


@pytest.fixture(scope="module")
def engines(rtx: Any) -> dict[str, BuiltEngine]:
    """The same network in three precisions."""
    float_graph = resnet(quantized=False, width=128)
    graphs = {"fp32": float_graph, "fp16": to_fp16(float_graph), "int8": resnet(quantized=True, width=128)}
    return {
        precision: build_engine(graph.SerializeToString(), BuildRequest(precision), "rtx")  # type: ignore[arg-type]
        for precision, graph in graphs.items()
    }


def build(graph: onnx.ModelProto, flavour: Flavour = "rtx", **request: Any) -> BuiltEngine:
    return build_engine(graph.SerializeToString(), BuildRequest(**{"precision": "int8", **request}), flavour)


def small() -> onnx.ModelProto:
    return resnet(quantized=True, width=8, px=16)


# --- engines ---------------------------------------------------------------------------------------------------------


def test_fewer_bits_make_smaller_engines(engines: dict[str, BuiltEngine]) -> None:
    size = {precision: len(engine.data) for precision, engine in engines.items()}
    assert size["int8"] < size["fp16"] < size["fp32"]
    assert size["int8"] < 0.6 * size["fp32"]


def test_an_engine_tells_what_it_is(engines: dict[str, BuiltEngine], rtx: Any) -> None:
    engine = engines["int8"]
    assert engine.data.startswith(b"vtrt")
    assert (engine.flavour, engine.version, engine.batch) == ("rtx", rtx.__version__, (1, 1, 8))
    assert engine.file_name == f"rtx-{rtx.__version__}-portable.engine"
    assert engines["fp32"].file_name == f"rtx-{rtx.__version__}-portable-fp32.engine"
    record = engine.record("rtx", f"engines/{engine.file_name}")
    assert (record.size_bytes, record.status) == (len(engine.data), "built, not run here")
    assert read_record(record.to_dict()) == record


def test_the_vendors_log_is_captured_and_kept_off_the_terminal(rtx: Any, capfd: pytest.CaptureFixture[str]) -> None:
    engine = build(small())
    assert any("Detected 1 inputs and 1 output" in line for line in engine.log)
    assert all(re.match(r"\[[FEWI]\] ", line) for line in engine.log)
    assert capfd.readouterr() == ("", "")
    assert sum("Detected 1 inputs" in line for line in build(small()).log) == 1  # each build has its own


def test_the_profile_takes_the_batch_sizes_asked_for(rtx: Any) -> None:
    """The builder says how much memory the activations of the largest batch take: a constant and so much an image."""

    def scratch(largest: int) -> int:
        graph = resnet(quantized=False, width=16, px=32)
        log = "\n".join(build(graph, precision="fp32", max_batch=largest).log)
        return int(re.search(r"Total Activation Memory: (\d+)", log)[1])  # type: ignore[index]

    assert (scratch(264) - scratch(136)) / 128 == (scratch(136) - scratch(8)) / 128 > 0


def test_a_fixed_batch_stays_what_it_is(rtx: Any) -> None:
    assert build(resnet(quantized=True, width=8, px=16, batch=4)).batch == (4, 4, 4)


def test_compute_capabilities_are_chosen(rtx: Any) -> None:
    portable, ampere, both = (build(small(), compute_capabilities=chosen) for chosen in ((), ("8.6",), ("8.6", "12.0")))
    assert ampere.file_name.endswith("-sm86.engine")
    assert both.file_name.endswith("-sm86+sm120.engine")
    assert both.record("rtx", "engines/x.engine").portability.compute_capabilities == ("8.6", "12.0")
    assert len({portable.data, ampere.data, both.data}) == 3


def test_turing_would_take_int8_from_all_the_others(rtx: Any) -> None:
    """Why BuildRequest refuses 7.5 for INT8; the label fp32 on an INT8 graph gets past it."""
    with pytest.raises(UsageError, match=r"no INT8 for SM 7\.5"):
        BuildRequest("int8", compute_capabilities=("8.6", "7.5"))
    for chosen, dequantizes in ((("8.6",), False), (("8.6", "7.5"), True)):
        engine = build(Layer().graph(), precision="fp32", compute_capabilities=chosen)
        kernels = re.findall(rb"__myl_[A-Za-z]+", engine.data)  # RTX names the kernels it writes after what they do
        assert any(b"CastMul" in name for name in kernels) == dequantizes


def test_a_file_with_its_weights_beside_it(rtx: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(small(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert build_engine(path, BuildRequest("int8"), "rtx").data


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # its timing cache is empty
def test_the_same_code_builds_on_tensorrt(rtx: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """RTX's module shares TensorRT's API; under the other name it takes the other flavour's way."""
    monkeypatch.setenv("EDGERES_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    monkeypatch.setattr(libraries, "this_gpu", lambda: (ORIN, ""))
    monkeypatch.setitem(libraries.OLDEST, "tensorrt", (1, 5))
    libraries.vendor_log.cache_clear()
    try:
        engine = build(small(), "tensorrt", workspace_bytes=1 << 30, optimization_level=2)
    finally:
        libraries.vendor_log.cache_clear()
    assert engine.file_name == f"tensorrt-{rtx.__version__}-sm87.engine"
    assert [path.name[:14] for path in (tmp_path / "timing").iterdir()] == ["tensorrt-1.7.1"]


# --- refusals --------------------------------------------------------------------------------------------------------


def asymmetric() -> onnx.ModelProto:
    graph = small()
    for tensor in graph.graph.initializer:
        if tensor.name == "zero":
            tensor.CopyFrom(constant("zero", np.int8(3)))
    return graph


def int32_bias() -> onnx.ModelProto:
    graph = small()
    graph.graph.initializer.extend([constant("b", np.zeros(8, np.int32)), constant("bs", np.float32(0.1))])
    graph.graph.node.insert(0, helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], name="bias"))
    node_of(graph, "Conv").input[2] = "bd"
    return graph


def foreign() -> onnx.ModelProto:
    node = helper.make_node("QLinearAdd", ["x"], ["y"], name="sum", domain="com.microsoft")
    return model([node], [], opsets={"": 17, "com.microsoft": 1})


def too_small() -> onnx.ModelProto:
    weights = constant("w", np.ones((4, 3, 9, 9), np.float32))
    return model([helper.make_node("Conv", ["x", "w"], ["y"], name="wide")], [weights], shape=("n", 3, 8, 8))


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (
            asymmetric,
            r"refuses the graph: node \w+ \(QuantizeLinear\): zero_point is not 0; start from the float graph",
        ),
        (int32_bias, r"node bias \(DequantizeLinear\): DequantizeLinear reads int32, a quantized bias; start from"),
        (foreign, r"node sum \(QLinearAdd\): it does not support this operator; start from the float graph"),
        (too_small, r"node wide \(Conv\): wide: image size is smaller than filter size; --debug shows"),
        (
            lambda: model([helper.make_node("Relu", ["x"], ["y"])], [], types=(TensorProto.INT16, 1)),
            "a data type that it does",
        ),
    ],
)
def test_refusals_are_one_readable_line(rtx: Any, graph: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        build(graph(), max_batch=2)
    assert "\n" not in str(caught.value) and "Assertion" not in str(caught.value)
    assert "[E] " in str(caught.value.__cause__)  # the vendor's own words, for --debug


def test_a_file_that_is_no_graph_is_named(rtx: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ModelError, match=rf"{path}: not a valid ONNX file \(it is no protobuf message\); export"):
        build_engine(path, BuildRequest("fp32"), "rtx")
    with pytest.raises(ModelError, match=r"gone\.onnx: no such file"):
        build_engine(tmp_path / "gone.onnx", BuildRequest("fp32"), "rtx")


def test_a_workspace_that_is_too_small_is_said(rtx: Any) -> None:
    with pytest.raises(EngineError, match="a layer does not fit into the workspace; raise the workspace"):
        build(small(), workspace_bytes=16)


def test_height_and_width_must_be_fixed(rtx: Any) -> None:
    graph = model([helper.make_node("Relu", ["x"], ["y"])], [], shape=("n", 3, "h", "w"))
    with pytest.raises(ModelError, match=r"input x \(\?, 3, \?, \?\) has dynamic axes besides the batch"):
        build(graph)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_batch": 0},
        {"opt_batch": 9},
        {"min_batch": 4, "opt_batch": 2},
        {"optimization_level": 6},
        {"workspace_bytes": 0},
        {"compute_capabilities": ("8.7",)},
    ],
)
def test_requests_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BuildRequest("fp32", **wrong)


def test_what_only_one_flavour_has() -> None:
    with pytest.raises(UsageError, match="RTX engines load in the version that built them alone"):
        build(small(), version_compatible=True)
    with pytest.raises(UsageError, match="RTX engines are portable as they are; drop --hardware-compatible"):
        build(small(), hardware_compatible=True)
    with pytest.raises(UsageError, match="TensorRT builds for the GPU it runs on"):
        build(small(), "tensorrt", compute_capabilities=("8.6",))


@pytest.mark.parametrize(
    ("sm", "can"), [("8.7", False), ("11.0", False), ("7.5", False), ("8.6", True), ("12.0", True)]
)
def test_engines_for_other_gpus_are_built_on_ampere_and_later_alone(
    monkeypatch: pytest.MonkeyPatch, sm: str, can: bool
) -> None:
    """Not on a Jetson: the TensorRT documentation, "Hardware Compatibility"."""
    fake(monkeypatch, "tensorrt", "10.16.1")
    monkeypatch.setattr(libraries, "this_gpu", lambda: (Gpu("a GPU", sm, 8 << 30, "13.0"), ""))
    request = BuildRequest("int8", hardware_compatible=True)
    if can:
        assert _capabilities(request, "tensorrt") == (sm,)
    else:
        with pytest.raises(UsageError, match=rf"can be built on a GPU \(SM {sm}\), only on Ampere and later"):
            _capabilities(request, "tensorrt")


@pytest.mark.parametrize("asked", [{}, {"version_compatible": True}, {"hardware_compatible": True}])
def test_the_record_says_where_else_an_engine_runs(monkeypatch: pytest.MonkeyPatch, asked: dict[str, bool]) -> None:
    """From the request to the manifest's entry and back, with the vendor's build left out."""
    fake(monkeypatch, "tensorrt", "10.13.0")
    monkeypatch.setattr(libraries, "this_gpu", lambda: (Gpu("A100", "8.0", 80 << 30, "12.8"), ""))
    monkeypatch.setattr("edgeres.engine.builder.vendor_log", lambda flavour: libraries.VendorLog(None, deque()))
    monkeypatch.setattr("edgeres.engine.builder.timing_cache", lambda here: None)
    monkeypatch.setattr("edgeres.engine.builder._build", lambda *given: (b"engine", (1, 1, 8)))
    record = build_engine(b"", BuildRequest("int8", **asked), "tensorrt").record("tensorrt", "engines/a.engine")
    said = json.loads(json.dumps(record.to_dict()))
    assert {name for name in ("version_compatible", "hardware_compatible") if said[name]} == set(asked)
    assert read_record(said) == record


@pytest.mark.parametrize(
    ("message", "what"),
    [  # as TensorRT 8.6 to 10.16 wrote them
        (
            "Assertion failed: shiftIsAllZeros(zeroPoint): TensorRT only supports symmetric quantization. The zero"
            " point for the QuantizeLinear/DequantizeLinear operator must be all zeros.",
            "zero_point is not 0",
        ),
        ('Assertion failed: scaleAllPositive && "Scale coefficients must all be positive"', "a scale is 0, negative"),
        (
            "ITensor::getDimensions: Error Code 4: API Usage Error (conv1.weight_bias_DequantizeLinear: input has type"
            " Int32 but must have type FP8, FP4, Int4, or Int8. In checkType at nodeBase.cpp:455)",
            "DequantizeLinear reads int32",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for"
            " node conv1 + relu1. In computeCosts at optimizer.cpp:4186)",
            "a layer does not fit into the workspace",
        ),
        ("Requested amount of GPU memory (8589934592 bytes) could not be allocated. OutOfMemory", "not enough memory"),
        ("CUDA initialization failure with error: 35", "the GPU or its driver does not work"),
        ("IBuilder::x: Error Code 9: Skipping tactic (something new. In f at /_src/g.cpp:12)", "something new."),
    ],
)
def test_messages_of_other_versions(message: str, what: str) -> None:
    assert explain(message)[0].startswith(what)


# --- progress and Ctrl-C ---------------------------------------------------------------------------------------------


def test_progress_fills_one_bar(rtx: Any) -> None:
    bar = Bar()
    build_engine(small().SerializeToString(), BuildRequest("int8"), "rtx", bar)
    assert bar.name == "building the int8 engine"
    assert bar.total == sum(bar.steps)
    assert len(bar.steps) > 20 and min(bar.steps) > 0


def test_an_interrupted_build_ends_and_the_next_one_works(rtx: Any, capfd: pytest.CaptureFixture[str]) -> None:
    bar = Impatient()
    with pytest.raises(KeyboardInterrupt):
        build_engine(small().SerializeToString(), BuildRequest("int8"), "rtx", bar)
    assert len(bar.steps) == 10
    assert capfd.readouterr().err == ""
    assert build(small()).data


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_reaches_a_build(rtx: Any) -> None:
    """A real SIGINT while the builder runs in its thread ends the process, and there is no engine."""
    script = f"""
        import os, signal, sys, threading
        from contextlib import contextmanager
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from engine_graphs import resnet
        from edgeres.engine.builder import BuildRequest, build_engine

        def interrupt(*caught):
            seen.set()
            signal.default_int_handler(*caught)

        class Bar:
            @contextmanager
            def task(self, name, total):
                yield self.advance

            def advance(self, steps):
                if not seen.is_set():
                    os.kill(os.getpid(), signal.SIGINT)
                    seen.wait(30)  # inside the builder's step until the main thread has taken the signal

        seen = threading.Event()
        signal.signal(signal.SIGINT, interrupt)
        build_engine(resnet(quantized=True, width=8, px=16).SerializeToString(), BuildRequest("int8"), "rtx", Bar())
        print("built")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.stdout == ""


@st.composite
def phases(draw: st.DrawFn, depth: int = 0) -> list[list[Any]]:
    """A phase as the list of its steps, each the list of the phases that it opens; steps may be cut short."""
    steps = draw(st.integers(1, 5))
    inner = st.lists(phases(depth + 1), max_size=2) if depth < 3 else st.just([])
    return [draw(inner) for _ in range(steps)]


@given(phases(), st.integers(0, 5))
def test_the_bar_never_goes_back_and_ends_full(root: list[Any], cut: int) -> None:
    told: list[int] = []
    meter = Meter(told.append)
    counter = iter(range(10_000))

    def run(phase: list[Any], parent: str | None) -> None:
        name = f"phase {next(counter)}"
        meter.start(name, parent, len(phase) + cut)  # the builder may finish before all steps are done
        for index, opened in enumerate(phase):
            for child in opened:
                run(child, name)
            assert meter.step(name, index)
        meter.finish(name)

    run(root, None)
    assert all(step > 0 for step in told)
    assert sum(told) <= Meter.TOTAL
    if cut == 0:
        assert sum(told) == Meter.TOTAL
    meter.complete()
    assert sum(told) == Meter.TOTAL


# --- what is there ---------------------------------------------------------------------------------------------------


def fake(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder on the path in which a test puts a broken ``tensorrt``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (tmp_path / "tensorrt").mkdir()
    return tmp_path / "tensorrt" / "__init__.py"


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # what makes an import fail
    monkeypatch.setattr(libraries, "this_gpu", lambda: (ORIN, ""))
    here = available("tensorrt")
    assert (here.importable, here.can_build, here.version) == (False, False, None)
    with pytest.raises(EngineError, match=r"copy the bundle to the device and run there: edgeres engine BUNDLE"):
        build(small(), "tensorrt")


def test_a_package_whose_libraries_are_missing(broken: Path) -> None:
    broken.write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file: No such file or directory')"
    )
    with pytest.raises(EngineError, match=r"tensorrt is installed but does not load \(libnvinfer\.so\.10: cannot open"):
        load("tensorrt")
    assert not available("tensorrt").importable


def test_a_package_that_misses_a_part_of_itself(broken: Path) -> None:
    broken.write_text("import tensorrt_bindings_of_another_world")
    with pytest.raises(EngineError, match="tensorrt is incomplete: it needs tensorrt_bindings_of_another_world"):
        load("tensorrt")


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "tensorrt", "8.5.2.2")
    with pytest.raises(EngineError, match=r"tensorrt 8\.5\.2\.2 is older than 10\.3"):
        load("tensorrt")


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_tensorrt_without_a_gpu_says_where_to_go(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake(monkeypatch, "tensorrt", version)
    monkeypatch.setattr(libraries, "this_gpu", lambda: (None, NO_GPU))
    assert not available("tensorrt").can_build
    with pytest.raises(
        EngineError, match=r"here is none: no NVIDIA driver .*copy the bundle to the device and run there"
    ):
        build(small(), "tensorrt")


@pytest.mark.parametrize(
    ("flavour", "sm", "can_build", "can_run"),
    [
        ("rtx", None, True, False),
        ("rtx", "8.9", True, True),
        ("rtx", "9.0", True, False),
        ("rtx", "8.7", True, False),
        ("tensorrt", None, False, False),
        ("tensorrt", "9.0", True, True),
        ("tensorrt", "8.7", True, True),
    ],
)
def test_who_builds_and_runs_where(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, sm: str | None, can_build: bool, can_run: bool
) -> None:
    fake(monkeypatch, libraries.MODULES[flavour], "11.4.0")
    found = None if sm is None else Gpu("a GPU", sm, 8 << 30, "13.0")
    monkeypatch.setattr(libraries, "this_gpu", lambda: (found, NO_GPU if found is None else ""))
    here = available(flavour)
    assert (here.can_build, here.can_run) == (can_build, can_run)
    assert bool(here.reason) == bool(here.next_step) == (not can_run)


def test_the_gpu_is_asked_in_another_process() -> None:
    asked: list[Sequence[str]] = []

    def answer(argv: Sequence[str]) -> str:
        asked.append(argv)
        return '{"gpu": {"name": "Orin", "sm": "8.7", "memory_bytes": 8589934592, "cuda": "12.6"}, "reason": ""}'

    assert find_gpu(answer) == (ORIN, "")
    assert asked[0][0] == sys.executable
    assert find_gpu(lambda argv: None) == (None, "the NVIDIA driver does not answer")
    found, reason = find_gpu()
    assert (found is None) == bool(reason)


class FakeCuda:
    """libcuda as it answers on an AGX Orin, or with an error of cuInit."""

    def __init__(self, init: int = 0) -> None:
        self.cuInit = lambda flags: init

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:
        name.value = b"Orin"

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> None:
        memory._obj.value = 8 << 30

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj.value = {75: 8, 76: 7}[attribute]

    def cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 12060

    def cuGetErrorString(self, status: int, text: Any) -> None:
        text._obj.value = b"no CUDA-capable device is detected"


@pytest.mark.parametrize(
    ("init", "answer"),
    [
        (0, {"name": "Orin", "sm": "8.7", "memory_bytes": 8 << 30, "cuda": "12.6"}),
        (100, {"reason": "the NVIDIA driver finds no usable GPU (no CUDA-capable device is detected)"}),
    ],
)
def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch, init: int, answer: dict[str, Any]) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCuda(init))
    assert gpu._ask_driver() == answer


def test_a_command_that_hangs_fails_or_is_missing_gives_nothing() -> None:
    assert run_command([sys.executable, "-c", "print('here')"]) == "here\n"
    assert run_command([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.3) is None
    assert run_command([sys.executable, "-c", "raise SystemExit(1)"]) is None
    assert run_command(["no-such-command-anywhere"]) is None


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "features", "saturates"),
    [
        (
            "model name : Intel Xeon\nflags : fpu avx2 avx512f avx512_vnni\n",
            "x86_64",
            ("avx2", "avx512f", "avx512_vnni"),
            False,
        ),
        ("model name : Intel Core i5-12500\nflags : fpu avx2 avx_vnni\n", "x86_64", ("avx2", "avx_vnni"), False),
        ("model name : Intel Core i7-6700\nflags : fpu sse4_1 avx2\n", "x86_64", ("avx2",), True),
        ("processor : 0\nFeatures : fp asimd asimddp\n", "aarch64", ("asimddp",), False),
        ("processor : 0\nFeatures : fp asimd\n", "aarch64", (), False),
        ("", "x86_64", (), None),
    ],
)
def test_cpus(cpuinfo: str, machine: str, features: tuple[str, ...], saturates: bool | None) -> None:
    cpu = describe(cpuinfo, machine, 4)
    assert (cpu.features, cpu.saturates, cpu.cores) == (features, saturates, 4)


def test_vnni_here_is_what_the_kernel_says() -> None:
    saturates = this_cpu().saturates
    assert has_vnni() == (None if saturates is None else not saturates)


# --- FP16 ------------------------------------------------------------------------------------------------------------


def outputs(graph: onnx.ModelProto, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": images})[0])


def test_fp16_computes_the_same_with_half_the_weights() -> None:
    graph = resnet(quantized=False)
    before = graph.SerializeToString()
    half = to_fp16(graph)
    assert graph.SerializeToString() == before
    images = np.random.default_rng(1).standard_normal((4, 3, 32, 32)).astype(np.float32)
    expected, found = outputs(graph, images), outputs(half, images)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.005 * np.abs(expected).max()
    dtypes = {numpy_helper.to_array(tensor).dtype.name for tensor in half.graph.initializer}
    assert dtypes == {"float16"}
    assert {value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)} == {
        TensorProto.FLOAT
    }


def test_a_quantized_graph_is_not_made_fp16() -> None:
    with pytest.raises(ModelError, match="the graph is quantized; make the FP16 graph from the float graph"):
        to_fp16(small())


def test_engines_for_boards_are_built_on_them() -> None:
    assert all("device" in target.where for target in TARGETS.values() if target.board.model and not target.refused)
