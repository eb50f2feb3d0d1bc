"""edgeres export"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import as_json, model_options, output_option, size_option
from edgeres.cli.progress import progress
from edgeres.cli.show import echo, print_json


@click.command("export")
@click.option("--model", required=True, metavar="NAME", help="An architecture of `edgeres models`.")
@model_options
@size_option
@output_option("FILE.onnx", "FP32 graph to write.", required=True, dir_okay=False)
@as_json
def command(model: str, output: Path, as_json: bool, **given: Any) -> None:
    """Write a model of the zoo as FP32 ONNX, with batch norm folded and a dynamic batch, and compare it with torch.

    \b
    edgeres export --model resnet50 --weights my.pth -o resnet50.onnx
    """
    from edgeres.files import write_file
    from edgeres.pipeline.take import ModelChoice, take

    taken = take(ModelChoice(model, **given), progress(quiet=as_json))
    write_file(output, taken.graph.SerializeToString())
    size = output.stat().st_size
    if as_json:
        print_json({"file": str(output), "bytes": size, "max_error": taken.max_error, "model": taken.spec.to_dict()})
    else:
        echo(f"{output}: {size / 1e6:.1f} MB, differs from torch by {taken.max_error:.1e} of the largest logit")
