"""edgeres calibrate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli import options
from edgeres.cli.progress import Notes, progress
from edgeres.cli.show import echo, print_json
from edgeres.errors import UsageError

# The same as in edgeres.quantize.exchange, which --help does not import.
FORMATS, TENSORRT = ("trt-cache", "ort"), "10.3.0"
_IMPORT = "Take MODEL's ranges from a TensorRT cache, ONNX Runtime's calibration JSON, or any Q/DQ ONNX file."
_EXPORT = "Write a calibration.json's ranges as a TensorRT cache, or for ONNX Runtime's quantize_static."


class Shard(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """One of several equal parts: ``2/8``."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        index, _, count = str(value).partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            self.fail(f"{value!r} is not a part; write 1/8 to 8/8.", param, ctx)
        return int(index), int(count)


@click.command("calibrate", cls=options.ManyValues)
@click.argument("paths", metavar="MODEL|FILE...", nargs=-1, required=True)
@options.model_options
@options.input_options
@options.calibration_options
@click.option("--shard", type=Shard(), metavar="I/N", help="Run only part I of N, and write a state for --merge.")
@click.option("--merge", is_flag=True, help="Make calibration.json from the states of all shards.")
@click.option("--scheduler", metavar="tcp://HOST:8786", help="Run on the Dask cluster of this scheduler.")
@click.option("--import", "imported", type=options.UserPath(dir_okay=False), metavar="FILE", help=_IMPORT)
@options.choice("--export", FORMATS, _EXPORT)
@options.text_option("--tensorrt", default=TENSORRT, metavar="VERSION", text="Version that the exported cache is for.")
@options.output_option("FILE", "File to write.", required=True, dir_okay=False)
@options.as_json
def command(paths: tuple[str, ...], output: Path, as_json: bool, **given: Any) -> None:
    """Measure the ranges of a model's tensors on images, once for many builds; or exchange ranges with other tools.

    MODEL is a name from `edgeres models` or an ONNX file. An interrupted run is resumed by the same command.

    \b
    edgeres calibrate resnet18 -o calibration.json
    edgeres build --model resnet18 --calibration-file calibration.json
    \b
    edgeres calibrate my.onnx --calibration train --shard 2/8 -o part2.npz
    edgeres calibrate --merge part*.npz -o calibration.json
    edgeres calibrate my.onnx --calibration /nfs/train \\
        --scheduler tcp://head:8786 -o calibration.json
    \b
    edgeres calibrate my.onnx --import my.cache -o calibration.json
    edgeres calibrate --export trt-cache my.edgeres -o my.cache
    """
    mode = _mode(given)
    shown = progress(quiet=as_json)
    if mode == "--merge":
        summary = _merge([Path(path).expanduser() for path in paths], output, given["method"])
    elif mode == "--export":
        summary = _export(_single(paths, mode), output, given)
    elif mode == "--import":
        summary = _import(_single(paths, mode), output, given, shown)
    else:
        summary = _measure(_single(paths, "MODEL"), output, given, shown)
    if isinstance(shown, Notes):
        print_json({"file": str(output), **summary, "notes": shown.notes})
    else:
        echo(f"{output}: {_words(summary)}")


def _mode(given: dict[str, Any]) -> str:
    """The mode that is asked for: --merge, --export, --import, or "" for measuring."""
    asked = {"--merge": given["merge"], "--import": given["imported"], "--export": given["export"]}
    modes = [name for name, value in asked.items() if value]
    others = [name for name in ("shard", "scheduler", "calibration") if given[name]]
    if len(modes) > 1 or (modes and others):
        second = modes[1] if len(modes) > 1 else f"--{others[0]}"
        raise UsageError("exclude each other", where=f"{modes[0]} and {second}", hint="give one of them")
    return modes[0] if modes else ""


def _single(paths: tuple[str, ...], where: str) -> str:
    if len(paths) > 1:
        what = f"takes one file, {len(paths)} are given"
        raise UsageError(what, where=where, hint="only --merge takes several files")
    return paths[0]


def _model(name: str, given: dict[str, Any]) -> Any:
    from edgeres.pipeline.input_choice import InputChoice
    from edgeres.pipeline.take import ModelChoice

    own = {
        key: given[key] for key in ("weights", "num_classes", "labels", "ema", "head_activation", "input_px", "task")
    }
    return ModelChoice(name, **own, input=InputChoice.of(options.input_choice(given)))


def _measure(name: str, output: Path, given: dict[str, Any], shown: Any) -> dict[str, Any]:
    from edgeres.data.choose import DataChoice
    from edgeres.pipeline.calibrate import CalibrateOptions, calibrate_file

    data = DataChoice(given["calibration"], None, given["calibration_size"], None, given["seed"])
    names = ("method", "batch", "on_unreadable", "shard", "scheduler")
    chosen = CalibrateOptions(**{key: given[key] for key in names})
    state = calibrate_file(_model(name, given), data, chosen, output, shown)
    if state.unreadable:
        shown.say(f"unreadable images, left out: {', '.join(sorted(state.unreadable))}")
    return _summary(state, None if given["shard"] else given["method"])


def _summary(state: Any, method: str | None) -> dict[str, Any]:
    index, count = state.shard
    return {
        "tensors": len(state.sketches),
        "images": state.samples,
        "unreadable": sorted(state.unreadable),
        "method": method,
        "shard": None if method else f"{index}/{count}",
    }


def _merge(paths: list[Path], output: Path, method: Any) -> dict[str, Any]:
    from edgeres.calibrate.record import to_json
    from edgeres.calibrate.shards import merge_files
    from edgeres.files import write_file

    state = merge_files(paths)
    write_file(output, to_json(state.document(method)).encode())
    return _summary(state, method)


def _import(name: str, output: Path, given: dict[str, Any], shown: Any) -> dict[str, Any]:
    from edgeres.calibrate.record import to_json
    from edgeres.files import write_file
    from edgeres.pipeline.calibrate import import_ranges

    content = import_ranges(_model(name, given), given["imported"], shown)
    write_file(output, to_json(content).encode())
    return {"tensors": len(content["tensors"]), "method": content["method"], "source": content["source"]}


def _export(path: str, output: Path, given: dict[str, Any]) -> dict[str, Any]:
    from edgeres.files import write_file
    from edgeres.pipeline.calibrate import recorded_at
    from edgeres.quantize.exchange import export

    recorded = recorded_at(Path(path).expanduser())
    text, tensors = export(recorded, given["export"], given["tensorrt"])
    write_file(output, text.encode())
    return {"tensors": tensors, "method": recorded.method, "format": given["export"]}


def _words(summary: dict[str, Any]) -> str:
    tensors = f"{summary['tensors']} tensors"
    if "format" in summary:
        return f"{tensors} as {summary['format']}"
    if "source" in summary:
        return f"ranges of {tensors} from {summary['source']}"
    images = f"{summary['images']:,} images"
    if summary["shard"]:
        return f"shard {summary['shard']}, {images}; edgeres calibrate --merge joins all shards"
    return f"{summary['method']} ranges of {tensors} from {images}"
