"""Measures and judges a bundle, during a build and later, and accepts one as the baseline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeres.bundle import ANSWERS, CALIBRATION, Bundle, steady
from edgeres.calibrate.ranges_file import read_calibration
from edgeres.data.choose import DataChoice
from edgeres.data.corruptions import check_corruptible
from edgeres.data.loader import Loader
from edgeres.data.plausible import check_images, check_normalization
from edgeres.errors import BundleError, UsageError
from edgeres.graph.forms import FORMS
from edgeres.judge.asked import Asked
from edgeres.judge.baseline import Baseline, accept
from edgeres.judge.document import Json
from edgeres.made import Made, read_made
from edgeres.pipeline.candidates import candidates_in
from edgeres.pipeline.options import VerifyOptions, flat, json_value
from edgeres.pipeline.tasks import task_notes
from edgeres.progress import SILENT, Numbered, Progress
from edgeres.reports import read_report
from edgeres.signing import permit_for
from edgeres.task import TaskMeasured, task_of
from edgeres.verify.answers import REFERENCE
from edgeres.verify.candidates import KnownAnswers
from edgeres.verify.known import write_known
from edgeres.verify.measure import Measured, MeasurePlan, Validation
from edgeres.words import public

VALIDATION_BATCH = 16


def measure_bundle(made: Made, images: Validation, plan: MeasurePlan, progress: Progress = SILENT) -> TaskMeasured:
    """Measure every candidate of a bundle that runs on this machine.

    Raises:
        SourceError: images cannot be read, or labels do not fit.
        ModelError: a graph cannot be loaded, or gives outputs that are not finite.
    """
    plan = replace(plan, zeros=zeros_in(made.folder / CALIBRATION))
    candidates = candidates_in(made, engines=plan.scheduler is None)
    return task_of(made.model).measure(candidates, made.model, images, progress, plan)


def keep_answers(folder: Path, measured: Measured) -> None:
    """Write FP32's scores into a bundle for a device, so that its CPU need not compute them again.

    They are left out where no engine can be built from the bundle, where they are many, and where images could not be
    read: then they do not belong to the positions of the source.
    """
    comparison, images = measured.comparison, measured.images
    for_device = any((folder / form.file).is_file() for form in FORMS.values() if form.runtime != "onnxruntime")
    if comparison is None or images is None or images.unreadable or not for_device:
        return
    if comparison.reference_scores is not None:
        runner = comparison.scored[REFERENCE].runner
        write_known(folder / ANSWERS, KnownAnswers(images.sha256, comparison.reference_scores, runner))


def verify_bundle(path: Path, data: DataChoice, options: VerifyOptions, progress: Progress = SILENT) -> Json:
    """Measure a bundle again on this machine; the bundle is not changed.

    Returns:
        The content of a report.json.

    Raises:
        BundleError: a file is missing or was changed.
        InputError: the baseline cannot be read.
        SourceError, UsageError: the validation images cannot be used.
    """
    baseline = options.gates.read_baseline()
    return steady(path, lambda bundle: _verify(bundle, data, options, baseline, progress))


def _verify(
    bundle: Bundle, data: DataChoice, options: VerifyOptions, baseline: Baseline | None, progress: Progress
) -> Json:
    made = read_made(bundle, permit_for(bundle, options.trust))
    contract = made.model.preprocess
    try:
        told = check_normalization(contract)
    except UsageError as error:
        hint = "build it again with the mean and std of training"
        raise BundleError(error.what, where=bundle.path, hint=hint) from error
    task = task_of(made.model)
    for line in task_notes(task, options.gates):
        progress.say(line)
    if options.gates.corruptions:
        check_corruptible(contract)
    source, reasons = task.validate(data, made.model, progress)
    for line in (*told, *check_images(source, contract)):
        progress.say(line)
    loader = Loader(source, contract, VALIDATION_BATCH, options.on_unreadable)
    plan = MeasurePlan(options.scheduler, options.thumbnails, corruptions=options.gates.corruptions)
    progress = Numbered(progress, ("compare", "time"))
    measured = measure_bundle(made, Validation(loader, data, reasons), plan, progress)
    given = {name: value for name, value in flat(options).items() if name not in ("command", "trust")}
    asked = Asked(options.command, json_value({"bundle": bundle.path, **vars(data), **given}), options.gates, baseline)
    report: Json = public(task.judge(asked, made, measured))
    return report


def zeros_in(calibration: Path) -> dict[str, float]:
    """Shares of zeros in a calibration.json, by tensor; empty where ranges were imported or there is no file."""
    return read_calibration(calibration).zeros() if calibration.is_file() else {}


def accept_baseline(path: Path) -> Json:
    """The content of a baseline.json for a bundle or for a report.json.

    Raises:
        BundleError, InputError: the bundle or report cannot be read, or the report has no answers.
    """
    is_bundle = path.is_dir() or not path.exists()
    return accept(steady(path, lambda bundle: bundle.report()) if is_bundle else read_report(path), path)
