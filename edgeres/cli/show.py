"""Print results: JSON alone on stdout, or text."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeres.words import escaped, shown_argument

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from edgeres.records import EngineRecord

Json = dict[str, Any]


def echo(*lines: object, err: bool = False) -> None:
    """Print lines, or an empty one; their words may come from anybody: labels, names of files, other machines."""
    for line in lines or ("",):
        click.echo(escaped(str(line), keep="\t"), err=err)


class _Cleaned:
    """What rich shows, with control characters of its text escaped; rich's own colours and cursor moves stay."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for text, style, control in console.render(self._content, options):
            yield Segment(text if control else escaped(text, keep="\n"), style, control)


class _Cleaner:
    """Rich's hook for everything that a console shows."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Cleaned(content) for content in renderables]


def new_console(**settings: Any) -> Console:
    """A console of rich; see :class:`_Cleaned`."""
    from rich.console import Console

    console = Console(**settings)
    console.push_render_hook(_Cleaner())  # type: ignore[arg-type]  # it has the hook's one method
    return console


def print_json(content: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(escaped(json.dumps(content, indent=2, allow_nan=False), keep="\n", form="json"))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """Print a plain table, as wide as the terminal, or 200 columns wide in a pipe."""
    from rich.table import Table
    from rich.text import Text

    console = new_console(highlight=False)
    if not console.is_terminal:
        # A pipe has no width, and grep cannot find text in folded cells.
        console = new_console(highlight=False, width=200)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in columns:
        fold = name != columns[0] or "tensor" in name
        table.add_column(name, justify="right" if name in set(right) else "left", overflow="fold", no_wrap=not fold)
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    console.print(table)


def print_report(report: Json, *, as_json: bool) -> None:
    """Print a report as the JSON of report.json, or as text."""
    from edgeres.judge.document import to_json
    from edgeres.report.terminal import render_terminal

    if as_json:
        click.echo(to_json(report), nl=False)
    else:
        render_terminal(report, new_console())


def print_engines(bundle: Path, records: Iterable[EngineRecord]) -> None:
    """Print size and status of each engine of a bundle, by its file or, without one, by its target and precision."""
    for record in records:
        what = bundle / record.file if record.file else f"{record.target} {record.precision}"
        why = f"; {record.trial.form}: {record.trial.why}" if record.trial else ""
        echo(f"{what}: {record.size_bytes / 1e6:.1f} MB, {record.status}{why}")


def command_line() -> str:
    """This process's command, quoted for a shell, without paths to elsewhere and secrets in URLs."""
    return shlex.join(["edgeres", *map(shown_argument, sys.argv[1:])])
