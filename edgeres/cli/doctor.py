"""edgeres doctor"""

from __future__ import annotations

from dataclasses import asdict

import click

from edgeres.cli.options import as_json
from edgeres.cli.show import print_json
from edgeres.words import escaped


@click.command("doctor")
@as_json
def command(as_json: bool) -> None:
    """Check what this machine can do, what is missing, and the next step.

    \b
    edgeres doctor
    """
    from edgeres.doctor import diagnose

    diagnoses = diagnose()
    if as_json:
        print_json([asdict(diagnosis) for diagnosis in diagnoses])
        return
    words = {True: ("ok", "green"), False: ("missing", "yellow"), None: ("-", "cyan")}
    width = max(len(diagnosis.name) for diagnosis in diagnoses)
    for diagnosis in diagnoses:
        word, colour = words[diagnosis.ok]
        click.echo(f"{click.style(f'{word:8}', fg=colour)} {diagnosis.name:{width}}  {escaped(diagnosis.found)}")
        if diagnosis.next_step:
            click.echo(f"{'':9}{'':{width}}  next: {escaped(diagnosis.next_step)}")
