"""GPU memory, streams and graphs behind one small contract, on cuda-python or on pycuda.

A thread makes the GPU its own for a while with ``with device.active():``. Everything else here is called inside that
block, in the same thread. The block leaves the thread's stack of CUDA contexts as it found it, so a robot's own pycuda
or CUDA code beside it notices nothing, in whatever thread a callback arrives.

A :class:`Buffer` is one tensor, seen by both sides. On a GPU with its own memory that is page-locked host memory and
device memory with copies between them; on a Jetson both are the same bytes, mapped for the GPU, and the copies are
nothing. NVIDIA advises mapped memory there for what is read or written once, as a network's input and output are.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from edgeres.errors import EnvironmentError_
from edgeres.runtime.memory.contract import Buffer, CudaGraph, Device, Event, Stream

__all__ = ["Buffer", "CudaGraph", "Device", "Event", "Stream", "default_device"]


def default_device(index: int = 0) -> Device:
    """The GPU through the library at hand: pycuda where the thread is inside a pycuda context, else cuda-python first.

    Raises:
        EnvironmentError_: neither library is installed.
        EngineError: there is no driver or no such GPU.
    """
    from edgeres.runtime.memory import cuda_python, pycuda

    if pycuda.inside_context():
        return pycuda.device(index)
    if _is_there("cuda.bindings.driver") or _is_there("cuda.cuda"):
        return cuda_python.device(index)
    if _is_there("pycuda.driver"):
        return pycuda.device(index)
    what = "running an engine needs cuda-python or pycuda, and neither is installed"
    raise EnvironmentError_(what, hint="pip install 'edgeres[cuda]'")


def _is_there(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False
