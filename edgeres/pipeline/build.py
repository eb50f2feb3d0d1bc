"""The stages in order, on one screen.

model -> FP32 graph -> calibration -> Q/DQ graphs -> engines -> verdict -> bundle
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeres.bundle import CALIBRATION, FP32, LABELS, check_target, new_bundle, seal
from edgeres.calibrate.identity import Identity, identify
from edgeres.calibrate.ranges_file import RangesFile
from edgeres.calibrate.record import IMPORTED, to_json
from edgeres.data.choose import DataChoice, Sources, check_paths, choose_sources, choose_validation
from edgeres.data.loader import Loader, OnUnreadable
from edgeres.data.pixels import Pixels, sample_pixels
from edgeres.device.cpu import has_vnni
from edgeres.device.environment import environment
from edgeres.device.libraries import MODULES, available
from edgeres.device.targets import Target, get_target
from edgeres.engine.engines import EngineChoice, Engines, build_engines
from edgeres.errors import UsageError
from edgeres.files import write_file
from edgeres.graph.forms import FORMS
from edgeres.judge.baseline import read_baseline
from edgeres.judge.document import CalibrationRecord, DataRecord, ReportInput, build_report
from edgeres.judge.gates import Limits
from edgeres.pipeline.render import artefacts, write_report
from edgeres.pipeline.reuse import reuse
from edgeres.pipeline.take import Fp32Model, InputChoice, ModelChoice, take, with_exact_input
from edgeres.progress import SILENT, Progress
from edgeres.records import (
    CODES,
    METHODS,
    Codes,
    EngineRecord,
    Manifest,
    Method,
    ModelSpec,
    Preprocess,
    Style,
    TensorInfo,
)
from edgeres.refine.choice import EFFORTS, RESIDUALS, RefineChoice
from edgeres.verify.measure import Graphs, VerifyPlan, verify

if TYPE_CHECKING:
    from edgeres.quantize.graphs import Quantized
    from edgeres.refine.recipe import Refined

VALIDATION_BATCH = 16
_PARTS = {"model", "data", "refine", "engines", "limits"}
_WORDS = {
    "method": METHODS,
    "codes": CODES,
    "effort": EFFORTS,
    "residual": RESIDUALS,
    "on_unreadable": ("fail", "skip"),
    "channel_order": ("RGB", "BGR"),
}


@dataclass(frozen=True)
class BuildOptions:
    """Everything that a build can be told.

    Attributes:
        targets: names of ``edgeres targets``; empty: cpu, and each of rtx and tensorrt that this machine can build.
        method: how ranges are chosen.
        codes: in the graph for TensorRT, of activations behind a ReLU: all 256, or the half that is not negative.
        calibration_file: a calibration.json whose ranges are taken instead of measuring.
        batch: images per calibration step; ranges do not depend on it beyond the rounding of the forward pass.
        limits: the gates.
        baseline: an accepted build to compare with, of ``edgeres baseline accept``.
        any_machine: compare latency with a baseline of another machine, too.
        on_unreadable: ``skip`` goes on without images that cannot be decoded, and names them in the report.
        thumbnails: whether pictures of what INT8 gets wrong go into the report.
        output: of the bundle; None is ``<model>.edgeres`` in the working directory.
    """

    model: ModelChoice
    data: DataChoice = DataChoice()
    refine: RefineChoice = RefineChoice()
    engines: EngineChoice = EngineChoice()
    targets: tuple[str, ...] = ()
    method: Method = "mse"
    codes: Codes = "full"
    calibration_file: Path | None = None
    batch: int = 8
    limits: Limits = Limits()
    baseline: Path | None = None
    any_machine: bool = False
    on_unreadable: OnUnreadable = "fail"
    thumbnails: bool = True
    output: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the report."""
        own = {name: value for name, value in vars(self).items() if name not in _PARTS}
        parts = (self.model, self.data, self.refine, self.engines, self.limits)
        given = {**{name: value for part in parts for name, value in vars(part).items()}, **own}
        options: dict[str, Any] = plain({**given, "weight_bits_cpu": weight_bits()})
        return options


@dataclass(frozen=True)
class BuildResult:
    """A finished build: ``report`` is the content of report.json in the bundle at ``path``."""

    path: Path
    report: dict[str, Any]

    @property
    def passed(self) -> bool:
        return bool(self.report["passed"])


