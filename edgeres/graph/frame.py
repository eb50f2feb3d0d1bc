"""A camera's frame as a graph's input: the preprocessing contract in standard ONNX, to the same bytes.

    uint8, as the camera lays it -> crop -> RGB -> columns resized -> rows resized -> channels in order -> network

A resize of Pillow is a weighted sum of few pixels for each output, with weights of 22 bits, rounded to a byte. As two
products with matrices, whose rows hold 7 weights and 629 zeros (1280x720 to 224), it costs a hundred times the
multiply-adds, and float32 does not hold its sums: 8 and 22 bits are 30. So each output gathers its own pixels, and
int32 sums them, which is exact:

    image (N, h, w, C) -> Gather(w' x T) -> Mul(weights) -> ReduceSum(T) -> Add(2^21) -> Max(0) -> Div(2^22) -> Min(255)

A border beside the image has weights 0 and its colour beside the 2^21, so there is no Pad. What the crop removes is cut
off first. YUV is converted in int32 too, by the rules of :mod:`edgeres.data.colour`. TensorRT converts uint8 to
float alone, so a Cast to float32 comes first; no byte is lost in it.

The graph behind may begin with the Pad of :mod:`edgeres.refine.exact_input`, which gives the image a fourth channel.
It is left out: the channels are gathered in order anyway, and the fourth one is any of them, times 0, plus the fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeres.data.channels import GRAY_BITS, GRAY_WEIGHTS
from edgeres.data.colour import PACKED_YUV, RULES, YUV_BITS
from edgeres.data.cv2_resize import cv2_columns, cv2_rows
from edgeres.data.preprocess import placed_image
from edgeres.data.taps import I32, WEIGHT_BITS, Taps, pillow_taps
from edgeres.errors import UsageError
from edgeres.graph.graph import Graph
from edgeres.records import F32, PLANAR, Colour, FrameSpec, Preprocess

FRAME, PIXELS = "frame", "pixels"  # names of inputs; PIXELS also of what comes of the preprocessing alone
_STEM = "from_camera"
_HALF, _ONE = 1 << (WEIGHT_BITS - 1), 1 << WEIGHT_BITS
_ROWS, _COLUMNS, _CHANNELS = 1, 2, 3  # axes of an image (N, h, w, C)


def with_frame(model: ModelProto, p: Preprocess, frame: FrameSpec) -> ModelProto:
    """The network with a camera's frame as its input, uint8 (N, *frame.shape); the model given is not changed.

    Raises:
        UsageError: something of this preprocessing cannot be put into a graph.
    """
    _check(p)
    graph = Graph.copy_of(model)
    made = _Nodes(graph.free_name(FRAME))
    image = _prepared(made, p, frame)
    return _joined(graph, made, (image.tensor, _order(image, p)), p, frame.shape)


def with_bytes(model: ModelProto, p: Preprocess) -> ModelProto:
    """The network with what :func:`edgeres.data.preprocess.geometry` gives as its input: uint8 (N, h, w, channels).

    The channels are in the network's order already. The model given is not changed.
    """
    graph = Graph.copy_of(model)
    made = _Nodes(graph.free_name(PIXELS))
    return _joined(graph, made, (made.input, list(range(p.channels))), p, (*p.crop_px, p.channels))


def pixels_of(p: Preprocess, frame: FrameSpec) -> ModelProto:
    """The preprocessing alone: uint8 (N, *frame.shape) to uint8 (N, h, w, C), as ``geometry(frame.rgb())`` gives it."""
    _check(p)
    made = _Nodes(FRAME)
    image = _prepared(made, p, frame)
    ordered = made.add("Gather", [image.tensor, np.array(_order(image, p))], axis=_CHANNELS)
    made.nodes.append(helper.make_node("Cast", [ordered], [PIXELS], f"{_STEM}_bytes", to=TensorProto.UINT8))
    inputs = [helper.make_tensor_value_info(FRAME, TensorProto.UINT8, ["batch", *frame.shape])]
    outputs = [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["batch", *p.crop_px, p.channels])]
    constants = [numpy_helper.from_array(values, name) for name, values in made.constants.items()]
    graph = helper.make_graph(made.nodes, _STEM, inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def multiply_adds(p: Preprocess, frame: FrameSpec) -> tuple[int, int]:
    """Of the resize of one frame: as :func:`with_frame` writes it, and as two products with matrices."""
    rows, columns = _passes(p, frame)
    (height, width), gray = p.crop_px, p.channels == 1 or (frame.format == "mono8" and len(_fill(p)) == 1)
    channels = 1 if gray else 3
    lines = rows.read[1] - rows.read[0]
    sparse = (lines * columns.multiply_adds + rows.multiply_adds * width) * channels
    read = columns.read[1] - columns.read[0]
    return sparse, (lines * width * read + height * width * lines) * channels


def _i32(*values: Any) -> I32:
    return np.array(values, np.int32)


def _check(p: Preprocess) -> None:
    if p.channels == 4:
        what = "a network of four channels weights colours by the fourth, which no frame's graph does"
        raise UsageError(what, hint="give it prepared images")


class _Nodes:
    """Nodes and constants of the part in front of a network; ``input`` is the name of what it reads."""

    def __init__(self, name: str) -> None:
        self.input = name
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def add(self, op: str, inputs: Sequence[str | npt.NDArray[Any]], **attributes: Any) -> str:
        """A node; returns its output. Arrays among the inputs become constants."""
        name = f"{_STEM}_{len(self.nodes)}_{op}"
        names = [it if isinstance(it, str) else f"{name}.{at}" for at, it in enumerate(inputs)]
        self.constants |= {own: it for own, it in zip(names, inputs, strict=True) if not isinstance(it, str)}
        self.nodes.append(helper.make_node(op, names, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def slice(self, tensor: str, cuts: dict[int, tuple[int, int]]) -> str:
        """A part, by axis: first and behind the last."""
        starts, stops = (np.array([cut[end] for cut in cuts.values()]) for end in (0, 1))
        return self.add("Slice", [tensor, starts, stops, np.array(list(cuts))])

    def reshape(self, tensor: str, *sizes: int) -> str:
        """The batch stays as it is."""
        return self.add("Reshape", [tensor, np.array([0, *sizes])])

    def to_byte(self, tensor: str, bits: int) -> str:
        """``tensor >> bits``, limited to a byte; int32. Div truncates, so negative sums are limited before it."""
        divided = self.add("Div", [self.add("Max", [tensor, _i32(0)]), _i32(1 << bits)])
        return self.add("Min", [divided, _i32(255)])


@dataclass(frozen=True)
class _Image:
    """(N, h, w, channels), of 1 (gray) or 3 (RGB) channels."""

    tensor: str
    channels: int


@dataclass(frozen=True)
class _Pass:
    """The resize of one side: ``(added + sum(pixel weight >> each_bits)) >> bits``, limited to a byte.

    Attributes:
        read: the inputs that are needed, half open.
        taps: of each output, counted from ``read[0]``; None: the outputs are the inputs.
        added: (n or 1, C or 1) int32: half of the last place, and the colour of a border.
    """

    read: tuple[int, int]
    taps: Taps | None
    added: I32
    each_bits: int
    bits: int

    @property
    def multiply_adds(self) -> int:
        """For one line of one channel."""
        return 0 if self.taps is None else self.taps.index.size


def _passes(p: Preprocess, frame: FrameSpec) -> tuple[_Pass, _Pass]:
    """Of rows and of columns."""
    image_px = (frame.height_px, frame.width_px)
    where = placed_image(image_px, p)
    halved = image_px == (2 * where.size_px[0], 2 * where.size_px[1])
    opencv = p.interpolation == "cv2-bilinear" and where.size_px != image_px

    def one(side: int) -> _Pass:
        have, want, keep = image_px[side], where.size_px[side], where.keep[side]
        if opencv and halved:
            two = 2 if side == 0 else 0  # the sum of four pixels is divided once
            found = _Pass((0, have), _pairs(keep), _i32([two]), 0, two)
        elif opencv and side == 0:
            found = _Pass((0, have), cv2_rows(have, want, keep), _i32([2]), 16, 2)
        elif opencv:
            found = _Pass((0, have), cv2_columns(have, want, keep), _i32([0]), 0, 4)
        else:
            taps = _as_they_are(keep) if have == want else pillow_taps(have, want, keep, p.interpolation)
            found = _Pass((0, have), taps, _i32([_HALF]), 0, WEIGHT_BITS)
        # A border of the columns is an input of the rows: in OpenCV's units of 1/128 there, or a sum of two.
        unit = (4 if side == 0 else 2 if halved else 128 * 16) if opencv else _ONE
        return _needed(_bordered(found, where.before[side], p, side, unit))

    return one(0), one(1)


def _pairs(keep: tuple[int, int]) -> Taps:
    """OpenCV's mean of four pixels, where both sides are halved."""
    index = np.stack([2 * np.arange(*keep), 2 * np.arange(*keep) + 1], axis=1)
    return Taps(index, np.ones(index.shape, np.int32))


