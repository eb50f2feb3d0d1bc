"""edgeres doctor"""

from __future__ import annotations

from dataclasses import asdict

import click

from edgeres.cli.options import as_json
from edgeres.cli.show import print_json


@click.command("doctor")
@as_json
def command(as_json: bool) -> None:
    """Tell what this machine can do, what is missing, and the next step.

    \b
    edgeres doctor
    """
    from edgeres.doctor import diagnose

    checks = diagnose()
    if as_json:
        print_json([asdict(check) for check in checks])
        return
    words = {True: ("ok", "green"), False: ("missing", "yellow"), None: ("-", "cyan")}
    width = max(len(check.name) for check in checks)
    for check in checks:
        word, colour = words[check.ok]
        click.echo(f"{click.style(f'{word:8}', fg=colour)} {check.name:{width}}  {check.found}")
        if check.next_step:
            click.echo(f"{'':9}{'':{width}}  next: {check.next_step}")
