"""What a search of the best form keeps in the user's cache until the choice is made, and how long it may take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from edgeres.documents import DocumentKind
from edgeres.errors import EdgeresError, EngineError
from edgeres.files import write_file, write_json
from edgeres.progress import Advance, Progress
from edgeres.verify.latency import LatencyPlan, Turns
from edgeres.zoo.download import cache_dir

_TIMING = LatencyPlan("", min_seconds=3.0)
_LEAST_SECONDS = _TIMING.min_turns * _TIMING.block_seconds
_OVERHEAD = 1.0  # seconds of an engine besides its recorded turns: to load, to warm up, to run the probes


@dataclass(frozen=True)
class _KeptTurns:
    """Latencies of the engines whose digests are ``engines``, by form; see :class:`Turns`."""

    engines: Mapping[str, str]
    block: Mapping[str, int]
    seconds: Mapping[str, tuple[float, ...]]


_KEPT = DocumentKind(_KeptTurns, "kept latencies", "run it again")


@dataclass(frozen=True)
class Kept:
    """Files in the cache. Where it cannot be written, an interrupted search begins anew.

    Attributes:
        engines: where the engine of each form is kept.
    """

    engines: Mapping[str, Path]

    @property
    def _turns(self) -> Path:
        names = repr(sorted(path.name for path in self.engines.values()))
        return folder() / f"{hashlib.sha256(names.encode()).hexdigest()[:24]}.json"

    def keep_engine(self, form: str, data: bytes) -> None:
        with suppress(OSError):
            write_file(self.engines[form], data)

    @contextmanager
    def turns(self, engines: Mapping[str, bytes]) -> Iterator[Turns]:
        """The turns that an interrupted search has recorded of these engines; what is added to them is kept."""
        digests = {form: hashlib.sha256(data).hexdigest() for form, data in engines.items()}
        turns = Turns()
        with suppress(EdgeresError):
            found = _KEPT.read(self._turns)
            if found.engines == digests:
                turns = Turns(dict(found.block), {form: list(taken) for form, taken in found.seconds.items()})
        try:
            yield turns
        finally:
            seconds = {form: tuple(taken) for form, taken in turns.seconds.items()}
            with suppress(OSError):
                write_json(self._turns, _KEPT.content(_KeptTurns(digests, turns.block, seconds)))

    def forget(self) -> None:
        """Remove the files, once the choice is made."""
        for path in (*self.engines.values(), self._turns):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def folder() -> Path:
    return cache_dir() / "trials"


@dataclass
class Budget:
    """The seconds that a search may take, building and timing together.

    Only the first engine is built however long it takes. Another one is begun if it fits, were it to take as long as
    the slowest so far, and given up where it does not. Each engine needs some seconds to be timed.
    """

    seconds: float
    progress: Progress
    started: float = field(default_factory=lambda: monotonic())
    slowest: float = 0.0

    def left(self) -> float:
        return self.seconds - (monotonic() - self.started)

    def why_not(self, others: int, *, is_built: bool = False) -> str:
        """Why no further engine is built or timed beside this many others; "" where one fits."""
        needed = (others + 1) * (_LEAST_SECONDS + _OVERHEAD) + (0.0 if is_built else self.slowest)
        return f"the time budget of {self.seconds:g} s is spent" if others and self.left() < needed else ""

    @contextmanager
    def building(self, others: int) -> Iterator[Progress]:
        """A progress that ends a build beside ``others`` where the budget ends."""
        start = monotonic()
        yield _Ending(self, others) if others else self.progress
        self.slowest = max(self.slowest, monotonic() - start)

    def plan(self, scope: str, engines: int) -> LatencyPlan:
        """How long each of so many engines is timed."""
        seconds = min(_TIMING.min_seconds, max(_LEAST_SECONDS, self.left() / engines - _OVERHEAD))
        return LatencyPlan(scope, min_seconds=seconds)


@dataclass(frozen=True)
class _Ending:
    """The progress of a build that raises where the time is over."""

    budget: Budget
    others: int

    def stage(self, name: str, what: str) -> AbstractContextManager[None]:
        return self.budget.progress.stage(name, what)

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        with self.budget.progress.task(name, total) as advance:

            def go_on(steps: int) -> None:
                if why := self.budget.why_not(self.others, is_built=True):
                    raise EngineError(why)
                advance(steps)

            yield go_on

    def say(self, line: str) -> None:
        self.budget.progress.say(line)
