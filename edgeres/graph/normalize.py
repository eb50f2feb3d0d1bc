"""Any exporter's ResNet-like ONNX file -> one canonical FP32 graph.

Canonical: one image input of rank 4, one output (N, classes), float32, opset 17 to 20, batch dimension dynamic, batch
norm folded into the convolution before it, constants folded into initializers, no Identity or Dropout, every node
named.

The folding itself is ONNX Runtime's (its "basic" level emits standard ONNX only): well kept, and the same arithmetic
that runs on the robot.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper, version_converter

from edgeres.errors import ModelError
from edgeres.graph.view import prune
from edgeres.records import F32, Layout

# 17 is read by every TensorRT from 8.6 on; 20 is the newest that TensorRT 10.3's parser takes.
OPSET = 17
OPSET_MAX = 20
BATCH = "batch"


@dataclass(frozen=True)
class Canonical:
    """A normalized graph and what was found about it.

    Attributes:
        model: the graph; ``model.graph.input[0]`` and ``model.graph.output[0]`` are the only ones.
        size_px: height and width of the input.
        num_classes: width of the output.
        ends_in_softmax: whether the output holds probabilities.
        max_error: largest difference to the original graph's output on the same random input, relative to the largest
            output.
        notes: what was changed, in words.
    """

    model: onnx.ModelProto
    size_px: tuple[int, int]
    layout: Layout
    num_classes: int
    ends_in_softmax: bool
    max_error: float
    notes: tuple[str, ...]


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data, checked.

    Raises:
        ModelError: missing, not an ONNX file, or not valid.
    """
    if not path.is_file():
        raise ModelError("no such file", where=path, hint="edgeres export writes one from a checkpoint")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx raise half a dozen unrelated types here
        raise ModelError(f"not a valid ONNX file ({str(error).strip()[:160]})", where=path) from error
    return model


def normalize(model: onnx.ModelProto, *, where: object = None) -> Canonical:
    """Bring a graph into canonical form and check that it still computes the same.

    Raises:
        ModelError: more than one image input, an input that is not of rank 4, an output that is not (N, classes),
            float16 or quantized weights, an opset that cannot be converted, or a result that differs from the
            original's.
    """
    original = model
    model = onnx.ModelProto()
    model.CopyFrom(original)
    notes: list[str] = []
    _keep_one_input_and_output(model, where)
    _refuse_unsupported(model, where)
    _take_pixels_as_float(model, notes)
    _convert_opset(model, notes, where)
    batch = _free_the_batch(model, notes)
    model = _fold(model, where)
    _name_everything(model)
    layout, size = _image_size(model, where)
    classes = _classes(model, where)
    error = _compare(original, model, batch, where)
    return Canonical(
        model=model,
        size_px=size,
        layout=layout,
        num_classes=classes,
        ends_in_softmax=_softmax_at_end(model),
        max_error=error,
        notes=tuple(notes),
    )


