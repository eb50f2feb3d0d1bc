"""Progress of an engine build, computed from the vendor's nested phases."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from edgeres.progress import Advance


class Meter:
    """Shows the builder's nested phases as one bar that never goes back.

    The number of phases in a step is unknown, so each new one takes half of the rest of its parent's step. The builder
    may call from several threads. An exception in ``advance`` ends the build and is kept in ``error``.
    """

    TOTAL = 1000

    def __init__(self, advance: Advance) -> None:
        self.error: BaseException | None = None
        self._advance = advance
        self._shown = 0
        self._stopped = False
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}

    def stop(self) -> None:
        """Make the builder give up at its next step."""
        self._stopped = True

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            above = self._phases.get(parent or "")
            low = 0.0 if above is None else above.reached
            high = 1.0 if above is None else (above.reached + above.after(above.done + 1)) / 2
            self._phases[name] = _Phase(low, high, steps, above, low)

    def step(self, name: str, index: int) -> bool:
        """Count step ``index`` (from 0) as done; returns False to make the builder give up."""
        with self._lock:
            phase = self._phases[name]
            phase.reach(index + 1)
            try:
                self._show(int(self.TOTAL * phase.reached))
            except BaseException as error:  # must not cross into C++
                self.error = error
            return not self._stopped and self.error is None

    def finish(self, name: str) -> None:
        with self._lock:
            phase = self._phases.pop(name)
            if phase.parent is not None:
                phase.parent.reached = max(phase.parent.reached, phase.high)

    def complete(self) -> None:
        """Fill the bar, since phases may end before their last step."""
        self._show(self.TOTAL)

    def _show(self, reached: int) -> None:
        if reached > self._shown:
            self._advance(reached - self._shown)
            self._shown = reached


@dataclass
class _Phase:
    """The part [low, high] of the bar; ``reached`` lies within it."""

    low: float
    high: float
    steps: int
    parent: _Phase | None
    reached: float
    done: int = 0

    def reach(self, done: int) -> None:
        self.done = done
        self.reached = max(self.reached, self.after(done))

    def after(self, done: int) -> float:
        return self.low + (self.high - self.low) * min(done, self.steps) / self.steps
