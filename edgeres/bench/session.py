"""Measure FP32, FP16 and INT8 of a bundle in one interleaved run by trtexec's method.

Each precision gets a warm-up of 200 ms, then at least 3 s and 10 inferences. Percentiles are not interpolated, and
names are trtexec's. Engines then take turns again, with CUDA events between copies and kernels. Where the board has
power sensors, each precision finally runs alone, because the sensors are too slow for turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeres.bench.board import Board, BoardState, Power, module_rails, sampling, throttled
from edgeres.bench.contenders import BenchOptions, Contender, check, open_contenders
from edgeres.bench.events import TimedEngine, time_engines
from edgeres.bundle import Bundle, steady
from edgeres.device.cpu import this_cpu
from edgeres.device.environment import environment
from edgeres.device.gpu import this_gpu
from edgeres.progress import SILENT, Progress
from edgeres.records import F64, Measurement, percentile_nearest
from edgeres.runtime.prepared import takes_bytes
from edgeres.verify.latency import LatencyPlan, measure_latency, noise, speedup

if TYPE_CHECKING:
    from edgeres.runtime.runner import Feed, Runner

PERCENTILES = (90, 95, 99)
# trtexec's names in its order. These metrics do not exist where the network runs on the CPU.
GPU_METRICS = ("Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")
_CPU_ONLY = "the network runs on the CPU: there is no transfer, and nothing is enqueued"
_IDLE_SECONDS = 1.0

Json = dict[str, Any]


def bench(path: Path, options: BenchOptions, progress: Progress = SILENT, board: Board | None = None) -> Json:
    """Measure a bundle on this machine; the bundle is not changed.

    Returns:
        Plain JSON types. Figures that were not measured are None, and ``reasons`` says why.

    Raises:
        BundleError: a file is missing or was changed.
        UsageError: a precision is asked for that the bundle does not have.
    """
    check(options)
    board = board or Board()
    opened = steady(path, lambda bundle: _open(bundle, options), lambda old: old.stack.close())
    contenders, reasons, feed = opened.contenders, opened.reasons, opened.feed
    with opened.stack:
        before = board.look()
        measured = measure_latency(
            {contender.name: contender.runner for contender in contenders}, feed, _plan(contenders, options), progress
        )
        timed = time_engines(contenders, feed, options, progress)
        energy = _power(contenders, feed, options, board, progress)
        after = board.look()
    on_gpu = contenders[0].engine is not None
    if not on_gpu:
        reasons.update(dict.fromkeys(GPU_METRICS, _CPU_ONLY))
    if not after.watts:
        reasons["energy"] = "this machine has no power sensor (no INA3221 in /sys/class/hwmon)"
    return {
        "bundle": str(path),
        "model": opened.bundle.manifest.model.name,
        "backend": contenders[0].runner.name,
        "device": _gpu_name() if on_gpu else this_cpu().model,
        "settings": _settings(contenders, options),
        "precisions": {
            contender.name: {
                "file": contender.file,
                **_figures(measured[contender.name], timed.get(contender.name)),
                "energy": energy.get(contender.name),
                "noise": noise(measured[contender.name]),
            }
            for contender in contenders
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


@dataclass(frozen=True)
class _Opened:
    """What is measured of a bundle; the stack closes it."""

    bundle: Bundle
    contenders: list[Contender]
    reasons: dict[str, str]
    feed: Callable[[Runner], Feed]
    stack: ExitStack


def _open(bundle: Bundle, options: BenchOptions) -> _Opened:
    with ExitStack() as stack:
        contenders, reasons = open_contenders(bundle, options, stack)
        return _Opened(bundle, contenders, reasons, _feed(bundle, options), stack.pop_all())


def _scope(contenders: list[Contender], options: BenchOptions) -> str:
    engine = contenders[0].engine
    copies = "no copies: both sides share one memory" if engine and not engine.transfers else "copies included"
    doing = copies if engine else _threads(options.threads)
    return f"host to host, batch {options.batch}, {doing}"


def _plan(contenders: list[Contender], options: BenchOptions) -> LatencyPlan:
    return LatencyPlan(
        _scope(contenders, options),
        options.warmup_seconds,
        options.min_seconds,
        options.min_iterations,
        block_seconds=min(LatencyPlan.block_seconds, options.min_seconds / LatencyPlan.min_turns),
    )


def _settings(contenders: list[Contender], options: BenchOptions) -> Json:
    """The options, and what else the figures depend on."""
    engine = contenders[0].engine
    return {
        **asdict(options),
        "precisions": [contender.name for contender in contenders],
        "scope": _scope(contenders, options),
        "interleaved": len(contenders) > 1,
        "transfers": None if engine is None else engine.transfers,
    }


def _gpu_name() -> str:
    gpu, reason = this_gpu()
    return reason if gpu is None else gpu.name


def _feed(bundle: Bundle, options: BenchOptions) -> Callable[[Runner], Feed]:
    spec = bundle.manifest.model.preprocess
    rng = np.random.default_rng(options.seed)
    images = rng.standard_normal((options.batch, *spec.shape)).astype(np.float32)
    pixels = rng.integers(0, 256, (options.batch, *spec.crop_px, spec.channels), np.uint8)
    return lambda runner: {runner.input_name: pixels if takes_bytes(runner) else images}


def _power(
    contenders: list[Contender], feed: Callable[[Runner], Feed], options: BenchOptions, board: Board, progress: Progress
) -> dict[str, Json]:
    """The energy of each precision while it runs alone."""
    if not board.watts():
        return {}
    found: dict[str, Json] = {}
    with progress.task("measuring power", total=len(contenders) + 1) as advance:
        with sampling(board) as idle:
            sleep(min(_IDLE_SECONDS, options.power_seconds))
        advance(1)
        for contender in contenders:
            arrays = feed(contender.runner)
            with sampling(board) as power:
                begin, count = monotonic(), 0
                while (spent := monotonic() - begin) < options.power_seconds or not count:
                    contender.runner.infer(arrays)
                    count += 1
            found[contender.name] = _energy(power, idle.mean_watts, count * options.batch, spent)
            advance(1)
    return found


def _energy(power: Power, idle: float | None, images: int, seconds: float) -> Json:
    """Energy per image, in total and above the power at rest, of a precision that ran alone."""
    watts = power.mean_watts or 0.0
    per_image = 1e3 * seconds / images
    return {
        "mean_w": watts,
        "idle_w": idle,
        "per_image_mj": per_image * watts,
        "per_image_above_idle_mj": None if idle is None else per_image * (watts - idle),
        "images": images,
        "seconds": seconds,
        "samples": len(power.samples),
    }


def _figures(measurement: Measurement, timed: TimedEngine | None) -> Json:
    """Figures by trtexec's names, and Host to Host, the time that an application waits. On a CPU, Latency equals it."""
    host = statistics(measurement.seconds)
    on_gpu = {} if timed is None else {name: statistics(seconds) for name, seconds in timed.metrics().items()}
    ips = measurement.throughput_ips
    return {
        "Throughput": {"qps": ips / measurement.batch, "images_per_second": ips},
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
    """The statistics that trtexec prints of a time, in milliseconds."""
    return {
        "min_ms": 1e3 * float(seconds.min()),
        "max_ms": 1e3 * float(seconds.max()),
        "mean_ms": 1e3 * float(seconds.mean()),
        "median_ms": 1e3 * float(np.median(seconds)),
        **{f"p{percent}_ms": 1e3 * percentile_nearest(seconds, percent) for percent in PERCENTILES},
    }


def _speedups(measured: Mapping[str, Measurement]) -> Json:
    """Ratio of the other precisions' median latency to INT8's, with the 95 % interval."""
    others = [name for name in measured if name != "int8"] if "int8" in measured else []
    return {f"int8 over {name}": asdict(speedup(measured[name], measured["int8"])) for name in others}


def _warnings(measured: Mapping[str, Measurement], before: BoardState, after: BoardState) -> Iterator[str]:
    for name, measurement in measured.items():
        yield from (f"{name}: {line}" for line in noise(measurement))
    yield from (f"throttled: {line}" for line in throttled(before, after))
    if before.clocks_locked is False:
        yield "the GPU's clock is not fixed: run sudo jetson_clocks first for figures that repeat"


def _state(state: BoardState) -> Json | None:
    """The board's state as JSON; None where the board is no Jetson and has nothing to read."""
    if state == replace(BoardState(), cpu_hz=state.cpu_hz, celsius=state.celsius):
        return None
    return {**asdict(state), "total_w": state.total_watts, "total_of": module_rails(state.watts)}


def _threads(count: int) -> str:
    return "every core" if count == 0 else f"{count} thread{'s' if count > 1 else ''}"
