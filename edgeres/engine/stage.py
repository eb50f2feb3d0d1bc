"""Q/DQ graph -> engines for the chosen targets, and a record for every one that cannot be built here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeres.bundle import ENGINES, FP32, GRAPHS
from edgeres.engine.targets import Target
from edgeres.engine.tensorrt import BuildRequest, Precision, build_engine
from edgeres.engine.vendor import available
from edgeres.progress import SILENT, Progress
from edgeres.records import EngineRecord


@dataclass(frozen=True)
class EngineChoice:
    """What engines to build.

    Attributes:
        also: precisions to keep beside INT8, to compare with on the device.
        max_batch: largest batch of the profile; 1 is the smallest and the one it is tuned for.
        compute_capabilities: of RTX engines; empty is the portable default.
    """

    also: tuple[Precision, ...] = ()
    max_batch: int = 8
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what no build could do, long before the first one begins."""
        BuildRequest("int8", max_batch=self.max_batch, compute_capabilities=self.compute_capabilities)


def build_engines(
    folder: Path, targets: Sequence[Target], choice: EngineChoice, progress: Progress = SILENT
) -> dict[EngineRecord, bytes | None]:
    """Build for every target that has engines, from the graphs in ``folder``.

    An FP32 engine is always built beside an INT8 one, for its size, and kept where ``choice.also`` says so. A target
    that cannot be built on this machine gets a record whose status says where to run what.

    Returns:
        Records, each with its serialized engine where that is kept; nothing is written.

    Raises:
        EngineError: the vendor refuses the graph.
    """
    return {record: data for target in targets for record, data in _for_target(folder, target, choice, progress)}


def not_built(target: Target) -> str | None:
    """Why there will be no engine for this target from this machine, and what to run where; None: it can be built."""
    if target.runtime == "onnxruntime":
        return target.where
    here = available(target.runtime)
    # A Jetson is told by its GPU: an engine for it is built where that GPU is.
    is_here = target.name == target.runtime or (here.gpu is not None and target.accepts(here.gpu.sm))
    if is_here and here.can_build:
        return None
    why = f"not built here ({here.reason})" if target.name == target.runtime else "not built here"
    return f"{why}; {target.where}"


def _for_target(
    folder: Path, target: Target, choice: EngineChoice, progress: Progress
) -> Iterator[tuple[EngineRecord, bytes | None]]:
    if target.runtime == "onnxruntime":
        return
    status = not_built(target)
    if status is None:
        for precision in dict.fromkeys(("int8", "fp32", *choice.also)):
            yield _build(folder, target, precision, choice, progress)
    else:
        progress.say(f"{target.name}: {status}")
        yield EngineRecord(target.name, target.runtime, available(target.runtime).version or "", "int8", status), None


def _build(
    folder: Path, target: Target, precision: Precision, choice: EngineChoice, progress: Progress
) -> tuple[EngineRecord, bytes | None]:
    assert target.runtime != "onnxruntime"
    rtx = target.runtime == "rtx"
    request = BuildRequest(
        precision,
        max_batch=choice.max_batch,
        compute_capabilities=choice.compute_capabilities if rtx else (),
    )
    built = build_engine(_graph(folder, precision), request, target.runtime, progress)
    if precision == "int8" or precision in choice.also:
        return built.record(target.name, f"{ENGINES}/{built.file_name}"), built.data
    return built.record(target.name, None, "built for its size, not kept"), None


def _graph(folder: Path, precision: Precision) -> Path | bytes:
    if precision != "fp16":
        return folder / (FP32 if precision == "fp32" else GRAPHS["tensorrt"])
    from edgeres.engine.precision import to_fp16
    from edgeres.graph.normalize import load_onnx

    half: bytes = to_fp16(load_onnx(folder / FP32)).SerializeToString()
    return half
