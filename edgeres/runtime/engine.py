"""The runner for engines of TensorRT 10.3 to 11.x and of TensorRT-RTX.

All threads share one engine. As NVIDIA requires, each thread that infers uses an execution context of its own, with a
stream and with buffers for the largest batch. Contexts are kept in a pool: a thread borrows one for an inference and
gives it back. So there are as many contexts as threads that ever inferred at the same time.

A context records its work as a CUDA graph when it gets the same batch size for the second time in a row. From then on
copies and kernels are one launch. As NVIDIA's documentation requires, the context enqueues once and is synchronized
before the recording, and its graph is dropped when its shapes change. TensorRT-RTX records by itself
(``cuda_graph_strategy``).

:meth:`TensorRTRunner.timed` is for benchmarks. It takes trtexec's times by events between copies and kernels, so its
CUDA graph holds the kernels alone, as trtexec's does.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from edgeres.device.targets import RUNTIME_TITLES, Flavour
from edgeres.errors import EngineError
from edgeres.files import read_file
from edgeres.records import EngineRecord
from edgeres.runtime.compatibility import RunsOn, refusal
from edgeres.runtime.memory import Buffer, CudaGraph, Device, Event, default_device
from edgeres.runtime.runner import Feed, TensorSpec, any_batch, check_feed, closed, parts

_HOST_CODE = "--trust KEYS, or --host-code if you trust whoever built it (trust=KEYS or ANYONE)"
_BUILD_AGAIN = "build it here: edgeres engine BUNDLE"


@dataclass(frozen=True)
class EngineFile:
    """A serialized engine.

    Attributes:
        content: its path, or the bytes.
        flavour: the runtime that it is for.
        record: its entry in a bundle's manifest; None for an engine without a bundle.
        cache: file where TensorRT-RTX keeps the kernels that it compiled for this GPU, so that the next start is
            faster; None: they are not kept.
        sha256: of the content, from a manifest. A version-compatible engine of TensorRT holds code for the CPU; that
            code runs only where this digest is given and matches, and ``host_code`` is set.
        host_code: whether that code may run: a trusted key signed it, or the user said so.
    """

    content: Path | bytes
    flavour: Flavour = "tensorrt"
    record: EngineRecord | None = None
    cache: Path | None = None
    sha256: str | None = None
    host_code: bool = False

    def read(self) -> bytes:
        """The engine, held against its digest again: it was checked before, and the file may be another one now."""
        if isinstance(self.content, bytes):
            return self.content
        try:
            data = read_file(self.content)
        except OSError as error:
            raise EngineError(error.strerror or str(error), where=self.content) from error
        if self.sha256 is not None and hashlib.sha256(data).hexdigest() != self.sha256:
            raise EngineError("was changed after it was written", where=self.where, hint=_BUILD_AGAIN)
        return data

    @property
    def where(self) -> Path | None:
        return None if isinstance(self.content, bytes) else self.content

    def allows_host_code(self, data: bytes) -> bool:
        """Whether the engine ``data`` holds code for the CPU, and that code may run.

        Raises:
            EngineError: it holds such code, but it may not run, or there is no digest or ``data`` does not match it.
        """
        if self.flavour != "tensorrt" or self.record is None or not self.record.portability.version_compatible:
            return False
        if self.sha256 is None:
            what = "this engine holds code for the CPU, which edgeres runs only from a bundle"
            raise EngineError(what, where=self.where, hint="load the bundle that it is in")
        if not self.host_code:
            what = "this engine holds code for the CPU, which runs only if a key that you trust signed the bundle"
            raise EngineError(what, where=self.where, hint=_HOST_CODE)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise EngineError("was changed after it was written", where=self.where, hint=_BUILD_AGAIN)
        return True


class Times(NamedTuple):
    """Times of one inference in seconds, by trtexec's names.

    Attributes:
        enqueue: Enqueue Time, by the CPU's clock: how long the CPU took to start the kernels.
        upload, compute, download: H2D Latency, GPU Compute Time, D2H Latency, by the GPU's clock.
    """

    enqueue: float
    upload: float
    compute: float
    download: float

    @property
    def latency(self) -> float:
        """Latency: from the first byte copied to the GPU to the last byte copied back."""
        return self.upload + self.compute + self.download


class TensorRTRunner:
    """Runs an engine. A :class:`~edgeres.runtime.runner.Backend`.

    Args:
        plan: the engine; a path means an engine of TensorRT, not of TensorRT-RTX.
        device: the GPU; None: the first one (:func:`~edgeres.runtime.memory.default_device`).
        graphs: whether to record CUDA graphs.

    Attributes:
        flavour: the runtime that it is for.

    Raises:
        EngineError: the engine is for another GPU or version (refused before it is loaded where its record or header
            say so), is damaged, or has tensors that a classifier does not have.
        EnvironmentError_: the vendor's package is missing.
    """

    def __init__(self, plan: EngineFile | Path | str, *, device: Device | None = None, graphs: bool = True) -> None:
        from edgeres.device.libraries import load, vendor_log

        file = plan if isinstance(plan, EngineFile) else EngineFile(Path(plan))
        data = file.read()
        trt: Any = load(file.flavour)
        self._device = device or default_device()
        here = RunsOn(file.flavour, str(trt.__version__), self._device.gpu, self._device.sm)
        reason = refusal(data, file.record, here)
        if reason:
            raise EngineError(f"this engine cannot run here: {reason}", where=file.where, hint=_BUILD_AGAIN)
        self.flavour = file.flavour
        self.name = f"{RUNTIME_TITLES[file.flavour]} {here.version} on {here.gpu}"
        log = vendor_log(file.flavour)
        self._shared = _load(_Vendor(trt, log.logger, log.lines), data, file, self._device)
        self._pool = _ContextPool(self._device, self._shared, graphs=graphs and file.flavour == "tensorrt")
        self.inputs, self.outputs = self._shared.inputs, self._shared.outputs
        self.input_name, self.output_name = self.inputs[0].name, self.outputs[0].name
        self.max_batch: int | None = self._shared.batch[1]
        self._checked = any_batch(self.inputs)

    def infer(self, feed: Feed) -> Feed:
        cut = list(parts(check_feed(feed, self._checked), *self._shared.batch))
        with self._pool.borrowed(self.name) as context:
            runs = [context.run({name: array[part] for name, array in feed.items()}) for part in cut]
        return _joined(runs)

    def timed(self, feed: Feed) -> tuple[Feed, Times]:
        """As :meth:`infer`, with the times of its steps; times are summed where a batch is run in parts."""
        cut = list(parts(check_feed(feed, self._checked), *self._shared.batch))
        with self._pool.borrowed(self.name) as context:
            runs = [context.timed({name: array[part] for name, array in feed.items()}) for part in cut]
        each = zip(*(times for _, times in runs), strict=True)
        return _joined([run for run, _ in runs]), Times(*map(sum, each))

    def layer_times(self, feed: Feed, runs: int) -> Iterator[list[tuple[str, float]]]:
        """Name and ms of each layer, in their order, for so many inferences of one batch, by the vendor's profiler.

        It has an execution context of its own, without a CUDA graph.

        Raises:
            InputError: the batch is larger than the engine takes at once.
            EngineError: the engine does not run, or reports no layer.
        """
        check_feed(feed, self._checked)
        with self._pool.profiled(self.name) as context:
            for _ in range(runs):
                yield context.profiled(feed)

    @property
    def cuda_graph(self) -> bool:
        """Whether a CUDA graph is recorded for the last batch; for RTX, whether RTX was told to record graphs."""
        return self._shared.records or self._pool.recorded

    def layers(self) -> str:
        """What the vendor's engine inspector says, as JSON; names alone where the build kept no more."""
        with self._device.active():
            return self._shared.layers()

    @property
    def transfers(self) -> bool:
        """Whether inputs and outputs are copied; on a Jetson, CPU and GPU share the memory."""
        return not self._device.integrated

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> TensorRTRunner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Vendor:
    """The vendor's module with its log."""

    trt: Any
    logger: Any
    lines: Any

    def profiler(self, times: list[tuple[str, float]]) -> Any:
        """The vendor's profiler that appends name and ms of each layer."""
        trt = self.trt

        class LayerTimes(trt.IProfiler):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.append((str(layer_name), float(ms)))

        return LayerTimes()

    def error(self, what: str, where: Path | None = None) -> EngineError:
        """An error that ends with the last errors in the vendor's log."""
        from edgeres.device.messages import explain

        said = [line[4:] for line in self.lines if line[1] in "FE"] or ["no reason was given"]
        why, hint = explain("\n".join(reversed(said)))
        return EngineError(f"{what}: {why}", where=where, hint=hint)


