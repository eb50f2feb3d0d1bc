"""Makes the sections of a report: figures as plain JSON, and a reason for every figure that is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from edgeres.device.targets import RUNTIME_TITLES
from edgeres.graph.forms import FORMS
from edgeres.judge.document import Json, Section, is_measurable
from edgeres.made import Made, Making
from edgeres.records import F64, EngineRecord, Measurement, QuantPlan
from edgeres.verify.accuracy import TOP_K, Comparison
from edgeres.verify.answers import REFERENCE, pack_power
from edgeres.verify.device import EngineSample, FrameSample
from edgeres.verify.latency import cpu_speedup, drift_percent, noise, percentile_ms, speedup, variation_percent
from edgeres.verify.layer_noise import LayerNoise
from edgeres.verify.measure import Measured
from edgeres.verify.statistics import Estimate, mcnemar_mid_p, proportion_percent

HISTOGRAM_BINS = 80
CONFUSIONS = 50

_HITS = ("top1", "top1_ci95", "top5", "correct", "total", "runner")
_DROP = ("drop_pp", "drop_pp_ci95", "lost", "gained", "mcnemar_p")
_PAIRED = (*_DROP, "agreement", "agreement_ci95", "logit_sqnr_db", "logit_sqnr_db_ci95")
_MILLISECONDS = ("p50_ms", "p90_ms", "p99_ms", "p99_ms_ci95")
_SPEEDUP = ("speedup", "speedup_ci95", "cpu_speedup", "cpu_speedup_ci95", "measurable")
_TIMES = (*_MILLISECONDS, "throughput_ips", "iterations", "variation_percent", "drift_percent")


def accuracy_section(measured: Measured, made: Made) -> Section:
    """Top-1 and top-5 of FP32 and each candidate, and the candidates' losses against FP32."""
    comparison, headline = measured.comparison, measured.headline
    if comparison is None:
        empty = dict.fromkeys(_HITS)
        nothing: Json = {"graph": None, "fp32": empty, "int8": empty, **dict.fromkeys(_PAIRED)}
        more: Json = {"images": 0, "per_class": None, "graphs": {}, "answers": None, "power": None}
        return Section(nothing | more, {"": "no images were compared in this run"})
    fp32, int8, paired = _hits(comparison, REFERENCE), _hits(comparison, headline), _paired(comparison, headline)
    graphs = {name: _graph(comparison, name, made) for name in comparison.table.candidates}
    power, reasons = packed_power(comparison), dict(paired.reasons)
    for path, part in {"fp32": fp32, "int8": int8, **{f"graphs.{name}": graphs[name] for name in graphs}}.items():
        reasons |= part.reasons_below(path)
    if not comparison.table.labelled:
        reasons[""] = "the validation source has no labels"
    content = {
        "graph": headline,
        "fp32": fp32.content,
        "int8": int8.content,
        **paired.content,
        "images": comparison.images,
        "per_class": _per_class(comparison, headline),
        "graphs": {name: graph.content for name, graph in graphs.items()},
        "answers": comparison.table.pack(),
        "power": power,
        **_device(comparison),
    }
    if power is None:
        reasons["power"] = "the noise of each image was not measured"
    return Section(content, reasons)


def _device(comparison: Comparison) -> Json:
    """Where FP32's answers come from, each engine beside its graph, frames beside prepared images; what there is."""
    device = comparison.device
    frames = {name: _sampled(one) for name, one in device.frames.items()}
    found: Json = {"frames": frames} if frames else {}
    if device.samples:
        found["reference"] = device.reference
        found["engines"] = {name: _sampled(one) for name, one in device.samples.items()}
    return found


def _sampled(sample: EngineSample | FrameSample) -> Json:
    """One engine beside what it is held against; an SQNR that is not finite is null: both gave the same logits."""
    plain = asdict(sample) | {"parted": list(sample.parted), "agrees": sample.agrees}
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in plain.items()}


def packed_power(comparison: Comparison) -> dict[str, str] | None:
    """The power of each image's logits and noise, by column of the answers; None where it was not measured."""
    columns = {name: scored.power for name, scored in comparison.scored.items()}
    packed = {name: pack_power(power) for name, power in columns.items() if power is not None}
    return packed if len(packed) == len(columns) else None


def _hits(comparison: Comparison, name: str) -> Section:
    accuracy, runner = comparison.accuracy(name), comparison.scored[name].runner
    if accuracy is None:
        return Section(dict.fromkeys(_HITS) | {"runner": runner})
    classes = comparison.table.num_classes
    few_classes = classes <= TOP_K
    correct, total, top5 = accuracy.correct, accuracy.total, None if few_classes else accuracy.top5
    values = (accuracy.top1, _ci(proportion_percent(correct, total)), top5, correct, total, runner)
    content = dict(zip(_HITS, values, strict=True))
    return Section(content, {"top5": f"top-5 is not meaningful with {classes} classes"} if few_classes else {})


