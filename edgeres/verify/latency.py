"""Measures the latency of several runners side by side, as trtexec measures that of one.

Each runner has a warm-up of 200 ms, then at least 3 s and 10 inferences; percentiles are not interpolated (see
:func:`edgeres.records.percentile_nearest`). Runners take turns in short blocks, A B B A A B B A ..., so that changes of
the clock frequency and the load of other processes affect all of them alike.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, process_time

import numpy as np

from edgeres.progress import SILENT, Progress
from edgeres.records import F64, Measurement, percentile_nearest
from edgeres.runtime.runner import Feed, Runner
from edgeres.verify.statistics import Estimate, block_bootstrap, ratio_of_medians

# trtexec warns above 2.5 % for the compute time of a GPU; a host that runs other processes always varies more.
MAX_VARIATION_PERCENT = 10.0
MAX_DRIFT_PERCENT = 5.0
MIN_CPU_PERCENT = 90.0  # of the time on the clock, for runners that compute on the processor


@dataclass(frozen=True)
class LatencyPlan:
    """How long to measure.

    Attributes:
        scope: what lies between the two clock readings, in words, e.g. ``host to host, batch 1, 1 thread``.
        warmup_seconds: per runner, before anything is recorded.
        min_seconds, min_iterations: recorded per runner; both must be reached.
        min_turns: turns per runner; the bootstrap interval resamples whole turns, so it needs several.
        block_seconds: length of one turn; a turn has at least one inference.
        on_cpu: whether the runners compute on the processor, so that their processor time is a measure of them.
    """

    scope: str
    warmup_seconds: float = 0.2
    min_seconds: float = 3.0
    min_iterations: int = 10
    min_turns: int = 8
    block_seconds: float = 0.1
    on_cpu: bool = False


@dataclass
class Turns:
    """What a measurement has recorded so far, so that it can go on after an interrupt; without processor time.

    Attributes:
        block: inferences of a turn, by runner.
        seconds: of each inference, by runner; whole turns alone, as many of each runner.
    """

    block: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def fits(self, names: Iterable[str]) -> bool:
        """Whether these are turns of the named runners, as many of each."""
        if not self.block.keys() == self.seconds.keys() == set(names) or any(size < 1 for size in self.block.values()):
            return False
        turns = {divmod(len(taken), self.block[name]) for name, taken in self.seconds.items()}
        return len(turns) == 1 and all(rest == 0 for _, rest in turns)


class _TimedRunner:
    """One runner with its feed and its recorded latencies."""

    def __init__(self, runner: Runner, feed: Feed) -> None:
        self.runner, self.feed = runner, feed
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.warmup_seconds = 0.0
        self.block = 1

    @property
    def total(self) -> float:
        return sum(self.seconds)

    def once(self) -> float:
        start = perf_counter()
        self.runner.infer(self.feed)
        return perf_counter() - start

    def record(self) -> None:
        start = process_time()
        self.seconds.append(self.once())
        self.cpu_seconds.append(process_time() - start)

    def warm_up(self, plan: LatencyPlan) -> None:
        taken: list[float] = []
        while sum(taken) < plan.warmup_seconds or not taken:
            taken.append(self.once())
        self.warmup_seconds = sum(taken)
        # The mean, not the median: on a busy machine a block sized by the median would take far too long.
        self.block = max(1, round(plan.block_seconds / float(np.mean(taken))))

    def take_turn(self) -> None:
        self.once()  # not recorded: the caches hold the other runner's weights, which does not happen in an application
        for _ in range(self.block):
            self.record()

    def is_done(self, plan: LatencyPlan) -> bool:
        enough = len(self.seconds) >= max(plan.min_iterations, plan.min_turns * self.block)
        return enough and self.total >= plan.min_seconds

    def measurement(self, plan: LatencyPlan) -> Measurement:
        batch = len(next(iter(self.feed.values())))
        taken = np.array(self.seconds)
        cpu = np.array(self.cpu_seconds) if plan.on_cpu else None
        return Measurement(taken, batch, plan.scope, self.runner.name, self.warmup_seconds, self.block, cpu)


def measure_latency(
    runners: Mapping[str, Runner],
    feed_for: Callable[[Runner], Feed],
    plan: LatencyPlan,
    progress: Progress = SILENT,
    turns: Turns | None = None,
) -> dict[str, Measurement]:
    """Measure all runners in one run, in alternating blocks, in this thread, with the garbage collector off.

    Args:
        feed_for: makes a runner's input arrays, called once per runner; their first axis is the batch.
        turns: of an earlier run of the same runners, where it goes on; every whole round of turns is added to it.

    Returns:
        One measurement per runner, all with the same number of blocks; block ``i`` of all of them is from one turn.
    """
    timed = {name: _TimedRunner(runner, feed_for(runner)) for name, runner in runners.items()}
    order = list(timed.values())
    with progress.task("measuring latency", total=round(1e3 * plan.min_seconds)) as advance, _no_collection():
        for runner in order:
            runner.warm_up(plan)
        if turns is not None and turns.fits(timed):
            for name, runner in timed.items():
                runner.block, runner.seconds = turns.block[name], list(turns.seconds[name])
        shown = 0
        while not all(runner.is_done(plan) for runner in order):
            for runner in order:
                runner.take_turn()
            order.reverse()
            if turns is not None:
                turns.block = {name: runner.block for name, runner in timed.items()}
                turns.seconds = {name: list(runner.seconds) for name, runner in timed.items()}
            reached = round(1e3 * min(plan.min_seconds, *(runner.total for runner in order)))
            advance(reached - shown)
            shown = reached
    return {name: runner.measurement(plan) for name, runner in timed.items()}


def speedup(reference: Measurement, candidate: Measurement) -> Estimate:
    """Ratio of the medians, above 1 where the candidate is faster; both must be from one :func:`measure_latency`."""
    return ratio_of_medians(_blocks(reference), _blocks(candidate))


def cpu_speedup(reference: Measurement, candidate: Measurement) -> Estimate | None:
    """:func:`speedup` in processor time, which other processes hardly change; None where it was not measured.

    It is a ratio of medians of turns, because some clocks of processor time have steps of milliseconds.
    """
    if reference.cpu_seconds is None or candidate.cpu_seconds is None:
        return None
    turns = [m.cpu_seconds.reshape(-1, m.block).mean(axis=1, keepdims=True) for m in (reference, candidate)]  # type: ignore[union-attr]
    return ratio_of_medians(*turns) if all((turn > 0).all() for turn in turns) else None


def cpu_percent(measurement: Measurement) -> float | None:
    """Processor time as a share of the time on the clock; None where it was not measured."""
    if measurement.cpu_seconds is None:
        return None
    return float(100 * measurement.cpu_seconds.sum() / measurement.seconds.sum())


def percentile_ms(measurement: Measurement, percent: float) -> Estimate:
    """A percentile in milliseconds with a block bootstrap interval."""
    blocks = _blocks(measurement)
    limits = block_bootstrap(lambda seconds: 1e3 * percentile_nearest(seconds, percent), blocks, resamples=400)
    return Estimate(measurement.p(percent), *limits)


def variation_percent(measurement: Measurement) -> float:
    """Coefficient of variation: standard deviation over mean."""
    return float(100 * measurement.seconds.std() / measurement.seconds.mean())


def drift_percent(measurement: Measurement) -> float:
    """By how much the median of the second half is above that of the first half."""
    first, second = np.array_split(measurement.seconds, 2)
    return float(100 * (np.median(second) / np.median(first) - 1))


def noise(measurement: Measurement) -> list[str]:
    """Reasons to doubt this measurement, in words; empty where there are none."""
    reasons = []
    if (variation := variation_percent(measurement)) > MAX_VARIATION_PERCENT:
        reasons.append(f"coefficient of variation {variation:.1f} % (above {MAX_VARIATION_PERCENT:g} %)")
    if (share := cpu_percent(measurement)) is not None and share < MIN_CPU_PERCENT:
        reasons.append(f"it had a processor for {share:.0f} % of the time (below {MIN_CPU_PERCENT:g} %)")
    if abs(drift := drift_percent(measurement)) > MAX_DRIFT_PERCENT:
        reasons.append(f"the median changed by {drift:+.1f} % in the second half (above {MAX_DRIFT_PERCENT:g} %)")
    return reasons


def _blocks(measurement: Measurement) -> F64:
    return measurement.seconds.reshape(-1, measurement.block)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Switch the garbage collector off: its pauses would count as the model's latency."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
