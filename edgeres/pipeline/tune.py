"""Builds an engine of every form of a bundle on its device, measures them, and keeps the best.

A form that is not built, is wrong on the device or too inaccurate is passed over with its reason. Engines and recorded
latencies are kept in the user's cache until the choice is made, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeres.bench.board import Board, BoardState
from edgeres.bundle import ENGINES, FP32, PROBES, Bundle, is_of_bytes, log_of
from edgeres.data.preprocess import normalize
from edgeres.device.libraries import available
from edgeres.device.targets import Flavour, Target
from edgeres.engine.builder import BuiltEngine, Precision, build_engine
from edgeres.engine.engines import EngineChoice, graph_of
from edgeres.engine.inspector import count_kernels
from edgeres.errors import EdgeresError, EngineError, UsageError, why_left_out
from edgeres.pipeline.select import MIN_SQNR_DB, MeasuredForm, choose, on_probes, why_wrong
from edgeres.pipeline.trials import Budget, Kept, folder
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, EngineRecord, FormTrial, KernelCounts, Preprocess
from edgeres.runtime.engine import EngineFile, TensorRTRunner
from edgeres.runtime.memory import default_device
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.prepared import fed
from edgeres.runtime.probes import read_probes
from edgeres.runtime.rows import rows
from edgeres.verify.latency import measure_latency, percentile_ms

RANDOM_PROBES = 64
SCOPE = "host to host, batch 1"
DEFAULT_SECONDS = 1200


@dataclass(frozen=True)
class TuneChoice:
    """How the form of an engine is found.

    Attributes:
        form: name of the only form to build; None: every form, and the device decides.
        tune: whether forms are measured; False takes the bundle's default form.
        budget_seconds: for building and timing. Forms that do not fit are passed over; the first one is always built.
        min_sqnr_db: of the logits on the probes; a form below is passed over.
    """

    form: str | None = None
    tune: bool = True
    budget_seconds: float = DEFAULT_SECONDS
    min_sqnr_db: float = MIN_SQNR_DB

    def __post_init__(self) -> None:
        if not 0 < self.budget_seconds < math.inf:
            raise UsageError(f"a time budget is a number of seconds above 0, not {self.budget_seconds:g}")
        if not math.isfinite(self.min_sqnr_db):
            raise UsageError(f"the least SQNR is a number of decibels, not {self.min_sqnr_db:g}")


EVERY_FORM = TuneChoice()


@dataclass(frozen=True)
class FormFile:
    """A form to try; ``own_db`` is the SQNR of its graph on the host, None: unknown."""

    name: str
    precision: Precision
    graph: Path | bytes
    own_db: float | None = None


@dataclass
class _Tuning:
    """One run over the forms of one target."""

    target: Target
    runtime: Flavour
    choice: EngineChoice
    tune: TuneChoice
    progress: Progress
    budget: Budget
    kept: Kept
    built: dict[str, BuiltEngine] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, KernelCounts | None] = field(default_factory=dict)


def forms_to_try(bundle: Bundle, runtime: Flavour) -> list[FormFile]:
    """The forms of a bundle for a runtime, the default first, and FP16.

    Raises:
        BundleError: a graph is missing or was changed.
    """
    default = bundle.default_form(runtime)
    fit = [form for form in bundle.forms if runtime in form.runtimes]
    fit.sort(key=lambda form: default is None or form.name != default.name)
    return [FormFile(form.name, form.precision, bundle.for_engines(form.file), form.sqnr_db) for form in fit]


def tune_engines(
    bundle: Bundle, target: Target, choice: EngineChoice, tune: TuneChoice, progress: Progress = SILENT
) -> tuple[EngineRecord, ...]:
    """Measure the forms on this machine's GPU, add the best engine to the bundle, and the table of all forms.

    Beside the best engine, those in FP16 and FP32 are kept, which verification times it against, and the best in INT8.

    Raises:
        EngineError: no form gives an engine that is right.
        BundleError: the bundle is incomplete.
    """
    assert target.runtime != "onnxruntime"
    forms = [form for form in forms_to_try(bundle, target.runtime) if tune.form in (None, form.name)]
    if tune.form is None and not any(form.precision == "fp16" for form in forms):
        forms += _fp16_form(target.runtime, bundle, progress)
    reference = FormFile("fp32", "fp32", bundle.for_engines(FP32))
    files = _kept(target, choice, [*forms, reference], bundle.manifest.files[FP32])
    run = _Tuning(target, target.runtime, choice, tune, progress, Budget(tune.budget_seconds, progress), files)
    _build_all(run, forms)
    tried, clocks = _measure(run, forms, _probes(bundle), bundle.manifest.model.preprocess)
    if not tried:
        reasons = "; ".join(f"{name}: {why}" for name, why in run.reasons.items())
        raise EngineError(f"no form gives a right engine on this device ({reasons})", where=bundle.path)
    taken, why = choose(tried)
    best_int8 = [name for name in tried if tried[name].precision == "int8"]
    best = min(best_int8, key=lambda name: (name != taken, tried[name].time.p(50)), default=None)
    half = [name for name in tried if tried[name].precision == "fp16"]
    kept = {taken, best, min(half, key=lambda name: (name != taken, tried[name].time.p(50)), default=None)}
    records: dict[EngineRecord, bytes | None] = {}
    logs: dict[str, bytes] = {}
    for form in forms:
        record, data = _record(run, form, tried.get(form.name), why.get(form.name, ""), form.name in kept)
        if record.trial is not None:
            trial = replace(record.trial, chosen=form.name == taken, clocks=clocks if form.name in tried else "")
            record = replace(record, trial=trial)
        records[record] = data
        if record.file:
            logs[log_of(record.file)] = run.built[form.name].log_text.encode()
    _add_fp32(run, reference, records, logs)
    bundle.add_engines(records, logs)
    run.kept.forget()
    progress.say(f"{taken} is taken: {why[taken]}")
    return tuple(records)


def _fp16_form(runtime: Flavour, bundle: Bundle, progress: Progress) -> list[FormFile]:
    """FP16 of a bundle without such a graph; it needs onnx, which a device may not have."""
    try:
        graph = graph_of(bundle.path, "fp16", runtime, bundle.manifest.model.preprocess)
    except Exception as error:  # FP16 is one form of several
        progress.say(f"fp16: passed over: {why_left_out(error)}")
        return []
    return [FormFile("fp16", "fp16", graph)]


def _build_all(run: _Tuning, forms: list[FormFile]) -> None:
    for index, form in enumerate(forms):
        run.progress.say(f"form {index + 1} of {len(forms)}: {form.name}")
        _build(run, form, others=len(run.built))
        if form.name in run.reasons:
            run.progress.say(f"{form.name}: passed over: {run.reasons[form.name]}")


def _build(run: _Tuning, form: FormFile, others: int) -> None:
    """Build a form's engine, or take the one that an interrupted run has built, if it fits in beside ``others``."""
    request, path = run.choice.request_here(form.precision, run.target), run.kept.engines[form.name]
    if why := run.budget.why_not(others, is_built=path.is_file()):
        run.reasons[form.name] = f"not built: {why}"
        return
    version, gpu = available(run.runtime).version or "", available(run.runtime).gpu
    if path.is_file():
        run.progress.say(f"{form.name}: built by an earlier run")
        sm = (gpu.sm,) if gpu is not None and run.runtime == "tensorrt" else request.compute_capabilities
        run.built[form.name] = BuiltEngine(
            path.read_bytes(), request, run.runtime, version, request.batch, sm, 0.0, (), is_of_bytes(form.graph)
        )
        return
    try:
        with run.budget.building(others) as progress:
            run.built[form.name] = build_engine(form.graph, request, run.runtime, progress)
    except UsageError:
        raise
    except Exception as error:  # bindings of vendors raise anything; the other forms must not suffer
        run.reasons[form.name] = f"not built: {_why(error)}"
    else:
        run.kept.keep_engine(form.name, run.built[form.name].data)


