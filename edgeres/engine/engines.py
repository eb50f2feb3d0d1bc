"""Q/DQ graph -> engines for the chosen targets, and a record for every one that cannot be built here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeres.bundle import ENGINES, FP32, log_of
from edgeres.device.libraries import Flavour, available
from edgeres.device.targets import Runtime, Target
from edgeres.engine.builder import BuildRequest, BuiltEngine, Precision, build_engine
from edgeres.engine.preflight import warnings
from edgeres.graph.forms import form_for, lineage, rewritten
from edgeres.progress import SILENT, Progress
from edgeres.records import EngineRecord


@dataclass(frozen=True)
class EngineChoice:
    """What engines to build.

    Attributes:
        also: precisions to keep beside INT8, to compare with on the device.
        max_batch: largest batch of the profile; 1 is the smallest.
        opt_batch: the batch that kernels are chosen for.
        compute_capabilities: of RTX engines; empty is the portable default.
        workspace_mb: MiB of scratch memory for one layer; None: a quarter of a Jetson's memory, all of others'.
        builder_level: 0 (fast build) to 5 (fast engine).
        version_compatible, hardware_compatible: of TensorRT engines, see :class:`BuildRequest`.
    """

    also: tuple[Precision, ...] = ()
    max_batch: int = 8
    compute_capabilities: tuple[str, ...] = ()
    opt_batch: int = 1
    workspace_mb: int | None = None
    builder_level: int = 3
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        """Refuses what no build could do, long before the first one begins."""
        self.request("int8", "rtx")

    def request(self, precision: Precision, flavour: Flavour, workspace_bytes: int | None = None) -> BuildRequest:
        """For one build; ``workspace_bytes`` holds where the user named none."""
        return BuildRequest(
            precision,
            opt_batch=self.opt_batch,
            max_batch=self.max_batch,
            workspace_bytes=workspace_bytes if self.workspace_mb is None else self.workspace_mb << 20,
            compute_capabilities=self.compute_capabilities if flavour == "rtx" else (),
            optimization_level=self.builder_level,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
        )


class Engines(dict[EngineRecord, "bytes | None"]):
    """Records, each with its serialized engine where that is kept.

    Attributes:
        logs: what the vendor said, by path inside the bundle: ``.log`` beside each engine that is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, bytes] = {}


def build_engines(
    folder: Path, targets: Sequence[Target], choice: EngineChoice, progress: Progress = SILENT
) -> Engines:
    """Build for every target that has engines, from the graphs in ``folder``.

    An FP32 engine is always built beside an INT8 one, for its size, and kept where ``choice.also`` says so. A target
    that cannot be built on this machine gets a record whose status says where to run what. What a device is likely to
    refuse (its memory, its opset) is said before its build begins. Nothing is written.

    Raises:
        EngineError: the vendor refuses the graph.
    """
    engines = Engines()
    for target in targets:
        for line in warnings(folder, target, choice.max_batch, choice.workspace_mb):
            progress.say(f"{target.name}: {line}")
        for record, built in _for_target(folder, target, choice, progress):
            engines[record] = built.data if built and record.file else None
            if built and record.file:
                engines.logs[log_of(record.file)] = built.log_text.encode()
    return engines


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
) -> Iterator[tuple[EngineRecord, BuiltEngine | None]]:
    if target.runtime == "onnxruntime":
        return
    status = not_built(target)
    if status is None:
        gpu = available(target.runtime).gpu
        workspace = None if gpu is None else target.workspace_bytes(gpu.memory_bytes)
        for precision in dict.fromkeys(("int8", "fp32", *choice.also)):
            request = choice.request(precision, target.runtime, workspace)
            built = build_engine(_graph(folder, precision, target.runtime), request, target.runtime, progress)
            if precision == "int8" or precision in choice.also:
                yield built.record(target.name, f"{ENGINES}/{built.file_name}"), built
            else:
                yield built.record(target.name, None, "built for its size, not kept"), built
    else:
        progress.say(f"{target.name}: {status}")
        yield EngineRecord(target.name, target.runtime, available(target.runtime).version or "", "int8", status), None


def _graph(folder: Path, precision: Precision, runtime: Runtime) -> Path | bytes:
    """The graph that an engine is built from; what the bundle does not hold is written anew."""
    if precision == "fp32":
        return folder / FP32
    form = form_for(runtime)
    if precision == "int8" and (form.made_from is None or (folder / form.file).is_file()):
        return folder / form.file
    from edgeres.graph.half import to_fp16
    from edgeres.graph.normalize import load_onnx

    if precision == "fp16":
        model = to_fp16(load_onnx(folder / FP32))
    else:  # the bundle was built for other targets
        model = rewritten(form, load_onnx(folder / lineage(form)[-1].file))
    content: bytes = model.SerializeToString()
    return content
