"""A calibration that can be interrupted: it runs in parts, merges them, and saves the state.

The state is a hidden file beside the output. It is replaced as a whole every half minute and at Ctrl-C, and the same
command continues it. A backend computes the parts, on this machine or on a cluster
(:mod:`edgeres.calibrate.distributed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeres.calibrate.shards import CalibrationJob, State, read_state
from edgeres.data.base import Source
from edgeres.data.loader import Loader
from edgeres.errors import InputError, SourceError
from edgeres.files import write_file
from edgeres.progress import SILENT, Advance, Progress
from edgeres.records import I64

if TYPE_CHECKING:
    import onnx

# Runs the numbered batches in parts, in any order, and reports how many images are done.
Backend = Callable[[I64, Advance], Iterator[State]]

SAVE_SECONDS = 30.0
PART_SECONDS = 15.0
_FIRST_BATCHES = 4


def collect(
    job: CalibrationJob,
    backend: Backend,
    keep: Path,
    shard: tuple[int, int] = (1, 1),
    save_seconds: float = SAVE_SECONDS,
    progress: Progress = SILENT,
) -> State:
    """Run a calibration, or one shard of it, and continue the state saved at ``keep``.

    Args:
        keep: the file of the state; the caller removes it.
        shard: index, from 1, and count.
        save_seconds: least time between two writes. An error or an interrupt writes the state once more.

    Raises:
        SourceError, ModelError: as :func:`edgeres.calibrate.forward.observe`.
    """
    state = _resumed(job, keep, shard, progress)
    mine = job.shard(*shard)
    todo = state.left(mine)
    saved, last = time.monotonic(), len(state.done)
    with progress.task("calibrating", total=len(job.positions(mine))) as advance:
        advance(len(job.positions(mine)) - len(job.positions(todo)))
        try:
            for part in backend(todo, advance):
                state.merge(part)
                if time.monotonic() - saved >= save_seconds:
                    write_file(keep, state.pack())
                    saved, last = time.monotonic(), len(state.done)
        except BaseException:
            if len(state.done) > last:
                write_file(keep, state.pack())
            if state.done:
                progress.say(f"{state.samples:,} images are done; the same command continues from there")
            raise
    return state


def _resumed(job: CalibrationJob, keep: Path, shard: tuple[int, int], progress: Progress) -> State:
    """The state of an interrupted run of this job, or an empty one."""
    if keep.is_file():
        try:
            kept = read_state(keep)
        except InputError:
            kept = None
        if kept is not None and kept.shard == shard and not job.difference(kept.job):
            progress.say(f"continuing after {kept.samples:,} images of an interrupted run")
            return kept
        progress.say("the state beside the output is of another calibration, so this one starts anew")
    return State.empty(job, shard)


def here(job: CalibrationJob, graph: onnx.ModelProto, source: Source, part_seconds: float = PART_SECONDS) -> Backend:
    """Run on this machine in parts of about ``part_seconds``; each part opens a session, which takes about 0.2 s."""

    def parts(todo: I64, advance: Advance) -> Iterator[State]:
        size = _FIRST_BATCHES
        while len(todo):
            start = time.monotonic()
            yield observe_batches(job, graph, source, todo[:size], advance)
            todo = todo[size:]
            size = int(min(max(size * part_seconds / max(time.monotonic() - start, 1e-3), 1), 4 * size))

    return parts


def observe_batches(
    job: CalibrationJob, graph: onnx.ModelProto, source: Source, batches: I64, advance: Advance
) -> State:
    """Run one part: some batches of a job.

    Raises:
        SourceError, ModelError: as :func:`edgeres.calibrate.forward.observe`.
    """
    from edgeres.calibrate.forward import observe

    positions = job.positions(batches)
    view = source.at(positions)
    loader = Loader(view, job.preprocess, job.batch, job.on_unreadable)
    state = State.empty(job)
    try:
        found = observe(graph, job.tensors, loader, _Inside(advance))
        state.sketches, state.samples = dict(found.sketches), found.samples
    except SourceError:
        # With on_unreadable="skip" a part without a readable image is no error.
        if job.on_unreadable == "fail" or len(loader.unreadable) < len(view):
            raise
    state.done, state.unreadable = set(batches.tolist()), list(loader.unreadable)
    return state


class _Inside:
    """Shows the progress of a part as progress of the whole run."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        yield

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        yield self._advance

    def say(self, line: str) -> None:
        return None
