"""FP32, FP16 and INT8 of a bundle, measured in one interleaved run by trtexec's method.

Warm-up of 200 ms, at least 3 s and 10 inferences of each precision, percentiles without interpolation, and trtexec's
names. Engines then take turns again, with events between copies and kernels; and where the board tells its power,
each precision runs alone, since a power sensor is too slow for turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeres.bench.board import Board, BoardState, Power, sampling, throttled, whole
from edgeres.bench.contenders import BenchOptions, Lane, check, open_lanes
from edgeres.bench.events import Timed, take_times
from edgeres.bundle import Bundle
from edgeres.device.cpu import this_cpu
from edgeres.device.environment import environment
from edgeres.device.gpu import this_gpu
from edgeres.progress import SILENT, Progress
from edgeres.records import F64, Measurement, percentile_nearest
from edgeres.verify.latency import LatencyPlan, measure, noise, speedup

if TYPE_CHECKING:
    from edgeres.runtime.runner import Feed, Runner

PERCENTILES = (90, 95, 99)
# trtexec's, in its order; what lies on a GPU alone has no meaning where the network runs on the CPU.
GPU_METRICS = ("Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")
_CPU_ONLY = "the network runs on the CPU: there is no transfer, and nothing is enqueued"
_IDLE_SECONDS = 1.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Spent:
    """What the module drew while one precision ran alone."""

    power: Power
    images: int
    seconds: float

    def to_dict(self, idle: float | None) -> Json:
        """Energy per image, and how much of it is above what the module draws at rest."""
        watts = self.power.mean_watts or 0.0
        per_image = 1e3 * self.seconds / self.images
        return {
            "mean_w": watts,
            "idle_w": idle,
            "per_image_mj": per_image * watts,
            "per_image_above_idle_mj": None if idle is None else per_image * (watts - idle),
            "images": self.images,
            "seconds": self.seconds,
            "samples": len(self.power.samples),
        }


def bench(path: Path, options: BenchOptions, progress: Progress = SILENT, board: Board | None = None) -> Json:
    """Measure a bundle on this machine; the bundle is not changed.

    Returns:
        Plain JSON types; what was not measured is None, and ``reasons`` says why.

    Raises:
        BundleError: a file is missing or was changed.
        UsageError: a precision is asked for that the bundle does not have.
    """
    check(options)
    board = board or Board()
    bundle = Bundle(path)
    with ExitStack() as stack:
        lanes, reasons = open_lanes(bundle, options, stack)
        feed = _feed(bundle, options)
        before = board.look()
        measured = measure({lane.precision: lane.runner for lane in lanes}, feed, _plan(lanes, options), progress)
        timed = take_times(lanes, feed, options, progress)
        idle, spent = _power(lanes, feed, options, board, progress)
        after = board.look()
    on_gpu = lanes[0].engine is not None
    if not on_gpu:
        reasons.update(dict.fromkeys(GPU_METRICS, _CPU_ONLY))
    if not after.watts:
        reasons["energy"] = "this machine's kernel tells no power (no INA3221 in /sys/class/hwmon)"
    return {
        "bundle": str(path),
        "model": bundle.manifest.model.name,
        "backend": lanes[0].runner.name,
        "device": _gpu_name() if on_gpu else this_cpu().model,
        "settings": _settings(lanes, options),
        "precisions": {
            lane.precision: {
                "file": lane.file,
                **_figures(measured[lane.precision], timed.get(lane.precision)),
                "energy": spent[lane.precision].to_dict(idle) if lane.precision in spent else None,
                "noise": noise(measured[lane.precision]),
            }
            for lane in lanes
        },
        "speedup": _speedups(measured),
        "board": {"before": _state(before), "after": _state(after), "throttled": throttled(before, after)},
        "warnings": [
            *(f"{name}: {line}" for name, one in timed.items() for line in one.warnings()),
            *_warnings(measured, before, after),
        ],
        "environment": environment(),
        "reasons": reasons,
    }


def _scope(lanes: list[Lane], options: BenchOptions) -> str:
    engine = lanes[0].engine
    copies = "no copies: both sides share one memory" if engine and not engine.transfers else "copies included"
    doing = copies if engine else _threads(options.threads)
    return f"host to host, batch {options.batch}, {doing}"


def _plan(lanes: list[Lane], options: BenchOptions) -> LatencyPlan:
    return LatencyPlan(
        _scope(lanes, options),
        options.warmup_seconds,
        options.min_seconds,
        options.min_iterations,
        block_seconds=min(LatencyPlan.block_seconds, options.min_seconds / LatencyPlan.min_turns),
    )


def _settings(lanes: list[Lane], options: BenchOptions) -> Json:
    """What trtexec's figures depend on, besides the options."""
    engine = lanes[0].engine
    return {
        **asdict(options),
        "precisions": [lane.precision for lane in lanes],
        "scope": _scope(lanes, options),
        "interleaved": len(lanes) > 1,
        "transfers": None if engine is None else engine.transfers,
    }