def _paired(comparison: Comparison, name: str) -> Section:
    table, scored = comparison.table, comparison.scored[name]
    lost, gained = int(table.lost(name).sum()), int(table.gained(name).sum())
    drop, agreement = table.drop_pp(name), table.agreement(name)
    sqnr, limits = scored.sqnr_db, scored.sqnr_db_ci95
    reasons = {}
    if sqnr is None or not math.isfinite(sqnr):
        reasons["logit_sqnr_db"] = "not finite: the logits equal FP32's, or FP32's are all zero"
        sqnr = limits = None
    if limits is None:
        reasons["logit_sqnr_db_ci95"] = "the SQNR is not finite, or there is only one image"
    tested = (drop.value, _ci(drop), lost, gained, mcnemar_mid_p(lost, gained)) if drop else (None,) * len(_DROP)
    values = (*tested, agreement.value, _ci(agreement), sqnr, list(limits) if limits else None)
    return Section(dict(zip(_PAIRED, values, strict=True)), reasons)


def _graph(comparison: Comparison, name: str, made: Made) -> Section:
    table, runner = comparison.table, comparison.scored[name].runner
    hits, paired, falls = _hits(comparison, name), _paired(comparison, name), table.falls(name)
    form = FORMS.get(name)
    stands_in_for = RUNTIME_TITLES[form.runtime] if form and not form.integer and "TensorRT" not in runner else None
    content = {
        **hits.content,
        **paired.content,
        "images": comparison.images,
        "same": table.same(name),
        "classes": falls.to_dict(made.model.labels) if falls else None,
        "confusions": [asdict(confusion) for confusion in table.confusions(name)[:CONFUSIONS]],
        "note": f"graph for {stands_in_for}, computed on {runner} as a stand-in" if stands_in_for else "",
        "lost_images": [asdict(image) for image in comparison.disagreements(name, table.lost(name))],
        "gained_images": [asdict(image) for image in comparison.disagreements(name, table.gained(name))],
    }
    return Section(content, {**hits.reasons, **paired.reasons})


def _per_class(comparison: Comparison, headline: str) -> list[Json] | None:
    table = comparison.table
    if not table.labelled:
        return None
    columns = (table.class_sizes, table.hits(REFERENCE), table.hits(headline))
    rows = enumerate(zip(*(column.tolist() for column in columns), strict=True))
    return [{"class": i, "total": n, "fp32": fp32, "int8": int8} for i, (n, fp32, int8) in rows if n]


def latency_section(measured: Mapping[str, Measurement] | None) -> Section:
    """Latency of FP32 and INT8, measured in one run."""
    if measured is None:
        head = ("backend", "scope", "batch", "warmup_seconds", *_SPEEDUP, "histogram")
        times: Json = {"fp32": dict.fromkeys(_TIMES), "int8": dict.fromkeys(_TIMES), "noise": []}
        return Section({**dict.fromkeys(head), **times}, {"": "latency was not measured in this run"})
    fp32, fp16, int8 = (measured.get(name) for name in ("fp32", "fp16", "int8"))
    any_ = next(iter(measured.values()))
    ratio, cpu_ratio = _ratio(fp32, int8), cpu_speedup(fp32, int8) if fp32 and int8 else None
    over_fp16 = _ratio(fp16, int8)
    content = {
        **{name: getattr(any_, name) for name in ("backend", "scope", "batch", "warmup_seconds")},
        "fp32": _times(fp32),
        **({"fp16": _times(fp16)} if fp16 else {}),
        "int8": _times(int8),
        "speedup": ratio.value if ratio else None,
        "speedup_ci95": _ci(ratio) if ratio else None,
        **({"speedup_fp16": over_fp16.value, "speedup_fp16_ci95": _ci(over_fp16)} if over_fp16 else {}),
        "cpu_speedup": cpu_ratio.value if cpu_ratio else None,
        "cpu_speedup_ci95": _ci(cpu_ratio) if cpu_ratio else None,
        "measurable": is_measurable(ratio.value, cpu_ratio.value) if ratio and cpu_ratio else None,
        "noise": [f"{name.upper()}: {reason}" for name, m in measured.items() for reason in noise(m)],
        "histogram": _histogram(fp32.seconds, int8.seconds) if fp32 and int8 else None,
    }
    why = "processor time was not measured"
    reasons = {} if cpu_ratio else dict.fromkeys(("cpu_speedup", "cpu_speedup_ci95", "measurable"), why)
    return Section(
        content, reasons | ({} if over_fp16 else {"speedup_fp16": "FP16 is timed on the device of an engine"})
    )