class _LoadedEngine:
    """The engine that all contexts share.

    Attributes:
        batch: smallest and largest batch of its optimization profile.
        records: whether TensorRT-RTX records CUDA graphs by itself.
    """

    def __init__(self, vendor: _Vendor, runtime: Any, engine: Any, file: EngineFile) -> None:
        self.vendor, self._runtime, self._engine, self._file = vendor, runtime, engine, file
        trt = vendor.trt
        self.inputs, self.outputs = self._specs(trt.TensorIOMode.INPUT), self._specs(trt.TensorIOMode.OUTPUT)
        if not self.inputs or not self.outputs:
            raise EngineError("this engine has no input or no output", where=file.where)
        self.batch = self._batches()
        self._config: Any = None
        self._cache: Any = None
        self._strategy: Any = getattr(trt, "CudaGraphStrategy", None)  # TensorRT does not have it
        self.records = False
        if self._strategy is not None and hasattr(engine, "create_runtime_config"):
            self._config, self._cache = _for_rtx(engine, self._strategy, file)
            self.records = True

    def new_context(self, *, profiler: Any = None) -> Any:
        """An execution context; with a profiler it records no CUDA graph, and reports when it is asked to."""
        config = self._config
        if config is not None and profiler is not None:
            config = _without_graphs(self._engine, self._strategy, self._cache)
        context = self._engine.create_execution_context(*([] if config is None else [config]))
        if context is None:
            raise self.vendor.error("no execution context could be made", self._file.where)
        if profiler is not None:
            context.profiler, context.enqueue_emits_profile = profiler, False
        return context

    def layers(self) -> str:
        trt, engine = self.vendor.trt, self._engine
        return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        if self._cache is not None and self._file.cache is not None:
            _keep(self._cache, self._file.cache)
        self._config = self._cache = None
        self._engine = None  # before the runtime that made it
        self._runtime = None

    def _specs(self, mode: Any) -> tuple[TensorSpec, ...]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return tuple(self._spec(name) for name in names if self._engine.get_tensor_mode(name) == mode)

    def _spec(self, name: str) -> TensorSpec:
        trt, engine = self.vendor.trt, self._engine
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise EngineError(f"{name} of this engine is a shape, not an image or scores", where=self._file.where)
        kind = engine.get_tensor_dtype(name)
        try:
            dtype = np.dtype(trt.nptype(kind))
        except TypeError as error:
            raise EngineError(f"{name} of this engine is {kind}, which NumPy does not have") from error
        shape = tuple(None if size == -1 else int(size) for size in engine.get_tensor_shape(name))
        if not shape or None in shape[1:]:
            raise EngineError(f"{name} of this engine has free sizes besides the batch", where=self._file.where)
        return TensorSpec(name, dtype, shape)

    def _batches(self) -> tuple[int, int]:
        fixed = [tensor.shape[0] for tensor in self.inputs if tensor.shape[0] is not None]
        if fixed:
            return fixed[0], fixed[0]
        ranges = [self._engine.get_tensor_profile_shape(tensor.name, 0) for tensor in self.inputs]
        return max(int(low[0]) for low, _, _ in ranges), min(int(high[0]) for _, _, high in ranges)


