"""report.html: the report as one page without scripts or network access, made from report.json alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

from edgeres.judge.document import not_measurable, titled, to_json, why_missing
from edgeres.report.charts import depth_chart, latency_chart, missing
from edgeres.report.figures import NOT_MEASURED, decibels, interval, megabytes, percent, points, significant, times
from edgeres.report.html_accuracy import SHOWN_ROWS, accuracy_section
from edgeres.report.html_task import task_section
from edgeres.report.markup import Html, el, join, more, prose, render_page, section, table
from edgeres.report.text import (
    NOT_CERTAIN,
    NOT_MADE,
    Report,
    check_word,
    corruption_table,
    findings,
    forms_tried,
    headline,
    outcome_line,
    outcome_words,
    precision_of,
    remarks,
    task_part,
    top1_line,
    verdict_word,
    warned,
)

LISTED_NAMES = 3


def render_html(report: Report) -> str:
    """The whole page as text, to be written as UTF-8."""
    parts = (
        _head,
        _tiles,
        _gates,
        _checks,
        _baseline,
        _answers,
        _corruptions,
        _latency,
        _inside,
        _sizes,
        _quantization,
    )
    title = f"{report['model']['name']} INT8: {outcome_words(report).lower()}"
    return render_page(title, join(*(part(report) for part in (*parts, _provenance))))


def _answers(report: Report) -> Html:
    """What the network's answers are worth: of classes, or of another task."""
    return task_section(report) if task_part(report) else accuracy_section(report)


_KINDS = {"passed": "banner", "failed": "banner failed", "unsure": "banner unsure"}


def _head(report: Report) -> Html:
    words = [verdict_word(verdict) for verdict in report["verdicts"]]
    kind = "banner open" if outcome_words(report).startswith("No") else _KINDS[report["outcome"]]
    count = f"{words.count('pass')} of {len(words)} gates passed" if words else ""
    if report["outcome"] == "unsure":
        count += f"; one that is {NOT_CERTAIN} {'does not fail' if report['passed'] else 'fails'} the run"
    if kind == "banner" and warned(report):
        kind = _KINDS["unsure"]
    line, others = outcome_line(report)
    told = [el("div", remark) for remark in remarks(report)]
    told += [el("div", el("b", title), f": {reason}") for title, reason in others]
    return join(
        el("h1", f"{report['model']['name']} in {precision_of(report)}"),
        el("p", headline(report), class_="soft small"),
        el("p", el("b", top1_line(report))),
        el("section", el("strong", line), el("div", count), *told, class_=kind),
    )


def _tiles(report: Report) -> Html:
    a, latency, sizes = report["accuracy"], report["latency"], report["sizes"]
    fp32, int8 = sizes["fp32_bytes"], sizes["int8_bytes"]
    p50 = f"{significant(latency['fp32']['p50_ms'])} to {significant(latency['int8']['p50_ms'])} ms"
    before = significant((latency.get("fp16") or latency["fp32"])["p50_ms"])
    fp16 = f"{before} to {significant(latency['int8']['p50_ms'])} ms"
    speedup = "not measurable" if not_measurable(latency) else times(latency["speedup"])
    of_int8 = "" if precision_of(report) == "INT8" else " of INT8"
    over_fp16 = (f"Speedup{of_int8} over FP16", "latency.speedup_fp16", times(latency.get("speedup_fp16")), fp16)
    from_to = f"{percent(a['fp32']['top1'])} to {percent(a['int8']['top1'])}"
    drop = f"FP32 to {precision_of(report)}; drop {points(a['drop_pp'])}, 95 %: {interval(a['drop_pp_ci95'])}"
    of_scores = (
        ("Top-1", "accuracy.drop_pp", NOT_MEASURED if a["drop_pp"] is None else from_to, drop),
        ("Agreement", "accuracy.agreement", percent(a["agreement"]), f"95 %: {interval(a['agreement_ci95'])}"),
    )
    task = task_part(report)
    of_task = [(tile["title"], "task", tile["figure"], tile["below"]) for tile in task.get("tiles", ())]
    tiles = (
        *(of_task if task else of_scores),
        (f"Speedup{of_int8}", "latency.speedup", speedup, p50),
        *([over_fp16] if latency.get("fp16") else []),
        ("Size", "sizes", times(int8 / fp32 if int8 and fp32 else None), f"{megabytes(fp32)} to {megabytes(int8)}"),
    )
    return el("div", *(_tile(report, *tile) for tile in tiles), class_="tiles")


def _tile(report: Report, name: str, path: str, figure: str, below: str) -> Html:
    known = figure != NOT_MEASURED
    return el(
        "div",
        el("span", name, class_="soft small"),
        el("b", figure) if known else el("em", "not measured"),
        el("span", below if known else why_missing(path, report), class_="soft small"),
        class_="tile",
    )


