"""The networks that are measured: the bundle's engines where they run here, else its graphs on the CPU."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeres.bundle import FP32, Bundle
from edgeres.device.libraries import MODULES, available
from edgeres.device.targets import Flavour
from edgeres.errors import BundleError, EngineError, EnvironmentError_, UsageError, needs
from edgeres.graph.forms import INTEGER
from edgeres.runtime.choose import engines_of, graph_file, open_engine
from edgeres.runtime.memory import default_device
from edgeres.runtime.ort import OrtRunner
from edgeres.signing import Anyone, Permit, permit_for

if TYPE_CHECKING:
    from edgeres.runtime.engine import TensorRTRunner
    from edgeres.runtime.runner import Runner

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
Backend = Literal["auto", Flavour, "cpu"]
_BUILD_FOR_CPU = "build it with --target cpu"


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        backend: ``auto`` takes the bundle's engines where they run here, else the CPU.
        precisions: to measure; empty: all that the bundle has or can be converted to.
        batch: images per inference.
        threads: per operator on the CPU; 0 takes every core.
        warmup_seconds, min_seconds, min_iterations: for each precision.
        power_seconds: how long each precision runs alone where the board has power sensors.
        seed: of the random input images; trtexec uses random input too.
        trust: as of :class:`edgeres.runtime.Classifier`.
    """

    backend: Backend = "auto"
    precisions: tuple[Precision, ...] = ()
    batch: int = 1
    threads: int = 1
    warmup_seconds: float = 0.2
    min_seconds: float = 3.0
    min_iterations: int = 10
    power_seconds: float = 3.0
    seed: int = 0
    trust: Path | Anyone | None = None


def check(options: BenchOptions) -> None:
    """Check the numbers.

    Raises:
        UsageError: a number is not positive, or not finite.
    """
    for name in ("batch", "min_iterations", "min_seconds", "power_seconds"):
        value = getattr(options, name)
        if not 0 < value < float("inf"):
            raise UsageError(f"must be a number above 0, not {value}", where=name)
    if not 0 <= options.warmup_seconds < float("inf"):
        raise UsageError(f"must be a number, not {options.warmup_seconds}", where="warmup_seconds")


@dataclass(frozen=True)
class Contender:
    """One network, ready to be measured; ``engine`` is its runner where that is on a GPU.

    Attributes:
        name: its precision.
        file: the engine or graph in the bundle.
    """

    name: str
    file: str
    runner: Runner
    engine: TensorRTRunner | None = None


def open_contenders(bundle: Bundle, options: BenchOptions, stack: ExitStack) -> tuple[list[Contender], dict[str, str]]:
    """The engines that run here, or the graphs for the CPU; and why a precision is missing."""
    permit = permit_for(bundle, options.trust)
    reasons: dict[str, str] = {}
    built = {record.runtime for record in bundle.manifest.engines if record.file}
    for runtime in MODULES:
        if options.backend != runtime and (options.backend != "auto" or runtime not in built):
            continue
        try:
            engines = _engines(bundle, runtime, options, permit, stack)
        except EnvironmentError_ as error:
            if options.backend == runtime:
                raise
            reasons[runtime] = str(error)
        else:
            there = {engine.name for engine in engines}
            reasons.update((p, "the bundle has no such engine") for p in PRECISIONS if p not in there)
            return engines, reasons
    graphs, missing = _graphs(bundle, options, stack)
    return graphs, {**reasons, **missing}


def _engines(
    bundle: Bundle, runtime: Flavour, options: BenchOptions, permit: Permit, stack: ExitStack
) -> list[Contender]:
    """One engine of each precision that was asked for.

    Raises:
        EnvironmentError_: there is none, or it does not run here.
    """
    here = available(runtime)
    if not here.can_run:
        raise EngineError(f"{runtime} engines do not run here ({here.reason})", hint=here.next_step or None)
    wanted = options.precisions or PRECISIONS
    found = [p for p in PRECISIONS if p in wanted and engines_of(bundle, runtime, p)]
    lacking = [precision for precision in options.precisions if precision not in found]
    if lacking or not found:
        what = f"holds no {' nor '.join(lacking) or runtime} engine for {runtime}"
        raise EngineError(what, where=bundle.path, hint="edgeres engine BUNDLE --also fp32 --also fp16")
    contenders = []
    for precision in found:
        record, engine = open_engine(bundle, runtime, precision, default_device(), permit=permit)
        contenders.append(Contender(precision, str(record.file), stack.enter_context(engine), engine))
    return contenders


def _graphs(bundle: Bundle, options: BenchOptions, stack: ExitStack) -> tuple[list[Contender], dict[str, str]]:
    """The graphs for this machine's CPU, and why one is missing.

    Raises:
        EnvironmentError_: a precision that was asked for is missing.
        BundleError: there is no graph at all.
    """
    contenders: list[Contender] = []
    reasons: dict[str, str] = {}
    for precision in dict.fromkeys(options.precisions or PRECISIONS):
        name = INTEGER.file if precision == "int8" else FP32
        try:
            file = graph_file(bundle, name, _BUILD_FOR_CPU)
            graph: Path | bytes = _half(file) if precision == "fp16" else file
        except EnvironmentError_ as error:
            if options.precisions:
                raise
            reasons[precision] = str(error)
            continue
        runner = stack.enter_context(OrtRunner(graph, threads=options.threads))
        contenders.append(Contender(precision, f"{name} in float16" if precision == "fp16" else name, runner))
    if not contenders:
        raise BundleError("has no graph for this machine's CPU", where=bundle.path, hint=_BUILD_FOR_CPU)
    return contenders, reasons


def _half(graph: Path) -> bytes:
    try:
        from edgeres.graph.half import to_fp16
        from edgeres.graph.normalize import load_onnx
    except ModuleNotFoundError as error:
        raise needs("export", "onnx") from error
    half: bytes = to_fp16(load_onnx(graph)).SerializeToString()
    return half