def _for_rtx(loaded: Any, strategy: Any, file: EngineFile) -> tuple[Any, Any]:
    """The runtime configuration and the cache of RTX: it records CUDA graphs itself and caches compiled kernels."""
    made = loaded.create_runtime_config()
    made.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE
    cache = made.create_runtime_cache()
    if file.cache is not None:
        with suppress(OSError):
            cache.deserialize(file.cache.read_bytes())
    made.set_runtime_cache(cache)
    return made, cache


def _without_graphs(loaded: Any, strategy: Any, cache: Any) -> Any:
    """The runtime configuration of RTX for a profiler, which a recorded graph does not report to."""
    made = loaded.create_runtime_config()
    made.cuda_graph_strategy = strategy.DISABLED
    made.set_runtime_cache(cache)
    return made


def _load(vendor: _Vendor, data: bytes, file: EngineFile, device: Device) -> _LoadedEngine:
    vendor.lines.clear()
    host_code = file.allows_host_code(data)
    with device.active():
        try:
            runtime = vendor.trt.Runtime(vendor.logger)
        except TypeError as error:  # what the bindings raise where there is no CUDA
            raise vendor.error("TensorRT does not start", file.where) from error
        if host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise vendor.error("this engine cannot be loaded", file.where)
        return _LoadedEngine(vendor, runtime, engine, file)


