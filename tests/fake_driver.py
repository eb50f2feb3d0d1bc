"""CUDA's driver API on the simulated GPU: as cuda-python has it, and as libcuda.so.1 has it for ctypes.

Every function of cuda-python returns a tuple that begins with the status.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import c_int, c_void_p
from types import SimpleNamespace
from typing import Any

from fake_hardware import GARBAGE, Context, Fault, Gpu, Op

from edgeres.runtime.memory import libcuda

_OUT_OF_MEMORY, _INVALID_CONTEXT, _NOT_READY = 2, 201, 600
_WORDS = {
    0: b"no error",
    _NOT_READY: b"device not ready",
    _OUT_OF_MEMORY: b"out of memory",
    _INVALID_CONTEXT: b"invalid device context",
    101: b"bad",
}


class CudaModule:
    """``cuda.bindings.driver``."""

    __name__ = "cuda.bindings.driver"
    CU_MEMHOSTALLOC_DEVICEMAP = 2
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DEFAULT=0)
    CUctx_flags = SimpleNamespace(CU_CTX_SCHED_SPIN=1, CU_CTX_SCHED_BLOCKING_SYNC=4)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
        CU_DEVICE_ATTRIBUTE_INTEGRATED=18,
        CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY=19,
    )

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.hosts: dict[int, Any] = {}
        self.mapped: dict[int, int] = {}
        self.instances: dict[int, list[Op]] = {}
        self.context_flags: list[int] = []

    def cuInit(self, flags: int) -> tuple[int]:
        return (0,)

    def cuDeviceGet(self, index: int) -> tuple[int, Any]:
        return (0, index) if index == 0 else (101, None)

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:
        return 0, b"Fake GPU".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, kind: int, device: int) -> tuple[int, int]:
        return 0, {75: self.gpu.sm[0], 76: self.gpu.sm[1], 18: int(self.gpu.integrated), 19: 1}[kind]

    def cuDevicePrimaryCtxSetFlags(self, device: int, flags: int) -> tuple[int]:
        self.context_flags.append(flags)
        return (0,)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, Context]:
        return 0, self.gpu.primary

    def cuCtxPushCurrent(self, context: Context) -> tuple[int]:
        self.gpu.stack.append(context)
        return (0,)

    def cuCtxPopCurrent(self) -> tuple[int, Context]:
        return 0, self.gpu.stack.pop()

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, _WORDS[status]

    def cuMemAlloc(self, count: int) -> tuple[int, Any]:
        try:
            return 0, self.gpu.allocate(count, "device memory")
        except MemoryError:
            return _OUT_OF_MEMORY, None

    def cuMemFree(self, address: int) -> tuple[int]:
        self.gpu.free(address, "device memory")
        return (0,)

    def cuMemHostAlloc(self, count: int, flags: int) -> tuple[int, Any]:
        if self.gpu.integrated != bool(flags & 2):
            self.gpu.fault("memory is mapped on a Jetson, and there alone")
        try:
            handle = self.gpu.allocate(count, "host memory")
        except MemoryError:
            return _OUT_OF_MEMORY, None
        host = self.gpu.blocks[handle].bytes
        pointer = host.ctypes.data
        self.hosts[pointer] = (handle, host)
        return 0, pointer

    def cuMemFreeHost(self, pointer: int) -> tuple[int]:
        handle, host = self.hosts.pop(pointer)
        if pointer in self.mapped:
            self.gpu.free(self.mapped.pop(pointer), "mapping")
        host[...] = GARBAGE  # visible to code that still uses the buffer
        self.gpu.free(handle, "host memory")
        return (0,)

    def cuMemHostGetDevicePointer(self, pointer: int, flags: int) -> tuple[int, int]:
        self.mapped[pointer] = self.gpu.map(self.hosts[pointer][1])
        return 0, self.mapped[pointer]

    def cuMemcpyHtoDAsync(self, address: int, pointer: int, count: int, stream: int) -> tuple[int]:
        self.gpu.upload(address, self.hosts[pointer][1][:count], int(stream))
        return (0,)

    def cuMemcpyDtoHAsync(self, pointer: int, address: int, count: int, stream: int) -> tuple[int]:
        self.gpu.download(self.hosts[pointer][1][:count], address, int(stream))
        return (0,)

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:
        assert flags == 1, "must not wait for the default stream"
        return 0, self.gpu.new_stream()

    def cuStreamDestroy(self, stream: int) -> tuple[int]:
        self.gpu.free_stream(stream)
        return (0,)

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:
        self.gpu.synchronize(stream)
        return (0,)

    def cuEventCreate(self, flags: int) -> tuple[int, int]:
        assert flags == 0, "an event that tells the time"
        return 0, self.gpu.new_event()

    def cuEventRecord(self, event: int, stream: int) -> tuple[int]:
        self.gpu.record(event, stream)
        return (0,)

    def cuEventElapsedTime(self, start: int, end: int) -> tuple[int, float | None]:
        ms = self.gpu.between(start, end)
        return (_NOT_READY if ms is None else 0), ms

    def cuEventDestroy(self, event: int) -> tuple[int]:
        self.gpu.free_event(event)
        return (0,)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        assert mode == 1, "other threads may allocate meanwhile"
        queue = self.gpu.queue(stream)
        queue.recording, queue.recorder = [], threading.get_ident()
        return (0,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        queue = self.gpu.queue(stream)
        ops, queue.recording = queue.recording, None
        assert ops is not None
        handle = next(self.gpu.numbers)
        self.gpu.graphs[handle] = ("graph", ops)
        return 0, handle

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        handle = next(self.gpu.numbers)
        self.gpu.graphs[handle] = ("instance", self.gpu.graphs[graph][1])
        return 0, handle

    def cuGraphDestroy(self, graph: int) -> tuple[int]:
        assert self.gpu.graphs.pop(graph)[0] == "graph"
        return (0,)

    def cuGraphExecDestroy(self, graph: int) -> tuple[int]:
        assert self.gpu.graphs.pop(graph)[0] == "instance"
        return (0,)

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        self.gpu.launches += 1
        for op in self.gpu.graphs[graph][1]:
            self.gpu.enqueue(stream, op)
        return (0,)


class CudaLibrary:
    """What ``ctypes.CDLL("libcuda.so.1")`` gives. Arguments cross the border to C and back, as with the real one."""

    def __init__(self, cuda: CudaModule) -> None:
        self.cuda = cuda
        self.symbols = {name: (symbol, parameters) for name, (symbol, parameters) in libcuda.PROTOTYPES.items()}
        self.functions = {symbol: self._in_c(name, parameters) for name, (symbol, parameters) in self.symbols.items()}
        name, *_ = libcuda.NAME_PROTOTYPE
        # Text of a length of the caller's comes as an address.
        self.functions[name] = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_int)(self._name)
        self.contexts: list[Context] = [cuda.gpu.primary]
        self.words: list[bytes] = []

    def __getitem__(self, symbol: str) -> Any:
        if symbol not in self.functions:
            raise AttributeError(symbol)
        # A pointer of its own: a caller that declares other parameters must not change those of the function.
        address = ctypes.cast(self.functions[symbol], c_void_p).value
        assert address is not None
        function = _foreign(address)
        function.owner = self  # C keeps nothing alive
        return function

    def cuDriverGetVersion(self) -> tuple[int, int]:
        return 0, 12060

    def _name(self, text: int, length: int, device: int) -> int:
        status, name = self.cuda.cuDeviceGetName(length, device)
        ctypes.memmove(text, name, length)
        return status

    def _in_c(self, name: str, parameters: tuple[Any, ...]) -> Any:
        pointers = [index for index, kind in enumerate(parameters) if hasattr(kind, "contents")]

        def call(*given: Any) -> int:
            try:
                arguments = [value or 0 for index, value in enumerate(given) if index not in pointers]
                status, *results = self._python(name, arguments)
                for index, result in zip(pointers, results, strict=True):
                    if result is not None:
                        given[index][0] = result
                return int(status)
            except Exception as error:  # an exception cannot cross C
                if not isinstance(error, Fault):
                    self.cuda.gpu.faults.append(f"{name}: {type(error).__name__}: {error}")
                return _INVALID_CONTEXT

        return ctypes.CFUNCTYPE(c_int, *parameters)(call)

    def _python(self, name: str, arguments: list[Any]) -> tuple[Any, ...]:
        """A context is a number in C."""
        if name == "cuDriverGetVersion":
            return self.cuDriverGetVersion()
        if name == "cuCtxPushCurrent":
            arguments = [self.contexts[arguments[0] - 1]]
        status, *results = getattr(self.cuda, name)(*arguments)
        return status, *(self.contexts.index(r) + 1 if isinstance(r, Context) else r for r in results)


def _foreign(address: int) -> Any:
    """A function at an address, without declared parameters, as ``CDLL`` gives one."""
    kind = type("Function", (ctypes._CFuncPtr,), {"_flags_": 1, "_restype_": c_int})  # type: ignore[attr-defined]
    return kind(address)
