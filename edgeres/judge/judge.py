"""Makes the report document from what was asked, made and measured: figures, gates, checks and the verdict.

Nothing here reads an image, a graph or a file.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from edgeres._version import __version__
from edgeres.judge.asked import Asked, ConfigFile, GateChoice
from edgeres.judge.build_figures import BuildFigures, finite_sqnr, unpacked_power
from edgeres.judge.checks import Evidence, check
from edgeres.judge.corruptions import corruption_rows
from edgeres.judge.document import Json, Section, to_json
from edgeres.judge.gates import Metric, judge_gates
from edgeres.judge.part import TaskPart, part_of_scores
from edgeres.judge.regression import regression
from edgeres.judge.sections import (
    accuracy_section,
    calibration_section,
    data_section,
    export_section,
    latency_section,
    layer_noise_summary,
    packed_power,
    plan_summary,
    sizes_section,
)
from edgeres.made import Made
from edgeres.records import EngineRecord, Verdict
from edgeres.reports import REPORT_FORMAT
from edgeres.verify.measure import Measured
from edgeres.words import relative_path


def judge(asked: Asked, made: Made, measured: Measured, part: TaskPart | None = None) -> Json:
    """The content of report.json: plain JSON types, no NaN, no infinity.

    Args:
        part: what the network's task adds; None: that of scores of classes.
    """
    labels, baseline = "accuracy" not in measured.reasons, asked.baseline is not None
    part = part or part_of_scores(asked.gates, baseline=baseline, labels=labels)
    facts: Json = json.loads(json.dumps(made.facts))  # tuples become lists, as in a baseline
    making = made.making
    sections = {
        "accuracy": accuracy_section(measured, made),
        "latency": latency_section(measured.latency),
        "sizes": sizes_section(made, measured.headline),
        "export": export_section(making),
        "data": data_section(making, measured),
        "calibration": calibration_section(making),
    }
    sections["baseline"] = _baseline(asked, _figures(made, measured, sections["latency"].content, facts))
    if part.section is not None:
        sections["task"] = part.section
    reasons = {name: why for path, section in sections.items() for name, why in section.reasons_below(path).items()}
    reasons |= dict(making.reasons if making else {}) | dict(measured.reasons)
    figures: Json = {name: section.content for name, section in sections.items()} | {"reasons": reasons}
    if asked.baseline is None:
        figures["baseline"] = None
    judged = judge_gates(part.gates, figures, part.metrics)
    verdicts = [_verdict(verdict, part.metrics[verdict.gate.metric], asked.gates) for verdict in judged]
    found = check(_evidence(asked, made, measured, figures["baseline"]), part.checks)
    checks = [asdict(result) | {"allowed": result.name in asked.gates.allow} for result in found]
    report = {
        "schema": REPORT_FORMAT,
        "edgeres": __version__,
        "created": measured.created,
        **_outcome(verdicts, checks, asked.gates),
        "verdicts": verdicts,
        "checks": checks,
        "model": made.model.to_dict() | {"num_classes": made.model.num_classes},
        **figures,
        "quantization": {style: plan_summary(plan) for style, plan in making.plans.items()} if making else {},
        "refinement": [dict(step) for step in making.refinement] if making else [],
        "residual": [dict(cost) for cost in making.residual] if making else [],
        "anatomy": {name: layer_noise_summary(noise) for name, noise in (measured.layer_noise or {}).items()},
        "engines": [_engine(engine, measured) for engine in made.engines],
        "left_out": [asdict(left) for left in made.manifest.left_out],
        "files": dict(made.files),
        "facts": facts,
        "thumbnails": dict(measured.thumbnails),
        "corruptions": corruption_rows(measured.comparison.corrupted if measured.comparison else ()),
        "timings_seconds": {**making.timings, "verify": measured.seconds} if making else {},
        "environment": dict(measured.environment),
        "command": asked.command,
        "config": _config(asked.gates.config),
        "options": dict(asked.options),
    }
    # As read back from disk: tuples become lists, and bytes of file names that are not UTF-8 become "?".
    plain: Json = json.loads(to_json(report).encode(errors="replace"))
    return plain


def _engine(engine: EngineRecord, measured: Measured) -> Json:
    """An engine of the manifest; where it ran in this run, or was tried in vain, its status says so."""
    comparison = measured.comparison
    here = next((runner for file, runner in comparison.device.ran if file == engine.file), None) if comparison else None
    why = comparison.device.not_run.get(engine.file or "") if comparison else None
    status = f"run here, on {here}" if here else f"{engine.status}: {why}" if why else engine.status
    return engine.to_dict() | {"status": status}


def _figures(made: Made, measured: Measured, latency: Json, facts: Json) -> BuildFigures:
    comparison = measured.comparison
    return BuildFigures(
        "this run",
        measured.images,
        comparison.table if comparison else None,
        finite_sqnr(comparison),
        unpacked_power(packed_power(comparison), comparison.images) if comparison else {},
        made.model.labels,
        latency,
        measured.environment,
        facts,
        made.files,
    )


def _baseline(asked: Asked, now: BuildFigures) -> Section:
    accepted = asked.baseline
    if accepted is None:
        return Section({}, {"": "no baseline was given"})
    since = regression(accepted.figures, now, any_machine=accepted.any_machine)
    head = {"file": accepted.where, "accepted": accepted.document["accepted"]}
    return Section(head | since.content, since.reasons)


def _outcome(verdicts: list[Json], checks: list[Json], gates: GateChoice) -> Json:
    """The verdict of the run: ``passed`` decides the exit code, ``outcome`` also says whether a gate is unsure."""
    outcomes = {verdict["outcome"] for verdict in verdicts}
    failed = "failed" in outcomes or any(result["outcome"] == "failed" and not result["allowed"] for result in checks)
    unsure = "unsure" in outcomes
    return {
        "passed": not failed and not (unsure and gates.on_unsure == "fail"),
        "outcome": "failed" if failed else "unsure" if unsure else "passed",
        "on_unsure": gates.on_unsure,
    }


def _config(config: ConfigFile | None) -> Json | None:
    if config is None:
        return None
    return {"file": relative_path(config.file), "weaker": [asdict(one) for one in config.weaker]}


def _verdict(verdict: Verdict, metric: Metric, gates: GateChoice) -> Json:
    return verdict.to_dict() | {
        "passed": verdict.outcome == "passed" or (verdict.outcome == "unsure" and gates.on_unsure == "warn"),
        "title": metric.title,
        "bound": metric.bound,
        "rule": metric.words(verdict.gate.limit),
    }


def _evidence(asked: Asked, made: Made, measured: Measured, baseline: Json | None) -> Evidence:
    accepted = asked.baseline.document["files"] if asked.baseline else None
    return Evidence(
        labels=made.model.labels,
        comparison=measured.comparison,
        calibration=made.calibration_pixels,
        layer_noise=measured.layer_noise or {},
        no_layer_noise=measured.reasons.get("anatomy", "noise was not measured layer by layer in this run"),
        baseline=baseline,
        engines=made.engines,
        files=made.files,
        left_out=made.manifest.left_out,
        earlier_files=[files for files in (made.files_when_built, accepted) if files],
    )
