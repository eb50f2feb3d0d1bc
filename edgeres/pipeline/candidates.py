"""Finds the networks of a bundle that can be measured on this machine: its graphs on the CPU, and its engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgeres.bundle import ANSWERS
from edgeres.device.libraries import MODULES
from edgeres.device.targets import Flavour
from edgeres.errors import EnvironmentError_
from edgeres.graph.forms import FORMS, best_on_cpu, form_for
from edgeres.made import Made, graph_files
from edgeres.pipeline.frame_candidates import frame_candidates
from edgeres.pipeline.start import device_for, start, why_not_started
from edgeres.records import EngineRecord
from edgeres.runtime.choose import BACKENDS, in_order
from edgeres.runtime.memory import Device
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.answers import REFERENCE
from edgeres.verify.candidates import Candidate, Candidates, Precision
from edgeres.verify.known import read_known

PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "fp32")


def candidates_in(made: Made, *, engines: bool = True) -> Candidates:
    """The graphs in a bundle's directory, and the engines that run on this machine.

    A graph for a GPU runs on ONNX Runtime, with float arithmetic between its Q/DQ pairs, as a stand-in for TensorRT. It
    is not timed, because its latency on the CPU does not show that on the GPU. Where an engine runs, the headline is
    what :func:`edgeres.load` takes, and the stand-ins run on a sample alone.

    Args:
        engines: whether engines are looked for.
    """
    files = graph_files(made.folder)
    reference = _graph(files.pop(REFERENCE), precision="fp32")
    graphs = {
        name: _graph(path, integer=FORMS[name].integer, layers=FORMS[name].made_from is None)
        for name, path in files.items()
    }
    found = _StartedEngines(made) if engines else None
    frames, missing = frame_candidates(made, engines=engines)
    if found is None or not found.candidates:
        not_run = {**(found.not_run if found else {}), **missing}
        return Candidates(reference, graphs, best_on_cpu(graphs).name, OrtRunner, not_run=not_run, frames=frames)
    by_form = {form.name: made.folder / form.file for form in made.manifest.forms}
    mine = {form: _graph(by_form[form], integer=False) for form in found.graph_of.values() if form in by_form}
    on_cpu = {name: graph for name, graph in graphs.items() if FORMS[name].integer}
    return Candidates(
        reference,
        {**found.candidates, **on_cpu},
        found.headline,
        OrtRunner,
        stand_ins={**mine, **{name: graph for name, graph in graphs.items() if name not in on_cpu}},
        graph_of=found.graph_of,
        known=read_known(made.folder / ANSWERS),
        not_run={**found.not_run, **missing},
        frames=frames,
    )


def _graph(
    path: Path, *, integer: bool | None = None, layers: bool = False, precision: Precision = "int8"
) -> Candidate:
    """A candidate for a graph; ``integer`` is None for the reference, which has no Q/DQ pairs."""

    def open_runner(threads: int) -> OrtRunner:
        return OrtRunner(path, threads=threads, integer=integer is not False)

    return Candidate(open_runner, path, integer is not False, timed=bool(integer), layers=layers, precision=precision)


class _StartedEngines:
    """The engines of a bundle that start on this machine's GPU.

    Attributes:
        candidates: one per runtime and precision, by name; the headline comes first.
        headline: the one that :func:`edgeres.load` takes.
        graph_of: the form that each was built from.
        not_run: why the others do not run, by their file.
    """

    def __init__(self, made: Made) -> None:
        self._made = made
        self.not_run: dict[str, str] = {}
        self.graph_of: dict[str, str] = {}
        self.headline = ""
        found: dict[str, Candidate] = {}
        for runtime in MODULES:
            found |= dict(self._of(runtime))
        order = sorted(found, key=lambda name: name != self.headline)
        self.candidates = {name: found[name] for name in order}

    def _of(self, runtime: Flavour) -> Iterator[tuple[str, Candidate]]:
        records = [
            record for record in self._made.engines if record.runtime == runtime and record.file and not record.frame
        ]
        if not records:
            return
        try:
            device = device_for(runtime)
        except EnvironmentError_ as error:
            self.not_run |= {str(record.file): str(error) for record in records}
            return
        started: dict[Precision, EngineRecord] = {}
        for precision in PRECISIONS:
            for record in in_order((one for one in records if one.precision == precision), device):
                if precision not in started and self._starts(record, device):
                    started[precision] = record
                    yield self._candidate(record, device)
        self._take(runtime, started, device)

    def _starts(self, record: EngineRecord, device: Device) -> bool:
        if why := why_not_started(self._made, record, device):
            self.not_run[str(record.file)] = why
        return not why

    def _candidate(self, record: EngineRecord, device: Device) -> tuple[str, Candidate]:
        name = engine_name(record)
        if record.precision != "fp32":
            self.graph_of[name] = self._form_of(record)
        opened = Candidate(
            lambda threads: start(self._made, record, device), precision=record.precision, file=str(record.file)
        )
        return name, opened

    def _form_of(self, record: EngineRecord) -> str:
        """Name of the form that an engine was built from; ``fp32`` where the bundle has no such graph."""
        forms = {form.name: form for form in self._made.manifest.forms}
        if record.trial is not None and record.trial.form in forms:
            return record.trial.form
        if record.precision == "fp16":
            return next((name for name, form in forms.items() if form.precision == "fp16"), REFERENCE)
        default = form_for("rtx" if record.runtime == "rtx" else "tensorrt").name
        return self._made.manifest.default_form.get(record.runtime, default)

    def _take(self, runtime: Flavour, started: dict[Precision, EngineRecord], device: Device) -> None:
        """Enter what :func:`edgeres.load` takes, if it takes no engine of a runtime that is preferred."""
        loaded = [record for record in started.values() if record.is_chosen or record.precision == "int8"]
        preferred = self.headline and BACKENDS.index(runtime) > BACKENDS.index(_runtime_of(self.headline))
        if loaded and not preferred:
            self.headline = engine_name(in_order(loaded, device)[0])


def engine_name(record: EngineRecord) -> str:
    """A name such as ``tensorrt int8 engine``; it has no dots, because dots separate the keys in a figure's path."""
    return f"{record.runtime} {record.precision} engine"


def _runtime_of(name: str) -> Flavour:
    return "rtx" if name.startswith("rtx ") else "tensorrt"
