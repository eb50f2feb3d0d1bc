"""Q/DQ graph -> engines for the chosen targets, and a record for every one that cannot be built here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeres.bundle import ENGINES, FP32, GRAPHS, write_file
from edgeres.engine.targets import Target
from edgeres.engine.tensorrt import BuildRequest, Precision, build_engine
from edgeres.engine.vendor import Flavour, available
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


def build_engines(
    folder: Path, targets: Sequence[Target], choice: EngineChoice, progress: Progress = SILENT
) -> tuple[EngineRecord, ...]:
    """Build for every target that has engines, into ``folder``/engines.

    An FP32 engine is always built beside an INT8 one, for its size, and kept where ``choice.also`` says so. A target that
    cannot be built on this machine gets a record whose status says where to run what.

    Raises:
        EngineError: the vendor refuses the graph.
        OSError: an engine cannot be written.
    """
    return tuple(record for target in targets for record in _for_target(folder, target, choice, progress))


def _for_target(folder: Path, target: Target, choice: EngineChoice, progress: Progress) -> Iterator[EngineRecord]:
    if target.runtime == "onnxruntime":
        return
    flavour: Flavour = target.runtime
    here = available(flavour)
    if target.name not in {"rtx", "tensorrt"} or not here.can_build:
        why = f"not built here ({here.reason})" if target.name == flavour else "not built here"
        status = f"{why}; {target.where}"
        progress.say(f"{target.name}: {status}")
        yield EngineRecord(target.name, target.runtime, here.version or "", "int8", status)
        return
    for precision in dict.fromkeys(("int8", "fp32", *choice.also)):
        yield _build(folder, target, precision, choice, progress)


def _build(
    folder: Path, target: Target, precision: Precision, choice: EngineChoice, progress: Progress
) -> EngineRecord:
    assert target.runtime != "onnxruntime"
    rtx = target.runtime == "rtx"
    request = BuildRequest(
        precision,
        max_batch=choice.max_batch,
        compute_capabilities=choice.compute_capabilities if rtx else (),
    )
    built = build_engine(_graph(folder, precision), request, target.runtime, progress)
    file = f"{ENGINES}/{built.file_name}"
    record = built.record(target.name, file)
    if precision == "int8" or precision in choice.also:
        write_file(folder / file, built.data)
        return record
    return replace(record, file=None, status="built for its size, not kept")


def _graph(folder: Path, precision: Precision) -> Path | bytes:
    if precision != "fp16":
        return folder / (FP32 if precision == "fp32" else GRAPHS["tensorrt"])
    from edgeres.engine.precision import to_fp16
    from edgeres.graph.normalize import load_onnx

    half: bytes = to_fp16(load_onnx(folder / FP32)).SerializeToString()
    return half