def _as_they_are(keep: tuple[int, int]) -> Taps:
    index = np.arange(*keep)[:, None]
    return Taps(index, np.full(index.shape, _ONE, np.int32))


def _bordered(found: _Pass, before: int, p: Preprocess, side: int, unit: int) -> _Pass:
    """With outputs of the border's colour before and behind those of the image; ``unit`` times the colour is added."""
    assert found.taps is not None
    inner, outputs = len(found.taps.index), p.crop_px[side]
    if inner == outputs:
        return found
    around = ((before, outputs - before - inner), (0, 0))
    index, weights = np.pad(found.taps.index, around, "edge"), np.pad(found.taps.weights, around)
    colour = np.array(_fill(p), np.int32)
    border = np.ones((outputs, 1), np.int32)
    border[before : before + inner] = 0
    return replace(found, taps=Taps(index, weights), added=found.added + unit * border * colour)


def _fill(p: Preprocess) -> tuple[int, ...]:
    """The border's colour: one value where all channels have the same."""
    fill = (0,) if p.fit.fill is None else p.fit.fill
    return fill[:1] if len(set(fill)) == 1 else fill


def _needed(found: _Pass) -> _Pass:
    """Reading only what the outputs are computed from; without taps where they are plain copies, one after another."""
    assert found.taps is not None
    index, weights = found.taps.index, found.taps.weights
    start, stop = int(index.min()), int(index.max()) + 1
    copies = index.shape[1] == 1 and (weights == _ONE).all() and (np.diff(index[:, 0]) == 1).all()
    return replace(found, read=(start, stop), taps=None if copies else Taps(index - start, weights))


