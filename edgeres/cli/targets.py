"""edgeres targets"""

from __future__ import annotations

from dataclasses import asdict

import click

from edgeres.cli.options import as_json
from edgeres.cli.show import print_json, print_table


@click.command("targets")
@as_json
def command(as_json: bool) -> None:
    """List devices and runtimes to build for, and where their engines are built."""
    from edgeres.engine.targets import TARGETS

    if as_json:
        print_json([asdict(target) for target in TARGETS.values()])
        return
    rows = (
        (
            target.name,
            " ".join(target.sm) or "-",
            "-".join(dict.fromkeys(target.tensorrt)) if target.tensorrt else "-",
            "-".join(dict.fromkeys(target.jetpack)) if target.jetpack else "-",
            f"refused: {target.refused}" if target.refused else target.where,
        )
        for target in TARGETS.values()
    )
    print_table(("target", "SM", "TensorRT", "JetPack", "engine"), rows)
