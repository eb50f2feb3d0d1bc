"""Finds the graphs of a bundle that can be measured on this machine, and opens them on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from edgeres.graph.forms import FORMS, best_on_cpu
from edgeres.made import graph_files
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.answers import REFERENCE
from edgeres.verify.candidates import Candidate, Candidates


def candidates_in(folder: Path) -> Candidates:
    """The graphs in a bundle's directory, as candidates for ONNX Runtime on the CPU.

    A form for a GPU runs with float arithmetic between its Q/DQ pairs, as a stand-in for TensorRT. It is not timed,
    because its latency on the CPU does not show that on the GPU.
    """
    files = graph_files(folder)
    reference = _graph(files.pop(REFERENCE))
    others = {
        name: _graph(path, integer=FORMS[name].integer, layers=FORMS[name].made_from is None)
        for name, path in files.items()
    }
    return Candidates(reference, others, best_on_cpu(others).name, OrtRunner)


def _graph(path: Path, *, integer: bool | None = None, layers: bool = False) -> Candidate:
    """A candidate for a graph; ``integer`` is None for the reference, which has no Q/DQ pairs."""

    def open_runner(threads: int) -> OrtRunner:
        return OrtRunner(path, threads=threads, integer=integer is not False)

    return Candidate(open_runner, path, integer is not False, timed=bool(integer), layers=layers)
