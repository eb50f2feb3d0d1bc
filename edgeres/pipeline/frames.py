"""Builds engines that take a camera's frame, beside those of a bundle that take prepared images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeres.bundle import ENGINES, Bundle, log_of
from edgeres.device.targets import Flavour, Target
from edgeres.engine.builder import Precision, build_engine
from edgeres.engine.engines import EngineChoice, graph_of
from edgeres.engine.frames import frame_graph, needs_onnx
from edgeres.progress import SILENT, Progress
from edgeres.records import EngineRecord, FormRecord, FrameSpec

if TYPE_CHECKING:
    from onnx import ModelProto


def add_frame_engines(
    bundle: Bundle,
    target: Target,
    choice: EngineChoice,
    frames: Sequence[FrameSpec],
    form: str | None = None,
    progress: Progress = SILENT,
) -> tuple[EngineRecord, ...]:
    """Build an engine for each frame, from the form that the bundle's engine was built from, and add them.

    The largest batch is ``choice.opt_batch`` where none was asked for: each context of an engine holds memory for that
    many frames.

    Args:
        form: name of another form to build.

    Raises:
        EngineError: the vendor's builder refuses a graph; engines for the frames before it are added.
        UsageError: the preprocessing cannot be put into a graph.
        EnvironmentError_: onnx is not installed.
    """
    needs_onnx()
    assert target.runtime != "onnxruntime"
    record = chosen_form(bundle, target.runtime, form)
    precision: Precision = "int8" if record is None else record.precision
    model, built = _model(bundle, target, record, precision), []
    for frame in dict.fromkeys(frames):
        graph = frame_graph(model, bundle.manifest.model.preprocess, frame).SerializeToString()
        request = replace(choice.request_here(precision, target), frame=frame)
        if choice.max_batch is None:
            request = replace(request, max_batch=request.opt_batch)  # a frame has megabytes
        engine = build_engine(graph, request, target.runtime, progress)
        file = f"{ENGINES}/{engine.file_name}"
        made = engine.record(target.name, file)
        made = replace(made, origin=replace(made.origin, form=record.name if record else ""))
        bundle.add_engines({made: engine.data}, {log_of(file): engine.log_text.encode()})
        built.append(made)
    return tuple(built)


def chosen_form(bundle: Bundle, runtime: Flavour, name: str | None = None) -> FormRecord | None:
    """The form of this name; without a name the one that this device's clock chose, else the default one.

    None: a bundle for other targets, whose default form has to be written first.
    """
    if name is None:
        name = next(
            (
                one.trial.form
                for one in bundle.manifest.engines
                if one.runtime == runtime and one.trial and one.is_chosen
            ),
            None,
        )
    known = {form.name: form for form in bundle.forms if runtime in form.runtimes}
    return known.get(name) if name in known else bundle.default_form(runtime)


def _model(bundle: Bundle, target: Target, form: FormRecord | None, precision: Precision) -> ModelProto:
    import onnx

    from edgeres.graph.normalize import load_onnx

    if form is not None:
        return load_onnx(bundle.file(form.file))
    graph = graph_of(bundle.path, precision, target.runtime, bundle.manifest.model.preprocess)
    return load_onnx(graph) if isinstance(graph, Path) else onnx.load_from_string(graph)