def _gates(report: Report) -> Html:
    if not report["verdicts"]:
        return Html()
    rows = (
        (verdict["title"], _marked(verdict_word(verdict)), prose(verdict["reason"])) for verdict in report["verdicts"]
    )
    return section("Gates", table("Gates", ("Gate", "Verdict", "Observed"), rows))


def _checks(report: Report) -> Html:
    rows = ((check["title"], _made(check), prose(check["reason"])) for check in report["checks"])
    said = "Known faults that were checked for, whether or not they cost accuracy."
    return section("Checks", el("p", said, class_="soft small"), table("Checks", ("Check", "Outcome", "Found"), rows))


_CLASSES = {"pass": "pass", "FAIL": "fail", "warning": "unsure", NOT_CERTAIN: "unsure", "allowed": "unsure"}


def _marked(word: str) -> Html:
    return el("span", word.lower(), class_=_CLASSES[word])


def _made(check: dict[str, Any]) -> Html:
    word = check_word(check)
    return el("span", "not made", class_="soft") if word == NOT_MADE else _marked(word)


def _baseline(report: Report) -> Html:
    baseline = report["baseline"]
    if baseline is None:
        return Html()
    accepted = f"Against {baseline['file']}, accepted {baseline['accepted']}."
    same = "On the same images, compared image by image."
    if not baseline["same_images"]:
        same = why_missing("baseline.same_images", report)
    slower = baseline["slowdown_percent"]
    latency = f"Latency: {why_missing('baseline.slowdown_percent', report)}."
    if slower is not None:
        latency = (
            f"INT8 takes {abs(slower):.1f} % {'more' if slower > 0 else 'less'} time than before, in units of FP32."
        )
    told = [("FP32", points(baseline["fp32"]["drop_pp"] if baseline["fp32"] else None), NOT_MEASURED)]
    told += [
        (f"INT8, {titled(name)}", points(graph["drop_pp"]), decibels(graph["sqnr_loss_db"]))
        for name, graph in baseline["graphs"].items()
    ]
    return section(
        "Since the baseline",
        el("p", f"{accepted} {same}"),
        table("Since the baseline", ("Graph", "Top-1 lost", "SQNR lost"), told, (1, 2)),
        el("p", latency),
        _changed(baseline["changed"]),
    )


def _changed(changed: list[dict[str, Any]]) -> Html:
    if not changed:
        return el("p", "Neither the build nor the versions have changed.")
    rows = ((prose(row["what"]), prose(_short(row["before"])), prose(_short(row["after"]))) for row in changed)
    listed = table("What was changed", ("What", "Before", "Now"), rows)
    return more(f"{len(changed):,} thing{'s' * (len(changed) > 1)} changed", listed, open_=len(changed) <= SHOWN_ROWS)


def _plain(value: object) -> str:
    return NOT_MEASURED if value is None else value if isinstance(value, str) else json.dumps(value)


