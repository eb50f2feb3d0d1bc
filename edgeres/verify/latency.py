"""Latency of two or more runners, side by side, the way trtexec measures one.

Warm-up of 200 ms, at least 3 s and 10 inferences each, percentiles without interpolation (see
:func:`edgeres.records.percentile_nearest`). Runners take turns in short blocks, A B B A A B B A ..., so that a clock
that ramps down or a neighbour that wakes up meets both alike.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from edgeres.progress import SILENT, Progress
from edgeres.records import F64, Measurement, percentile_nearest
from edgeres.runtime.runner import Feed, Runner
from edgeres.verify.statistics import Estimate, block_bootstrap, ratio_of_medians

# trtexec warns at 2.5 % for a GPU's own compute time; a host that schedules other processes is never that quiet.
MAX_VARIATION_PERCENT = 10.0
MAX_DRIFT_PERCENT = 5.0


@dataclass(frozen=True)
class LatencyPlan:
    """How long to measure.

    Attributes:
        scope: what lies between the two clock readings, in words, e.g. ``host to host, batch 1, 1 thread``.
        warmup_seconds: per runner, before anything is recorded.
        min_seconds, min_iterations: recorded per runner; both must be reached.
        min_turns: of each runner; the interval is drawn from whole turns, so a few are needed.
        block_seconds: length of one turn; at least one inference.
    """

    scope: str
    warmup_seconds: float = 0.2
    min_seconds: float = 3.0
    min_iterations: int = 10
    min_turns: int = 8
    block_seconds: float = 0.1


class _TimedRunner:
    """One runner on its feed, with what was recorded of it."""

    def __init__(self, runner: Runner, feed: Feed) -> None:
        self.runner = runner
        self.feed = feed
        self.seconds: list[float] = []
        self.warmup_seconds = 0.0
        self.block = 1

    @property
    def total(self) -> float:
        return sum(self.seconds)

    def once(self) -> float:
        start = perf_counter()
        self.runner.infer(self.feed)
        return perf_counter() - start

    def warm_up(self, plan: LatencyPlan) -> None:
        taken: list[float] = []
        while sum(taken) < plan.warmup_seconds or not taken:
            taken.append(self.once())
        self.warmup_seconds = sum(taken)
        # The mean, not the median: where others take most of the processor, a turn by the median would never end
        self.block = max(1, round(plan.block_seconds / float(np.mean(taken))))

    def take_turn(self) -> None:
        self.once()  # not recorded: it finds the caches full of the other runner's weights, which no application sees
        self.seconds += [self.once() for _ in range(self.block)]

    def is_done(self, plan: LatencyPlan) -> bool:
        enough = len(self.seconds) >= max(plan.min_iterations, plan.min_turns * self.block)
        return enough and self.total >= plan.min_seconds

    def measurement(self, plan: LatencyPlan) -> Measurement:
        batch = len(next(iter(self.feed.values())))
        seconds = np.array(self.seconds)
        return Measurement(seconds, batch, plan.scope, self.runner.name, self.warmup_seconds, self.block)


def measure_latency(
    runners: Mapping[str, Runner],
    feed_for: Callable[[Runner], Feed],
    plan: LatencyPlan,
    progress: Progress = SILENT,
) -> dict[str, Measurement]:
    """Measure all runners in one run, in alternating blocks, in this thread, with the garbage collector off.

    Args:
        feed_for: the arrays a runner is fed with, made once; their first axis is the batch.

    Returns:
        One measurement for each runner, with equally many blocks; block ``i`` of all of them was taken in one turn.
    """
    timed = {name: _TimedRunner(runner, feed_for(runner)) for name, runner in runners.items()}
    turn = list(timed.values())
    with progress.task("measuring latency", total=round(1e3 * plan.min_seconds)) as advance, _no_collection():
        for runner in turn:
            runner.warm_up(plan)
        shown = 0
        while not all(runner.is_done(plan) for runner in turn):
            for runner in turn:
                runner.take_turn()
            turn.reverse()
            reached = round(1e3 * min(plan.min_seconds, *(runner.total for runner in turn)))
            advance(reached - shown)
            shown = reached
    return {name: runner.measurement(plan) for name, runner in timed.items()}


def speedup(reference: Measurement, candidate: Measurement) -> Estimate:
    """Ratio of the medians, above 1 where the candidate is faster; both come from one :func:`measure_latency`."""
    return ratio_of_medians(_blocks(reference), _blocks(candidate))


def percentile_ms(measurement: Measurement, percent: float) -> Estimate:
    """A percentile in milliseconds with a block bootstrap interval."""

    def figure(seconds: F64) -> float:
        return 1e3 * percentile_nearest(seconds, percent)

    low, high = block_bootstrap(figure, _blocks(measurement), resamples=400)
    return Estimate(measurement.p(percent), low, high)


def variation_percent(measurement: Measurement) -> float:
    """Coefficient of variation: standard deviation over mean."""
    return float(100 * measurement.seconds.std() / measurement.seconds.mean())


def drift_percent(measurement: Measurement) -> float:
    """How much slower the median of the second half is than that of the first."""
    first, second = np.array_split(measurement.seconds, 2)
    return float(100 * (np.median(second) / np.median(first) - 1))


def noise(measurement: Measurement) -> list[str]:
    """What makes this measurement doubtful, in words; empty where nothing does."""
    found = []
    if (variation := variation_percent(measurement)) > MAX_VARIATION_PERCENT:
        found.append(f"coefficient of variation {variation:.1f} % (above {MAX_VARIATION_PERCENT:g} %)")
    if abs(drift := drift_percent(measurement)) > MAX_DRIFT_PERCENT:
        found.append(f"the second half ran {drift:+.1f} % against the first (beyond {MAX_DRIFT_PERCENT:g} %)")
    return found


def _blocks(measurement: Measurement) -> F64:
    return measurement.seconds.reshape(-1, measurement.block)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A garbage collection inside an inference would be charged to the model."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
