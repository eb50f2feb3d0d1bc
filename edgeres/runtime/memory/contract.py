"""What every library for GPU memory offers here: buffers, streams, events, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from edgeres.records import U8


class CudaGraph(Protocol):
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

    def capture(self, work: Callable[[], bool]) -> CudaGraph | None:
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
