"""The interface for progress messages; stages report to it and do not depend on how they are shown.

A stage takes ``progress: Progress = SILENT``, says what it begins, and wraps its loops::

    with progress.stage("calibrate", "calibrating 512 images"):
        with progress.task("calibrating", total=512) as advance:
            for batch in batches:
                ...
                advance(len(batch))

The command line shows bars drawn by rich; a library call is silent unless its caller passes an implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Shows stages, named tasks in them, and notes; ``total=None`` means that a task's size is unknown."""

    def stage(self, name: str, what: str) -> AbstractContextManager[None]:
        """Begin a stage; ``name`` is its key in a :class:`Numbered` plan, ``what`` is shown."""
        ...

    def task(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        """Begin a task; the context's value is a function that advances it by a number of steps."""
        ...

    def say(self, line: str) -> None:
        """Show one line of text beside the bars."""
        ...


class Silent:
    """A progress that shows nothing."""

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        yield

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        yield lambda steps: None

    def say(self, line: str) -> None:
        return None


class Numbered:
    """Shows the stages of a plan with their number, ``3/7 calibrating``; a stage that is left out leaves a gap."""

    def __init__(self, shown: Progress, plan: Sequence[str]) -> None:
        self._shown, self._plan = shown, tuple(plan)

    def stage(self, name: str, what: str) -> AbstractContextManager[None]:
        number = f"{self._plan.index(name) + 1}/{len(self._plan)} " if name in self._plan else ""
        return self._shown.stage(name, f"{number}{what}")

    def task(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        return self._shown.task(name, total)

    def say(self, line: str) -> None:
        self._shown.say(line)


SILENT = Silent()
