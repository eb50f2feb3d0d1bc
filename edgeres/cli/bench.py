"""edgeres bench"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from edgeres.cli.options import Decorator, UserPath, as_json, choice, trust_options, trusted, whole_number
from edgeres.cli.progress import progress
from edgeres.cli.show import echo, print_json, print_table
from edgeres.device.targets import Flavour

Json = dict[str, Any]
_BACKENDS = ("auto", *get_args(Flavour), "cpu")
_ALL = "Repeatable.  [default: all]"


def _number(flag: str, text: str, default: float, metavar: str, *, zero: bool = False) -> Decorator:
    kind = click.FloatRange(0, min_open=not zero)
    return click.option(flag, type=kind, default=default, show_default=True, metavar=metavar, help=text)


@click.command("bench")
@click.argument("bundle", type=UserPath())
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp32", "fp16", "int8"]), help=_ALL)
@choice("--backend", _BACKENDS, "auto: the bundle's engines where they run here, else the CPU.", "auto")
@whole_number("--batch", "Images per inference.", 1)
@whole_number("--threads", "Threads on the CPU; 0: every core.", 1, least=0)
@_number("--warmup", "Warm-up of each precision.", 200, "MS", zero=True)
@_number("--duration", "Measured time of each precision, at least.", 3, "S")
@whole_number("--iterations", "Inferences of each precision, at least.", 10)
@trust_options
@as_json
def command(bundle: Path, as_json: bool, **given: Any) -> None:
    """Measure latency and throughput of a bundle on this machine, as trtexec does.

    \b
    edgeres bench resnet18.edgeres
    edgeres bench resnet18.edgeres --precision int8 --batch 8 --threads 0 --json

    FP32, FP16 and INT8 take turns in one run, on random images. On a Jetson, the power mode, clocks, temperatures,
    throttling and the energy per image are shown, too.
    """
    from edgeres.bench.contenders import BenchOptions
    from edgeres.bench.session import bench

    seconds, least = given.pop("duration"), given.pop("iterations")
    times = {"warmup_seconds": given.pop("warmup") / 1e3, "min_seconds": seconds, "power_seconds": seconds}
    trust = trusted(given)
    options = BenchOptions(**given, **times, min_iterations=least, trust=trust)
    found = bench(bundle, options, progress(quiet=as_json))
    if as_json:
        print_json(found)
    else:
        _show(found)


def _show(found: Json) -> None:
    settings = found["settings"]
    echo(f"{found['model']} on {found['backend']}, {found['device']}; {settings['scope']}")
    turns = "taking turns, " if settings["interleaved"] else ""
    echo(
        f"{turns}each: {1e3 * settings['warmup_seconds']:g} ms warm-up, then at least {settings['min_seconds']:g} s and"
        f" {settings['min_iterations']} inferences",
        "",
    )
    columns = ("min", "mean", "median", "p90", "p95", "p99", "max")
    rows = []
    for name, of in found["precisions"].items():
        times = (f"{of['Host to Host'][f'{column}_ms']:.3f}" for column in columns)
        rows.append((name, f"{of['Throughput']['images_per_second']:.4g} img/s", *times))
    figures = ("Throughput", *(f"{column} ms" for column in columns))
    print_table(("", *figures), rows, right=figures)
    echo("", "Times are from input to output, both in the CPU's memory.")
    _show_gpu(found["precisions"])
    for name, ratio in found["speedup"].items():
        echo(f"{name}: {ratio['value']:.2f}x, 95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}")
    _show_board(found)
    for line in found["warnings"]:
        echo(f"note: {line}")
    for name, reason in found["reasons"].items():
        if name in ("fp32", "fp16", "int8"):
            echo(f"{name} not measured: {reason}")
        elif name in get_args(Flavour):
            echo(f"{name} not used: {reason}")


def _show_gpu(precisions: Json) -> None:
    """Print the times of engines by trtexec's names."""
    names = ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")
    cell = "{median_ms:.3f} ({p99_ms:.3f})".format
    rows = [
        (name, *(cell(**of[metric]) for metric in names), "yes" if of["cuda_graph"] else "no")
        for name, of in precisions.items()
        if of["timed_iterations"]
    ]
    if rows:
        echo("", "by events on the GPU, median (p99) in ms:", "")
        print_table(("", *names, "CUDA graph"), rows, right=names)
        echo()


def _show_board(found: Json) -> None:
    for name, of in found["precisions"].items():
        if energy := of["energy"]:
            echo(
                f"{name}: {energy['per_image_mj']:.3g} mJ per image, {energy['mean_w']:.2f} W"
                f" ({energy['idle_w']:.2f} W at rest)"
            )
    after = found["board"]["after"]
    if after is None:
        return
    hottest = max(after["celsius"].items(), key=lambda item: item[1], default=None)
    parts = (
        f"power mode {after['power_mode']}" if after["power_mode"] else "",
        f"GPU at {after['gpu_hz'] / 1e6:.0f} of {after['gpu_max_hz'] / 1e6:.0f} MHz" if after["gpu_hz"] else "",
        f"{hottest[0]} {hottest[1]:.0f} °C" if hottest else "",
        f"power of {' + '.join(after['total_of'])}" if after["total_of"] else "",
    )
    echo("board: " + ", ".join(filter(None, parts)))
