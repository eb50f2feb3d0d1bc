"""Writes, beside each graph that engines are built from, the same network with prepared bytes as its input."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeres.bundle import FP32, bytes_file
from edgeres.errors import ModelError, why_left_out
from edgeres.files import write_file
from edgeres.progress import SILENT, Progress
from edgeres.records import FormRecord, Preprocess
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.probes import exact_bytes

if TYPE_CHECKING:
    from edgeres.quantize.trial import Probes

# Only the affine line of a normalization is rounded otherwise, so that a code may fall the other way.
_LESS_DB = 1.0
_MOST_DB = 60.0


def write_byte_graphs(
    folder: Path, forms: Iterable[FormRecord], p: Preprocess, probes: Probes, progress: Progress = SILENT
) -> None:
    """Write those, of FP32 and of the forms for engines, that are as near to FP32 as the graph beside them.

    They read their weights from that graph, or from where it does. Engines of a graph without one take float32.

    Args:
        probes: the first images that the forms' SQNRs were measured on.
    """
    pixels = exact_bytes(probes.images, p)
    if pixels is None:
        progress.say("engines will take float32: the network's inputs are not of bytes")
        return
    known = {form.file: form.sqnr_db for form in forms if set(form.runtimes) != {"onnxruntime"}}
    for file, own_db in {FP32: None, **known}.items():
        path = folder / bytes_file(file)
        try:
            write_file(path, _written(folder / file, p))
            with OrtRunner(path, integer=False) as runner:
                noise = probes.noise(runner.infer({runner.input_name: pixels})[runner.output_name])
            least = _MOST_DB if own_db is None else min(own_db - _LESS_DB, _MOST_DB)
            if not noise <= 10 ** (-least / 10):
                found = f"{-10 * np.log10(noise):.1f} dB SQNR against FP32's, and {least:.1f} dB were expected"
                raise ModelError(f"the scores for bytes have {found}")
        except Exception as error:  # whatever is wrong with one graph must not end the others
            path.unlink(missing_ok=True)
            progress.say(f"engines of {file} will take float32: {why_left_out(error)}")


def _written(path: Path, p: Preprocess) -> bytes:
    import onnx

    from edgeres.graph.frame import with_bytes
    from edgeres.graph.shared_weights import share_weights

    stored = onnx.load(path, load_external_data=False).graph.initializer
    others = {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"}
    made = with_bytes(onnx.load(path), p)
    share_weights(made, {name: (path.parent / name).read_bytes() for name in (path.name, *sorted(others))})
    return bytes(made.SerializeToString())
