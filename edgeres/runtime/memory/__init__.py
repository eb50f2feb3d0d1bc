"""GPU memory, streams, events and CUDA graphs behind one contract: on the driver itself, cuda-python or pycuda.

``with device.active():`` makes the GPU's context current in the calling thread. Everything else here is called inside
such a block, in the same thread. The block restores the thread's stack of CUDA contexts, so it does not disturb an
application's own pycuda or CUDA code, whichever thread calls.

A :class:`Buffer` is the memory of one tensor. On a GPU with its own memory it is page-locked host memory and device
memory with copies between them. On a Jetson both are the same bytes, mapped for the GPU, and nothing is copied. NVIDIA
recommends mapped memory there for data that is read or written once, as a network's input and output are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec

from edgeres.errors import UsageError
from edgeres.runtime.memory.contract import Buffer, CudaGraph, Device, Event, Stream

__all__ = ["LIBRARY", "Buffer", "CudaGraph", "Device", "Event", "Stream", "default_device", "is_there"]

LIBRARY = "EDGERES_CUDA"


def default_device(index: int = 0) -> Device:
    """The GPU: through pycuda where the thread is inside a pycuda context, else through the driver itself.

    ``EDGERES_CUDA`` names another library where no pycuda context is current: ``cuda-python`` or ``pycuda``.

    Raises:
        EnvironmentError_: the library that was asked for is not installed.
        EngineError: there is no driver or no such GPU.
        UsageError: ``EDGERES_CUDA`` names no library.
    """
    from edgeres.runtime.memory import cuda_python, libcuda, pycuda

    libraries: dict[str, Callable[[int], Device]] = {
        "driver": libcuda.device,
        "cuda-python": cuda_python.device,
        "pycuda": pycuda.PyCuda,
    }
    said = os.environ.get(LIBRARY) or "driver"
    if said not in libraries:
        raise UsageError(f"{LIBRARY} is {said!r}", hint=f"give {', '.join(libraries)}, or unset it")
    return pycuda.PyCuda(index) if pycuda.inside_context() else libraries[said](index)


def is_there(module: str) -> bool:
    """Whether this module is installed."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
