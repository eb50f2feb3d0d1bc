"""One pass over the calibration images: ONNX Runtime computes, sketches count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
from onnx import TensorProto, helper

from edgeres.calibrate.record import Calibration
from edgeres.calibrate.sketch import Sketch
from edgeres.data.loader import Loader
from edgeres.errors import ModelError
from edgeres.progress import SILENT, Progress
from edgeres.runtime.ort import OrtRunner


def observe(model: onnx.ModelProto, tensors: Sequence[str], loader: Loader, progress: Progress = SILENT) -> Calibration:
    """Run every image once and sketch the named tensors.

    Args:
        model: a canonical graph; it is not changed.
        tensors: names of float32 tensors of the graph, its input among them or not.

    Raises:
        SourceError: images cannot be read.
        ModelError: a tensor holds infinite or undefined values; names it.
    """
    graph_input = model.graph.input[0].name
    sketches = {name: Sketch() for name in tensors}
    seen = 0
    with (
        OrtRunner(with_outputs(model, (name for name in tensors if name != graph_input))) as runner,
        progress.task("calibrating", total=len(loader.source)) as advance,
    ):
        for batch in loader:
            found = runner.infer({graph_input: batch.inputs}) | {graph_input: batch.inputs}
            for name, sketch in sketches.items():
                try:
                    sketch.add(found[name])
                except ValueError as error:
                    raise ModelError(f"{error} on a calibration image", where=f"tensor {name}") from error
            seen += len(batch.inputs)
            advance(len(batch.inputs))
    return Calibration(sketches, seen, loader.source.description, loader.source.digest(), loader.preprocess)


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> bytes:
    """The serialized graph with further tensors among its outputs."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    present = {value.name for value in tapped.graph.output}
    tapped.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in present
    )
    serialized: bytes = tapped.SerializeToString()
    return serialized
