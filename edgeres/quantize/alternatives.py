"""Further forms of a network for engines, of which a device's own clock picks one.

Each is written from what the default form was written from: no image is read again. Each is loaded and compared with
FP32 on the probe images before it is written; one that fails is left out, and the others are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from edgeres.bundle import FP16
from edgeres.errors import why_left_out
from edgeres.graph.half import to_fp16
from edgeres.progress import SILENT, Progress
from edgeres.quantize.trial import Probes, Tried, compared
from edgeres.records import FormRecord


@dataclass(frozen=True)
class Material:
    """What forms are written from: the canonical FP32 graph."""

    fp32: ModelProto


@dataclass(frozen=True)
class Alternative:
    """A form besides the default one: how the manifest describes it, and what writes it.

    Attributes:
        noise: of the scores on the probe images, as a share of their power, that is no fault of the form.
    """

    record: FormRecord
    write: Callable[[], ModelProto]
    noise: float


# float16 has 11 bits, INT8 has 8 and keeps 20 dB on any network that is of use.
_FP16_NOISE = 1e-2
_HALF = FormRecord("fp16", FP16, ("tensorrt", "rtx"), "fp16", None, "float16", "float16 from the image to the scores")


def alternatives(material: Material) -> Iterator[Alternative]:
    """Every form besides the default ones that a bundle may hold, the most useful ones first."""
    yield Alternative(_HALF, lambda: to_fp16(material.fp32), _FP16_NOISE)


def try_alternatives(found: Sequence[Alternative], probes: Probes, progress: Progress = SILENT) -> Tried:
    """Write each, load it and compare it; each that fails is left out with a line."""
    graphs: dict[str, ModelProto] = {}
    figures: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for form in found:
        name = form.record.name
        try:
            graph = form.write()
            figures[name] = compared(graph, probes, form.noise)
            graphs[name] = graph
        except Exception as error:  # whatever is wrong with one form must not end the others
            left_out[name] = why_left_out(error)
            progress.say(f"{form.record.file} is left out: {left_out[name]}")
    return Tried(graphs, figures, left_out)
