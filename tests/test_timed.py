"""trtexec's times of an inference: events are between the right operations, on a simulated GPU with a known clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from bundles import classifier
from fake_gpu import DOWNLOAD_MS, KERNELS_MS, UPLOAD_MS, Gpu, installed, plan

from edgeres.errors import EngineError, InputError
from edgeres.runtime import EngineFile, TensorRTRunner
from edgeres.runtime.memory import driver, libcuda

MODEL = classifier()
SETUPS = [
    (library, flavour, integrated)
    for library in ("driver", "cuda-python", "pycuda")
    for flavour, integrated in (("tensorrt", False), ("tensorrt", True), ("rtx", False))
]


@pytest.fixture(params=SETUPS, ids=lambda s: f"{s[0]}, {s[1]}{', Jetson' if s[2] else ''}")
def setup(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gpu, TensorRTRunner]]:
    library, flavour, integrated = request.param
    gpu = Gpu(integrated=integrated)
    with installed(monkeypatch, gpu, library, flavour):
        with TensorRTRunner(EngineFile(plan(MODEL, flavour), flavour)) as runner:
            yield gpu, runner
        assert (gpu.faults, gpu.live(), gpu.stack) == ([], [], [])


def pixels(batch: int, seed: int = 0) -> dict[str, Any]:
    return {"pixels": np.random.default_rng(seed).standard_normal((batch, 3, 8, 8)).astype(np.float32)}


def test_each_step_takes_what_it_takes(setup: tuple[Gpu, TensorRTRunner]) -> None:
    """The first inference of a batch, the second (recorded) and later ones have ONNX Runtime's scores."""
    gpu, runner = setup
    session = ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    copies = 0 if gpu.integrated else 1
    assert runner.transfers is not gpu.integrated
    for turn, batch in enumerate((2, 2, 2, 5, 5, 2, 2)):
        feed = pixels(batch, seed=turn)
        found, times = runner.timed(feed)
        np.testing.assert_allclose(found["scores"], session.run(None, feed)[0], rtol=1e-5, atol=1e-5)
        assert times.upload == pytest.approx(copies * UPLOAD_MS / 1e3)
        assert times.compute == pytest.approx(KERNELS_MS / 1e3)
        assert times.download == pytest.approx(copies * DOWNLOAD_MS / 1e3)
        assert times.latency == pytest.approx((KERNELS_MS + copies * (UPLOAD_MS + DOWNLOAD_MS)) / 1e3)
        assert times.enqueue >= 0
        assert gpu.executions == turn + 1
    assert len(gpu.moments) == 4  # of the one execution context, however often it is timed


def test_a_batch_that_is_cut_is_added_up(setup: tuple[Gpu, TensorRTRunner]) -> None:
    _, runner = setup
    found, times = runner.timed(pixels(11))  # of at most 8
    assert found["scores"].shape == (11, 6)
    assert times.compute == pytest.approx(2 * KERNELS_MS / 1e3)
    with pytest.raises(InputError):
        runner.timed({"pixels": np.zeros((1, 3, 9, 8), np.float32)})


def test_timed_and_plain_inferences_mix(setup: tuple[Gpu, TensorRTRunner]) -> None:
    """infer() and timed() in any order; the graph of one batch size is not launched for another."""
    _, runner = setup
    expected = {batch: runner.infer(pixels(batch))["scores"] for batch in (1, 3)}
    order = np.random.default_rng(0).integers(0, 2, 40)
    for number, timed in enumerate(order):
        batch = (1, 3)[number // 4 % 2]
        found = runner.timed(pixels(batch))[0] if timed else runner.infer(pixels(batch))
        np.testing.assert_array_equal(found["scores"], expected[batch])


def test_the_runner_says_whether_it_launches_graphs(setup: tuple[Gpu, TensorRTRunner]) -> None:
    gpu, runner = setup
    rtx, pycuda = runner.name.startswith("TensorRT-RTX"), not hasattr(runner._device, "call")
    assert runner.cuda_graph is rtx  # which was told to, at once
    for infer in (runner.infer, runner.timed):
        infer(pixels(2))
        infer(pixels(2))
        assert runner.cuda_graph is (rtx or not pycuda)
        assert (gpu.launches > 0) is (not rtx and not pycuda)
        infer(pixels(1))
        assert runner.cuda_graph is rtx  # the batch is new


def test_without_graphs_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    with (
        installed(monkeypatch, gpu, "driver", "tensorrt"),
        TensorRTRunner(EngineFile(plan(MODEL)), graphs=False) as runner,
    ):
        for _ in range(3):
            runner.timed(pixels(2))
        assert (runner.cuda_graph, gpu.launches) == (False, 0)


def test_plain_inferences_make_no_events(setup: tuple[Gpu, TensorRTRunner]) -> None:
    gpu, runner = setup
    for _ in range(3):
        runner.infer(pixels(2))
    assert gpu.moments == {}


def test_events_that_did_not_happen_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing synchronization is an error, not a wrong time."""
    gpu = Gpu()
    with (
        installed(monkeypatch, gpu, "driver", "tensorrt"),
        TensorRTRunner(EngineFile(plan(MODEL))) as runner,
        monkeypatch.context() as patch,
        pytest.raises(EngineError, match=r"CUDA: device not ready \(cuEventElapsedTime\)"),
    ):
        patch.setattr(driver._Stream, "synchronize", lambda stream: None)
        runner.timed(pixels(2))


def test_an_event_inside_of_a_graph_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events inside a recorded graph give no times, so only the kernels are recorded."""
    gpu = Gpu()
    with installed(monkeypatch, gpu, "driver", "tensorrt"):
        device = libcuda.device()
        with device.active():
            stream, event = device.stream(), device.event()

            def work() -> bool:
                event.record(stream)
                return True

            assert stream.capture(work) is None
            event.close()
            event.close()
            stream.close()
    assert gpu.moments == {} and "inside of a graph" in gpu.faults[0]
