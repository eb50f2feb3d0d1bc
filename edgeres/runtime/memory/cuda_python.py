"""CUDA's driver calls through cuda-python 12 or 13, where ``EDGERES_CUDA=cuda-python`` asks for it."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from edgeres.errors import EngineError, needs
from edgeres.runtime.memory.driver import DriverDevice


@cache
def device(index: int = 0) -> DriverDevice:
    """The GPU of this number; one object in a process.

    Raises:
        EnvironmentError_: cuda-python is not installed.
        EngineError: there is no driver, or no such GPU.
    """
    cuda = _driver()
    return DriverDevice(cuda, f"cuda-python ({cuda.__name__})", index)


def _driver() -> Any:
    """``cuda.bindings.driver``; releases before 12.6.1 call it ``cuda.cuda``."""
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            raise EngineError(f"cuda-python is installed but does not load ({error})") from error
    raise needs("cuda", "cuda-python")
