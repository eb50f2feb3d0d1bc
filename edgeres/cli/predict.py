"""edgeres predict"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import UserPath, as_json
from edgeres.cli.show import print_json


@click.command("predict")
@click.argument("bundle", type=UserPath())
@click.argument("images", type=UserPath(), nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Classes to show.")
@as_json
def command(bundle: Path, images: tuple[Path, ...], top: int, as_json: bool) -> None:
    """Classify images with a bundle's INT8 network.

    \b
    edgeres predict resnet18.edgeres photo.jpg
    """
    from edgeres.runtime import Classifier

    with Classifier(bundle) as classify:
        answers = [(str(image), classify(image).top(top)) for image in images]
        backend = classify.backend
    if as_json:
        print_json(
            [
                {"image": i, "backend": backend, "top": [{"label": n, "score": s} for n, s in best]}
                for i, best in answers
            ]
        )
        return
    for image, best in answers:
        click.secho(image, bold=True)
        for label, score in best:
            click.echo(f"  {100 * score:5.1f} %  {label}")
