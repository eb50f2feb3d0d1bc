"""Small bundles, models and images for tests of files, commands and the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeres.bundle import new_bundle, seal
from edgeres.files import write_file
from edgeres.graph.forms import FORMS
from edgeres.records import Manifest, ModelSpec, Preprocess

CLASSES = ("ant", "bee", "cow", "dog", "elk", "fox")
SIDE = 8


def classifier(*, layout: str = "NCHW", softmax: bool = False, seed: int = 0) -> bytes:
    """Conv, ReLU, mean, Gemm on (batch, 3, 8, 8) float32 (or NHWC): "pixels" -> "scores" (batch, 6)."""
    rng = np.random.default_rng(seed)
    weights = {
        "conv_w": rng.standard_normal((4, 3, 3, 3)),
        "conv_b": rng.standard_normal(4),
        "fc_w": 3 * rng.standard_normal((len(CLASSES), 4)),
        "fc_b": rng.standard_normal(len(CLASSES)),
    }
    nodes = [helper.make_node("Transpose", ["pixels"], ["x"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []
    nodes += [
        helper.make_node("Conv", ["x" if nodes else "pixels", "conv_w", "conv_b"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "fc_w", "fc_b"], ["logits" if softmax else "scores"], transB=1),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=1))
    shape = ["n", 3, SIDE, SIDE] if layout == "NCHW" else ["n", SIDE, SIDE, 3]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(CLASSES)])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def spec(**changes: Any) -> ModelSpec:
    """The ModelSpec of the classifier above, with ``changes`` in its preprocessing."""
    output = changes.pop("output", "logits")
    return ModelSpec("tiny", Preprocess(crop_px=(SIDE, SIDE), **changes), CLASSES, output=output)


def write_bundle(
    path: Path, model: ModelSpec | None = None, files: Mapping[str, bytes] | None = None, **more: Any
) -> Path:
    """A sealed bundle with ``files``, by default the classifier as its graph for the CPU; ``more`` for its manifest."""
    with new_bundle(path) as folder:
        for name, content in (files or {FORMS["cpu"].file: classifier()}).items():
            write_file(folder / name, content)
        seal(folder, Manifest(model or spec(), {}, {}, {}, {}, **more))
    return path


def write_images(path: Path, count: int = 12, px: int = SIDE, classes: int = len(CLASSES), seed: int = 0) -> Path:
    """An .npz of noise."""
    rng = np.random.default_rng(seed)
    np.savez(path, images=rng.integers(0, 256, (count, px, px, 3), np.uint8), labels=np.arange(count) % classes)
    return path


def siblings(path: Path) -> set[str]:
    """All other files in the folder of a path."""
    return {p.name for p in path.parent.iterdir()} - {path.name}
