"""Build an engine from an ONNX graph, with ``tensorrt`` 10.3 to 11.x or with ``tensorrt_rtx``.

The network is strongly typed: every precision comes from the graph (casts for FP16, Q/DQ for INT8), none from a flag.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgeres.bundle import is_of_bytes
from edgeres.device.libraries import VendorLog, available, load, vendor_log
from edgeres.device.messages import explain
from edgeres.device.targets import JETSON_SM, RTX_COMPUTE_CAPABILITIES, RTX_PORTABLE, Flavour
from edgeres.engine.meter import Meter
from edgeres.engine.timing import TimingCache, timing_cache
from edgeres.errors import EngineError, ModelError, UsageError
from edgeres.graph.trial import read_graph
from edgeres.progress import SILENT, Progress
from edgeres.records import EngineOrigin, EngineRecord, FrameSpec, Portability
from edgeres.words import escaped

Precision = Literal["fp32", "fp16", "int8"]
Batch = tuple[int, int, int]

_T = TypeVar("_T")
_ELSEWHERE = "copy the bundle to the device and run there: edgeres engine BUNDLE"
_ONE_AT_A_TIME = threading.Lock()  # kernels are timed on the GPU: two builds at a time would disturb each other


@dataclass(frozen=True)
class BuildRequest:
    """How to build an engine.

    Attributes:
        precision: of the graph. It is a label: the graph itself decides.
        min_batch, opt_batch, max_batch: batch sizes, if the graph's batch is dynamic; kernels are chosen for
            ``opt_batch``.
        workspace_bytes: most scratch memory of one layer; None: the vendor's default, all of the GPU's memory.
        compute_capabilities: RTX only, e.g. ``("8.6", "12.0")``; empty: the portable default, Ampere and later.
        optimization_level: 0 (fast build) to 5 (fast engine); 3 is the vendor's default.
        version_compatible: TensorRT only: later versions load the engine too; it is somewhat slower.
        hardware_compatible: TensorRT only, not on a Jetson: other GPUs from Ampere on load the engine too; it is
            somewhat slower.
        frame: the camera's frame that the graph takes. It is a label, too.

    Raises:
        UsageError: the values contradict each other.
    """

    precision: Precision
    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 8
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int = 3
    version_compatible: bool = False
    hardware_compatible: bool = False
    frame: FrameSpec | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UsageError(f"batch sizes must satisfy 1 <= min <= opt <= max, not {self.batch}")
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"the builder's optimization level is 0 to 5, not {self.optimization_level}")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise UsageError(f"the workspace must be at least one byte, not {self.workspace_bytes}")
        for capability in self.compute_capabilities:
            if capability not in RTX_COMPUTE_CAPABILITIES:
                known = ", ".join(RTX_PORTABLE if self.precision == "int8" else RTX_COMPUTE_CAPABILITIES)
                what = f"TensorRT-RTX does not build for compute capability {capability}"
                raise UsageError(what, hint=f"use {known}")
        if self.precision == "int8" and "7.5" in self.compute_capabilities:
            # Seen in 1.7.1: with 7.5 in the list, every Conv runs in float with dequantized weights, on all GPUs.
            raise UsageError("TensorRT-RTX has no INT8 for SM 7.5, nor for others beside it", hint="leave 7.5 out")

    @property
    def batch(self) -> Batch:
        return self.min_batch, self.opt_batch, self.max_batch

    @property
    def settings(self) -> dict[str, str]:
        """The settings besides precision, batch and GPU, in words."""
        workspace = "all memory" if self.workspace_bytes is None else f"{self.workspace_bytes / 2**20:.0f} MiB"
        compatible = {"version": self.version_compatible, "hardware": self.hardware_compatible}
        return {
            "workspace": workspace,
            "builder level": str(self.optimization_level),
            "compatible": ", ".join(name for name, on in compatible.items() if on) or "with this version and GPU alone",
        }


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in memory.

    Attributes:
        version: of the package that built it; RTX engines load in this version only.
        batch: smallest, best and largest batch that it takes.
        compute_capabilities: of the GPUs it is for; empty: RTX's portable default.
        log: the vendor's messages during the build, ``[W] ...``.
        takes_bytes: whether it takes prepared images as bytes.
    """

    data: bytes
    request: BuildRequest
    flavour: Flavour
    version: str
    batch: Batch
    compute_capabilities: tuple[str, ...]
    build_seconds: float
    log: tuple[str, ...]
    takes_bytes: bool = False

    @property
    def file_name(self) -> str:
        """``<runtime>-<version>-<sm>.engine``, e.g. ``rtx-1.7.1.116-portable.engine``; FP32, FP16 and frames say so."""
        sm = "+".join("sm" + capability.replace(".", "") for capability in self.compute_capabilities) or "portable"
        precision = "" if self.request.precision == "int8" else f"-{self.request.precision}"
        frame = f"-{self.request.frame.slug}" if self.request.frame else ""
        return f"{self.flavour}-{self.version}-{sm}{precision}{frame}.engine"

    @property
    def log_text(self) -> str:
        """The settings and the vendor's messages, for a file beside the engine."""
        asked = {
            "built by": f"{self.flavour} {self.version}",
            "for": ", ".join(f"SM {capability}" for capability in self.compute_capabilities) or "portable",
            "precision": self.request.precision,
            **({"frame": str(self.request.frame)} if self.request.frame else {}),
            **({"input": "prepared images as bytes"} if self.takes_bytes else {}),
            "batch": "min {}, opt {}, max {}".format(*self.batch),
            "seconds": f"{self.build_seconds:.1f}",
            **self.request.settings,
        }
        lines = (*(f"# {name}: {value}" for name, value in asked.items()), *self.log)
        return "".join(f"{escaped(line, keep=chr(9))}\n" for line in lines)

    def record(self, target: str, file: str | None, status: str = "built, not run here") -> EngineRecord:
        """The entry of a manifest; ``file`` is the engine's path inside the bundle, None if it is not kept."""
        asked = self.request
        return EngineRecord(
            target=target,
            runtime=self.flavour,
            version=self.version,
            precision=asked.precision,
            status=status,
            file=file,
            size_bytes=len(self.data),
            portability=Portability(self.compute_capabilities, asked.version_compatible, asked.hardware_compatible),
            origin=EngineOrigin(self.build_seconds, frame=asked.frame, takes_bytes=self.takes_bytes),
        )


