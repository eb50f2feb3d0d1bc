"""Takes a network with recorded ranges, if there are any, and quantizes it: the first steps of every pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeres.calibrate.identity import Identity, identify
from edgeres.calibrate.ranges_file import RangesFile, read_calibration
from edgeres.data.choose import DataChoice, check_paths
from edgeres.data.loader import Loader
from edgeres.errors import UsageError
from edgeres.pipeline.options import RangeOptions, weight_bits
from edgeres.pipeline.take import Fp32Model, ModelChoice, take, with_exact_input
from edgeres.progress import SILENT, Progress
from edgeres.records import Preprocess, Style
from edgeres.refine.choice import RefineChoice

if TYPE_CHECKING:
    from edgeres.refine.recipe import Refined


@dataclass(frozen=True)
class Network:
    """A network, and how it will be quantized.

    Attributes:
        recorded: ranges for this network from a file; None: ranges are measured.
        ranges, refine: the user's choices, adapted to ``recorded``.
    """

    fp32: Fp32Model
    recorded: RangesFile | None
    ranges: RangeOptions
    refine: RefineChoice


def take_network(
    model: ModelChoice,
    data: DataChoice,
    ranges: RangeOptions,
    refine: RefineChoice,
    interface: Literal["bytes", "normalized"] = "bytes",
    progress: Progress = SILENT,
) -> Network:
    """Load the model, and the recorded ranges if the user named a file.

    Args:
        interface: ``normalized`` keeps the graph's input, ``bytes`` takes the camera's bytes.

    Raises:
        EdgeresError: one line says why it is not possible.
    """
    check_paths(data)
    recorded, possible = _reuse(ranges.calibration_file, data, refine)
    taken = take(model, progress)
    fp32 = with_exact_input(taken, interface)
    if recorded is not None:
        recorded = recorded.of(input_variants(fp32, taken))
        if possible != refine:
            progress.say(f"ranges are read from {recorded.path}; refinement is off without --calibration images")
        ranges = replace(ranges, method=recorded.method, batch=recorded.content.batch or ranges.batch)
    return Network(fp32, recorded, ranges, possible)


def with_class_names(network: Network, names: tuple[str, ...]) -> Network:
    """The network with these names of its outputs; unchanged where there are none."""
    fp32 = network.fp32
    return replace(network, fp32=replace(fp32, spec=replace(fp32.spec, labels=names))) if names else network


def quantize_network(network: Network, styles: Sequence[Style], loader: Loader, progress: Progress = SILENT) -> Refined:
    """Q/DQ graphs of a network, one per style, refined as asked; says so where much stays in float between INT8 layers.

    Raises:
        SourceError: calibration images cannot be read. ModelError: a tensor is not finite.
    """
    from edgeres.graph.graph import Graph
    from edgeres.quantize.between import float_between
    from edgeres.quantize.graphs import RangeChoice
    from edgeres.refine.recipe import quantize_with_recipe

    fp32, ranges = network.fp32, network.ranges
    choice = RangeChoice(ranges.method, weight_bits(), fp32.known, ranges.codes, network.recorded)
    refined = quantize_with_recipe(fp32.graph, styles, loader, choice, network.refine, progress)
    for plan in refined.quantized.plans.values():
        if line := float_between(Graph(fp32.graph), plan):
            progress.say(line)
    return refined


def _reuse(path: Path | None, data: DataChoice, refine: RefineChoice) -> tuple[RangesFile | None, RefineChoice]:
    """The ranges in the file, if there is one, and the refinement that is possible: it is off without images.

    Raises:
        UsageError: calibration images were given that would not be used.
        InputError: the file cannot be used.
    """
    if path is None:
        return None, refine
    refines = refine.effort != "fast" or refine.residual == "auto"
    if data.calibration is not None and not refines:
        raise UsageError(
            "calibration images are not used with ranges from a file and --effort fast",
            where=path,
            hint="drop --calibration or --calibration-file",
        )
    recorded = read_calibration(path)
    if data.calibration is None and refines:
        refine = replace(refine, effort="fast", residual="int8" if refine.residual == "auto" else refine.residual)
    return recorded, refine


def input_variants(used: Fp32Model, taken: Fp32Model) -> Iterator[tuple[Identity, Preprocess]]:
    """The variants of the network's input for which ranges may have been recorded; the first is ``used``."""
    yield _identity(used)
    yield _identity(taken)
    yield _identity(with_exact_input(taken, "bytes"))
    yield _identity(with_exact_input(taken, "normalized"))


def _identity(model: Fp32Model) -> tuple[Identity, Preprocess]:
    return identify(model.graph, model.spec.name), model.spec.preprocess
