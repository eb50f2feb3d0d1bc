"""The memory contract on CUDA's driver API, in the GPU's primary context.

The driver's calls come from ctypes (:mod:`~edgeres.runtime.memory.libcuda`) or from cuda-python 12 or 13
(:mod:`~edgeres.runtime.memory.cuda_python`), in the same form. CUDA's runtime API, TensorRT, ONNX Runtime and PyTorch
use the primary context too. It is pushed before each use and popped afterwards, so the thread's current context does
not change. It is kept until the process ends, as the runtime API does.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from edgeres.errors import EngineError, UsageError
from edgeres.runtime.memory.contract import CudaGraph, Event, Stream

WAIT = "EDGERES_GPU_WAIT"
_NAME_BYTES = 256


class DriverDevice:
    """A :class:`~edgeres.runtime.memory.Device`.

    A thread that waits for the GPU sleeps or spins as the driver chooses, or as ``EDGERES_GPU_WAIT`` says: ``block``
    leaves the core to others, ``spin`` wakes up soonest. It is a setting of the environment because it holds for the
    whole process: for PyTorch and ONNX Runtime in it, too.

    Args:
        cuda: the driver's calls: each returns its status and its results.
        name: of the library that makes them.
        index: number of the GPU.

    Raises:
        EngineError: there is no driver, or no such GPU.
        UsageError: ``EDGERES_GPU_WAIT`` is neither block nor spin.
    """

    def __init__(self, cuda: Any, name: str, index: int = 0) -> None:
        self.cuda, self.name = cuda, name
        wait = _wait(cuda)
        try:
            self.call(cuda.cuInit, 0)
        except EngineError:
            raise
        except Exception as error:  # each release of cuda-python raises another one where the driver is missing
            raise EngineError(f"no NVIDIA driver ({error})", hint="see: edgeres doctor") from error
        gpu = self.call(cuda.cuDeviceGet, index)
        self.gpu: str = self.call(cuda.cuDeviceGetName, _NAME_BYTES, gpu).split(b"\0")[0].decode(errors="replace")
        kinds = cuda.CUdevice_attribute
        major, minor, integrated, maps = (
            int(self.call(cuda.cuDeviceGetAttribute, kind, gpu))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                kinds.CU_DEVICE_ATTRIBUTE_INTEGRATED,
                kinds.CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY,
            )
        )
        self.sm = f"{major}.{minor}"
        self.integrated = bool(integrated and maps)
        if wait is not None:
            self.call(cuda.cuDevicePrimaryCtxSetFlags, gpu, wait)
        self._context = self.call(cuda.cuDevicePrimaryCtxRetain, gpu)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A driver function's result without its status.

        Raises:
            EngineError: the status is not success; the message is the driver's.
        """
        status, *results = function(*arguments)
        if int(status):
            _, words = self.cuda.cuGetErrorString(status)
            said = words.decode(errors="replace") if words else f"error {int(status)}"
            hint = "close other programs, or lower the batch" if "out of memory" in said else "see: edgeres doctor"
            raise EngineError(f"CUDA: {said} ({function.__name__})", hint=hint)
        return results[0] if results else None

    @contextmanager
    def active(self) -> Iterator[None]:
        self.call(self.cuda.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self.call(self.cuda.cuCtxPopCurrent)

    def buffer(self, count: int) -> _Buffer:
        return _Buffer(self, count)

    def stream(self) -> _Stream:
        return _Stream(self)

    def event(self) -> _Event:
        return _Event(self)


class _Buffer:
    def __init__(self, gpu: DriverDevice, count: int) -> None:
        cuda, self._gpu, self._mapped = gpu.cuda, gpu, gpu.integrated
        flags = cuda.CU_MEMHOSTALLOC_DEVICEMAP if self._mapped else 0
        self._pointer = int(gpu.call(cuda.cuMemHostAlloc, count, flags))
        self.host = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(self._pointer))
        try:
            if self._mapped:
                self.address = int(gpu.call(cuda.cuMemHostGetDevicePointer, self._pointer, 0))
            else:
                self.address = int(gpu.call(cuda.cuMemAlloc, count))
        except EngineError:
            gpu.call(cuda.cuMemFreeHost, self._pointer)
            raise

    def upload(self, count: int, stream: Stream) -> None:
        if not self._mapped:
            self._gpu.call(self._gpu.cuda.cuMemcpyHtoDAsync, self.address, self._pointer, count, stream.handle)

    def download(self, count: int, stream: Stream) -> None:
        if not self._mapped:
            self._gpu.call(self._gpu.cuda.cuMemcpyDtoHAsync, self._pointer, self.address, count, stream.handle)

    def close(self) -> None:
        if not self._pointer:
            return
        if not self._mapped:
            self._gpu.call(self._gpu.cuda.cuMemFree, self.address)
        self._gpu.call(self._gpu.cuda.cuMemFreeHost, self._pointer)
        self._pointer, self.host = 0, np.empty(0, np.uint8)


