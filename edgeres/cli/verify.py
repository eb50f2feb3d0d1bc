"""edgeres verify"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import (
    UserPath,
    as_json,
    file_option,
    gate_choice,
    gate_options,
    validation_options,
    whole_number,
)
from edgeres.cli.progress import progress
from edgeres.cli.show import command_line


@click.command("verify")
@click.argument("bundle", type=UserPath())
@validation_options
@whole_number("--seed", "Seed of the choice of images.", 0, least=0)
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be read, and list them.")
@gate_options
@click.option("-o", "--output", type=UserPath(file_okay=False), metavar="DIR", help="Write the report here.")
@click.option("--scheduler", metavar="tcp://HOST:8786", help="Run the graphs on the Dask cluster of this scheduler.")
@file_option("--junit", "Write gates and checks as JUnit XML.")
@file_option("--markdown", "Write a summary as Markdown.")
@as_json
@click.pass_context
def command(ctx: click.Context, /, bundle: Path, output: Path | None, as_json: bool, **given: Any) -> None:
    """Measure a bundle against its FP32 reference on this machine, and judge it.

    \b
    edgeres verify resnet18.edgeres --validation val/ --max-drop 0.5
    edgeres verify resnet18.edgeres --baseline baseline.json --junit edgeres.xml

    A gate fails where the whole 95 % interval is beyond its limit, and passes where all of it is within. Otherwise
    the gate is unsure, and the report says how many images would decide. Limits can also be set under [tool.edgeres]
    in pyproject.toml; "off" disables a gate.

    \b
    Exit codes:
      0  passed, or unsure with --on-unsure warn
      1  a gate or a check failed, or unsure with --on-unsure fail
      2  wrong usage
      3  the input or the environment prevents it
    """
    from edgeres.bundle import MANIFEST
    from edgeres.data.choose import DataChoice
    from edgeres.errors import UsageError
    from edgeres.judge.document import to_json
    from edgeres.pipeline.options import VerifyOptions
    from edgeres.pipeline.render import write_junit, write_markdown, write_report
    from edgeres.pipeline.verify import verify_bundle
    from edgeres.report.terminal import render_terminal

    if output is not None and (output / MANIFEST).exists():
        raise UsageError("is a bundle, and its report is not overwritten", where=output, hint="choose another -o")
    gates = gate_choice(given)
    validation = given["validation"] or gates.pop("validation", None)
    size = given["validation_size"] or gates.pop("validation_size", None)
    options = VerifyOptions(
        gates=gates["gates"],
        on_unreadable="skip" if given["skip_unreadable"] else "fail",
        scheduler=given["scheduler"],
        thumbnails=gates["thumbnails"],
        command=command_line(),
    )
    data = DataChoice(validation=validation, validation_size=size, seed=given["seed"])
    report = verify_bundle(bundle, data, options, progress(quiet=as_json))
    if output is not None:
        write_report(output, report)
    if given["junit"]:
        write_junit(given["junit"], report)
    if given["markdown"]:
        write_markdown(given["markdown"], report)
    if as_json:
        click.echo(to_json(report), nl=False)
    else:
        from rich.console import Console

        render_terminal(report, Console())
    ctx.exit(0 if report["passed"] else 1)
