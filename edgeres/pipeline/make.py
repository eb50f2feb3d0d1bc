"""Makes the files of a bundle from a network and images: quantizes it, writes graphs, builds engines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeres.bundle import CALIBRATION, FP32, LABELS, PIXELS, PROBES
from edgeres.calibrate.record import IMPORTED, to_json
from edgeres.data.choose import DataChoice, Sources, choose_sources
from edgeres.data.loader import Loader
from edgeres.data.pixels import sample_pixels
from edgeres.data.record import CalibrationRecord, DataRecord
from edgeres.data.seen import PIXELS_KIND, sample_seen
from edgeres.device.environment import environment
from edgeres.device.libraries import MODULES, available
from edgeres.device.targets import Target, get_target
from edgeres.engine.engines import Engines, build_engines
from edgeres.errors import ModelError, why_left_out
from edgeres.files import write_file, write_json
from edgeres.graph.forms import FORMS, form_for
from edgeres.made import Made, Making, artefacts, graph_sizes
from edgeres.pipeline.byte_graphs import write_byte_graphs
from edgeres.pipeline.forms import write_alternatives
from edgeres.pipeline.network import Network, quantize_network
from edgeres.pipeline.options import BuildOptions, facts_among
from edgeres.pipeline.take import Fp32Model
from edgeres.progress import SILENT, Progress
from edgeres.records import Codes, EngineRecord, LeftOut, Manifest, ModelSpec, Style, TensorInfo
from edgeres.runtime.probes import ProbeSet
from edgeres.task import task_of
from edgeres.words import escaped

if TYPE_CHECKING:
    from edgeres.quantize.alternatives import Material
    from edgeres.quantize.graphs import Quantized
    from edgeres.quantize.trial import Probes, Tried
    from edgeres.refine.recipe import Refined

PROBE_IMAGES = 64  # that a device tries its engines on


@dataclass
class Stopwatch:
    """Wall seconds by stage; a stage that is entered again goes on."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def make(
    folder: Path, network: Network, loader: Loader, o: BuildOptions, watch: Stopwatch, progress: Progress = SILENT
) -> Made:
    """Fill a directory with graphs, ranges, labels and engines.

    Args:
        loader: loads the calibration images.

    Raises:
        EdgeresError: one line says why it is not possible.
    """
    fp32, source, targets = network.fp32, loader.source, choose_targets(o.targets)
    with watch.stage("quantize"):
        styles: list[Style] = list(dict.fromkeys(target.style for target in targets))
        refined = quantize_network(network, styles, loader, progress)
    with watch.stage("quantize"), progress.stage("graphs", "writing and trying the graphs"):
        pixels = sample_pixels(source, fp32.spec.preprocess) if len(source) else None
        probes, tried = _try_forms(fp32, refined.quantized, targets, loader, progress)
        quantized = _with_graphs_of(refined.quantized, tried)
        weights = _write_graphs(folder, fp32, quantized, tried)
        if len(source) and (seen := sample_seen(source, fp32.spec.preprocess)):
            write_json(folder / PIXELS, PIXELS_KIND.content(seen))
        records = {name: FORMS[name].record(o.ranges.codes, tried.figure(name)) for name in tried.graphs}
        forms = tuple(replace(record, weights=weights[name]) for name, record in records.items())
        if _engines_of(targets):
            material, p = _material(fp32, refined, o.ranges.codes, targets, probes), fp32.spec.preprocess
            forms += write_alternatives(folder, material, tried, probes, progress)
            write_file(folder / PROBES, ProbeSet(probes.images, probes.exact).to_npz(p))
            write_byte_graphs(folder, forms, p, probes.first(), progress)
    with watch.stage("engines"):
        able = [target for target in targets if form_for(target.runtime).name in tried.graphs]
        names = ", ".join(target.name for target in able if target.runtime != "onnxruntime")
        with progress.stage("engines", f"building engines: {names}") if names else nullcontext():
            engines = build_engines(folder, able, o.engines, fp32.spec.preprocess, progress)
        _write_engines(folder, engines)
    images = DataRecord.of(loader, quantized.images, pixels)
    calibration = CalibrationRecord(images, network.ranges.method, network.ranges.batch) if images.images else None
    making = Making(
        export={"max_error": fp32.max_error, "notes": list(fp32.notes)},
        calibration=calibration,
        plans={str(style): plan for style, plan in quantized.plans.items()},
        refinement=tuple(asdict(step) for step in refined.steps),
        residual=tuple(asdict(cost) for cost in refined.skips),
        timings=watch.seconds,
        reasons=_reasons(network, refined),
    )
    return Made(
        folder=folder,
        manifest=replace(
            _manifest(fp32, quantized, tuple(engines), tuple(_left_out(targets, tried, engines, o))),
            forms=forms,
            default_form={FORMS[name].runtime: name for name in tried.graphs},
        ),
        files=artefacts(folder),
        sizes=graph_sizes(folder),
        facts=facts_of(fp32.spec, facts_among(o.to_dict()), making, environment()),
        calibration_pixels=pixels if calibration else None,
        making=making,
    )


