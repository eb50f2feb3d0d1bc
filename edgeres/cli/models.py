"""edgeres models"""

from __future__ import annotations

import click

from edgeres.cli.options import as_json
from edgeres.cli.show import echo, print_json, print_table


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
    licenses = sorted({w.license for model in models for w in model.weights.values()})
    echo("", "The first tag is the default. signs comes with the package; imagenet is downloaded when asked for.")
    for license in licenses:
        echo(f"imagenet weights: {license}")
