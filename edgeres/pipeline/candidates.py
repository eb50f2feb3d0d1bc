"""The candidates of a bundle: which of its files run on this machine, and how they are opened."""

from __future__ import annotations

from pathlib import Path

from edgeres.graph.forms import FORMS, best_on_cpu
from edgeres.made import graph_files
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.answers import REFERENCE
from edgeres.verify.candidates import Candidate, Candidates


def candidates_in(folder: Path) -> Candidates:
    """The graphs in a bundle's directory, each to be run by ONNX Runtime on the CPU.

    A form that is not written for this CPU runs with float arithmetic between its Q/DQ pairs, as TensorRT computes. Its
    latency on a CPU would say nothing about a GPU, so it is not timed.
    """
    files = graph_files(folder)
    reference = _graph(files.pop(REFERENCE))
    others = {
        name: _graph(path, integer=FORMS[name].integer, layers=FORMS[name].made_from is None)
        for name, path in files.items()
    }
    return Candidates(reference, others, best_on_cpu(others).name, OrtRunner)


def _graph(path: Path, *, integer: bool | None = None, layers: bool = False) -> Candidate:
    """``integer`` None: the reference, which has no codes."""

    def open_it(threads: int) -> OrtRunner:
        return OrtRunner(path, threads=threads, integer=integer is not False)

    return Candidate(open_it, path, integer is not False, timed=bool(integer), layers=layers)
