"""edgeres export"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import (
    MODEL,
    ManyValues,
    as_json,
    input_choice,
    input_options,
    model_options,
    output_option,
)
from edgeres.cli.progress import progress
from edgeres.cli.show import echo, print_json


@click.command("export", cls=ManyValues)
@click.option("--model", required=True, metavar="NAME", help=MODEL)
@model_options
@input_options
@output_option("FILE.onnx", "FP32 graph to write.", required=True, dir_okay=False)
@as_json
def command(model: str, output: Path, as_json: bool, **given: Any) -> None:
    """Write a model of the zoo as FP32 ONNX, with batch norm folded and a dynamic batch, and compare it with torch.

    The file states its preprocessing and class names, which edgeres build, quantize and calibrate read from it.

    \b
    edgeres export --model resnet50 --weights my.pth -o resnet50.onnx
    """
    from edgeres.errors import UsageError
    from edgeres.files import write_file
    from edgeres.pipeline.input_choice import InputChoice
    from edgeres.pipeline.take import ModelChoice, take

    if output.suffix.lower() != ".onnx":
        raise UsageError("is not named .onnx", where=output, hint=f"-o {output.with_suffix('.onnx')}")
    choice = InputChoice.of(input_choice(given))
    taken = take(ModelChoice(model, **given, input=choice), progress(quiet=as_json))
    from edgeres.graph.stated import state  # behind take, which says where onnx is missing

    state(taken.graph, taken.spec)
    write_file(output, taken.graph.SerializeToString())
    size = output.stat().st_size
    if as_json:
        found = {"file": str(output), "bytes": size, "max_error": taken.max_error, "model": taken.spec.to_dict()}
        print_json({**found, "notes": list(taken.notes)})
    else:
        echo(f"{output}: {size / 1e6:.1f} MB, differs from torch by {taken.max_error:.1e} of the largest logit")