class _Stream:
    def __init__(self, gpu: DriverDevice) -> None:
        self._gpu = gpu
        self._stream = gpu.call(gpu.cuda.cuStreamCreate, int(gpu.cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.handle = int(self._stream)

    def synchronize(self) -> None:
        self._gpu.call(self._gpu.cuda.cuStreamSynchronize, self._stream)

    def capture(self, work: Callable[[], bool]) -> CudaGraph | None:
        cuda, call = self._gpu.cuda, self._gpu.call
        # Thread-local, so that other threads may allocate memory meanwhile.
        call(cuda.cuStreamBeginCapture, self._stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        worked = False
        try:
            with suppress(EngineError):  # a call that cannot be recorded; the capture must be ended nevertheless
                worked = work()
        finally:
            status, graph = cuda.cuStreamEndCapture(self._stream)
        if int(status) or not worked:
            if not int(status):
                call(cuda.cuGraphDestroy, graph)
            return None
        return _RecordedGraph(self._gpu, graph, self._stream)

    def close(self) -> None:
        if self._stream is not None:
            self._gpu.call(self._gpu.cuda.cuStreamDestroy, self._stream)
            self._stream, self.handle = None, 0


class _Event:
    def __init__(self, gpu: DriverDevice) -> None:
        self._gpu = gpu
        self._event = gpu.call(gpu.cuda.cuEventCreate, int(gpu.cuda.CUevent_flags.CU_EVENT_DEFAULT))

    def record(self, stream: Stream) -> None:
        self._gpu.call(self._gpu.cuda.cuEventRecord, self._event, stream.handle)

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, _Event)
        return float(self._gpu.call(self._gpu.cuda.cuEventElapsedTime, earlier._event, self._event)) / 1e3

    def close(self) -> None:
        if self._event is not None:
            self._gpu.call(self._gpu.cuda.cuEventDestroy, self._event)
            self._event = None


class _RecordedGraph:
    def __init__(self, gpu: DriverDevice, graph: Any, stream: Any) -> None:
        self._gpu, self._stream = gpu, stream
        try:
            self._exec = gpu.call(gpu.cuda.cuGraphInstantiate, graph, 0)
        finally:
            gpu.call(gpu.cuda.cuGraphDestroy, graph)

    def launch(self) -> None:
        self._gpu.call(self._gpu.cuda.cuGraphLaunch, self._exec, self._stream)

    def close(self) -> None:
        if self._exec is not None:
            self._gpu.call(self._gpu.cuda.cuGraphExecDestroy, self._exec)
            self._exec = None


def _wait(cuda: Any) -> int | None:
    """The context's flag for what ``EDGERES_GPU_WAIT`` says; None: the driver chooses."""
    said = os.environ.get(WAIT, "")
    kinds = cuda.CUctx_flags
    flags = {"block": kinds.CU_CTX_SCHED_BLOCKING_SYNC, "spin": kinds.CU_CTX_SCHED_SPIN}
    if said and said not in flags:
        raise UsageError(f"{WAIT} is {said!r}", hint="give block or spin, or unset it")
    return int(flags[said]) if said else None
