"""The runner for ONNX graphs on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from edgeres.device.cpu import usable_cores
from edgeres.device.targets import RUNTIME_TITLES
from edgeres.errors import EngineError, ModelError, UsageError, reading
from edgeres.graph.trial import NUMPY_NAMES, read_graph
from edgeres.runtime.leaving import kept_whole
from edgeres.runtime.ort_engines import EngineProvider, add_rtx, tensorrt_providers
from edgeres.runtime.runner import Feed, TensorSpec, any_batch, check_feed, closed, parts

OrtDevice = Literal["cpu", "cuda"] | EngineProvider
# Of one inference on the CPU: memory of all layers grows with the images, and ONNX Runtime keeps what it has taken.
_MOST_IMAGES = 128
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OrtRunner:
    """Runs an ONNX graph on ONNX Runtime. A :class:`~edgeres.runtime.runner.Backend`; all threads share one session.

    Args:
        model: a file, or the serialized graph itself.
        threads: per operator on the CPU; 0 takes every core that this process may use.
        integer: whether ONNX Runtime may fuse Q/DQ pairs into its integer kernels. False computes in float32 between
            the Q/DQ pairs, as a stand-in for TensorRT, because the integer kernels round in other places.
        device: ``cuda`` needs onnxruntime-gpu and an NVIDIA GPU; an
            :class:`~edgeres.runtime.ort_engines.EngineProvider` builds an engine at the first start: minutes.
        gpu: number of that GPU.

    Raises:
        ModelError: the file is missing or ONNX Runtime cannot load the graph.
        EngineError: the provider is missing or does not start.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 0,
        integer: bool = True,
        device: OrtDevice = "cpu",
        gpu: int = 0,
    ) -> None:
        import onnxruntime as ort

        where = None if isinstance(model, bytes) else model
        if where is not None and (not where.exists() or where.is_dir()):
            raise ModelError("no such file", where=where)
        engines = device if isinstance(device, EngineProvider) else None
        self.name = (
            f"ONNX Runtime {ort.__version__} {RUNTIME_TITLES[engines.runtime] if engines else str(device).upper()}"
        )
        self._file, self._setup = where, _Setup(threads, integer, device, gpu)
        self._session: Any = _session(ort, model, _options(ort, self._setup), self._setup)
        self.inputs = tuple(_spec(tensor) for tensor in self._session.get_inputs())
        self.outputs = tuple(_spec(tensor) for tensor in self._session.get_outputs())
        if not self.inputs or not self.outputs:
            raise ModelError(f"has {len(self.inputs)} inputs and {len(self.outputs)} outputs", where=where)
        self.input_name, self.output_name = self.inputs[0].name, self.outputs[0].name
        fixed = self.inputs[0].shape[0] if self.inputs[0].shape else None
        self.max_batch: int | None = engines.max_batch if engines and fixed is None else fixed
        self._smallest = fixed or 1
        free = all(tensor.shape and tensor.shape[0] is None for tensor in (*self.inputs, *self.outputs))
        self._most = self.max_batch or (_MOST_IMAGES if device == "cpu" and free else None)
        self._output_names = [output.name for output in self.outputs]
        self._checked = any_batch(self.inputs)

    def infer(self, feed: Feed) -> Feed:
        session = self._session
        if session is None:
            raise closed(self.name)
        one = len(self.inputs) == 1
        images = check_feed(feed, self._checked if one else self.inputs)
        if self._most is None or not one or (self.max_batch is None and images <= self._most):
            return self._named(self._run(session, feed))
        cut = (feed[self.input_name][part] for part in parts(images, self._smallest, self._most))
        runs = [self._run(session, {self.input_name: part}) for part in cut]
        return self._named(runs[0] if len(runs) == 1 else map(np.concatenate, zip(*runs, strict=True)))

    def _run(self, session: Any, feed: Feed) -> list[Any]:
        """All outputs; what ONNX Runtime raises, as of sizes that fit no operator, names the graph."""
        try:
            found: list[Any] = kept_whole(partial(session.run, None, feed))
        except Exception:
            with reading(self._file, "ONNX Runtime cannot run this graph", error=ModelError):
                raise
        return found

    def trace(self, feed: Feed, runs: int) -> bytes:
        """What ONNX Runtime's profiler writes of so many inferences, as JSON; they run in a session of their own.

        Raises:
            InputError: a name, dtype or shape is not what the network takes.
            UsageError: the graph was not in a file, so it is not kept.
        """
        check_feed(feed, self.inputs)
        if self._file is None:
            raise UsageError("only a graph in a file can be profiled", hint="write it to a file, and open that")
        import onnxruntime as ort

        with TemporaryDirectory(prefix="edgeres-profile-") as folder:
            options = _options(ort, self._setup)
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "trace")
            session = _session(ort, self._file, options, self._setup)
            for _ in range(runs):
                self._run(session, feed)
            return Path(session.end_profiling()).read_bytes()

    def _named(self, arrays: Iterable[Any]) -> Feed:
        return dict(zip(self._output_names, arrays, strict=True))

    def close(self) -> None:
        self._session = None  # a thread inside infer still holds a reference

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Setup:
    """How a session is opened; the fields are those of :class:`OrtRunner`."""

    threads: int
    integer: bool
    device: OrtDevice
    gpu: int


