"""Quantizes a model to one Q/DQ graph for one target, without a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgeres.data.choose import DataChoice, choose_calibration
from edgeres.data.loader import Loader
from edgeres.data.plausible import check_images
from edgeres.device.targets import get_target
from edgeres.errors import ModelError, UsageError
from edgeres.graph.forms import form_for
from edgeres.pipeline.network import quantize_network, take_network
from edgeres.pipeline.options import RangeOptions
from edgeres.pipeline.take import ModelChoice
from edgeres.progress import SILENT, Numbered, Progress
from edgeres.refine.choice import RefineChoice

# dB; a tenth of the scores' power is lost then. INT8 networks that are of use have 20 and more.
_POOR = 10.0


@dataclass(frozen=True)
class QuantizedFile:
    """A serialized Q/DQ graph; ``summary`` says what was quantized, as plain JSON types."""

    model: bytes
    summary: Mapping[str, Any]


def quantize_file(
    model: ModelChoice,
    data: DataChoice,
    ranges: RangeOptions,
    refine: RefineChoice,
    target: str = "tensorrt",
    progress: Progress = SILENT,
) -> QuantizedFile:
    """Quantize a model for one target; its input is not changed.

    Raises:
        EdgeresError: one line says why it is not possible.
    """
    chosen = get_target(target)
    if data.calibration is None and ranges.calibration_file is None:
        raise UsageError(
            "calibration images are needed", hint="--calibration SRC; edgeres quantize --help lists the forms of SRC"
        )
    steps = ("refine",) if refine.effort != "fast" or refine.residual == "auto" else ()
    progress = Numbered(progress, ("model", "calibrate", *steps, "graphs"))
    with progress.stage("model", f"reading {model.shown()}"):
        network = take_network(model, data, ranges, refine, "normalized", progress)
    from edgeres.quantize.trial import Probes, probe_images, try_forms  # take_network has told of onnx if it is missing

    fp32, ranges, recorded = network.fp32, network.ranges, network.recorded
    reuses = recorded is not None and data.calibration is None
    source = recorded.images() if recorded and reuses else choose_calibration(data, fp32.spec, progress)
    told = check_images(source, fp32.spec.preprocess)
    for line in told:
        progress.say(line)
    loader = Loader(source, fp32.spec.preprocess, ranges.batch, ranges.on_unreadable)
    refined = quantize_network(network, [chosen.style], loader, progress)
    quantized, form = refined.quantized, form_for(chosen.runtime)
    with progress.stage("graphs", "trying the graph"):
        tried = try_forms(quantized, [chosen.runtime], Probes.of(fp32.graph, probe_images(loader)))
    if form.name not in tried.graphs:
        raise ModelError(f"no graph for {chosen.name} can be written: {tried.left_out[form.name]}", where=model.model)
    plan, sqnr_db = quantized.plans[chosen.style], tried.sqnr_db[form.name]
    refined_note = [f"not refined: {refined.note}"] if refined.note else []
    poor = [f"the scores have only {sqnr_db:.1f} dB SQNR against FP32's on the probe images"] if sqnr_db < _POOR else []
    for line in poor:
        progress.say(line)
    if loader.unreadable:
        progress.say(f"unreadable images, left out: {', '.join(loader.unreadable)}")
    summary = {
        "style": chosen.style,
        "method": ranges.method,
        "unreadable": list(loader.unreadable),
        "preprocess": fp32.spec.preprocess.to_dict(),
        "images": quantized.images,
        "probe_sqnr_db": round(sqnr_db, 1),
        "activations": len(plan.edges),
        "weights": len(plan.weights),
        "refinement": [asdict(step) for step in refined.steps],
        "residual": [asdict(cost) for cost in refined.skips],
        "notes": [*fp32.notes, *source.notes, *told, *poor, *refined_note],
    }
    return QuantizedFile(tried.graphs[form.name].SerializeToString(), summary)
