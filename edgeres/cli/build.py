"""edgeres build"""

from __future__ import annotations

from typing import Any

import click

from edgeres.cli.options import (
    UserPath,
    as_json,
    calibration_file_option,
    calibration_options,
    check_calibration_file,
    engine_options,
    gate_choice,
    gate_options,
    input_choice,
    input_options,
    model_options,
    refine_options,
    validation_options,
)
from edgeres.cli.progress import progress
from edgeres.cli.show import command_line


@click.command("build")
@click.option(
    "--model", required=True, metavar="NAME|FILE.onnx", help="An architecture of `edgeres models`, or an ONNX file."
)
@click.option("--int8", is_flag=True, default=True, help="Quantize to INT8 after training; always on.")
@model_options
@input_options
@calibration_options
@calibration_file_option
@refine_options
@validation_options
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Target from `edgeres targets`; repeatable.")
@engine_options
@gate_options
@click.option("-o", "--output", type=UserPath(), metavar="DIR", help="Bundle to write.  [default: MODEL.edgeres]")
@as_json
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Build a verified INT8 bundle from a trained ResNet.

    \b
    edgeres build --model resnet18 --int8
    edgeres build --model resnet50 --weights my.pth --calibration train/ --validation val/
    edgeres build --model my.onnx --calibration train/ --validation val/ --target jetson-orin-nx
    """
    from edgeres.judge.document import to_json
    from edgeres.pipeline.build import build
    from edgeres.report.terminal import render_terminal

    check_calibration_file(given)
    given.pop("int8")
    quiet = given.pop("as_json")
    gates = gate_choice(given)
    result = build(
        given.pop("model"),
        progress=progress(quiet=quiet),
        command=command_line(),
        on_unreadable="skip" if given.pop("skip_unreadable") else "fail",
        **input_choice(given),
        gates=gates["gates"],
        thumbnails=gates["thumbnails"],
        **given,
    )
    if quiet:
        click.echo(to_json(result.report), nl=False)
    else:
        from rich.console import Console

        render_terminal(result.report, Console())
        click.echo(f"\nbundle: {result.path}    report: {result.path / 'report.html'}")
    ctx.exit(0 if result.passed else 1)