def _short(value: object) -> str:
    text = _plain(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _corruptions(report: Report) -> Html:
    found = corruption_table(report)
    if found is None:
        return Html()
    head, rows = found
    said = (
        "Top-1 under each corruption, and images lost and gained against FP32 under the same one. In brackets: factor "
        "of the pixels; blur as a share of the shorter side; noise in bytes; JPEG quality; degrees."
    )
    listed = table("Corrupted images", head, rows, range(1, len(head)))
    return section("Corrupted images", el("p", said, class_="soft small"), listed)


def _inside(report: Report) -> Html:
    anatomy = report["anatomy"]
    if not anatomy:
        return section("Noise by layer", el("p", f"Not measured: {why_missing('anatomy', report)}."))
    images = next(iter(anatomy.values()))["images"]
    said = (
        f"SQNR of each layer's output on {images} validation images, up to a factor and an offset per channel. It "
        "includes the noise of all layers before. Noise that a block adds to the residual stream stays to the end."
    )
    return section(
        "Noise by layer",
        el("p", said, class_="soft small"),
        depth_chart(anatomy),
        *(_layers(name, graph) for name, graph in anatomy.items()),
    )


def _layers(name: str, graph: dict[str, Any]) -> Html:
    rows = (
        (prose(layer["tensor"]), "stream" if layer["stream"] else "", decibels(layer["sqnr_db"]))
        for layer in graph["layers"]
    )
    fits = sorted(graph["ranges"], key=lambda fit: math.inf if fit["own_db"] is None else fit["own_db"])
    ranges = (
        (prose(fit["tensor"]), decibels(fit["own_db"]), percent(100 * fit["covered"])) for fit in fits[:SHOWN_ROWS]
    )
    head = ("Quantized activation", "Own SQNR", "Covered")
    return join(
        more(f"{name} graph, layer by layer", table(f"Layers, {name}", ("Tensor", "Where", "SQNR"), rows, (2,))),
        more(f"{name} graph, scales with the lowest SQNR", table(f"Scales, {name}", head, ranges, (1, 2))),
    )


def _latency(report: Report) -> Html:
    latency = report["latency"]
    timed = [name for name in ("fp32", "fp16", "int8") if (latency.get(name) or {}).get("p50_ms") is not None]
    if not timed:
        return section("Latency", el("p", f"Not measured: {why_missing('latency', report)}."))
    rows = []
    for name in timed:
        taken, key = latency[name], join(el("span", class_=f"key {name}"), name.upper())
        ms = (significant(taken[key]) for key in ("p50_ms", "p90_ms", "p99_ms", "throughput_ips"))
        rows.append((key, *ms, f"{taken['iterations']:,}", percent(taken["variation_percent"])))
    head = ("Precision", "p50 ms", "p90 ms", "p99 ms", "img/s", "Inferences", "Spread")
    ratio = f"{times(latency['speedup'])}, 95 % interval {interval(latency['speedup_ci95'])}"
    if latency["speedup"] is None:
        ratio = f"not measured: {why_missing('latency.speedup', report)}"
    if latency.get("speedup_fp16") is not None:
        over = f"{times(latency['speedup_fp16'])}, 95 % interval {interval(latency['speedup_fp16_ci95'])}"
        ratio += f"; over FP16 {over}"
    if latency.get("cpu_speedup") is not None:
        ratio += f"; in processor time {times(latency['cpu_speedup'])}"
    doubt = not_measurable(latency)
    return section(
        "Latency",
        el("p", f"{latency['backend']}, {latency['scope']}; measured in alternating blocks of one run."),
        el("p", f"The speedup is {doubt}.", class_="remark") if doubt else "",
        el("p", f"Noisy: {'; '.join(latency['noise'])}.", class_="remark") if latency["noise"] else "",
        latency_chart(latency) if latency["histogram"] else "",
        table("Latency", head, rows, range(1, 7)),
        el("p", f"Ratio of the medians: {ratio}. Spread is the coefficient of variation.", class_="soft small"),
    )


def _sizes(report: Report) -> Html:
    sizes, fp32 = report["sizes"], report["sizes"]["fp32_bytes"]
    graphs = [
        (_graph_name(key.removesuffix("_bytes")), megabytes(size), times(size / fp32))
        for key, size in sizes.items()
        if isinstance(size, int) and size and fp32 and key != "int8_bytes"
    ]
    return section(
        "Sizes and engines",
        table("Sizes of the ONNX graphs", ("ONNX graph", "Size", "Against FP32"), graphs, (1, 2))
        if graphs
        else el("p", f"No ONNX graph: {why_missing('sizes', report)}."),
        el("h3", "Engines"),
        _engines([one for one in report["engines"] if one["file"] or not one.get("trial")]),
        _forms(report),
    )


def _forms(report: Report) -> Html:
    """The forms that a device measured."""
    rows = [(*row[:-1], prose(row[-1])) for row in forms_tried(report)]
    if not rows:
        return Html()
    clocks = [one["trial"]["clocks"] for one in report["engines"] if one.get("trial")]
    head = ("Form", "p50 ms", "SQNR on probes", "Size", "Kernels", "Why")
    told = f"Host to host, batch 1, in alternating blocks of one run. {next(filter(None, clocks), '')}".strip()
    return join(
        el("h3", "Forms of the graph, measured on the device"),
        table("Forms", head, rows, range(1, 5)),
        el("p", told, class_="soft small"),
    )


def _graph_name(key: str) -> str:
    """``int8_cpu`` as text: ``INT8, cpu graph``."""
    precision, _, graph = key.partition("_")
    return f"{precision.upper()}, {graph} graph" if graph else precision.upper()


def _engines(engines: list[dict[str, Any]]) -> Html:
    if not engines:
        return el("p", "No engine was requested.")
    rows = []
    for engine in engines:
        runtime, size = f"{engine['runtime']} {engine['version']}", megabytes(engine["size_bytes"] or None)
        gpus = ", ".join(engine["compute_capabilities"]) or ("portable" if engine["size_bytes"] else NOT_MEASURED)
        rows.append((engine["target"], prose(engine["status"]), runtime, engine["precision"].upper(), size, gpus))
    return table("Engines", ("Target", "Status", "Runtime", "Precision", "Size", "Compute capability"), rows, (4,))


def _quantization(report: Report) -> Html:
    plans = report["quantization"]
    if not plans:
        return section("Quantization", el("p", "Nothing was quantized in this run."))
    plan_by_style = (_plan(style, plan) for style, plan in plans.items())
    return section("Quantization", _refinement(report), _residual(report), *plan_by_style)


def _refinement(report: Report) -> Html:
    if not report["refinement"]:
        return Html()
    rows = []
    for step in report["refinement"]:
        sqnr = (decibels(step["before_db"]), decibels(step["after_db"]))
        decision = "kept" if step["kept"] else f"left out: {step['note']}"
        rows.append((step["name"], step["style"], *sqnr, decision, f"{step['seconds']:.1f} s"))
    head = ("Step", "Graph", "SQNR before", "After", "Decision", "Time")
    told = (
        "Logit SQNR on held-back calibration images. A step is kept where it raises the SQNR, and neither the mean "
        "error nor that on the worst images rises."
    )
    return join(table("Effect of refinement", head, rows, (2, 3, 5)), el("p", told, class_="soft small"))


def _residual(report: Report) -> Html:
    if not report["residual"]:
        return Html()
    rows = (
        (cost["add"], cost["precision"], f"{1e4 * cost['noise']:.2f}", f"{cost['bytes_moved']:,}")
        for cost in report["residual"]
    )
    head = ("Residual Add", "Skip", "Noise of int8, 1e-4", "Additional bytes in float16")
    listed = table("Precision of the residual stream", head, rows, (2, 3))
    return more("Precision of the residual stream, block by block", listed)


def _plan(style: str, plan: dict[str, Any]) -> Html:
    by_reason: dict[str, list[str]] = {}
    for one in plan["skipped"]:
        by_reason.setdefault(one["reason"], []).append(one["what"])
    rows = ((prose(_some(what)), len(what), prose(reason)) for reason, what in by_reason.items())
    listed = table(f"Left in floating point, {style} graph", ("What", "Count", "Why"), rows, (1,))
    left = more(f"{len(plan['skipped']):,} left in floating point on purpose", listed)
    return join(
        el("h3", f"{style} graph"),
        el("p", f"{plan['activations']:,} activations and {plan['weights']:,} weights are quantized."),
        left if by_reason else el("p", "Nothing was left in floating point."),
    )


def _some(names: list[str]) -> str:
    beyond = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {beyond:,} more, listed in report.json" if beyond > 0 else "")


def _provenance(report: Report) -> Html:
    model, calibration = report["model"], report["calibration"]
    facts: dict[str, object] = {
        "Created": f"{report['created']} by edgeres {report['edgeres']}",
        "Weights": model["weights"],
        "Weights SHA-256": el("code", model["weights_sha256"] or NOT_MEASURED),
        "Preprocessing": ", ".join(f"{key} {value}" for key, value in model["preprocess"].items() if value is not None),
    }
    if report["export"]["max_error"] is not None:
        facts["Export"] = f"differs from its source by {report['export']['max_error']:.1e} of the largest output"
        facts["Notes"] = "; ".join(report["export"]["notes"]) or NOT_MEASURED
    if calibration["method"]:
        batches = f"batches of {calibration['batch_size']}"
        facts["Calibration"] = f"{calibration['method']}, {calibration['images']:,} images in {batches}"
    for role, source in report["data"].items():
        if source:
            facts[f"{role.capitalize()} data"] = source["description"]
            facts[f"{role.capitalize()} SHA-256"] = el("code", source["sha256"])
            if notes := [note for note in source.get("notes", ()) if note != source["description"]]:
                facts[f"{role.capitalize()} notes"] = "; ".join(notes)
            if source["unreadable"]:
                facts[f"{role.capitalize()} left out"] = ", ".join(source["unreadable"])
    if missing():
        facts["Charts"] = f"none: {missing()}"
    if report["timings_seconds"]:
        stages = report["timings_seconds"].items()
        facts["Stages"] = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages)
    # Where a folder cannot be switched as a whole, it tells whether both files are of one run.
    facts["report.json SHA-256"] = el("code", hashlib.sha256(to_json(report).encode(errors="replace")).hexdigest())
    options = ((name, v if isinstance(v, str) else json.dumps(v)) for name, v in report["options"].items())
    return section(
        "Provenance",
        _definitions(facts.items()),
        el("h3", "To reproduce"),
        el("pre", report["command"] or "built from Python with the options below"),
        more("Options", _definitions(options)),
        more("How the bundle was made", _definitions((name, prose(_plain(v))) for name, v in report["facts"].items())),
        more("Files by SHA-256", _definitions((name, el("code", digest)) for name, digest in report["files"].items())),
        more("Environment", _definitions(report["environment"].items())),
        more("All figures in words", _definitions(findings(report))),
    )


def _definitions(pairs: Iterable[tuple[str, object]]) -> Html:
    return el("dl", *(join(el("dt", name), el("dd", value)) for name, value in pairs))
