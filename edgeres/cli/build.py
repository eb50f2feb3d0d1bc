"""edgeres build"""

from __future__ import annotations

from typing import Any

import click

from edgeres.cli import options
from edgeres.cli.progress import progress
from edgeres.cli.show import command_line, echo, print_report


@click.command("build", cls=options.ManyValues)
@options.section(
    "Model",
    click.option("--model", required=True, metavar="NAME|FILE.onnx", help=options.MODEL),
    click.option("--int8", is_flag=True, default=True, help="Quantize to INT8 after training; always on."),
)
@options.model_options
@options.input_options
@options.calibration_options
@options.calibration_file_option
@options.refine_options
@options.validation_options
@options.section(
    "Engines",
    click.option("--target", "targets", multiple=True, metavar="NAME", help="Of `edgeres targets`; repeatable."),
)
@options.engine_options
@options.gate_options
@options.output_option("DIR", "Bundle to write.  [default: MODEL.edgeres]")
@click.option(
    "--force",
    is_flag=True,
    help="Replace an older bundle in which are files that edgeres did not write; they are lost.",
)
@options.as_json
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Build a verified INT8 bundle from a trained ResNet.

    \b
    edgeres build --model resnet18 --int8
    edgeres build --model resnet50 --weights my.pth \\
        --calibration train --validation val
    edgeres build --model my.onnx --calibration train --validation val \\
        --target jetson-orin-nx
    """
    from edgeres.pipeline.build import build

    options.check_calibration_file(given)
    given.pop("int8")
    quiet = given.pop("as_json")
    gates = options.gate_choice(given)
    result = build(
        given.pop("model"),
        progress=progress(quiet=quiet),
        command=command_line(),
        **options.input_choice(given),
        gates=gates["gates"],
        thumbnails=gates["thumbnails"],
        **given,
    )
    print_report(result.report, as_json=quiet)
    if not quiet:
        echo("", f"bundle: {result.path}    report: {result.path / 'report.html'}")
    ctx.exit(0 if result.passed else 1)