def _why(error: Exception) -> str:
    """Why a form is passed over, without the path of its graph."""
    return error.what if isinstance(error, EdgeresError) else why_left_out(error)


def _kept(target: Target, choice: EngineChoice, forms: list[FormFile], network: str) -> Kept:
    """Where engines are kept until the choice is made: one file for each graph, request, version and GPU.

    Args:
        network: SHA-256 of the FP32 graph; it stands for weights that are in a file beside a form's graph.
    """
    assert target.runtime != "onnxruntime"
    here = available(target.runtime)

    def path(form: FormFile) -> Path:
        graph = form.graph if isinstance(form.graph, bytes) else form.graph.read_bytes()
        request = choice.request_here(form.precision, target)
        words = (hashlib.sha256(graph).hexdigest(), network, request, here.version, here.gpu)
        return folder() / f"{hashlib.sha256(repr(words).encode()).hexdigest()[:24]}.engine"

    return Kept({form.name: path(form) for form in forms})


class _ProbeRows(NamedTuple):
    """Inputs, rows of FP32's outputs for them, and the names of these outputs."""

    inputs: F32
    scores: F32
    outputs: tuple[str, ...]


def _probes(bundle: Bundle) -> _ProbeRows:
    """Inputs and FP32's logits for them: those in the bundle, else random ones that ONNX Runtime runs here."""
    names = tuple(bundle.manifest.shapes())
    if bundle.has(PROBES):
        known = read_probes(bundle)
        return _ProbeRows(known.inputs, known.scores, names)
    p = bundle.manifest.model.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (RANDOM_PROBES, *p.crop_px, p.channels), np.uint8)
    inputs = normalize(pixels, p)
    with OrtRunner(bundle.file(FP32)) as fp32:
        return _ProbeRows(inputs, rows(fp32.infer({fp32.input_name: inputs}), names), names)