def _gpu_name() -> str:
    gpu, reason = this_gpu()
    return reason if gpu is None else gpu.name


def _feed(bundle: Bundle, options: BenchOptions) -> Callable[[Runner], Feed]:
    spec = bundle.manifest.model.preprocess
    shape = (3, *spec.crop_px) if spec.layout == "NCHW" else (*spec.crop_px, 3)
    images = np.random.default_rng(options.seed).standard_normal((options.batch, *shape)).astype(np.float32)
    return lambda runner: {runner.input_name: images}


def _power(
    lanes: list[Lane], feed: Callable[[Runner], Feed], options: BenchOptions, board: Board, progress: Progress
) -> tuple[float | None, dict[str, Spent]]:
    """Watts at rest, and what each precision spends while it runs alone."""
    if not board.watts():
        return None, {}
    found: dict[str, Spent] = {}
    with progress.task("measuring power", total=len(lanes) + 1) as advance:
        with sampling(board) as idle:
            sleep(min(_IDLE_SECONDS, options.power_seconds))
        advance(1)
        for lane in lanes:
            arrays = feed(lane.runner)
            with sampling(board) as power:
                begin, count = monotonic(), 0
                while (spent := monotonic() - begin) < options.power_seconds or not count:
                    lane.runner.infer(arrays)
                    count += 1
            found[lane.precision] = Spent(power, count * options.batch, spent)
            advance(1)
    return idle.mean_watts, found


def _figures(measurement: Measurement, timed: Timed | None) -> Json:
    """By trtexec's names, and Host to Host: what an application waits for. On a CPU that is all of Latency."""
    host = statistics(measurement.seconds)
    on_gpu = {} if timed is None else {name: statistics(seconds) for name, seconds in timed.metrics().items()}
    return {
        "Throughput": {
            "qps": measurement.throughput_ips / measurement.batch,
            "images_per_second": measurement.throughput_ips,
        },
        "Latency": host,
        **dict.fromkeys(GPU_METRICS),
        **on_gpu,
        "Host to Host": host,
        "cuda_graph": None if timed is None else timed.cuda_graph,
        "iterations": len(measurement.seconds),
        "timed_iterations": 0 if timed is None else len(timed.times),
        "seconds": float(measurement.seconds.sum()),
        "warmup_seconds": measurement.warmup_seconds,
    }


def statistics(seconds: F64) -> Json:
    """What trtexec tells of a time, in milliseconds."""
    return {
        "min_ms": 1e3 * float(seconds.min()),
        "max_ms": 1e3 * float(seconds.max()),
        "mean_ms": 1e3 * float(seconds.mean()),
        "median_ms": 1e3 * float(np.median(seconds)),
        **{f"p{percent}_ms": 1e3 * percentile_nearest(seconds, percent) for percent in PERCENTILES},
    }


def _speedups(measured: Mapping[str, Measurement]) -> Json:
    """Of INT8 over the others: medians, with their 95 % interval."""
    if "int8" not in measured:
        return {}
    return {
        f"int8 over {name}": asdict(speedup(measured[name], measured["int8"])) for name in measured if name != "int8"
    }


def _warnings(measured: Mapping[str, Measurement], before: BoardState, after: BoardState) -> Iterator[str]:
    for name, measurement in measured.items():
        for line in noise(measurement):
            yield f"{name}: {line}"
    for line in throttled(before, after):
        yield f"throttled: {line}"
    if before.clocks_locked is False:
        yield "the GPU's clock is not fixed: run sudo jetson_clocks first for figures that repeat"


def _state(state: BoardState) -> Json | None:
    """None where the board tells nothing, as any machine but a Jetson."""
    if state == replace(BoardState(), cpu_hz=state.cpu_hz, celsius=state.celsius):
        return None
    rails = whole(state.watts)
    return {**asdict(state), "total_w": state.total_watts, "total_of": rails}


def _threads(count: int) -> str:
    return "every core" if count == 0 else f"{count} thread{'s' if count > 1 else ''}"
