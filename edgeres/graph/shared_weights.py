"""Weights that several graphs of a bundle have in common are stored in one file, and read in place from there.

ONNX lets a tensor lie in another file of the graph's folder, at an offset. That file may be another graph: so a graph
that is handed out alone holds all its weights, and the forms beside it take no room for the same ones. Weights in
float16 take none either where they are float32 ones of another graph, rounded: a Cast rounds them as it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

LEAST_BYTES = 1024  # of a tensor that is worth a reference


def cast_weights(model: ModelProto, single: ModelProto) -> ModelProto:
    """Let a graph make its float16 weights from the float32 ones of another graph, wherever that gives the same bits.

    Before:
        weights, float16 -> Conv                float16
    After:
        weights, float32 -> Cast -> Conv        float16; whatever loads the graph folds the Cast

    The model given is changed, and returned.
    """
    from onnx import TensorProto, helper, numpy_helper

    rounded = {}
    for tensor in single.graph.initializer:
        # Biases stay: some parsers take them as stored constants alone.
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and prod(tensor.dims) * 2 >= LEAST_BYTES:
            with np.errstate(over="ignore"):
                half = numpy_helper.to_array(tensor).astype(np.float16)
            rounded[tuple(tensor.dims), half.tobytes()] = tensor
    graph = model.graph
    stored, casts = {tensor.name: tensor for tensor in graph.initializer}, []
    for tensor in list(graph.initializer):
        is_half = tensor.data_type == TensorProto.FLOAT16
        source = rounded.get((tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())) if is_half else None
        if source is None:
            continue
        name = source.name if stored.get(source.name, source) == source else f"{tensor.name}.single"
        if name not in stored:
            stored[name] = graph.initializer.add()
            stored[name].CopyFrom(source)
            stored[name].name = name
        casts.append(helper.make_node("Cast", [name], [tensor.name], f"{tensor.name}_cast", to=TensorProto.FLOAT16))
        graph.initializer.remove(tensor)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def share_weights(model: ModelProto, held: Mapping[str, bytes]) -> tuple[str, ...]:
    """Let a graph read tensors from files that hold the same bytes; the model is changed.

    Args:
        held: content of files in the folder that the graph will lie in, by name.

    Returns:
        The files that it reads from.
    """
    used: dict[str, None] = {}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < LEAST_BYTES:
            continue
        for name, content in held.items():
            offset = content.find(tensor.raw_data)
            if offset >= 0:
                _refer(tensor, name, offset)
                used[name] = None
                break
    return tuple(used)


def _refer(tensor: TensorProto, file: str, offset: int) -> None:
    from onnx import TensorProto

    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def whole_graph(path: Path) -> bytes:
    """The content of a graph's file, with the weights that it reads from other files; for another machine.

    Raises:
        ModelError: it is no valid graph.
    """
    content = path.read_bytes()
    if b"\x0a\x08location" not in content:
        return content
    from edgeres.graph.normalize import load_onnx

    return bytes(load_onnx(path).SerializeToString())
