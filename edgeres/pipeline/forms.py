"""Writes the forms of a network that a device chooses from beside the default ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeres.bundle import FP32
from edgeres.device.targets import Runtime
from edgeres.files import write_file
from edgeres.graph.forms import FORMS
from edgeres.progress import SILENT, Progress
from edgeres.records import FormRecord

if TYPE_CHECKING:
    from edgeres.quantize.alternatives import Material
    from edgeres.quantize.cost import Cost
    from edgeres.quantize.trial import Probes, Tried


def write_alternatives(
    folder: Path, material: Material, defaults: Tried, probes: Probes, progress: Progress = SILENT
) -> tuple[FormRecord, ...]:
    """Write those further forms that pass their trial and could be the best on some device.

    Weights that the default form for TensorRT, an earlier form or the FP32 graph holds are read from its file.

    Args:
        defaults: the default forms, which are written already.

    Returns:
        The manifest's entries.
    """
    from edgeres.graph.shared_weights import share_weights
    from edgeres.quantize.alternatives import MOST_FORMS, alternatives, try_alternatives, worthwhile

    found = list(alternatives(material))
    with progress.task("writing further forms", total=None):
        tried = try_alternatives(found, probes.first(), progress)
    costs = default_costs(material, defaults)
    figures = dict(tried.sqnr_db)
    held: dict[str, bytes] = {}
    for name in defaults.graphs:
        if FORMS[name].runtime in costs:
            figures[FORMS[name].runtime] = defaults.sqnr_db[name]
            held[FORMS[name].file] = (folder / FORMS[name].file).read_bytes()
    held[FP32] = (folder / FP32).read_bytes()
    kept = worthwhile(found, costs, figures, MOST_FORMS - len(costs))
    records = []
    for form in kept:
        record, graph = form.record, tried.graphs[form.record.name]
        weights = share_weights(graph, held)
        held[record.file] = content = graph.SerializeToString()
        write_file(folder / record.file, content)
        records.append(replace(record, sqnr_db=tried.figure(record.name), weights=weights))
    return tuple(records)


def default_costs(material: Material, defaults: Tried) -> dict[Runtime, Cost]:
    """What the default forms for engines cost, by runtime."""
    from edgeres.graph.graph import Graph
    from edgeres.quantize.cost import cost_of

    graph, forms = Graph(material.fp32), [FORMS[name] for name in defaults.graphs]
    return {
        form.runtime: cost_of(graph, material.plan, 2 if form.between == "float16" else 4, form.runtime)
        for form in forms
        if form.runtime != "onnxruntime"
    }
