"""edgeres pull"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import as_json, file_option, output_option
from edgeres.cli.progress import progress
from edgeres.cli.push import PLAIN
from edgeres.cli.show import echo, print_json

_TRUST = "Public keys; the bundle is taken only if one of their owners signed it."
_FORCE = "Replace an older bundle in which are files that edgeres did not write; they are lost."


@click.command("pull")
@click.argument("address", metavar="oci://HOST/NAME:TAG")
@output_option("DIR", "Bundle to write.  [default: NAME.edgeres]")
@file_option("--trust", _TRUST)
@click.option("--force", is_flag=True, help=_FORCE)
@click.option("--plain-http", is_flag=True, help=PLAIN)
@as_json
def command(
    address: str, output: Path | None, trust: Path | None, force: bool, plain_http: bool, as_json: bool
) -> None:
    """Take a bundle from a registry of containers.

    \b
    edgeres pull oci://registry.example/robots/resnet18:1.2 -o resnet18.edgeres
    edgeres pull oci://registry.example/robots/resnet18:1.2 --trust keys

    Every file is checked against the bundle's manifest before the bundle gets its name. A tag can be moved to another
    bundle; NAME@sha256:DIGEST, as push prints it, can not, and --trust says who made it.
    """
    from edgeres.hub.address import Address
    from edgeres.hub.bundles import pull_bundle

    where = output or Path(f"{Address.of(address).name.rpartition('/')[2]}.edgeres")
    told = progress(quiet=as_json)
    done = pull_bundle(address, where, trust=trust, force=force, plain=plain_http, progress=told)
    if as_json:
        found = {"bundle": str(done.folder), "address": str(done.address), "files": done.files, "bytes": done.size}
        print_json({**found, "signer": done.signer or None})
        return
    signed = f", signed by {done.signer}" if done.signer else ""
    echo(f"{done.files} files, {done.size / 1e6:.1f} MB{signed}: {done.folder}", str(done.address))
