"""Graphs that take a camera's frame, for engines: written from a form of the network, and tried before a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeres.data.preprocess import geometry
from edgeres.errors import ModelError, needs
from edgeres.records import FrameSpec, Preprocess
from edgeres.runtime.frames import frame_from

if TYPE_CHECKING:
    from onnx import ModelProto


def frame_graph(model: ModelProto, p: Preprocess, frame: FrameSpec) -> ModelProto:
    """The network with this frame as its input, once its preprocessing gave the contract's bytes for a random frame.

    Raises:
        UsageError: this preprocessing cannot be put into a graph.
        ModelError: ONNX Runtime computes other bytes than the contract.
    """
    from edgeres.graph.frame import pixels_of, with_frame
    from edgeres.graph.probe import run_graph

    data = np.random.default_rng(0).integers(0, 256, frame.shape, np.uint8)
    (found,) = run_graph(pixels_of(p, frame), data[None], ["pixels"], where=str(frame))
    wrong = float((found[0] != geometry(frame_from(frame, data).rgb(), p)).mean())
    if wrong:
        what = f"the graph's preprocessing gives other bytes than the contract in {100 * wrong:.2g} % of a random frame"
        raise ModelError(what, where=str(frame), hint="this is a fault of edgeres or of Pillow's release: report it")
    return with_frame(model, p, frame)


def needs_onnx() -> None:
    """Raise where the package that writes graphs is missing.

    Raises:
        EnvironmentError_: onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ModuleNotFoundError as error:
        raise needs("export", "onnx") from error
