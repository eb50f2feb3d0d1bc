"""report.json: every figure of a build, what it was measured on, and the verdict.

The shape never changes: a figure that was not measured is null, and ``reasons`` says why, under the figure's dotted
path or that of a group it belongs to (``"accuracy": "the validation source has no labels"``). ``schema.json`` beside
this file describes all of it; the terminal table and the HTML page are drawn from the document alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from edgeres._version import __version__
from edgeres.data.pixels import Pixels
from edgeres.judge.baseline import Baseline
from edgeres.judge.checks import Check, Evidence, check
from edgeres.judge.codec import pack
from edgeres.judge.gates import METRICS, Limits, judge
from edgeres.judge.regression import Run, hold_against
from edgeres.records import F64, Accuracy, EngineRecord, Gate, Measurement, ModelSpec, QuantPlan, Verdict
from edgeres.verify.accuracy import TOP_K, Answers, Comparison
from edgeres.verify.latency import drift_percent, noise, percentile_ms, speedup, variation_percent
from edgeres.verify.layer_noise import Anatomy
from edgeres.verify.statistics import Estimate, mcnemar_mid_p, proportion_percent

SCHEMA = 2
HISTOGRAM_BINS = 80
CONFUSIONS = 50

Json = dict[str, Any]

_LIMIT_NAMES = frozenset(f.name for f in fields(Limits)) | {"limits", "baseline", "any_machine"}
_HITS = ("top1", "top1_ci95", "top5", "correct", "total", "runner")
_PAIRED = (
    "drop_pp",
    "drop_pp_ci95",
    "lost",
    "gained",
    "mcnemar_p",
    "agreement",
    "agreement_ci95",
    "logit_sqnr_db",
    "logit_sqnr_db_ci95",
)
_TIMES = (
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "p99_ms_ci95",
    "throughput_ips",
    "iterations",
    "variation_percent",
    "drift_percent",
)
# What was asked of a run says nothing about how a bundle was made.
_NO_FACTS = frozenset(
    {
        *("model", "weights", "labels", "output", "validation", "validation_size", "calibration"),
        *("scheduler", "thumbnails"),
    }
)


@dataclass(frozen=True)
class DataRecord:
    """A data source as it was used.

    Attributes:
        images: that were read and counted.
        unreadable: names of those that could not be decoded.
        pixels: what they look like on average; None where nobody looked.
    """

    description: str
    sha256: str
    images: int
    unreadable: tuple[str, ...] = ()
    pixels: Pixels | None = None


@dataclass(frozen=True)
class CalibrationRecord:
    """How ranges were found; ``images`` come from ``data`` in batches of ``batch_size``."""

    data: DataRecord
    method: str
    batch_size: int


@dataclass(frozen=True)
class ReportInput:
    """Everything a report is made of. What is None was not done; ``reasons`` then says why.

    Attributes:
        created: time in ISO 8601 with its zone.
        command: one line that reproduces the build; ``options`` are all its options with their values.
        export: ``max_error`` of the FP32 graph to where it came from, as a share of the largest output, and ``notes``.
        headline: the candidate in ``comparison`` that ``accuracy.int8`` reports and ``latency`` measured.
        plans: quantization plans by style.
        latency: measurements taken in one run, under ``fp32`` and ``int8``.
        sizes: bytes of the ONNX graphs: ``fp32``, and each candidate by its name.
        refinement: what each refinement brought, kept or not: see :class:`edgeres.refine.recipe.Step`.
        residual: precision of each block's skip and what it costs: see :class:`edgeres.refine.residual.SkipCost`.
        timings: wall time of each stage in seconds.
        reasons: why something was not measured, by its dotted path in the report (``accuracy``, ``latency``).
        limits: how gates and checks that do not pass are taken; ``gates`` are those that are judged.
        baseline: the last accepted build.
        built: the report of the build, where an earlier bundle is verified; None where this run builds it.
        anatomy: by graph; None where nobody looked inside, ``reasons`` then says why.
        files: SHA-256 of the bundle's graphs and engines, by path.
        thumbnails: JPEG files in base64, by the image's name.
    """

    created: str
    command: str
    options: Mapping[str, Any]
    environment: Mapping[str, str]
    model: ModelSpec
    headline: str
    export: Mapping[str, Any] | None = None
    gates: tuple[Gate, ...] = ()
    validation: DataRecord | None = None
    calibration: CalibrationRecord | None = None
    plans: Mapping[str, QuantPlan] = field(default_factory=dict)
    comparison: Comparison | None = None
    latency: Mapping[str, Measurement] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    engines: tuple[EngineRecord, ...] = ()
    refinement: tuple[Mapping[str, Any], ...] = ()
    residual: tuple[Mapping[str, Any], ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    baseline: Baseline | None = None
    built: Mapping[str, Any] | None = None
    anatomy: Mapping[str, Anatomy] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    thumbnails: Mapping[str, str] = field(default_factory=dict)


def build_report(data: ReportInput) -> Json:
    """The content of report.json, judged: plain JSON types, no NaN, no infinity."""
    reasons = dict(data.reasons)
    made = data.built.get("facts", {}) if data.built is not None else _facts(data)
    facts: Json = json.loads(json.dumps(made))  # lists for tuples, as the facts of a baseline are
    figures: Json = {
        "accuracy": _accuracy(data, reasons),
        "latency": _latency(data.latency, reasons),
        "sizes": _sizes(data, reasons),
        "reasons": reasons,
    }
    validation = data.validation.sha256 if data.validation else None
    run = Run(data.comparison, validation, data.model.labels, figures["latency"], data.environment, facts)
    figures["baseline"] = hold_against(data.baseline, run, reasons)
    if data.baseline is None:
        reasons.setdefault("baseline", "no baseline was given")
    verdicts = [_verdict(verdict, data.limits) for verdict in judge(data.gates, figures)]
    checks = [_check(found, data.limits) for found in check(_evidence(data, figures["baseline"]))]
    report = {
        "schema": SCHEMA,
        "edgeres": __version__,
        "created": data.created,
        **_outcome(verdicts, checks, data.limits),
        "verdicts": verdicts,
        "checks": checks,
        "model": data.model.to_dict() | {"num_classes": data.model.num_classes},
        "export": _export(data.export, reasons),
        "data": _data(data, reasons),
        "calibration": _calibration(data.calibration, reasons),
        "quantization": {style: _plan(plan) for style, plan in data.plans.items()},
        "refinement": [dict(step) for step in data.refinement],
        "residual": [dict(cost) for cost in data.residual],
        **figures,
        "anatomy": {name: _anatomy(graph) for name, graph in (data.anatomy or {}).items()},
        "engines": [engine.to_dict() for engine in data.engines],
        "files": dict(data.files),
        "facts": facts,
        "thumbnails": dict(data.thumbnails),
        "timings_seconds": dict(data.timings),
        "environment": dict(data.environment),
        "command": data.command,
        "options": dict(data.options),
    }
    # As read from disk: lists for tuples, and file names that are no UTF-8 with their odd bytes as "?"
    plain: Json = json.loads(to_json(report).encode(errors="replace"))
    return plain


def to_json(report: Json) -> str:
    """The text of report.json: strict JSON, readable, UTF-8."""
    return json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _outcome(verdicts: list[Json], checks: list[Json], limits: Limits) -> Json:
    """``passed`` decides the exit code, ``outcome`` tells whether anything is open."""
    outcomes = {verdict["outcome"] for verdict in verdicts}
    failed = "failed" in outcomes or any(found["outcome"] == "failed" and not found["allowed"] for found in checks)
    unsure = "unsure" in outcomes
    return {
        "passed": not failed and not (unsure and limits.on_unsure == "fail"),
        "outcome": "failed" if failed else "unsure" if unsure else "passed",
        "on_unsure": limits.on_unsure,
    }


def _verdict(verdict: Verdict, limits: Limits) -> Json:
    metric = METRICS[verdict.gate.metric]
    return verdict.to_dict() | {
        "passed": verdict.outcome == "passed" or (verdict.outcome == "unsure" and limits.on_unsure == "warn"),
        "title": metric.title,
        "bound": metric.bound,
        "rule": metric.words(verdict.gate.limit),
    }


def _check(found: Check, limits: Limits) -> Json:
    return asdict(found) | {"allowed": found.name in limits.allow}


def _evidence(data: ReportInput, baseline: Json | None) -> Evidence:
    built = (data.built or {}).get("data", {}).get("calibration") or {}
    pixels = Pixels.from_dict(built["pixels"]) if built.get("pixels") else None
    if data.calibration is not None:
        pixels = data.calibration.data.pixels
    then = [files for files in ((data.built or {}).get("files"), _baseline_files(data.baseline)) if files]
    return Evidence(
        labels=data.model.labels,
        comparison=data.comparison,
        calibration=pixels,
        anatomy=data.anatomy or {},
        not_dissected=data.reasons.get("anatomy", "nobody looked inside in this run"),
        baseline=baseline,
        engines=data.engines,
        files=data.files,
        files_then=then,
    )


def _baseline_files(baseline: Baseline | None) -> Mapping[str, str] | None:
    return None if baseline is None else baseline.document["files"]


def _facts(data: ReportInput) -> Json:
    """How the bundle was made, flat, for comparing builds by name."""
    facts: Json = {
        "model": data.model.name,
        "weights": data.model.weights,
        "weights sha256": data.model.weights_sha256,
        "labels": list(data.model.labels),
        **{f"preprocessing {key}": value for key, value in data.model.preprocess.to_dict().items()},
        **{f"option {key}": value for key, value in data.options.items() if key not in _NO_FACTS | _LIMIT_NAMES},
    }
    if data.calibration is not None:
        facts["calibration images"] = data.calibration.data.sha256
        facts["calibration source"] = data.calibration.data.description
    for style, plan in data.plans.items():
        facts[f"{style} graph, quantized activations"] = len(plan.edges)
        facts[f"{style} graph, left in float"] = len(plan.skipped)
    return facts | {f"built with {name}": version for name, version in data.environment.items()}


def _anatomy(anatomy: Anatomy) -> Json:
    plain = anatomy.to_dict()
    for fit in plain["ranges"]:  # a tensor that was zero on every image has no ratio
        fit["own_db"] = fit["own_db"] if math.isfinite(fit["own_db"]) else None
    return plain


def _export(export: Mapping[str, Any] | None, reasons: dict[str, str]) -> Json:
    if export is None:
        reasons.setdefault("export", "nothing was exported in this run")
        return dict.fromkeys(("max_error", "notes"))
    return dict(export)


def _data(data: ReportInput, reasons: dict[str, str]) -> Json:
    if data.validation is None:
        reasons.setdefault("data.validation", "no validation source was given")
    if data.calibration is None:
        reasons.setdefault("data.calibration", "nothing was calibrated in this run")
    sources = {
        "validation": asdict(data.validation) if data.validation else None,
        "calibration": asdict(data.calibration.data) if data.calibration else None,
    }
    for role, source in sources.items():
        if source and source["pixels"] is None:
            reasons.setdefault(f"data.{role}.pixels", "nobody looked at the images")
    return sources


def _calibration(record: CalibrationRecord | None, reasons: dict[str, str]) -> Json:
    if record is None:
        reasons.setdefault("calibration", "nothing was calibrated in this run")
        return dict.fromkeys(("method", "images", "batch_size"))
    return {"method": record.method, "images": record.data.images, "batch_size": record.batch_size}


def _plan(plan: QuantPlan) -> Json:
    return {
        "activations": len(plan.edges),
        "weights": len(plan.weights),
        "skipped": [asdict(skipped) for skipped in plan.skipped],
        "calibration_digest": plan.calibration_digest,
    }


def _accuracy(data: ReportInput, reasons: dict[str, str]) -> Json:
    comparison = data.comparison
    if comparison is None:
        reasons.setdefault("accuracy", "nothing was compared in this run")
        empty = dict.fromkeys(_HITS)
        return {
            "graph": None,
            "fp32": empty,
            "int8": empty,
            **dict.fromkeys(_PAIRED),
            "images": 0,
            "per_class": None,
            "graphs": {},
            "answers": None,
        }
    if not comparison.labelled:
        reasons.setdefault("accuracy", "the validation source has no labels")
    headline = comparison.candidates[data.headline]
    return {
        "graph": data.headline,
        "fp32": _hits(comparison, comparison.reference, "accuracy.fp32", reasons),
        "int8": _hits(comparison, headline, "accuracy.int8", reasons),
        **_paired(comparison, data.headline, "accuracy", reasons),
        "images": comparison.images,
        "per_class": _per_class(comparison, data.headline),
        "graphs": {name: _graph(data, comparison, name, reasons) for name in comparison.candidates},
        "answers": {
            "labels": pack(comparison.labels),
            "fp32": pack(comparison.reference.predicted),
            **{name: pack(answers.predicted) for name, answers in comparison.candidates.items()},
        },
    }


def _hits(comparison: Comparison, answers: Answers, path: str, reasons: dict[str, str]) -> Json:
    accuracy: Accuracy | None = comparison.accuracy(answers)
    if accuracy is None:
        return dict.fromkeys(_HITS) | {"runner": answers.runner}
    few_classes = comparison.num_classes <= TOP_K
    if few_classes:
        reasons[f"{path}.top5"] = f"top-5 says nothing about {comparison.num_classes} classes"
    return {
        "top1": accuracy.top1,
        "top1_ci95": _ci(proportion_percent(accuracy.correct, accuracy.total)),
        "top5": None if few_classes else accuracy.top5,
        "correct": accuracy.correct,
        "total": accuracy.total,
        "runner": answers.runner,
    }


def _paired(comparison: Comparison, name: str, path: str, reasons: dict[str, str]) -> Json:
    lost, gained = len(comparison.lost(name)), len(comparison.gained(name))
    drop, agreement = comparison.drop_pp(name), comparison.agreement(name)
    sqnr, limits = comparison.candidates[name].sqnr_db, comparison.candidates[name].sqnr_db_ci95
    if sqnr is None or not math.isfinite(sqnr):
        reasons[f"{path}.logit_sqnr_db"] = "no finite ratio: the logits equal those of FP32, or FP32's are all zero"
        sqnr = limits = None
    if limits is None:
        reasons.setdefault(f"{path}.logit_sqnr_db_ci95", "one image, or no finite ratio")
    return {
        "drop_pp": drop.value if drop else None,
        "drop_pp_ci95": _ci(drop) if drop else None,
        "lost": lost if drop else None,
        "gained": gained if drop else None,
        "mcnemar_p": mcnemar_mid_p(lost, gained) if drop else None,
        "agreement": agreement.value,
        "agreement_ci95": _ci(agreement),
        "logit_sqnr_db": sqnr,
        "logit_sqnr_db_ci95": list(limits) if limits else None,
    }


def _graph(data: ReportInput, comparison: Comparison, name: str, reasons: dict[str, str]) -> Json:
    answers = comparison.candidates[name]
    path = f"accuracy.graphs.{name}"
    falls = comparison.falls(name)
    oracle = None if "TensorRT" in answers.runner else {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}.get(name)
    return {
        **_hits(comparison, answers, path, reasons),
        **_paired(comparison, name, path, reasons),
        "images": comparison.images,
        "same": int((answers.predicted == comparison.reference.predicted).sum()),
        "classes": falls.to_dict(data.model.labels) if falls else None,
        "confusions": [asdict(confusion) for confusion in comparison.confusions(name)[:CONFUSIONS]],
        "note": f"graph for {oracle}, measured on {answers.runner} as its oracle" if oracle else "",
        "lost_images": [asdict(image) for image in comparison.lost(name)],
        "gained_images": [asdict(image) for image in comparison.gained(name)],
    }


def _per_class(comparison: Comparison, headline: str) -> list[Json] | None:
    if not comparison.labelled:
        return None
    columns = (
        comparison.class_sizes,
        comparison.per_class(comparison.reference),
        comparison.per_class(comparison.candidates[headline]),
    )
    rows = enumerate(zip(*(column.tolist() for column in columns), strict=True))
    return [{"class": i, "total": n, "fp32": fp32, "int8": int8} for i, (n, fp32, int8) in rows if n]


def _latency(measured: Mapping[str, Measurement] | None, reasons: dict[str, str]) -> Json:
    if measured is None:
        reasons.setdefault("latency", "latency was not measured in this run")
        head = ("backend", "scope", "batch", "warmup_seconds", "speedup", "speedup_ci95", "histogram")
        return {**dict.fromkeys(head), "fp32": dict.fromkeys(_TIMES), "int8": dict.fromkeys(_TIMES), "noise": []}
    fp32, int8 = measured["fp32"], measured["int8"]
    ratio = speedup(fp32, int8)
    return {
        "backend": int8.backend,
        "scope": int8.scope,
        "batch": int8.batch,
        "warmup_seconds": int8.warmup_seconds,
        "fp32": _times(fp32),
        "int8": _times(int8),
        "speedup": ratio.value,
        "speedup_ci95": _ci(ratio),
        "noise": [f"{name}: {what}" for name, m in (("FP32", fp32), ("INT8", int8)) for what in noise(m)],
        "histogram": _histogram(fp32.seconds, int8.seconds),
    }


def _times(m: Measurement) -> Json:
    p99 = percentile_ms(m, 99)
    spread = variation_percent(m), drift_percent(m)
    values = (m.p(50), m.p(90), p99.value, _ci(p99), m.throughput_ips, len(m.seconds), *spread)
    return dict(zip(_TIMES, values, strict=True))


def _histogram(fp32: F64, int8: F64) -> Json:
    """Counts in bins of equal width from zero, the same for both; the last bin also holds all that took longer.

    On a machine that others use, the 99th percentile may be theirs: no more than four medians are drawn.
    """
    top = 1.1e3 * max(min(np.percentile(seconds, 99), 4 * np.median(seconds)) for seconds in (fp32, int8))
    width = top / HISTOGRAM_BINS

    def counts(seconds: F64) -> list[int]:
        bins = np.minimum(1e3 * seconds / width, HISTOGRAM_BINS - 1).astype(np.int64)
        found: list[int] = np.bincount(bins, minlength=HISTOGRAM_BINS).tolist()
        return found

    return {"bin_ms": float(width), "fp32": counts(fp32), "int8": counts(int8)}


def _sizes(data: ReportInput, reasons: dict[str, str]) -> Json:
    fp32, int8 = data.sizes.get("fp32"), data.sizes.get(data.headline)
    if fp32 is None or int8 is None:
        reasons.setdefault("sizes", "this graph was not written in this run")
    candidates = {name: size for name, size in data.sizes.items() if name != "fp32"}
    engines = {_engine_name(e): e.size_bytes for e in data.engines if e.precision == "int8" and e.file}
    deployed = {**{f"{name} graph": size for name, size in candidates.items()}, **engines}
    each = {f"int8_{name}_bytes": size for name, size in candidates.items()}
    return {"fp32_bytes": fp32, "int8_bytes": int8, **each, "deployed_bytes": deployed}


def _engine_name(engine: EngineRecord) -> str:
    """``rtx engine sm86``; without dots, which part the path of a figure."""
    made_for = "".join(f" sm{capability}" for capability in engine.portability.compute_capabilities)
    return f"{engine.target} engine{made_for}".replace(".", "")


def _ci(estimate: Estimate) -> list[float]:
    return [estimate.low, estimate.high]
