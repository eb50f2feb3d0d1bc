"""The report as Markdown of GitHub and GitLab, for a job summary or a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgeres.report.figures import interval, megabytes, percent, points, significant
from edgeres.report.text import (
    NOT_CERTAIN,
    NOT_MADE,
    Report,
    check_word,
    corruption_table,
    figure_rows,
    findings,
    headline,
    observed,
    outcome_line,
    outcome_words,
    precision_of,
    remarks,
    task_part,
    top1_line,
    verdict_word,
)
from edgeres.words import escaped

_SIGNS = {"pass": "✅", "FAIL": "❌", "warning": "⚠️", NOT_CERTAIN: "⚠️", "allowed": "⚠️"}
LISTED = 10


def render_markdown(report: Report) -> str:
    """The whole summary; problems come first."""
    sign = {"passed": "✅ ", "failed": "❌ ", "unsure": "⚠️ "}[report["outcome"]] if report["verdicts"] else ""
    line, others = outcome_line(report)
    told = [f"- **{_cell(title)}**: {_cell(reason)}" for title, reason in others]
    parts = [
        f"## {_cell(report['model']['name'])} in {precision_of(report)}: {sign}{outcome_words(report).lower()}",
        f"**{_cell(line)}**" if report["outcome"] == "unsure" else "",
        f"{_cell(top1_line(report))}.",
        "\n".join([*(f"- **{_cell(remark)}**" for remark in remarks(report)), *told]),
        _gates(report),
        _figures(report),
        _changes(report),
        _corruptions(report),
        _images(report),
        f"<details><summary>All figures</summary>\n\n{_table(('Figure', 'Value'), findings(report))}\n\n</details>",
        f"<sub>{_cell(headline(report))}. {_cell(_validated(report))}</sub>",
    ]
    return escaped("\n\n".join(filter(None, parts)) + "\n", keep="\n")


def _gates(report: Report) -> str:
    found = [(verdict_word(v), v["title"], v["rule"], observed(v)) for v in report["verdicts"]]
    found += [
        (check_word(c), c["title"], "check", "") for c in report["checks"] if check_word(c) not in ("pass", NOT_MADE)
    ]
    rows = [(f"{_SIGNS[word]} {word}", *cells) for word, *cells in found]
    return _table(("", "Gate", "Limit", "Observed"), rows) if rows else ""


def _figures(report: Report) -> str:
    accuracy, task = report["accuracy"], task_part(report)
    rows: list[tuple[str, ...]] = []
    if task:
        for row, graph in zip(figure_rows(report), ("fp32", task["graph"]), strict=False):
            ms = (significant(row.taken[key]) for key in ("p50_ms", "p99_ms"))
            rows.append((row.name, *task["cells"][graph], *ms, megabytes(row.size)))
        return _table(("", *task["columns"], "p50 ms", "p99 ms", "Size"), rows, right=range(1, len(rows[0])))
    for row in figure_rows(report):
        ms = (significant(row.taken[key]) for key in ("p50_ms", "p99_ms"))
        rows.append((row.name, percent(row.hits["top1"]), *ms, megabytes(row.size)))
    told = ""
    if accuracy["drop_pp"] is not None:
        told = f"\n\nTop-1 drop {points(accuracy['drop_pp'])}, 95 % interval {interval(accuracy['drop_pp_ci95'])}."
    return _table(("", "Top-1", "p50 ms", "p99 ms", "Size"), rows, right=range(1, 5)) + told


def _changes(report: Report) -> str:
    baseline = report["baseline"]
    if not baseline or not baseline["changed"]:
        return ""
    rows = [(row["what"], _short(row["before"]), _short(row["after"])) for row in baseline["changed"]]
    table = _table(("Changed since the baseline", "Before", "After"), rows)
    return f"<details><summary>{len(rows)} things changed since the baseline</summary>\n\n{table}\n\n</details>"


def _short(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _corruptions(report: Report) -> str:
    found = corruption_table(report)
    if found is None:
        return ""
    head, rows = found
    table = _table(head, rows, right=range(1, len(head)))
    return f"<details><summary>Top-1 on corrupted images (lost, gained against FP32)</summary>\n\n{table}\n\n</details>"


def _images(report: Report) -> str:
    graph = report["accuracy"]["graphs"].get(report["accuracy"]["graph"])
    if not graph or not graph["lost_images"]:
        return ""
    labels, lost = report["model"]["labels"], graph["lost_images"]
    rows = [(one["image"], labels[one["label"]], labels[one["candidate"]]) for one in lost[:LISTED]]
    more = f"\n\n{len(lost) - LISTED:,} more are listed in report.json." if len(lost) > LISTED else ""
    table = _table(("Image", "FP32, rightly", "INT8"), rows)
    title = f"{len(lost):,} image{'s' * (len(lost) > 1)} that INT8 gets wrong and FP32 right"
    return f"<details><summary>{title}</summary>\n\n{table}{more}\n\n</details>"


def _validated(report: Report) -> str:
    validation = report["data"]["validation"]
    return f"Validated on {validation['description']}." if validation else "Nothing was validated."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    numbers = frozenset(right)
    rule = ("---:" if i in numbers else "---" for i in range(len(head)))
    lines = [head, tuple(rule), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Escape text, so that no label or file name becomes markup, a link, a mention, or a new column."""
    plain = " ".join(text.split())
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~&!$]|:(?=//)|(?<=www)\.|(?<=\bGH)-)", r"\\\1", plain, flags=re.IGNORECASE)
    return escaped.replace("@", "@\u200b")
