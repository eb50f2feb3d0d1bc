"""GPU memory, streams, events and CUDA graphs behind one contract, on cuda-python or on pycuda.

``with device.active():`` makes the GPU's context current in the calling thread. Everything else here is called inside
such a block, in the same thread. The block restores the thread's stack of CUDA contexts, so it does not disturb an
application's own pycuda or CUDA code, whichever thread calls.

A :class:`Buffer` is the memory of one tensor. On a GPU with its own memory it is page-locked host memory and device
memory with copies between them. On a Jetson both are the same bytes, mapped for the GPU, and nothing is copied. NVIDIA
recommends mapped memory there for data that is read or written once, as a network's input and output are.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from edgeres.errors import EnvironmentError_
from edgeres.runtime.memory.contract import Buffer, CudaGraph, Device, Event, Stream

__all__ = ["Buffer", "CudaGraph", "Device", "Event", "Stream", "default_device", "is_there"]


def default_device(index: int = 0) -> Device:
    """The GPU, through pycuda where the thread is inside a pycuda context, else preferably through cuda-python.

    Raises:
        EnvironmentError_: neither library is installed.
        EngineError: there is no driver or no such GPU.
    """
    from edgeres.runtime.memory import cuda_python, pycuda

    if pycuda.inside_context():
        return pycuda.PyCuda(index)
    if is_there("cuda.bindings.driver") or is_there("cuda.cuda"):
        return cuda_python.device(index)
    if is_there("pycuda.driver"):
        return pycuda.PyCuda(index)
    what = "running an engine needs cuda-python or pycuda, and neither is installed"
    raise EnvironmentError_(what, hint="pip install 'edgeres[cuda]'")


def is_there(module: str) -> bool:
    """Whether this module is installed."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
