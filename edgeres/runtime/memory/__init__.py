"""GPU memory, streams and graphs behind one small contract, on cuda-python or on pycuda.

A thread makes the GPU its own for a while with ``with device.active():``. Everything else here is called inside that
block, in the same thread. The block leaves the thread's stack of CUDA contexts as it found it, so a robot's own pycuda
or CUDA code beside it notices nothing, in whatever thread a callback arrives.

A :class:`Buffer` is one tensor, seen by both sides. On a GPU with its own memory that is page-locked host memory and
device memory with copies between them; on a Jetson both are the same bytes, mapped for the GPU, and the copies are
nothing. NVIDIA advises mapped memory there for what is read or written once, as a network's input and output are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Protocol

from edgeres.errors import EnvironmentError_
from edgeres.records import U8

__all__ = ["Buffer", "Device", "Event", "Graph", "Stream", "default_device"]


class Graph(Protocol):
    """Work recorded once, launched as one."""

    def launch(self) -> None:
        """Enqueue it on the stream that it was recorded on."""
        ...

    def close(self) -> None: ...


class Stream(Protocol):
    """A queue of work on the GPU.

    Attributes:
        handle: ``cudaStream_t`` as a number, as TensorRT takes it.
    """

    @property
    def handle(self) -> int: ...

    def synchronize(self) -> None:
        """Wait until everything in the queue is done; other Python threads run meanwhile."""
        ...

    def capture(self, work: Callable[[], bool]) -> Graph | None:
        """Record what ``work`` enqueues, without running it; None where it cannot be recorded or ``work`` says so."""
        ...

    def close(self) -> None: ...


class Event(Protocol):
    """A moment in a stream, by the GPU's own clock."""

    def record(self, stream: Stream) -> None:
        """Enqueue it: it happens when all that was enqueued before is done. Not while a graph is recorded."""
        ...

    def seconds_since(self, earlier: Event) -> float:
        """Between two moments of one stream, to about half a microsecond; the stream was waited for."""
        ...

    def close(self) -> None: ...


class Buffer(Protocol):
    """Memory of one tensor.

    Attributes:
        host: what this process reads and writes, uint8, flat and page-locked.
        address: the same on the GPU.
    """

    host: U8
    address: int

    def upload(self, count: int, stream: Stream) -> None:
        """Enqueue the copy of the first ``count`` bytes to the GPU; ``host`` is left alone until the stream is done."""
        ...

    def download(self, count: int, stream: Stream) -> None:
        """Enqueue the copy back; ``host`` holds it once the stream is done."""
        ...

    def close(self) -> None: ...


class Device(Protocol):
    """One GPU, through one library. Any thread may use it.

    Attributes:
        name: of the library, with its version.
        gpu: the GPU's name.
        sm: its compute capability, e.g. ``8.7``.
        integrated: CPU and GPU share one memory, as on a Jetson.
    """

    name: str
    gpu: str
    sm: str
    integrated: bool

    def active(self) -> AbstractContextManager[None]:
        """Make it the calling thread's GPU until the block ends; blocks nest.

        Raises:
            EngineError: the context is gone, or a call to the GPU inside the block failed.
        """
        ...

    def buffer(self, count: int) -> Buffer:
        """``count`` bytes."""
        ...

    def stream(self) -> Stream:
        """A new stream that does not wait for the default stream."""
        ...

    def event(self) -> Event: ...


def default_device(index: int = 0) -> Device:
    """The GPU through the library at hand: pycuda where the thread is inside a pycuda context, else cuda-python first.

    Raises:
        EnvironmentError_: neither library is installed.
        EngineError: there is no driver or no such GPU.
    """
    from edgeres.runtime.memory import cuda_python, pycuda

    if pycuda.inside_context():
        return pycuda.device(index)
    if _is_there("cuda.bindings.driver") or _is_there("cuda.cuda"):
        return cuda_python.device(index)
    if _is_there("pycuda.driver"):
        return pycuda.device(index)
    what = "running an engine needs cuda-python or pycuda, and neither is installed"
    raise EnvironmentError_(what, hint="pip install 'edgeres[cuda]'")


def _is_there(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False
