"""Build engines for the chosen targets, with a record for each that cannot be built on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeres.bundle import ENGINES, FP32, log_of
from edgeres.device.libraries import available
from edgeres.device.targets import Flavour, Runtime, Target
from edgeres.engine.builder import BuildRequest, BuiltEngine, Precision, build_engine
from edgeres.engine.preflight import warnings
from edgeres.graph.forms import form_for, lineage, rewritten
from edgeres.progress import SILENT, Progress
from edgeres.records import EngineRecord


@dataclass(frozen=True)
class EngineChoice:
    """What engines to build; see :class:`BuildRequest`. The smallest batch is 1.

    Attributes:
        also: precisions of further engines to keep, for comparison on the device.
        workspace_mb: MiB of scratch memory for one layer; None: a quarter of a Jetson's memory, all of another GPU's.
        builder_level: the optimization level, 0 (fast build) to 5 (fast engine).
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
        """Raise for values that no build accepts, before the first build begins."""
        self.request("int8", "rtx")

    def request(self, precision: Precision, flavour: Flavour, workspace_bytes: int | None = None) -> BuildRequest:
        """The request for one build; ``workspace_bytes`` is used if the user gave no ``workspace_mb``."""
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
    """Serialized engines by record; None for an engine that is not kept.

    ``logs`` has the vendor's messages by path inside the bundle: a ``.log`` beside each kept engine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, bytes] = {}


def build_engines(
    folder: Path, targets: Sequence[Target], choice: EngineChoice, progress: Progress = SILENT
) -> Engines:
    """Build for every target that has engines, from the graphs in ``folder``; nothing is written.

    An FP32 engine is always built beside an INT8 one, for its size, and kept if ``choice.also`` names it. If this
    machine cannot build for a target, the status in its record says what to run, and where. Warnings about the device's
    memory and opset come before its build.

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
    """Why this machine builds no engine for a target, and what to run where; None if it can build one."""
    if target.runtime == "onnxruntime":
        return target.where
    here = available(target.runtime)
    # An engine for a Jetson is built on a machine with the Jetson's GPU.
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
    """The graph that an engine is built from; a form that the bundle does not hold is rewritten here."""
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
    return bytes(model.SerializeToString())
