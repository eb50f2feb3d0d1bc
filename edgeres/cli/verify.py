"""edgeres verify"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli import options
from edgeres.cli.progress import progress
from edgeres.cli.show import command_line, print_report


@click.command("verify")
@click.argument("bundle", type=options.UserPath())
@options.validation_options
@options.whole_number("--seed", "Seed of the choice of images.", 0, least=0)
@options.unreadable_option
@options.gate_options
@options.output_option("DIR", "Write the report here.", file_okay=False)
@click.option("--scheduler", metavar="tcp://HOST:8786", help="Run the graphs on the Dask cluster of this scheduler.")
@options.trust_options
@options.written_file("--junit", "Write gates and checks as JUnit XML.")
@options.written_file("--markdown", "Write a summary as Markdown.")
@options.written_file("--metrics", "Write the figures as OpenMetrics.")
@options.written_file("--annotations", "Write what did not pass as GitHub's workflow commands.")
@options.as_json
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
    from edgeres.pipeline.options import VerifyOptions
    from edgeres.pipeline.render import RENDERERS, write_rendered, write_report
    from edgeres.pipeline.verify import verify_bundle

    if output is not None and (output / MANIFEST).exists():
        raise UsageError("is a bundle, and its report is not overwritten", where=output, hint="choose another -o")
    gates = options.gate_choice(given)
    validation = given["validation"] or gates.pop("validation", None)
    size = given["validation_size"] or gates.pop("validation_size", None)
    labels = given["validation_labels"] or gates.pop("validation_labels", None)
    chosen = VerifyOptions(
        gates=gates["gates"],
        on_unreadable=given["on_unreadable"],
        scheduler=given["scheduler"],
        thumbnails=gates["thumbnails"],
        command=command_line(),
        trust=options.trusted(given),
    )
    data = DataChoice(validation=validation, validation_labels=labels, validation_size=size, seed=given["seed"])
    report = verify_bundle(bundle, data, chosen, progress(quiet=as_json))
    if output is not None:
        write_report(output, report)
    for form in RENDERERS:
        if given[form]:
            write_rendered(given[form], form, report)
    print_report(report, as_json=as_json)
    ctx.exit(0 if report["passed"] else 1)
