"""Finds the engines of a bundle that take frames: they run here, or their graphs do on the CPU as stand-ins."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgeres.data.preprocess import geometry
from edgeres.device.libraries import available
from edgeres.device.targets import Flavour
from edgeres.errors import EnvironmentError_
from edgeres.made import Made
from edgeres.records import EngineRecord, FrameSpec
from edgeres.runtime.choose import cache_folder, start_engine
from edgeres.runtime.frames import frame_from
from edgeres.runtime.memory import default_device
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
        why = "its graph is not in the bundle"
        if graph is not None:
            starts = _why_not(made, record) if engines else "engines are not run here"
            why = starts and (_NO_ONNX if not can_write else "")
        if why or graph is None:
            missing[str(record.file)] = why
            continue
        found.append(_candidate(made, record, graph, started=not starts, can_write=can_write))
    return tuple(found), missing


def _graph_of(made: Made, record: EngineRecord) -> Path | None:
    """The graph that an engine was built from."""
    files = {form.name: form.file for form in made.manifest.forms}
    file = files.get(record.origin.form) or files.get(made.manifest.default_form.get(record.runtime, ""))
    return None if file is None or not (made.folder / file).is_file() else made.folder / file


def _why_not(made: Made, record: EngineRecord) -> str:
    """Why an engine does not start on this machine; "" where it does."""
    try:
        _start(made, record).__exit__(None, None, None)
    except EnvironmentError_ as error:
        return error.what
    return ""


def _start(made: Made, record: EngineRecord) -> Runner:
    runtime: Flavour = "rtx" if record.runtime == "rtx" else "tensorrt"
    if not (here := available(runtime)).can_run:
        raise EnvironmentError_(here.reason)
    file, host_code = str(record.file), made.permit.allows_host_code(record)
    device, digest = default_device(), made.files[file]
    return start_engine(made.folder / file, record, digest, device, cache_folder(), host_code=host_code)


def _candidate(made: Made, record: EngineRecord, graph: Path, *, started: bool, can_write: bool) -> FrameCandidate:
    frame, contract = record.frame, made.model.preprocess
    assert frame is not None

    def by_frame(threads: int) -> Runner:
        if started:
            return _start(made, record)
        from edgeres.graph.frame import with_frame
        from edgeres.graph.normalize import load_onnx

        model = with_frame(load_onnx(graph), contract, frame)
        return OrtRunner(model.SerializeToString(), threads=threads, integer=False)

    def pixels(threads: int) -> Runner:
        from edgeres.graph.frame import pixels_of

        return OrtRunner(pixels_of(contract, frame).SerializeToString(), threads=threads)

    return FrameCandidate(
        _name(record.runtime, frame),
        str(record.file),
        frame,
        lambda data: geometry(frame_from(frame, data).rgb(), contract),
        by_frame,
        lambda threads: OrtRunner(graph, threads=threads, integer=False),
        pixels if can_write else None,
        record.precision,
        stand_in=not started,
    )


def _name(runtime: str, frame: FrameSpec) -> str:
    return f"{runtime} engine for {frame}"
