"""edgeres verify-signature"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgeres.cli.options import UserPath, as_json
from edgeres.cli.show import echo, print_json


@click.command("verify-signature")
@click.argument("bundle", type=UserPath())
@click.option("--trust", required=True, type=UserPath(dir_okay=False), metavar="FILE", help="Public keys to trust.")
@as_json
def command(bundle: Path, trust: Path, as_json: bool) -> None:
    """Check that a trusted key signed a bundle, and that every file is as it was signed.

    \b
    edgeres verify-signature resnet18.edgeres --trust keys

    FILE holds public keys, one a line, as ssh-keygen writes them to KEY.pub, or as its ALLOWED SIGNERS with names and
    dates (man ssh-keygen). Engines that were added after the bundle was signed are listed; with --trust, predict and
    verify do not run them. Exit code 3: not signed, by another key, or changed.
    """
    from edgeres.bundle import steady
    from edgeres.signing import check_all

    signed = steady(bundle, lambda opened: check_all(opened, trust))
    if as_json:
        print_json({"bundle": str(bundle), **asdict(signed)})
        return
    echo(f"{bundle}: signed by {signed.signer} with {signed.key}")
    for name in signed.unsigned:
        echo(f"note: {name} was added after that, and is not signed", err=True)
