"""A torch module -> the canonical FP32 ONNX graph, with parity checked.

The TorchScript-based exporter at opset 17 is used on purpose: every torch from 2.1 on has it, JetPack's included, it is
several times faster than the graph-capturing one on residual networks, and TensorRT from 8.6 on parses what it writes.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from edgeres.errors import ModelError
from edgeres.graph.normalize import OPSET, Canonical, normalize
from edgeres.records import ModelSpec

# Float32 rounding through a hundred layers stays well below this share of the largest logit; a wrong graph does not.
PARITY_LIMIT = 1e-3


@dataclass(frozen=True)
class Exported:
    """An exported graph.

    Attributes:
        canonical: the graph and what was found about it.
        max_error: largest absolute difference to torch over the logits of the check images, in logits.
        relative_error: the same as a share of the largest logit.
    """

    canonical: Canonical
    max_error: float
    relative_error: float

    @property
    def model(self) -> onnx.ModelProto:
        return self.canonical.model


def export(module: torch.nn.Module, spec: ModelSpec) -> Exported:
    """Export a classifier in eval mode.

    Args:
        module: takes (N, 3, H, W) float32 of ``spec.preprocess.crop_px`` and gives (N, classes).

    Raises:
        ModelError: torch cannot trace the module, or the graph's logits differ from torch's by more than
            ``PARITY_LIMIT`` of the largest one.
    """
    height, width = spec.preprocess.crop_px
    module = module.eval()
    example = torch.zeros(1, 3, height, width)
    buffer: Any = io.BytesIO()  # the exporter takes streams, its annotation does not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module,
                (example,),
                buffer,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                dynamo=False,
            )
        except Exception as error:  # tracing runs the user's own forward: anything can come out of it
            raise ModelError(
                f"torch cannot export this module ({str(error).strip()[:160]})", where=spec.name
            ) from error
    canonical = normalize(onnx.load_from_string(buffer.getvalue()), where=spec.name)
    worst, share = _parity(module, canonical.model, (height, width))
    if not share <= PARITY_LIMIT:
        raise ModelError(f"ONNX and torch differ by {share:.1e} of the largest logit", where=spec.name)
    return Exported(canonical, worst, share)


def _parity(module: torch.nn.Module, model: onnx.ModelProto, size: tuple[int, int]) -> tuple[float, float]:
    """Largest difference on four random images, absolute and as a share of the largest logit."""
    import onnxruntime as ort

    images = np.random.default_rng(0).standard_normal((4, 3, *size)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input": images})[0]
    worst = float(np.abs(expected - got).max())
    return worst, worst / max(float(np.abs(expected).max()), 1e-12)