def build_engine(
    model: Path | bytes, request: BuildRequest, flavour: Flavour, progress: Progress = SILENT
) -> BuiltEngine:
    """Build an engine; nothing is written to disk. Ctrl-C ends the build at the builder's next step.

    Args:
        model: an ONNX file or its bytes; the first axis of every input is the batch, all other axes are fixed.

    Raises:
        EngineError: the package or the GPU is missing, or the vendor refuses the graph; the vendor's log is its cause.
        ModelError: the file is missing, or an input has dynamic axes besides the batch.
        UsageError: this flavour does not have what the request asks for.
    """
    if isinstance(model, Path) and not model.is_file():
        raise ModelError("no such file", where=model)
    capabilities = _capabilities(request, flavour)
    trt, log = load(flavour), vendor_log(flavour)
    timing = timing_cache(available(flavour))
    with _ONE_AT_A_TIME, progress.task(f"building the {request.precision} engine", Meter.TOTAL) as advance:
        log.lines.clear()
        meter = Meter(advance)
        started = time.monotonic()
        try:
            data, batch = _interruptible(lambda: _build(trt, log, model, request, meter, timing), meter.stop)
        except EngineError as error:
            raise error from RuntimeError("\n".join(log.lines))
        meter.complete()
        version, seconds = str(trt.__version__), time.monotonic() - started
        lines = tuple(log.lines)
        return BuiltEngine(
            data, request, flavour, version, batch, capabilities, seconds, lines, takes_bytes=is_of_bytes(model)
        )


