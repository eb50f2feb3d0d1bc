"""Counts kernels in what TensorRT's engine inspector says of an engine that was built with detailed profiling.

The inspector writes a list of layers, each with the layout and type of what it reads and writes, in two spellings:
``Thirty-two wide channel vectorized row major Int8 format`` up to TensorRT 9, ``Int8``, ``Half`` or ``Float`` since.
"""

from __future__ import annotations

import json
from typing import Any

from edgeres.records import KernelCounts

_FLOAT = ("half", "float", "fp16", "fp32", "tf32")
_MULTIPLIES = ("conv", "gemm", "matrixmultiply", "fullyconnected")
_COPIES = ("slice", "pad", "shuffle")
_NO_KERNELS = ("noop", "constant", "signal", "wait", "shapehosttodevice")


def count_kernels(text: str) -> KernelCounts | None:
    """The counts of an engine; None where the inspector lists names alone, or nothing that can be read."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    listed = found.get("Layers") if isinstance(found, dict) else found
    layers = [layer for layer in listed if isinstance(layer, dict)] if isinstance(listed, list) else []
    layers = [layer for layer in layers if str(layer.get("LayerType", "")).lower() not in _NO_KERNELS]
    if not layers:
        return None
    kinds = [_kind(layer) for layer in layers]
    names = ("convolution", "reformat", "slice", "float")
    return KernelCounts(len(kinds), *(kinds.count(name) for name in names))


def _kind(layer: dict[str, Any]) -> str:
    """What a layer counts as: ``convolution`` and ``float`` write FP32 or FP16, other layers count as nothing."""
    kind, name = str(layer.get("LayerType", "")).lower(), str(layer.get("Name", "")).lower()
    if "reformat" in kind:
        return "reformat"
    if any(word in kind for word in _COPIES) or (kind in ("kgen", "pointwisev2") and "slic" in name):
        return "slice"
    if not _writes_float(layer):
        return ""
    told = f"{kind} {layer.get('ParameterType', '')}".lower()
    return "convolution" if any(word in told for word in _MULTIPLIES) else "float"


def _writes_float(layer: dict[str, Any]) -> bool:
    outputs = [out for out in layer.get("Outputs") or () if isinstance(out, dict)]
    types = " ".join(str(out.get("Format/Datatype", out.get("Datatype", ""))) for out in outputs).lower()
    return any(word in types for word in _FLOAT)