def choose_targets(names: Sequence[str]) -> tuple[Target, ...]:
    """The named targets; by default ``cpu``, and ``rtx`` and ``tensorrt`` where this machine can build for them."""
    names = (names,) if isinstance(names, str) else names
    if names:
        return tuple(get_target(name) for name in dict.fromkeys(names))
    flavours = [flavour for flavour in MODULES if available(flavour).can_build]
    return tuple(get_target(name) for name in ("cpu", *flavours))


def choose_images(network: Network, data: DataChoice, progress: Progress = SILENT) -> Sources:
    """The calibration and validation images; recorded ranges only have a description of their calibration images."""
    recorded, spec = network.recorded, network.fp32.spec
    validate = task_of(spec).validate
    if recorded is None or data.calibration is not None:
        return choose_sources(data, spec, progress, validate)
    validation, reasons = validate(data, spec, progress)
    return Sources(recorded.images(), validation, reasons)


def _reasons(network: Network, refined: Refined) -> dict[str, str]:
    """Why the report has no calibration images, or no refinement."""
    reasons = {"refinement": refined.note} if refined.note else {}
    recorded = network.recorded
    if recorded is not None and recorded.method == IMPORTED:
        why = f"ranges were imported: {recorded.images().description}"
        reasons |= dict.fromkeys(("calibration", "data.calibration"), why)
    return reasons


def facts_of(
    spec: ModelSpec, options: Mapping[str, Any], making: Making, environment: Mapping[str, str]
) -> dict[str, Any]:
    """How a bundle was made, as one flat mapping, so that builds can be compared by name."""
    facts: dict[str, Any] = {
        "model": spec.name,
        "weights": spec.weights,
        "weights sha256": spec.weights_sha256,
        "labels": list(spec.labels),
        **{f"preprocessing {key}": value for key, value in spec.preprocess.to_dict().items()},
        **{f"option {key}": value for key, value in options.items()},
    }
    if making.calibration is not None:
        facts["calibration images"] = making.calibration.data.sha256
        facts["calibration source"] = making.calibration.data.description
    for style, plan in making.plans.items():
        facts[f"{style} graph, quantized activations"] = len(plan.edges)
        facts[f"{style} graph, left in float"] = len(plan.skipped)
    return facts | {f"built with {name}": version for name, version in environment.items()}


def _try_forms(
    fp32: Fp32Model, quantized: Quantized, targets: Sequence[Target], loader: Loader, progress: Progress
) -> tuple[Probes, Tried]:
    """The probe images, and the graphs that the targets need and that pass their trial on the first few.

    Raises:
        ModelError: there is none.
    """
    from edgeres.quantize.trial import PROBES as TRIED
    from edgeres.quantize.trial import Probes, probe_images, try_forms

    with progress.task("comparing the graphs", total=None):
        probes = Probes.of(fp32.graph, probe_images(loader, PROBE_IMAGES if _engines_of(targets) else TRIED))
        tried = try_forms(quantized, [target.runtime for target in targets], probes.first(), progress)
    if not tried.graphs:
        reasons = "; ".join(f"{FORMS[name].file}: {why}" for name, why in tried.left_out.items())
        raise ModelError(f"no INT8 graph can be written: {reasons}", where=fp32.spec.name)
    return probes, tried


