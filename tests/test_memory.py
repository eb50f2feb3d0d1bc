"""GPU memory by the driver, cuda-python and pycuda: all restore a thread's contexts and free all memory."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import classifier
from fake_gpu import GARBAGE, CudaLibrary, CudaModule, Gpu, installed, plan

from edgeres.errors import EngineError, EnvironmentError_, UsageError
from edgeres.runtime import EngineFile, TensorRTRunner
from edgeres.runtime.memory import LIBRARY, Device, default_device, driver, libcuda
from edgeres.runtime.memory.driver import WAIT

PLAN = plan(classifier())
FEED = {"pixels": np.ones((2, 3, 8, 8), np.float32)}
LIBRARIES = ["driver", "cuda-python", "pycuda"]


@pytest.fixture(params=[(library, integrated) for library in LIBRARIES for integrated in (False, True)], ids=str)
def device(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gpu, Device]]:
    library, integrated = request.param
    gpu = Gpu(integrated=integrated, sm=(8, 7))
    with installed(monkeypatch, gpu, library, "tensorrt"):
        yield gpu, default_device()
    assert gpu.faults == []
    assert gpu.live() == []
    assert gpu.stack == []


def in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_the_device_says_what_it_is(device: tuple[Gpu, Device]) -> None:
    gpu, ours = device
    assert (ours.gpu, ours.sm, ours.integrated) == ("Fake GPU", "8.7", gpu.integrated)
    assert ours.name.split()[0] in ("CUDA", "cuda-python", "pycuda")


def test_bytes_travel_there_and_back(device: tuple[Gpu, Device]) -> None:
    gpu, ours = device
    data = np.arange(100, dtype=np.uint8)
    with ours.active():
        buffer, stream = ours.buffer(128), ours.stream()
        assert len(buffer.host) == 128 and buffer.host.dtype == np.uint8
        buffer.host[:100] = data
        buffer.upload(100, stream)
        if not gpu.integrated:
            assert (gpu.at(buffer.address, 100) == GARBAGE).all()  # the work in the stream has not run yet
        stream.synchronize()
        np.testing.assert_array_equal(gpu.at(buffer.address, 100), data)
        gpu.at(buffer.address, 100)[...] += 1
        buffer.download(100, stream)
        stream.synchronize()
        np.testing.assert_array_equal(buffer.host[:100], data + 1)
        for _ in range(2):
            buffer.close()
            stream.close()
        assert not len(buffer.host)


def test_mapped_memory_is_one_memory_and_takes_no_copies(device: tuple[Gpu, Device]) -> None:
    gpu, ours = device
    with ours.active():
        buffer, stream = ours.buffer(8), ours.stream()
        kinds = sorted(block.kind for block in gpu.blocks.values())
        assert kinds == (["host memory", "mapping"] if gpu.integrated else ["device memory", "host memory"])
        buffer.upload(8, stream)
        buffer.download(8, stream)
        assert len(gpu.queues[stream.handle].ops) == (0 if gpu.integrated else 2)
        stream.synchronize()
        buffer.close()
        stream.close()


def test_blocks_nest_and_end_by_errors(device: tuple[Gpu, Device]) -> None:
    gpu, ours = device
    with pytest.raises(ZeroDivisionError), ours.active(), ours.active():
        assert len(gpu.stack) == 2
        raise ZeroDivisionError
    assert gpu.stack == []


def test_threads_come_and_go(device: tuple[Gpu, Device]) -> None:
    """Each new thread gets an execution context, as many as worked at once; none leaves a CUDA context behind."""
    gpu, ours = device
    with TensorRTRunner(EngineFile(PLAN), device=ours) as runner:
        expected = runner.infer(FEED)["scores"]
        for _ in range(20):
            scores, stack = in_thread(lambda: (runner.infer(FEED)["scores"], list(gpu.stack)))
            np.testing.assert_array_equal(scores, expected)
            assert stack == []
        assert len(gpu.queues) == 1


def test_closed_in_another_thread(device: tuple[Gpu, Device]) -> None:
    _, ours = device
    runner = TensorRTRunner(EngineFile(PLAN), device=ours)
    runner.infer(FEED)
    in_thread(runner.close)


def test_graphs_are_recorded_where_the_library_can(device: tuple[Gpu, Device]) -> None:
    gpu, ours = device
    with TensorRTRunner(EngineFile(PLAN), device=ours) as runner:
        for _ in range(5):
            runner.infer(FEED)
        assert gpu.launches == (0 if "pycuda" in ours.name else 4)
        runner.infer({"pixels": FEED["pixels"][:1]})
        assert gpu.executions == 6
    with TensorRTRunner(EngineFile(PLAN), device=ours, graphs=False) as runner:
        before = gpu.launches
        for _ in range(3):
            runner.infer(FEED)
        assert gpu.launches == before


def test_work_that_cannot_be_recorded_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    with installed(monkeypatch, gpu, "cuda-python", "tensorrt") as cuda:
        monkeypatch.setattr(cuda, "cuStreamEndCapture", lambda stream: (end(stream), (101, None))[1])
        end = type(cuda).cuStreamEndCapture.__get__(cuda)
        with TensorRTRunner(EngineFile(PLAN)) as runner:
            first = runner.infer(FEED)["scores"]
            for _ in range(3):
                np.testing.assert_array_equal(runner.infer(FEED)["scores"], first)
    assert (gpu.launches, gpu.faults) == (0, [])


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gpu, Any, Any]]:
    """An application whose main thread has its own pycuda context."""
    gpu = Gpu(integrated=True)
    with installed(monkeypatch, gpu, "pycuda", "tensorrt") as cuda:
        cuda.init()
        yield gpu, cuda, cuda.Device(0).make_context()


def test_inside_a_pycuda_context(application: tuple[Gpu, Any, Any]) -> None:
    """Every thread uses the application's context, which stays current in the main thread."""
    gpu, cuda, context = application
    with TensorRTRunner(EngineFile(PLAN)) as runner:
        assert cuda.Context.get_current() is context
        expected = runner.infer(FEED)["scores"]
        assert cuda.stacks() == [context] and gpu.stack == [context.context]
        scores, left = in_thread(lambda: (runner.infer(FEED)["scores"], [*gpu.stack, *cuda.stacks()]))
        np.testing.assert_array_equal(scores, expected)
        assert left == []
        assert {block.context for block in gpu.blocks.values()} == {context.context}
    assert cuda.stacks() == [context]
    cuda.Context.pop()
    assert (gpu.live(), gpu.faults, gpu.stack) == ([], [], [])


