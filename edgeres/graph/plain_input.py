"""A graph with exact input, written with the three channels of its image again, for devices that run no Pad.

Exact input (:mod:`edgeres.refine.exact_input`) gives the first convolution a fourth channel that holds ``fill`` inside
the image, with weights W'_4 = sum_c W'_c d_c / fill. So with u_c = x_c + d_c, which is 0 in the border as the padding
is, three channels compute the same: sum_c W'_c u_c. The d_c follow from the weights: every position of every kernel is
an equation for the same three unknowns.

Worked number: ImageNet's red has mean 123.675 in bytes, and x = byte - 128, so d = 4.325 and u = byte - 123.675.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import NodeProto

from edgeres.graph.graph import Graph, attributes
from edgeres.records import F64, Preprocess

_TOLERANCE = 1e-3  # of the largest weight of the fourth channel; they are float32, and so were rounded once


def with_plain_input(graph: Graph, preprocess: Preprocess) -> Preprocess | None:
    """Take the fourth channel out of a graph, in place.

    Before:
        image -> Pad(4 channels, fill) -> Conv(W'), or with Mul and Add ahead of the Pad
    After:
        image -> Conv(W), with another mean

    Args:
        preprocess: of the graph's input.

    Returns:
        The preprocessing of the new input; None where the graph has no such channel, and is as it was.
    """
    before = _undone(graph)
    pad = graph.consumers(before[-1].output[0] if before else graph.input)
    conv = _first_conv(graph, pad[0]) if len(pad) == 1 and _adds_a_channel(graph, pad[0], preprocess) else None
    if conv is None:
        return None
    weight, fill = graph.constant(conv.input[1]).astype(np.float64), float(graph.constant(pad[0].input[2]))
    plain, shift = weight[:, :-1], _shift(weight, fill)
    if shift is None:
        return None
    if before:
        scale, offset = (graph.constant(node.input[1]).astype(np.float64).reshape(-1) for node in before)
        if not np.allclose(offset + shift, 0, atol=0.01):  # of a byte: the border is no zero of this input
            return None
        plain, found = plain * scale[:, None, None], preprocess
    else:
        mean = np.array(preprocess.mean) - shift * np.array(preprocess.std)
        found = replace(preprocess, mean=tuple(np.round(mean, 4).tolist()))
    values = graph.add_constant(f"{conv.input[1]}.plain", plain.astype(np.float32))
    graph.set_inputs(conv, [conv.input[0], values, *conv.input[2:]])
    (reader,) = graph.consumers(pad[0].output[0])
    graph.redirect(reader, pad[0].output[0], graph.input)
    for node in (*pad, *reversed(before)):
        graph.remove(node)
    return found


def _undone(graph: Graph) -> list[NodeProto]:
    """The Mul and Add that turn a normalized image into bytes; [] where the image is bytes."""
    found: list[NodeProto] = []
    tensor = graph.input
    for op in ("Mul", "Add"):
        readers = graph.consumers(tensor)
        if len(readers) != 1 or readers[0].op_type != op or not graph.is_constant(readers[0].input[1]):
            return []
        found.append(readers[0])
        tensor = readers[0].output[0]
    return found


def _adds_a_channel(graph: Graph, node: NodeProto, preprocess: Preprocess) -> bool:
    """Whether a node is a Pad that puts one channel of a constant behind the image's."""
    if node.op_type != "Pad" or attributes(node).get("mode", b"constant") not in (b"constant", "constant"):
        return False
    if len(node.input) != 3 or not all(map(graph.is_constant, node.input[1:])):
        return False
    wanted = np.zeros(8, np.int64)
    wanted[4 + (1 if preprocess.layout == "NCHW" else 3)] = 1
    return np.array_equal(graph.constant(node.input[1]), wanted) and float(graph.constant(node.input[2])) != 0


def _first_conv(graph: Graph, node: NodeProto) -> NodeProto | None:
    """The convolution that reads the padded image, behind what moves its values alone; None where there is none."""
    while True:
        readers = graph.consumers(node.output[0])
        if len(readers) != 1:
            return None
        node = readers[0]
        if node.op_type == "Conv":
            fits = graph.is_constant(node.input[1]) and attributes(node).get("group", 1) == 1
            return node if fits else None
        if node.op_type not in ("Transpose", "Pad") or not graph.keeps_codes(node):
            return None


def _shift(weight: F64, fill: float) -> F64 | None:
    """The d_c that give the last channel's weights; None where no d_c do."""
    rows = np.moveaxis(weight[:, :-1], 1, -1).reshape(-1, weight.shape[1] - 1)
    wanted = weight[:, -1].reshape(-1) * fill
    found, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    wrong = np.abs(rows @ found - wanted).max(initial=0.0)
    fits = wrong <= _TOLERANCE * np.abs(wanted).max(initial=0.0)
    return np.asarray(found, np.float64) if fits else None
