"""The memory contract on pycuda, which many Jetson applications already run.

Where the calling thread is inside a pycuda context, that context is used. It still belongs to the application, and must
outlive all objects made here. Otherwise the GPU's primary context is retained once in the process.

pycuda keeps a stack of contexts per thread, aborts the process where a context is left on it at exit, and frees memory
only where the owning context is current. So the context is pushed before each use and popped afterwards, and objects
are freed inside such a block, never by a destructor. pycuda 2026.1 cannot record CUDA graphs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from edgeres.errors import EngineError, needs
from edgeres.records import U8
from edgeres.runtime.memory.contract import CudaGraph, Event, Stream

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING; pycuda has no name for it


def inside_context() -> bool:
    """Whether the calling thread has a pycuda context current."""
    driver = sys.modules.get("pycuda.driver")
    return driver is not None and driver.Context.get_current() is not None


class PyCuda:
    """The GPU of the current pycuda context, or the GPU of this number where there is no such context.

    Raises:
        EnvironmentError_: pycuda is not installed.
        EngineError: there is no driver, or no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self.cuda: Any = _driver()
        try:
            self.cuda.init()
            self._context = self.cuda.Context.get_current() or _primary_context(index)
        except self.cuda.Error as error:
            raise EngineError(f"pycuda: {error}", hint="see: edgeres doctor") from error
        version = ".".join(map(str, getattr(sys.modules.get("pycuda"), "VERSION", ())))
        self.name = f"pycuda {version}".strip()
        with self.active():
            gpu, kinds = self.cuda.Context.get_device(), self.cuda.device_attribute
            self.gpu: str = gpu.name()
            self.sm = ".".join(map(str, gpu.compute_capability()))
            self.integrated = bool(gpu.get_attribute(kinds.INTEGRATED) and gpu.get_attribute(kinds.CAN_MAP_HOST_MEMORY))

    @contextmanager
    def active(self) -> Iterator[None]:
        try:
            self._context.push()
        except self.cuda.Error as error:
            hint = "close the classifier before its context is detached"
            raise EngineError(f"the pycuda context is gone ({error})", hint=hint) from error
        try:
            yield
        except self.cuda.Error as error:
            raise EngineError(f"pycuda: {error}", hint="see: edgeres doctor") from error
        finally:
            self.cuda.Context.pop()

    def buffer(self, count: int) -> _Buffer:
        return _Buffer(self.cuda, count, mapped=self.integrated)

    def stream(self) -> _Stream:
        return _Stream(self.cuda)

    def event(self) -> _Event:
        return _Event(self.cuda)


class _Buffer:
    def __init__(self, cuda: Any, count: int, *, mapped: bool) -> None:
        self._cuda = cuda
        flags = cuda.host_alloc_flags.DEVICEMAP if mapped else 0
        self.host: U8 = cuda.pagelocked_empty(count, np.uint8, mem_flags=flags)
        self._pinned: Any = self.host.base
        self._memory: Any = None
        try:
            self._memory = None if mapped else cuda.mem_alloc(count)
            self.address = int(self._pinned.get_device_pointer() if mapped else self._memory)
        except cuda.Error:
            self._pinned.free()
            raise

    def upload(self, count: int, stream: Stream) -> None:
        if self._memory is not None:
            self._cuda.memcpy_htod_async(self.address, self.host[:count], _own(stream))

    def download(self, count: int, stream: Stream) -> None:
        if self._memory is not None:
            self._cuda.memcpy_dtoh_async(self.host[:count], self.address, _own(stream))

    def close(self) -> None:
        if self._pinned is None:
            return
        self.host = np.empty(0, np.uint8)
        if self._memory is not None:
            self._memory.free()
        self._pinned.free()
        self._pinned = self._memory = None


class _Stream:
    def __init__(self, cuda: Any) -> None:
        self.stream: Any = cuda.Stream(_NON_BLOCKING)
        self.handle = int(self.stream.handle)

    def synchronize(self) -> None:
        self.stream.synchronize()

    def capture(self, work: Callable[[], bool]) -> CudaGraph | None:
        return None

    def close(self) -> None:
        self.stream, self.handle = None, 0  # its destructor runs here, inside the block


class _Event:
    def __init__(self, cuda: Any) -> None:
        self._event: Any = cuda.Event()

    def record(self, stream: Stream) -> None:
        self._event.record(_own(stream))

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, _Event)
        return float(self._event.time_since(earlier._event)) / 1e3

    def close(self) -> None:
        self._event = None  # its destructor runs here, inside the block


def _own(stream: Stream) -> Any:
    assert isinstance(stream, _Stream)
    return stream.stream


@cache
def _primary_context(index: int) -> Any:
    return _driver().Device(index).retain_primary_context()


def _driver() -> Any:
    try:
        return import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise needs("pycuda", "pycuda") from error
    except ImportError as error:
        raise EngineError(f"pycuda is installed but does not load ({error})") from error
