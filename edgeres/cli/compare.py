"""edgeres compare"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import UserPath, as_json, written_file
from edgeres.cli.show import echo, new_console, print_json


@click.command("compare")
@click.argument("builds", type=UserPath(), nargs=-1, required=True, metavar="BUNDLE|REPORT.json...")
@written_file("--html", "Write a page, too.")
@click.option("--any-machine", is_flag=True, help="Compare latency also between different machines.")
@as_json
def command(builds: tuple[Path, ...], html: Path | None, any_machine: bool, as_json: bool) -> None:
    """Show what changed between builds, likely causes first. Each build is compared with the first one.

    Compared are options and versions, scales, Q/DQ pairs, accuracy (image by image where both used the same images),
    latency and sizes. A report.json of `edgeres verify -o DIR` has all of these but scales and Q/DQ pairs.

    \b
    edgeres compare accepted.edgeres resnet18.edgeres
    edgeres compare monday/report.json tuesday/report.json --html compare.html
    """
    from edgeres.errors import UsageError
    from edgeres.files import write_file
    from edgeres.judge.differences import compare_builds
    from edgeres.judge.sides import read_side
    from edgeres.report.html_compare import render_comparisons
    from edgeres.report.terminal_compare import render_comparison

    if len(builds) < 2:
        what = "is the only build, there is nothing to compare it with"
        raise UsageError(what, where=builds[0], hint="give two or more builds")
    first, *others = map(read_side, builds)
    pairs = [compare_builds(first, other, any_machine=any_machine) for other in others]
    if html is not None:
        write_file(html, render_comparisons(pairs).encode())
    if as_json:
        print_json(pairs)
        return
    for i, pair in enumerate(pairs):
        if i:
            echo()
        render_comparison(pair, new_console(highlight=False))
    if html is not None:
        echo("", f"page: {html}")
