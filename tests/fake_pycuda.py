"""pycuda 2026.1 on the simulated GPU, as wrap_cudadrv.cpp and cuda.hpp define it."""

from __future__ import annotations

import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fake_hardware import GARBAGE, Context, Gpu


def pycuda_module(gpu: Gpu) -> ModuleType:  # noqa: C901
    """``pycuda.driver``."""

    class Error(Exception):
        pass

    class LogicError(Error):
        pass

    class PyContext:
        def __init__(self, context: Context) -> None:
            self.context = context

        def push(self) -> None:
            if not self.context.alive:
                raise LogicError("cuCtxPushCurrent failed: invalid device context")
            gpu.stack.append(self.context)
            python_stack().append(self)

        @staticmethod
        def pop() -> None:
            if not python_stack():
                raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
            gpu.stack.pop()
            python_stack().pop()

        @staticmethod
        def get_current() -> PyContext | None:
            return python_stack()[-1] if python_stack() else None

        @staticmethod
        def get_device() -> Device:
            gpu.current()
            return Device(0)

        def detach(self) -> None:
            self.context.alive = False

    stacks = threading.local()

    def python_stack() -> list[PyContext]:
        if not hasattr(stacks, "contexts"):
            stacks.contexts = []
        found: list[PyContext] = stacks.contexts
        return found

    class Device:
        def __init__(self, index: int) -> None:
            if index:
                raise LogicError("cuDeviceGet failed: invalid device ordinal")

        def name(self) -> str:
            return "Fake GPU"

        def compute_capability(self) -> tuple[int, int]:
            return gpu.sm

        def get_attribute(self, kind: str) -> int:
            return {"integrated": int(gpu.integrated), "maps": 1}[kind]

        def make_context(self) -> PyContext:
            made = PyContext(Context("application's"))
            made.push()
            return made

        def retain_primary_context(self) -> PyContext:
            return PyContext(gpu.primary)

    class Allocation:
        def __init__(self, count: int) -> None:
            self.address = gpu.allocate(count, "device memory")

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            gpu.free(self.address, "device memory")

    class HostAllocation:
        def __init__(self, count: int, flags: int) -> None:
            if gpu.integrated != bool(flags & 2):
                gpu.fault("memory is mapped on a Jetson, and there alone")
            self.handle = gpu.allocate(count, "host memory")
            self.bytes = gpu.blocks[self.handle].bytes
            self.mapping: int | None = None

        @property
        def __array_interface__(self) -> dict[str, Any]:
            return dict(self.bytes.__array_interface__)

        def get_device_pointer(self) -> int:
            self.mapping = gpu.map(self.bytes)
            return self.mapping

        def free(self) -> None:
            if self.mapping is not None:
                gpu.free(self.mapping, "mapping")
            self.bytes[...] = GARBAGE
            gpu.free(self.handle, "host memory")

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            assert flags == 1
            self.handle = gpu.new_stream()
            self.context = gpu.current()

        def synchronize(self) -> None:
            gpu.synchronize(self.handle)

        def __del__(self) -> None:
            if not gpu.stack or gpu.stack[-1] is not self.context:
                gpu.faults.append("PyCUDA WARNING: a clean-up operation failed (out-of-thread context)")
            else:
                gpu.free_stream(self.handle)

    class Event:
        def __init__(self, flags: int = 0) -> None:
            assert flags == 0
            self.handle = gpu.new_event()
            self.context = gpu.current()

        def record(self, stream: Stream) -> Event:
            gpu.record(self.handle, stream.handle)
            return self

        def time_since(self, start: Event) -> float:
            ms = gpu.between(start.handle, self.handle)
            if ms is None:
                raise LogicError("cuEventElapsedTime failed: device not ready")
            return ms

        def __del__(self) -> None:
            if not gpu.stack or gpu.stack[-1] is not self.context:
                gpu.faults.append("PyCUDA WARNING: a clean-up operation failed (out-of-thread context)")
            else:
                gpu.free_event(self.handle)

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        assert dtype is np.uint8
        return np.asarray(HostAllocation(shape, mem_flags))

    def init(flags: int = 0) -> None:
        pass

    module = ModuleType("pycuda.driver")
    module.__dict__.update(
        init=init,
        Error=Error,
        LogicError=LogicError,
        Context=PyContext,
        Device=Device,
        Stream=Stream,
        Event=Event,
        device_attribute=SimpleNamespace(INTEGRATED="integrated", CAN_MAP_HOST_MEMORY="maps"),
        host_alloc_flags=SimpleNamespace(DEVICEMAP=2),
        pagelocked_empty=pagelocked_empty,
        mem_alloc=Allocation,
        memcpy_htod_async=lambda address, host, stream: gpu.upload(address, host, stream.handle),
        memcpy_dtoh_async=lambda host, address, stream: gpu.download(host, address, stream.handle),
        stacks=python_stack,
    )
    return module
