"""Versions of packages and the machine of a run, for manifests and reports."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

from edgeres._version import __version__
from edgeres.device.cpu import this_cpu
from edgeres.errors import UsageError

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


def recorded_time() -> str:
    """The time for a document, in ISO 8601 with its zone: now, or ``SOURCE_DATE_EPOCH`` where that is set.

    Raises:
        UsageError: ``SOURCE_DATE_EPOCH`` is no count of seconds.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if not given:
        return datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        return datetime.fromtimestamp(int(given), timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        hint = "give seconds since 1970, as from git log -1 --format=%ct, or unset it"
        raise UsageError(f"is no count of seconds: {given:.40}", where="SOURCE_DATE_EPOCH", hint=hint) from None
