"""edgeres engine"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import UserPath, as_json, engine_options, tune_options
from edgeres.cli.progress import progress
from edgeres.cli.show import print_engines, print_json


@click.command("engine")
@click.argument("bundle", type=UserPath())
@click.option("--target", metavar="rtx|tensorrt", help="[default: what this machine can build]")
@engine_options
@tune_options
@as_json
def command(bundle: Path, target: str | None, as_json: bool, form: str | None, no_tune: bool, **given: Any) -> None:
    """Build a bundle's engine on the machine that will run it, and add it to the bundle.

    \b
    edgeres engine resnet18.edgeres
    edgeres engine resnet18.edgeres --also fp16 --builder-level 5

    On a GPU every form of the graph in the bundle is built and timed, and held against FP32 on probes. The fastest that
    is right is taken; of those within 2 % of it, the most accurate. What was found of each form is in manifest.json. An
    interrupted run goes on where it stopped.

    The log of the vendor's builder is written beside the engine, as .log.
    """
    from edgeres.engine.engines import EngineChoice
    from edgeres.pipeline.engines import add_engines
    from edgeres.pipeline.tune import TuneChoice

    tune = TuneChoice(form, not no_tune, given.pop("time_budget"), given.pop("min_sqnr"))
    records = add_engines(bundle, target, EngineChoice(**given), progress(), tune)
    if as_json:
        print_json([record.to_dict() for record in records])
    else:
        print_engines(bundle, records)
