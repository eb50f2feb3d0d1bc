"""Quantize an FP32 graph: one calibration, and a Q/DQ graph per style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from onnx import ModelProto

from edgeres.calibrate.forward import observe
from edgeres.calibrate.identity import Identity, identify
from edgeres.calibrate.ranges_file import RangesFile
from edgeres.calibrate.record import Calibration, Wanted
from edgeres.data.loader import Loader
from edgeres.device.memory import return_freed
from edgeres.errors import SourceError, why_left_out
from edgeres.graph.forms import PLANNED
from edgeres.graph.graph import Graph
from edgeres.progress import SILENT, Progress
from edgeres.quantize.placement import Placement, place
from edgeres.quantize.plan import make_plan
from edgeres.quantize.rewrite import rewrite
from edgeres.records import Codes, Method, QuantPlan, Style, TensorRange

T = TypeVar("T")
STYLES = tuple(form.style for form in PLANNED)


@dataclass(frozen=True)
class Quantized:
    """Graphs and plans by style, with the content of calibration.json and the number of images it was made from.

    Attributes:
        floats: the float graph that the plan of a style is for; refinement changes its weights.
        left_out: styles that could not be quantized, with the reasons.
    """

    graphs: Mapping[Style, ModelProto]
    plans: Mapping[Style, QuantPlan]
    floats: Mapping[Style, ModelProto]
    calibration: Mapping[str, Any]
    images: int
    left_out: Mapping[Style, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RangeChoice:
    """How ranges are found.

    Attributes:
        method: how a range is chosen from what was measured.
        weight_bits: of the ``cpu`` style; 7 where the CPU's int8 dot product saturates.
        known: by tensor, ranges that need no measuring, such as that of an input that holds a byte minus 128.
        codes: of activations behind a ReLU in the graph for TensorRT: ``half`` are the 128 that are not negative,
            ``full`` all 256, which takes a Pad for every convolution with padding, ``free`` all 256 where that takes no
            Pad.
        recorded: ranges of an earlier calibration; they are used for the graph that they were measured on.
    """

    method: Method = "mse"
    weight_bits: int = 8
    known: Mapping[str, TensorRange] = field(default_factory=dict)
    codes: Codes = "free"
    recorded: RangesFile | None = None


def quantize(
    model: ModelProto, styles: Sequence[Style], loader: Loader, choice: RangeChoice, progress: Progress = SILENT
) -> Quantized:
    """Observe every tensor that any style needs of a canonical FP32 graph in one pass, then plan and rewrite for each.

    A style for which that fails is left out, as long as another one is left.

    Raises:
        SourceError: images cannot be read.
        ModelError: a tensor is not finite.
    """
    return_freed()  # what came before: refinement calibrates again and again
    graph, identity, failed = Graph(model), identify(model), dict[Style, str]()
    placements = each_style(styles, lambda style: place(graph, style, choice.codes), failed)
    wanted = {style: wanted_ranges(placement) for style, placement in placements.items()}
    calibration = _recorded(choice, identity) or _observed(model, wanted, loader, choice, progress, failed)
    with progress.task("choosing ranges", total=None):
        asked = {style: needs for style, needs in wanted.items() if style not in failed}
        ranges = calibration.choose(choice.method, asked, choice.known)
        document = calibration.to_dict(choice.method, ranges, identity, loader.batch_size)

        def planned(style: Style) -> QuantPlan:
            bits = choice.weight_bits if style == "cpu" else 8
            return make_plan(graph, placements[style], ranges[style], document["digest"], bits)

        plans = each_style(asked, planned, failed)
    graphs = each_style(plans, lambda style: rewrite(model, plans[style]), failed)
    plans = {style: plans[style] for style in graphs}
    return Quantized(graphs, plans, dict.fromkeys(graphs, model), document, calibration.samples, failed)


def each_style(styles: Iterable[Style], make: Callable[[Style], T], failed: dict[Style, str]) -> dict[Style, T]:
    """What ``make`` gives for each style; ``failed`` takes the reason for each that it gives nothing for.

    Raises:
        SourceError: images cannot be read, for whatever style.
        Exception: what ``make`` raised first, where it gives nothing for any style.
    """
    made: dict[Style, T] = {}
    first: Exception | None = None
    for style in styles:
        try:
            made[style] = make(style)
        except SourceError:
            raise
        except Exception as error:  # whatever is wrong with one style must not end the others
            failed[style] = why_left_out(error)
            first = first or error
    if first is not None and not made:
        raise first
    return made


def _observed(
    model: ModelProto,
    wanted: Mapping[Style, Wanted],
    loader: Loader,
    choice: RangeChoice,
    progress: Progress,
    failed: dict[Style, str],
) -> Calibration:
    """Calibrate for all styles in one pass. Where that fails, for each alone, and then for those that it succeeds for.

    The first pass of all fails with a tensor that one of the styles does not need.
    """

    def observed(styles: Iterable[Style]) -> Calibration:
        unknown = [name for name in tensors_of({style: wanted[style] for style in styles}) if name not in choice.known]
        return observe(model, unknown, loader, progress)

    try:
        return observed(wanted)
    except SourceError:
        raise
    except Exception:  # one style's tensor may be at fault: each is tried alone, below
        if len(wanted) == 1:
            raise
    alone = each_style(wanted, lambda style: observed([style]), failed)
    return next(iter(alone.values())) if len(alone) == 1 else observed(alone)


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
    wanted: dict[str, Wanted] = {style: wanted_ranges(place(graph, style, "full")) for style in STYLES}
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