def test_pycuda_that_is_imported_but_has_no_context(application: tuple[Gpu, Any, Any]) -> None:
    """A callback thread without a current context uses the primary context; the main thread's does not change."""
    gpu, cuda, context = application

    def work() -> list[Any]:
        with TensorRTRunner(EngineFile(PLAN)) as runner:
            runner.infer(FEED)
            assert {block.context for block in gpu.blocks.values()} == {gpu.primary}
        return [*gpu.stack, *cuda.stacks()]

    assert in_thread(work) == []
    assert cuda.stacks() == [context]
    assert gpu.faults == []


def test_a_context_that_is_gone_is_named(application: tuple[Gpu, Any, Any]) -> None:
    gpu, cuda, context = application
    runner = TensorRTRunner(EngineFile(PLAN))
    runner.infer(FEED)
    cuda.Context.pop()
    context.detach()
    with pytest.raises(EngineError, match="pycuda context is gone") as caught:
        runner.infer(FEED)
    assert "\n" not in str(caught.value)
    runner.close()  # frees nothing in a context that is gone, without an error
    assert gpu.stack == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    with installed(monkeypatch, Gpu(), library, "tensorrt"), pytest.raises(EngineError) as caught:
        default_device(1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["driver", "cuda-python"])
def test_memory_that_does_not_suffice(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Out of memory is one line, frees everything, and later inferences work."""
    gpu = Gpu()
    with installed(monkeypatch, gpu, library, "tensorrt"), TensorRTRunner(EngineFile(PLAN)) as runner:
        gpu.memory = 10_000
        with pytest.raises(EngineError, match=r"CUDA: out of memory \(cuMem\w+\); close other programs"):
            runner.infer(FEED)
        assert gpu.live() == ["engine"]
        gpu.memory = 1 << 20
        assert runner.infer(FEED)["scores"].shape == (2, 6)
    assert (gpu.live(), gpu.faults, gpu.stack) == ([], [], [])


def test_a_driver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-python 12 and 13 raise different exceptions without a driver."""

    def no_driver(flags: int) -> tuple[int]:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    with installed(monkeypatch, Gpu(), "cuda-python", "tensorrt") as cuda:
        monkeypatch.setattr(cuda, "cuInit", no_driver)
        with pytest.raises(EngineError, match=r"no NVIDIA driver \(Failed to dlopen"):
            default_device()


def test_nothing_is_installed_and_the_driver_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package is needed besides the vendor's; pycuda is used where a context of it is current."""
    # What is changed inside of ``installed`` is undone inside, or its undoing would be undone.
    with installed(monkeypatch, Gpu(), "driver", "tensorrt"), monkeypatch.context() as patch:
        patch.delenv(LIBRARY)
        assert default_device().name == "CUDA driver 12.6"
    with installed(monkeypatch, Gpu(), "pycuda", "tensorrt") as cuda, monkeypatch.context() as patch:
        patch.delenv(LIBRARY)
        patch.setattr(libcuda, "_library", no_library)
        cuda.Device(0).make_context()
        assert default_device().name.startswith("pycuda")
        cuda.Context.pop()
        with pytest.raises(EngineError, match=r"no NVIDIA driver \(libcuda.so.1: cannot open"):
            default_device()


def no_library() -> Any:
    raise EngineError("no NVIDIA driver (libcuda.so.1: cannot open shared object file)", hint="see: edgeres doctor")


@pytest.mark.parametrize(("said", "words"), [("cuda", "give driver, cuda-python, pycuda"), ("Driver", "'Driver'")])
def test_a_library_that_is_none(monkeypatch: pytest.MonkeyPatch, said: str, words: str) -> None:
    monkeypatch.setenv(LIBRARY, said)
    with pytest.raises(UsageError, match=words):
        default_device()


@pytest.mark.parametrize("library", ["cuda-python", "pycuda"])
def test_a_library_that_was_asked_for_and_is_not_installed(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setenv(LIBRARY, library)
    for name in ("cuda", "cuda.bindings.driver", "cuda.cuda", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentError_, match=rf"needs {library}, .*pip install 'edgeres\[\w+\]'"):
        default_device()


@pytest.mark.parametrize("library", ["driver", "cuda-python"])
@pytest.mark.parametrize(("said", "flags"), [("block", [4]), ("spin", [1]), ("", [])])
def test_how_a_thread_waits(monkeypatch: pytest.MonkeyPatch, library: str, said: str, flags: list[int]) -> None:
    with installed(monkeypatch, Gpu(), library, "tensorrt") as cuda:
        monkeypatch.setenv(WAIT, said)
        default_device()
        assert cuda.context_flags == flags


def test_a_way_to_wait_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed(monkeypatch, Gpu(), "driver", "tensorrt"):
        monkeypatch.setenv(WAIT, "sleep")
        with pytest.raises(UsageError, match=r"EDGERES_GPU_WAIT is 'sleep'; give block or spin"):
            default_device()


def test_a_driver_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed(monkeypatch, Gpu(), "driver", "tensorrt") as cuda, monkeypatch.context() as patch:
        library = CudaLibrary(cuda)
        del library.functions["cuGraphInstantiateWithFlags"]
        patch.setattr(libcuda, "_library", lambda: library)
        with pytest.raises(EngineError, match=r"has no cuGraphInstantiateWithFlags, so it is older than CUDA 11\.4"):
            default_device()


def test_a_call_takes_what_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed(monkeypatch, Gpu(), "driver", "tensorrt"):
        cuda = libcuda.device().cuda
        with pytest.raises(TypeError, match="cuMemAlloc takes 1 arguments, found 2"):
            cuda.cuMemAlloc(1, 2)
        with pytest.raises(AttributeError, match="cuMemcpy3D"):
            _ = cuda.cuMemcpy3D


# Every function and constant of cuda-python that is used.
USED = set(re.findall(r"cuda\.((?:cu[A-Z]|CU)\w+)", Path(driver.__file__).read_text(encoding="utf-8")))


def test_every_call_is_in_the_driver_and_in_the_fake() -> None:
    assert len(USED) > 20
    for there in (set(dir(CudaModule)), {*libcuda.PROTOTYPES, *dir(libcuda.LibCuda)}):
        assert there >= USED


def test_the_fake_has_the_functions_of_the_real_one() -> None:
    try:
        real: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        pytest.skip("cuda-python is not installed")
    assert [name for name in USED if not hasattr(real, name)] == []
    assert int(real.CUstream_flags.CU_STREAM_NON_BLOCKING) == 1
    assert int(real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED) == 18


def test_on_a_real_gpu() -> None:
    try:
        ours = default_device()
    except EnvironmentError_ as error:
        pytest.skip(str(error))
    data = np.random.default_rng(0).integers(0, 256, 1 << 16).astype(np.uint8)
    with ours.active():
        buffer, stream = ours.buffer(len(data)), ours.stream()
        buffer.host[...] = data
        buffer.upload(len(data), stream)
        stream.synchronize()
        if not ours.integrated:
            buffer.host[...] = 0
        buffer.download(len(data), stream)
        stream.synchronize()
        np.testing.assert_array_equal(buffer.host, data)
        buffer.close()
        stream.close()
