"""Differences between builds in the terminal: likely causes first; long tables are cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from edgeres.judge.document import Json, why_missing
from edgeres.report.compare_text import changed, graphs, ratio, scale, since, size, title, with_interval
from edgeres.report.figures import NOT_MEASURED
from edgeres.report.terminal import pairs, words_of

LISTED = 10


def render_comparison(found: Json, console: Console) -> None:
    """Print one pair of builds, no wider than the console."""
    likely, *others = found["causes"]
    console.print(words_of(title(found), style="bold"))
    console.print(words_of(f"likely cause: {likely}", style="bold"))
    for other in others:
        console.print(words_of(f"also: {other}"))
    for block in _blocks(found):
        console.print()
        console.print(block)


def _blocks(found: Json) -> Iterator[RenderableType]:
    yield _figures(found)
    yield pairs(since(found))
    yield from _scales(found)
    yield from _placements(found)
    yield _table(("size", "before", "after", "ratio"), map(size, found["sizes"]), right=(1, 2, 3))
    rows = list(changed(found))
    if rows:
        yield _table(("changed", "before", "after"), rows, fold=(0, 1, 2))


def _figures(found: Json) -> Table:
    rows = (
        (
            name if side == "before" else "",
            side,
            with_interval(row[side]["top1"], None),
            *(_stacked(with_interval(row[side][key], row[side][f"{key}_ci95"])) for key in ("drop_pp", "agreement")),
            NOT_MEASURED if row[side]["logit_sqnr_db"] is None else f"{row[side]['logit_sqnr_db']:.1f}",
        )
        for name, row in graphs(found)
        for side in ("before", "after")
    )
    return _table(("graph", "", "top-1 %", "drop pp", "agreement %", "SQNR"), rows, right=(2, 3, 4, 5))


def _stacked(figure: str) -> Text:
    """Put the interval below its figure, because two of them side by side are too wide for a terminal."""
    return Text(figure.replace(" (", "\n("))


def _scales(found: Json) -> Iterator[RenderableType]:
    if found["scales"] is None:
        yield words_of(f"scales: not compared, {why_missing('scales', found)}")
        return
    for style, scales in found["scales"].items():
        what = "scales" if scales["of"] == "graph" else "ranges of calibration.json"
        if not scales["changed"]:
            yield words_of(f"{what} of the {style} graph: none of {scales['tensors']} changed by more than 10 %")
            continue
        yield words_of(
            f"{what} of the {style} graph: {scales['changed']} of {scales['tensors']} changed by more than 10 %"
        )
        rows = [
            (row["tensor"], scale(row["before"]), scale(row["after"]), ratio(row["ratio"]))
            for row in scales["rows"][: min(LISTED, scales["changed"])]
        ]
        yield _table(("tensor", "before", "after", "ratio"), rows, right=(1, 2, 3), fold=(0,))


def _placements(found: Json) -> Iterator[RenderableType]:
    for style, places in (found["placements"] or {}).items():
        rows = [("gained", name, "") for name in places["gained"]] + [("lost", name, "") for name in places["lost"]]
        rows += [("float", one["what"], one["reason"]) for one in places["left_in_float"]]
        if rows:
            beyond = len(rows) - LISTED
            shown = rows[:LISTED] + ([("", f"and {beyond} more; --json has all", "")] if beyond > 0 else [])
            yield _table(("Q/DQ", f"tensor of the {style} graph", "why"), shown, fold=(1, 2))
    if found["placements"] is None:
        yield words_of(f"Q/DQ pairs: not compared, {why_missing('placements', found)}")


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Sequence[int] = (), fold: Sequence[int] = ()
) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i in right else "left", no_wrap=i not in fold, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else words_of(cell) for cell in row))
    return table
