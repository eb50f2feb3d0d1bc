"""edgeres push"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import UserPath, as_json
from edgeres.cli.progress import progress
from edgeres.cli.show import echo, print_json

PLAIN = "Speak to the registry without TLS; one on this machine always is."


@click.command("push")
@click.argument("bundle", type=UserPath())
@click.argument("address", metavar="oci://HOST/NAME:TAG")
@click.option("--plain-http", is_flag=True, help=PLAIN)
@as_json
def command(bundle: Path, address: str, plain_http: bool, as_json: bool) -> None:
    """Write a bundle into a registry of containers.

    \b
    edgeres push resnet18.edgeres oci://registry.example/robots/resnet18:1.2
    edgeres pull oci://registry.example/robots/resnet18:1.2 -o resnet18.edgeres

    Files that are in the registry are not sent again. The tag leads to the bundle once all of it is there; the digest
    that is printed leads to exactly this one. Credentials are those of `docker login`.
    """
    from edgeres.hub.bundles import push_bundle

    done = push_bundle(bundle, address, plain=plain_http, progress=progress(quiet=as_json))
    if as_json:
        print_json({"address": str(done.address), "files": done.files, "bytes": done.size, "sent_bytes": done.sent})
    else:
        echo(
            f"{done.files} files, {done.size / 1e6:.1f} MB, of which {done.sent / 1e6:.1f} MB were sent",
            str(done.address),
        )