def _prepared(made: _Nodes, p: Preprocess, frame: FrameSpec) -> _Image:
    """The bytes that the network is trained on, int32 (N, *p.crop_px, 1 or 3), in the order RGB."""
    rows, columns = _passes(p, frame)
    image = _decoded(made, frame, rows.read, columns.read)
    if p.channels == 1 and image.channels == 3:
        image = _Image(_gray(made, image.tensor), 1)
    if image.channels < len(_fill(p)):
        image = _Image(made.add("Gather", [image.tensor, np.array([0, 0, 0])], axis=_CHANNELS), 3)
    tensor = _resized(made, _resized(made, image.tensor, columns, _COLUMNS), rows, _ROWS)
    return _Image(tensor, image.channels)


def _gray(made: _Nodes, image: str) -> str:
    weighted = made.add("Mul", [image, np.array(GRAY_WEIGHTS, np.int32)])
    total = made.add("ReduceSum", [weighted, np.array([_CHANNELS])], keepdims=1)
    return made.to_byte(made.add("Add", [total, _i32(1 << (GRAY_BITS - 1))]), GRAY_BITS)


def _resized(made: _Nodes, image: str, by: _Pass, axis: int) -> str:
    """int32 to int32; ``image`` holds the inputs ``by.read`` alone."""
    if by.taps is None:
        return image
    outputs, many = by.taps.index.shape
    if many == 1 and (by.taps.weights == _ONE).all():
        return made.add("Gather", [image, by.taps.index[:, 0]], axis=axis)
    picked = made.add("Gather", [image, by.taps.index], axis=axis)
    shape = [1] * 5
    shape[axis : axis + 2] = outputs, many
    products = made.add("Mul", [picked, by.taps.weights.reshape(shape)])
    if by.each_bits:
        products = made.add("Div", [products, _i32(1 << by.each_bits)])
    total = made.add("ReduceSum", [products, np.array([axis + 1])], keepdims=0)
    shape = [1] * 4
    shape[axis], shape[_CHANNELS] = by.added.shape
    total = made.add("Add", [total, by.added.reshape(shape)])
    if by.bits == WEIGHT_BITS or axis == _ROWS:
        return made.to_byte(total, by.bits)
    return made.add("Div", [total, _i32(1 << by.bits)])  # the first pass of OpenCV keeps more than a byte


