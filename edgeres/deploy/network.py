"""What another program has to know of a bundle's network, read from the bundle without a GPU."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edgeres.bundle import FP32, Bundle, log_of
from edgeres.errors import BundleError
from edgeres.graph.forms import FLOAT, best_on_cpu, forms_in
from edgeres.records import EngineRecord, ModelSpec
from edgeres.runtime.choose import engines_of
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.runner import TensorSpec

_BATCH = re.compile(r"^# batch: min (\d+), opt (\d+), max (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Engine:
    """One TensorRT engine with its content.

    Attributes:
        max_batch: the largest batch, from its build's log; None: the bundle does not say.
    """

    record: EngineRecord
    content: bytes
    max_batch: int | None


@dataclass(frozen=True)
class Deployable:
    """A bundle's network.

    Attributes:
        path: of the bundle.
        name: a word for files and servers.
        input, outputs: of its graphs; the first axis is the batch.
        engines: for TensorRT, the one that a clock chose or the INT8 one of each GPU; all take the same input.
        engine_input: of the engines; None where there is none.
        for_gpu, for_cpu: INT8 graphs for TensorRT and for ONNX Runtime; None where the bundle has none.
    """

    path: Path
    name: str
    model: ModelSpec
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    engines: tuple[Engine, ...]
    engine_input: TensorSpec | None
    for_gpu: bytes | None
    for_cpu: bytes | None

    def image(self) -> tuple[int, ...]:
        """The input's shape without the batch."""
        return tuple(size or 0 for size in self.input.shape[1:])

    @property
    def output(self) -> TensorSpec:
        """The first output; a classifier has no other."""
        return self.outputs[0]


@dataclass(frozen=True)
class Deployed:
    """Files by their path in the output folder, and what the user has to know, one line each."""

    files: dict[str, bytes]
    notes: tuple[str, ...]


def network_of(bundle: Bundle) -> Deployable:
    """Read a bundle's network; every file is checked against the manifest.

    Raises:
        BundleError: a file is missing or was changed, or there is no INT8 graph.
    """
    model = bundle.manifest.model
    forms = forms_in(bundle.has)
    graphs = {name: bundle.file(form.file).read_bytes() for name, form in forms.items()}
    if not graphs:
        raise BundleError("holds no INT8 graph", where=bundle.path, hint="build it again")
    given, outputs = _ends(bundle.file(FP32), {head.output for head in model.heads})
    engines = _engines(bundle)
    of_bytes = bool(engines) and engines[0].record.origin.takes_bytes
    on_cpu = best_on_cpu(forms)
    return Deployable(
        path=bundle.path.resolve(),
        name=re.sub(r"[^\w.-]+", "-", bundle.path.resolve().name.removesuffix(".edgeres")).strip("-.") or "network",
        model=model,
        input=given,
        outputs=outputs,
        engines=tuple(engine for engine in engines if engine.record.origin.takes_bytes == of_bytes),
        engine_input=(_ends(bundle.for_engines(FP32))[0] if of_bytes else given) if engines else None,
        for_gpu=graphs.get(FLOAT.name),
        for_cpu=graphs[on_cpu.name] if on_cpu.integer else None,
    )


def _ends(graph: Path, used: Collection[str] = ()) -> tuple[TensorSpec, tuple[TensorSpec, ...]]:
    """Input and outputs of a graph.

    Args:
        used: names of the outputs; none: the first.
    """
    with OrtRunner(graph, threads=1) as runner:
        given = next(tensor for tensor in runner.inputs if tensor.name == runner.input_name)
        return given, tuple(tensor for tensor in runner.outputs if tensor.name in (used or {runner.output_name}))


def _engines(bundle: Bundle) -> list[Engine]:
    """One engine for each set of compute capabilities; the one that was chosen comes before others."""
    found: dict[tuple[str, ...], Engine] = {}
    for record in sorted(engines_of(bundle, "tensorrt", "chosen"), key=lambda record: not record.is_chosen):
        assert record.file is not None
        key = record.portability.compute_capabilities
        if key not in found:
            found[key] = Engine(record, bundle.file(record.file).read_bytes(), _max_batch(bundle, record.file))
    return list(found.values())


def _max_batch(bundle: Bundle, engine: str) -> int | None:
    if not bundle.has(log_of(engine)):
        return None
    said = _BATCH.search(bundle.file(log_of(engine)).read_text(errors="replace"))
    return int(said[3]) if said else None
