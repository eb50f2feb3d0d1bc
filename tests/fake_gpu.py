"""A simulated GPU for tests that detects misuse, with CUDA's driver API in C and Python, pycuda and TensorRT.

It enforces these rules, each from the vendor's documents or pycuda's source:

- device memory is separate, and data gets there from the host only by copies, unless the memory is mapped
- work in a stream runs only when a thread synchronizes, so a missing synchronization or copy changes the result
- every call needs a current context in the calling thread; objects are used and freed in the context that made them
- pycuda's stack of contexts is per thread, and must be restored at the end
- an execution context serves one thread at a time, and must be enqueued once before it is recorded
- a recorded graph is invalid after the execution context's shapes have changed
- an event has no time inside a graph, nor before its stream was synchronized; the clock advances only with work
- code for the CPU in an engine is run only where that was allowed

All violations are kept in ``Gpu.faults``, even where the exception is caught.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ctypes import c_int, c_void_p
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from fake_builder import KERNELS_MS, VERSIONS, Planted, Plants, builder_names, inspector_text, plan, unplanned

from edgeres.device import libraries
from edgeres.device.gpu import Gpu as FoundGpu
from edgeres.engine import preflight
from edgeres.runtime.memory import LIBRARY, cuda_python, libcuda, pycuda
from edgeres.verify import latency

__all__ = ["KERNELS_MS", "VERSIONS", "Fault", "Gpu", "Planted", "installed", "machine", "plan"]

GARBAGE = 0xAB
UPLOAD_MS, DOWNLOAD_MS = 1.0, 0.25  # by this GPU's clock, as KERNELS_MS
Op = Callable[[], None]


class Fault(Exception):
    """Misuse that a real GPU answers with an error, or with wrong results."""


@dataclass(eq=False)
class Context:
    """A CUDA context."""

    title: str
    alive: bool = True


@dataclass(eq=False)
class Block:
    bytes: Any
    context: Context
    kind: str


@dataclass(eq=False)
class Queue:
    context: Context
    ops: list[Op] = field(default_factory=list)
    recording: list[Op] | None = None
    recorder: int = 0


@dataclass(eq=False)
class Moment:
    """An event."""

    context: Context
    ms: float | None = None


class Gpu:
    """The GPU described above. ``integrated``: as on a Jetson."""

    def __init__(self, *, integrated: bool = False, sm: tuple[int, int] = (8, 6), memory: int = 1 << 30) -> None:
        self.integrated, self.sm, self.memory = integrated, sm, memory
        self.faults: list[str] = []
        self.primary = Context("primary")
        self.blocks: dict[int, Block] = {}
        self.queues: dict[int, Queue] = {}
        self.graphs: dict[int, tuple[str, list[Op]]] = {}
        self.moments: dict[int, Moment] = {}
        self.clock_ms = 0.0
        self.code_was_run = 0
        self.engines = 0
        self.executions = 0
        self.launches = 0
        self.builds = self.warm_builds = 0
        self.plants: Plants = lambda model: Planted()
        self.contexts_made: set[int] = set()
        self._stacks = threading.local()
        self._numbers = itertools.count(0x7F00_0000_0000, 1 << 32)
        self._lock = threading.RLock()

    def fault(self, what: str) -> Fault:
        self.faults.append(what)
        return Fault(what)

    @property
    def stack(self) -> list[Context]:
        """The context stack of the calling thread."""
        if not hasattr(self._stacks, "contexts"):
            self._stacks.contexts = []
        found: list[Context] = self._stacks.contexts
        return found

    def current(self) -> Context:
        if not self.stack:
            raise self.fault("no context is current in this thread")
        if not self.stack[-1].alive:
            raise self.fault("the current context was destroyed")
        return self.stack[-1]

    def live(self) -> list[str]:
        """The objects that were not freed."""
        kinds = [block.kind for block in self.blocks.values()]
        return [*kinds, *("stream" for _ in self.queues), *("graph" for _ in self.graphs), *["engine"] * self.engines,
                *("event" for _ in self.moments)]  # fmt: skip

    def allocate(self, count: int, kind: str) -> int:
        context = self.current()
        with self._lock:
            if any(q.recording is not None and q.recorder == threading.get_ident() for q in self.queues.values()):
                raise self.fault("allocation while this thread records a graph")
            if sum(len(block.bytes) for block in self.blocks.values()) + count > self.memory:
                raise MemoryError
            address = next(self._numbers)
            self.blocks[address] = Block(np.full(count, GARBAGE, np.uint8), context, kind)
            return address

    def map(self, host: Any) -> int:
        """An address on the device for mapped host memory."""
        with self._lock:
            address = next(self._numbers)
            self.blocks[address] = Block(host, self.current(), "mapping")
            return address

    def free(self, address: int, kind: str) -> None:
        with self._lock:
            block = self.blocks.get(address)
            if block is None or block.kind != kind:
                raise self.fault(f"{kind} freed twice, or never allocated")
            if block.context is not self.current():
                raise self.fault(f"{kind} freed in another context")
            del self.blocks[address]

    def at(self, address: int, count: int) -> Any:
        """The device's bytes at an address."""
        for base, block in list(self.blocks.items()):
            if base <= address and address + count <= base + len(block.bytes):
                return block.bytes[address - base : address - base + count]
        raise self.fault("illegal memory access")

    def queue(self, handle: int) -> Queue:
        if handle not in self.queues:
            raise self.fault("work on a stream that is gone, or the default stream")
        queue = self.queues[handle]
        if queue.context is not self.current():
            raise self.fault("a stream is used in another context than its own")
        return queue

    def enqueue(self, handle: int, op: Op) -> None:
        queue = self.queue(handle)
        (queue.ops if queue.recording is None else queue.recording).append(op)

    def synchronize(self, handle: int) -> None:
        queue = self.queue(handle)
        if queue.recording is not None:
            raise self.fault("a stream is waited for while it is recorded")
        ops, queue.ops = queue.ops, []
        for op in ops:
            op()

    def upload(self, address: int, host: Any, handle: int) -> None:
        def copy() -> None:
            self.clock_ms += UPLOAD_MS
            self.at(address, len(host))[...] = host

        self.enqueue(handle, copy)

    def download(self, host: Any, address: int, handle: int) -> None:
        def copy() -> None:
            self.clock_ms += DOWNLOAD_MS
            host[...] = self.at(address, len(host))

        self.enqueue(handle, copy)

    def new_event(self) -> int:
        with self._lock:
            handle = next(self._numbers)
            self.moments[handle] = Moment(self.current())
            return handle

    def record(self, event: int, handle: int) -> None:
        moment, queue = self.moments[event], self.queue(handle)
        if moment.context is not queue.context:
            raise self.fault("an event is recorded in another context than its own")
        if queue.recording is not None:
            raise self.fault("an event is recorded inside of a graph, where it tells no time")
        moment.ms = None

        def happen() -> None:
            moment.ms = self.clock_ms

        self.enqueue(handle, happen)

    def between(self, first: int, second: int) -> float | None:
        """Milliseconds; None while one has not happened."""
        start, end = self.moments[first].ms, self.moments[second].ms
        return None if start is None or end is None else end - start

    def free_event(self, event: int) -> None:
        if self.moments.pop(event).context is not self.current():
            self.fault("an event is freed in another context")

    def new_stream(self) -> int:
        with self._lock:
            handle = next(self._numbers)
            self.queues[handle] = Queue(self.current())
            return handle

    def free_stream(self, handle: int) -> None:
        if self.queue(handle).ops:
            self.fault("a stream is destroyed with work in it")
        del self.queues[handle]


