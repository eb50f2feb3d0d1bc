"""edgeres on a machine with the simulated GPU, as a command: ``python simulated_device.py PLANTED ARGUMENTS``.

PLANTED is a JSON file: what the GPU does with the graph in each file of a bundle, as :class:`fake_builder.Planted` has
it, with a path for ``answers``; ``flavours`` are the vendor's packages that are installed, and ``faults`` is where
misuse of the GPU is appended to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # this edgeres, whichever is installed

from fake_gpu import Gpu, Planted, machine

from edgeres.cli import main as edgeres


def planted(told: dict[str, dict[str, Any]], model: onnx.ModelProto) -> Planted:
    """What was planted for a graph; the simulated parser notes in it which file it was in."""
    found = dict(told.get(model.graph.doc_string.replace(".bytes.onnx", ".onnx"), {}))
    answers = found.pop("answers", None)
    layers = tuple(found.pop("layers", ()))
    return Planted(**found, layers=layers, answers=None if answers is None else Path(answers).read_bytes())


def main() -> None:
    told = json.loads(Path(sys.argv.pop(1)).read_text())
    gpu = Gpu()
    gpu.plants = lambda model: planted(told["planted"], model)
    with pytest.MonkeyPatch.context() as patch, machine(patch, gpu, flavours=told["flavours"]):
        try:
            edgeres()
        finally:
            with Path(told["faults"]).open("a") as stream:
                stream.writelines(f"{fault}\n" for fault in (*gpu.faults, *gpu.live()))


if __name__ == "__main__":
    main()
