"""Read from an ONNX file how it was quantized, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, helper, numpy_helper

from edgeres.bundle import FP32, reappeared, steady
from edgeres.errors import ModelError, reading
from edgeres.graph.forms import GRAPH_FILES
from edgeres.graph.graph import Graph, input_at, opset_of
from edgeres.graph.lint import lint
from edgeres.graph.normalize import load_onnx
from edgeres.quantize.rewrite import PLAN_KEY, PLAN_NOTES, PlanNotes

_BORDER = re.compile(r".+_dq_border\d+_q")  # codes of another tensor with a rim of zeros: not listed twice


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized activation; ``reason`` is "" where another tool quantized it."""

    tensor: str
    dtype: str
    scale: float
    zero_point: int
    reason: str


@dataclass(frozen=True)
class Inspected:
    """One graph.

    Attributes:
        style: of the placement; None: edgeres did not quantize the file.
        operators: number of nodes by operator, most frequent first.
        skipped: what stays in float, each with the reason.
        refused: what TensorRT's parsers refuse or misread; empty for graphs that are not quantized and for those in the
            ``cpu`` style.
    """

    file: str
    opset: int
    style: str | None
    operators: dict[str, int]
    quantized: tuple[QuantizedTensor, ...]
    skipped: tuple[tuple[str, str], ...]
    refused: tuple[str, ...]


def inspect(path: Path) -> list[Inspected]:
    """Read an ONNX file (ModelError if it is none), or every graph of a bundle (BundleError if it is damaged)."""
    if not path.is_dir() and not reappeared(path):
        return [_inspect(path)]
    return steady(path, lambda of: [_inspect(of.file(name)) for name in (FP32, *GRAPH_FILES) if of.has(name)])


def _inspect(path: Path) -> Inspected:
    with reading(path, "cannot be inspected", error=ModelError, hint="onnx.checker tells more"):
        return _inspected(path)


def _inspected(path: Path) -> Inspected:
    model = load_onnx(path)
    notes = next((entry.value for entry in model.metadata_props if entry.key == PLAN_KEY), None)
    plan = PLAN_NOTES.decode(notes.encode(), f"{path}, {PLAN_KEY}") if notes else PlanNotes()
    quantized = _quantized(model, plan.quantized)
    for_tensorrt = bool(quantized) and plan.style != "cpu"
    return Inspected(
        file=str(path),
        opset=opset_of(model),
        style=plan.style,
        operators=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        quantized=quantized,
        skipped=plan.skipped,
        refused=tuple(str(finding) for finding in lint(model)) if for_tensorrt else (),
    )


def _quantized(model: ModelProto, reasons: Mapping[str, str]) -> tuple[QuantizedTensor, ...]:
    graph = Graph(model)
    found = []
    for node in graph.of("QuantizeLinear"):
        if not graph.is_constant(node.input[1]) or _BORDER.fullmatch(node.output[0]):
            continue
        scale = float(graph.constant(node.input[1]).flat[0])
        zero = graph.stored(input_at(node, 2))
        dtype = "uint8" if zero is None else helper.tensor_dtype_to_string(zero.data_type).removeprefix("TensorProto.")
        point = 0 if zero is None else int(numpy_helper.to_array(zero).flat[0])
        # The input may have another name than in the plan: that of a lowered tensor, or of one before a dropped ReLU.
        planned = node.output[0].removesuffix("_q").rstrip("_")
        tensor = planned if planned in reasons else node.input[0]
        found.append(QuantizedTensor(tensor, dtype.lower(), scale, point, reasons.get(tensor, "")))
    return tuple(found)
