"""edgeres engine"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import UserPath, as_json, engine_options
from edgeres.cli.progress import progress
from edgeres.cli.show import print_engines, print_json


@click.command("engine")
@click.argument("bundle", type=UserPath())
@click.option("--target", metavar="rtx|tensorrt", help="[default: what this machine can build]")
@engine_options
@as_json
def command(bundle: Path, target: str | None, as_json: bool, **given: Any) -> None:
    """Build a bundle's engine on the machine that will run it, and add it to the bundle.

    \b
    edgeres engine resnet18.edgeres
    edgeres engine resnet18.edgeres --also fp16 --builder-level 5

    The log of the vendor's builder is written beside the engine, as .log.
    """
    from edgeres.engine.engines import EngineChoice
    from edgeres.pipeline.engines import add_engines

    records = add_engines(bundle, target, EngineChoice(**given), progress(quiet=as_json))
    if as_json:
        print_json([record.to_dict() for record in records])
    else:
        print_engines(bundle, records)
