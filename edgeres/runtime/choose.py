"""Which backend runs a bundle on this machine."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from edgeres.bundle import Bundle
from edgeres.errors import BundleError, EngineError, EnvironmentError_, UsageError
from edgeres.graph.forms import FORMS, GRAPH_FILES
from edgeres.records import EngineRecord, ModelSpec
from edgeres.runtime.engine import EngineFile, TensorRTRunner
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.runner import Backend, TensorSpec

if TYPE_CHECKING:
    from edgeres.device.libraries import Flavour
    from edgeres.runtime.memory import Device

Choice = Literal["auto", "tensorrt", "rtx", "cuda", "cpu"]
# In the order of preference.
BACKENDS: tuple[Choice, ...] = ("tensorrt", "rtx", "cuda", "cpu")
_MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}

_R = TypeVar("_R")


@dataclass(frozen=True)
class Opened:
    """A bundle's network, ready to run.

    Attributes:
        passed_over: why each backend before it was not taken.
    """

    backend: Backend
    spec: ModelSpec
    passed_over: tuple[str, ...]


def open_backend(bundle: Bundle, choice: Choice, threads: int, gpu: int) -> Opened:
    """The backend of this choice, or the best one present.

    Raises:
        UsageError: there is no such choice.
        BundleError: a file of the bundle is missing or was changed, or its network is not what the manifest says.
        EngineError, EnvironmentError_: the choice cannot run here.
    """
    if choice not in ("auto", *BACKENDS):
        raise UsageError(f"no backend is named {choice!r}", hint=f"give auto, {', '.join(BACKENDS)}")
    spec = bundle.manifest.model
    passed_over = []
    for name in BACKENDS if choice == "auto" else (choice,):
        try:
            backend = _open(bundle, name, threads, gpu)
        except EnvironmentError_ as error:
            if choice != "auto" or name == BACKENDS[-1]:
                raise
            passed_over.append(f"{name}: {error}")
        else:
            _check(backend, spec, bundle)
            return Opened(backend, spec, tuple(passed_over))
    raise AssertionError("the last backend returns or raises")


def _open(bundle: Bundle, name: Choice, threads: int, gpu: int) -> Backend:
    if name == "tensorrt" or name == "rtx":
        return _engine(bundle, name, gpu)
    if name == "cuda":
        return OrtRunner(_graph(bundle, ("tensorrt",)), integer=False, device="cuda", gpu=gpu)
    style = "cpu" if bundle.has(FORMS["cpu"].file) else "tensorrt"
    # As it was verified: the graph for TensorRT in float arithmetic between its Q/DQ pairs.
    return OrtRunner(_graph(bundle, ("cpu", "tensorrt")), threads=threads, integer=style == "cpu")


def _graph(bundle: Bundle, styles: tuple[str, ...]) -> Path:
    for style in styles:
        if bundle.has(FORMS[style].file):
            return bundle.file(FORMS[style].file)
    if any(map(bundle.has, GRAPH_FILES)):
        raise EngineError(f"the bundle has no {FORMS[styles[0]].file}", where=bundle.path)
    raise BundleError("holds no INT8 graph", where=bundle.path, hint="build it again")


def _engine(bundle: Bundle, flavour: Flavour, gpu: int) -> Backend:
    """The first INT8 engine of the bundle that fits this machine; cheap reasons against it come first."""
    records = [record for record in bundle.manifest.engines if record.runtime == flavour and record.precision == "int8"]
    records = [record for record in records if record.file and bundle.has(record.file)]
    if not records:
        hint = f"edgeres engine {bundle.path} builds one on the device"
        raise EngineError("the bundle holds no engine for it", where=bundle.path, hint=hint)
    if not _is_installed(_MODULES[flavour]):
        raise EngineError(f"{_MODULES[flavour]} is not installed", hint="see: edgeres doctor")
    from edgeres.runtime.memory import default_device

    device = default_device(gpu)
    return first_that_runs(records, device.sm, lambda record: _run_engine(bundle, flavour, record, device))[1]


def first_that_runs(
    records: Sequence[EngineRecord], sm: str, start: Callable[[EngineRecord], _R]
) -> tuple[EngineRecord, _R]:
    """The first engine that starts on a GPU of this compute capability; one for it alone goes before one for many.

    Args:
        records: one at least.

    Raises:
        EngineError: none does; what was wrong with the first.
    """
    first = None
    # What runs on many GPUs and versions runs slower.
    many = {r: (sm not in r.compute_capabilities, r.version_compatible, r.hardware_compatible) for r in records}
    for record in sorted(records, key=many.__getitem__):
        try:
            return record, start(record)
        except EngineError as error:
            first = first or error
    assert first is not None
    raise first


def _run_engine(bundle: Bundle, flavour: Flavour, record: EngineRecord, device: Device) -> Backend:
    assert record.file is not None
    content, digest = bundle.file(record.file), bundle.manifest.files[record.file]
    cache = None
    if flavour == "rtx":
        what = f"{digest} {device.gpu} {device.sm}"
        cache = _cache_folder() / f"rtx-{hashlib.sha256(what.encode()).hexdigest()[:16]}.cache"
    return TensorRTRunner(EngineFile(content, flavour, record, cache, digest), device=device)


def _is_installed(module: str) -> bool:
    return module in sys.modules or find_spec(module) is not None


def _cache_folder() -> Path:
    """Where the system keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeres"


def _check(backend: Backend, spec: ModelSpec, bundle: Bundle) -> None:
    """Whether this network takes what the manifest prepares, and answers with as many classes."""
    p = spec.preprocess
    image = (3, *p.crop_px) if p.layout == "NCHW" else (*p.crop_px, 3)
    for wrong in (
        *_differences(backend.inputs[0], image),
        *_differences(next(t for t in backend.outputs if t.name == backend.output_name), (spec.num_classes,)),
    ):
        backend.close()
        raise BundleError(
            f"{backend.name} opened another network than the manifest describes: {wrong}", where=bundle.path
        )


def _differences(tensor: TensorSpec, wanted: tuple[int, ...]) -> Iterator[str]:
    sizes = tensor.shape[1:]
    if len(sizes) != len(wanted) or any(have not in (None, want) for have, want in zip(sizes, wanted, strict=True)):
        yield f"{tensor.name} is {tensor}, not (N, {', '.join(map(str, wanted))})"
