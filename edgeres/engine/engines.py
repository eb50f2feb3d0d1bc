"""Build engines for the chosen targets, with a record for each that cannot be built on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeres.bundle import ENGINES, FP16, FP32, bytes_file, log_of
from edgeres.device.libraries import available
from edgeres.device.targets import TARGETS, Runtime, Target
from edgeres.engine.builder import BuildRequest, Precision, build_engine
from edgeres.engine.preflight import warnings
from edgeres.errors import EngineError, UsageError, why_left_out
from edgeres.graph.forms import form_for, lineage, rewritten
from edgeres.progress import SILENT, Progress
from edgeres.records import EngineRecord, Preprocess

_MAX_BATCH = 8


@dataclass(frozen=True)
class EngineChoice:
    """What engines to build; see :class:`BuildRequest`. The smallest batch is 1.

    Attributes:
        also: precisions of further engines to keep, for comparison on the device.
        max_batch: the largest batch; None: 1 on a Jetson, whose camera gives one image at a time and whose memory every
            further one takes, 8 elsewhere, and never less than ``opt_batch``.
        workspace_mb: MiB of scratch memory for one layer; None: a quarter of a Jetson's memory, all of another GPU's.
        builder_level: the optimization level, 0 (fast build) to 5 (fast engine).
    """

    also: tuple[Precision, ...] = ()
    max_batch: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    opt_batch: int = 1
    workspace_mb: int | None = None
    builder_level: int = 3
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        """Raise for values that no build accepts, before the first build begins."""
        self.request("int8", TARGETS["rtx"])

    def largest_batch(self, target: Target) -> int:
        """The largest batch of the engines for this target."""
        return self.max_batch or max(self.opt_batch, 1 if target.shared_memory else _MAX_BATCH)

    def request(self, precision: Precision, target: Target, workspace_bytes: int | None = None) -> BuildRequest:
        """The request for one build; ``workspace_bytes`` is used if the user gave no ``workspace_mb``."""
        return BuildRequest(
            precision,
            opt_batch=self.opt_batch,
            max_batch=self.largest_batch(target) if self.max_batch is None else self.max_batch,
            workspace_bytes=workspace_bytes if self.workspace_mb is None else self.workspace_mb << 20,
            compute_capabilities=self.compute_capabilities if target.runtime == "rtx" else (),
            optimization_level=self.builder_level,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
        )

    def request_here(self, precision: Precision, target: Target) -> BuildRequest:
        """The same for a build on this machine, whose GPU limits the workspace if the user gave no ``workspace_mb``."""
        assert target.runtime != "onnxruntime"
        gpu = available(target.runtime).gpu
        return self.request(precision, target, None if gpu is None else target.workspace_bytes(gpu.memory_bytes))


class Engines(dict[EngineRecord, "bytes | None"]):
    """Serialized engines by record; None for an engine that is not kept.

    ``logs`` has the vendor's messages by path inside the bundle: a ``.log`` beside each kept engine. ``left_out`` has
    the error, by target, of the first engine that was to be kept and cannot be built; the vendor's messages are then in
    ``engines/<target>-<precision>.log``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, bytes] = {}
        self.left_out: dict[str, Exception] = {}


def build_engines(
    folder: Path,
    targets: Sequence[Target],
    choice: EngineChoice,
    preprocess: Preprocess,
    progress: Progress = SILENT,
) -> Engines:
    """Build for every target that has engines, from the graphs in ``folder``; nothing is written.

    If this
    machine cannot build for a target, or the vendor refuses the graph, the status in its record says so; the other
    targets are built all the same. Warnings about the device's memory and opset come before its build.

    Args:
        preprocess: of the network's input: a graph that is rewritten here is compared on random images.
    """
    engines = Engines()
    for target in targets:
        for line in warnings(folder, target, choice.largest_batch(target), choice.workspace_mb):
            progress.say(f"{target.name}: {line}")
        if target.runtime == "onnxruntime":
            continue
        if status := not_built(target):
            progress.say(f"{target.name}: {status}")
            engines[_no_engine(target, "int8", status)] = None
        else:
            _build_for(engines, target, folder, choice, preprocess, progress)
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


def _build_for(
    engines: Engines, target: Target, folder: Path, choice: EngineChoice, preprocess: Preprocess, progress: Progress
) -> None:
    """Build one target's engines, and enter them."""
    assert target.runtime != "onnxruntime"
    for precision in dict.fromkeys(("int8", *choice.also)):
        request = choice.request_here(precision, target)
        try:
            graph = graph_of(folder, precision, target.runtime, preprocess)
            built = build_engine(graph, request, target.runtime, progress)
        except UsageError:
            raise
        except Exception as error:  # bindings of vendors raise anything; other engines must not suffer
            why = why_left_out(error)
            if error.__cause__ is not None:
                engines.logs[log := f"{ENGINES}/{target.name}-{precision}.log"] = str(error.__cause__).encode()
                why = f"{error.what if isinstance(error, EngineError) else why}; {log} has the vendor's messages"
            progress.say(f"{target.name}: {precision.upper()} engine not built: {why}")
            engines[_no_engine(target, precision, f"not built: {why}")] = None
            engines.left_out.setdefault(target.name, error)
            continue
        file = f"{ENGINES}/{built.file_name}"
        engines[built.record(target.name, file)] = built.data
        engines.logs[log_of(file)] = built.log_text.encode()


def _no_engine(target: Target, precision: Precision, status: str) -> EngineRecord:
    assert target.runtime != "onnxruntime"
    return EngineRecord(target.name, target.runtime, available(target.runtime).version or "", precision, status)


def graph_of(folder: Path, precision: Precision, runtime: Runtime, preprocess: Preprocess) -> Path | bytes:
    """The graph that an engine is built from, for prepared bytes where there is one; a form that the bundle does not
    hold is rewritten and compared here, and takes float32.
    """
    form = form_for(runtime)
    file = {"fp32": FP32, "fp16": FP16, "int8": form.file}[precision]
    if (folder / bytes_file(file)).is_file():
        return folder / bytes_file(file)
    if precision == "fp32" or (precision == "int8" and form.made_from is None) or (folder / file).is_file():
        return folder / file
    from edgeres.graph.half import to_fp16
    from edgeres.graph.normalize import load_onnx
    from edgeres.quantize.trial import compare_half, compare_rewritten, random_images

    fp32, images = load_onnx(folder / FP32), random_images(preprocess)
    if precision == "fp16":
        model = to_fp16(fp32)
        compare_half(model, fp32, images)
    else:  # the bundle was built for other targets
        base = load_onnx(folder / lineage(form)[-1].file)
        model = rewritten(form, base)
        compare_rewritten(model, base, fp32, images)
    return bytes(model.SerializeToString())
