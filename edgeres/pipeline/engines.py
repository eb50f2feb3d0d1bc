"""Builds engines for an existing bundle, and exports its network for a DLA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeres.bundle import FP32, Bundle
from edgeres.device.libraries import MODULES, available
from edgeres.device.targets import get_target, this_board
from edgeres.engine.engines import EngineChoice, build_engines, not_built
from edgeres.errors import BundleError, EngineError, needs
from edgeres.graph.forms import FLOAT
from edgeres.pipeline.calibrate import recorded_at
from edgeres.progress import SILENT, Progress
from edgeres.quantize.exchange import export
from edgeres.records import EngineRecord

if TYPE_CHECKING:
    from edgeres.graph.dla import DlaModel


def add_engines(
    bundle: Path, target: str | None, choice: EngineChoice, progress: Progress = SILENT
) -> tuple[EngineRecord, ...]:
    """Build engines for this machine from a bundle's graph, and add them to the bundle.

    Args:
        target: name of the target; None: this board, or the first TensorRT that can build on this machine.

    Raises:
        EngineError: this machine cannot build an engine, or the vendor's builder refuses the graph; engines in other
            precisions are added before that.
        BundleError: the bundle is incomplete, or has no graph for TensorRT.
    """
    opened = Bundle(bundle)
    if not opened.has(FLOAT.file):
        raise BundleError(
            "has no graph for TensorRT", where=bundle, hint="build it with --target rtx, tensorrt or a Jetson"
        )
    opened.file(FLOAT.file)
    opened.file(FP32)
    board = this_board() if available("tensorrt").can_build else None
    name = target or (board.name if board else next((f for f in MODULES if available(f).can_build), None))
    if name is None:
        reasons = "; ".join(f"{flavour}: {available(flavour).reason}" for flavour in MODULES)
        raise EngineError(f"no engine can be built on this machine ({reasons})", hint="edgeres doctor shows details")
    chosen = get_target(name)
    if why := not_built(chosen):
        raise EngineError(why, where=name)
    engines = build_engines(bundle, [chosen], choice, opened.manifest.model.preprocess, progress)
    if any(engines.values()):
        opened.add_engines(engines, engines.logs)
    if name in engines.left_out:
        raise engines.left_out[name]
    return tuple(engines)


def dla_model(path: Path, target: str, batch: int, tensorrt: str) -> DlaModel:
    """A bundle's network for the DLA of a Jetson with JetPack 6, and the layers that will run on the GPU.

    Raises:
        UsageError: the target has no DLA.
        BundleError: the bundle is incomplete.
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
