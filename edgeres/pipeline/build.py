"""The whole pipeline from a model to a verified bundle.

take -> Fp32Model    make -> Made    measure -> Measured    judge -> report document    render
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeres.bundle import check_target, new_bundle, seal
from edgeres.data.corruptions import check_corruptible
from edgeres.data.loader import Loader
from edgeres.data.plausible import check_images
from edgeres.device.environment import recorded_time
from edgeres.judge.asked import Asked
from edgeres.judge.document import Json
from edgeres.pipeline.keywords import BuildKeywords
from edgeres.pipeline.make import Stopwatch, choose_images, choose_targets, make
from edgeres.pipeline.network import take_network, with_class_names
from edgeres.pipeline.options import BuildOptions
from edgeres.pipeline.render import write_report
from edgeres.pipeline.results import BuildResult
from edgeres.pipeline.sbom import write_sbom
from edgeres.pipeline.tasks import task_notes, with_task
from edgeres.pipeline.verify import VALIDATION_BATCH, keep_answers, measure_bundle
from edgeres.progress import SILENT, Numbered, Progress
from edgeres.task import task_of
from edgeres.verify.measure import MeasurePlan, Validation
from edgeres.words import public

if TYPE_CHECKING:
    from typing_extensions import Unpack  # mypy and editors have it; it is not needed where this runs


def build(
    model: Any, *, progress: Progress = SILENT, command: str = "", **options: Unpack[BuildKeywords]
) -> BuildResult:
    """Build a verified INT8 bundle from a trained ResNet.

    Args:
        model: a zoo name, the path of an ONNX file, a ``torch.nn.Module``, or a complete :class:`BuildOptions`.
        command: command line that reproduces the build, for the report.
        options: fields of :class:`BuildOptions` and of the records in it: ``weights``, ``labels``, ``mean``, ``std``,
            ``calibration``, ``validation``, ``targets``, ``method``, ``max_drop``, ``baseline``, ``output``, ...

    Raises:
        EdgeresError: one line says why the build is not possible; no files are left behind. A failed gate raises no
            error: ``passed`` of the result is then False.

    Example:
        >>> result = build("resnet20", calibration="signs:64", validation="signs:64@1")     # doctest: +SKIP
        >>> result.passed, result.report["accuracy"]["drop_pp"]                             # doctest: +SKIP
        (True, 0.0)
    """
    o, watch = BuildOptions.of(model, options), Stopwatch()
    choose_targets(o.targets)  # refuse a misspelt target, or time, before the work begins
    recorded_time()
    baseline = o.gates.read_baseline()
    if o.output is not None:
        _check_output(o.output, o.force, progress)
    o = replace(o, model=with_task(o.model, o.data, progress))
    progress = Numbered(progress, stages_of(o))
    with watch.stage("export"), progress.stage("model", f"reading {o.model.shown()}"):
        network = take_network(o.model, o.data, o.ranges, o.refine, progress=progress)
    o = replace(o, ranges=network.ranges, refine=network.refine)
    task = task_of(network.fp32.spec)
    for line in task_notes(task, o.gates):
        progress.say(line)
    if o.gates.corruptions:
        check_corruptible(network.fp32.spec.preprocess)
    images = choose_images(network, o.data, progress)
    network = with_class_names(network, images.validation.classes)
    spec = network.fp32.spec
    told = [
        line for source in (images.calibration, images.validation) for line in check_images(source, spec.preprocess)
    ]
    for line in dict.fromkeys((*images.warnings, *told)):
        progress.say(line)
    calibration = Loader(images.calibration, spec.preprocess, o.ranges.batch, o.ranges.on_unreadable)
    validation = Loader(images.validation, spec.preprocess, VALIDATION_BATCH, o.ranges.on_unreadable)
    output = o.output or Path(f"{spec.name}.edgeres")
    _check_output(output, o.force, progress) if o.output is None else None
    with new_bundle(output, force=o.force) as folder:
        made = make(folder, network, calibration, o, watch, progress)
        plan = MeasurePlan(thumbnails=o.thumbnails, corruptions=o.gates.corruptions)
        measured = measure_bundle(made, Validation(validation, o.data, images.reasons), plan, progress)
        keep_answers(folder, measured.common)
        report: Json = public(task.judge(Asked(command, o.to_dict(), o.gates, baseline), made, measured))
        write_report(folder, report)
        write_sbom(folder, made.manifest)
        seal(folder, made.manifest)
    return BuildResult(report, output)


def stages_of(o: BuildOptions) -> tuple[str, ...]:
    """The stages of a build, in their order, for their numbers."""
    refines = o.refine.effort != "fast" or o.refine.residual == "auto"
    builds = any(t.runtime != "onnxruntime" for t in choose_targets(o.targets))
    refine, engines = ("refine",) if refines else (), ("engines",) if builds else ()
    return ("model", "calibrate", *refine, "graphs", *engines, "compare", "time")


def _check_output(output: Path, force: bool, progress: Progress) -> None:
    """Refuse an output that may not be replaced, and say what ``force`` deletes."""
    for name in check_target(output, force=force):
        progress.say(f"{output}: {name} is deleted with the older bundle (--force)")
