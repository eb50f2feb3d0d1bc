"""edgeres inspect"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import UserPath, as_json
from edgeres.cli.show import print_json, print_table
from edgeres.errors import needs


@click.command("inspect")
@click.argument("path", type=UserPath(), metavar="BUNDLE|ONNX")
@as_json
def command(path: Path, as_json: bool) -> None:
    """Show what is quantized, with which scale, what is not, and why.

    \b
    edgeres inspect resnet18.edgeres
    edgeres inspect my.int8.onnx --json
    """
    try:
        from edgeres.quantize.inspect import inspect
    except ModuleNotFoundError as error:
        raise needs("export", "onnx") from error

    found = [graph.to_dict() for graph in inspect(path)]
    if as_json:
        print_json(found)
        return
    for graph in found:
        click.secho(f"{graph['file']}: {graph['style'] or 'not quantized by edgeres'}", bold=True)
        operators = ", ".join(f"{count} {name}" for name, count in graph["operators"].items())
        click.echo(f"opset {graph['opset']}, {operators}\n")
        if graph["quantized"]:
            rows = (
                (q["tensor"], q["dtype"], f"{q['scale']:.5g}", str(q["zero_point"]), q["reason"])
                for q in graph["quantized"]
            )
            print_table(("quantized tensor", "type", "scale", "zero", "as"), rows, right=("scale", "zero"))
            click.echo()
        if graph["skipped"]:
            print_table(("left in float", "because"), graph["skipped"])
            click.echo()
        for finding in graph["refused"]:
            click.echo(f"TensorRT refuses: {finding}")
