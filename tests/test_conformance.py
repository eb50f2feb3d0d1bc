"""Every backend keeps the contract: ONNX Runtime, engines on a simulated GPU, and on a real GPU where there is one."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bundles import classifier
from fake_gpu import CudaModule, Fault, Gpu, installed, plan

from edgeres.errors import EdgeresError, EnvironmentError_, InputError
from edgeres.runtime import EngineFile, OrtRunner, TensorRTRunner
from edgeres.runtime.conformance import CHECKS, Subject, conform
from edgeres.runtime.engine import _Context, _ContextPool
from edgeres.runtime.memory import driver
from edgeres.runtime.runner import Feed

MODEL = classifier()


def reference(feed: Feed) -> Feed:
    session = ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    return {"scores": session.run(None, feed)[0]}


def of_batch(size: int) -> bytes:
    """The model with a fixed batch."""
    model = onnx.load_from_string(MODEL)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = size
    return bytes(model.SerializeToString())


ORT: dict[str, Callable[[], Any]] = {
    "free": lambda: OrtRunner(MODEL, threads=1),
    "batch 1": lambda: OrtRunner(of_batch(1), threads=1),
    "batch 3": lambda: OrtRunner(of_batch(3), threads=1),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", ORT)
def test_onnx_runtime(kind: str, check: str) -> None:
    CHECKS[check](Subject(ORT[kind], reference))


SETUPS = [
    ("driver", "tensorrt", False),
    ("driver", "tensorrt", True),
    ("driver", "rtx", False),
    ("cuda-python", "tensorrt", False),
    ("cuda-python", "tensorrt", True),
    ("cuda-python", "rtx", False),
    ("pycuda", "tensorrt", False),
    ("pycuda", "tensorrt", True),
    ("pycuda", "rtx", False),
]


@pytest.fixture(params=SETUPS, ids=lambda s: f"{s[0]}, {s[1]}{', Jetson' if s[2] else ''}")
def setup(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gpu, str]]:
    """A simulated GPU, checked afterwards: no misuse, no memory left, no current context."""
    library, flavour, integrated = request.param
    gpu = Gpu(integrated=integrated)
    with installed(monkeypatch, gpu, library, flavour):
        yield gpu, flavour
        assert gpu.faults == []
        assert gpu.live() == []
        assert gpu.stack == []


@pytest.mark.parametrize("check", CHECKS)
def test_engines_on_a_fake_gpu(setup: tuple[Gpu, str], check: str) -> None:
    _, flavour = setup
    data = plan(MODEL, flavour)
    CHECKS[check](Subject(lambda: TensorRTRunner(EngineFile(data, flavour)), reference))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [(1, 1), (4, 4), (2, 5)])
def test_profiles(monkeypatch: pytest.MonkeyPatch, batch: tuple[int, int]) -> None:
    gpu = Gpu()
    low, high = batch
    rng = np.random.default_rng(0)
    with (
        installed(monkeypatch, gpu, "cuda-python", "tensorrt"),
        TensorRTRunner(EngineFile(plan(MODEL, batch=batch))) as r,
    ):
        assert r.max_batch == high
        for count in range(1, 4 * high + 1):
            feed = {"pixels": rng.standard_normal((count, 3, 8, 8)).astype(np.float32)}
            possible = any(low * parts <= count <= high * parts for parts in range(1, count + 1))
            if possible and -(-count // high) * low <= count:
                np.testing.assert_allclose(r.infer(feed)["scores"], reference(feed)["scores"], rtol=1e-5, atol=1e-5)
            else:
                assert not possible or low != high
                with pytest.raises(InputError, match=f"{count} cannot be cut"):
                    r.infer(feed)
    assert gpu.faults == []


def real(flavour: str) -> Callable[[Path], Any]:
    """An engine built and run on this machine's own GPU."""

    def make(folder: Path) -> Any:
        from edgeres.device.libraries import available
        from edgeres.engine.builder import BuildRequest, build_engine

        here = available(flavour)  # type: ignore[arg-type]
        if not here.can_run:
            pytest.skip(f"{flavour}: {here.reason}")
        data = build_engine(MODEL, BuildRequest("fp32"), flavour).data  # type: ignore[arg-type]
        try:
            return Subject(lambda: TensorRTRunner(EngineFile(data, flavour)), reference, tolerance=1e-2)  # type: ignore[arg-type]
        except EnvironmentError_ as error:
            pytest.skip(f"{flavour}: {error}")

    return make


