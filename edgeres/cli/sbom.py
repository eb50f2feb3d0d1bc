"""edgeres sbom"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import UserPath, as_json, output_option
from edgeres.cli.show import echo, print_json, print_table


@click.command("sbom")
@click.argument("bundle", required=False, type=UserPath())
@output_option("FILE", "Write the document into FILE.", dir_okay=False)
@as_json
def command(bundle: Path | None, output: Path | None, as_json: bool) -> None:
    """List what a bundle is made of: a bill of materials in CycloneDX 1.6.

    \b
    edgeres sbom resnet18.edgeres
    edgeres sbom resnet18.edgeres -o resnet18.cdx.json
    edgeres sbom --json > edgeres.cdx.json

    Of a bundle: its files with SHA-256, its weights, and the packages that made it. The build wrote it, as
    sbom.cdx.json in the bundle; here, the engines are those that the bundle has now. Without BUNDLE: edgeres and the
    packages that are installed here.
    """
    from edgeres.bundle import steady
    from edgeres.files import json_bytes, write_file
    from edgeres.pipeline.sbom import bundle_sbom, own_sbom

    bill = own_sbom() if bundle is None else steady(bundle, bundle_sbom)
    if output is not None:
        write_file(output, json_bytes(bill))
    if as_json:
        print_json(bill)
    elif output is not None:
        echo(f"{len(bill['components'])} components: {output}")
    else:
        rows = [(str(part["name"]), str(part["type"]), *_facts(part)) for part in bill["components"]]
        print_table(("name", "kind", "version or SHA-256", "licence"), rows)


def _facts(part: dict[str, Any]) -> tuple[str, str]:
    """Version or digest of a component, and its licence."""
    digests = [str(one.get("content", "")) for one in part.get("hashes", ())]
    stated = [one.get("license", {}) | one for one in part.get("licenses", ())]
    licences = [str(one.get("expression") or one.get("id") or one.get("name") or "") for one in stated]
    return str(part.get("version") or (digests or [""])[0][:16]), ", ".join(licences)
