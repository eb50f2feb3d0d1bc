"""edgeres engine"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import UserPath, as_json
from edgeres.cli.progress import progress
from edgeres.cli.show import print_json


@click.command("engine")
@click.argument("bundle", type=UserPath())
@click.option("--target", metavar="rtx|tensorrt", help="[default: what this machine can build]")
@click.option("--also", multiple=True, type=click.Choice(["fp32", "fp16"]), help="Engines of this precision, too.")
@click.option("--max-batch", type=click.IntRange(1), default=8, show_default=True, metavar="N", help="Of the engine.")
@click.option(
    "--compute-capability", "compute_capabilities", multiple=True, metavar="SM", help="Of RTX engines, e.g. 8.9."
)
@as_json
def command(bundle: Path, target: str | None, as_json: bool, **given: Any) -> None:
    """Build a bundle's engine on the machine it is for, and add it to the bundle.

    \b
    edgeres engine resnet18.edgeres
    """
    from edgeres.engine.stage import EngineChoice
    from edgeres.steps import add_engines

    records = add_engines(bundle, target, EngineChoice(**given), progress(quiet=as_json))
    if as_json:
        print_json([record.to_dict() for record in records])
        return
    for record in records:
        what = bundle / record.file if record.file else f"{record.target} {record.precision}"
        click.echo(f"{what}: {record.size_bytes / 1e6:.1f} MB, {record.status}")