def _options(ort: Any, setup: _Setup) -> Any:
    options = ort.SessionOptions()
    # Left at 0, ONNX Runtime pins threads to cores that a container or a Jetson's power mode may have taken away.
    options.intra_op_num_threads = setup.threads or usable_cores()
    # errors are raised; its log would show those of graphs that are only tried; why CUDA does not start, it only logs
    options.log_severity_level = 4 if setup.device == "cpu" else 3
    if not setup.integer:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _providers(ort: Any, setup: _Setup) -> list[Any]:
    assert not isinstance(setup.device, EngineProvider)
    provider = _PROVIDERS[setup.device]
    if provider not in ort.get_available_providers():
        raise EngineError(f"this ONNX Runtime has no {provider}", hint="pip install onnxruntime-gpu")
    return [provider] if setup.device == "cpu" else [(provider, {"device_id": setup.gpu}), _PROVIDERS["cpu"]]


def _session(ort: Any, model: Path | bytes, options: Any, setup: _Setup) -> Any:
    where = None if isinstance(model, bytes) else model
    if where is not None:
        read_graph(where)
    with reading(where, "ONNX Runtime cannot load this graph", error=ModelError):
        graph = model if isinstance(model, bytes) else str(model)
        if isinstance(setup.device, EngineProvider):
            return _session_with_engines(ort, graph, options, setup.device, setup.gpu)
        providers = _providers(ort, setup)
        session = ort.InferenceSession(graph, options, providers=providers)
    return _started(session, _name(providers[0]))


def _session_with_engines(ort: Any, graph: str | bytes, options: Any, provider: EngineProvider, gpu: int) -> Any:
    """A session whose provider builds an engine; another session, which runs nothing, tells what the graph takes."""
    quick = ort.SessionOptions()
    quick.graph_optimization_level, quick.log_severity_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    quick.intra_op_num_threads = 1
    tensor = _spec(ort.InferenceSession(graph, quick, providers=[_PROVIDERS["cpu"]]).get_inputs()[0])
    if provider.runtime == "rtx":
        name = add_rtx(ort, options, provider, gpu, tensor)
        return _started(ort.InferenceSession(graph, options), name)
    providers = tensorrt_providers(ort, provider, gpu, tensor)
    return _started(ort.InferenceSession(graph, options, providers=providers), _name(providers[0]))


def _name(provider: Any) -> str:
    return str(provider if isinstance(provider, str) else provider[0])


def _started(session: Any, provider: str) -> Any:
    """The session, unless ONNX Runtime left out this provider, as it does with one that does not start."""
    if provider not in session.get_providers():
        raise EngineError(f"ONNX Runtime cannot start its {provider} here", hint="see: edgeres doctor")
    return session


def _spec(tensor: Any) -> TensorSpec:
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in tensor.shape)
    try:
        dtype = np.dtype(NUMPY_NAMES.get(kind, kind))
    except TypeError:  # strings, and float types that NumPy does not have
        dtype = np.dtype(object)
    return TensorSpec(tensor.name, dtype, shape)
