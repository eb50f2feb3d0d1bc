"""edgeres history"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import UserPath, as_json, written_file
from edgeres.cli.show import echo, print_json, print_table


@click.command("history")
@click.argument("builds", type=UserPath(), nargs=-1, required=True, metavar="REPORT.json|BUNDLE...")
@written_file("--plot", "Write charts, .html or .svg.")
@click.option("--any-images", is_flag=True, help="List builds that were verified on different images, too.")
@as_json
def command(builds: tuple[Path, ...], plot: Path | None, any_images: bool, as_json: bool) -> None:
    """Show a network's figures over its builds, oldest first: top-1, drop, SQNR, latency, size and verdict.

    Reports of other networks are refused, and those on other images, whose figures do not compare. Notes say where
    the machine or the graph behind the figures changed. `edgeres compare` says why two builds differ.

    \b
    edgeres history monday/report.json tuesday/report.json
    edgeres history reports/*.json --plot history.html
    """
    from edgeres.errors import UsageError
    from edgeres.files import write_file
    from edgeres.judge.history import read_history
    from edgeres.report.history import HEAD, UNITS, history_rows, history_title, render_history, render_history_svg

    if plot is not None and plot.suffix.lower() not in {".html", ".svg"}:
        raise UsageError("is neither a page nor a picture", where=plot, hint="give a name that ends in .html or .svg")
    found = read_history(builds, any_images=any_images)
    if plot is not None:
        render = render_history if plot.suffix.lower() == ".html" else render_history_svg
        write_file(plot, render(found).encode())
    if as_json:
        print_json(found)
        return
    echo(" on ".join(filter(None, (history_title(found), found["images"]))))
    print_table(HEAD, history_rows(found), right=HEAD[1:6])
    echo("", *UNITS)
    for note in found["notes"]:
        echo(f"note: {note}")
    if plot is not None:
        echo(f"plot: {plot}")
