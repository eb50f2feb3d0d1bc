"""Progress on stderr: bars drawn by rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from edgeres.cli.show import new_console
from edgeres.progress import Advance, Silent
from edgeres.words import escaped, without_secrets

# A log that is silent for longer is taken for dead by some CI systems.
_QUIET_SECONDS = 60.0


class Bars:
    """Shows the stage and its tasks while they run; the line of a finished stage, its seconds and notes stay."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        start = time.perf_counter()
        with self._shown() as bars, _row(bars, what, None):
            yield
        self.say(f"{what}  {_seconds(time.perf_counter() - start)}")

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        inside = self._bars is not None
        with self._shown() as bars, _row(bars, f"    {name}" if inside else name, total) as row:
            yield lambda steps: bars.advance(row, steps)

    def say(self, line: str) -> None:
        self._console.print(escaped(without_secrets(line)), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def _shown(self) -> Iterator[Progress]:
        """The display, which begins with the outermost stage or task and ends with it."""
        if self._bars is not None:
            yield self._bars
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), _Counted())
        with Progress(*columns, console=self._console, transient=True) as self._bars:
            try:
                yield self._bars
            finally:
                self._bars = None


class _Counted(ProgressColumn):
    """Bar, count and remaining time of a task whose size is known; the elapsed time of others."""

    def __init__(self) -> None:
        super().__init__()
        self._known = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        self._unknown = TimeElapsedColumn()

    def render(self, task: Task) -> RenderableType:
        from rich.table import Table

        if task.total is None:
            return self._unknown.render(task)
        row = Table.grid(padding=(0, 1))
        row.add_row(*(column.render(task) for column in self._known))
        return row


@contextmanager
def _row(bars: Progress, text: str, total: int | None) -> Iterator[TaskID]:
    row = bars.add_task(escaped(without_secrets(text)), total=total)
    try:
        yield row
    finally:
        bars.remove_task(row)


class Lines:
    """Prints a line a stage, notes, and a sign of life each minute, for logs and pipes."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        self.say(what)
        yield

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        done = 0

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            if time.monotonic() - self._last > _QUIET_SECONDS:
                self.say(f"    {name}: {done}" + (f" of {total}" if total else ""))

        yield advance

    def say(self, line: str) -> None:
        self._last = time.monotonic()
        _print(line)


class Notes(Silent):
    """Prints notes alone, where stdout is JSON, and keeps them for it in ``notes``."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def say(self, line: str) -> None:
        self.notes.append(line.removeprefix("note: "))
        _print(line)


def _print(line: str) -> None:
    with suppress(OSError):  # where stderr is full, the result still counts
        print(escaped(without_secrets(line)), file=sys.stderr, flush=True)  # noqa: T201


def _seconds(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def progress(*, quiet: bool = False) -> Bars | Lines | Notes:
    """Bars on a terminal, lines elsewhere; where ``quiet`` notes alone, because what was left out is always said."""
    if quiet:
        return Notes()
    console = new_console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()
