"""TensorRT and TensorRT-RTX on the simulated GPU, computing with ONNX Runtime."""

from __future__ import annotations

import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from fake_builder import VERSIONS, builder_names, inspector_text, unplanned
from fake_hardware import Gpu


def tensorrt_module(gpu: Gpu, flavour: str = "tensorrt") -> ModuleType:  # noqa: C901
    """``tensorrt`` or ``tensorrt_rtx``, with the functions that the runner calls."""
    modes, places = SimpleNamespace(INPUT="in", OUTPUT="out"), SimpleNamespace(DEVICE="device", HOST="host")

    class IProfiler:
        def report_layer_time(self, layer_name: str, ms: float) -> None:
            raise NotImplementedError

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
            return IExecutionContext(self, graphs=config is not None and config.cuda_graph_strategy == "whole")

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
        def __init__(self, engine: ICudaEngine, *, graphs: bool = False) -> None:
            self.engine, self.graphs = engine, graphs
            self.profiler: IProfiler | None = None
            self.enqueue_emits_profile = True
            self.unreported = False
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

        def report_to_profiler(self) -> bool:
            """Of the last inference, which the stream must have done; a graph that RTX records has no times."""
            if self.user is not None or not self.unreported or self.graphs:
                raise gpu.fault("a profiler is asked about an inference that is not done, or was recorded")
            assert self.profiler is not None and not self.enqueue_emits_profile
            for name, ms in self.engine.planted.times:
                self.profiler.report_layer_time(name, ms)
            self.unreported = False
            return True

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
                self.unreported = self.profiler is not None

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
        IProfiler=IProfiler,
        **builder_names(gpu, flavour),
        TensorIOMode=modes,
        TensorLocation=places,
        nptype=nptype,
    )
    if flavour == "rtx":
        module.__dict__["IRuntimeConfig"] = IRuntimeConfig
        module.__dict__["CudaGraphStrategy"] = SimpleNamespace(DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole")
    return module
