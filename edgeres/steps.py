"""Single stages on what is already there: quantize a file, add engines to a bundle, verify a bundle again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeres.bundle import FP32, GRAPHS, Bundle
from edgeres.data.choose import DataChoice, check_paths, choose_calibration, choose_validation
from edgeres.data.loader import Loader, OnUnreadable
from edgeres.engine.stage import EngineChoice, build_engines, not_built
from edgeres.engine.targets import get_target
from edgeres.engine.vendor import MODULES, available
from edgeres.environment import environment
from edgeres.errors import BundleError, EngineError, UsageError
from edgeres.intake import ModelChoice, take, with_exact_input
from edgeres.pipeline import VALIDATION_BATCH, data_record, gates_of, plain, weight_bits
from edgeres.progress import SILENT, Progress
from edgeres.records import Codes, EngineRecord, Method
from edgeres.refine.choice import RefineChoice
from edgeres.report.document import Json, ReportInput, build_report
from edgeres.verify.stage import Graphs, verify


@dataclass(frozen=True)
class QuantizedFile:
    """A serialized Q/DQ graph, and what was done in numbers."""

    model: bytes
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class QuantizeOptions:
    """What ``edgeres quantize`` can be told besides model and images."""

    target: str = "tensorrt"
    refine: RefineChoice = RefineChoice()
    method: Method = "mse"
    codes: Codes = "full"
    batch: int = 8
    on_unreadable: OnUnreadable = "fail"


def quantize_file(
    model: ModelChoice, data: DataChoice, options: QuantizeOptions, progress: Progress = SILENT
) -> QuantizedFile:
    """Quantize a model for one target; its input stays as it is.

    Raises:
        EdgeresError: in one line, what prevents it.
    """
    target = get_target(options.target)
    if data.calibration is None:
        raise UsageError(
            "calibration images are needed", hint="--calibration SRC; edgeres quantize --help lists the forms"
        )
    check_paths(data)
    fp32 = with_exact_input(take(model, progress), "normalized")
    from edgeres.quantize.stage import RangeChoice  # need onnx, which take() has looked for
    from edgeres.refine.recipe import quantize_with_recipe

    loader = Loader(choose_calibration(data, fp32.spec), fp32.spec.preprocess, options.batch, options.on_unreadable)
    ranges = RangeChoice(options.method, weight_bits(), fp32.known, options.codes)
    refined = quantize_with_recipe(fp32.graph, [target.style], loader, ranges, options.refine, progress)
    done = refined.quantized
    if loader.unreadable:
        progress.say(f"left out, unreadable: {', '.join(loader.unreadable)}")
    plan = done.plans[target.style]
    summary = {
        "style": target.style,
        "method": options.method,
        "images": done.images,
        "unreadable": list(loader.unreadable),
        "preprocess": fp32.spec.preprocess.to_dict(),
        "activations": len(plan.edges),
        "weights": len(plan.weights),
        "notes": list(fp32.notes),
        "refinement": [step.to_dict() for step in refined.steps],
        "residual": [cost.to_dict() for cost in refined.skips],
    }
    return QuantizedFile(done.graphs[target.style].SerializeToString(), summary)


def add_engines(
    bundle: Path, target: str | None, choice: EngineChoice, progress: Progress = SILENT
) -> tuple[EngineRecord, ...]:
    """Build engines for this machine from a bundle's graph, and add them to the bundle.

    Raises:
        EngineError: this machine cannot build any, or the vendor refuses the graph.
        BundleError: the bundle is incomplete, or has no graph for TensorRT.
    """
    opened = Bundle(bundle)
    if not opened.has(GRAPHS["tensorrt"]):
        raise BundleError(
            "has no graph for TensorRT", where=bundle, hint="build it with --target rtx, tensorrt or a Jetson"
        )
    opened.file(GRAPHS["tensorrt"])
    opened.file(FP32)
    name = target or next((flavour for flavour in MODULES if available(flavour).can_build), None)
    if name is None:
        reasons = "; ".join(f"{flavour}: {available(flavour).reason}" for flavour in MODULES)
        raise EngineError(f"no engine can be built on this machine ({reasons})", hint="edgeres doctor tells more")
    chosen = get_target(name)
    why = not_built(chosen)
    if why:
        raise EngineError(why, where=name)
    engines = build_engines(bundle, [chosen], choice, progress)
    opened.add_engines(engines)
    return tuple(engines)


def verify_bundle(
    path: Path,
    data: DataChoice,
    limits: Mapping[str, float | None],
    command: str = "",
    on_unreadable: OnUnreadable = "fail",
    progress: Progress = SILENT,
) -> Json:
    """Measure a bundle again on this machine; the bundle is not changed.

    Args:
        limits: by metric (``drop_pp``, ``speedup``); None sets no gate.

    Returns:
        The content of a report.json.

    Raises:
        BundleError: a file is missing or was changed.
        SourceError, UsageError: the validation images cannot be used.
    """
    gates = gates_of(limits)
    bundle = Bundle(path)
    bundle.check()
    spec = bundle.manifest.model
    source, reasons = choose_validation(data, spec)
    loader = Loader(source, spec.preprocess, VALIDATION_BATCH, on_unreadable)
    graphs = Graphs(bundle.file(FP32), {style: bundle.file(name) for style, name in GRAPHS.items() if bundle.has(name)})
    verified = verify(graphs, spec, loader, progress)
    return build_report(
        ReportInput(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=command,
            options={"bundle": str(path), **plain(vars(data)), "limits": dict(limits)},
            environment=environment(),
            model=spec,
            headline=graphs.headline,
            gates=gates,
            validation=data_record(loader, verified.comparison.images),
            comparison=verified.comparison,
            latency=verified.latency,
            sizes=graphs.sizes,
            engines=bundle.manifest.engines,
            reasons={**verified.reasons, **reasons},
        )
    )