# CUDA's driver API as cuda-python has it: every function returns a tuple that begins with the status.

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
        handle = next(self.gpu._numbers)
        self.gpu.graphs[handle] = ("graph", ops)
        return 0, handle

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        handle = next(self.gpu._numbers)
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


# The same as libcuda.so.1 has it: C functions, which ctypes calls.


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
        function.library = self  # C keeps nothing alive
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


# pycuda 2026.1, as wrap_cudadrv.cpp and cuda.hpp define it.


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


# TensorRT, computing with ONNX Runtime.


def tensorrt_module(gpu: Gpu, flavour: str = "tensorrt") -> ModuleType:  # noqa: C901
    """``tensorrt`` or ``tensorrt_rtx``, with the functions that the runner calls."""
    modes, places = SimpleNamespace(INPUT="in", OUTPUT="out"), SimpleNamespace(DEVICE="device", HOST="host")

    class IRuntimeConfig:
        cuda_graph_strategy = "disabled"
        _cache: Any = None

        def create_runtime_cache(self) -> Any:
            return SimpleNamespace(deserialize=lambda data: True, serialize=lambda: b"compiled")

        def set_runtime_cache(self, cache: Any) -> bool:
            self._cache = cache
            return True

    class ICudaEngine:
        def __init__(self, data: bytes) -> None:
            self.batch, self.planted, model = unplanned(data)
            self.noise = np.random.default_rng(self.planted.seed)
            self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
            self.inputs = {t.name: t for t in self.session.get_inputs()}
            self.outputs = {t.name: t for t in self.session.get_outputs()}
            self.context = gpu.current()
            gpu.engines += 1

        def __del__(self) -> None:
            gpu.engines -= 1

        @property
        def num_io_tensors(self) -> int:
            return len(self.inputs) + len(self.outputs)

        def get_tensor_name(self, index: int) -> str:
            return [*self.inputs, *self.outputs][index]

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name in self.inputs else "out"

        def get_tensor_location(self, name: str) -> str:
            return "device"

        def get_tensor_dtype(self, name: str) -> str:
            return str((self.inputs | self.outputs)[name].type)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape = (self.inputs | self.outputs)[name].shape
            sizes = [size if isinstance(size, int) else -1 for size in shape]
            return tuple(sizes)

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            assert profile == 0
            rest = self.get_tensor_shape(name)[1:]
            return [(self.batch[0], *rest), (self.batch[0], *rest), (self.batch[1], *rest)]

        def create_execution_context(self, config: Any = None) -> IExecutionContext:
            assert (config is not None) == (flavour == "rtx")
            if gpu.current() is not self.context:
                raise gpu.fault("an engine is used in another context than its own")
            return IExecutionContext(self)

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self)

        if flavour == "rtx":

            def create_runtime_config(self) -> IRuntimeConfig:
                return IRuntimeConfig()

    class EngineInspector:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine

        def get_engine_information(self, layout: str) -> str:
            assert layout == "json"
            return inspector_text(self._engine.planted)

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine) -> None:
            self.engine = engine
            self.addresses: dict[str, int] = {}
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.state = self.warm_state = 0
            self.user: int | None = None
            gpu.contexts_made.add(id(self))

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.state += 1
            self.addresses[name] = address
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.state += 1
            low, high = self.engine.batch
            self.shapes[name] = tuple(shape)
            return low <= shape[0] <= high and tuple(shape[1:]) == self.engine.get_tensor_shape(name)[1:]

        def infer_shapes(self) -> list[str]:
            return [name for name in self.engine.inputs if name not in self.shapes]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            batch = next(iter(self.shapes.values()))[0]
            return (batch, *self.engine.get_tensor_shape(name)[1:])

        def execute_async_v3(self, handle: int) -> bool:
            me = threading.get_ident()
            if self.user not in (None, me):
                raise gpu.fault("an execution context is used by two threads at the same time")
            queue = gpu.queue(handle)
            if queue.context is not self.engine.context:
                raise gpu.fault("an engine is used in another context than its own")
            if queue.recording is not None and self.warm_state != self.state:
                gpu.fault("recorded before it was enqueued once and waited for")
                return False
            if queue.recording is None:
                self.user = me
            state, addresses = self.state, dict(self.addresses)

            def run() -> None:
                if state != self.state:
                    raise gpu.fault("a recorded graph is launched although its context changed since")
                self._compute(addresses)
                self.warm_state, self.user = state, None

            gpu.enqueue(handle, run)
            return True

        def _compute(self, addresses: dict[str, int]) -> None:
            gpu.executions += 1
            planted = self.engine.planted
            gpu.clock_ms += planted.ms * max(0.1, 1 + planted.spread * self.engine.noise.standard_normal())
            feed = {}
            for name, tensor in self.engine.inputs.items():
                dtype, shape = np.dtype(nptype(tensor.type)), self.shapes[name]
                data = gpu.at(addresses[name], int(np.prod(shape)) * dtype.itemsize)
                feed[name] = data.copy().view(dtype).reshape(shape)
            for name, array in zip(self.engine.outputs, self.engine.session.run(None, feed), strict=True):
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                gpu.at(addresses[name], len(data))[...] = data

    class Runtime:
        def __init__(self, logger: Any) -> None:
            gpu.current()
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
            if data[:4] == b"vtrt" and flavour == "tensorrt":
                if not self.engine_host_code_allowed:
                    return None
                gpu.code_was_run += 1
            return ICudaEngine(data) if b"\n" in data[28:] else None

    def nptype(kind: str) -> Any:
        return {
            "tensor(float)": np.float32,
            "tensor(float16)": np.float16,
            "tensor(int8)": np.int8,
            "tensor(uint8)": np.uint8,
        }[kind]

    module = ModuleType("tensorrt" if flavour == "tensorrt" else "tensorrt_rtx")
    module.__dict__.update(
        __version__=VERSIONS[flavour],
        Runtime=Runtime,
        ICudaEngine=ICudaEngine,
        IExecutionContext=IExecutionContext,
        EngineInspector=EngineInspector,
        **builder_names(gpu, flavour),
        TensorIOMode=modes,
        TensorLocation=places,
        nptype=nptype,
    )
    if flavour == "rtx":
        module.__dict__["IRuntimeConfig"] = IRuntimeConfig
        module.__dict__["CudaGraphStrategy"] = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    return module


