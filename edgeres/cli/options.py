"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from edgeres.errors import UsageError
from edgeres.records import CODES, METHODS
from edgeres.refine.choice import EFFORTS, RESIDUALS

Command = TypeVar("Command", bound=Callable[..., Any])

SRC = "A directory with one folder per class, a .zip of one, an .npz, a CIFAR-10 directory, or signs[:count][@seed]"


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


class UserPath(click.Path):
    """A path in which ``~`` is the home directory, also where shells leave it as it is: ``--output=~/x.onnx``."""

    def __init__(self, **rules: bool) -> None:
        super().__init__(path_type=Path, **rules)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(str(Path(value).expanduser()), param, ctx)


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, and nothing else.")

model_options = _all(
    click.option(
        "--weights", metavar="TAG|FILE|URL", help="Weights: a tag of `edgeres models`, a file, a URL, or random."
    ),
    click.option(
        "--num-classes", type=click.IntRange(1), help="Classes of random weights; checkpoints say it themselves."
    ),
)

input_options = _all(
    click.option(
        "--labels",
        type=UserPath(dir_okay=False),
        metavar="FILE",
        help="Class names, one a line, in the order of the outputs.",
    ),
    click.option("--mean", type=float, nargs=3, metavar="R G B", help="Input = (pixel * S - mean) / std."),
    click.option("--std", type=float, nargs=3, metavar="R G B", help="See --mean; the default is ImageNet's."),
    click.option("--pixel-scale", type=float, metavar="S", help="1/255 by default; 1 for raw pixels."),
    click.option("--resize", "resize_px", type=click.IntRange(1), metavar="PX", help="Shorter side before the crop."),
    click.option(
        "--channel-order",
        type=click.Choice(["RGB", "BGR"]),
        help="Of the network's input; --mean and --std stay R G B.",
    ),
)

calibration_options = _all(
    click.option("--calibration", metavar="SRC", help=f"Images to choose ranges on. {SRC}."),
    click.option(
        "--calibration-size",
        type=click.IntRange(1),
        default=512,
        show_default=True,
        metavar="N",
        help="Images taken from it.",
    ),
    click.option(
        "--method", type=click.Choice(METHODS), default="mse", show_default=True, help="How ranges are chosen."
    ),
    click.option(
        "--batch",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        metavar="N",
        help="Images per calibration step.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice of images."),
    click.option("--skip-unreadable", is_flag=True, help="Go on without images that cannot be read; they are named."),
)

calibration_file_option = click.option(
    "--calibration-file",
    type=UserPath(dir_okay=False),
    metavar="FILE",
    help="Take the ranges of a calibration.json, of `edgeres calibrate` or a bundle; no images are needed then.",
)

refine_options = _all(
    click.option(
        "--effort",
        type=click.Choice(EFFORTS),
        default="balanced",
        show_default=True,
        help="fast: one calibration pass. balanced: the cost of 20 more. best: minutes.",
    ),
    click.option(
        "--residual",
        type=click.Choice(RESIDUALS),
        default="int8",
        show_default=True,
        help="Precision of the residual stream for TensorRT; auto keeps float16 where int8 costs most.",
    ),
    click.option(
        "--codes",
        type=click.Choice(CODES),
        default="full",
        show_default=True,
        help="Behind a ReLU, for TensorRT: all 256 codes of int8, or half of them and no Pad ahead of convolutions.",
    ),
)

engine_options = _all(
    click.option("--also", multiple=True, type=click.Choice(["fp32", "fp16"]), help="Keep engines of this, too."),
    click.option(
        "--max-batch", type=click.IntRange(1), default=8, show_default=True, metavar="N", help="Largest of the engines."
    ),
    click.option(
        "--opt-batch",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Kernels are chosen for it.",
    ),
    click.option(
        "--workspace-mb",
        type=click.IntRange(1),
        metavar="MB",
        help="Scratch memory of one layer.  [default: a quarter of a Jetson's memory, all of others']",
    ),
    click.option(
        "--builder-level",
        type=click.IntRange(0, 5),
        default=3,
        show_default=True,
        help="0: fast build. 5: fast engine.",
    ),
    click.option("--version-compatible", is_flag=True, help="Later versions of TensorRT load the engines, too."),
    click.option(
        "--hardware-compatible", is_flag=True, help="Other GPUs from Ampere on load them, too; not on Jetsons."
    ),
    click.option(
        "--compute-capability",
        "compute_capabilities",
        multiple=True,
        metavar="SM",
        help="Of RTX engines, e.g. 8.9; repeatable. Without it the engine is portable.",
    ),
)