@dataclass
class Stopwatch:
    """Wall seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def build(model: Any, *, progress: Progress = SILENT, command: str = "", **options: Any) -> BuildResult:
    """Take a trained ResNet to a verified INT8 bundle.

    Args:
        model: a zoo name, the path of an ONNX file, a ``torch.nn.Module``, or a whole :class:`BuildOptions`.
        command: what the report names as the way to reproduce it.
        options: fields of :class:`BuildOptions` and of the records in it: ``weights``, ``labels``, ``mean``, ``std``,
            ``calibration``, ``validation``, ``targets``, ``method``, ``max_drop``, ``baseline``, ``output``, ...

    Raises:
        EdgeresError: in one line, what prevents it; nothing is left behind then. A gate that fails raises nothing: the
            result says so.

    Example:
        >>> result = build("resnet20", calibration="signs:64", validation="signs:64@1")     # doctest: +SKIP
        >>> result.passed, result.report["accuracy"]["drop_pp"]                             # doctest: +SKIP
        (True, 0.0)
    """
    o = _options(model, options)
    watch = Stopwatch()
    targets = choose_targets(o.targets)
    baseline = read_baseline(o.baseline, any_machine=o.any_machine) if o.baseline else None
    if o.output is not None:
        check_target(o.output)
    check_paths(o.data)
    recorded, refine = reuse(o.calibration_file, o.data, o.refine)
    with watch.stage("export"):
        taken = take(o.model, progress)
        fp32 = with_exact_input(taken)
    if recorded is not None:
        recorded = recorded.of(forms(fp32, taken))
        if refine != o.refine:
            progress.say(f"ranges are those of {o.calibration_file}; nothing is refined without --calibration images")
        o = replace(o, refine=refine, method=recorded.method, batch=recorded.content.batch or o.batch)
    sources = _sources(o, fp32.spec, recorded)
    if "accuracy" in sources.reasons:
        progress.say(f"no gate on the drop: {sources.reasons['accuracy']}")
    if sources.overlap:
        progress.say("calibration and validation are the same images, which flatters INT8")
    calibration = Loader(sources.calibration, fp32.spec.preprocess, o.batch, o.on_unreadable)
    validation = Loader(sources.validation, fp32.spec.preprocess, VALIDATION_BATCH, o.on_unreadable)
    output = o.output or Path(f"{fp32.spec.name}.edgeres")
    with new_bundle(output) as folder:
        with watch.stage("quantize"):
            refined = _quantize(o, fp32, targets, calibration, recorded, progress)
            quantized = refined.quantized
            pixels = sample_pixels(sources.calibration, fp32.spec.preprocess) if len(sources.calibration) else None
            _write_graphs(folder, fp32, quantized, rtx=any(target.runtime == "rtx" for target in targets))
        with watch.stage("engines"):
            engines = build_engines(folder, targets, o.engines, progress)
            _write_engines(folder, engines)
        with watch.stage("verify"):
            graphs = graphs_in(folder)
            verified = verify(graphs, fp32.spec, validation, progress, VerifyPlan(thumbnails=o.thumbnails))
        data = ReportInput(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=command,
            options=o.to_dict(),
            environment=environment(),
            model=fp32.spec,
            export={"max_error": fp32.max_error, "notes": list(fp32.notes)},
            headline=graphs.headline,
            gates=o.limits.gates(baseline=baseline is not None, labels="accuracy" not in sources.reasons),
            validation=data_record(validation, verified.comparison.images, verified.comparison.pixels),
            calibration=_calibration_record(o, data_record(calibration, quantized.images, pixels)),
            plans={str(style): plan for style, plan in quantized.plans.items()},
            comparison=verified.comparison,
            latency=verified.latency,
            sizes=graphs.sizes,
            engines=tuple(engines),
            refinement=tuple(step.to_dict() for step in refined.steps),
            residual=tuple(cost.to_dict() for cost in refined.skips),
            timings=watch.seconds,
            reasons={**verified.reasons, **sources.reasons, **_imported(recorded), **_unrefined(refined)},
            limits=o.limits,
            baseline=baseline,
            anatomy=verified.anatomy,
            files=artefacts(folder),
            thumbnails=verified.thumbnails,
        )
        report = build_report(data)
        write_report(folder, report)
        seal(folder, _manifest(fp32, quantized, tuple(engines)))
    return BuildResult(output, report)


def choose_targets(names: Sequence[str]) -> tuple[Target, ...]:
    """The named targets; by default the CPU and every TensorRT that can build on this machine."""
    names = (names,) if isinstance(names, str) else names
    if names:
        return tuple(get_target(name) for name in dict.fromkeys(names))
    found = [flavour for flavour in MODULES if available(flavour).can_build]
    return tuple(get_target(name) for name in ("cpu", *found))


def plain(value: Any) -> Any:
    """An option as JSON has it: paths as text, records as objects, a module by the name of its class."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return plain(vars(value)) if isinstance(value, InputChoice) else type(value).__name__


def weight_bits() -> int:
    """Of weights for this CPU: without VNNI two products are summed in 16 bits, where 8-bit weights saturate."""
    return 7 if has_vnni() is False else 8


def graphs_in(folder: Path) -> Graphs:
    """The graphs of a bundle, finished or in the making."""
    return Graphs(
        folder / FP32, {name: folder / form.file for name, form in FORMS.items() if (folder / form.file).is_file()}
    )