def _decoded(made: _Nodes, frame: FrameSpec, rows: tuple[int, int], columns: tuple[int, int]) -> _Image:
    """A part of the frame as int32 (N, h, w, C): gray or RGB."""
    tensor = made.add("Cast", [made.input], to=TensorProto.FLOAT)
    if frame.format in PLANAR:
        return _Image(_planar(made, tensor, frame, rows, columns), 3)
    if frame.format in PACKED_YUV:
        return _Image(_shared(made, tensor, frame, rows, columns), 3)
    size, channels = frame.pixel_bytes, min(frame.pixel_bytes, 3)
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    if len(frame.shape) == 3:
        cut = made.slice(tensor, {1: rows, 2: columns, 3: (0, channels)})
    else:
        cut = made.slice(tensor, {1: rows, 2: (columns[0] * size, columns[1] * size)})
        cut = made.reshape(cut, height, width, size)
        cut = cut if size == channels else made.slice(cut, {3: (0, channels)})
    cut = made.add("Cast", [cut], to=TensorProto.INT32)
    if frame.format.startswith("bgr"):
        cut = made.add("Gather", [cut, np.array([2, 1, 0])], axis=_CHANNELS)
    return _Image(cut, channels)


def _shared(made: _Nodes, tensor: str, frame: FrameSpec, rows: tuple[int, int], columns: tuple[int, int]) -> str:
    """Of packed YUV, whose pairs of pixels share their chroma."""
    first, stop = _even(columns)
    if len(frame.shape) == 3:
        cut = made.slice(tensor, {1: rows, 2: (first, stop)})
    else:
        cut = made.slice(tensor, {1: rows, 2: (2 * first, 2 * stop)})
    height, pairs = rows[1] - rows[0], (stop - first) // 2
    four = made.add("Cast", [made.reshape(cut, height, pairs, 4)], to=TensorProto.INT32)
    luma, u, v = PACKED_YUV[frame.format]
    y = made.reshape(made.add("Gather", [four, np.array([luma, luma + 2])], axis=3), height, pairs, 2, 1)
    chroma = [made.reshape(made.slice(four, {3: (at, at + 1)}), height, pairs, 1, 1) for at in (u, v)]
    rgb = made.reshape(_rgb(made, y, chroma[0], chroma[1], frame.colour), height, 2 * pairs, 3)
    return _within(made, rgb, _COLUMNS, columns, first, stop)


