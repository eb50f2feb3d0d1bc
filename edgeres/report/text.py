"""What a report says in words, the same in the terminal and on the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeres.judge.document import look_up, not_measurable, slower, slower_than_fp16, titled, why_missing
from edgeres.report.figures import NOT_MEASURED, decibels, interval, megabytes, percent, points, significant, times

Report = dict[str, Any]

NOT_CERTAIN, NOT_MADE = "not certain", "not made"


def observed(verdict: dict[str, Any]) -> str:
    value = verdict["observed"]
    unit = verdict["gate"]["unit"]
    if value is None:
        return "not measured"
    return f"{value:.3g} {unit}" if unit else f"{value:.5g}"


def verdict_word(verdict: dict[str, Any]) -> str:
    """``pass``, ``not certain`` where such a gate does not fail, or ``FAIL``."""
    if verdict["outcome"] == "unsure" and verdict["passed"]:
        return NOT_CERTAIN
    return "pass" if verdict["passed"] else "FAIL"


def check_word(check: dict[str, Any]) -> str:
    """``pass``, ``FAIL``, ``allowed``, ``warning``, or ``not made``."""
    if check["outcome"] == "failed":
        return "allowed" if check["allowed"] else "FAIL"
    if check.get("warns"):
        return "warning"
    return "pass" if check["outcome"] == "passed" else NOT_MADE


def verdict_line(report: Report) -> list[tuple[str, str]]:
    """Titles and reasons of all gates and checks that did not pass or warn, the worst first."""
    told = [(verdict_word(v), v["title"], v["reason"]) for v in report["verdicts"]]
    told += [(check_word(c), c["title"], c["reason"]) for c in report["checks"] if check_word(c) != NOT_MADE]
    order = ("FAIL", "warning", NOT_CERTAIN, "allowed")
    return [(title, reason) for wanted in order for word, title, reason in told if word == wanted]


def outcome_words(report: Report) -> str:
    """The outcome of the run, the same in the terminal, on the page and in Markdown."""
    if not report["verdicts"] and report["outcome"] == "passed":
        return "No gate was set"
    word = "Passed" if report["passed"] else "Failed"
    if report["outcome"] == "unsure":
        return f"{word}, {NOT_CERTAIN}"
    return f"{word}, with a warning" if report["passed"] and warned(report) else word


def outcome_line(report: Report) -> tuple[str, list[tuple[str, str]]]:
    """The outcome, with what a gate that is not certain lacks, and titles and reasons of the others.

    ``Passed, not certain: 0 of 318 images lost; 590 are needed to prove less than 1 pp``
    """
    words, told = outcome_words(report), verdict_line(report)
    first = next((v for v in report["verdicts"] if v["outcome"] == "unsure"), None)
    if report["outcome"] != "unsure" or first is None:
        return words, told
    title, reason = first["title"], first["reason"]
    others = [pair for pair in told if pair != (title, reason)]
    return f"{words}: {reason if first['gate']['metric'] == 'drop_pp' else f'{title}: {reason}'}", others


def remarks(report: Report) -> list[str]:
    """What is told before all figures, whatever the gates say."""
    latency = report["latency"]
    told = [slower_than_fp16(latency), slower(latency), weaker(report)]
    if precision_of(report) == "FP16":
        told.insert(0, "FP16 is what edgeres.load takes on this device: its clock found no faster INT8 engine")
    return [line for line in told if line]


def precision_of(report: Report) -> str:
    """Precision of what comes first in the report: FP16 where the device's clock chose an FP16 engine, else INT8."""
    return "FP16" if " fp16 " in (task_part(report).get("graph") or report["accuracy"]["graph"] or "") else "INT8"


def task_part(report: Report) -> dict[str, Any]:
    """What the network's task shows in place of the accuracy of classes; empty where it scores classes."""
    found: dict[str, Any] = report.get("task") or {}
    return found


@dataclass(frozen=True)
class FigureRow:
    """One line of the table of figures; ``hits`` and ``taken`` are parts of the report, None where there is none."""

    name: str
    hits: dict[str, Any]
    taken: dict[str, Any]
    size: int | None


