"""Finds the engines of a bundle that take frames: they run here, or their graphs do on the CPU as stand-ins."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgeres.data.preprocess import geometry
from edgeres.errors import EnvironmentError_
from edgeres.made import Made
from edgeres.pipeline.start import device_for, start, why_not_started
from edgeres.records import EngineRecord
from edgeres.runtime.frames import frame_from
from edgeres.runtime.memory import Device
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.runner import Runner
from edgeres.verify.candidates import FrameCandidate

_NO_ONNX = "its graph is not computed here either: onnx is not installed (pip install 'edgeres[export]')"


def frame_candidates(made: Made, *, engines: bool = True) -> tuple[tuple[FrameCandidate, ...], dict[str, str]]:
    """The engines that take frames, and why one is not compared, by its file.

    Args:
        engines: whether engines are started; otherwise their graphs run.
    """
    found, missing = [], {}
    can_write = importlib.util.find_spec("onnx") is not None
    for record in (one for one in made.engines if one.frame and one.file):
        graph = _graph_of(made, record)
        if graph is None:
            missing[str(record.file)] = "its graph is not in the bundle"
            continue
        device = _device_for(made, record) if engines else "engines are not run here"
        if isinstance(device, str) and not can_write:
            missing[str(record.file)] = f"{device}; {_NO_ONNX}"
            continue
        gpu = None if isinstance(device, str) else device
        found.append(_candidate(made, record, graph, gpu, can_write=can_write))
    return tuple(found), missing


def _graph_of(made: Made, record: EngineRecord) -> Path | None:
    """The graph that an engine was built from."""
    files = {form.name: form.file for form in made.manifest.forms}
    file = files.get(record.origin.form) or files.get(made.manifest.default_form.get(record.runtime, ""))
    return None if file is None or not (made.folder / file).is_file() else made.folder / file


def _device_for(made: Made, record: EngineRecord) -> Device | str:
    """The GPU on which an engine starts, or why it does not."""
    try:
        device = device_for("rtx" if record.runtime == "rtx" else "tensorrt")
    except EnvironmentError_ as error:
        return error.what
    return why_not_started(made, record, device) or device


def _candidate(
    made: Made, record: EngineRecord, graph: Path, device: Device | None, *, can_write: bool
) -> FrameCandidate:
    """The engine on this GPU; its graph where there is none."""
    frame, contract = record.frame, made.model.preprocess
    assert frame is not None

    def by_frame(threads: int) -> Runner:
        if device is not None:
            return start(made, record, device)
        from edgeres.graph.frame import with_frame
        from edgeres.graph.normalize import load_onnx

        model = with_frame(load_onnx(graph), contract, frame)
        return OrtRunner(model.SerializeToString(), threads=threads, integer=False)

    def pixels(threads: int) -> Runner:
        from edgeres.graph.frame import pixels_of

        return OrtRunner(pixels_of(contract, frame).SerializeToString(), threads=threads)

    return FrameCandidate(
        name=f"{record.runtime} engine for {frame}",
        file=str(record.file),
        frame=frame,
        contract=lambda data: geometry(frame_from(frame, data).rgb(), contract),
        by_frame=by_frame,
        prepared=lambda threads: OrtRunner(graph, threads=threads, integer=False),
        pixels=pixels if can_write else None,
        precision=record.precision,
        stand_in=device is None,
    )
