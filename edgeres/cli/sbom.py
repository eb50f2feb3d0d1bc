"""edgeres sbom"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import UserPath
from edgeres.cli.show import echo, print_json


@click.command("sbom")
@click.argument("bundle", required=False, type=UserPath())
@click.option("-o", "--output", type=UserPath(dir_okay=False), metavar="FILE", help="[default: stdout]")
def command(bundle: Path | None, output: Path | None) -> None:
    """List what a bundle is made of, as a bill of materials in CycloneDX 1.6 JSON.

    \b
    edgeres sbom resnet18.edgeres -o resnet18.cdx.json
    edgeres sbom > edgeres.cdx.json

    Of a bundle: its files with SHA-256, its weights, and the packages that made it. The build wrote it, as
    sbom.cdx.json in the bundle; here, the engines are those that the bundle has now. Without BUNDLE: edgeres and the
    packages that are installed here.
    """
    from edgeres.bundle import steady
    from edgeres.files import json_bytes, write_file
    from edgeres.pipeline.sbom import bundle_sbom, own_sbom

    bill = own_sbom() if bundle is None else steady(bundle, bundle_sbom)
    if output is None:
        print_json(bill)
        return
    write_file(output, json_bytes(bill))
    echo(f"{len(bill['components'])} components: {output}")
