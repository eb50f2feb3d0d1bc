"""What is measured: the bundle's engines where they run here, else its graphs on the CPU."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeres.bundle import FP32, Bundle
from edgeres.device.libraries import MODULES, Flavour, available
from edgeres.errors import BundleError, EngineError, EnvironmentError_, UsageError
from edgeres.graph.forms import FORMS
from edgeres.records import EngineRecord
from edgeres.runtime.choose import first_that_runs
from edgeres.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from edgeres.runtime.engine import TensorRTRunner
    from edgeres.runtime.runner import Runner

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
Backend = Literal["auto", "tensorrt", "rtx", "cpu"]


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        backend: ``auto`` takes the bundle's engines where they run here, else the CPU.
        precisions: empty: all that the bundle has or can give.
        batch: images per inference.
        threads: of one operator on the CPU; 0 takes every core.
        warmup_seconds, min_seconds, min_iterations: of each precision.
        power_seconds: of each precision alone, where the board tells its power.
        seed: of the random images that are fed, as trtexec feeds them.
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


def check(options: BenchOptions) -> None:
    """Refuse what cannot be measured.

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
class Lane:
    """One precision, ready to be measured; ``engine`` is its runner where that is on a GPU."""

    precision: Precision
    file: str
    runner: Runner
    engine: TensorRTRunner | None = None


def open_lanes(bundle: Bundle, options: BenchOptions, stack: ExitStack) -> tuple[list[Lane], dict[str, str]]:
    """The engines that run here, or the graphs for the CPU; and why a precision is missing."""
    reasons: dict[str, str] = {}
    built = {record.runtime for record in bundle.manifest.engines if record.file}
    for flavour in MODULES:
        if options.backend != flavour and (options.backend != "auto" or flavour not in built):
            continue
        try:
            lanes = _engines(bundle, flavour, options, stack)
        except EnvironmentError_ as error:
            if options.backend == flavour:
                raise
            reasons[flavour] = str(error)
        else:
            there = {lane.precision for lane in lanes}
            reasons.update((p, "the bundle has no such engine") for p in PRECISIONS if p not in there)
            return lanes, reasons
    lanes, missing = _graphs(bundle, options, stack)
    return lanes, {**reasons, **missing}


def _engines(bundle: Bundle, flavour: Flavour, options: BenchOptions, stack: ExitStack) -> list[Lane]:
    """One engine of each precision that was asked for.

    Raises:
        EnvironmentError_: there is none, or it does not run here.
    """
    here = available(flavour)
    if not here.can_run:
        raise EngineError(f"{flavour} engines do not run here ({here.reason})", hint=here.next_step or None)
    found: dict[Precision, list[EngineRecord]] = {}
    for record in bundle.manifest.engines:
        kept = record.runtime == flavour and record.file and bundle.has(record.file)
        if kept and record.precision in (options.precisions or PRECISIONS):
            found.setdefault(record.precision, []).append(record)
    lacking = [precision for precision in options.precisions if precision not in found]
    if lacking or not found:
        what = f"holds no {' nor '.join(lacking) or flavour} engine for {flavour}"
        raise EngineError(what, where=bundle.path, hint="edgeres engine BUNDLE --also fp32 --also fp16")
    sm = here.gpu.sm if here.gpu else ""
    lanes = []
    for precision in (precision for precision in PRECISIONS if precision in found):
        record, engine = first_that_runs(found[precision], sm, partial(_open, bundle, flavour))
        lanes.append(Lane(precision, str(record.file), stack.enter_context(engine), engine))
    return lanes


def _open(bundle: Bundle, flavour: Flavour, record: EngineRecord) -> TensorRTRunner:
    from edgeres.runtime.engine import EngineFile, TensorRTRunner

    file = str(record.file)
    return TensorRTRunner(EngineFile(bundle.file(file), flavour, record, sha256=bundle.manifest.files[file]))


def _graphs(bundle: Bundle, options: BenchOptions, stack: ExitStack) -> tuple[list[Lane], dict[str, str]]:
    """The graphs for this machine's CPU, and why one is missing; what was asked for by name must be there."""
    lanes: list[Lane] = []
    reasons: dict[str, str] = {}
    for precision in dict.fromkeys(options.precisions or PRECISIONS):
        name = FORMS["cpu"].file if precision == "int8" else FP32
        try:
            file = bundle.file(name) if bundle.has(name) else None
            if file is None:
                raise EnvironmentError_(
                    f"the bundle has no {name}", where=bundle.path, hint="build it with --target cpu"
                )
            graph: Path | bytes = _half(file) if precision == "fp16" else file
        except EnvironmentError_ as error:
            if options.precisions:
                raise
            reasons[precision] = str(error)
            continue
        shown = f"{name} in float16" if precision == "fp16" else name
        lanes.append(Lane(precision, shown, stack.enter_context(OrtRunner(graph, threads=options.threads))))
    if not lanes:
        raise BundleError("has no graph for this machine's CPU", where=bundle.path, hint="build it with --target cpu")
    return lanes, reasons


def _half(graph: Path) -> bytes:
    from edgeres.errors import needs
    from edgeres.graph.half import to_fp16

    try:
        from edgeres.graph.normalize import load_onnx
    except ModuleNotFoundError as error:
        raise needs("export", "onnx") from error
    half: bytes = to_fp16(load_onnx(graph)).SerializeToString()
    return half
