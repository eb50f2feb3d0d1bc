"""The page's section on a task whose answers are no classes: its tables and plots, as report.json has them."""

from __future__ import annotations

from typing import Any

from edgeres.report.charts import bar_chart, point_chart
from edgeres.report.html_accuracy import SHOWN_ROWS
from edgeres.report.markup import Html, el, join, more, prose, section, table
from edgeres.report.text import Report, task_part


def task_section(report: Report) -> Html:
    """Plots, then tables; the rows of a long table are folded."""
    task = task_part(report)
    title = str(task["name"]).capitalize()
    plots = [_plot(plot, f"task-{number}") for number, plot in enumerate(task["plots"])]
    return section(title, el("p", f"{task['line']}."), *plots, *map(_table, task["tables"]))


def _plot(plot: dict[str, Any], name: str) -> Html:
    draw = point_chart if plot["form"] == "points" else bar_chart
    return join(el("h3", plot["title"]), draw(plot, name))


def _table(found: dict[str, Any]) -> Html:
    rows = [tuple(map(prose, row[:1])) + tuple(row[1:]) for row in found["rows"]]
    head, numbers, first = found["head"], found["numbers"], rows[:SHOWN_ROWS]
    rest = rows[SHOWN_ROWS:]
    if not rows:
        return Html()
    return join(
        el("h3", found["title"]),
        table(found["title"], head, first, numbers),
        more(f"{len(rest):,} more", table(f"{found['title']}, further rows", head, rest, numbers)) if rest else "",
        el("p", found["note"], class_="soft small") if found["note"] else "",
    )
