"""How stages tell how far they are, without knowing who listens.

A stage takes ``progress: Progress = SILENT`` and wraps its loop::

    with progress.task("calibrating", total=512) as advance:
        for batch in batches:
            ...
            advance(len(batch))

The command line passes a bar drawn by rich; a library call stays silent unless its caller passes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Anything that can show a named task of a known size (``total=None``: size unknown)."""

    def task(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        """Open a task; the value is a function that moves it on by a number of steps."""
        ...

    def say(self, line: str) -> None:
        """Show one line of text beside the bars."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        yield lambda steps: None

    def say(self, line: str) -> None:
        return None


SILENT = Silent()
