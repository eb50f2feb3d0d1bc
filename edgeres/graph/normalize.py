"""Any exporter's ResNet-like ONNX file -> one canonical FP32 graph.

Canonical: one image input of rank 4, one output (N, classes), float32, opset 17 to 20, batch dimension dynamic, batch
norm folded into the convolution before it, constants folded into initializers, Sum written as Add, Reshape to constant
sizes, no Identity, Dropout or control flow, every node named.

ONNX Runtime does the folding (its "basic" level writes standard ONNX only): it is well maintained, and the robot runs
the same arithmetic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx.inliner
from onnx import ModelProto, TensorProto, defs, helper, shape_inference, version_converter

from edgeres.errors import ModelError, reading, temporary_space
from edgeres.files import LFS_POINTER, PULL, is_inside, is_lfs_pointer, is_lfs_pointer_at, open_below
from edgeres.graph.budget import FREE_PX, admit, check_external, read_bounded
from edgeres.graph.confined import confined
from edgeres.graph.fold_affine import fold_affine
from edgeres.graph.fold_sizes import fold_sizes
from edgeres.graph.fold_transposes import fold_transposes
from edgeres.graph.free_batch import BATCH, free_batch
from edgeres.graph.graph import Graph, attributes, opset_of, type_name
from edgeres.graph.interface import HALF, OTHER_ANSWERS, Interface, Outputs, find_interface, fix_size, row_width
from edgeres.graph.outputs import refuse_features, take_scores_before_selection
from edgeres.graph.plain import (
    all_tensors,
    drop_unread_outputs,
    float_types,
    fold_standardized_weights,
    plain_domains,
    refuse_training,
    single_precision,
)
from edgeres.graph.probe import InputValues, compare, in_words, input_values
from edgeres.graph.trial import try_graph
from edgeres.records import Layout, PixelReading, Preprocess

# 17 is read by every TensorRT from 8.6 on; 20 is the newest that TensorRT 10.3's parser takes.
OPSET = 17
OPSET_MAX = 20
# Of opset 17: what ONNX Runtime has read since 1.12. Nothing in a canonical graph needs a newer one.
IR_VERSION = 8
_OLDEST = 7  # of what ONNX Runtime runs
_OTHER_FLOATS: dict[int, str] = {
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True)
class Canonical:
    """A normalized graph with one input and one output, and what was found about it.

    Attributes:
        size_px: height and width of the input.
        input_values: the values that the graph takes, as far as its own first layers tell.
        max_error: largest difference to the original's output on the same random input, relative to the largest output.
        notes: what was changed, in words.
    """

    model: ModelProto
    size_px: tuple[int, int]
    layout: Layout
    input_values: InputValues
    num_classes: int
    ends_in_softmax: bool
    max_error: float
    notes: tuple[str, ...]

    @property
    def channels(self) -> Literal[1, 3, 4]:
        dims = self.model.graph.input[0].type.tensor_type.shape.dim
        found: Literal[1, 3, 4] = dims[1 if self.layout == "NCHW" else 3].dim_value
        return found

    @property
    def preprocess(self) -> Preprocess:
        """How images become the input; ImageNet's statistics where the graph does not normalize RGB itself."""
        count = self.channels
        if self.input_values == "normalized" and count == 3:
            return Preprocess(self.size_px, layout=self.layout)
        scale = 1.0 if self.input_values == "pixels" else 1 / 255
        mean, std, reading = (0.0,) * count, (1.0,) * count, PixelReading(count)
        return Preprocess(self.size_px, mean=mean, std=std, pixel_scale=scale, layout=self.layout, reading=reading)


def load_onnx(path: Path, *, tried: bool = True) -> ModelProto:
    """Read an ONNX file with its external data, checked.

    Args:
        tried: whether a graph of unknown cost is tried with limits; :func:`normalize_foreign` does that itself.

    Raises:
        ModelError: missing, not an ONNX file, not valid, or of more memory or work than edgeres allows.
    """
    if not path.exists() or path.is_dir():
        raise ModelError("no such file", where=path, hint="edgeres export writes one from a checkpoint")
    with reading(path, error=ModelError):
        content = read_bounded(path)
    if not content:
        raise ModelError("the file is empty", where=path, hint="export or copy it again")
    if is_lfs_pointer(content[:64]):
        raise ModelError(f"is {LFS_POINTER}", where=path, hint=PULL)
    doubt = admit(content, path)
    try:
        with reading(path, "not a valid ONNX file", error=ModelError, hint="export or copy it again", short=in_words):
            model = onnx.load_from_string(content)
            _load_external(model, path.parent, content)
            onnx.checker.check_model(model)
    except ModelError:
        if (pointer := _pointer_beside(path)) is not None:
            raise ModelError(f"its weights in {pointer} are {LFS_POINTER}", where=path, hint=PULL) from None
        raise
    if doubt and tried:
        try_graph(model.SerializeToString(), path)
    return model