def _planar(made: _Nodes, tensor: str, frame: FrameSpec, rows: tuple[int, int], columns: tuple[int, int]) -> str:
    """Of a plane of luma, and one or two of chroma with half the rows and columns."""
    (top, bottom), (left, right) = _even(rows), _even(columns)
    height, width, step = (bottom - top) // 2, (right - left) // 2, frame.step_bytes
    y = made.slice(tensor, {1: (top, bottom), 2: (left, right)})
    y = made.reshape(made.add("Cast", [y], to=TensorProto.INT32), height, 2, width, 2, 1)
    below = made.slice(tensor, {1: (frame.rows, frame.rows * 3 // 2)})
    if frame.format in ("nv12", "nv21"):
        part = made.slice(below, {1: (top // 2, bottom // 2), 2: (left, right)})
        both = made.reshape(made.add("Cast", [part], to=TensorProto.INT32), height, 1, width, 2)
        planes = [made.slice(both, {4: (at, at + 1)}) for at in (0, 1)]
    else:
        both = made.reshape(below, 2, frame.rows // 2, step // 2)
        part = made.slice(both, {2: (top // 2, bottom // 2), 3: (left // 2, right // 2)})
        part = made.add("Cast", [part], to=TensorProto.INT32)
        planes = [made.slice(part, {1: (at, at + 1)}) for at in (0, 1)]
    planes = [made.reshape(plane, height, 1, width, 1, 1) for plane in planes]
    u, v = planes if frame.format in ("nv12", "i420") else reversed(planes)
    rgb = made.reshape(_rgb(made, y, u, v, frame.colour), 2 * height, 2 * width, 3)
    return _within(made, _within(made, rgb, _ROWS, rows, top, bottom), _COLUMNS, columns, left, right)


def _even(part: tuple[int, int]) -> tuple[int, int]:
    """The range of whole pairs around a range."""
    return part[0] // 2 * 2, (part[1] + 1) // 2 * 2


def _within(made: _Nodes, image: str, axis: int, part: tuple[int, int], first: int, stop: int) -> str:
    return image if (first, stop) == part else made.slice(image, {axis: (part[0] - first, part[1] - first)})


def _rgb(made: _Nodes, y: str, u: str, v: str, colour: Colour) -> str:
    """int32 (..., 3) from y (..., 1) and chroma that broadcasts against it."""
    rule = RULES[colour]
    factors = np.array([rule.red, rule.green, rule.blue], np.int32)
    level = made.add("Max", [made.add("Sub", [y, _i32(rule.black)]), _i32(0)])
    luma = made.add("Add", [made.add("Mul", [level, _i32(rule.luma)]), _i32(1 << (YUV_BITS - 1))])
    terms = [made.add("Mul", [made.add("Sub", [plane, _i32(128)]), factors[:, at]]) for at, plane in enumerate((u, v))]
    return made.to_byte(made.add("Add", [luma, made.add("Add", [terms[0], terms[1]])]), YUV_BITS)


def _order(image: _Image, p: Preprocess) -> list[int]:
    """Which channel of the image is each of the network's first three, or its only one."""
    if image.channels < p.channels:
        return [0, 0, 0]
    return list(range(p.channels)) if p.channel_order == "RGB" else [2, 1, 0]


def _joined(
    graph: Graph, made: _Nodes, image: tuple[str, list[int]], p: Preprocess, shape: tuple[int, ...]
) -> ModelProto:
    """The network behind an image of bytes.

    Args:
        image: the tensor, and which of its channels is each of the network's.
        shape: of the graph's input, without the batch.
    """
    (tensor, order), (scale, shift) = image, _line(p)
    pad = _fourth_channel(graph, p)
    if pad is not None:
        order, scale = [*order, 0], np.append(scale, np.float32(0))
        shift = np.append(shift, graph.constant(pad.input[2]).astype(np.float32))
    values = made.add("Cast", [tensor], to=TensorProto.FLOAT)
    if order != list(range(p.channels)):
        values = made.add("Gather", [values, np.array(order)], axis=_CHANNELS)
    values = values if (scale == 1).all() else made.add("Mul", [values, scale])
    values = values if not shift.any() else made.add("Add", [values, shift])
    if p.layout == "NCHW":
        made.add("Transpose", [values], perm=[0, 3, 1, 2])
    return _behind(graph, made, pad, shape)


def _line(p: Preprocess) -> tuple[F32, F32]:
    """The network's input of a byte: ``byte * scale + shift``, per channel."""
    mean, std = np.array(p.mean, np.float64), np.array(p.std, np.float64)
    return (p.pixel_scale / std).astype(np.float32), (-mean / std).astype(np.float32)


def _fourth_channel(graph: Graph, p: Preprocess) -> NodeProto | None:
    """The Pad of the exact input that gives the image a channel, where it alone reads the image."""
    readers = graph.consumers(graph.input)
    if len(readers) == 1 and readers[0].op_type == "Cast":
        readers = graph.consumers(readers[0].output[0])
    if len(readers) != 1 or readers[0].op_type != "Pad":
        return None
    pad, wanted = readers[0], np.zeros(8, np.int64)
    wanted[5 if p.layout == "NCHW" else 7] = 1
    known = len(pad.input) == 3 and all(graph.is_constant(name) for name in pad.input[1:])
    return pad if known and np.array_equal(graph.constant(pad.input[1]), wanted) else None


def _behind(graph: Graph, made: _Nodes, pad: NodeProto | None, shape: tuple[int, ...]) -> ModelProto:
    """Put the nodes, of which the last gives the network's input, in front of a graph, and give it their input."""
    image, batch = graph.input, graph.model.graph.input[0].type.tensor_type.shape.dim[0]
    batch_size = batch.dim_value or batch.dim_param or "batch"
    if pad is not None:
        for reader in graph.consumers(pad.output[0]):
            graph.redirect(reader, pad.output[0], pad.input[0])
        graph.remove(pad)
    made.nodes[-1].output[0] = image
    for name, constant in made.constants.items():
        graph.add_constant(name, constant)
    graph.insert(made.nodes)
    del graph.model.graph.input[:], graph.model.graph.value_info[:]
    graph.model.graph.input.append(helper.make_tensor_value_info(made.input, TensorProto.UINT8, [batch_size, *shape]))
    return graph.done()
