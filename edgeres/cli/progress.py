"""Progress on stderr: bars drawn by rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from edgeres.cli.show import new_console
from edgeres.progress import SILENT, Advance
from edgeres.progress import Progress as Contract
from edgeres.words import escaped, without_secrets


class Bars:
    """Shows a bar while a task runs; notes stay on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        name_column = TextColumn("{task.description}")
        columns = (SpinnerColumn(), name_column, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            number = bar.add_task(name, total=total)
            yield lambda steps: bar.advance(number, steps)

    def say(self, line: str) -> None:
        self._console.print(escaped(without_secrets(line)), markup=False, highlight=False, soft_wrap=True)


class Lines:
    """Prints notes only, for logs and pipes."""

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        yield lambda steps: None

    def say(self, line: str) -> None:
        with suppress(OSError):  # where stderr is full, the result still counts
            print(escaped(without_secrets(line)), file=sys.stderr)  # noqa: T201


def progress(*, quiet: bool = False) -> Contract:
    """Bars on a terminal, lines elsewhere, nothing where ``quiet``."""
    if quiet:
        return SILENT
    console = new_console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()