def _engines_of(targets: Sequence[Target]) -> bool:
    """Whether any target has engines."""
    return any(target.runtime != "onnxruntime" for target in targets)


def _material(fp32: Fp32Model, refined: Refined, codes: Codes, targets: Sequence[Target], probes: Probes) -> Material:
    """What further forms are written from."""
    from edgeres.quantize.alternatives import Material, largest_pooled

    done = refined.quantized
    entries = done.calibration.get("tensors", {}).items()
    seen = ((name, entry.get("observed") or {}) for name, entry in entries)
    zeros = frozenset(name for name, found in seen if found.get("low") == found.get("high") == 0)
    graph, plan = done.floats.get("tensorrt"), done.plans.get("tensorrt")
    opsets = [target.max_opset for target in targets if target.runtime != "onnxruntime"]
    pooled = {} if graph is None or plan is None else largest_pooled(graph, plan, probes.images)
    return Material(fp32.graph, graph, plan, codes, refined.calibrated, zeros, pooled, max(opsets), min(opsets))


def _with_graphs_of(quantized: Quantized, tried: Tried) -> Quantized:
    """The record of the styles that a graph is written in."""
    styles = {FORMS[name].style for name in tried.graphs}
    return replace(quantized, plans={style: plan for style, plan in quantized.plans.items() if style in styles})


def _left_out(targets: Sequence[Target], tried: Tried, engines: Engines, o: BuildOptions) -> Iterator[LeftOut]:
    """The targets without a graph or without an engine that is to be kept, because it failed."""
    for target in targets:
        form = form_for(target.runtime)
        if why := tried.left_out.get(form.name):
            yield LeftOut(target.name, f"{form.file} is left out: {why}", bool(o.targets))
        elif error := engines.left_out.get(target.name):
            yield LeftOut(target.name, f"an engine is left out: {why_left_out(error)}", bool(o.targets))


def _write_graphs(folder: Path, fp32: Fp32Model, quantized: Quantized, tried: Tried) -> dict[str, tuple[str, ...]]:
    """Write graphs, ranges and labels; a form that is made from another one shares its weights.

    Returns:
        For each form, the other files that it reads weights from.
    """
    from edgeres.graph.shared_weights import share_weights

    write_file(folder / FP32, fp32.graph.SerializeToString())
    shared: dict[str, tuple[str, ...]] = {}
    for name, graph in tried.graphs.items():
        base = FORMS[name].made_from
        held = {FORMS[base].file: (folder / FORMS[base].file).read_bytes()} if base else {}
        shared[name] = share_weights(graph, held)
        write_file(folder / FORMS[name].file, graph.SerializeToString())
    write_file(folder / CALIBRATION, to_json(quantized.calibration).encode())
    write_file(folder / LABELS, "".join(f"{escaped(label)}\n" for label in fp32.spec.labels).encode())
    return shared


def _write_engines(folder: Path, engines: Engines) -> None:
    for record, data in engines.items():
        if record.file and data:
            write_file(folder / record.file, data)
    for name, log in engines.logs.items():
        write_file(folder / name, log)


def _sizes(value: Any) -> tuple[int | None, ...]:
    """Of an output for one image."""
    return tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim[1:])


def _manifest(
    fp32: Fp32Model, quantized: Quantized, engines: tuple[EngineRecord, ...], left_out: tuple[LeftOut, ...]
) -> Manifest:
    from edgeres.quantize.plan import plan_digest

    spec = fp32.spec
    graph = fp32.graph.graph
    return Manifest(
        model=spec,
        inputs={graph.input[0].name: TensorInfo("float32", (None, *spec.preprocess.shape))},
        outputs={value.name: TensorInfo("float32", (None, *_sizes(value))) for value in graph.output},
        files={},
        plan_digests={style: plan_digest(plan) for style, plan in quantized.plans.items()},
        engines=engines,
        environment=environment(),
        left_out=left_out,
    )