def _load_external(model: ModelProto, folder: Path, content: bytes) -> None:
    """Read the weights that lie in files beside a graph; their names are the file's own, so they are confined.

    Raises:
        OSError, ValueError: a name leads elsewhere or through a link, or a file is missing or too short.
    """
    outside = [tensor for tensor in all_tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        check_external(content, folder)
    for tensor in outside:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "").removeprefix("./")
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        with open_below(folder, name) as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _pointer_beside(path: Path) -> str | None:
    """The file with external data of a graph that is a Git LFS pointer."""
    try:
        graph = onnx.load_from_string(read_bounded(path)).graph
    except Exception:  # protobuf's kinds: the caller tells of a file that is no graph
        return None
    names = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    inside = sorted(name for name in names if is_inside(name))
    return next((name for name in inside if is_lfs_pointer_at(path.parent / name)), None)


def normalize_foreign(
    model: ModelProto, *, where: object, size_px: tuple[int, int] | None = None, outputs: Outputs = "scores"
) -> Canonical:
    """:func:`normalize` of a graph from elsewhere: in a process with limits, where arithmetic does not tell its cost.

    Raises:
        ModelError: as normalize does, or it takes more memory or time than edgeres allows.
        UsageError: the graph has another size.
    """
    content = model.SerializeToString()
    if not admit(content, where, free_px=max(size_px or (FREE_PX,)), often=True):
        return normalize(model, where=where, size_px=size_px, outputs=outputs)
    asked = {"size_px": size_px, "outputs": outputs}
    found, data = confined(f"{__name__}:_normalized", asked, content, where)
    found |= {"size_px": tuple(found["size_px"]), "notes": tuple(found["notes"])}
    return Canonical(model=onnx.load_from_string(data), **found)


