"""Export a torch module to the canonical FP32 ONNX graph and compare both.

The TorchScript-based exporter at opset 17 is used on purpose. Every torch from 2.1 on has it, also JetPack's; it is
several times faster on residual networks than the exporter that captures graphs; and TensorRT from 8.6 on parses what
it writes.
"""

from __future__ import annotations

import copy
import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from edgeres.device.cpu import usable_cores
from edgeres.errors import ModelError
from edgeres.graph.interface import Outputs
from edgeres.graph.normalize import OPSET, Canonical, normalize
from edgeres.records import F32, ModelSpec

# Float32 rounding in a hundred layers stays well below this share of the largest logit; a wrong graph is above it.
PARITY_LIMIT = 1e-3


@dataclass(frozen=True)
class Exported:
    """An exported graph.

    Attributes:
        canonical: the graph and facts about it.
        max_error: largest absolute difference to torch over the logits of the check images, in logits.
        relative_error: ``max_error`` as a share of the largest logit.
    """

    canonical: Canonical
    max_error: float
    relative_error: float

    @property
    def model(self) -> onnx.ModelProto:
        return self.canonical.model


def export(module: torch.nn.Module, spec: ModelSpec, outputs: Outputs = "scores") -> Exported:
    """Export a network in eval mode and float32; the module itself is not changed.

    Args:
        module: maps (N, C, H, W) float32 of ``spec.preprocess.crop_px`` to (N, classes), or (N, K) values.
        outputs: what the output has to be.

    Raises:
        ModelError: the module does not run, cannot be traced, does not return (N, classes), or the graph's logits
            differ from torch's by more than ``PARITY_LIMIT`` of the largest one.
    """
    images = (
        np.random.default_rng(0)
        .standard_normal((4, spec.preprocess.channels, *spec.preprocess.crop_px))
        .astype(np.float32)
    )
    try:
        network = copy.deepcopy(module).cpu().float().eval()
        with torch.inference_mode():
            expected = network(torch.from_numpy(images))
        if not isinstance(expected, torch.Tensor):
            hint = "wrap it in a module that gives the logits alone, (N, classes)"
            raise ModelError(f"the module gives a {type(expected).__name__}", where=spec.name, hint=hint)
        traced = _trace(network, images[:2].shape)  # with one image the exporter could squeeze the batch axis
    except ModelError:
        raise
    except Exception as error:  # the user's own forward runs here and may raise anything
        raise ModelError(f"torch cannot export this module ({str(error).strip()[:160]})", where=spec.name) from error
    canonical = normalize(onnx.load_from_string(traced), where=spec.name, outputs=outputs)
    worst = float(
        np.abs(
            expected.numpy().reshape(len(images), -1) - _logits(canonical.model, images).reshape(len(images), -1)
        ).max()
    )
    share = worst / max(float(expected.abs().max()), 1e-12)
    if not share <= PARITY_LIMIT:
        raise ModelError(f"ONNX and torch differ by {share:.1e} of the largest logit", where=spec.name)
    return Exported(canonical, worst, share)


def _trace(network: torch.nn.Module, shape: tuple[int, ...]) -> bytes:
    buffer: Any = io.BytesIO()  # the exporter accepts streams, but its annotation does not say so
    # The other exporter is the default from torch 2.9 on.
    options: dict[str, Any] = {"dynamo": False, "input_names": ["input"], "output_names": ["logits"]}
    options |= {"opset_version": OPSET, "dynamic_axes": {"input": {0: "batch"}, "logits": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros(shape),), buffer, **options)
    return bytes(buffer.getvalue())


def _logits(model: onnx.ModelProto, images: F32) -> F32:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits: F32 = session.run(None, {"input": images})[0]
    return logits
