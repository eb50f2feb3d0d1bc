"""The interface for progress messages; stages report to it and do not depend on how they are shown.

A stage takes ``progress: Progress = SILENT`` and wraps its loop::

    with progress.task("calibrating", total=512) as advance:
        for batch in batches:
            ...
            advance(len(batch))

The command line shows bars drawn by rich; a library call is silent unless its caller passes an implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Shows named tasks and notes; ``total=None`` means that a task's size is unknown."""

    def task(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        """Begin a task; the context's value is a function that advances it by a number of steps."""
        ...

    def say(self, line: str) -> None:
        """Show one line of text beside the bars."""
        ...


class Silent:
    """A progress that shows nothing."""

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        yield lambda steps: None

    def say(self, line: str) -> None:
        return None


SILENT = Silent()
