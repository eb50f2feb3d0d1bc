"""A simulated GPU for tests that detects misuse: contexts, memory, streams and events.

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

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fake_builder import Planted, Plants

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
        self.numbers = itertools.count(0x7F00_0000_0000, 1 << 32)
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
            address = next(self.numbers)
            self.blocks[address] = Block(np.full(count, GARBAGE, np.uint8), context, kind)
            return address

    def map(self, host: Any) -> int:
        """An address on the device for mapped host memory."""
        with self._lock:
            address = next(self.numbers)
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
            handle = next(self.numbers)
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
            handle = next(self.numbers)
            self.queues[handle] = Queue(self.current())
            return handle

    def free_stream(self, handle: int) -> None:
        if self.queue(handle).ops:
            self.fault("a stream is destroyed with work in it")
        del self.queues[handle]
