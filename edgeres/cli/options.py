"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

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

gate_options = _all(
    click.option(
        "--max-drop", type=float, default=1.0, show_default=True, metavar="PP", help="Gate: top-1 lost, in points."
    ),
    click.option("--min-speedup", type=float, metavar="X", help="Gate: FP32's p50 latency over INT8's."),
)


def input_choice(given: dict[str, Any]) -> dict[str, Any]:
    """Move what was said about the input out of ``given``; None means unsaid."""
    names = ("mean", "std", "pixel_scale", "resize_px", "channel_order")
    said = {name: given.pop(name) for name in names}
    return {name: value for name, value in said.items() if value is not None}