def data_record(loader: Loader, images: int, pixels: Pixels | None) -> DataRecord:
    """What a loader read, for the report; the loader must have been run through."""
    return DataRecord(loader.source.description, loader.source.digest(), images, tuple(loader.unreadable), pixels)


def forms(used: Fp32Model, taken: Fp32Model) -> Iterator[tuple[Identity, Preprocess]]:
    """The forms of a network that ranges may have been recorded for; the first is ``used``."""
    yield _form(used)
    yield _form(taken)
    yield _form(with_exact_input(taken, "bytes"))
    yield _form(with_exact_input(taken, "normalized"))


def _form(model: Fp32Model) -> tuple[Identity, Preprocess]:
    return identify(model.graph, model.spec.name), model.spec.preprocess


def _sources(o: BuildOptions, spec: ModelSpec, recorded: RangesFile | None) -> Sources:
    """Images to calibrate on, or what is known of those that the ranges come from; and images to validate on."""
    if recorded is None or o.data.calibration is not None:
        return choose_sources(o.data, spec)
    validation, reasons = choose_validation(o.data, spec)
    return Sources(recorded.images(), validation, reasons)


def _calibration_record(o: BuildOptions, data: DataRecord) -> CalibrationRecord | None:
    return CalibrationRecord(data, o.method, o.batch) if data.images else None


def _imported(recorded: RangesFile | None) -> dict[str, str]:
    """Why the report tells no images."""
    if recorded is None or recorded.method != IMPORTED:
        return {}
    return dict.fromkeys(("calibration", "data.calibration"), f"ranges were imported: {recorded.images().description}")


def _unrefined(refined: Refined) -> dict[str, str]:
    return {"refinement": refined.note} if refined.note else {}


def _options(model: Any, given: dict[str, Any]) -> BuildOptions:
    """Sort keyword arguments into the records that hold them."""

    def pick(record: type) -> dict[str, Any]:
        return {f.name: given.pop(f.name) for f in fields(record) if f.name in given}

    for name, allowed in _WORDS.items():
        if given.get(name, allowed[0]) not in allowed:
            raise UsageError(f"no such {name}: {given[name]!r}", where="build", hint=f"one of {', '.join(allowed)}")
    if isinstance(model, BuildOptions):
        options = model
    else:
        own = pick(BuildOptions)
        choice = ModelChoice(model, **{"input": InputChoice(**pick(InputChoice)), **pick(ModelChoice)})
        parts: dict[str, Any] = {"data": DataChoice, "refine": RefineChoice, "engines": EngineChoice, "limits": Limits}
        options = BuildOptions(choice, **{**{name: part(**pick(part)) for name, part in parts.items()}, **own})
    if given:
        raise UsageError(f"no such option: {', '.join(sorted(given))}", where="build")
    return options


def _quantize(
    o: BuildOptions,
    fp32: Fp32Model,
    targets: Sequence[Target],
    loader: Loader,
    recorded: RangesFile | None,
    progress: Progress,
) -> Refined:
    from edgeres.quantize.graphs import RangeChoice
    from edgeres.refine.recipe import quantize_with_recipe

    styles: list[Style] = list(dict.fromkeys(target.style for target in targets))
    ranges = RangeChoice(o.method, weight_bits(), fp32.known, o.codes, recorded)
    return quantize_with_recipe(fp32.graph, styles, loader, ranges, o.refine, progress)


def _write_graphs(folder: Path, fp32: Fp32Model, quantized: Quantized, *, rtx: bool) -> None:
    write_file(folder / FP32, fp32.graph.SerializeToString())
    for style, graph in quantized.graphs.items():
        write_file(folder / FORMS[style].file, graph.SerializeToString())
    if rtx:
        from edgeres.graph.rtx import rtx_form

        write_file(folder / FORMS["rtx"].file, rtx_form(quantized.graphs["tensorrt"]).SerializeToString())
    write_file(folder / CALIBRATION, to_json(quantized.calibration).encode())
    write_file(folder / LABELS, "".join(f"{label}\n" for label in fp32.spec.labels).encode())


def _write_engines(folder: Path, engines: Engines) -> None:
    for record, data in engines.items():
        if record.file and data:
            write_file(folder / record.file, data)
    for name, log in engines.logs.items():
        write_file(folder / name, log)


def _manifest(fp32: Fp32Model, quantized: Quantized, engines: Sequence[EngineRecord]) -> Manifest:
    from edgeres.quantize.plan import plan_digest

    crop, spec = fp32.spec.preprocess.crop_px, fp32.spec
    shape = (None, 3, *crop) if spec.preprocess.layout == "NCHW" else (None, *crop, 3)
    graph = fp32.graph.graph
    return Manifest(
        model=spec,
        inputs={graph.input[0].name: TensorInfo("float32", shape)},
        outputs={graph.output[0].name: TensorInfo("float32", (None, spec.num_classes))},
        files={},
        plan_digests={style: plan_digest(plan) for style, plan in quantized.plans.items()},
        engines=tuple(engines),
        environment=environment(),
    )
