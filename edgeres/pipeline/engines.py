"""Builds engines for an existing bundle, and exports its network for a DLA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeres.bundle import FP16, FP32, Bundle, steady
from edgeres.device.libraries import MODULES, available
from edgeres.device.targets import Target, get_target, this_board
from edgeres.engine.engines import EngineChoice, build_engines, not_built
from edgeres.engine.frames import needs_onnx
from edgeres.errors import BundleError, EngineError, EnvironmentError_, UsageError, needs
from edgeres.graph.forms import FLOAT, GRAPH_FILES
from edgeres.pipeline.calibrate import recorded_at
from edgeres.pipeline.frames import add_frame_engines
from edgeres.pipeline.tune import EVERY_FORM, TuneChoice, tune_engines
from edgeres.progress import SILENT, Progress
from edgeres.quantize.exchange import export
from edgeres.records import EngineRecord, FrameSpec
from edgeres.runtime.choose import engines_of
from edgeres.runtime.memory import default_device

if TYPE_CHECKING:
    from edgeres.graph.dla import DlaModel


def add_engines(
    bundle: Path,
    target: str | None,
    choice: EngineChoice,
    progress: Progress = SILENT,
    tune: TuneChoice = EVERY_FORM,
    frames: Sequence[FrameSpec] = (),
) -> tuple[EngineRecord, ...]:
    """Build engines for this machine from a bundle's graph, and add them to the bundle.

    Args:
        target: name of the target; None: this board, or the first TensorRT that can build on this machine.
        frames: build an engine for each of these, beside those for prepared images, which are built where the bundle
            has none for this machine.

    Raises:
        EngineError: this machine cannot build an engine, or the vendor's builder refuses the graph; engines in other
            precisions are added before that.
        BundleError: the bundle is incomplete, or has no graph for TensorRT.
    """
    opened = steady(bundle, _with_graphs)
    board = this_board() if available("tensorrt").can_build else None
    name = target or (board.name if board else next((f for f in MODULES if available(f).can_build), None))
    if name is None:
        reasons = "; ".join(f"{flavour}: {available(flavour).reason}" for flavour in MODULES)
        raise EngineError(f"no engine can be built on this machine ({reasons})", hint="edgeres doctor shows details")
    chosen = get_target(name)
    if why := not_built(chosen):
        raise EngineError(why, where=name)
    here = _measures(opened, chosen, tune, progress)
    if not frames:
        return _add_prepared(opened, chosen, choice, here, progress)
    needs_onnx()
    records = () if _has_engine(opened, chosen) else _add_prepared(opened, chosen, choice, here, progress)
    return *records, *add_frame_engines(opened, chosen, choice, frames, tune.form, progress)


def _add_prepared(
    bundle: Bundle, target: Target, choice: EngineChoice, tune: TuneChoice | None, progress: Progress
) -> tuple[EngineRecord, ...]:
    """Build the engines that take prepared images; ``tune`` is None where no form is measured."""
    if tune:
        return tune_engines(bundle, target, choice, tune, progress)
    engines = build_engines(bundle.path, [target], choice, bundle.manifest.model.preprocess, progress)
    if any(engines.values()):
        bundle.add_engines(engines, engines.logs)
    if target.name in engines.left_out:
        raise engines.left_out[target.name]
    return tuple(engines)


def _has_engine(bundle: Bundle, target: Target) -> bool:
    """Whether the bundle has an engine for prepared images that this machine's version and GPU built."""
    assert target.runtime != "onnxruntime"
    here = available(target.runtime)
    sm = {here.gpu.sm} if here.gpu is not None else set()
    return any(
        record.version == here.version
        and (target.runtime == "rtx" or sm & set(record.portability.compute_capabilities))
        for record in engines_of(bundle, target.runtime, "chosen")
    )


def _measures(bundle: Bundle, target: Target, tune: TuneChoice, progress: Progress) -> TuneChoice | None:
    """How forms are measured on this machine; None where the default form is taken.

    Raises:
        UsageError: the bundle has no form of the name that was asked for.
    """
    assert target.runtime != "onnxruntime"
    names = [form.name for form in bundle.forms if target.runtime in form.runtimes]
    if tune.form is not None and tune.form not in names:
        hint = f"it has {', '.join(names) or 'none'}"
        raise UsageError(f"the bundle has no form {tune.form!r} for {target.runtime}", where=bundle.path, hint=hint)
    if not tune.tune and tune.form is None:
        return None
    here = available(target.runtime)
    try:
        if not here.can_run:
            raise EngineError(here.reason)
        default_device()
    except EnvironmentError_ as error:
        if tune.form is not None:
            raise
        what = "the default form is taken, which was chosen by bytes and kernels"
        progress.say(f"{target.name}: forms are not measured here ({error.what}); {what}")
        return None
    return tune


def _with_graphs(bundle: Bundle) -> Bundle:
    """The same bundle, after a check of the graphs that engines are built from and compared with."""
    if not bundle.has(FLOAT.file):
        raise BundleError(
            "has no graph for TensorRT", where=bundle.path, hint="build it with --target rtx, tensorrt or a Jetson"
        )
    bundle.check_unlisted()
    for name in (FP32, FP16, *GRAPH_FILES):
        if bundle.has(name):
            bundle.file(name)
            bundle.for_engines(name)
    return bundle


def dla_model(path: Path, target: str, batch: int, tensorrt: str) -> DlaModel:
    """A bundle's network for the DLA of a Jetson with JetPack 6, and the layers that will run on the GPU.

    Raises:
        UsageError: the target has no DLA.
        BundleError: the bundle is incomplete.
        EnvironmentError_: onnx is not installed.
    """
    chosen = get_target(target)
    try:
        from edgeres.graph.dla import for_dla
        from edgeres.graph.normalize import load_onnx
    except ModuleNotFoundError as error:
        raise needs("export", "onnx") from error

    def model_of(bundle: Bundle) -> DlaModel:
        cache, _ = export(recorded_at(path), "trt-cache", tensorrt)
        return for_dla(load_onnx(bundle.file(FP32)), chosen, batch, cache, bundle.manifest.model.preprocess)

    return steady(path, model_of)
