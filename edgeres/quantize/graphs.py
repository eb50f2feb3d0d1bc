"""FP32 graph + calibration images -> Q/DQ graphs, one per style, from one calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from edgeres.calibrate.forward import observe
from edgeres.calibrate.identity import Identity, identify
from edgeres.calibrate.ranges_file import Recorded
from edgeres.calibrate.record import Calibration, Wanted, digest
from edgeres.data.loader import Loader
from edgeres.errors import ModelError
from edgeres.graph.graph import GraphView
from edgeres.graph.lint import lint
from edgeres.progress import SILENT, Progress
from edgeres.quantize.placement import Placement, place
from edgeres.quantize.plan import make_plan
from edgeres.quantize.rewrite import rewrite
from edgeres.records import Codes, Method, QuantPlan, Style, TensorRange

STYLES: tuple[Style, ...] = ("tensorrt", "cpu")


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
        codes: in the graph for TensorRT, behind a ReLU: ``full`` uses all 256, ``half`` the 128 that are not negative,
            which saves a Pad for every convolution with padding.
        recorded: ranges to take instead of measuring, for the graph that they name.
    """

    method: Method = "mse"
    weight_bits: int = 8
    known: Mapping[str, TensorRange] = field(default_factory=dict)
    codes: Codes = "full"
    recorded: Recorded | None = None


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
    placements = {style: place(view, style, choice.codes) for style in styles}
    wanted = {style: wanted_ranges(placement) for style, placement in placements.items()}
    about = {"model": identify(graph).to_dict(), "batch": loader.batch_size}
    unknown = [tensor for tensor in tensors_of(wanted) if tensor not in choice.known]
    calibration = _recorded(choice, about) or observe(graph, unknown, loader, progress)
    with progress.task("choosing ranges", total=None):
        ranges = calibration.choose(choice.method, wanted, choice.known)
        document = calibration.to_dict(choice.method, ranges, about)
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


def wanted_ranges(placement: Placement) -> Wanted:
    """What a placement asks of a calibration: uint8 and the full range of int8 have 256 codes from low to high."""
    affine = placement.full if placement.style == "tensorrt" else frozenset(placement.observed)
    return Wanted(
        symmetric=tuple(tensor for tensor in placement.observed if tensor not in affine),
        affine=tuple(tensor for tensor in placement.observed if tensor in affine),
        like={site.tensor: site.like for site in placement.sites if site.like is not None},
    )


def wanted_by_all(graph: onnx.ModelProto) -> dict[str, Wanted]:
    """What any graph made of this one may ask for, and symmetric ranges of all of it for tools without zero points."""
    view = GraphView(graph)
    wanted: dict[str, Wanted] = {style: wanted_ranges(place(view, style)) for style in STYLES}
    measured = tensors_of(wanted)
    likes = {name: other for asked in wanted.values() for name, other in asked.like.items() if name not in measured}
    return {**wanted, "symmetric": Wanted(symmetric=measured, like=likes)}


def with_scores(wanted: Mapping[str, Wanted], graph: onnx.ModelProto) -> dict[str, Wanted]:
    """The same and what ONNX Runtime's quantizer asks for besides: the scores, and what is ahead of activations."""
    view, cpu = GraphView(graph), wanted["cpu"]
    after = {node.output[0]: view.activation_after(node) for node in view.nodes}
    ahead = {name: other for name, other in after.items() if other != name and other in cpu.affine}
    cpu = replace(cpu, affine=tuple(dict.fromkeys((*cpu.affine, view.output))), like={**ahead, **cpu.like})
    return {**wanted, "cpu": cpu}


def tensors_of(wanted: Mapping[Any, Wanted]) -> tuple[str, ...]:
    """The tensors to observe, each once."""
    return tuple(dict.fromkeys(tensor for asked in wanted.values() for tensor in (*asked.symmetric, *asked.affine)))


def _recorded(choice: RangeChoice, about: Mapping[str, Any]) -> Calibration | Recorded | None:
    """The recorded ranges, unless the graph is another by now: equalized."""
    recorded = choice.recorded
    return recorded if recorded is not None and recorded.model.matches(Identity.from_dict(about["model"])) else None


def _refuse_unparsable(model: onnx.ModelProto) -> None:
    """A graph that TensorRT's parsers stop at, or read as something else, must not leave this stage."""
    found = [finding for finding in lint(model) if finding.effect in {"refused", "wrong"}]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelError(
            f"TensorRT would not take the graph: {found[0]}{more}", hint="report this with edgeres inspect"
        )
