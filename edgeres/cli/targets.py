"""edgeres targets"""

from __future__ import annotations

from dataclasses import asdict

import click

from edgeres.cli.options import as_json
from edgeres.cli.show import print_json, print_table
from edgeres.device.targets import TARGETS, Target


@click.command("targets")
@as_json
def command(as_json: bool) -> None:
    """List devices and runtimes to build for, and where their engines are built.

    \b
    edgeres targets
    """
    if as_json:
        print_json([{**asdict(target), "int8": target.int8} for target in TARGETS.values()])
        return
    rows = (
        (
            t.name,
            " ".join(t.sm) or "-",
            _span(t.tensorrt),
            _span(t.jetpack),
            "yes" if t.int8 else "no",
            _span(t.dla),
            f"{'/'.join(map(str, t.memory_gb))} GB" if t.memory_gb else "-",
            t.title,
        )
        for t in TARGETS.values()
    )
    print_table(("target", "SM", "TensorRT", "JetPack", "INT8", "DLA", "memory", "device"), rows)
    click.echo()
    for words in dict.fromkeys(_engine(t) for t in TARGETS.values()):
        names = ", ".join(t.name for t in TARGETS.values() if _engine(t) == words)
        click.echo(f"{names}: {words}\n")


def _span(limits: tuple[object, object] | None) -> str:
    """First and last of a range, one where they are the same."""
    return "-".join(dict.fromkeys(map(str, limits))) if limits else "-"


def _engine(target: Target) -> str:
    return f"refused: {target.refused}" if target.refused else target.where
