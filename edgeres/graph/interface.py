"""Find the image and the class scores of a foreign graph, and refuse graphs that cannot be quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import ModelProto, TensorProto, shape_inference

from edgeres.errors import ModelError, UsageError
from edgeres.graph.graph import Graph, type_name
from edgeres.records import Layout

HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
CHANNELS = (3, 1, 4)
# What the outputs are: one of scores of two or more classes; one row of any values, one is enough; one map of at least
# two values per place; or any number of any shape.
Outputs = Literal["scores", "values", "map", "any"]
OTHER_ANSWERS = "answers other than scores of classes need --task"
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}


@dataclass(frozen=True)
class Interface:
    """One image in, one row of scores out.

    Attributes:
        batch: the size that the file fixes; None: it is dynamic.
        outputs: names of the outputs that are used, in the order of the file.
        kind: ONNX's data type of the image: float32, float16, bfloat16 or uint8.
        dropped: names of the file's other outputs.
    """

    input: str
    outputs: tuple[str, ...]
    layout: Layout
    size_px: tuple[int, int]
    batch: int | None
    kind: int
    dropped: tuple[str, ...]

    @property
    def bytes_in(self) -> bool:
        """Whether the image is uint8."""
        return self.kind == TensorProto.UINT8


def fix_size(model: ModelProto, size_px: tuple[int, int], where: object) -> None:
    """Give the image a height and width where the graph leaves them free; the model is changed.

    Raises:
        UsageError: the graph has another size.
    """
    image = _image(model, where)
    dims = image.type.tensor_type.shape.dim
    layout, found = _axes([max(dim.dim_value, 0) for dim in dims], where)
    if any(have not in (0, wanted) for have, wanted in zip(found, size_px, strict=True)):
        what = f"the graph takes images of {found[0]}x{found[1]} px, not {size_px[0]}x{size_px[1]}"
        raise UsageError(what, where=where, hint="leave out --input-px, or export with free height and width")
    for dim, wanted in zip((dims[1], dims[2]) if layout == "NHWC" else (dims[2], dims[3]), size_px, strict=True):
        dim.dim_value = wanted
    if 0 in found:
        del model.graph.value_info[:]  # inferred for a free size


def find_interface(model: ModelProto, where: object, outputs: Outputs = "scores") -> Interface:
    """Find image and output.

    Raises:
        ModelError: not one image of fixed size with 3, 1 or 4 channels, not one row of scores, or codes of a quantized
            graph.
    """
    _refuse_codes(model, where)
    image = _image(model, where)
    dims = [max(dim.dim_value, 0) for dim in image.type.tensor_type.shape.dim]
    layout, size = _layout(dims, where)
    used = _used(model, where, outputs)
    return Interface(
        input=image.name,
        outputs=used,
        layout=layout,
        size_px=size,
        batch=dims[0] or None,
        kind=image.type.tensor_type.elem_type,
        dropped=tuple(value.name for value in model.graph.output if value.name not in used),
    )


def _refuse_codes(model: ModelProto, where: object) -> None:
    for node in model.graph.node:
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            what = f"already quantized (node {node.name or node.op_type})"
            raise ModelError(what, where=where, hint="give the FP32 graph")


def _image(model: ModelProto, where: object) -> onnx.ValueInfoProto:
    names = Graph(model).inputs
    inputs: list[onnx.ValueInfoProto] = [value for value in model.graph.input if value.name in names]
    if len(inputs) != 1:
        found = f"{len(inputs)} ({', '.join(names) or 'none'})"
        raise ModelError(f"expected one image input, found {found}", where=where, hint="export the classifier alone")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in {TensorProto.FLOAT, TensorProto.UINT8, *HALF}:
        what = f"input {inputs[0].name} is {type_name(kind).lower()}"
        raise ModelError(what, where=where, hint="float32, float16 or uint8 images are taken")
    return inputs[0]


def _layout(dims: Sequence[int], where: object) -> tuple[Layout, tuple[int, int]]:
    layout, size = _axes(dims, where)
    if 0 in size:
        hint = "give --input-px, such as 224 or 224x320 (height x width)"
        raise ModelError("height and width of the input are dynamic", where=where, hint=hint)
    return layout, size


def _axes(dims: Sequence[int], where: object) -> tuple[Layout, tuple[int, int]]:
    """Layout, height and width; a free size is 0.

    Raises:
        ModelError: no axis has the channels of an image.
    """
    if len(dims) != 4:
        raise ModelError(f"input has rank {len(dims)}", where=where, hint="images of rank 4 are taken: (N, 3, H, W)")
    # Three channels are looked for first: (N, 1, 28, 3) is no usual image, (N, 4, 224, 3) none either.
    for channels in CHANNELS:
        if channels in (dims[1], dims[3]):
            layout: Layout = "NCHW" if dims[1] == channels else "NHWC"
            return layout, (dims[1], dims[2]) if layout == "NHWC" else (dims[2], dims[3])
    shape = ", ".join(str(dim or "?") for dim in dims)
    what = f"input ({shape}) has no axis of three channels, nor one of 1 or 4"
    raise ModelError(what, where=where, hint="RGB or BGR, gray, and RGB with a fourth channel are taken")


def _used(model: ModelProto, where: object, wanted: Outputs) -> tuple[str, ...]:
    """The outputs that are used."""
    if wanted in ("scores", "values"):
        return (_row(model, where, wanted),)
    names = tuple(value.name for value in model.graph.output)
    if wanted == "map" and len(names) != 1:
        what = f"{len(names)} outputs ({', '.join(names)}), and one map is needed"
        raise ModelError(what, where=where, hint="export the map alone, (N, classes, H, W)")
    return names


def _row(model: ModelProto, where: object, wanted: Outputs) -> str:
    """The output. Of several, the one that looks like scores and from which no other such output is computed."""
    if len(model.graph.output) == 1:
        return str(model.graph.output[0].name)
    outputs = shape_inference.infer_shapes(model).graph.output
    candidates = {value.name: width for value in outputs if (width := row_width(value, wanted))}
    graph = Graph(model)
    earlier = {name: graph.ancestors(name) for name in candidates}
    last = [name for name in candidates if not any(name in earlier[other] for other in candidates if other != name)]
    if len(last) != 1:
        found = ", ".join(f"{name} (N, {candidates[name]})" for name in last) or "none"
        names = ", ".join(value.name for value in outputs)
        what = f"{len(outputs)} outputs ({names}), and {len(last)} may be the scores: {found}"
        raise ModelError(what, where=where, hint=f"export one (N, {'classes' if wanted == 'scores' else 'K'}) output")
    return str(last[0])


def row_width(value: onnx.ValueInfoProto, wanted: Outputs = "scores") -> int | None:
    """Number of values of a float output (N, K), further axes of size 1 allowed; None for any other output.

    One value is a row, too, but one score is none.
    """
    tensor = value.type.tensor_type
    dims = tensor.shape.dim[1:]
    wide = [int(dim.dim_value) for dim in dims if dim.dim_value != 1]
    if tensor.elem_type != TensorProto.FLOAT or len(wide) > 1 or not dims:
        return None
    width = wide[0] if wide else 1
    return width if width > (1 if wanted == "scores" else 0) else None
