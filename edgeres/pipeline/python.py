"""The steps as functions of ``edgeres``, beside ``build`` and ``load``.

Folders are named ``verify``, ``quantize`` and ``bench``, and would hide functions of these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeres.bench.contenders import BenchOptions
from edgeres.bench.session import bench
from edgeres.errors import UsageError
from edgeres.files import write_file
from edgeres.judge.differences import compare_builds
from edgeres.judge.document import Json
from edgeres.judge.sides import read_side
from edgeres.pipeline import verify as step
from edgeres.pipeline.keywords import QuantizeKeywords, VerifyKeywords
from edgeres.pipeline.options import BuildOptions, VerifyOptions
from edgeres.pipeline.quantize import QuantizedFile, quantize_file
from edgeres.pipeline.results import VerifyResult
from edgeres.progress import SILENT, Progress
from edgeres.signing import Anyone

if TYPE_CHECKING:
    from typing_extensions import Unpack  # mypy and editors have it; it is not needed where this runs


def verify_bundle(
    bundle: str | Path,
    *,
    trust: str | Path | Anyone | None = None,
    progress: Progress = SILENT,
    **options: Unpack[VerifyKeywords],
) -> VerifyResult:
    """Measure a bundle against its FP32 reference on this machine, and judge it; the bundle is not changed.

    Args:
        trust: as of :func:`edgeres.load`.
        options: ``validation``, ``validation_size``, ``max_drop``, ``baseline``, ``corruptions``, ...; as of
            :func:`edgeres.build`.

    Raises:
        EdgeresError: one line says why it is not possible. A failed gate raises no error.
    """
    o = _sorted(None, options, VerifyKeywords, "verify_bundle")
    trusted = Path(trust) if isinstance(trust, str) else trust
    unreadable = o.ranges.on_unreadable
    how = VerifyOptions(o.gates, unreadable, thumbnails=o.thumbnails, trust=trusted)
    return VerifyResult(step.verify_bundle(Path(bundle), o.data, how, progress))


def quantize_model(
    model: Any,
    *,
    target: str = "tensorrt",
    output: str | Path | None = None,
    progress: Progress = SILENT,
    **options: Unpack[QuantizeKeywords],
) -> QuantizedFile:
    """Quantize a model to one Q/DQ graph for one target.

    Args:
        model: the path of an ONNX file, a zoo name, or a ``torch.nn.Module``.
        target: a name of ``edgeres targets``.
        output: a file to write the graph to.
        options: ``calibration``, ``method``, ``effort``, ``mean``, ``std``, ...; as of :func:`edgeres.build`.

    Returns:
        The graph, ``model``, as bytes, and ``summary``.

    Raises:
        EdgeresError: one line says why it is not possible.
    """
    o = _sorted(model, options, QuantizeKeywords, "quantize_model")
    done = quantize_file(o.model, o.data, o.ranges, o.refine, target, progress)
    if output is not None:
        write_file(Path(output), done.model)
    return done


def compare_bundles(first: str | Path, *others: str | Path, any_machine: bool = False) -> list[Json]:
    """What changed from the first build to each other one, likely causes first, as ``edgeres compare --json``.

    Args:
        first, others: bundles, or report.json files.
        any_machine: compare latency also between different machines.

    Raises:
        EdgeresError: one of them cannot be read.
    """
    if not others:
        raise UsageError("is the only build, there is nothing to compare it with", where=first)
    side = read_side(Path(first))
    return [compare_builds(side, read_side(Path(other)), any_machine=any_machine) for other in others]


def bench_bundle(
    bundle: str | Path, *, backend: str = "auto", batch: int = 1, threads: int = 1, seconds: float = 3.0
) -> Json:
    """Latency and throughput of a bundle on this machine, as ``edgeres bench --json``.

    Args:
        seconds: measured time of each precision, at least.

    Raises:
        EdgeresError: one line says why it is not possible.
    """
    chosen: dict[str, Any] = {"backend": backend, "batch": batch, "threads": threads}
    return bench(Path(bundle), BenchOptions(**chosen, min_seconds=seconds, power_seconds=seconds))


def _sorted(model: Any, options: Mapping[str, Any], known: type, where: str) -> BuildOptions:
    """The options in the records of a build, of which this step takes those that it knows."""
    if names := sorted(set(options) - keywords_of(known)):
        raise UsageError(f"no such option: {', '.join(names)}", where=where)
    return BuildOptions.of(model, options)


def keywords_of(known: type) -> set[str]:
    """The names in a class of keywords, which has those of its bases too."""
    return set(known.__annotations__)
