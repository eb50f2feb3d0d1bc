"""edgeres dla"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeres.cli.options import UserPath, as_json, output_option, text_option, whole_number
from edgeres.cli.show import echo, print_json, print_table

if TYPE_CHECKING:
    from edgeres.graph.dla import DlaModel

GRAPH, CACHE = "model.dla.onnx", "model.dla.cache"
COMMAND = (
    f"trtexec --onnx={GRAPH} --calib={CACHE} --int8 --fp16 --useDLACore=0 --allowGPUFallback"
    " --saveEngine=model.dla.engine"
)


@click.command("dla")
@click.argument("bundle", type=UserPath())
@text_option("--target", default="jetson-orin-nx", metavar="NAME", text="A Jetson that has a DLA.")
@whole_number("--batch", "The only batch that the DLA will take.", 1)
@text_option("--tensorrt", default="10.3.0", metavar="VERSION", text="Version that the cache is for.")
@output_option("DIR", "Write the graph and the cache here.", file_okay=False)
@as_json
def command(bundle: Path, target: str, batch: int, tensorrt: str, output: Path | None, as_json: bool) -> None:
    """Show which layers a Jetson's DLA can run, before anything is built.

    \b
    edgeres dla resnet50.edgeres
    edgeres dla resnet50.edgeres --target jetson-agx-orin -o dla/

    Up to JetPack 6 a DLA takes a float graph with a calibration cache instead of Q/DQ. -o writes both, and trtexec
    builds the engine from them on the device.
    """
    from edgeres.files import write_files
    from edgeres.pipeline.engines import dla_model

    found = dla_model(bundle, target, batch, tensorrt)
    if output is not None:
        write_files(output, {GRAPH: found.graph.SerializeToString(), CACHE: found.cache.encode()})
    if as_json:
        print_json(
            {
                "target": target,
                "batch": batch,
                "loadables": found.loadables,
                "layers": [asdict(layer) for layer in found.layers],
                "input": {name: getattr(found.preprocess, name) for name in ("pixel_scale", "mean", "std", "layout")},
                "rewritten": list(found.rewritten),
                "notes": list(found.notes),
                "files": [str(output / name) for name in (GRAPH, CACHE)] if output else [],
            }
        )
        return
    _show(found, target)
    if output is not None:
        echo("", f"{output / GRAPH}, {output / CACHE}", f"on the device: {COMMAND}")


def _show(found: DlaModel, target: str) -> None:
    counts = Counter(layer.where for layer in found.layers)
    half = sum(layer.precision == "fp16" for layer in found.layers)
    echo(
        f"{target}: {counts['dla']} of {len(found.layers)} layers on the DLA{f' ({half} in float16)' if half else ''},"
        f" {counts['gpu']} on the GPU, {counts['unsure']} unsure",
        "",
    )
    rows = [(layer.node, layer.op, layer.where, layer.reason) for layer in found.layers if layer.reason]
    if rows:
        print_table(("layer", "operator", "where", "because"), rows)
        echo()
    for line in (*found.rewritten, *found.notes):
        echo(f"- {line}")
