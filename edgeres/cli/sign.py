"""edgeres sign"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import UserPath, as_json
from edgeres.cli.show import echo, print_json

_KEY = "A private key of OpenSSH, or the .pub of one that ssh-agent or a security key holds."


@click.command("sign")
@click.argument("bundle", type=UserPath())
@click.option("--key", required=True, type=UserPath(dir_okay=False), metavar="FILE", help=_KEY)
@as_json
def command(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign a bundle with an SSH key: all of its files, engines included.

    \b
    edgeres sign resnet18.edgeres --key ~/.ssh/id_ed25519
    edgeres verify-signature resnet18.edgeres --trust keys

    ssh-keygen signs, and asks for the key's passphrase on the terminal. The signature is signature.json in the bundle;
    an earlier one is replaced. Engines that are added later are not signed until the bundle is signed again.
    """
    from edgeres.bundle import SIGNATURE, Bundle
    from edgeres.signing import sign

    used = sign(Bundle(bundle), key)
    if as_json:
        print_json({"bundle": str(bundle), "key": used})
    else:
        echo(f"signed with {used}: {bundle / SIGNATURE}")