def _keep(cache: Any, path: Path) -> None:
    """Write a runtime cache for the next start; where that fails, kernels are compiled again."""
    from edgeres.files import write_file

    data = bytes(cache.serialize())
    with suppress(OSError):
        if not path.is_file() or path.stat().st_size != len(data):
            write_file(path, data)


class _ContextPool:
    """The contexts of a runner; threads borrow them, and a new one is made where none is idle."""

    def __init__(self, device: Device, shared: _LoadedEngine, *, graphs: bool) -> None:
        self._device, self._shared, self._graphs = device, shared, graphs
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._idle: list[_Context] = []
        self._busy = 0
        self._closed = False

    @contextmanager
    def borrowed(self, owner: str) -> Iterator[_Context]:
        """Lend a context to this thread, with the GPU made current; a context that failed is not used again."""
        context = self._borrow(owner)
        sound = False
        try:
            with self._device.active():
                if context is None:
                    with self._making:
                        context = _Context(self._device, self._shared, graphs=self._graphs)
                yield context
            sound = True
        finally:
            self._give_back(context, sound=sound)

    @contextmanager
    def profiled(self, owner: str) -> Iterator[_Context]:
        """A context of its own with the vendor's profiler, which no other thread gets."""
        with self._lock:
            if self._closed:
                raise closed(owner)
            self._busy += 1
        try:
            with self._device.active():
                context = _Context(self._device, self._shared, graphs=False, profile=True)
                try:
                    yield context
                finally:
                    context.close()
        finally:
            self._give_back(None, sound=True)

    @property
    def recorded(self) -> bool:
        """Whether an idle context has a CUDA graph of its last batch."""
        with self._lock:
            return any(context.recorded for context in self._idle)

    def close(self) -> None:
        with self._lock:
            contexts, self._idle = self._idle, []
            last = not self._closed and not self._busy
            self._closed = True
        self._free(contexts, last=last)

    def _borrow(self, owner: str) -> _Context | None:
        with self._lock:
            if self._closed:
                raise closed(owner)
            self._busy += 1
            return self._idle.pop() if self._idle else None

    def _give_back(self, context: _Context | None, *, sound: bool) -> None:
        with self._lock:
            self._busy -= 1
            keep = sound and not self._closed
            if context is not None and keep:
                self._idle.append(context)
            last = self._closed and not self._busy
        self._free([] if context is None or keep else [context], last=last)

    def _free(self, contexts: list[_Context], *, last: bool) -> None:
        if not contexts and not last:
            return
        with suppress(EngineError), self._device.active():  # where the CUDA context is gone, so is its memory
            for context in contexts:
                with suppress(EngineError):
                    context.close()
            if last:
                self._shared.close()