@contextmanager
def installed(monkeypatch: Any, gpu: Gpu, library: str, flavour: str) -> Iterator[Any]:
    """Install a simulated memory library and the vendor's package for this GPU; yields the library.

    Args:
        library: ``driver`` (libcuda.so.1 through ctypes), ``cuda-python`` or ``pycuda``; asked for by EDGERES_CUDA.
    """
    caches = (libcuda.device, cuda_python.device, pycuda._primary_context, libraries.vendor_log)
    with monkeypatch.context() as patch:
        module: Any = pycuda_module(gpu) if library == "pycuda" else CudaModule(gpu)
        patch.setenv(LIBRARY, library)
        for name in ("cuda.bindings.driver", "cuda.cuda", "pycuda.driver"):  # the real ones, where they are installed
            patch.setitem(sys.modules, name, None)
        if library == "driver":
            patch.setattr(libcuda, "_library", lambda: CudaLibrary(module))
        else:
            for name in ("pycuda",) if library == "pycuda" else ("cuda", "cuda.bindings"):
                patch.setitem(sys.modules, name, ModuleType(name))
            patch.setitem(sys.modules, module.__name__, module)
        trt = tensorrt_module(gpu, flavour)
        patch.setitem(sys.modules, trt.__name__, trt)
        for cache in caches:
            cache.cache_clear()
        try:
            yield module
        finally:
            for cache in caches:  # also where a test failed: the next one must not find this GPU
                cache.cache_clear()


@contextmanager
def machine(monkeypatch: Any, gpu: Gpu, library: str = "driver", flavours: Any = ("tensorrt",)) -> Iterator[None]:
    """A machine with this GPU, as all of edgeres sees it: its packages, and latencies by the GPU's own clock."""
    major, minor = gpu.sm
    found = FoundGpu("Fake GPU", f"{major}.{minor}", gpu.memory, "12.6")
    with ExitStack() as stack:
        patch = stack.enter_context(monkeypatch.context())
        for flavour in ("tensorrt", "rtx"):
            if flavour in flavours:
                stack.enter_context(installed(monkeypatch, gpu, library, flavour))
            else:
                patch.setitem(sys.modules, libraries.MODULES[flavour], None)
        for module in (libraries, preflight):
            patch.setattr(module, "this_gpu", lambda: (found, ""))
        patch.setattr(latency, "perf_counter", lambda: gpu.clock_ms / 1e3)
        yield
