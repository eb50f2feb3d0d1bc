"""Compute in float16 wherever each operator may: the whole of a float graph, or what lies between the codes of another.

ONNX's schemas say which inputs and outputs of an operator have one type, and whether that may be float16. A node that
cannot compute in float16, or whose values may leave its range, stays in float32 between Casts:

    before   Conv -> Celu -> Conv                                float32; Celu has no float16
    after    Conv -> Cast -> Celu -> Cast -> Conv                float16 but for Celu

Integers, booleans and what is computed from shapes keep their types.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, defs, numpy_helper

from edgeres.errors import ModelError
from edgeres.graph.graph import Graph, Values, attributes, input_at, opset_of

# Operators whose output has the type of their input.
_TYPE_PRESERVING = frozenset({"Pad", "Transpose", "Identity"})
# Sums and powers of activations, whose values may exceed float16's 65504 where those of their input do not, and
# operators whose type is an attribute's or another input's.
_FLOAT_ONLY = frozenset(
    {"CumSum", "Exp", "LRN", "LpNormalization", "LpPool", "GlobalLpPool", "MeanVarianceNormalization", "Pow"}
    | {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSum", "ReduceSumSquare"}
    | {"CastLike", "EyeLike", "RandomNormalLike", "RandomUniformLike"}
)
# Operators that compare with a limit: one beyond float16's range may become its largest number.
_LIMITED = frozenset({"Clip", "Max", "Min"})
_LARGEST, _SMALLEST_NORMAL = float(np.finfo(np.float16).max), float(np.finfo(np.float16).tiny)
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
# Integers whose every value is a float16.
_EXACT = frozenset({TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8})


def to_fp16(model: ModelProto) -> ModelProto:
    """The same network in float16, with float32 inputs and outputs and Casts between.

    A strongly typed TensorRT network takes its precision from the graph, so an FP16 engine needs an FP16 graph.

    Raises:
        ModelError: the graph is quantized.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise ModelError("the graph is quantized", hint="make the FP16 graph from the float graph")
    return half_between(model)


def half_between(model: ModelProto) -> ModelProto:
    """Compute in float16 between the codes; scales, and nodes that float16 does not serve, stay in float32.

    Before:
        DQ -> Conv, Add, ReLU -> Q                      float32
    After:
        DQ -> Cast -> Conv, Add, ReLU -> Cast -> Q      float16 between the Casts

    The model given is not changed. The first input and the output stay float32.
    """
    graph = Graph.copy_of(model)
    _drop_casts(graph)
    conversion = _Conversion(graph)
    for node in list(graph.nodes):
        conversion.take(node)
    return graph.done()


def _drop_casts(graph: Graph) -> None:
    """Remove the Casts around skips that are kept in float16: everything else is float16 too."""
    for half in graph.of("Cast"):
        if attributes(half)["to"] != _HALF:
            continue
        back = [reader for reader in graph.consumers(half.output[0]) if reader.op_type == "Cast"]
        for cast in (*back, half):
            for reader in graph.consumers(cast.output[0]):
                graph.redirect(reader, cast.output[0], half.input[0])
            graph.remove(cast)


