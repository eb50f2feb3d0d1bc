"""edgeres deploy"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import UserPath, Word, as_json, output_option, whole_number
from edgeres.cli.show import echo, print_json

# The names in edgeres.deploy.programs.PROGRAMS, which is not imported before it is used.
PROGRAMS = ("triton", "deepstream", "trtexec", "ros2")


@click.command("deploy")
@click.argument("bundle", type=UserPath())
@click.option("--to", required=True, type=Word(PROGRAMS), help="The program that shall run it.")
@whole_number("--max-batch", "Largest batch.  [default: the engine's; without one 8 for Triton, else 1]")
@output_option("DIR", "A new folder.  [default: BUNDLE.PROGRAM]")
@as_json
def command(bundle: Path, to: str, max_batch: int | None, output: Path | None, as_json: bool) -> None:
    """Write a bundle for another program.

    \b
    edgeres deploy resnet50.edgeres --to triton
    edgeres deploy resnet50.edgeres --to deepstream
    edgeres deploy resnet50.edgeres --to trtexec
    edgeres deploy resnet50.edgeres --to ros2 -o ~/ws/src/edgeres_resnet50

    All but ROS 2's node do not know the bundle's preprocessing. What each of them does differently is printed.
    """
    from edgeres.pipeline.deploy import deploy

    where = output or bundle.resolve().with_name(f"{bundle.resolve().name.removesuffix('.edgeres')}.{to}")
    made = deploy(bundle, to, where, max_batch)
    if as_json:
        print_json({"folder": str(where), "files": sorted(made.files), "notes": list(made.notes)})
        return
    for name in sorted(made.files):
        echo(str(where / name))
    for note in made.notes:
        echo(f"note: {note}")
