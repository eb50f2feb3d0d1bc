"""TensorRT's builder for the simulated GPU: engines that carry their ONNX graph, with planted times and faults.

A test plants what the device will do with a graph: how long an inference takes by the GPU's clock, with seeded noise,
whether the builder refuses it, which other graph the engine computes instead, and what the engine inspector says.
All names are the vendor's; ``tests/test_vendor_api.py`` holds them against the bindings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx

VERSIONS = {"tensorrt": "10.3.0", "rtx": "1.7.1.116"}
KERNELS_MS = 8.0


@dataclass(frozen=True)
class Planted:
    """What the device does with one graph.

    Attributes:
        ms: time of an inference by the GPU's clock.
        spread: relative standard deviation of that time, normal, from ``seed``.
        refused: what the builder says in its log where it builds no engine; "": it builds one.
        answers: ONNX graph that the engine computes instead of its own; None: its own.
        layers: what the engine inspector lists.
        times: name and ms of each layer that the profiler reports.
    """

    ms: float = KERNELS_MS
    spread: float = 0.0
    seed: int = 0
    refused: str = ""
    answers: bytes | None = field(default=None, compare=False)
    layers: tuple[dict[str, Any], ...] = ()
    times: tuple[tuple[str, float], ...] = ()


Plants = Callable[[onnx.ModelProto], Planted]


def layer(kind: str, name: str, out: str, read: str | None = None) -> dict[str, Any]:
    """One entry of the inspector's list as TensorRT 10 writes it; ``out`` and ``read`` are formats with their type."""
    tensor = {"Location": "Device", "Dimensions": [1, 4, 8, 8]}
    ends = ((f"{name} in", read or out), (f"{name} out", out))
    read_, written = ({"Name": title, **tensor, "Format/Datatype": words} for title, words in ends)
    return {"Name": name, "LayerType": kind, "Inputs": [read_], "Outputs": [written], "TacticName": f"{kind}_tactic"}


def plan(
    model: bytes,
    flavour: str = "tensorrt",
    batch: tuple[int, int] = (1, 8),
    version: str | None = None,
    *,
    portable: bool = False,
    planted: Planted = Planted(),
) -> bytes:
    """A serialized engine: a header like the vendor's, the profile, and the graph. ``portable``: version-compatible."""
    numbers = [int(part) for part in (version or VERSIONS[flavour]).split(".")]
    tag = b"ftrt" if flavour == "tensorrt" and not portable else b"vtrt"
    told = {"batch": batch, **{name: value for name, value in asdict(planted).items() if name != "answers"}}
    graph = planted.answers or model
    return tag + bytes(20) + bytes([*numbers, 30][:4]) + json.dumps(told).encode() + b"\n" + graph


def unplanned(data: bytes) -> tuple[tuple[int, int], Planted, bytes]:
    """Batch, what was planted, and the graph of a serialized engine."""
    head, _, model = data[28:].partition(b"\n")
    told = json.loads(head)
    low, high = told.pop("batch")
    return (low, high), Planted(**{**told, "layers": tuple(told["layers"])}), model


def builder_names(gpu: Any, flavour: str) -> dict[str, Any]:  # noqa: C901
    """What the vendor's module has for building and inspecting engines."""

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        pass

    class ITensor:
        def __init__(self, name: str, shape: tuple[int, ...]) -> None:
            self.name, self.shape = name, shape

    class INetworkDefinition:
        model: onnx.ModelProto

        @property
        def num_inputs(self) -> int:
            return len(self.model.graph.input)

        def get_input(self, index: int) -> ITensor:
            tensor = self.model.graph.input[index]
            dims = tensor.type.tensor_type.shape.dim
            return ITensor(tensor.name, tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims))

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            self.network = network

        def parse(self, model: bytes, path: str | None = None) -> bool:
            """The path is where weights in files beside the graph are found; the graph then says which file it was."""
            self.network.model = onnx.load_from_string(model) if path is None else onnx.load(path)
            if path is not None:
                self.network.model.graph.doc_string = Path(path).name
            return True

        @property
        def num_errors(self) -> int:
            return 0

    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content

    class IOptimizationProfile:
        def __init__(self) -> None:
            self.batch = (1, 1)

        def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
            self.batch = (low[0], high[0])

    class IBuilderConfig:
        def __init__(self) -> None:
            self.builder_optimization_level = 3
            self.profiling_verbosity = "names"
            self.progress_monitor: Any = None
            self.hardware_compatibility_level = "none"
            self.num_compute_capabilities = 0
            self.flags = {"tf32"}
            self.batch = (1, 1)
            self._cache: ITimingCache | None = None

        def set_flag(self, flag: str) -> None:
            self.flags.add(flag)

        def clear_flag(self, flag: str) -> None:
            self.flags.discard(flag)

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            return None

        def set_compute_capability(self, capability: str, index: int) -> bool:
            return True

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self.batch = profile.batch
            return 0

        def create_timing_cache(self, content: bytes) -> ITimingCache:
            return ITimingCache(content)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            gpu.warm_builds += bool(cache.content)
            self._cache = cache
            return True

        def get_timing_cache(self) -> ITimingCache | None:
            return None if self._cache is None else ITimingCache(b"timings")

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
            planted = gpu.plants(network.model)
            gpu.builds += 1
            if config.progress_monitor is not None:
                config.progress_monitor.phase_start("Building", None, 1)
                config.progress_monitor.step_complete("Building", 0)
                config.progress_monitor.phase_finish("Building")
            if planted.refused:
                self.logger.log(ILogger.Severity.ERROR, planted.refused)
                return None
            detailed = planted.layers if config.profiling_verbosity == "detailed" else ()
            told = Planted(**{**vars(planted), "layers": detailed})
            model: bytes = network.model.SerializeToString()
            return plan(model, flavour, config.batch, portable="version" in config.flags, planted=told)

    class NetworkDefinitionCreationFlag:
        STRONGLY_TYPED = 1

    names: dict[str, Any] = {
        "ILogger": ILogger,
        "IProgressMonitor": IProgressMonitor,
        "INetworkDefinition": INetworkDefinition,
        "ITensor": ITensor,
        "OnnxParser": OnnxParser,
        "ITimingCache": ITimingCache,
        "IOptimizationProfile": IOptimizationProfile,
        "IBuilderConfig": IBuilderConfig,
        "Builder": Builder,
        "NetworkDefinitionCreationFlag": NetworkDefinitionCreationFlag,
        "ProfilingVerbosity": SimpleNamespace(DETAILED="detailed"),
        "LayerInformationFormat": SimpleNamespace(JSON="json"),
        "MemoryPoolType": SimpleNamespace(WORKSPACE="workspace"),
        "BuilderFlag": SimpleNamespace(VERSION_COMPATIBLE="version", TF32="tf32"),
        "HardwareCompatibilityLevel": SimpleNamespace(AMPERE_PLUS="ampere"),
    }
    return names


def inspector_text(planted: Planted) -> str:
    """What ``EngineInspector.get_engine_information`` gives; names alone where the build was not detailed."""
    return json.dumps({"Layers": list(planted.layers), "Bindings": ["pixels", "scores"]})
