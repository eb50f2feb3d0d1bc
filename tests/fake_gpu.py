"""A machine with a simulated GPU: CUDA's driver in C and Python, pycuda and TensorRT in place of the real ones.

:mod:`fake_hardware` has the rules that it enforces, and each vendor's library a module of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fake_builder import KERNELS_MS, VERSIONS, Planted, plan
from fake_driver import CudaLibrary, CudaModule
from fake_hardware import DOWNLOAD_MS, GARBAGE, UPLOAD_MS, Fault, Gpu
from fake_pycuda import pycuda_module
from fake_tensorrt import tensorrt_module

from edgeres.device import libraries
from edgeres.device.gpu import Gpu as FoundGpu
from edgeres.engine import preflight
from edgeres.runtime.memory import LIBRARY, cuda_python, libcuda, pycuda
from edgeres.verify import latency

__all__ = [
    "DOWNLOAD_MS",
    "GARBAGE",
    "KERNELS_MS",
    "UPLOAD_MS",
    "VERSIONS",
    "CudaLibrary",
    "CudaModule",
    "Fault",
    "Gpu",
    "Planted",
    "installed",
    "machine",
    "plan",
    "tensorrt_module",
]


@contextmanager
def installed(monkeypatch: Any, gpu: Gpu, library: str, flavour: str) -> Iterator[Any]:
    """Install a simulated memory library and the vendor's package for this GPU; yields the library.

    Args:
        library: ``driver`` (libcuda.so.1 through ctypes), ``cuda-python`` or ``pycuda``; asked for by EDGERES_CUDA.
    """
    caches = (libcuda.device, cuda_python.device, pycuda._primary_context, libraries.vendor_log)
    with monkeypatch.context() as patch:
        module: Any = pycuda_module(gpu) if library == "pycuda" else CudaModule(gpu)
        patch.setenv(LIBRARY, library)
        for name in ("cuda.bindings.driver", "cuda.cuda", "pycuda.driver"):  # the real ones, where they are installed
            patch.setitem(sys.modules, name, None)
        if library == "driver":
            patch.setattr(libcuda, "_library", lambda: CudaLibrary(module))
        else:
            for name in ("pycuda",) if library == "pycuda" else ("cuda", "cuda.bindings"):
                patch.setitem(sys.modules, name, ModuleType(name))
            patch.setitem(sys.modules, module.__name__, module)
        trt = tensorrt_module(gpu, flavour)
        patch.setitem(sys.modules, trt.__name__, trt)
        for cache in caches:
            cache.cache_clear()
        try:
            yield module
        finally:
            for cache in caches:  # also where a test failed: the next one must not find this GPU
                cache.cache_clear()


@contextmanager
def machine(
    monkeypatch: Any, gpu: Gpu, library: str = "driver", flavours: Any = ("tensorrt",), cache: Path | None = None
) -> Iterator[None]:
    """A machine with this GPU, as all of edgeres sees it: its packages, and latencies by the GPU's own clock.

    Args:
        cache: the folder in place of the user's cache; None: the user's.

    Raises:
        AssertionError: the GPU was misused, or something on it was not freed.
    """
    major, minor = gpu.sm
    found = FoundGpu("Fake GPU", f"{major}.{minor}", gpu.memory, "12.6")
    with ExitStack() as stack:
        patch = stack.enter_context(monkeypatch.context())
        for name in ("EDGERES_CACHE", "XDG_CACHE_HOME") if cache else ():
            patch.setenv(name, str(cache))
        for flavour in ("tensorrt", "rtx"):
            if flavour in flavours:
                stack.enter_context(installed(monkeypatch, gpu, library, flavour))
            else:
                patch.setitem(sys.modules, libraries.MODULES[flavour], None)
        for module in (libraries, preflight):
            patch.setattr(module, "this_gpu", lambda: (found, ""))
        patch.setattr(latency, "perf_counter", lambda: gpu.clock_ms / 1e3)
        yield
    assert (gpu.faults, gpu.live(), gpu.stack) == ([], [], [])
