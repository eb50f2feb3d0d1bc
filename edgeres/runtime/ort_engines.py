"""ONNX Runtime's providers that build engines from a graph: TensorRT's, and the plugin of TensorRT-RTX.

TensorRT's provider is part of onnxruntime-gpu and of NVIDIA's wheels for Jetsons. TensorRT-RTX's is a package of its
own, a library that is registered with ONNX Runtime. Options are named as in their documentation. Both keep what they
built; TensorRT's names an engine by its graph's operators, not by its weights, so every graph has a folder of its own.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from edgeres.device.targets import Flavour
from edgeres.errors import EngineError
from edgeres.files import make_folder
from edgeres.runtime.runner import TensorSpec

_TENSORRT = "TensorrtExecutionProvider"
_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_NO_TENSORRT = (
    "pip install onnxruntime-gpu in place of onnxruntime; on a Jetson NVIDIA's wheel of it;"
    " or backend='tensorrt' with an engine: edgeres engine BUNDLE"
)


@dataclass(frozen=True)
class EngineProvider:
    """One of these providers.

    Attributes:
        runtime: whose engines it builds.
        half: whether what is not in codes is float16 in the graph, which TensorRT must be allowed to compute in.
        cache: folder for the engines of this one graph, made where it is missing; None: built at each start.
        max_batch: largest batch of the engine.
    """

    runtime: Flavour
    half: bool = False
    cache: Path | None = None
    max_batch: int = 8

    def folder(self, version: str) -> str | None:
        """The folder for what this version of ONNX Runtime builds; None: it cannot be written, or none is wanted."""
        if self.cache is None:
            return None
        with suppress(OSError):
            make_folder(self.cache / version)
            return str(self.cache / version)
        return None

    def shapes(self, tensor: TensorSpec, words: str) -> dict[str, str]:
        """The option names and values of batches from 1 to the largest; ``words`` is how the names begin."""
        if tensor.shape[0] is not None:
            return {}
        rest = "x".join(str(size) for size in tensor.shape[1:])
        sizes = {"min": 1, "opt": 1, "max": self.max_batch}
        return {f"{words}_{name}_shapes": f"{tensor.name}:{size}x{rest}" for name, size in sizes.items()}


def tensorrt_providers(ort: Any, provider: EngineProvider, gpu: int, tensor: TensorSpec) -> list[Any]:
    """TensorRT's provider with its options, and those for what it leaves over.

    Raises:
        EngineError: this ONNX Runtime does not have it.
    """
    available = ort.get_available_providers()
    if _TENSORRT not in available:
        raise EngineError(f"this ONNX Runtime has no {_TENSORRT}", hint=_NO_TENSORRT)
    options: dict[str, Any] = {"device_id": gpu, "trt_int8_enable": True, "trt_fp16_enable": provider.half}
    folder = provider.folder(str(ort.__version__))
    if folder is not None:
        kept = {"trt_engine_cache": folder, "trt_timing_cache": folder}
        for name, path in kept.items():
            options |= {f"{name}_enable": True, f"{name}_path": path}
    options |= provider.shapes(tensor, "trt_profile")
    rest = [("CUDAExecutionProvider", {"device_id": gpu})] if "CUDAExecutionProvider" in available else []
    return [(_TENSORRT, options), *rest, "CPUExecutionProvider"]


def add_rtx(ort: Any, options: Any, provider: EngineProvider, gpu: int, tensor: TensorSpec) -> str:
    """Register TensorRT-RTX's plugin, and put it into the options of a session; returns its name.

    Raises:
        EngineError: it is not installed, does not load, or finds no such GPU.
    """
    try:
        plugin: Any = import_module(_PLUGIN)
    except ModuleNotFoundError as error:
        hint = "pip install onnxruntime-ep-nv-tensorrt-rtx, which needs ONNX Runtime 1.23 or later"
        raise EngineError(f"{_PLUGIN} is not installed", hint=hint) from error
    name = str(plugin.get_ep_name())
    if not hasattr(ort, "register_execution_provider_library"):
        raise EngineError(f"ONNX Runtime {ort.__version__} takes no plugins", hint="pip install -U onnxruntime")
    if not _devices(ort, name):
        try:
            ort.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # an exception of ONNX Runtime's own, without a public class
            what = f"{_PLUGIN} does not load ({str(error).rpartition('with error: ')[2]})"
            raise EngineError(what, hint="see: edgeres doctor") from error
    devices = _devices(ort, name)
    if gpu >= len(devices):
        raise EngineError(f"{name} finds no GPU {gpu} that it runs on", hint="see: edgeres doctor")
    folder = provider.folder(str(ort.__version__))
    given = provider.shapes(tensor, "nv_profile") | ({} if folder is None else {"nv_runtime_cache_path": folder})
    options.add_provider_for_devices([devices[gpu]], given)
    return name


def _devices(ort: Any, name: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == name]