def _measure(
    run: _Tuning, forms: list[FormFile], probes: _ProbeRows, p: Preprocess
) -> tuple[dict[str, MeasuredForm], str]:
    """Open every engine, hold it against the probes, and time those that are right, in alternating blocks."""
    inputs, reference, outputs = probes
    names = outputs if len(outputs) > 1 else ()  # an engine may call its only output otherwise
    board, found = Board(), dict[str, tuple[float, float]]()
    with ExitStack() as stack:
        runners: dict[str, TensorRTRunner] = {}
        for form in (form for form in forms if form.name in run.built):
            try:
                runner = stack.enter_context(_open(run, run.built[form.name]))
                run.kernels[form.name] = count_kernels(runner.layers())
                given = {runner.input_name: fed(runner, inputs, p)}
                scores = rows(runner.infer(given), names)
            except Exception as error:  # as above
                run.reasons[form.name] = f"does not run here: {_why(error)}"
                continue
            found[form.name] = on_probes(reference, scores.astype(np.float32))
            wrong = why_wrong(found[form.name][0], form.own_db, run.tune.min_sqnr_db)
            if not np.isfinite(scores).all():
                wrong = "wrong on this device: it gives scores that are not finite"
            if wrong:
                run.reasons[form.name] = wrong
                run.progress.say(f"{form.name}: passed over: {wrong}")
            else:
                runners[form.name] = runner
        if not runners:
            return {}, ""
        before = board.look()
        with run.kept.turns({name: run.built[name].data for name in runners}) as turns:
            plan = run.budget.plan(SCOPE, len(runners))
            times = measure_latency(
                runners,
                lambda runner: {runner.input_name: fed(runner, inputs[:1], p)},
                plan,
                run.progress,
                turns,
            )
        clocks = _clocks(before, board.look())
    precisions = {form.name: form.precision for form in forms}
    return {name: MeasuredForm(precisions[name], *found[name], time) for name, time in times.items()}, clocks


def _open(run: _Tuning, built: BuiltEngine) -> TensorRTRunner:
    record, digest = built.record(run.target.name, None), hashlib.sha256(built.data).hexdigest()
    return TensorRTRunner(EngineFile(built.data, run.runtime, record, None, digest), device=default_device())


def _clocks(before: BoardState, after: BoardState) -> str:
    """The GPU's clock before and after, in words; "" where the board does not report it."""
    if before.gpu_hz is None or after.gpu_hz is None:
        return ""
    fixed = ", fixed" if after.clocks_locked else ""
    mode = f", {after.power_mode}" if after.power_mode else ""
    return f"GPU at {before.gpu_hz / 1e6:.0f} to {after.gpu_hz / 1e6:.0f} MHz{fixed}{mode}"


def _record(
    run: _Tuning, form: FormFile, tried: MeasuredForm | None, why: str, is_kept: bool
) -> tuple[EngineRecord, bytes | None]:
    """The manifest's entry of one form, and the engine if it is kept."""
    built, reason = run.built.get(form.name), run.reasons.get(form.name, "")
    trial = FormTrial(form.name, chosen=False, why=why or reason, kernels=run.kernels.get(form.name))
    if built is None:
        version = available(run.runtime).version or ""
        return EngineRecord(run.target.name, run.runtime, version, form.precision, reason, trial=trial), None
    if tried is not None:
        trial = _measured(trial, tried)
    file = f"{ENGINES}/{built.file_name}" if is_kept else None
    status = "built and measured here" if is_kept else "built and measured here, not kept" if tried else reason
    return replace(built.record(run.target.name, file, status), trial=trial), built.data if file else None


def _measured(trial: FormTrial, tried: MeasuredForm) -> FormTrial:
    median = percentile_ms(tried.time, 50)
    sqnr = tried.sqnr_db if math.isfinite(tried.sqnr_db) else None
    limits = (median.low, median.high)
    return replace(trial, p50_ms=median.value, p50_ms_ci95=limits, sqnr_db=sqnr, agreement=tried.agreement)


def _add_fp32(run: _Tuning, form: FormFile, records: dict[EngineRecord, bytes | None], logs: dict[str, bytes]) -> None:
    """Keep an engine in FP32, which verification takes as the reference of accuracy and latency on the device."""
    _build(run, form, others=1)
    if form.name in run.built:
        built = run.built[form.name]
        record = built.record(run.target.name, f"{ENGINES}/{built.file_name}")
        records[record] = built.data
        logs[log_of(str(record.file))] = built.log_text.encode()
    else:
        run.progress.say(f"fp32: {run.reasons[form.name]}")
