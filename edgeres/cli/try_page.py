"""edgeres try"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import UserPath, as_json, backend_option, trust_options, trusted
from edgeres.cli.show import echo, print_json

DEFAULT_PORT = 8765
_PORT = "Port on 127.0.0.1; 0: any that is free."


@click.command("try")
@click.argument("bundle", type=UserPath())
@backend_option
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, metavar="N", help=_PORT)
@trust_options
@as_json
def command(bundle: Path, port: int, as_json: bool, **given: Any) -> None:
    """Serve a page on this machine that shows what FP32 and INT8 say to photographs and the camera, and how long it
    takes.

    The page's address holds a token and is known to this terminal alone. Images are classified here and are not kept.
    Ctrl-C ends it. For a bundle on a robot, forward the port: `ssh -L 8765:127.0.0.1:8765 robot`.

    \b
    edgeres try resnet18.edgeres
    edgeres try resnet18.edgeres --port 0 --json
    """
    from edgeres.live.server import TryServer
    from edgeres.live.side_by_side import SideBySide

    with (
        SideBySide(bundle, backend=given.pop("backend"), trust=trusted(given)) as pair,
        TryServer(pair, port) as server,
    ):
        if as_json:
            print_json({"url": server.url, "fp32": pair.fp32, "int8": pair.int8, "passed_over": pair.passed_over})
        else:
            echo(f"FP32: {pair.fp32}    INT8: {pair.int8}")
            echo(f"open {server.url}", "Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            told = f"{server.images:,} image{'s' * (server.images != 1)}"
            echo(f"ended: {told}, the same class for {server.same:,} of them", err=True)