def _capabilities(request: BuildRequest, flavour: Flavour) -> tuple[str, ...]:
    """The compute capabilities that the engine is for, after a check that this machine can build it."""
    if flavour == "rtx":
        if request.version_compatible:
            raise UsageError("RTX engines load in the version that built them alone", hint="drop --version-compatible")
        if request.hardware_compatible:
            raise UsageError("RTX engines are portable as they are", hint="drop --hardware-compatible")
        return request.compute_capabilities
    if request.compute_capabilities:
        raise UsageError("TensorRT builds for the GPU it runs on", hint="choose compute capabilities for RTX only")
    here = available(flavour)
    if not here.importable:
        raise EngineError(here.reason, hint=f"{here.next_step}; or {_ELSEWHERE}")
    if here.gpu is None:
        raise EngineError(f"TensorRT builds on the GPU it is for, and here is none: {here.reason}", hint=_ELSEWHERE)
    if request.hardware_compatible and (here.gpu.sm in JETSON_SM or float(here.gpu.sm) < 8):
        what = f"no engine for other GPUs can be built on {here.gpu.name} (SM {here.gpu.sm})"
        raise UsageError(f"{what}, only on Ampere and later, and on no Jetson", hint="drop --hardware-compatible")
    return (here.gpu.sm,)


def _build(
    trt: Any, log: VendorLog, model: Path | bytes, request: BuildRequest, meter: Meter, timing: TimingCache | None
) -> tuple[bytes, Batch]:
    """One build; the parser owns the weights, so it must live until the engine is serialized."""
    where = model if isinstance(model, Path) else None
    try:
        builder = trt.Builder(log.logger)
    except TypeError as error:  # the bindings raise it where there is no CUDA
        raise _build_error(log, where) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    # The path lets the parser find weights that the graph keeps in files beside it.
    path = None if where is None else str(where)
    if not parser.parse(model if isinstance(model, bytes) else read_graph(model), path):
        raise _parser_error(parser, where)
    config = _configure(trt, builder, request)
    batch = _add_profile(builder, network, config, request.batch)
    config.progress_monitor = _monitor(trt, meter)
    if timing is not None:
        timing.attach(config)
    plan = builder.build_serialized_network(network, config)
    if meter.error is not None:
        raise meter.error
    if plan is None:
        raise _build_error(log, where)
    if timing is not None:
        timing.keep(config)
    return bytes(plan), batch


def _configure(trt: Any, builder: Any, request: BuildRequest) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = request.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the engine inspector; it costs no time
    if request.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # the FP32 engine is a reference of accuracy on the device
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.compute_capabilities:
        config.num_compute_capabilities = len(request.compute_capabilities)
        for index, capability in enumerate(request.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), index)
    return config


def _add_profile(builder: Any, network: Any, config: Any, batch: Batch) -> Batch:
    """Give every input its range of shapes; returns the engine's batch, which is the graph's own if that is fixed."""
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        first, *rest = tuple(tensor.shape)
        if -1 in rest:
            shape = ", ".join("?" if size == -1 else str(size) for size in (first, *rest))
            what = f"input {tensor.name} ({shape}) has dynamic axes besides the batch"
            raise ModelError(what, hint="export it with fixed sizes")
        batch = batch if first == -1 else (first, first, first)
        profile.set_shape(tensor.name, *((size, *rest) for size in batch))
    config.add_optimization_profile(profile)
    return batch


def _parser_error(parser: Any, where: Path | None) -> EngineError:
    first = parser.get_error(0)
    what, hint = explain(first.desc())
    node = f"node {first.node_name()} ({first.node_operator()}): " if first.node_operator() else ""
    more = f" (and {parser.num_errors - 1} more errors)" if parser.num_errors > 1 else ""
    return EngineError(f"TensorRT refuses the graph: {node}{what}{more}", where=where, hint=hint)


def _build_error(log: VendorLog, where: Path | None) -> EngineError:
    errors = [line[4:] for line in log.lines if line[1] in "FE"] or ["no reason was given"]
    what, hint = explain("\n".join(reversed(errors)))  # the last error is nearest to the failure
    return EngineError(f"TensorRT built no engine: {what}", where=where, hint=hint)


def _monitor(trt: Any, meter: Meter) -> Any:
    """The vendor's progress interface, which reports to a meter."""

    class Monitor(trt.IProgressMonitor):
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            meter.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return meter.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            meter.finish(phase_name)

    return Monitor()


def _interruptible(work: Callable[[], _T], stop: Callable[[], None]) -> _T:
    """Run ``work()`` in a second thread, so that Ctrl-C reaches this one in a long C++ call; wait for that thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgeres-build") as pool:
        future = pool.submit(work)
        try:
            while not wait([future], timeout=0.2).done:
                pass
        except BaseException:
            stop()
            raise
        return future.result()