class Limit(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A number, or ``off`` for no gate."""

    name = "limit"
    OFF = "off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == self.OFF or isinstance(value, float):
            return value
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number, nor off.", param, ctx)
        return number


def _limit(flag: str, metavar: str, text: str) -> Callable[[Command], Command]:
    return click.option(flag, type=Limit(), metavar=metavar, help=text)


gate_options = _all(
    _limit("--max-drop", "PP", "Gate: top-1 lost against FP32, in points.  [default: 1]"),
    _limit("--max-class-drop", "PP", "Gate: what any class lost, if it is more than luck.  [default: 10]"),
    _limit("--min-agreement", "%", "Gate: images that FP32 and INT8 put into the same class."),
    _limit("--min-speedup", "X", "Gate: FP32's p50 latency over INT8's."),
    _limit("--max-p99-ms", "MS", "Gate: INT8's p99 latency on this machine."),
    _limit("--max-size-mb", "MB", "Gate: size of each INT8 graph and engine."),
    click.option("--baseline", type=UserPath(dir_okay=False), metavar="FILE", help="Compare with an accepted build."),
    _limit("--max-regression", "PP", "Gate: top-1 lost against the baseline.  [default: 0.5]"),
    _limit("--max-sqnr-loss", "DB", "Gate: logit SQNR lost against the baseline.  [default: 3]"),
    _limit("--max-slowdown", "%", "Gate: latency against the baseline, in units of FP32's.  [default: 15]"),
    click.option("--any-machine", is_flag=True, default=None, help="Compare latency with another machine's, too."),
    click.option(
        "--on-unsure",
        type=click.Choice(["warn", "fail"]),
        help="Where there are too few images to tell.  [default: warn]",
    ),
    click.option("--allow", multiple=True, metavar="CHECK", help="Tell of this fault and let it through; repeatable."),
    click.option(
        "--thumbnails/--no-thumbnails",
        default=None,
        help="Pictures of what INT8 gets wrong, in the report.  [default: yes]",
    ),
)


def gate_choice(given: dict[str, Any]) -> dict[str, Any]:
    """Move what was said about gates out of ``given``; what was not said is the configuration's, or the default.

    Returns:
        ``limits``, ``baseline``, ``any_machine``, ``thumbnails``; and what else the configuration has.

    Raises:
        UsageError: the configuration is wrong.
    """
    from edgeres.cli.config import limits_from, read_config
    from edgeres.judge.gates import LIMITS

    values = read_config()
    for name in (*LIMITS, "baseline", "any_machine", "on_unsure", "allow", "thumbnails"):
        said = given.pop(name)
        if said not in (None, ()):
            values[name] = None if said == Limit.OFF else said
    chosen: dict[str, Any] = {name: values[name] for name in ("validation", "validation_size") if name in values}
    chosen |= {"baseline": values.get("baseline"), "any_machine": values.get("any_machine", False)}
    chosen["thumbnails"] = values.get("thumbnails", True)
    return {**chosen, "limits": limits_from(values)}


def check_calibration_file(given: dict[str, Any]) -> None:
    """Refuse what the user said beside a file of ranges and what would have no effect.

    Raises:
        UsageError: a method, or refinement without images.
    """
    if given["calibration_file"] is None:
        return
    source = click.get_current_context().get_parameter_source
    said = {name for name in ("method", "effort") if source(name) is ParameterSource.COMMANDLINE}
    if "method" in said:
        raise UsageError("the ranges in a file were chosen already", where="--method", hint="drop it")
    if "effort" in said and given["effort"] != "fast" and given["calibration"] is None:
        raise UsageError(
            "refinement learns from images, and none are named", where="--effort", hint="add --calibration SRC"
        )


def input_choice(given: dict[str, Any]) -> dict[str, Any]:
    """Move what was said about the input out of ``given``; None means unsaid."""
    names = ("mean", "std", "pixel_scale", "resize_px", "channel_order")
    said = {name: given.pop(name) for name in names}
    return {name: value for name, value in said.items() if value is not None}
