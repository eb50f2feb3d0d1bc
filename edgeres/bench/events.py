"""Times of engines by CUDA events, under trtexec's names.

This is a pass of its own, because events would slow down the latency from host to host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from edgeres.bench.contenders import BenchOptions, Contender
from edgeres.progress import Progress
from edgeres.records import F64
from edgeres.verify.latency import LatencyPlan

if TYPE_CHECKING:
    from edgeres.runtime.engine import TensorRTRunner, Times
    from edgeres.runtime.runner import Feed, Runner

# Both limits are trtexec's: above the first, the CPU may limit the throughput; above the second, the GPU is not steady.
_BUSY_ENQUEUEING = 0.8
_MAX_VARIATION_PERCENT = 2.5


@dataclass
class TimedEngine:
    """One engine with its input and the times of its inferences.

    Attributes:
        cuda_graph: whether its inferences without events are launches of a CUDA graph.
        seconds: total time of the recorded inferences.
    """

    engine: TensorRTRunner
    feed: Feed
    cuda_graph: bool
    times: list[Times] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, seconds: float, *, record: bool) -> None:
        """Infer for this long, at least once."""
        begin = perf_counter()
        while True:
            _, times = self.engine.timed(self.feed)
            if record:
                self.times.append(times)
            if (spent := perf_counter() - begin) >= seconds:
                break
        self.seconds += spent if record else 0.0

    def metrics(self) -> dict[str, F64]:
        """Seconds of each inference, by trtexec's name of the time."""
        return {
            "Latency": np.array([times.latency for times in self.times]),
            "Enqueue Time": np.array([times.enqueue for times in self.times]),
            "H2D Latency": np.array([times.upload for times in self.times]),
            "GPU Compute Time": np.array([times.compute for times in self.times]),
            "D2H Latency": np.array([times.download for times in self.times]),
        }

    def warnings(self) -> Iterator[str]:
        """The conditions that trtexec warns of."""
        metrics = self.metrics()
        compute, enqueue = metrics["GPU Compute Time"], metrics["Enqueue Time"]
        if np.median(enqueue) > _BUSY_ENQUEUEING * np.median(compute):
            yield "the CPU takes about as long to start the kernels as the GPU to run them, and may limit throughput"
        variation = 100 * float(compute.std() / compute.mean()) if compute.any() else 0.0
        if variation > _MAX_VARIATION_PERCENT:
            yield f"GPU Compute Time varies by {variation:.1f} % (above {_MAX_VARIATION_PERCENT:g} %)"


def time_engines(
    contenders: list[Contender], feed: Callable[[Runner], Feed], options: BenchOptions, progress: Progress
) -> dict[str, TimedEngine]:
    """Time all engines by events, in alternating short blocks as the latency is measured; empty on the CPU."""
    found: dict[str, TimedEngine] = {
        contender.name: TimedEngine(contender.engine, feed(contender.engine), contender.engine.cuda_graph)
        for contender in contenders
        if contender.engine is not None
    }
    if not found:
        return {}
    turn = list(found.values())
    block = min(LatencyPlan.block_seconds, options.min_seconds / LatencyPlan.min_turns)
    with progress.task("measuring on the GPU", total=round(1e3 * options.min_seconds)) as advance:
        for one in turn:
            one.run(options.warmup_seconds, record=False)
        shown = 0
        while any(one.seconds < options.min_seconds or len(one.times) < options.min_iterations for one in turn):
            for one in turn:
                one.run(0, record=False)  # not recorded: the caches hold the other engine's weights
                one.run(block, record=True)
            turn.reverse()
            reached = round(1e3 * min(options.min_seconds, *(one.seconds for one in turn)))
            advance(reached - shown)
            shown = reached
    return found
