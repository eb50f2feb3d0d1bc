"""Which backend runs a bundle on this machine, and opening a bundle's engines and graphs."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from edgeres.bundle import FP32, Bundle
from edgeres.device.targets import RUNTIME_TITLES, Flavour
from edgeres.errors import BundleError, EngineError, EnvironmentError_, UsageError
from edgeres.graph.forms import best_on_cpu, forms_in
from edgeres.records import EngineRecord, FrameSpec
from edgeres.runtime.engine import EngineFile, TensorRTRunner
from edgeres.runtime.memory import default_device, is_there
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.ort_engines import EngineProvider
from edgeres.runtime.prepared import takes_bytes
from edgeres.runtime.runner import Backend
from edgeres.signing import NOBODY, Permit

if TYPE_CHECKING:
    from edgeres.runtime.memory import Device

Choice = Literal["auto", Flavour, "cuda", "cpu", "ort-tensorrt", "ort-rtx"]
_MOST_THREADS = 1024  # ONNX Runtime starts as many as it is told to
# In the order of preference of ``auto``, then ONNX Runtime's providers that build an engine when they start.
BACKENDS: tuple[Choice, ...] = (*get_args(Flavour), "cuda", "cpu", "ort-tensorrt", "ort-rtx")
_AUTO = BACKENDS[:-2]


def open_backend(
    bundle: Bundle, choice: Choice, threads: int, gpu: int, permit: Permit = NOBODY
) -> tuple[Backend, tuple[str, ...]]:
    """The chosen backend, or with ``auto`` the first that runs here.

    Args:
        permit: which engines may run.

    Returns:
        The backend, and one line for each preferred backend that does not run here.

    Raises:
        UsageError: there is no such choice.
        BundleError: a file of the bundle is missing or was changed, or its network is not what the manifest says.
        EngineError, EnvironmentError_: the chosen backend does not run here.
    """
    if choice not in ("auto", *BACKENDS):
        raise UsageError(f"no backend is named {choice!r}", hint=f"give auto, {', '.join(BACKENDS)}")
    if not (isinstance(threads, int) and 0 <= threads <= _MOST_THREADS):
        raise UsageError(
            f"threads are a number from 0 to {_MOST_THREADS:,}, found {threads!r}", hint="0 takes every core"
        )
    passed_over: dict[Choice, str] = {}
    for name in _AUTO if choice == "auto" else (choice,):
        try:
            backend = _open(bundle, name, threads, gpu, permit)
        except EnvironmentError_ as error:
            if choice != "auto" or name == _AUTO[-1]:
                raise
            passed_over[name] = str(error)
        else:
            _check(backend, bundle)
            _warn(bundle, backend, passed_over)
            return backend, tuple(f"{name}: {why}" for name, why in passed_over.items())
    raise AssertionError("the last backend returns or raises")


def _open(bundle: Bundle, name: Choice, threads: int, gpu: int, permit: Permit) -> Backend:
    if name == "tensorrt" or name == "rtx":
        return _open_best_engine(bundle, name, gpu, permit)
    if name == "ort-tensorrt" or name == "ort-rtx":
        return _open_with_provider(bundle, "tensorrt" if name == "ort-tensorrt" else "rtx", threads, gpu)
    if name == "cuda":  # it has no INT8 kernels: codes would cost both time and accuracy
        return OrtRunner(_graph(bundle, FP32, permit), device="cuda", gpu=gpu)
    forms = forms_in(bundle.has)
    if not forms:
        raise BundleError("holds no INT8 graph", where=bundle.path, hint="build it again")
    form = best_on_cpu(forms)
    return OrtRunner(_graph(bundle, form.file, permit), threads=threads, integer=form.integer)


def _graph(bundle: Bundle, name: str, permit: Permit) -> Path | bytes:
    """A graph; where a signature is asked for, the very bytes that were checked."""
    content = bundle.content(name) if permit.signed is not None and bundle.has(name) else None
    return content or graph_file(bundle, name)


def _open_with_provider(bundle: Bundle, runtime: Flavour, threads: int, gpu: int) -> Backend:
    """The bundle's INT8 graph for a runtime, on ONNX Runtime's provider of it.

    Raises:
        EngineError: the bundle has no such graph, or the provider is missing.
    """
    form = bundle.default_form(runtime)
    if form is None:
        hint = f"build the bundle with --target {runtime}"
        raise EngineError(f"holds no INT8 graph for {RUNTIME_TITLES[runtime]}", where=bundle.path, hint=hint)
    kept = cache_folder() / f"ort-{runtime}-{bundle.manifest.files[form.file][:16]}"
    provider = EngineProvider(runtime, form.between == "float16", kept)
    return OrtRunner(graph_file(bundle, form.file), threads=threads, device=provider, gpu=gpu)


def _warn(bundle: Bundle, backend: Backend, passed_over: Mapping[Choice, str]) -> None:
    """Warn where an engine of the bundle is for this machine's GPU, and something slower runs.

    Args:
        passed_over: why each preferred backend does not run.
    """
    for flavour in get_args(Flavour):
        if flavour not in passed_over or not (records := engines_of(bundle, flavour, "chosen")):
            continue
        from edgeres.device.gpu import this_gpu

        gpu, _ = this_gpu()
        if gpu is not None and any(_is_for(record, gpu.sm) for record in records):
            what = f"the bundle has an engine for this GPU ({gpu.name}), but {backend.name} runs instead"
            warnings.warn(f"{what}: {passed_over[flavour]}", RuntimeWarning, stacklevel=2)
            return


def _is_for(record: EngineRecord, sm: str) -> bool:
    made_for = record.portability
    return sm in made_for.compute_capabilities or made_for.hardware_compatible or not made_for.compute_capabilities


def graph_file(bundle: Bundle, name: str, hint: str | None = None) -> Path:
    """A graph of a bundle.

    Raises:
        EngineError: the bundle does not have it.
        BundleError: it is missing on disk or was changed.
    """
    if not bundle.has(name):
        raise EngineError(f"the bundle has no {name}", where=bundle.path, hint=hint)
    return bundle.file(name)


def _open_best_engine(bundle: Bundle, runtime: Flavour, gpu: int, permit: Permit) -> Backend:
    """The engine that this GPU's clock chose, else the INT8 engine; the checks that cost least come first."""
    if not engines_of(bundle, runtime, "chosen"):
        hint = f"edgeres engine {bundle.path} builds one on the device"
        raise EngineError("the bundle holds no engine for it", where=bundle.path, hint=hint)
    from edgeres.device.jetpack import Interpreter, why_missing
    from edgeres.device.libraries import MODULES

    if not is_there(MODULES[runtime]):
        case = why_missing(Interpreter.this()) if runtime == "tensorrt" else None
        why = f": {case[0]}" if case else ""
        raise EngineError(f"{MODULES[runtime]} is not installed{why}", hint=case[1] if case else "see: edgeres doctor")
    return open_engine(bundle, runtime, "chosen", default_device(gpu), cache_folder(), permit)[1]


