"""edgeres engine"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import UserPath, as_json, engine_options, key_options, tune_options
from edgeres.cli.progress import progress
from edgeres.cli.show import print_engines, print_json

_FRAME = "Also build an engine that takes this camera's frames; repeatable."


@click.command("engine")
@click.argument("bundle", type=UserPath())
@click.option("--target", metavar="rtx|tensorrt", help="[default: what this machine can build]")
@engine_options
@tune_options
@click.option("--frame", "frames", multiple=True, metavar="WIDTHxHEIGHT:FORMAT", help=_FRAME)
@key_options
@as_json
def command(bundle: Path, target: str | None, as_json: bool, frames: tuple[str, ...], **given: Any) -> None:
    """Build a bundle's engine on the machine that will run it, and add it to the bundle.

    \b
    edgeres engine resnet18.edgeres
    edgeres engine resnet18.edgeres --also fp16 --builder-level 5
    edgeres engine resnet18.edgeres --frame 1280x720:bgr8
    edgeres engine resnet18.edgeres --frame 1920x1080:nv12:rows=1088:bt709

    On a GPU every form of the graph in the bundle is built and timed, and held against FP32 on probes. The fastest that
    is right is taken; of those within 2 % of it, the most accurate. What was found of each form is in manifest.json. An
    interrupted run goes on where it stopped.

    With --frame, the bundle's preprocessing is part of the engine: bytes as the camera lays them go in, and the answer
    comes out. FORMAT is rgb8, bgr8, rgba8, bgra8, mono8, yuyv, yvyu, uyvy, nv12, nv21, i420 or yv12. Behind it,
    step=BYTES is the distance between rows, rows=ROWS the rows of luma that the camera allocates, and bt709, bt601-full
    or bt709-full what YUV means. The largest batch is --opt-batch unless --max-batch is given. An engine for
    prepared images is built first where the bundle has none for this machine.

    The log of the vendor's builder is written beside the engine, as .log.

    In a signed bundle the new engine is unsigned, and does not run where a signature is asked for. --key signs the
    bundle again.
    """
    from edgeres.bundle import steady
    from edgeres.engine.engines import EngineChoice
    from edgeres.pipeline.engines import add_engines
    from edgeres.pipeline.tune import TuneChoice
    from edgeres.runtime.frames import frame_spec
    from edgeres.signing import KeyChoice

    keys, shown = KeyChoice(given.pop("trust"), given.pop("key")), progress()
    steady(bundle, lambda opened: keys.check(opened, shown))
    asked = [frame_spec(text) for text in frames]
    tune = TuneChoice(given.pop("form"), not given.pop("no_tune"), given.pop("time_budget"), given.pop("min_sqnr"))
    records = add_engines(bundle, target, EngineChoice(**given), shown, tune, asked)
    keys.sign(bundle, shown)
    if as_json:
        print_json([record.to_dict() for record in records])
    else:
        print_engines(bundle, records)
