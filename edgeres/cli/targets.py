"""edgeres targets"""

from __future__ import annotations

import click

from edgeres.cli.options import as_json
from edgeres.cli.show import echo, print_json, print_table
from edgeres.device.targets import TARGETS, Target


@click.command("targets")
@as_json
def command(as_json: bool) -> None:
    """List devices and runtimes to build for, and where their engines are built.

    \b
    edgeres targets
    """
    if as_json:
        print_json([target.to_dict() for target in TARGETS.values()])
        return
    rows = (
        (
            t.name,
            " ".join(t.sm) or "-",
            _span(t.tensorrt),
            _span(t.board.jetpack),
            "yes" if t.int8 else "no",
            _span(t.board.dla),
            f"{'/'.join(map(str, t.board.memory_gb))} GB" if t.board.memory_gb else "-",
            t.title,
        )
        for t in TARGETS.values()
    )
    print_table(("target", "SM", "TensorRT", "JetPack", "INT8", "DLA", "memory", "device"), rows)
    echo()
    for words in dict.fromkeys(_engine(t) for t in TARGETS.values()):
        names = ", ".join(t.name for t in TARGETS.values() if _engine(t) == words)
        echo(f"{names}: {words}", "")


def _span(limits: tuple[object, object] | None) -> str:
    """Both ends of a range, or one where they are equal."""
    return "-".join(dict.fromkeys(map(str, limits))) if limits else "-"


def _engine(target: Target) -> str:
    return f"refused: {target.refused}" if target.refused else target.where
