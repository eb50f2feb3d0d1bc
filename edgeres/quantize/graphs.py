"""Quantize an FP32 graph: one calibration, and a Q/DQ graph per style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnx import ModelProto

from edgeres.calibrate.forward import observe
from edgeres.calibrate.identity import Identity, identify
from edgeres.calibrate.ranges_file import RangesFile
from edgeres.calibrate.record import Calibration, Wanted
from edgeres.data.loader import Loader
from edgeres.errors import ModelError
from edgeres.graph.forms import INTEGER, PLANNED
from edgeres.graph.graph import Graph
from edgeres.graph.lint import lint
from edgeres.progress import SILENT, Progress
from edgeres.quantize.placement import Placement, place
from edgeres.quantize.plan import make_plan
from edgeres.quantize.rewrite import rewrite
from edgeres.records import Codes, Method, QuantPlan, Style, TensorRange

STYLES = tuple(form.style for form in PLANNED)


@dataclass(frozen=True)
class Quantized:
    """Graphs and plans by style, with the content of calibration.json and the number of images it was made from."""

    graphs: Mapping[Style, ModelProto]
    plans: Mapping[Style, QuantPlan]
    calibration: Mapping[str, Any]
    images: int


@dataclass(frozen=True)
class RangeChoice:
    """How ranges are found.

    Attributes:
        method: how a range is chosen from what was measured.
        weight_bits: of the ``cpu`` style; 7 where the CPU's int8 dot product saturates.
        known: by tensor, ranges that need no measuring, such as that of an input that holds a byte minus 128.
        codes: of activations behind a ReLU in the graph for TensorRT: ``full`` uses all 256, ``half`` only the 128 that
            are not negative, which saves a Pad for every convolution with padding.
        recorded: ranges of an earlier calibration; they are used for the graph that they were measured on.
    """

    method: Method = "mse"
    weight_bits: int = 8
    known: Mapping[str, TensorRange] = field(default_factory=dict)
    codes: Codes = "full"
    recorded: RangesFile | None = None


def quantize(
    model: ModelProto, styles: Sequence[Style], loader: Loader, choice: RangeChoice, progress: Progress = SILENT
) -> Quantized:
    """Observe every tensor that any style needs of a canonical FP32 graph in one pass, then plan and rewrite for each.

    Raises:
        SourceError: images cannot be read.
        ModelError: a tensor is not finite.
    """
    graph = Graph(model)
    placements = {style: place(graph, style, choice.codes) for style in styles}
    wanted = {style: wanted_ranges(placement) for style, placement in placements.items()}
    identity = identify(model)
    unknown = [tensor for tensor in tensors_of(wanted) if tensor not in choice.known]
    calibration = _recorded(choice, identity) or observe(model, unknown, loader, progress)
    with progress.task("choosing ranges", total=None):
        ranges = calibration.choose(choice.method, wanted, choice.known)
        document = calibration.to_dict(choice.method, ranges, identity, loader.batch_size)
        plans = {
            style: make_plan(
                graph, placements[style], ranges[style], document["digest"], choice.weight_bits if style == "cpu" else 8
            )
            for style in styles
        }
    graphs = {style: rewrite(model, plan) for style, plan in plans.items()}
    for style, written in graphs.items():
        if style != INTEGER.style:
            _refuse_unparsable(written)
    return Quantized(graphs, plans, document, calibration.samples)


def wanted_ranges(placement: Placement) -> Wanted:
    """The ranges that a placement needs: affine ones where all 256 codes are used from low to high, else symmetric."""
    affine = placement.full if placement.style == "tensorrt" else frozenset(placement.observed)
    return Wanted(
        symmetric=tuple(tensor for tensor in placement.observed if tensor not in affine),
        affine=tuple(tensor for tensor in placement.observed if tensor in affine),
        like={site.tensor: site.like for site in placement.sites if site.like is not None},
    )


def wanted_by_all(model: ModelProto) -> dict[str, Wanted]:
    """The ranges that every style needs, and symmetric ranges of the same tensors for tools without zero points."""
    graph = Graph(model)
    wanted: dict[str, Wanted] = {style: wanted_ranges(place(graph, style)) for style in STYLES}
    measured = tensors_of(wanted)
    likes = {name: other for asked in wanted.values() for name, other in asked.like.items() if name not in measured}
    return {**wanted, "symmetric": Wanted(symmetric=measured, like=likes)}


def with_scores(wanted: Mapping[str, Wanted], model: ModelProto) -> dict[str, Wanted]:
    """Add the ranges that ONNX Runtime's own quantizer needs besides: of the scores and of activations' inputs."""
    graph, cpu = Graph(model), wanted["cpu"]
    after = {node.output[0]: graph.activation_after(node) for node in graph.nodes}
    ahead = {name: other for name, other in after.items() if other != name and other in cpu.affine}
    cpu = replace(cpu, affine=tuple(dict.fromkeys((*cpu.affine, graph.output))), like={**ahead, **cpu.like})
    return {**wanted, "cpu": cpu}


def tensors_of(wanted: Mapping[Any, Wanted]) -> tuple[str, ...]:
    """The tensors to observe, each once."""
    return tuple(dict.fromkeys(tensor for asked in wanted.values() for tensor in (*asked.symmetric, *asked.affine)))


def _recorded(choice: RangeChoice, model: Identity) -> Calibration | RangesFile | None:
    """The recorded ranges; None where they are of another graph: equalization changes the weights."""
    recorded = choice.recorded
    return recorded if recorded is not None and recorded.content.model.matches(model) else None


def _refuse_unparsable(model: ModelProto) -> None:
    """Raise if TensorRT's parsers would refuse the graph or misread it."""
    found = [finding for finding in lint(model) if finding.effect in {"refused", "wrong"}]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        what = f"TensorRT would not take the graph: {found[0]}{more}"
        raise ModelError(what, hint="report this with edgeres inspect")
