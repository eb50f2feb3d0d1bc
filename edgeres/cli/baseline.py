"""edgeres baseline"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import UserPath, as_json
from edgeres.cli.show import print_json


@click.command("baseline")
@click.argument("action", type=click.Choice(["accept"]))
@click.argument("bundle", type=UserPath(), metavar="BUNDLE|REPORT.json")
@click.option(
    "-o",
    "--output",
    type=UserPath(dir_okay=False),
    default="baseline.json",
    show_default=True,
    metavar="FILE",
    help="The baseline, to commit.",
)
@as_json
def command(action: str, bundle: Path, output: Path, as_json: bool) -> None:
    """Keep what an accepted build answered, how fast it was and how it was made, to hold later ones against.

    \b
    edgeres baseline accept resnet18.edgeres && git add baseline.json
    edgeres verify resnet18.edgeres --baseline baseline.json

    A bundle was measured where and on what it was built. The report.json of `edgeres verify -o DIR` can be
    accepted instead: its images and its latency are those of the machine that verifies.
    """
    from edgeres.bundle import write_json
    from edgeres.steps import accept_baseline

    document = accept_baseline(bundle)
    write_json(output, document)
    told = _summary(output, document)
    if as_json:
        print_json(told)
        return
    click.echo(f"{output}: {told['model']}, {told['images']:,} images of {told['validation']}")
    if document["outcome"] == "failed":
        click.echo("accepted although a gate had failed; later runs are held against this all the same", err=True)


def _summary(output: Path, document: dict[str, Any]) -> dict[str, Any]:
    validation = document["validation"] or {"images": 0, "description": "nothing"}
    return {
        "file": str(output),
        "bytes": output.stat().st_size,
        "model": document["facts"].get("model", "a bundle"),
        "outcome": document["outcome"],
        "images": validation["images"],
        "validation": validation["description"],
    }