def _keep_one_input_and_output(model: onnx.ModelProto, where: object) -> None:
    """Drop initializers from the inputs (IR < 4 lists them) and auxiliary outputs."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"expected one image input, found {len(inputs)} ({names})", where=where)
    matrices = [value for value in graph.output if len(value.type.tensor_type.shape.dim) == 2] or list(graph.output[:1])
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.output[:]
    graph.output.extend(matrices[:1])
    prune(graph, [graph.output[0].name])


def _refuse_unsupported(model: onnx.ModelProto, where: object) -> None:
    quantized = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"}
    for node in model.graph.node:
        if node.op_type in quantized:
            raise ModelError(
                f"already quantized (node {node.name or node.op_type})", where=where, hint="give the FP32 graph"
            )
    if any(tensor.data_type in {TensorProto.FLOAT16, TensorProto.BFLOAT16} for tensor in model.graph.initializer):
        raise ModelError("weights are in half precision", where=where, hint="export the model in float32")
    kind = model.graph.input[0].type.tensor_type.elem_type
    if kind not in {TensorProto.FLOAT, TensorProto.UINT8}:
        raise ModelError(
            f"input is {TensorProto.DataType.Name(kind)}", where=where, hint="float32 or uint8 images are taken"
        )


def _take_pixels_as_float(model: onnx.ModelProto, notes: list[str]) -> None:
    """A uint8 input becomes a float32 one with the same values: the Cast behind it then does nothing."""
    tensor = model.graph.input[0].type.tensor_type
    if tensor.elem_type == TensorProto.UINT8:
        tensor.elem_type = TensorProto.FLOAT
        notes.append("uint8 input made float32, with the same values 0 to 255")


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0)


def _convert_opset(model: onnx.ModelProto, notes: list[str], where: object) -> None:
    found = _opset(model)
    if OPSET <= found <= OPSET_MAX:
        return
    wanted = OPSET if found < OPSET else OPSET_MAX
    try:
        model.CopyFrom(version_converter.convert_version(model, wanted))
    except Exception as error:  # the converter raises RuntimeError and its own types from C++
        raise ModelError(
            f"opset {found} cannot be converted to {wanted} ({str(error).strip()[:120]})",
            where=where,
            hint=f"export with an opset between {OPSET} and {OPSET_MAX}",
        ) from error
    notes.append(f"opset {found} converted to {wanted}")


def _free_the_batch(model: onnx.ModelProto, notes: list[str]) -> int:
    """Make the batch dimension dynamic; returns the batch the file was exported with (1 where it was dynamic).

    A Reshape to a constant shape that starts with the old batch copies the dimension instead (0 in ONNX).
    """
    graph = model.graph
    dim = graph.input[0].type.tensor_type.shape.dim
    fixed = dim[0].dim_value if dim and dim[0].HasField("dim_value") else 0
    if dim:
        dim[0].dim_param = BATCH
    out = graph.output[0].type.tensor_type.shape.dim
    if out:
        out[0].dim_param = BATCH
    del graph.value_info[:]
    if not fixed:
        return 1
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant" and n.attribute[0].HasField("t")
    }
    for node in graph.node:
        target = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if target is not None:
            shape = numpy_helper.to_array(target).copy()
            if len(shape) and shape[0] == fixed:
                shape[0] = 0
                target.CopyFrom(numpy_helper.from_array(shape, target.name))
    notes.append(f"batch of {fixed} made dynamic")
    return fixed


def _fold(model: onnx.ModelProto, where: object) -> onnx.ModelProto:
    """Fold constants and batch norm with ONNX Runtime's basic optimizations."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="edgeres-") as folder:
        target = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise ModelError(
                f"ONNX Runtime cannot load this graph ({str(error).strip()[:160]})", where=where
            ) from error
        folded = onnx.load(str(target))
    used = {node.domain or "" for node in folded.graph.node}
    imports = [entry for entry in folded.opset_import if entry.domain in used or not entry.domain]
    del folded.opset_import[:]
    folded.opset_import.extend(imports)
    foreign = used - {"", "ai.onnx"}
    if foreign:
        raise ModelError(f"operators outside standard ONNX ({', '.join(sorted(foreign))})", where=where)
    del folded.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(folded, data_prop=True)


def _name_everything(model: onnx.ModelProto) -> None:
    """Unique names for nodes, kept where the exporter gave one."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        node.name = name if name not in seen else f"{name}_{index}"
        seen.add(node.name)


def _image_size(model: onnx.ModelProto, where: object) -> tuple[Layout, tuple[int, int]]:
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    if len(dims) != 4:
        raise ModelError(f"input has rank {len(dims)}, expected 4 (N, 3, H, W)", where=where)
    layout: Layout = "NHWC" if dims[3] == 3 and dims[1] != 3 else "NCHW"
    channels, size = (dims[3], (dims[1], dims[2])) if layout == "NHWC" else (dims[1], (dims[2], dims[3]))
    if channels != 3:
        raise ModelError(f"input has {channels or 'any number of'} channels, expected 3", where=where)
    if 0 in size:
        raise ModelError(
            "height and width of the input are dynamic", where=where, hint="export with the size of your images"
        )
    return layout, size


def _classes(model: onnx.ModelProto, where: object) -> int:
    dims = model.graph.output[0].type.tensor_type.shape.dim
    if len(dims) != 2 or not dims[1].dim_value:
        shape = "x".join(d.dim_param or str(d.dim_value) for d in dims) or "unknown"
        raise ModelError(f"output {model.graph.output[0].name} has shape {shape}, expected (N, classes)", where=where)
    return int(dims[1].dim_value)


def _softmax_at_end(model: onnx.ModelProto) -> bool:
    last = {name: node for node in model.graph.node for name in node.output}[model.graph.output[0].name]
    return bool(last.op_type == "Softmax")


def _compare(original: onnx.ModelProto, model: onnx.ModelProto, batch: int, where: object) -> float:
    """Largest difference of the outputs, and a run with another batch size to prove that the batch is free."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    raw = original.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch + 1, *shape)).astype(np.float32)
    if not raw:
        images = generator.standard_normal(images.shape).astype(np.float32)
    output = model.graph.output[0].name
    before = _run(original, images[:batch].astype(np.uint8 if raw else np.float32), output, where)
    after = _run(model, images, output, where)[:batch]
    error = float(np.abs(before - after).max() / max(float(np.abs(before).max()), 1e-12))
    if not error < 1e-3:
        raise ModelError(f"folding changed the output by {error:.1e} of its largest value", where=where)
    return error


def _run(model: onnx.ModelProto, images: npt.NDArray[Any], output: str, where: object) -> F32:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: F32 = session.run([output], {session.get_inputs()[0].name: images})[0]
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise ModelError(f"ONNX Runtime cannot run this graph ({str(error).strip()[:160]})", where=where) from error
    return result
