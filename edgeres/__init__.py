"""edgeres: a trained ResNet in, a verified INT8 engine out.

Names are imported on first use, so that ``import edgeres`` costs nothing and needs no torch.

    >>> import edgeres
    >>> result = edgeres.build("resnet18")                # doctest: +SKIP
    >>> classify = edgeres.load(result.path)              # doctest: +SKIP
    >>> classify(image).label                             # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgeres._version import __version__

# ONNX Runtime reads this when it is imported, and sends telemetry to its vendor where it is not set. Every module and
# every process of edgeres passes here first, and child processes inherit it. A value that the user set is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from edgeres.pipeline.build import build
    from edgeres.pipeline.options import BuildOptions
    from edgeres.pipeline.python import bench_bundle, compare_bundles, quantize_model, verify_bundle
    from edgeres.pipeline.results import BuildResult, VerifyResult
    from edgeres.runtime import Classifier
    from edgeres.task.load import load

_WHERE = {
    "build": "edgeres.pipeline.build",
    "BuildOptions": "edgeres.pipeline.options",
    "BuildResult": "edgeres.pipeline.results",
    "Classifier": "edgeres.runtime",
    "VerifyResult": "edgeres.pipeline.results",
    "bench_bundle": "edgeres.pipeline.python",
    "compare_bundles": "edgeres.pipeline.python",
    "load": "edgeres.task.load",
    "quantize_model": "edgeres.pipeline.python",
    "verify_bundle": "edgeres.pipeline.python",
}

__all__ = [
    "BuildOptions",
    "BuildResult",
    "Classifier",
    "VerifyResult",
    "__version__",
    "bench_bundle",
    "build",
    "compare_bundles",
    "load",
    "quantize_model",
    "verify_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'edgeres' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
