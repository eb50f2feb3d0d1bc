"""Measures ranges into calibration.json (in shards or on a cluster, too), imports them from other tools, reads them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeres.bundle import CALIBRATION, FP32, Bundle, reappeared, steady
from edgeres.calibrate.distributed import Recipe, cluster, connect
from edgeres.calibrate.identity import identify
from edgeres.calibrate.ranges_file import RangesFile, read_calibration
from edgeres.calibrate.record import CALIBRATION_KIND, IMPORTED, CalibrationFile, entries, to_json
from edgeres.calibrate.run import collect, here
from edgeres.calibrate.shards import CalibrationJob, State
from edgeres.data.base import Source
from edgeres.data.choose import DataChoice, check_paths, choose_calibration
from edgeres.data.loader import OnUnreadable
from edgeres.data.plausible import check_images
from edgeres.files import write_file
from edgeres.pipeline.take import Fp32Model, ModelChoice, take
from edgeres.progress import SILENT, Numbered, Progress
from edgeres.quantize.exchange import fit, read_foreign
from edgeres.records import Method


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of ``edgeres calibrate``, without model and images.

    Attributes:
        shard: index, from 1, and count; None calibrates on all images.
        scheduler: address of a Dask scheduler whose workers run the calibration; None: this process does.
    """

    method: Method = "mse"
    batch: int = 8
    on_unreadable: OnUnreadable = "fail"
    shard: tuple[int, int] | None = None
    scheduler: str | None = None


def calibrate_file(
    model: ModelChoice, data: DataChoice, options: CalibrateOptions, output: Path, progress: Progress = SILENT
) -> State:
    """Run calibration images through a model, and write calibration.json or the state of a shard.

    An interrupted run leaves its state beside the output, and the same call continues from it.

    Raises:
        EdgeresError: one line says why it is not possible.
    """
    check_paths(data)
    with ExitStack() as stack:
        client = None if options.scheduler is None else stack.enter_context(connect(options.scheduler))
        progress = Numbered(progress, ("model", "calibrate"))
        with progress.stage("model", f"reading {model.shown()}"):
            fp32 = take(model, progress)
        source = choose_calibration(data, fp32.spec, progress)
        for line in check_images(source, fp32.spec.preprocess):
            progress.say(line)
        job = _job(fp32, source, options)
        keep = output.with_name(f".{output.name}.state")
        if client is None:
            backend = here(job, fp32.graph, source)
        else:
            backend = cluster(client, job, fp32.graph.SerializeToString(), Recipe(data, fp32.spec, job.source_digest))
        part = f", part {options.shard[0]} of {options.shard[1]}" if options.shard else ""
        with progress.stage("calibrate", f"calibrating {len(source):,} images{part}"):
            state = collect(job, backend, keep, options.shard or (1, 1), progress=progress)
    write_file(output, state.pack() if options.shard else to_json(state.document(options.method)).encode())
    keep.unlink(missing_ok=True)
    return state


def _job(fp32: Fp32Model, source: Source, options: CalibrateOptions) -> CalibrationJob:
    from edgeres.quantize.graphs import wanted_by_all, with_scores

    return CalibrationJob(
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
    """The content of a calibration.json with the ranges that another tool measured for the same model.

    Raises:
        EdgeresError: one line says why it is not possible.
    """
    foreign = read_foreign(path)
    fp32 = take(model, progress)
    from edgeres.graph.graph import Graph
    from edgeres.quantize.graphs import STYLES, wanted_by_all

    ranges = fit(foreign, Graph(fp32.graph), wanted_by_all(fp32.graph))
    for style in STYLES:
        if style not in ranges:
            progress.say(f"{path.name} lacks ranges of the {style} graph, so this graph is left out")
    imported = CalibrationFile(
        method=IMPORTED,
        samples=0,
        source=f"{foreign.path.name}, {foreign.form}",
        source_digest=foreign.sha256,
        preprocess=fp32.spec.preprocess,
        model=identify(fp32.graph, fp32.spec.name),
        tensors=entries(ranges, {}),
    )
    return CALIBRATION_KIND.content(imported)


def recorded_at(path: Path) -> RangesFile:
    """The ranges in a calibration.json, or those of a bundle for its FP32 graph.

    Raises:
        BundleError: the bundle is incomplete.
        InputError: the file is no calibration.json, or its ranges are of an equalized network.
    """
    if not path.is_dir() and not reappeared(path):
        return read_calibration(path)
    return steady(path, _recorded_in)


def _recorded_in(bundle: Bundle) -> RangesFile:
    recorded = read_calibration(bundle.file(CALIBRATION))
    from edgeres.graph.normalize import load_onnx

    graph = load_onnx(bundle.file(FP32))
    return recorded.of([(identify(graph, bundle.manifest.model.name), bundle.manifest.model.preprocess)])
