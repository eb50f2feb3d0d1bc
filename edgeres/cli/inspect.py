"""edgeres inspect"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgeres.bundle import Bundle, reappeared, steady
from edgeres.cli.options import UserPath, as_json
from edgeres.cli.show import echo, print_json, print_table
from edgeres.engine.kernels import is_engine, read_program
from edgeres.errors import EngineError, needs
from edgeres.files import open_file, read_file
from edgeres.report.figures import megabytes
from edgeres.words import escaped

Json = dict[str, Any]

_WEIGHTED = ("convolution", "matmul")


@click.command("inspect")
@click.argument("path", type=UserPath(), metavar="BUNDLE|ONNX|ENGINE")
@as_json
def command(path: Path, as_json: bool) -> None:
    """Show what is quantized, with which scale, what is not, and why.

    For a graph: its quantized tensors, what stays in float, and where a Q/DQ pair does not lead to INT8. For an RTX
    engine, on any machine: its kernels, those beside the convolutions, and the bytes that an inference moves.

    \b
    edgeres inspect resnet18.edgeres
    edgeres inspect my.int8.onnx --json
    edgeres inspect resnet18.edgeres/engines/rtx-1.7.1.116-portable.engine
    """
    if path.is_dir() or reappeared(path):
        found = steady(path, lambda bundle: _graphs(path) + _engines(bundle))
    else:
        found = [_engine(path)] if _is_engine(path) else _graphs(path)
    if as_json:
        print_json(found)
        return
    for entry in found:
        (_show_engine if entry["kind"] == "engine" else _show_graph)(entry)


def _is_engine(path: Path) -> bool:
    if not path.exists() or path.is_dir():
        return False
    with open_file(path) as stream:
        return path.suffix == ".engine" or is_engine(stream.read(16))


def _graphs(path: Path) -> list[Json]:
    try:
        from edgeres.graph.normalize import load_onnx
        from edgeres.quantize.inspect import inspect
        from edgeres.quantize.losses import losses
    except ModuleNotFoundError as error:
        raise needs("export", "onnx") from error

    return [
        {
            "kind": "graph",
            **asdict(graph),
            "lost": [asdict(loss) for loss in losses(load_onnx(Path(graph.file)))] if graph.quantized else [],
        }
        for graph in inspect(path)
    ]


def _engine(path: Path) -> Json:
    data = read_file(path)
    return {"kind": "engine", "file": str(path), "bytes": len(data), **read_program(data, where=path).to_dict()}


def _engines(bundle: Bundle) -> list[Json]:
    """The engines of a bundle; an engine whose kernels cannot be read has a reason instead."""
    found: list[Json] = []
    for record in bundle.manifest.engines:
        if not record.file:
            continue
        path = bundle.file(record.file)
        try:
            found.append(_engine(path))
        except EngineError as error:
            found.append({"kind": "engine", "file": str(path), "bytes": record.size_bytes, "reason": error.what})
    return found


def _show_graph(graph: Json) -> None:
    click.secho(f"{escaped(graph['file'])}: {graph['style'] or 'not quantized by edgeres'}", bold=True)
    operators = ", ".join(f"{count} {name}" for name, count in graph["operators"].items())
    echo(f"opset {graph['opset']}, {operators}", "")
    if graph["quantized"]:
        quantized = (
            (q["tensor"], q["dtype"], f"{q['scale']:.5g}", str(q["zero_point"]), q["reason"])
            for q in graph["quantized"]
        )
        print_table(("quantized tensor", "type", "scale", "zero", "as"), quantized, right=("scale", "zero"))
        echo()
    if graph["skipped"]:
        print_table(("left in float", "because"), graph["skipped"])
        echo()
    if graph["lost"]:
        lost = ((f"{loss['op']} {loss['node']}", loss["edge"], loss["reason"]) for loss in graph["lost"])
        print_table(("INT8 is lost in", "quantized without effect", "because"), lost)
        echo()
    for finding in graph["refused"]:
        echo(f"TensorRT refuses: {finding}")


def _show_engine(engine: Json) -> None:
    if "reason" in engine:
        click.secho(f"{escaped(engine['file'])}: {megabytes(engine['bytes'])}", bold=True)
        echo(engine["reason"], "")
        return
    made_for = ", ".join(engine["accelerators"]) + (" and later" if engine["portable"] else "")
    click.secho(f"{escaped(engine['file'])}: {megabytes(engine['bytes'])}, for {made_for}", bold=True)
    types = Counter((_type(k["reads"]), _type(k["writes"])) for k in engine["kernels"] if k["kind"] == "convolution")
    convolutions = ", ".join(f"{count} from {reads} to {writes}" for (reads, writes), count in types.items())
    echo(f"convolutions: {convolutions or 'none'}", "")
    rows = [(kind, *_figures(of_kind["kernels"], of_kind)) for kind, of_kind in engine["kinds"].items()]
    rows.append(("all", *_figures(len(engine["kernels"]), engine)))
    figures = ("kernels", "activations", "weights")
    print_table(("one inference", *figures), rows, right=figures)
    echo()
    _show_kernels("with weights", [k for k in engine["kernels"] if k["kind"] in _WEIGHTED])
    _show_kernels("outside them", [k for k in engine["kernels"] if k["kind"] not in _WEIGHTED])
    if engine["lost"]:
        lost = ((loss["node"], ", ".join(loss["layers"])) for loss in engine["lost"])
        print_table(("INT8 is lost in", "because these dequantize before it"), lost)
        echo()


def _show_kernels(title: str, kernels: Sequence[Json]) -> None:
    rows = (
        (
            ", ".join((k["name"], *k["fused"])),
            " + ".join(k["reads"]),
            " + ".join(k["writes"]),
            f"{k['moved_bytes']:,}",
            k["layers"][0] if k["layers"] and k["name"] not in k["layers"] else "",
        )
        for k in kernels
    )
    print_table((title, "reads", "writes", "bytes", "at"), rows, right=("bytes",))
    echo()


def _type(tensors: Sequence[str]) -> str:
    """Type of a kernel's first tensor, which is a convolution's image or its output."""
    return tensors[0].split()[0] if tensors else "constants"


def _figures(kernels: int, of: Json) -> tuple[str, str, str]:
    return str(kernels), megabytes(of["moved_bytes"]), megabytes(of["constant_bytes"])
