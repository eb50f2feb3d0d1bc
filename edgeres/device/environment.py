"""Versions of packages and the machine of a run, for manifests and reports."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from edgeres._version import __version__
from edgeres.device.cpu import this_cpu

_PACKAGES = ("numpy", "pillow", "onnxruntime", "onnx", "torch", "tensorrt", "tensorrt-rtx-cu13")


def environment() -> dict[str, str]:
    """Versions by name; no package is imported."""
    found = {
        "edgeres": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": this_cpu().model,
    }
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