class _Context:
    """TensorRT's execution context with a stream and buffers, for one thread at a time inside ``device.active()``."""

    def __init__(self, device: Device, shared: _LoadedEngine, *, graphs: bool, profile: bool = False) -> None:
        self._device, self._shared, self._graphs = device, shared, graphs
        self._layer_times: list[tuple[str, float]] = []
        self._profiler: Any = shared.vendor.profiler(self._layer_times) if profile else None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._batch = 0
        self._graph: CudaGraph | None = None
        self._kernels: CudaGraph | None = None  # the kernels alone, for timed()
        self._events: list[Event] = []
        with ExitStack() as undo:
            self._stream = device.stream()
            undo.callback(self._stream.close)
            self._buffers: dict[str, Buffer] = {}
            for tensor in (*shared.inputs, *shared.outputs):
                self._buffers[tensor.name] = device.buffer(_bytes(tensor, shared.batch[1]))
                undo.callback(self._buffers[tensor.name].close)
            self._trt_context: Any = shared.new_context(profiler=self._profiler)
            for name, buffer in self._buffers.items():
                if not self._trt_context.set_tensor_address(name, buffer.address):
                    raise shared.vendor.error(f"{name} cannot be given its memory")
            undo.pop_all()

    def run(self, feed: Feed) -> Feed:
        batch = self._take(feed)
        if batch != self._batch:
            self._drop_graph()
            self._set_batch(batch)
            self._enqueue_or_fail()
        elif self._graph is not None:
            self._graph.launch()
        else:
            self._graph = self._stream.capture(self._enqueue) if self._graphs else None
            if self._graph is not None:
                self._graph.launch()
            else:
                self._graphs = False  # this engine cannot be recorded; do not try again
                self._enqueue_or_fail()
        self._stream.synchronize()
        return self._scores()

    def _take(self, feed: Feed) -> int:
        """Copy a batch into the page-locked buffers and return its number of images."""
        for name, array in feed.items():
            self._host(name, array.shape, array.dtype)[...] = array
        return len(feed[self._shared.inputs[0].name])

    def timed(self, feed: Feed) -> tuple[Feed, Times]:
        """As :meth:`run`, with events between the steps; events inside a CUDA graph would give no times."""
        batch = self._take(feed)
        if batch != self._batch:
            self._drop_graph()
            self._set_batch(batch)
        elif self._kernels is None and self._graphs:
            self._kernels = self._stream.capture(self._execute)
            self._graphs = self._kernels is not None
        while len(self._events) < 4:
            self._events.append(self._device.event())
        begin, there, done, back = self._events
        begin.record(self._stream)
        self._upload()
        there.record(self._stream)
        started = perf_counter()
        if self._kernels is not None:
            self._kernels.launch()
        elif not self._execute():
            raise self._shared.vendor.error("the engine did not run")
        enqueue = perf_counter() - started
        done.record(self._stream)
        self._download()
        back.record(self._stream)
        self._stream.synchronize()
        times = Times(enqueue, there.seconds_since(begin), done.seconds_since(there), back.seconds_since(done))
        return self._scores(), times

    def profiled(self, feed: Feed) -> list[tuple[str, float]]:
        """Name and ms of each layer of one inference; the context was made with ``profile``."""
        batch = self._take(feed)
        if batch != self._batch:
            self._set_batch(batch)
        self._layer_times.clear()
        self._enqueue_or_fail()
        self._stream.synchronize()
        if not self._trt_context.report_to_profiler() or not self._layer_times:
            raise self._shared.vendor.error("the engine reports no time of a layer")
        return list(self._layer_times)

    @property
    def recorded(self) -> bool:
        return self._graph is not None or self._kernels is not None

    def close(self) -> None:
        with suppress(EngineError):  # an interrupted run may still write into the buffers
            self._stream.synchronize()
        self._drop_graph()
        self._trt_context = None
        for event in self._events:
            event.close()
        self._events.clear()
        for buffer in self._buffers.values():
            buffer.close()
        self._stream.close()

    def _set_batch(self, batch: int) -> None:
        self._batch = 0  # until the context has accepted it
        for tensor in self._shared.inputs:
            self._shapes[tensor.name] = (batch, *_fixed(tensor))
            if not self._trt_context.set_input_shape(tensor.name, self._shapes[tensor.name]):
                raise self._shared.vendor.error(f"{tensor.name} does not take batch {batch}")
        missing = self._trt_context.infer_shapes()
        if missing:
            raise EngineError(f"the engine leaves {', '.join(missing)} open")
        for tensor in self._shared.outputs:
            self._shapes[tensor.name] = tuple(int(size) for size in self._trt_context.get_tensor_shape(tensor.name))
        self._batch = batch

    def _enqueue(self) -> bool:
        """Copy the inputs to the GPU, run the kernels, copy the outputs back."""
        self._upload()
        if not self._execute():
            return False
        self._download()
        return True

    def _upload(self) -> None:
        for tensor in self._shared.inputs:
            self._buffers[tensor.name].upload(self._count(tensor), self._stream)

    def _execute(self) -> bool:
        return bool(self._trt_context.execute_async_v3(self._stream.handle))

    def _download(self) -> None:
        for tensor in self._shared.outputs:
            self._buffers[tensor.name].download(self._count(tensor), self._stream)

    def _scores(self) -> Feed:
        return {t.name: self._host(t.name, self._shapes[t.name], t.dtype).copy() for t in self._shared.outputs}

    def _enqueue_or_fail(self) -> None:
        if not self._enqueue():
            raise self._shared.vendor.error("the engine did not run")

    def _count(self, tensor: TensorSpec) -> int:
        return int(np.prod(self._shapes[tensor.name])) * tensor.dtype.itemsize

    def _host(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        count = int(np.prod(shape)) * dtype.itemsize
        return self._buffers[name].host[:count].view(dtype).reshape(shape)

    def _drop_graph(self) -> None:
        for graph in (self._graph, self._kernels):
            if graph is not None:
                graph.close()
        self._graph = self._kernels = None


def _joined(runs: list[Feed]) -> Feed:
    """Join the outputs of the parts of a batch."""
    return runs[0] if len(runs) == 1 else {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def _fixed(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape[1:] if size is not None)


def _bytes(tensor: TensorSpec, batch: int) -> int:
    return int(np.prod((batch, *_fixed(tensor)))) * tensor.dtype.itemsize