def _ratio(reference: Measurement | None, candidate: Measurement | None) -> Estimate | None:
    return speedup(reference, candidate) if reference and candidate else None


def _times(m: Measurement | None) -> Json:
    if m is None:
        return dict.fromkeys(_TIMES)
    p99 = percentile_ms(m, 99)
    spread = variation_percent(m), drift_percent(m)
    values = (m.p(50), m.p(90), p99.value, _ci(p99), m.throughput_ips, len(m.seconds), *spread)
    return dict(zip(_TIMES, values, strict=True))


def _histogram(fp32: F64, int8: F64) -> Json:
    """Counts in bins of equal width from zero, the same bins for both; the last bin also counts all longer times.

    The bins end near the 99th percentile, but at most at about four medians, because on a busy machine other processes
    make the 99th percentile very long.
    """
    top = 1.1e3 * max(min(np.percentile(seconds, 99), 4 * np.median(seconds)) for seconds in (fp32, int8))
    width = top / HISTOGRAM_BINS

    bins = (np.minimum(1e3 * seconds / width, HISTOGRAM_BINS - 1).astype(np.int64) for seconds in (fp32, int8))
    counts = (np.bincount(one, minlength=HISTOGRAM_BINS).tolist() for one in bins)
    return {"bin_ms": float(width), **dict(zip(("fp32", "int8"), counts, strict=True))}


def sizes_section(made: Made, headline: str) -> Section:
    """Sizes of graphs and engines in bytes."""
    fp32, int8 = made.sizes.get("fp32"), made.sizes.get(headline) or _engine_size(made, headline)
    candidates = {name: size for name, size in made.sizes.items() if name != "fp32"}
    engines = {_engine_name(e): e.size_bytes for e in made.engines if e.precision == "int8" and e.file}
    deployed = {**{f"{name} graph": size for name, size in candidates.items()}, **engines}
    each = {f"int8_{name}_bytes": size for name, size in candidates.items()}
    content = {"fp32_bytes": fp32, "int8_bytes": int8, **each, "deployed_bytes": deployed}
    missing = fp32 is None or int8 is None
    return Section(content, {"": "this graph was not written in this run"} if missing else {})


def export_section(making: Making | None) -> Section:
    """How far the FP32 graph differs from the original model."""
    if making is None:
        return Section(dict.fromkeys(("max_error", "notes")), {"": "nothing was exported in this run"})
    return Section(dict(making.export))


def data_section(making: Making | None, measured: Measured) -> Section:
    """The calibration and validation images."""
    calibration = making.calibration.data if making and making.calibration else None
    records = {"validation": measured.images, "calibration": calibration}
    missing = {"validation": "no validation images were given", "calibration": "nothing was calibrated in this run"}
    reasons = {role: missing[role] for role, record in records.items() if record is None}
    unknown = [f"{role}.pixels" for role, record in records.items() if record and record.pixels is None]
    reasons |= dict.fromkeys(unknown, "the mean colours of the images were not measured")
    return Section({role: asdict(record) if record else None for role, record in records.items()}, reasons)


def calibration_section(making: Making | None) -> Section:
    """How ranges were measured."""
    record = making.calibration if making else None
    if record is None:
        nothing = dict.fromkeys(("method", "images", "batch_size"))
        return Section(nothing, {"": "nothing was calibrated in this run"})
    return Section({"method": record.method, "images": record.data.images, "batch_size": record.batch_size})


def plan_summary(plan: QuantPlan) -> Json:
    """Counts of what a plan quantizes, and the tensors that it leaves in floating point."""
    return {
        "activations": len(plan.edges),
        "weights": len(plan.weights),
        "skipped": [asdict(skipped) for skipped in plan.skipped],
        "calibration_digest": plan.calibration_digest,
    }


def layer_noise_summary(noise: LayerNoise) -> Json:
    """The noise of one graph, layer by layer."""
    plain = noise.to_dict()
    for fit in plain["ranges"]:  # a tensor that is zero on every image has no finite SQNR
        fit["own_db"] = fit["own_db"] if math.isfinite(fit["own_db"]) else None
    return plain


def _engine_size(made: Made, name: str) -> int | None:
    """Bytes of an engine by a candidate's name, ``tensorrt int8 engine``."""
    sizes = (e.size_bytes for e in made.engines if f"{e.runtime} {e.precision} engine" == name and e.file)
    return next(sizes, None)


def _engine_name(engine: EngineRecord) -> str:
    """A name such as ``rtx engine sm86``, without dots, because dots separate the keys in the path of a figure."""
    made_for = "".join(f" sm{capability}" for capability in engine.portability.compute_capabilities)
    return f"{engine.target} engine{made_for}".replace(".", "")


def _ci(estimate: Estimate) -> list[float]:
    return [estimate.low, estimate.high]
