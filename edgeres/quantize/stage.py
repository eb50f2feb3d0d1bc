"""FP32 graph + calibration images -> Q/DQ graphs, one per style, from one calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from edgeres.calibrate.forward import observe
from edgeres.calibrate.record import digest
from edgeres.data.loader import Loader
from edgeres.engine.refusals import lint
from edgeres.errors import ModelError
from edgeres.graph.view import GraphView
from edgeres.progress import SILENT, Progress
from edgeres.quantize.placement import place
from edgeres.quantize.plan import make_plan
from edgeres.quantize.rewrite import rewrite
from edgeres.records import Method, QuantPlan, Style, TensorRange


@dataclass(frozen=True)
class Quantized:
    """Graphs and plans by style.

    Attributes:
        calibration: the content of calibration.json.
        images: how many it was made from.
    """

    graphs: Mapping[Style, onnx.ModelProto]
    plans: Mapping[Style, QuantPlan]
    calibration: Mapping[str, Any]
    images: int


@dataclass(frozen=True)
class RangeChoice:
    """How ranges are found.

    Attributes:
        method: of tensors that are measured.
        weight_bits: of the ``cpu`` style; 7 where the CPU's int8 dot product saturates.
        known: ranges that need no measuring, by tensor: an input that holds a byte minus 128.
    """

    method: Method = "mse"
    weight_bits: int = 8
    known: Mapping[str, TensorRange] = field(default_factory=dict)


def quantize(
    graph: onnx.ModelProto, styles: Sequence[Style], loader: Loader, choice: RangeChoice, progress: Progress = SILENT
) -> Quantized:
    """Observe every tensor that any style needs in one pass, then plan and rewrite for each.

    Args:
        graph: canonical FP32.

    Raises:
        SourceError: images cannot be read.
        ModelError: a tensor is not finite.
    """
    view = GraphView(graph)
    placements = {style: place(view, style) for style in styles}
    wanted = dict.fromkeys(tensor for placement in placements.values() for tensor in placement.observed)
    calibration = observe(graph, tuple(wanted), loader, progress)
    with progress.task("choosing ranges", total=None):
        ranges = {
            style: calibration.ranges(choice.method, style, placements[style].observed) | dict(choice.known)
            for style in styles
        }
        document = calibration.to_dict(choice.method, ranges)
        source = digest(document)
        plans = {
            style: make_plan(
                view, placements[style], ranges[style], source, choice.weight_bits if style == "cpu" else 8
            )
            for style in styles
        }
    graphs = {style: rewrite(graph, plan) for style, plan in plans.items()}
    if "tensorrt" in graphs:
        _refuse_unparsable(graphs["tensorrt"])
    return Quantized(graphs, plans, document, calibration.samples)


def _refuse_unparsable(model: onnx.ModelProto) -> None:
    """A graph that TensorRT's parsers stop at, or read as something else, must not leave this stage."""
    found = [finding for finding in lint(model) if finding.effect in {"refused", "wrong"}]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelError(
            f"TensorRT would not take the graph: {found[0]}{more}", hint="report this with edgeres inspect"
        )
