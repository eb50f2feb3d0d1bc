"""The report in a terminal, at most 80 columns wide. Colours only repeat what words say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeres.report.figures import megabytes, percent, significant
from edgeres.report.text import (
    NOT_CERTAIN,
    NOT_MADE,
    Report,
    check_word,
    corruption_table,
    figure_rows,
    findings,
    forms_tried,
    headline,
    observed,
    outcome_line,
    remarks,
    task_part,
    top1_line,
    unreadable,
    verdict_word,
    warned,
)
from edgeres.words import escaped

_STYLES = {"pass": "green", "FAIL": "bold red", "warning": "bold yellow", NOT_CERTAIN: "yellow", "allowed": "yellow"}


def render_terminal(report: Report, console: Console) -> None:
    """Print a report, with colours where the console supports them."""
    console.print(words_of(headline(report), style="bold"))
    console.print(words_of(top1_line(report), style="bold"))
    for line in remarks(report):
        console.print(words_of(line, style="bold yellow"))
    validation = report["data"]["validation"]
    if validation:
        console.print(words_of(f"validated on {validation['description']}"))
        if unreadable(validation):
            console.print(words_of(unreadable(validation), style="yellow"))
    for block in (
        _figures(report),
        pairs(findings(report, brief=True)),
        _corruptions(report),
        _gates(report),
        _checks(report),
        _engines(report),
        _forms(report),
    ):
        if block is not None:
            console.print()
            console.print(block)
    console.print()
    console.print(_verdict(report))


def _figures(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    if task := task_part(report):
        return _task_figures(report, task, table)
    top5 = ("top-5",) if report["accuracy"]["fp32"].get("top5") is not None else ()  # too few classes for it otherwise
    for column in ("", "top-1", *top5, "p50 ms", "p90 ms", "p99 ms", "img/s", "size"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in figure_rows(report):
        ms = (significant(row.taken[key]) for key in ("p50_ms", "p90_ms", "p99_ms", "throughput_ips"))
        hits = (percent(row.hits[name.replace("-", "")]) for name in ("top-1", *top5))
        table.add_row(row.name, *hits, *ms, megabytes(row.size))
    return table


def _task_figures(report: Report, task: dict[str, Any], table: Table) -> Table:
    """The task's own columns beside latency and size."""
    times = ("p50 ms", "p99 ms", "size")
    for column in ("", *task["columns"], *times):
        table.add_column(escaped(column), justify="right" if column else "left", no_wrap=column in times)
    for row, graph in zip(figure_rows(report), ("fp32", task["graph"]), strict=False):
        ms = (significant(row.taken[key]) for key in ("p50_ms", "p99_ms"))
        table.add_row(row.name, *map(words_of, task["cells"][graph]), *ms, megabytes(row.size))
    return table


def words_of(text: str, style: str = "") -> Text:
    """Text on one line, whatever label or name of a file is in it."""
    return Text(escaped(text), style=style)


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and words, one pair per line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in rows:
        table.add_row(words_of(name), words_of(words))
    return table


def _corruptions(report: Report) -> Table | None:
    found = corruption_table(report)
    if found is None:
        return None
    head, rows = found
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(words_of, row))
    return table


def _gates(report: Report) -> Table | None:
    if not report["verdicts"]:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for column in ("gate", "limit", "observed", "verdict"):
        table.add_column(column, no_wrap=True)
    for verdict in report["verdicts"]:
        word = verdict_word(verdict)
        table.add_row(verdict["title"], verdict["rule"], observed(verdict), words_of(word, style=_STYLES[word]))
    return table


def _checks(report: Report) -> Table | None:
    """Failed checks and warnings with their reasons, and the number of passed ones."""
    words = [(check, check_word(check)) for check in report["checks"]]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for fold in (False, False, True):
        table.add_column(no_wrap=not fold, overflow="fold")
    for check, word in words:
        if word in {"FAIL", "allowed", "warning"}:
            table.add_row(words_of(check["title"]), words_of(word, style=_STYLES[word]), words_of(check["reason"]))
    made = [word for _, word in words if word != NOT_MADE]
    others = f", {len(words) - len(made)} could not be made" if len(words) > len(made) else ""
    table.add_row(words_of("checks"), words_of(""), words_of(f"{made.count('pass')} of {len(made)} passed{others}"))
    return table


def _engines(report: Report) -> Table | None:
    if not report["engines"]:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for column in ("engine", "runtime", "", "size"):
        table.add_column(column, no_wrap=True, justify="right" if column == "size" else "left")
    table.add_column("status", overflow="fold")
    for engine in (one for one in report["engines"] if one["file"] or not one.get("trial")):
        size = megabytes(engine["size_bytes"] or None)
        runtime = f"{engine['runtime']} {engine['version']}"
        table.add_row(
            *(words_of(cell) for cell in (engine["target"], runtime, engine["precision"], size, engine["status"]))
        )
    return table


def _forms(report: Report) -> Table | None:
    """The forms that a device measured, one line each; figures come first, so that reasons may be folded."""
    rows = forms_tried(report)
    if not rows:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for column in ("form", "p50 ms", "SQNR"):
        table.add_column(column, no_wrap=column == "form", justify="left" if column == "form" else "right")
    table.add_column("why", overflow="fold")
    for name, ms, sqnr, _, _, why in rows:
        table.add_row(*(Text(cell) for cell in (name, ms, sqnr, why)))
    return table


def _verdict(report: Report) -> Text:
    line, others = outcome_line(report)
    if not report["passed"]:
        line = line.replace("Failed", "FAILED", 1)
    elif report["outcome"] == "passed" and report["verdicts"]:
        line = line.replace("Passed", "PASSED", 1)
    doubt = report["outcome"] == "unsure" or warned(report)
    colour = " red" if not report["passed"] else " yellow" if doubt else " green" if report["verdicts"] else ""
    told = [line, *(f"{title}: {reason}" for title, reason in others)]
    return Text("\n").join(words_of(one, style=f"bold{colour}") for one in told)