class _Conversion:
    """Takes a graph's nodes in order, and knows of every float tensor what it is by now.

    Attributes:
        half: tensors that are float16; other float tensors are float32.
        wide: tensors in float32 whose values float16 may not hold: what reads them computes in float32, too.
        from_image: tensors whose values depend on the image, not on sizes alone.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.types = {name: int(value.type.tensor_type.elem_type) for name, value in graph.types.items()}
        self.opset = opset_of(graph.model)
        self.half: set[str] = set()
        self.wide: set[str] = set()
        self.from_image = {graph.input}

    def take(self, node: NodeProto) -> None:
        """Convert a node, whose inputs are converted already."""
        graph, source, output = self.graph, input_at(node, 0), node.output[0]
        if node.op_type not in {"Shape", "Size"} and not self.from_image.isdisjoint(node.input):
            self.from_image.update(filter(None, node.output))
        if node.op_type == "QuantizeLinear":
            if source in self.half:
                cast = graph.put_before(node, "Cast", [source], f"{node.name}_single", to=_FLOAT)
                graph.set_inputs(node, [cast, *node.input[1:]])
        elif node.op_type == "DequantizeLinear":
            graph.put_behind(node, "Cast", [], f"{node.name}_half", to=_HALF)
            self.half.add(output)
        elif node.op_type in _TYPE_PRESERVING and source not in self.half and self._is_only_quantized(output):
            pass  # the image, up to where something is computed from it
        elif parameters := self._parameters_in_half(node):
            self._to_half(node, parameters)
        else:
            self._keep_single(node)
        if output in graph.outputs and output in self.half:
            number = graph.outputs.index(output)
            graph.put_behind(node, "Cast", [], f"output{number or ''}_single", to=_FLOAT)
            self.half.discard(output)

    def _is_only_quantized(self, tensor: str) -> bool:
        return all(reader.op_type == "QuantizeLinear" for reader in self.graph.consumers(tensor))

    def _parameters_in_half(self, node: NodeProto) -> frozenset[str]:
        """The type parameters of the operator's schema that become float16; none: the node computes in float32.

        A parameter stands for the one type of several inputs and outputs, such as ``T`` of Add. Those of the tensors
        that are computed from the image, or from codes, must all admit float16.
        """
        data = self._data(node)
        known = defs.has(node.op_type, self.opset) and node.domain in {"", "ai.onnx"}
        reached = self.half.union(self.from_image)
        if not known or node.op_type in _FLOAT_ONLY or not self.wide.isdisjoint(data) or reached.isdisjoint(data):
            return frozenset()
        allowed = {
            constraint.type_param_str
            for constraint in defs.get_schema(node.op_type, self.opset).type_constraints
            if "tensor(float16)" in constraint.allowed_type_strs
        }
        inputs, _ = self._formals(node)
        wanted = frozenset(kind for name, kind in zip(node.input, inputs, strict=True) if name in data)
        return wanted if wanted <= allowed and not self._unfit(node) else frozenset()

    def _formals(self, node: NodeProto) -> tuple[list[str], list[str]]:
        """The type in the operator's schema of each input and of each output; the last one of the schema repeats."""
        schema = defs.get_schema(node.op_type, self.opset)
        return tuple(  # type: ignore[return-value]
            [formals[min(index, len(formals) - 1)].type_str for index in range(len(names))]
            for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output))
        )

    def _data(self, node: NodeProto) -> list[str]:
        """The float tensors, constants left out, that a node reads."""
        return [name for name in node.input if self.types.get(name) == _FLOAT and not self.graph.is_constant(name)]

    def _floats(self, node: NodeProto) -> dict[str, Values]:
        """The float32 constants that a node reads."""
        stored = {name: self.graph.stored(name) for name in node.input if name}
        names = [name for name, tensor in stored.items() if tensor is not None and tensor.data_type == _FLOAT]
        return {name: self.graph.constant(name) for name in names}

    def _unfit(self, node: NodeProto) -> bool:
        """Whether a constant exceeds float16's range, or is lost in it, as the epsilon of a norm may be."""
        return any(
            (_magnitude(values) > _LARGEST and node.op_type not in _LIMITED)
            or (values.size == 1 and 0 < _magnitude(values) < _SMALLEST_NORMAL)
            for values in self._floats(node).values()
        )

    def _to_half(self, node: NodeProto, parameters: frozenset[str]) -> None:
        """Let a node compute in float16: Casts in front of its float32 tensors, copies of its float32 constants."""
        graph, inputs = self.graph, list(node.input)
        kinds, output_kinds = self._formals(node)
        constants = self._floats(node)
        for index, (name, kind) in enumerate(zip(node.input, kinds, strict=True)):
            if kind not in parameters or not name or name in self.half:
                continue
            if name in constants:
                inputs[index] = f"{name}.half"
                if not graph.is_constant(inputs[index]):
                    graph.add_constant(inputs[index], _as_half(constants[name]))
            elif self.types.get(name) == _FLOAT:
                inputs[index] = graph.put_before(node, "Cast", [name], f"{node.name}_half{index}", to=_HALF)
        graph.set_inputs(node, inputs)
        made = zip(node.output, output_kinds, strict=True)
        self.half.update(name for name, kind in made if kind in parameters and self.types.get(name) == _FLOAT)
        if node.op_type == "Cast" and attributes(node)["to"] == _FLOAT:
            self._cast_to_half(node)

    def _keep_single(self, node: NodeProto) -> None:
        """Let a node compute in float32: Casts in front of its float16 tensors."""
        graph, inputs, data = self.graph, list(node.input), self._data(node)
        for index, name in enumerate(node.input):
            if name in self.half:
                inputs[index] = self._exact(name) or graph.put_before(
                    node, "Cast", [name], f"{node.name}_single{index}", to=_FLOAT
                )
        graph.set_inputs(node, inputs)
        if node.op_type == "Cast" and attributes(node)["to"] == _FLOAT:
            if self.types.get(node.input[0]) in _EXACT and node.output[0] in self.from_image:
                self._cast_to_half(node)
            else:
                self.wide.update(node.output)
        elif node.op_type in _FLOAT_ONLY or not self.wide.isdisjoint(data) or self._unfit(node) or _fills_wide(node):
            self.wide.update(node.output)

    def _cast_to_half(self, node: NodeProto) -> None:
        node.attribute[0].i = _HALF
        self.half.add(node.output[0])

    def _exact(self, tensor: str) -> str | None:
        """The float32 values of codes that a Cast made this tensor from."""
        cast = self.graph.writer(tensor)
        source = self.graph.producer(cast.input[0]) if cast.op_type == "Cast" else None
        return str(cast.input[0]) if source is not None and source.op_type == "DequantizeLinear" else None


def _magnitude(values: Values) -> float:
    """The largest finite value, without its sign; float16 has infinities, too."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0))


def _as_half(values: Values) -> Values:
    finite = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
    return np.asarray(finite.astype(np.float16))


def _fills_wide(node: NodeProto) -> bool:
    """Whether a ConstantOfShape fills its output with a value that float16 does not hold."""
    value = attributes(node).get("value") if node.op_type == "ConstantOfShape" else None
    return value is not None and value.data_type == _FLOAT and _magnitude(numpy_helper.to_array(value)) > _LARGEST
