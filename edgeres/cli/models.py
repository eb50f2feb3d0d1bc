"""edgeres models"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edgeres.cli.options import as_json
from edgeres.cli.show import echo, print_json, print_table

if TYPE_CHECKING:
    from edgeres.zoo.registry import ZooModel


@click.command("models")
@as_json
def command(as_json: bool) -> None:
    """List architectures and the weights that --weights accepts by name.

    \b
    edgeres models
    """
    from edgeres.zoo.registry import list_models

    models = list_models()
    if as_json:
        print_json([model.to_dict() for model in models])
        return
    rows = []
    for model in models:
        a = model.architecture
        top1 = {w.tag: f"{w.tag} ({w.published_top1:.2f} %)" for w in model.weights.values()}
        tags = ", ".join(top1.get(tag, tag) for tag in model.tags)
        rows.append((a.name, f"{a.size.params / 1e6:.2f} M", f"{a.size.gmacs:.2f} G", f"{a.input_px}", tags))
    print_table(("model", "params", "MACs", "px", "weights (published top-1)"), rows, right=("params", "MACs", "px"))
    echo("", "The first tag is the default. signs comes with the package; imagenet is downloaded when asked for.")
    for license, names in _licences(models).items():
        echo(f"licence of {', '.join(names)}: {license}")


def _licences(models: Sequence[ZooModel]) -> dict[str, list[str]]:
    """Names of weights by their licence; all versions of ``imagenet`` have one."""
    found: dict[str, list[str]] = {}
    for weights in (w for model in models for w in model.weights.values()):
        names = found.setdefault(weights.license, [])
        if (name := weights.tag.partition(":")[0]) not in names:
            names.append(name)
    return found
