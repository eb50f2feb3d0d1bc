"""The vendor's Python packages: ``tensorrt`` 10.3 to 11.x and ``tensorrt_rtx``, which have nearly the same API.

This is the only module that imports them and checks their versions. Code that depends on a difference between them
looks at what the module that :func:`load` returns has.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from edgeres.device.gpu import Gpu, this_gpu
from edgeres.device.jetpack import Interpreter, why_missing
from edgeres.device.targets import RTX_COMPUTE_CAPABILITIES, Flavour
from edgeres.errors import EngineError

MODULES: dict[Flavour, str] = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
# TensorRT-RTX 1.5 and 1.6 stop at INT8 convolutions.
OLDEST: dict[Flavour, tuple[int, int]] = {"rtx": (1, 7), "tensorrt": (10, 3)}
_LOG_LINES = 10_000
_INSTALL: dict[Flavour, str] = {
    "rtx": "pip install 'edgeres[rtx]'",
    "tensorrt": "on a Jetson: sudo apt install python3-libnvinfer, in a virtual environment made with"
    " --system-site-packages; elsewhere: pip install 'edgeres[tensorrt]'",
}


@dataclass(frozen=True)
class Availability:
    """What one package can do on this machine.

    Attributes:
        importable: whether the package and its shared libraries load, and are new enough.
        version: of the package; None where it does not load.
        gpu: the GPU of this machine; None without one.
        reason: what is missing to build and run engines here; "" where nothing is missing.
        next_step: how to get it; "" where nothing is missing or nothing can be done.
    """

    flavour: Flavour
    importable: bool
    version: str | None
    gpu: Gpu | None
    reason: str = ""
    next_step: str = ""

    @property
    def can_build(self) -> bool:
        """Whether engines can be built here: TensorRT times kernels on the GPU, RTX compiles without one."""
        return self.importable and (self.flavour == "rtx" or self.gpu is not None)

    @property
    def can_run(self) -> bool:
        return self.importable and self.gpu is not None and not self.reason


def load(flavour: Flavour) -> ModuleType:
    """The vendor's module.

    Raises:
        EngineError: it is not installed, its shared libraries do not load, or it is too old.
    """
    name = MODULES[flavour]
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        other = error.name and error.name.split(".")[0] != name
        found = f"is incomplete: it needs {error.name}" if other else "is not installed"
        raise _not_loaded(flavour, f"{name} {found}") from error
    except (ImportError, OSError, RuntimeError) as error:  # what a missing or mismatched shared library raises
        raise _not_loaded(flavour, f"{name} is installed but does not load ({error})") from error
    version = getattr(module, "__version__", None)
    if version is None:  # an empty folder, and what is left of a stub
        raise _not_loaded(flavour, f"{name} is installed but empty")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST[flavour]:
        wanted = ".".join(map(str, OLDEST[flavour]))
        raise EngineError(f"{name} {version} is older than {wanted}, which edgeres needs", hint=_INSTALL[flavour])
    return module


def _not_loaded(flavour: Flavour, what: str) -> EngineError:
    """The error for a package that does not load, with what is known of the system's TensorRT."""
    case = why_missing(Interpreter.this()) if flavour == "tensorrt" else None
    if case is None:
        return EngineError(what, hint=_INSTALL[flavour])
    return EngineError(f"{what}: {case[0]}", hint=case[1])


def available(flavour: Flavour) -> Availability:
    """Whether engines for this package can be built and run on this machine. It raises nothing."""
    gpu, why = this_gpu()
    try:
        version = str(load(flavour).__version__)
    except EngineError as error:
        return Availability(flavour, False, None, gpu, error.what, error.hint or "")
    if gpu is None:
        return Availability(flavour, True, version, None, why, "install the NVIDIA driver where there is a GPU")
    if flavour == "rtx" and gpu.sm not in RTX_COMPUTE_CAPABILITIES:
        supported = ", ".join(RTX_COMPUTE_CAPABILITIES)
        reason = f"TensorRT-RTX does not run on {gpu.name} (SM {gpu.sm}), only on SM {supported}"
        return Availability(flavour, True, version, gpu, reason, "use TensorRT on this GPU: --target tensorrt")
    return Availability(flavour, True, version, gpu)


@dataclass(frozen=True)
class VendorLog:
    """The vendor's log: ``logger`` is passed to its API and fills ``lines`` (``[W] ...``); nothing goes to stderr."""

    logger: Any
    lines: deque[str]


@cache
def vendor_log(flavour: Flavour) -> VendorLog:
    """The package's log; one per process, because TensorRT keeps using the first logger that it gets."""
    trt: Any = load(flavour)
    lines: deque[str] = deque(maxlen=_LOG_LINES)
    severity = trt.ILogger.Severity
    letters = {severity.INTERNAL_ERROR: "F", severity.ERROR: "E", severity.WARNING: "W", severity.INFO: "I"}

    class LineLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in letters:  # VERBOSE is thousands of lines
                lines.append(f"[{letters[severity]}] {message}")

    return VendorLog(LineLogger(), lines)
