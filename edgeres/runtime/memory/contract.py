"""The contract for libraries that manage GPU memory: buffers, streams, events, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from edgeres.records import U8


class CudaGraph(Protocol):
    """Recorded work that is launched with one call."""

    def launch(self) -> None:
        """Enqueue the recorded work on the stream that it was recorded on."""

    def close(self) -> None: ...


class Stream(Protocol):
    """A queue of work on the GPU.

    Attributes:
        handle: ``cudaStream_t`` as a number, as TensorRT takes it.
    """

    @property
    def handle(self) -> int: ...

    def synchronize(self) -> None:
        """Wait until all work in the queue is done; other Python threads run meanwhile."""

    def capture(self, work: Callable[[], bool]) -> CudaGraph | None:
        """Record what ``work`` enqueues, without running it; None where that fails or ``work`` returns False."""

    def close(self) -> None: ...


class Event(Protocol):
    """A point in a stream with its time on the GPU's clock."""

    def record(self, stream: Stream) -> None:
        """Enqueue the event behind all earlier work. It must not be called while a graph is recorded."""

    def seconds_since(self, earlier: Event) -> float:
        """Time since another event of the same stream, to about 0.5 µs. The stream must be synchronized first."""

    def close(self) -> None: ...


class Buffer(Protocol):
    """Memory of one tensor.

    Attributes:
        host: page-locked memory that the CPU reads and writes, flat uint8.
        address: address of the tensor on the GPU.
    """

    host: U8
    address: int

    def upload(self, count: int, stream: Stream) -> None:
        """Enqueue a copy of the first ``count`` bytes to the GPU; do not write to ``host`` until it is done."""

    def download(self, count: int, stream: Stream) -> None:
        """Enqueue a copy of the first ``count`` bytes from the GPU to ``host``."""

    def close(self) -> None: ...


class Device(Protocol):
    """One GPU, through one library. Any thread may use it.

    Attributes:
        name: library and version.
        gpu: the GPU's name.
        sm: its compute capability, e.g. ``8.7``.
        integrated: whether CPU and GPU share one memory, as on a Jetson.
    """

    name: str
    gpu: str
    sm: str
    integrated: bool

    def active(self) -> AbstractContextManager[None]:
        """Make this the calling thread's GPU until the block ends; blocks may be nested.

        Raises:
            EngineError: the context is gone, or a call to the GPU inside the block failed.
        """

    def buffer(self, count: int) -> Buffer:
        """A new buffer of ``count`` bytes."""

    def stream(self) -> Stream:
        """A new stream that does not wait for the default stream."""

    def event(self) -> Event: ...
