"""edgeres baseline"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import UserPath, as_json, file_option, output_option
from edgeres.cli.show import echo, print_json
from edgeres.errors import UsageError

FILE = "baseline.json"


@click.command("baseline")
@click.argument("action", type=click.Choice(["accept", "check"]))
@click.argument("builds", type=UserPath(), nargs=-1, metavar="[BUNDLE|REPORT.json]")
@output_option("FILE", f"File that accept writes.  [default: {FILE}]", dir_okay=False)
@file_option("--baseline", f"File that check reads.  [default: that of pyproject.toml, or {FILE}]")
@as_json
@click.pass_context
def command(
    ctx: click.Context, action: str, builds: tuple[Path, ...], output: Path | None, baseline: Path | None, as_json: bool
) -> None:
    """Record the answers, latency and settings of an accepted build, to compare later builds with.

    \b
    edgeres baseline accept resnet18.edgeres && git add baseline.json
    edgeres verify resnet18.edgeres --baseline baseline.json

    A bundle has the figures of the machine and the images of its build. Accept the report.json of `edgeres verify -o
    DIR` instead to have those of the verification.

    check takes a second and reads no image. It checks whether [tool.edgeres] in pyproject.toml, the baseline, and the
    named bundles fit together, and ends with 1 where they do not; pre-commit runs it before a commit.

    \b
    edgeres baseline check resnet18.edgeres
    """
    if action == "check":
        ctx.exit(_check(builds, output, baseline, as_json))
    _accept(builds, output or Path(FILE), baseline, as_json)


def _accept(builds: tuple[Path, ...], output: Path, baseline: Path | None, as_json: bool) -> None:
    from edgeres.files import write_json
    from edgeres.pipeline.verify import accept_baseline

    if len(builds) != 1:
        raise UsageError(f"one build is needed, {len(builds)} are given", where="baseline accept")
    if baseline is not None:
        raise UsageError("is for check; accept writes -o", where="--baseline", hint="leave it out")
    document = accept_baseline(builds[0])
    write_json(output, document)
    told = _summary(output, document)
    if as_json:
        print_json(told)
        return
    echo(f"{output}: {told['model']}, {told['images']:,} images of {told['validation']}")
    if document["outcome"] == "failed":
        echo("accepted although a gate had failed; later builds are compared with it nevertheless", err=True)


def _check(builds: tuple[Path, ...], output: Path | None, baseline: Path | None, as_json: bool) -> int:
    """Run the checks; returns exit code 0 where everything fits, else 1."""
    from dataclasses import asdict

    from edgeres.bundle import Bundle
    from edgeres.cli.config import gates_from, read_config, tell_config
    from edgeres.judge.baseline import read_baseline
    from edgeres.judge.consistency import consistency

    if output is not None:
        raise UsageError("is for accept; check writes nothing", where="-o", hint="leave it out")
    gates = gates_from(read_config())
    tell_config(gates)
    accepted = read_baseline(baseline or gates.baseline or Path(FILE))
    found = consistency(accepted, gates.limits, map(Bundle, builds))
    if as_json:
        print_json([asdict(check) for check in found])
    else:
        for check in found:
            echo(f"{'ok' if check.outcome == 'passed' else 'FAIL'}  {check.title}: {check.reason}")
    return int(any(check.outcome == "failed" for check in found))


def _summary(output: Path, document: dict[str, Any]) -> dict[str, Any]:
    validation = document["validation"] or {"images": 0, "description": "nothing"}
    return {
        "file": str(output),
        "bytes": output.stat().st_size,
        "model": document["facts"].get("model", "a bundle"),
        "outcome": document["outcome"],
        "images": validation["images"],
        "validation": validation["description"],
    }