def _normalized(asked: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """In the other process: the canonical graph, and what was found about it."""
    size = asked["size_px"] and tuple(asked["size_px"])
    canonical = normalize(onnx.load_from_string(content), size_px=size, outputs=asked["outputs"])
    found = {field.name: getattr(canonical, field.name) for field in fields(Canonical) if field.name != "model"}
    return found, canonical.model.SerializeToString()


def normalize(
    model: ModelProto, *, where: object = None, size_px: tuple[int, int] | None = None, outputs: Outputs = "scores"
) -> Canonical:
    """Bring a graph into canonical form and check that it still computes the same.

    Args:
        size_px: height and width of the image where the graph leaves them free.
        outputs: what the output has to be.

    Raises:
        ModelError: not one image and one row of such values, already quantized, an opset that cannot be converted, a
            batch that cannot be freed, operators outside ONNX, or a result that differs from the original's.
        UsageError: the graph has another size.
    """
    model = deepcopy(model)
    plain_domains(model)
    drop_unread_outputs(model)
    fold_standardized_weights(model)
    if size_px is not None:
        fix_size(model, size_px, where)
    selection = take_scores_before_selection(model, where) if outputs == "scores" else None
    work, notes = deepcopy(model), [selection] if selection else []
    types = float_types(model)
    single_precision(work, _OTHER_FLOATS)
    interface = find_interface(work, where, outputs)
    notes += [f"output {name} dropped" for name in interface.dropped]
    notes += [f"{_OTHER_FLOATS[kind]} parts made float32" for kind in _OTHER_FLOATS if kind in types]
    _keep(work, interface)
    refuse_training(work, where)
    _convert_opset(work, notes, where)
    # The graph casts bytes to float32 anyway: that Cast has no effect on an input that is float32 already.
    work.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    # ONNX Runtime runs neither the oldest opsets nor bfloat16 on the CPU.
    reference = deepcopy(work) if opset_of(model) < _OLDEST or TensorProto.BFLOAT16 in types else model
    if interface.bytes_in:
        notes.append("uint8 input made float32, with the same values 0 to 255")
    elif interface.kind in HALF:
        notes.append(f"{_OTHER_FLOATS[interface.kind]} input made float32")
    _write_usual_forms(work)
    work = _fold_all(work, interface.batch, where)
    if interface.batch is not None:
        notes.append(f"batch of {interface.batch} made dynamic")
    classes = _shape_outputs(work, where, outputs)
    _name_everything(work.graph)
    values = "pixels" if interface.bytes_in else input_values(work, interface.batch or 1, where)
    if outputs == "scores" and (features := refuse_features(Graph(work), where)):
        notes.append(features)
    if values != "normalized":
        limit = "0 to 255" if values == "pixels" else "0 to 1"
        notes.append(f"the graph normalizes its input itself: it takes values from {limit}")
    return Canonical(
        model=work,
        size_px=interface.size_px,
        layout=interface.layout,
        input_values=values,
        num_classes=classes,
        ends_in_softmax=_ends_in_softmax(Graph(work)),
        max_error=compare(reference, work, interface, values, where),
        notes=tuple(notes),
    )


def _keep(model: ModelProto, interface: Interface) -> None:
    """Leave the image and the scores as the only input and output, and set the IR version."""
    graph = model.graph
    for values, names in ((graph.input, (interface.input,)), (graph.output, interface.outputs)):
        kept = [value for value in values if value.name in names]
        del values[:]
        values.extend(kept)
    model.ir_version = IR_VERSION
    for node in graph.node:
        node.ClearField("doc_string")  # torch writes stack traces there, with the paths of the exporting machine
    Graph(model).prune()
    if interface.batch is None:
        del graph.value_info[:]
        for value in (graph.input[0], *graph.output):
            for dim in value.type.tensor_type.shape.dim[:1]:
                dim.dim_param = BATCH


def _convert_opset(model: ModelProto, notes: list[str], where: object) -> None:
    found = opset_of(model)
    if OPSET <= found <= OPSET_MAX:
        return
    wanted = OPSET if found < OPSET else OPSET_MAX
    ways: tuple[Callable[[], ModelProto], ...] = (
        lambda: model,
        lambda: _in_parts(model, wanted),
        lambda: _fold(model, where),
        lambda: _called(model, wanted),
    )
    failed: Exception | None = None
    for way in ways:
        try:
            model.CopyFrom(
                version_converter.convert_version(shape_inference.infer_shapes(way(), data_prop=True), wanted)
            )
            notes.append(f"opset {found} converted to {wanted}")
            return
        except Exception as error:  # the converter raises RuntimeError and its own types from C++
            failed = failed or error
    what = f"opset {found} cannot be converted to {wanted} ({in_words(failed or Exception())})"
    raise ModelError(what, where=where, hint=f"export with an opset between {OPSET} and {OPSET_MAX}") from failed


def _in_parts(model: ModelProto, opset: int) -> ModelProto:
    """The model with its functions, and the operators that this opset lacks, written in their parts."""
    model = onnx.inliner.inline_local_functions(model)
    for tensor in model.graph.initializer:  # the parts may depend on types
        model.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model = shape_inference.infer_shapes(model)
    newer = [node for node in model.graph.node if not node.domain and not defs.has(node.op_type, opset, "")]
    for node in newer:  # the parts take attributes from the node, and find none where a default stands
        given = attributes(node)
        for name, attribute in defs.get_schema(node.op_type, opset_of(model), "").attributes.items():
            if name not in given and attribute.default_value.name:
                node.attribute.append(attribute.default_value)
    parts = [("", op) for op in sorted({node.op_type for node in newer})]
    return onnx.inliner.inline_selected_functions(model, parts, inline_schema_functions=True)


def _called(model: ModelProto, opset: int) -> ModelProto:
    """The model as if it had been written in this opset, for operators that only took further types since."""
    if opset_of(model) > defs.onnx_opset_version():
        raise ValueError(f"onnx {onnx.__version__} does not know opset {opset_of(model)}")
    model = deepcopy(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    onnx.checker.check_model(model, full_check=True)
    return model


def _write_usual_forms(model: ModelProto) -> None:
    """Write what folding looks for in one way: residual sums as Adds of two tensors, constants as the second input.

    Optional inputs left out are not written, a CastLike is a Cast, and one to the type that its input has an Identity.

    Before:
        Sum(a, b, c), Mul(constant, x)
    After:
        Add(Add(a, b), c), Mul(x, constant)
    """
    graph = Graph(model)
    for node in graph.nodes:
        while node.input and not node.input[-1]:  # an optional input left out: as if it had not been written
            del node.input[-1]
    casts = graph.of("Cast", "CastLike")
    kinds = {name: value.type.tensor_type.elem_type for name, value in graph.types.items()} if casts else {}
    for node in casts:
        if node.op_type == "CastLike" and (kind := kinds.get(node.input[1])):
            node.op_type = "Cast"
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", kind))
            graph.set_inputs(node, node.input[:1])
        if attributes(node).get("to") == kinds.get(node.input[0], -1):
            node.op_type = "Identity"
            del node.attribute[:]
    for node in graph.of("Sum", "Add", "Mul"):
        if len(node.input) < 2:
            continue
        first, *terms = sorted(node.input, key=graph.is_constant)
        partial = [f"{node.output[0]}/partial_{index}" for index in range(len(terms) - 1)]
        sums = zip([first, *partial], terms, partial, strict=False)
        graph.insert([helper.make_node("Add", [left, right], [name]) for left, right, name in sums], before=node)
        node.op_type = "Add" if node.op_type == "Sum" else node.op_type
        graph.set_inputs(node, [[first, *partial][-1], terms[-1]])


def _fold_all(model: ModelProto, batch: int | None, where: object) -> ModelProto:
    """Fold what is constant for every image, make the batch dynamic, and fold batch norm into the weights before it."""
    model = _fold(model, where)
    if batch is not None:
        fold_sizes(model, batch)
    free_batch(model, batch)
    if fold_sizes(model, None):
        model = _fold(model, where)
        free_batch(model, None)
    control = [node.name or node.op_type for node in model.graph.node if any(a.HasField("g") for a in node.attribute)]
    if control:
        what = f"control flow that depends on the image (node {control[0]})"
        raise ModelError(what, where=where, hint="export in eval mode")
    fold_affine(model)
    fold_transposes(model)
    return model


def _fold(model: ModelProto, where: object) -> ModelProto:
    """Fold constants and batch norm with ONNX Runtime's basic optimizations, and infer shapes."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="edgeres-") as folder:
        target = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level, options.intra_op_num_threads = 4, 1  # nothing is run but what is folded
        with (
            temporary_space(folder),
            reading(where, "ONNX Runtime cannot load this graph", error=ModelError, short=in_words),
        ):
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(str(target))
    foreign = {f"{node.op_type} of {node.domain}" for node in folded.graph.node if node.domain not in {"", "ai.onnx"}}
    if foreign:
        hint = "give the file as it was exported, before another tool optimized it"
        raise ModelError(f"operators outside standard ONNX ({', '.join(sorted(foreign))})", where=where, hint=hint)
    imports = [entry for entry in folded.opset_import if not entry.domain]
    del folded.opset_import[:]
    folded.opset_import.extend(imports)
    del folded.graph.value_info[:]
    return shape_inference.infer_shapes(folded, data_prop=True)


def _shape_outputs(model: ModelProto, where: object, wanted: Outputs) -> int:
    """Bring a row to (N, K), free the batch of maps; returns the number of values or channels of the first output."""
    return _keep_maps(model, where, wanted) if wanted in ("map", "any") else _flatten_row(model, where, wanted)


def _flatten_row(model: ModelProto, where: object, wanted: Outputs) -> int:
    """Bring the output to (N, K), and return K."""
    graph = model.graph
    output = graph.output[0]
    classes = row_width(output, wanted)
    if classes is None:
        dims = output.type.tensor_type.shape.dim
        shape = ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in dims)
        kind = type_name(output.type.tensor_type.elem_type).lower()
        if wanted == "values":
            what = f"output {output.name} is {kind} ({shape}), and one of values is float (N, K)"
            raise ModelError(what, where=where, hint="export one row of values an image")
        what = f"output {output.name} is {kind} ({shape}), and a classifier's is float (N, classes)"
        raise ModelError(
            what, where=where, hint=f"export the scores themselves: no argmax, no feature map; {OTHER_ANSWERS}"
        )
    name = output.name
    if len(output.type.tensor_type.shape.dim) > 2:
        name = f"{output.name}/flat"
        graph.node.append(helper.make_node("Flatten", [output.name], [name], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, classes]))
    del graph.value_info[:]  # inferred for the batch of the file
    return classes


def _keep_maps(model: ModelProto, where: object, wanted: Outputs) -> int:
    """Free the batch of all outputs, which keep their shapes; returns the number of channels of the first."""
    graph = model.graph
    for value in graph.output:
        tensor = value.type.tensor_type
        sizes = [dim.dim_value for dim in tensor.shape.dim[1:]]
        if tensor.elem_type != TensorProto.FLOAT or not sizes or 0 in sizes:
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            shape = ", ".join(map(str, ("N", *(size or "?" for size in sizes))))
            what = f"output {value.name} is {kind} ({shape}), and one of maps is float with known sizes"
            raise ModelError(what, where=where, hint="export the float maps, before any argmax")
        if wanted == "map" and not (len(sizes) == 3 and sizes[0] > 1):
            what = (
                f"output {value.name} is ({', '.join(map(str, ('N', *sizes)))}), and a map of classes is (N, C, H, W)"
            )
            raise ModelError(what, where=where, hint="export the scores of all classes, two or more, for each place")
        tensor.shape.dim[0].dim_param = BATCH
    del graph.value_info[:]  # inferred for the batch of the file
    return int(graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def _name_everything(graph: onnx.GraphProto) -> None:
    """Unique names for nodes, kept where the exporter gave one."""
    taken = {node.name for node in graph.node}
    seen = {""}
    for node in graph.node:
        if node.name in seen:
            stem = node.name or f"{node.op_type}_{node.output[0]}"
            names = chain([stem], (f"{stem}_{index}" for index in count(1)))
            node.name = next(name for name in names if name not in taken)
            taken.add(node.name)
        seen.add(node.name)


def _ends_in_softmax(graph: Graph) -> bool:
    last = graph.producer(graph.source_of(graph.output))
    return last is not None and last.op_type == "Softmax"