@pytest.mark.parametrize("flavour", ["tensorrt", "rtx"])
def test_engines_on_a_real_gpu(flavour: str, tmp_path: Path) -> None:
    conform(real(flavour)(tmp_path))


class Broken(OrtRunner):
    """A backend with a fault that a check must find."""

    def __init__(self, fault: str) -> None:
        super().__init__(MODEL, threads=1)
        self.fault = fault
        self.lock = threading.Lock()
        self.last: Feed = {}
        self.buffer = np.zeros((64, 6), np.float32)

    def infer(self, feed: Feed) -> Feed:
        if self.fault == "unchecked" and self._session is not None:
            return {"scores": self._session.run(None, feed)[0]}
        if self.fault == "closed":
            return OrtRunner(MODEL, threads=1).infer(feed)
        if self.fault == "layout":
            array = feed["pixels"]
            if isinstance(array, np.ndarray) and array.ndim == 4 and not array.flags.c_contiguous:
                owner = array if array.base is None else array.base
                raw = np.frombuffer(np.ascontiguousarray(owner).tobytes(), array.dtype)
                feed = {"pixels": raw[: array.size].reshape(array.shape)}
            return super().infer(feed)
        found = super().infer(feed)
        count = len(found["scores"])
        if self.fault == "aliased":
            self.buffer[:count] = found["scores"]
            return {"scores": self.buffer[:count]}
        if self.fault == "racing":
            self.last = found
            threading.Event().wait(0.0005)
            return {"scores": self.last["scores"].copy()}
        if self.fault == "large batch":
            found["scores"][2:] = found["scores"][:1]
        return found


FAULTS = {
    "unchecked": "a_wrong_feed_is_refused_in_one_line",
    "closed": "a_closed_one_says_so",
    "layout": "memory_layout_does_not_matter",
    "aliased": "outputs_belong_to_the_caller",
    "racing": "threads_get_what_one_gets",
    "large batch": "every_batch_is_right",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_suite_finds_faults(fault: str) -> None:
    with pytest.raises(AssertionError):
        CHECKS[FAULTS[fault]](Subject(lambda: Broken(fault), reference))


def test_the_whole_suite_names_the_check() -> None:
    conform(Subject(lambda: OrtRunner(MODEL, threads=1), reference))
    with pytest.raises(AssertionError, match=r"^every_batch_is_right: "):
        conform(Subject(lambda: Broken("large batch"), reference))


def nothing(*_: Any) -> None:
    return None


def recorded_at_once(context: Any, feed: Feed) -> Feed:
    """A context that records a batch before it ran once."""
    if context._graph is None:
        context._set_batch(len(feed["pixels"]))
        context._graph = context._stream.capture(context._enqueue)
    return run_context(context, feed)


run_context = _Context.run
MISUSE: dict[str, tuple[Any, str, Any]] = {
    "no wait": (driver._Stream, "synchronize", nothing),
    "no copy there": (driver._Buffer, "upload", nothing),
    "no copy back": (driver._Buffer, "download", nothing),
    "one context for all threads": (_ContextPool, "_borrow", lambda pool, owner: pool._idle[0] if pool._idle else None),
    "recorded before it ran": (_Context, "run", recorded_at_once),
    "a stale graph": (_Context, "_drop_graph", nothing),
    "stream not freed": (driver._Stream, "close", nothing),
    "memory not freed": (driver._Buffer, "close", nothing),
    "context not popped": (CudaModule, "cuCtxPopCurrent", lambda module: (0, None)),
}


@pytest.mark.parametrize("misuse", MISUSE)
def test_the_fake_gpu_catches_misuse(monkeypatch: pytest.MonkeyPatch, misuse: str) -> None:
    """With each rule of the runner broken, a check fails or the GPU reports misuse."""
    gpu = Gpu()
    failed = False
    with installed(monkeypatch, gpu, "driver", "tensorrt"):
        subject = Subject(lambda: TensorRTRunner(EngineFile(plan(MODEL))), reference)
        monkeypatch.setattr(*MISUSE[misuse])
        for check in ("every_batch_is_right", "threads_get_what_one_gets"):
            try:
                CHECKS[check](subject)
            except (AssertionError, AttributeError, Fault, EdgeresError, ValueError):
                failed = True
    gc.collect()
    assert failed or gpu.faults or gpu.live() or gpu.stack
