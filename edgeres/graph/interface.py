"""Find the image and the class scores of a foreign graph, and refuse graphs that cannot be quantized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto, TensorProto, shape_inference

from edgeres.errors import ModelError
from edgeres.graph.graph import Graph
from edgeres.records import Layout

_HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}


@dataclass(frozen=True)
class Interface:
    """One image in, one row of scores out.

    Attributes:
        batch: the size that the file fixes; None: it is dynamic.
        bytes_in: whether the image is uint8.
        dropped: names of the file's other outputs.
    """

    input: str
    output: str
    layout: Layout
    size_px: tuple[int, int]
    batch: int | None
    bytes_in: bool
    dropped: tuple[str, ...]


def find_interface(model: ModelProto, where: object) -> Interface:
    """Find image and scores.

    Raises:
        ModelError: not one image of fixed size with three channels, not one row of scores, half precision, or codes of
            a quantized graph.
    """
    _refuse_codes_and_half(model, where)
    image = _image(model, where)
    dims = [max(dim.dim_value, 0) for dim in image.type.tensor_type.shape.dim]
    layout, size = _layout(dims, where)
    output = _scores(model, where)
    return Interface(
        input=image.name,
        output=output,
        layout=layout,
        size_px=size,
        batch=dims[0] or None,
        bytes_in=image.type.tensor_type.elem_type == TensorProto.UINT8,
        dropped=tuple(value.name for value in model.graph.output if value.name != output),
    )


def _refuse_codes_and_half(model: ModelProto, where: object) -> None:
    for node in model.graph.node:
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            what = f"already quantized (node {node.name or node.op_type})"
            raise ModelError(what, where=where, hint="give the FP32 graph")
    if _HALF.intersection(_types(model)):
        raise ModelError("computes in half precision", where=where, hint="export the model in float32")


def _types(model: ModelProto) -> Iterator[int]:
    """Data types of inputs, weights, constants and casts."""
    yield from (value.type.tensor_type.elem_type for value in model.graph.input)
    yield from (tensor.data_type for tensor in model.graph.initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t.data_type
            elif node.op_type == "Cast" and attribute.name == "to":
                yield attribute.i


def _image(model: ModelProto, where: object) -> onnx.ValueInfoProto:
    names = Graph(model).inputs
    inputs: list[onnx.ValueInfoProto] = [value for value in model.graph.input if value.name in names]
    if len(inputs) != 1:
        found = f"{len(inputs)} ({', '.join(names) or 'none'})"
        raise ModelError(f"expected one image input, found {found}", where=where, hint="export the classifier alone")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in {TensorProto.FLOAT, TensorProto.UINT8}:
        what = f"input {inputs[0].name} is {TensorProto.DataType.Name(kind).lower()}"
        raise ModelError(what, where=where, hint="float32 or uint8 images are taken")
    return inputs[0]


def _layout(dims: Sequence[int], where: object) -> tuple[Layout, tuple[int, int]]:
    if len(dims) != 4:
        raise ModelError(f"input has rank {len(dims)}", where=where, hint="images of rank 4 are taken: (N, 3, H, W)")
    layout: Layout = "NHWC" if dims[3] == 3 and dims[1] != 3 else "NCHW"
    size = (dims[1], dims[2]) if layout == "NHWC" else (dims[2], dims[3])
    if 3 not in {dims[1], dims[3]}:
        shape = ", ".join(str(dim or "?") for dim in dims)
        raise ModelError(f"input ({shape}) has no axis of three channels", where=where, hint="RGB or BGR is taken")
    if 0 in size:
        hint = "export with the size of your images"
        raise ModelError("height and width of the input are dynamic", where=where, hint=hint)
    return layout, size


def _scores(model: ModelProto, where: object) -> str:
    """The output. Of several, the one that looks like scores and from which no other such output is computed."""
    if len(model.graph.output) == 1:
        return str(model.graph.output[0].name)
    outputs = shape_inference.infer_shapes(model).graph.output
    candidates = {value.name: width for value in outputs if (width := score_width(value))}
    graph = Graph(model)
    earlier = {name: graph.ancestors(name) for name in candidates}
    last = [name for name in candidates if not any(name in earlier[other] for other in candidates if other != name)]
    if len(last) != 1:
        found = ", ".join(f"{name} (N, {candidates[name]})" for name in last) or "none"
        names = ", ".join(value.name for value in outputs)
        what = f"{len(outputs)} outputs ({names}), and {len(last)} may be the scores: {found}"
        raise ModelError(what, where=where, hint="export one (N, classes) output")
    return str(last[0])


def score_width(value: onnx.ValueInfoProto) -> int | None:
    """Number of scores of a float output (N, classes), further axes of size 1 allowed; None for any other output."""
    tensor = value.type.tensor_type
    wide = [int(dim.dim_value) for dim in tensor.shape.dim[1:] if dim.dim_value != 1]
    return wide[0] if tensor.elem_type == TensorProto.FLOAT and len(wide) == 1 and wide[0] > 1 else None
