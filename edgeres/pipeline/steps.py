"""Single stages on what is already there: quantize a file, add engines to a bundle, verify a bundle again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeres.bundle import CALIBRATION, FP32, REPORT, Bundle
from edgeres.calibrate.distributed import Recipe, cluster, connect
from edgeres.calibrate.identity import identify
from edgeres.calibrate.ranges_file import RangesFile, read_calibration
from edgeres.calibrate.record import CALIBRATION_KIND, IMPORTED, CalibrationFile, entries, to_json
from edgeres.calibrate.run import collect, here
from edgeres.calibrate.shards import Job, State
from edgeres.data.base import Source
from edgeres.data.choose import DataChoice, check_paths, choose_calibration, choose_validation
from edgeres.data.loader import Loader, OnUnreadable
from edgeres.device.environment import environment
from edgeres.device.libraries import MODULES, available
from edgeres.device.targets import get_target, this_board
from edgeres.engine.engines import EngineChoice, build_engines, not_built
from edgeres.errors import BundleError, EngineError, InputError, UsageError, needs
from edgeres.files import write_file
from edgeres.graph.forms import FORMS
from edgeres.judge.baseline import accept, read_baseline
from edgeres.judge.document import Json, ReportInput, build_report
from edgeres.judge.gates import Limits
from edgeres.pipeline.build import VALIDATION_BATCH, data_record, forms, plain, weight_bits
from edgeres.pipeline.render import ARTEFACTS
from edgeres.pipeline.reuse import reuse
from edgeres.pipeline.take import Fp32Model, ModelChoice, take, with_exact_input
from edgeres.progress import SILENT, Progress
from edgeres.quantize.exchange import export, fit, read_foreign
from edgeres.records import Codes, EngineRecord, Method, Style
from edgeres.refine.choice import RefineChoice
from edgeres.verify.measure import Graphs, VerifyPlan, verify

if TYPE_CHECKING:
    from edgeres.graph.dla import DlaModel
    from edgeres.refine.recipe import Refined


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
    calibration_file: Path | None = None
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
    if data.calibration is None and options.calibration_file is None:
        raise UsageError(
            "calibration images are needed", hint="--calibration SRC; edgeres quantize --help lists the forms"
        )
    check_paths(data)
    recorded, refine = reuse(options.calibration_file, data, options.refine)
    taken = take(model, progress)
    fp32 = with_exact_input(taken, "normalized")
    if recorded is not None:
        recorded = recorded.of(forms(fp32, taken))
        if refine != options.refine:
            progress.say(f"ranges are those of {recorded.path}; nothing is refined without --calibration images")
        options = replace(options, refine=refine, method=recorded.method)
    from edgeres.quantize.graphs import RangeChoice  # need onnx, which take() has looked for
    from edgeres.refine.recipe import quantize_with_recipe

    source = recorded.images() if recorded and data.calibration is None else choose_calibration(data, fp32.spec)
    loader = Loader(source, fp32.spec.preprocess, options.batch, options.on_unreadable)
    ranges = RangeChoice(options.method, weight_bits(), fp32.known, options.codes, recorded)
    refined = quantize_with_recipe(fp32.graph, [target.style], loader, ranges, options.refine, progress)
    if loader.unreadable:
        progress.say(f"unreadable images, left out: {', '.join(loader.unreadable)}")
    summary = {
        "style": target.style,
        "method": options.method,
        "unreadable": list(loader.unreadable),
        "preprocess": fp32.spec.preprocess.to_dict(),
        **_numbers(refined, target.style),
        "notes": [*fp32.notes, *([f"nothing refined: {refined.note}"] if refined.note else [])],
    }
    graph = refined.quantized.graphs[target.style]
    if target.runtime == "rtx":
        from edgeres.graph.rtx import rtx_form

        graph = rtx_form(graph)
    return QuantizedFile(graph.SerializeToString(), summary)


def _numbers(refined: Refined, style: Style) -> dict[str, Any]:
    plan = refined.quantized.plans[style]
    return {
        "images": refined.quantized.images,
        "activations": len(plan.edges),
        "weights": len(plan.weights),
        "refinement": [step.to_dict() for step in refined.steps],
        "residual": [cost.to_dict() for cost in refined.skips],
    }


@dataclass(frozen=True)
class CalibrateOptions:
    """What ``edgeres calibrate`` can be told besides model and images.

    Attributes:
        shard: index, from 1, and count; None calibrates on all images.
        scheduler: address of a Dask scheduler, to run there.
    """

    method: Method = "mse"
    batch: int = 8
    on_unreadable: OnUnreadable = "fail"
    shard: tuple[int, int] | None = None
    scheduler: str | None = None


def calibrate_file(
    model: ModelChoice, data: DataChoice, options: CalibrateOptions, output: Path, progress: Progress = SILENT
) -> State:
    """Run calibration images through a model, and write calibration.json, or a shard's state.

    An interrupted run leaves its state beside the output, and the same call goes on from it.

    Raises:
        EdgeresError: in one line, what prevents it.
    """
    check_paths(data)
    with ExitStack() as stack:
        client = None if options.scheduler is None else stack.enter_context(connect(options.scheduler))
        fp32 = take(model, progress)
        source = choose_calibration(data, fp32.spec)
        job = _job(fp32, source, options)
        keep = output.with_name(f".{output.name}.state")
        if client is None:
            backend = here(job, fp32.graph, source)
        else:
            backend = cluster(client, job, fp32.graph.SerializeToString(), Recipe(data, fp32.spec, job.source_digest))
        state = collect(job, backend, keep, options.shard or (1, 1), progress=progress)
    if options.shard is None:
        write_file(output, to_json(state.document(options.method)).encode())
    else:
        write_file(output, state.pack())
    keep.unlink(missing_ok=True)
    return state


def _job(fp32: Fp32Model, source: Source, options: CalibrateOptions) -> Job:
    from edgeres.quantize.graphs import wanted_by_all, with_scores

    return Job(
        model=identify(fp32.graph, fp32.spec.name),
        preprocess=fp32.spec.preprocess,
        source=source.description,
        source_digest=source.digest(),
        images=len(source),
        batch=options.batch,
        wanted=with_scores(wanted_by_all(fp32.graph), fp32.graph),
        on_unreadable=options.on_unreadable,
    )


def import_ranges(model: ModelChoice, path: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """The content of a calibration.json with the ranges that another tool found for the same model.

    Raises:
        EdgeresError: in one line, what prevents it.
    """
    foreign = read_foreign(path)
    fp32 = take(model, progress)
    from edgeres.graph.graph import Graph
    from edgeres.quantize.graphs import wanted_by_all

    ranges = fit(foreign, Graph(fp32.graph), wanted_by_all(fp32.graph))
    for style in ("tensorrt", "cpu"):
        if style not in ranges:
            progress.say(f"{path.name} does not have all ranges of the {style} graph, so it is left out")
    found = CalibrationFile(
        method=IMPORTED,
        samples=0,
        source=f"{foreign.path.name}, {foreign.form}",
        source_digest=foreign.sha256,
        preprocess=fp32.spec.preprocess,
        model=identify(fp32.graph, fp32.spec.name),
        tensors=entries(ranges, {}),
    )
    return CALIBRATION_KIND.content(found)


def recorded_at(path: Path) -> RangesFile:
    """The ranges of a calibration.json, or of a bundle for its FP32 graph.

    Raises:
        BundleError: the bundle is incomplete. InputError: the file is no calibration.json, or of an equalized network.
    """
    if not path.is_dir():
        return read_calibration(path)
    bundle = Bundle(path)
    recorded = read_calibration(bundle.file(CALIBRATION))
    from edgeres.graph.normalize import load_onnx

    graph = load_onnx(bundle.file(FP32))
    return recorded.of([(identify(graph, bundle.manifest.model.name), bundle.manifest.model.preprocess)])


def add_engines(
    bundle: Path, target: str | None, choice: EngineChoice, progress: Progress = SILENT
) -> tuple[EngineRecord, ...]:
    """Build engines for this machine from a bundle's graph, and add them to the bundle.

    Raises:
        EngineError: this machine cannot build any, or the vendor refuses the graph.
        BundleError: the bundle is incomplete, or has no graph for TensorRT.
    """
    opened = Bundle(bundle)
    if not opened.has(FORMS["tensorrt"].file):
        raise BundleError(
            "has no graph for TensorRT", where=bundle, hint="build it with --target rtx, tensorrt or a Jetson"
        )
    opened.file(FORMS["tensorrt"].file)
    opened.file(FP32)
    board = this_board() if available("tensorrt").can_build else None
    name = target or (board.name if board else next((f for f in MODULES if available(f).can_build), None))
    if name is None:
        reasons = "; ".join(f"{flavour}: {available(flavour).reason}" for flavour in MODULES)
        raise EngineError(f"no engine can be built on this machine ({reasons})", hint="edgeres doctor tells more")
    chosen = get_target(name)
    why = not_built(chosen)
    if why:
        raise EngineError(why, where=name)
    engines = build_engines(bundle, [chosen], choice, progress)
    opened.add_engines(engines, engines.logs)
    return tuple(engines)


def dla_model(path: Path, target: str, batch: int, tensorrt: str) -> DlaModel:
    """A bundle's network as the DLA of a Jetson takes it through JetPack 6, with what it will leave to the GPU.

    Raises:
        UsageError: the target has no DLA. BundleError: the bundle is incomplete.
        EnvironmentError_: onnx is not installed.
    """
    chosen = get_target(target)
    bundle = Bundle(path)
    try:
        from edgeres.graph.dla import for_dla
        from edgeres.graph.normalize import load_onnx
    except ModuleNotFoundError as error:
        raise needs("export", "onnx") from error
    cache, _ = export(recorded_at(path), "trt-cache", tensorrt)
    return for_dla(load_onnx(bundle.file(FP32)), chosen, batch, cache, bundle.manifest.model.preprocess)


@dataclass(frozen=True)
class VerifyOptions:
    """What a verification can be told besides bundle and images.

    Attributes:
        limits: the gates.
        baseline: an accepted build to compare with.
        any_machine: compare latency with a baseline of another machine, too.
        scheduler: of a Dask cluster that runs the graphs over the images.
        thumbnails: whether pictures of what INT8 gets wrong go into the report.
        command: what the report names as the way to reproduce it.
    """

    limits: Limits = Limits()
    baseline: Path | None = None
    any_machine: bool = False
    on_unreadable: OnUnreadable = "fail"
    scheduler: str | None = None
    thumbnails: bool = True
    command: str = ""


def verify_bundle(path: Path, data: DataChoice, options: VerifyOptions, progress: Progress = SILENT) -> Json:
    """Measure a bundle again on this machine; the bundle is not changed.

    Returns:
        The content of a report.json.

    Raises:
        BundleError: a file is missing or was changed.
        InputError: the baseline cannot be read.
        SourceError, UsageError: the validation images cannot be used.
    """
    baseline = read_baseline(options.baseline, any_machine=options.any_machine) if options.baseline else None
    bundle = Bundle(path)
    bundle.check()
    spec = bundle.manifest.model
    source, reasons = choose_validation(data, spec)
    loader = Loader(source, spec.preprocess, VALIDATION_BATCH, options.on_unreadable)
    graphs = Graphs(
        bundle.file(FP32), {name: bundle.file(form.file) for name, form in FORMS.items() if bundle.has(form.file)}
    )
    verified = verify(graphs, spec, loader, progress, VerifyPlan(options.scheduler, data, options.thumbnails))
    own = {name: value for name, value in vars(options).items() if name not in {"limits", "command"}}
    return build_report(
        ReportInput(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=options.command,
            options=plain({"bundle": path, **vars(data), **vars(options.limits), **own}),
            environment=environment(),
            model=spec,
            headline=graphs.headline,
            gates=options.limits.gates(baseline=baseline is not None, labels="accuracy" not in reasons),
            validation=data_record(loader, verified.comparison.images, verified.comparison.pixels),
            comparison=verified.comparison,
            latency=verified.latency,
            sizes=graphs.sizes,
            engines=bundle.manifest.engines,
            reasons={**verified.reasons, **reasons},
            limits=options.limits,
            baseline=baseline,
            built=bundle.report() if bundle.has(REPORT) else {},
            anatomy=verified.anatomy,
            files={name: digest for name, digest in bundle.manifest.files.items() if name.endswith(ARTEFACTS)},
            thumbnails=verified.thumbnails,
        )
    )


def accept_baseline(path: Path) -> Json:
    """The content of a baseline.json: of a bundle as it was built, or of a report.json of a verification.

    Raises:
        BundleError, InputError: neither can be read, or it is from an older edgeres.
    """
    if path.is_dir() or not path.exists():
        return accept(Bundle(path).report(), path)
    try:
        return accept(json.loads(path.read_text(encoding="utf-8")), path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("not a report of edgeres", where=path, hint="give a bundle, or a report.json") from error