def figure_rows(report: Report) -> list[FigureRow]:
    """FP32, FP16 where its engine was timed, and INT8: their accuracy, latency and size."""
    accuracy, latency, sizes = report["accuracy"], report["latency"], report["sizes"]
    rows = [FigureRow("FP32", accuracy["fp32"], latency["fp32"], sizes["fp32_bytes"])]
    head = (accuracy["graph"] or "").partition(" ")
    if not head[2].endswith("engine"):
        return [*rows, FigureRow("INT8", accuracy["int8"], latency["int8"], sizes["int8_bytes"])]
    for precision in ("fp16", "int8"):
        hits = accuracy["graphs"].get(f"{head[0]} {precision} engine")
        if hits is not None and latency.get(precision) is not None:
            built = (
                e for e in report["engines"] if e["file"] and (e["runtime"], e["precision"]) == (head[0], precision)
            )
            size = next((engine["size_bytes"] for engine in built), None)
            rows.append(FigureRow(precision.upper(), hits, latency[precision], size))
    return rows


def weaker(report: Report) -> str:
    """What a configuration judges more mildly than the defaults do; "" where it does not, or there is none."""
    config = report.get("config") or {"weaker": ()}
    told = [
        f"{one['key']} {one['value']}"
        if one["key"] == "allow"
        else f"{one['key']} {'off' if one['value'] is None else format(one['value'], 'g')} (default {one['default']:g})"
        for one in config["weaker"]
    ]
    return f"{config['file']} weakens what is judged: {', '.join(told)}" if told else ""


def unreadable(data: dict[str, Any]) -> str:
    """The number of unreadable images of a source as text; "" where all could be read."""
    names = data["unreadable"]
    return f"{len(names):,} unreadable image{'s' * (len(names) > 1)} left out" if names else ""


def headline(report: Report) -> str:
    model, calibration = report["model"], report["calibration"]
    line = f"edgeres {report['edgeres']}: {model['name']} ({model['weights']}) to INT8"
    if calibration["method"] is None:
        return line
    return f"{line}, {calibration['method']} ranges from {calibration['images']:,} images"


def warned(report: Report) -> bool:
    """Whether a check warns of something without failing."""
    return any(check_word(check) == "warning" for check in report["checks"])


def top1_line(report: Report) -> str:
    """Top-1 of FP32 and of INT8, or why there is none; of another task its own line."""
    if task := task_part(report):
        return str(task["line"])
    a = report["accuracy"]
    if a["fp32"]["top1"] is None:
        return f"top-1 not measured: {why_missing('accuracy.fp32.top1', report)}"
    int8 = f"{precision_of(report)} {percent(a['int8']['top1'])} ({titled(a['graph'])})"
    return f"top-1: FP32 {percent(a['fp32']['top1'])}, {int8}, of {a['fp32']['total']:,} images"


