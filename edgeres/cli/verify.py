"""edgeres verify"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import SRC, UserPath, as_json, gate_options
from edgeres.cli.progress import progress
from edgeres.cli.show import command_line


@click.command("verify")
@click.argument("bundle", type=UserPath())
@click.option("--validation", metavar="SRC", help=f"Images to verify on. {SRC}.")
@click.option("--validation-size", type=click.IntRange(1), metavar="N", help="Images taken from it; all by default.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of that choice.")
@click.option("--skip-unreadable", is_flag=True, help="Go on without images that cannot be read; they are named.")
@gate_options
@click.option("-o", "--output", type=UserPath(file_okay=False), metavar="DIR", help="Write the report here.")
@as_json
@click.pass_context
def command(ctx: click.Context, /, bundle: Path, output: Path | None, as_json: bool, **given: Any) -> None:
    """Measure a bundle against its FP32 baseline on this machine, and judge.

    \b
    edgeres verify resnet18.edgeres --validation val/ --max-drop 0.5
    """
    from edgeres.bundle import MANIFEST
    from edgeres.data.choose import DataChoice
    from edgeres.errors import UsageError
    from edgeres.report import render_terminal, to_json
    from edgeres.report.files import write_report
    from edgeres.steps import verify_bundle

    if output is not None and (output / MANIFEST).exists():
        raise UsageError("is a bundle, whose own report stays as it was built", where=output, hint="choose another -o")
    report = verify_bundle(
        bundle,
        DataChoice(validation=given["validation"], validation_size=given["validation_size"], seed=given["seed"]),
        {"drop_pp": given["max_drop"], "speedup": given["min_speedup"]},
        command=command_line(),
        on_unreadable="skip" if given["skip_unreadable"] else "fail",
        progress=progress(quiet=as_json),
    )
    if output is not None:
        write_report(output, report)
    if as_json:
        click.echo(to_json(report), nl=False)
    else:
        from rich.console import Console

        render_terminal(report, Console())
    ctx.exit(0 if report["passed"] else 1)
