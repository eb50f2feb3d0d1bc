"""Holds engines that take a camera's frame against the contract: the same frames, prepared by Pillow.

Where an engine does not run here, its graph is computed on ONNX Runtime as a stand-in. Frames are made of the
validation images, enlarged to the camera's size. The network behind is the same either way, so what differs is the
preparation, and an engine's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from edgeres.data.base import Source, evenly_spread
from edgeres.data.filmed import filmed
from edgeres.data.loader import Loader
from edgeres.data.preprocess import normalize
from edgeres.errors import SourceError
from edgeres.progress import Progress
from edgeres.records import F32, U8, ModelSpec
from edgeres.runtime.runner import Runner
from edgeres.verify.accuracy import logits
from edgeres.verify.candidates import Candidates, FrameCandidate
from edgeres.verify.device import FrameSample
from edgeres.verify.engines import limit_db, sqnr_db

SAMPLE = 16  # a frame takes the CPU ten times as long as its prepared image


@dataclass
class _FrameTally:
    """What was found of one image after another."""

    by_frame: list[F32] = field(default_factory=list)
    prepared: list[F32] = field(default_factory=list)
    reference: list[F32] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    equal: int = 0
    pixels: int = 0
    worst: int = 0


def sample_frames(
    candidates: Candidates, loader: Loader, spec: ModelSpec, progress: Progress
) -> dict[str, FrameSample]:
    """Each engine that takes frames, or its graph, beside the contract, by the engine's name."""
    if not candidates.frames:
        return {}
    source = loader.source.at(evenly_spread(len(loader.source), SAMPLE))
    total = len(source) * len(candidates.frames)
    with progress.task("comparing frames with their prepared images", total=total) as advance:
        return {one.name: _sampled(one, candidates, source, spec, advance) for one in candidates.frames}


def _sampled(
    candidate: FrameCandidate, candidates: Candidates, source: Source, spec: ModelSpec, advance: Callable[[int], None]
) -> FrameSample:
    seen = _FrameTally()
    with ExitStack() as stack:
        opened = (candidate.by_frame, candidate.prepared, candidates.reference.open)
        by_frame, prepared, reference = (stack.enter_context(open_(0)) for open_ in opened)
        pixels = stack.enter_context(candidate.pixels(0)) if candidate.pixels else None
        for index in range(len(source)):
            advance(1)
            try:
                data = filmed(source.image(index), candidate.frame)
            except SourceError:
                continue
            wanted = candidate.contract(data)
            if pixels is not None:
                found = _run(pixels, data)
                seen.equal += int((found == wanted).sum())
                seen.pixels += wanted.size
                seen.worst = max(seen.worst, int(np.abs(found.astype(np.int64) - wanted).max()))
            image = normalize(wanted, spec.preprocess)
            for runner, array, into in (
                (by_frame, data, seen.by_frame),
                (prepared, image, seen.prepared),
                (reference, image, seen.reference),
            ):
                into.append(logits(_run(runner, array).astype(np.float32).reshape(1, -1), spec))
            seen.labels.append(int(source.labels[index]))
            seen.names.append(source.name(index))
        return _judged(candidate, seen, "" if candidate.stand_in else by_frame.name)


def _run(runner: Runner, image: U8 | F32) -> F32:
    found: F32 = runner.infer({runner.input_name: image[None]})[runner.output_name][0]
    return found


def _judged(candidate: FrameCandidate, seen: _FrameTally, runner: str) -> FrameSample:
    if not seen.labels:
        raise SourceError("no validation image can be read, to make a frame of")
    ours, other, fp32 = (np.concatenate(part) for part in (seen.by_frame, seen.prepared, seen.reference))
    classes, wanted, labels = ours.argmax(axis=1), other.argmax(axis=1), np.array(seen.labels)
    return FrameSample(
        file=candidate.file,
        runner=runner,
        images=len(labels),
        same=int((classes == wanted).sum()),
        sqnr_db=sqnr_db(other, ours),
        limit_db=limit_db(candidate.precision, sqnr_db(fp32, other)),
        equal_percent=100 * seen.equal / seen.pixels if seen.pixels else None,
        worst_levels=seen.worst if seen.pixels else None,
        parted=tuple(_parted(seen.names, classes != wanted)),
        right=None if (labels < 0).all() else (int((classes == labels).sum()), int((wanted == labels).sum())),
    )


def _parted(names: Sequence[str], differ: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[str]:
    return [name for name, apart in zip(names, differ, strict=True) if apart][:3]
