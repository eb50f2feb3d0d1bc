"""Quantizes a model to one Q/DQ graph for one target, without a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgeres.data.choose import DataChoice, choose_calibration
from edgeres.data.loader import Loader
from edgeres.device.targets import get_target
from edgeres.errors import UsageError
from edgeres.graph.forms import form_for, rewritten
from edgeres.pipeline.network import quantize_network, take_network
from edgeres.pipeline.options import QuantizeOptions
from edgeres.pipeline.take import ModelChoice
from edgeres.progress import SILENT, Progress
from edgeres.records import Style

if TYPE_CHECKING:
    from edgeres.refine.recipe import Refined


@dataclass(frozen=True)
class QuantizedFile:
    """A serialized Q/DQ graph; ``summary`` says what was quantized, as plain JSON types."""

    model: bytes
    summary: Mapping[str, Any]


def quantize_file(
    model: ModelChoice, data: DataChoice, options: QuantizeOptions, progress: Progress = SILENT
) -> QuantizedFile:
    """Quantize a model for one target; its input is not changed.

    Raises:
        EdgeresError: one line says why it is not possible.
    """
    target, ranges = get_target(options.target), options.ranges
    if data.calibration is None and ranges.calibration_file is None:
        raise UsageError(
            "calibration images are needed", hint="--calibration SRC; edgeres quantize --help lists the forms of SRC"
        )
    network = take_network(model, data, ranges, options.refine, "normalized", progress)
    fp32, ranges, recorded = network.fp32, network.ranges, network.recorded
    source = recorded.images() if recorded and data.calibration is None else choose_calibration(data, fp32.spec)
    loader = Loader(source, fp32.spec.preprocess, ranges.batch, ranges.on_unreadable)
    refined = quantize_network(network, [target.style], loader, progress)
    if loader.unreadable:
        progress.say(f"unreadable images, left out: {', '.join(loader.unreadable)}")
    summary = {
        "style": target.style,
        "method": ranges.method,
        "unreadable": list(loader.unreadable),
        "preprocess": fp32.spec.preprocess.to_dict(),
        **_numbers(refined, target.style),
        "notes": [*fp32.notes, *([f"not refined: {refined.note}"] if refined.note else [])],
    }
    graph = rewritten(form_for(target.runtime), refined.quantized.graphs[target.style])
    return QuantizedFile(graph.SerializeToString(), summary)


def _numbers(refined: Refined, style: Style) -> dict[str, Any]:
    plan = refined.quantized.plans[style]
    return {
        "images": refined.quantized.images,
        "activations": len(plan.edges),
        "weights": len(plan.weights),
        "refinement": [asdict(step) for step in refined.steps],
        "residual": [asdict(cost) for cost in refined.skips],
    }