def corruption_table(report: Report) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows of the top-1 under each corruption, and of the images lost and gained; None where none was made."""
    rows = report.get("corruptions")
    if not rows or rows[0]["fp32"] is None:
        return None
    names = list(rows[0]["graphs"])
    told = []
    for row in rows:
        title = "as they are" if row["value"] is None else f"{row['kind']} {row['strength']} ({row['value']:g})"
        graphs = (row["graphs"][name] for name in names)
        shares = (f"{_share(graph['correct'], row)} (-{graph['lost']} +{graph['gained']})" for graph in graphs)
        told.append([title, _share(row["fp32"], row), *shares])
    return ["images", "FP32", *(f"INT8, {name}" for name in names)], told


def _share(correct: int, row: dict[str, Any]) -> str:
    return f"{100 * correct / row['labelled']:.1f} %"


def findings(report: Report, *, brief: bool = False) -> list[tuple[str, str]]:
    """Comparisons of INT8 with FP32: name, and figure with interval or the reason why it is missing.

    Args:
        brief: put the refinement's steps into one line.
    """
    a, m = report["accuracy"], report["latency"]
    agreement = f"{percent(a['agreement'])}, 95 % interval {interval(a['agreement_ci95'])}"
    speedup = f"{times(m['speedup'])}, 95 % interval {interval(m['speedup_ci95'])}, on {m['backend']}, {m['scope']}"
    speedup = not_measurable(m) or speedup
    of_int8 = "" if precision_of(report) == "INT8" else " of INT8"
    of_scores = [
        ("top-1 drop", "accuracy.drop_pp", _drop(a)),
        ("agreement", "accuracy.agreement", agreement),
        ("logit SQNR", "accuracy.logit_sqnr_db", decibels(a["logit_sqnr_db"])),
    ]
    task = task_part(report)
    figures = [
        *([] if task else of_scores),
        (f"speedup{of_int8}", "latency.speedup", speedup),
    ]
    if m.get("speedup_fp16") is not None:
        over = f"{times(m['speedup_fp16'])}, 95 % interval {interval(m['speedup_fp16_ci95'])}"
        figures.append((f"speedup{of_int8} over FP16", "latency.speedup_fp16", over))
    told = [(name, words) for name, words in task.get("findings", ())]
    told += [
        (name, words if look_up(path, report) is not None else f"not measured: {why_missing(path, report)}")
        for name, path, words in figures
    ]
    steps = report["refinement"]
    told += _steps_in_brief(steps) if brief else [(step["name"], _step(step)) for step in steps]
    told += [("noisy times", "; ".join(m["noise"]))] if m["noise"] else []
    told += [("limits from", config["file"])] if (config := report.get("config")) else []
    if a.get("reference"):
        told.append(("FP32 answers", a["reference"]))
    told += [(name, _framed(one)) for name, one in a.get("frames", {}).items()]
    return told + [(titled(name), _graph(report, graph, name == a["graph"])) for name, graph in a["graphs"].items()]


def _framed(found: dict[str, Any]) -> str:
    """An engine that takes frames beside the contract."""
    sqnr = "logits equal" if found["sqnr_db"] is None else f"SQNR {decibels(found['sqnr_db'])}"
    ran = found["runner"] or "its graph on ONNX Runtime as a stand-in"
    words = [f"same class as with prepared images on {found['same']} of {found['images']} frames", sqnr]
    if found["right"]:
        words.append(f"right on {found['right'][0]}, with prepared images on {found['right'][1]}")
    if found["equal_percent"] is not None:
        words.append(f"{found['equal_percent']:.4g} % of the prepared bytes equal")
    return f"{', '.join(words)}; {ran}"


def forms_tried(report: Report) -> list[tuple[str, ...]]:
    """The forms that were measured on a device: name, median with interval, SQNR, size, kernels, and why."""
    rows: list[tuple[str, ...]] = []
    for engine in report["engines"]:
        trial = engine.get("trial")
        if trial is None:
            continue
        limits = trial["p50_ms_ci95"]
        around = f" ({significant(limits[0])} to {significant(limits[1])})" if limits else ""
        ms = f"{significant(trial['p50_ms'])}{around}"
        kernels = NOT_MEASURED if trial["kernels"] is None else str(trial["kernels"]["kernels"])
        size = megabytes(engine["size_bytes"] or None)
        why = f"taken: {trial['why']}" if trial["chosen"] else trial["why"]
        rows.append((trial["form"], ms, decibels(trial["sqnr_db"]), size, kernels, why))
    return rows


def _step(step: dict[str, Any]) -> str:
    if step["after_db"] is None:
        return f"left out: {step['note']} ({step['style']} graph)"
    change = f"{decibels(step['before_db'])} to {decibels(step['after_db'])} on held-back images, {step['style']} graph"
    return change if step["kept"] else f"left out: {step['note']} ({change})"


def _steps_in_brief(steps: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What refinement brought to each graph, in one line; and the steps that could not be tried, with the reason."""
    if not steps:
        return []
    words, tried = [], [step for step in steps if step["after_db"] is not None]
    for style in dict.fromkeys(step["style"] for step in tried):
        kept = [step for step in tried if step["kept"] and step["style"] == style]
        if kept and kept[-1]["note"]:  # the steps before it are not used
            words.append(f"{style} graph {decibels(kept[-1]['after_db'])}: {kept[-1]['name']}")
        elif kept:
            change = f"{decibels(kept[0]['before_db'])} to {decibels(kept[-1]['after_db'])}"
            words.append(f"{style} graph {change} on held-back images ({' + '.join(step['name'] for step in kept)})")
    dropped = sum(not step["kept"] for step in tried)
    if dropped:
        words.append(f"{dropped} {'step' if dropped == 1 else 'steps'} left out, since no gain was certain")
    failed = {f"{step['name']} left out: {step['note']}" for step in steps if step["after_db"] is None}
    return [("refinement", "; ".join([*words, *sorted(failed)]))]


def _drop(a: dict[str, Any]) -> str:
    if a["drop_pp"] is None:
        return NOT_MEASURED
    pairs = f"{a['lost']} lost, {a['gained']} gained, McNemar p = {a['mcnemar_p']:.2g}"
    return f"{points(a['drop_pp'])}, 95 % interval {interval(a['drop_pp_ci95'])} ({pairs})"


def _graph(report: Report, graph: dict[str, Any], is_headline: bool) -> str:
    if is_headline:
        return f"the {precision_of(report)} above; {graph['note'] or graph['runner']}"
    words = f"agreement {percent(graph['agreement'])}"
    if graph["drop_pp"] is not None:
        words = f"top-1 {percent(graph['top1'])}, drop {points(graph['drop_pp'])}, {words}"
    return f"{words}; {graph['note'] or graph['runner']}"