def engines_of(bundle: Bundle, runtime: Flavour, precision: str) -> list[EngineRecord]:
    """The bundle's engines for prepared images and this runtime that were built and whose files it lists.

    Args:
        precision: of their graph; ``chosen``: those that a clock chose, and those in INT8.
    """
    records = [record for record in bundle.manifest.engines if record.runtime == runtime and record.frame is None]
    if precision == "chosen":
        records = [record for record in records if record.is_chosen or record.precision == "int8"]
    else:
        records = [record for record in records if record.precision == precision]
    return [record for record in records if record.file and bundle.has(record.file)]


def open_engine(
    bundle: Bundle,
    runtime: Flavour,
    precision: str,
    device: Device,
    cache: Path | None = None,
    permit: Permit = NOBODY,
) -> tuple[EngineRecord, TensorRTRunner]:
    """The first engine of a bundle that starts on this GPU. Engines for other GPUs or versions too are tried last.

    Args:
        bundle: it holds at least one engine for this runtime and precision, see :func:`engines_of`.
        cache: folder where TensorRT-RTX keeps the kernels that it compiled; None: nowhere.
        permit: which engines may run.

    Raises:
        EngineError: no engine starts; the reason of the first one.
    """

    def open_one(record: EngineRecord) -> TensorRTRunner:
        assert record.file is not None
        host_code = permit.allows_host_code(record)
        digest = bundle.manifest.files[record.file]
        return start_engine(bundle.file(record.file), record, digest, device, cache, host_code=host_code)

    first = None
    for record in in_order(engines_of(bundle, runtime, precision), device):
        try:
            return record, open_one(record)
        except EngineError as error:
            first = first or error
    assert first is not None
    raise first


