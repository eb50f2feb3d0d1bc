"""report.html: the report as one page, without scripts or network, from report.json alone."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable
from importlib.resources import files
from string import Template
from typing import Any

from edgeres.report.markup import Html, el, join, more, section, table
from edgeres.report.text import (
    NOT_MEASURED,
    Report,
    decibels,
    findings,
    headline,
    interval,
    megabytes,
    percent,
    points,
    significant,
    times,
    unreadable,
)
from edgeres.verify.gates import why_missing

SHOWN_ROWS = 20  # of a long table before the rest folds away
LISTED_IMAGES = 100
LISTED_NAMES = 3


def render_html(report: Report) -> str:
    """The whole page as text, to be written as UTF-8."""
    page = Template(files("edgeres.report").joinpath("template.html").read_text(encoding="utf-8"))
    parts = (_head, _tiles, _gates, _accuracy, _latency, _sizes, _quantization, _provenance)
    title = f"{report['model']['name']} INT8: {_word(report)}"
    return page.substitute(title=html.escape(title), body=join(part(report) for part in parts))


def _word(report: Report) -> str:
    if not report["verdicts"]:
        return "no gate was set"
    return "passed" if report["passed"] else "failed"


def _head(report: Report) -> Html:
    verdicts = report["verdicts"]
    failed = [verdict for verdict in verdicts if not verdict["passed"]]
    kind = "banner open" if not verdicts else "banner failed" if failed else "banner"
    count = f"{len(verdicts) - len(failed)} of {len(verdicts)} gates passed" if verdicts else ""
    told = (el("div", f"{verdict['title']}: {verdict['reason']}") for verdict in failed)
    return join(
        (
            el("h1", f"{report['model']['name']} in INT8"),
            el("p", headline(report), class_="soft small"),
            el("section", el("strong", _word(report).capitalize()), el("div", count), *told, class_=kind),
        )
    )


def _tiles(report: Report) -> Html:
    a, latency, sizes = report["accuracy"], report["latency"], report["sizes"]
    fp32, int8 = sizes["fp32_bytes"], sizes["int8_bytes"]
    p50 = f"{significant(latency['fp32']['p50_ms'])} to {significant(latency['int8']['p50_ms'])} ms"
    tiles = (
        ("Top-1 drop", "accuracy.drop_pp", points(a["drop_pp"]), f"95 %: {interval(a['drop_pp_ci95'])}"),
        ("Agreement", "accuracy.agreement", percent(a["agreement"]), f"95 %: {interval(a['agreement_ci95'])}"),
        ("Speedup", "latency.speedup", times(latency["speedup"]), p50),
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
        (verdict["title"], el("span", word, class_=word), _prose(verdict["reason"]))
        for verdict in report["verdicts"]
        for word in ("pass" if verdict["passed"] else "fail",)
    )
    return section("Gates", table("Gates", ("Gate", "Verdict", "Observed"), rows))


def _accuracy(report: Report) -> Html:
    accuracy, validation = report["accuracy"], report["data"]["validation"]
    if not accuracy["graphs"]:
        return section("Accuracy", el("p", f"Not measured: {why_missing('accuracy', report)}."))
    graphs = [(f"INT8, {name} graph", graph) for name, graph in accuracy["graphs"].items()]
    rows = (
        (
            name,
            _with_interval(percent(row["top1"]), row["top1_ci95"]),
            percent(row["top5"]),
            _with_interval(points(row.get("drop_pp")), row.get("drop_pp_ci95")),
            _with_interval(percent(row.get("agreement")), row.get("agreement_ci95")),
            decibels(row.get("logit_sqnr_db")),
        )
        for name, row in [("FP32", accuracy["fp32"]), *graphs]
    )
    head = ("Graph", "Top-1", "Top-5", "Drop", "Agreement", "Logit SQNR")
    notes = [f" {name}: {graph['note']}." for name, graph in graphs if graph["note"]]
    return section(
        "Accuracy",
        el("p", f"On {validation['description']}.") if validation else "",
        el("p", f"{unreadable(validation)}.", class_="remark") if validation and validation["unreadable"] else "",
        table("Accuracy", head, rows, range(1, 6)),
        el("p", "Small figures are 95 % intervals.", *notes, class_="soft small"),
        _explained(report),
        _images(report),
        _classes(report),
    )


def _prose(text: str) -> Html:
    """A cell that keeps a readable width on a narrow screen."""
    return el("div", text, class_="prose")


def _with_interval(figure: str, limits: list[float] | None) -> object:
    return figure if limits is None else join((figure, el("div", interval(limits), class_="soft small")))


def _explained(report: Report) -> Html:
    a = report["accuracy"]
    if a["drop_pp"] is None:
        return el("p", f"No accuracy: {why_missing('accuracy.drop_pp', report)}.")
    lost = f"INT8 ({a['graph']} graph) loses {a['lost']} that FP32 gets right"
    gained = f"gains {a['gained']} that FP32 gets wrong (exact McNemar test: p = {a['mcnemar_p']:.2g})"
    return el("p", f"Of {a['int8']['total']:,} labelled images, {lost} and {gained}.")


def _images(report: Report) -> Html:
    graph = report["accuracy"]["graphs"][report["accuracy"]["graph"]]
    lost = _answers(report, "INT8 gets wrong and FP32 right", graph["lost_images"])
    return join((lost, _answers(report, "FP32 gets wrong and INT8 right", graph["gained_images"])))


def _answers(report: Report, what: str, images: list[dict[str, Any]]) -> Html:
    if not images:
        return Html()
    labels = report["model"]["labels"]
    rows = [
        (_prose(image["image"]), *(labels[image[key]] for key in ("label", "reference", "candidate")))
        for image in images[:LISTED_IMAGES]
    ]
    beyond = len(images) - len(rows)
    return more(
        f"{len(images):,} image{'s' * (len(images) > 1)} that {what}",
        table(f"Images that {what}", ("Image", "Label", "FP32 says", "INT8 says"), rows),
        el("p", f"{beyond:,} more are listed in report.json.", class_="soft small") if beyond else "",
    )


def _classes(report: Report) -> Html:
    classes = report["accuracy"]["per_class"]
    if not classes:
        return Html()
    changes = [100 * (row["int8"] - row["fp32"]) / row["total"] for row in classes]
    reach = max(map(abs, changes)) or 1.0
    largest_first = sorted(zip(changes, classes, strict=True), key=lambda pair: (-abs(pair[0]), pair[0]))
    rows = [
        (
            report["model"]["labels"][row["class"]],
            f"{row['total']:,}",
            percent(100 * row["fp32"] / row["total"]),
            percent(100 * row["int8"] / row["total"]),
            el("div", f"{change:+.2f} pp" if change else "0", _bar(change / reach), class_="change"),
        )
        for change, row in largest_first
    ]
    first = min(SHOWN_ROWS, sum(change != 0 for change in changes))
    head, numbers, rest = ("Class", "Images", "FP32", "INT8", "Change"), range(1, 5), rows[first:]
    return join(
        (
            el("h3", "Top-1 by class, largest change first"),
            table("Top-1 by class", head, rows[:first], numbers) if first else el("p", "No class changed."),
            more(f"{len(rest):,} more classes", table("More classes", head, rest, numbers)) if rest else "",
        )
    )


def _bar(share: float) -> Html:
    """A bar from the middle, to the left for a loss; the figure stands beside it."""
    width = 50 * abs(share)
    place = f"left:{50 - width if share < 0 else 50:.1f}%;width:{width:.1f}%"
    return el("div", el("i", style=place, class_="worse" if share < 0 else "better"), class_="bar", aria_hidden="true")


def _latency(report: Report) -> Html:
    latency = report["latency"]
    if latency["speedup"] is None:
        return section("Latency", el("p", f"Not measured: {why_missing('latency', report)}."))
    rows = (
        (
            join((el("span", class_=f"key {name}"), name.upper())),
            *(significant(latency[name][key]) for key in ("p50_ms", "p90_ms", "p99_ms", "throughput_ips")),
            f"{latency[name]['iterations']:,}",
            percent(latency[name]["variation_percent"]),
        )
        for name in ("fp32", "int8")
    )
    head = ("Precision", "p50 ms", "p90 ms", "p99 ms", "img/s", "Inferences", "Spread")
    ratio = f"{times(latency['speedup'])}, 95 % interval {interval(latency['speedup_ci95'])}"
    return section(
        "Latency",
        el("p", f"{latency['backend']}, {latency['scope']}; both measured in alternating blocks of one run."),
        *(el("p", f"Noisy: {what}.", class_="remark") for what in latency["noise"]),
        _distribution(latency),
        table("Latency", head, rows, range(1, 7)),
        el("p", f"Ratio of the medians: {ratio}. Spread is the coefficient of variation.", class_="soft small"),
    )


def _distribution(latency: dict[str, Any]) -> Html:
    """Two histograms over one time axis that starts at zero, so that lengths compare."""
    histogram = latency["histogram"]
    end = histogram["bin_ms"] * len(histogram["fp32"])
    marks = (el("span", f"{mark:g}", style=f"left:{100 * mark / end:.1f}%") for mark in _ticks(end))
    return join(
        (
            *(_lane(name, histogram[name], latency[name]) for name in ("fp32", "int8")),
            el("div", el("span", "milliseconds"), el("div", *marks), class_="lane axis soft small"),
            el(
                "p",
                "How often an inference took how long. Rare ones are drawn at least a sliver high; "
                "the last bin also holds everything slower.",
                class_="soft small",
            ),
        )
    )


def _ticks(end: float) -> list[float]:
    """Round values from 0 to ``end``, a handful."""
    decade = 10.0 ** math.floor(math.log10(end))
    step = next(decade * share for share in (1.0, 0.5, 0.2) if end / (decade * share) >= 3)
    return [step * i for i in range(int(end / step) + 1)]


def _lane(name: str, counts: list[int], figures: dict[str, Any]) -> Html:
    height, sliver = 40, 3
    bars = [
        el("rect", x=i, width=0.9, y=f"{height - tall:.1f}", height=f"{tall:.1f}")
        for i, count in enumerate(counts)
        if count
        for tall in (max(sliver, height * count / max(counts)),)
    ]
    p50, p90, p99 = (significant(figures[key]) for key in ("p50_ms", "p90_ms", "p99_ms"))
    said = f"{name.upper()} latency: half within {p50} ms, 90 % within {p90} ms, 99 % within {p99} ms"
    box = f"0 0 {len(counts)} {height}"
    chart = el("svg", *bars, viewBox=box, preserveAspectRatio="none", role="img", aria_label=said, class_=name)
    return el("div", el("span", el("b", name.upper()), f" p50 {p50} ms", class_="small"), chart, class_="lane")


def _sizes(report: Report) -> Html:
    sizes, fp32 = report["sizes"], report["sizes"]["fp32_bytes"]
    graphs = [
        (_graph_name(key.removesuffix("_bytes")), megabytes(size), times(size / fp32))
        for key, size in sizes.items()
        if size and fp32 and key != "int8_bytes"
    ]
    return section(
        "Sizes and engines",
        table("Sizes of the ONNX graphs", ("ONNX graph", "Size", "Against FP32"), graphs, (1, 2))
        if graphs
        else el("p", f"No ONNX graph: {why_missing('sizes', report)}."),
        el("h3", "Engines"),
        _engines(report["engines"]),
    )


def _graph_name(key: str) -> str:
    """``int8_cpu`` as people write it."""
    precision, _, graph = key.partition("_")
    return f"{precision.upper()}, {graph} graph" if graph else precision.upper()


def _engines(engines: list[dict[str, Any]]) -> Html:
    if not engines:
        return el("p", "No engine was asked for.")
    rows = (
        (
            engine["target"],
            _prose(engine["status"]),
            f"{engine['runtime']} {engine['version']}",
            engine["precision"].upper(),
            megabytes(engine["size_bytes"] or None),
            ", ".join(engine["compute_capabilities"]) or ("portable" if engine["size_bytes"] else NOT_MEASURED),
        )
        for engine in engines
    )
    return table("Engines", ("Target", "Status", "Runtime", "Precision", "Size", "Compute capability"), rows, (4,))


def _quantization(report: Report) -> Html:
    plans = report["quantization"]
    if not plans:
        return section("Quantization", el("p", "Nothing was quantized in this run."))
    plan_by_style = (_plan(style, plan) for style, plan in plans.items())
    return section("Quantization", _refinement(report), _residual(report), *plan_by_style)


def _refinement(report: Report) -> Html:
    if not report["refinement"]:
        return join(())
    rows = (
        (
            step["name"],
            step["style"],
            decibels(step["before_db"]),
            decibels(step["after_db"]),
            "kept" if step["kept"] else f"left out: {step['note']}",
            f"{step['seconds']:.1f} s",
        )
        for step in report["refinement"]
    )
    head = ("Step", "Graph", "SQNR before", "After", "Decision", "Time")
    told = "Logit SQNR on calibration images that were held back; a step is kept where it raises it."
    return join((table("What refinement brought", head, rows, (2, 3, 5)), el("p", told, class_="soft small")))


def _residual(report: Report) -> Html:
    if not report["residual"]:
        return join(())
    rows = (
        (cost["add"], cost["precision"], f"{1e4 * cost['noise']:.2f}", f"{cost['bytes_moved']:,}")
        for cost in report["residual"]
    )
    head = ("Residual Add", "Skip", "Noise of int8, 1e-4", "Bytes more in float16")
    listed = table("Precision of the residual stream", head, rows, (2, 3))
    return more("Precision of the residual stream, block by block", listed)


def _plan(style: str, plan: dict[str, Any]) -> Html:
    by_reason: dict[str, list[str]] = {}
    for one in plan["skipped"]:
        by_reason.setdefault(one["reason"], []).append(one["what"])
    rows = ((_prose(_some(what)), len(what), _prose(reason)) for reason, what in by_reason.items())
    listed = table(f"Left in floating point, {style} graph", ("What", "Count", "Why"), rows, (1,))
    return join(
        (
            el("h3", f"{style} graph"),
            el("p", f"{plan['activations']:,} activations and {plan['weights']:,} weights carry codes."),
            more(f"{len(plan['skipped']):,} left in floating point on purpose", listed)
            if by_reason
            else el("p", "Nothing was left in floating point."),
        )
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
            if source["unreadable"]:
                facts[f"{role.capitalize()} left out"] = ", ".join(source["unreadable"])
    facts["Stages"] = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report["timings_seconds"].items())
    options = ((name, v if isinstance(v, str) else json.dumps(v)) for name, v in report["options"].items())
    return section(
        "Provenance",
        _definitions(facts.items()),
        el("h3", "To reproduce"),
        el("pre", report["command"] or "built from Python with the options below"),
        more("Options", _definitions(options)),
        more("Environment", _definitions(report["environment"].items())),
        more("All figures in words", _definitions(findings(report))),
    )


def _definitions(pairs: Iterable[tuple[str, object]]) -> Html:
    return el("dl", *(join((el("dt", name), el("dd", value))) for name, value in pairs))
