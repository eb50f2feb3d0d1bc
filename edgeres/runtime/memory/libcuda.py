"""CUDA's driver library through ctypes: what every NVIDIA driver brings, so running an engine needs no package for it.

The calls have the form of cuda-python's: each returns a tuple of its status and its results. So the memory contract in
:mod:`edgeres.runtime.memory.driver` is the same code on both.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from types import SimpleNamespace
from typing import Any

from edgeres.errors import EngineError
from edgeres.runtime.memory.driver import DriverDevice

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# Each call's symbol and parameters as cuda.h declares them; a pointer to a type receives a result. Symbols without
# ``_v2`` are in every driver from CUDA 11.4 on: cuEventElapsedTime_v2 came with 12.8, and JetPack 6 has 12.6.
PROTOTYPES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "cuInit": ("cuInit", (c_uint,)),
    "cuDriverGetVersion": ("cuDriverGetVersion", (POINTER(c_int),)),
    "cuGetErrorString": ("cuGetErrorString", (c_int, POINTER(c_char_p))),
    "cuDeviceGet": ("cuDeviceGet", (POINTER(c_int), c_int)),
    "cuDeviceGetAttribute": ("cuDeviceGetAttribute", (POINTER(c_int), c_int, c_int)),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", (POINTER(c_void_p), c_int)),
    "cuDevicePrimaryCtxSetFlags": ("cuDevicePrimaryCtxSetFlags_v2", (c_int, c_uint)),
    "cuCtxPushCurrent": ("cuCtxPushCurrent_v2", (c_void_p,)),
    "cuCtxPopCurrent": ("cuCtxPopCurrent_v2", (POINTER(c_void_p),)),
    "cuMemAlloc": ("cuMemAlloc_v2", (POINTER(c_uint64), c_size_t)),
    "cuMemFree": ("cuMemFree_v2", (c_uint64,)),
    "cuMemHostAlloc": ("cuMemHostAlloc", (POINTER(c_void_p), c_size_t, c_uint)),
    "cuMemHostGetDevicePointer": ("cuMemHostGetDevicePointer_v2", (POINTER(c_uint64), c_void_p, c_uint)),
    "cuMemFreeHost": ("cuMemFreeHost", (c_void_p,)),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", (c_uint64, c_void_p, c_size_t, c_void_p)),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", (c_void_p, c_uint64, c_size_t, c_void_p)),
    "cuStreamCreate": ("cuStreamCreate", (POINTER(c_void_p), c_uint)),
    "cuStreamSynchronize": ("cuStreamSynchronize", (c_void_p,)),
    "cuStreamBeginCapture": ("cuStreamBeginCapture_v2", (c_void_p, c_int)),
    "cuStreamEndCapture": ("cuStreamEndCapture", (c_void_p, POINTER(c_void_p))),
    "cuStreamDestroy": ("cuStreamDestroy_v2", (c_void_p,)),
    "cuEventCreate": ("cuEventCreate", (POINTER(c_void_p), c_uint)),
    "cuEventRecord": ("cuEventRecord", (c_void_p, c_void_p)),
    "cuEventElapsedTime": ("cuEventElapsedTime", (POINTER(c_float), c_void_p, c_void_p)),
    "cuEventDestroy": ("cuEventDestroy_v2", (c_void_p,)),
    "cuGraphInstantiate": ("cuGraphInstantiateWithFlags", (POINTER(c_void_p), c_void_p, c_uint64)),
    "cuGraphLaunch": ("cuGraphLaunch", (c_void_p, c_void_p)),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", (c_void_p,)),
    "cuGraphDestroy": ("cuGraphDestroy", (c_void_p,)),
}
NAME_PROTOTYPE = ("cuDeviceGetName", (c_char_p, c_int, c_int))


@cache
def device(index: int = 0) -> DriverDevice:
    """The GPU of this number; one object in a process.

    Raises:
        EngineError: there is no driver, it is older than CUDA 11.4, or there is no such GPU.
    """
    cuda = LibCuda(_library())
    version = cuda.cuDriverGetVersion()[1]
    return DriverDevice(cuda, f"CUDA driver {version // 1000}.{version % 1000 // 10}", index)


class LibCuda:
    """The driver's calls in the form of ``cuda.bindings.driver``, with the constants that go with them.

    Args:
        library: the loaded driver.

    Raises:
        EngineError: the driver lacks a call.
    """

    CU_MEMHOSTALLOC_DEVICEMAP = 2
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DEFAULT=0)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUctx_flags = SimpleNamespace(CU_CTX_SCHED_SPIN=1, CU_CTX_SCHED_BLOCKING_SYNC=4)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_INTEGRATED=18,
        CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY=19,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
    )

    def __init__(self, library: Any) -> None:
        self._get_name = _function(library, *NAME_PROTOTYPE)
        for name, (symbol, parameters) in PROTOTYPES.items():
            setattr(self, name, _call(name, _function(library, symbol, parameters), parameters))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the driver is not asked for {name}")  # all calls are set in __init__

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:
        text = ctypes.create_string_buffer(length)
        return int(self._get_name(text, length, device)), text.raw


def _library() -> Any:
    try:
        return ctypes.CDLL(_DRIVER)  # its calls release Python's global lock
    except OSError as error:
        raise EngineError(f"no NVIDIA driver ({error})", hint="see: edgeres doctor") from error


def _function(library: Any, symbol: str, parameters: tuple[Any, ...]) -> Any:
    try:
        function = library[symbol]
    except AttributeError as error:
        what = f"the NVIDIA driver has no {symbol}, so it is older than CUDA 11.4"
        raise EngineError(what, hint="install a newer driver") from error
    function.argtypes, function.restype = parameters, c_int
    return function


def _call(name: str, function: Any, parameters: tuple[Any, ...]) -> Callable[..., tuple[Any, ...]]:
    """A driver function that returns its status and its results; a handle is a number, 0 where there is none."""
    places = [index for index, kind in enumerate(parameters) if hasattr(kind, "contents")]
    kinds = [parameters[index]._type_ for index in places]
    expected = len(parameters) - len(places)

    def call(*given: Any) -> tuple[Any, ...]:
        if len(given) != expected:
            raise TypeError(f"{name} takes {expected} arguments, found {len(given)}")
        results = [kind() for kind in kinds]
        arguments = list(given)
        for place, result in zip(places, results, strict=True):
            arguments.insert(place, ctypes.byref(result))
        status = int(function(*arguments))
        return (status, *(_value(result) for result in results))

    call.__name__ = name
    return call


def _value(result: Any) -> Any:
    return result.value or 0 if isinstance(result, c_void_p) else result.value