def open_frames(
    bundle: Bundle, backend: Backend, gpu: int = 0, permit: Permit = NOBODY
) -> tuple[dict[FrameSpec, Backend], tuple[str, ...]]:
    """The bundle's engines that take frames and start beside this backend, which runs prepared images.

    Returns:
        The engines, and one line for each frame whose engine does not start.
    """
    found: dict[FrameSpec, Backend] = {}
    runtime = backend.flavour if isinstance(backend, TensorRTRunner) else None
    records = [one for one in bundle.manifest.engines if one.frame and one.file and bundle.has(one.file)]
    missing = {one.frame: f"no engine runs on {backend.name}" for one in records if one.frame}
    if runtime is not None:
        device = default_device(gpu)
        for record in in_order([one for one in records if one.runtime == runtime], device):
            if record.frame is None or record.frame in found:
                continue
            try:
                found[record.frame] = _started(bundle, record, device, permit)
            except EnvironmentError_ as error:
                missing[record.frame] = error.what
    lines = (f"frames {frame}: prepared on the CPU: {why}" for frame, why in missing.items() if frame not in found)
    return found, tuple(lines)


def _started(bundle: Bundle, record: EngineRecord, device: Device, permit: Permit) -> TensorRTRunner:
    """The runner of an engine that takes frames, once its tensors are those of the manifest."""
    assert record.file is not None and record.frame is not None
    digest, host_code = bundle.manifest.files[record.file], permit.allows_host_code(record)
    runner = start_engine(bundle.file(record.file), record, digest, device, cache_folder(), host_code=host_code)
    _check(runner, bundle, record.frame)
    return runner


def in_order(records: Iterable[EngineRecord], device: Device) -> list[EngineRecord]:
    """Engines in the order in which they are tried on this GPU: one for many GPUs or versions is slower, so it is late.

    An engine that the clock of such a GPU chose comes before the others.
    """

    def late(record: EngineRecord) -> tuple[bool, ...]:
        found = record.portability
        foreign = device.sm not in found.compute_capabilities
        return foreign, not record.is_chosen, found.version_compatible, found.hardware_compatible

    return sorted(records, key=late)


def start_engine(
    path: Path, record: EngineRecord, digest: str, device: Device, cache: Path | None = None, *, host_code: bool = False
) -> TensorRTRunner:
    """An engine's runner.

    Args:
        digest: SHA-256 of the file, from a manifest.
        cache: folder where TensorRT-RTX keeps the kernels that it compiled; None: nowhere.
        host_code: whether code for the CPU in it may run.

    Raises:
        EngineError: it does not run on this GPU.
    """
    runtime: Flavour = "rtx" if record.runtime == "rtx" else "tensorrt"
    kept = _cache_file(cache, digest, device) if cache is not None and runtime == "rtx" else None
    return TensorRTRunner(EngineFile(path, runtime, record, kept, digest, host_code), device=device)


def _cache_file(folder: Path, digest: str, device: Device) -> Path:
    """One file for each engine on each GPU."""
    key = hashlib.sha256(f"{digest} {device.gpu} {device.sm}".encode()).hexdigest()[:16]
    return folder / f"rtx-{key}.cache"


def cache_folder() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeres"


def _check(backend: Backend, bundle: Bundle, frame: FrameSpec | None = None) -> None:
    """Raise unless the network takes the image that the manifest describes and gives the outputs that it describes."""
    manifest = bundle.manifest
    p = manifest.model.preprocess
    prepared = (*p.crop_px, p.channels) if takes_bytes(backend) else p.shape
    image = prepared if frame is None else frame.shape
    shapes, made = manifest.shapes(), {tensor.name: tensor for tensor in backend.outputs}
    if len(shapes) == 1:
        made = {next(iter(shapes)): made[backend.output_name]}
    if missing := shapes.keys() - made.keys():
        backend.close()
        raise BundleError(f"{backend.name} gives no output {min(missing)}", where=bundle.path, hint="build it again")
    pairs = [(backend.inputs[0], image), *((made[name], shape) for name, shape in shapes.items())]
    for tensor, wanted in pairs:
        sizes = tensor.shape[1:]
        if len(sizes) != len(wanted) or any(
            None not in (have, want) and have != want for have, want in zip(sizes, wanted, strict=True)
        ):
            backend.close()
            wrong = f"{tensor.name} is {tensor}, not (N, {', '.join(map(str, wanted))})"
            what = f"{backend.name} opened another network than the manifest describes: {wrong}"
            raise BundleError(what, where=bundle.path)
