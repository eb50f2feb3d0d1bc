"""Holds engines against their graphs on a sample of the images, and chooses what is the FP32 reference on a device.

An engine computes what its graph says up to rounding, so its logits are compared with those of the graph on ONNX
Runtime. All images would take a small board's CPU too long, so a sample has to do; every image runs on the engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from edgeres.data.base import evenly_spread
from edgeres.data.loader import Loader
from edgeres.progress import Progress
from edgeres.records import F32, ModelSpec
from edgeres.verify.accuracy import KnownRunner, logits, scores_of
from edgeres.verify.candidates import Candidate, Candidates, Precision
from edgeres.verify.device import EngineSample
from edgeres.verify.statistics import Sqnr

SAMPLE = 64
REFERENCE_DB = 80.0  # TF32 keeps 10 bits of each product and stays below; float32 in another order is far above
# An engine rounds as its graph does, but for values near the middle of two codes: its noise against the graph must not
# be more than twice the graph's own noise against FP32. The other figures hold where that noise is next to nothing.
_FACTOR_DB = 3.0
_ENOUGH_DB: dict[Precision, float] = {"int8": 30.0, "fp16": 30.0, "fp32": 40.0}
_NAMED = 3


@dataclass(frozen=True)
class Reference:
    """What the candidates are compared with on all images.

    Attributes:
        why: where it comes from, in words; "" for ONNX Runtime where there is no engine.
    """

    candidate: Candidate
    why: str = ""


def sample_engines(
    candidates: Candidates, loader: Loader, spec: ModelSpec, progress: Progress
) -> dict[str, EngineSample]:
    """Run FP32, the stand-in graphs and the engines on a sample of the images; empty where there is no engine.

    Raises:
        ModelError, SourceError: as :func:`edgeres.verify.accuracy.compare`.
    """
    engines = candidates.engines
    if not engines:
        return {}
    source = loader.source.at(evenly_spread(len(loader.source), SAMPLE))
    few = Loader(source, loader.preprocess, loader.batch_size, on_unreadable="skip")
    needed = {graph: candidates.stand_ins[graph] for graph in candidates.graph_of.values() if graph != "fp32"}
    graphs = {"fp32": candidates.reference, **needed}
    found: dict[str, list[F32]] = {name: [] for name in (*graphs, *engines)}
    names: list[str] = []
    with ExitStack() as stack, progress.task("comparing engines with their graphs", total=len(source)) as advance:
        runners = {name: stack.enter_context(one.open(0)) for name, one in {**graphs, **engines}.items()}
        named = {name: runner.name for name, runner in runners.items()}
        for batch in few:
            for name, runner in runners.items():
                found[name].append(logits(scores_of(runner, batch, spec, source), spec))
            names += [source.name(int(index)) for index in batch.indices]
            advance(len(batch.labels))
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    return {
        name: replace(
            _judged(whole, candidates.graph_of.get(name, "fp32"), name, engine.precision, names),
            file=engine.file,
            runner=named[name],
        )
        for name, engine in engines.items()
    }


def _judged(whole: Mapping[str, F32], graph: str, name: str, precision: Precision, images: list[str]) -> EngineSample:
    said, own = whole[graph], whole[name]
    graph_db = math.inf if graph == "fp32" else sqnr_db(whole["fp32"], said)
    error = ((own - said).astype(np.float64) ** 2).sum(axis=1) / np.maximum(
        (said.astype(np.float64) ** 2).sum(1), 1e-30
    )
    worst = [index for index in np.argsort(-error, kind="stable")[:_NAMED].tolist() if error[index] > 0]
    limit = limit_db(precision, graph_db)
    same = int((said.argmax(axis=1) == own.argmax(axis=1)).sum())
    return EngineSample(
        graph, len(images), sqnr_db(said, own), graph_db, same, tuple(images[index] for index in worst), limit
    )


def limit_db(precision: Precision, graph_db: float) -> float:
    """The least SQNR of an engine's logits against its graph's, whose own SQNR against FP32's is ``graph_db``."""
    return min(graph_db - _FACTOR_DB, _ENOUGH_DB[precision])


def sqnr_db(signal: F32, noisy: F32) -> float:
    """SQNR of logits, (N, classes) both, in dB; inf where they are equal."""
    tally = Sqnr()
    tally.add(signal, noisy)
    return tally.decibels


def choose_reference(candidates: Candidates, samples: Mapping[str, EngineSample], digest: str) -> Reference:
    """The FP32 reference for all images: known answers to these images, an FP32 engine that agreed, ONNX Runtime.

    Args:
        digest: SHA-256 of the images.
    """
    known = candidates.known
    if not candidates.engines:
        return Reference(candidates.reference)
    if known is not None and known.images == digest:
        told = f"answers in the bundle, computed on {known.runner}"
        return Reference(Candidate(lambda threads: KnownRunner(told, known.scores), precision="fp32"), told)
    for name, engine in candidates.engines.items():
        sample = samples[name]
        if engine.precision == "fp32" and sample.sqnr_db >= REFERENCE_DB:
            agreed = "equal to" if math.isinf(sample.sqnr_db) else f"{sample.sqnr_db:.0f} dB from"
            return Reference(engine, f"{name}, {agreed} ONNX Runtime on {sample.images} images")
    return Reference(candidates.reference, "FP32 graph on ONNX Runtime")
