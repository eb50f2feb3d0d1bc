"""A calibration that can be interrupted: parts are run, merged, and kept.

The state so far lies beside the output, hidden, and is replaced as a whole every half minute and at Ctrl-C; the same
command goes on from it. Where parts are computed is left to a backend: here, or on a cluster
(:mod:`edgeres.calibrate.distributed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeres.calibrate.shards import Job, State, read_state
from edgeres.data.base import Source
from edgeres.data.loader import Loader
from edgeres.errors import InputError, SourceError
from edgeres.files import write_file
from edgeres.progress import SILENT, Advance, Progress
from edgeres.records import I64

if TYPE_CHECKING:
    import onnx

# Runs the named batches in parts, in any order, and tells how many images are through.
Backend = Callable[[I64, Advance], Iterator[State]]

SAVE_SECONDS = 30.0
PART_SECONDS = 15.0
_FIRST_BATCHES = 4


def collect(
    job: Job,
    backend: Backend,
    keep: Path,
    shard: tuple[int, int] = (1, 1),
    save_seconds: float = SAVE_SECONDS,
    progress: Progress = SILENT,
) -> State:
    """Run a calibration, or one shard of it, going on from the state kept at ``keep``.

    Args:
        keep: the state's file; whoever takes the result removes it.
        shard: index, from 1, and count.
        save_seconds: least time between two writings of it. What ends the run early, an interrupt too, writes it once
            more.

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
                progress.say(f"{state.samples:,} images are through; the same command goes on from there")
            raise
    return state


def _resumed(job: Job, keep: Path, shard: tuple[int, int], progress: Progress) -> State:
    """The state that an interrupted run of this job left, or an empty one."""
    if keep.is_file():
        try:
            kept = read_state(keep)
        except InputError:
            kept = None
        if kept is not None and kept.shard == shard and not job.difference(kept.job):
            progress.say(f"going on after {kept.samples:,} images of an interrupted run")
            return kept
        progress.say("an interrupted run of another calibration lies here; it is not gone on with")
    return State.empty(job, shard)


def here(job: Job, graph: onnx.ModelProto, source: Source, part_seconds: float = PART_SECONDS) -> Backend:
    """Runs on this machine, in parts of about ``part_seconds``: each starts a session anew, which costs some 0.2 s."""

    def parts(todo: I64, advance: Advance) -> Iterator[State]:
        size = _FIRST_BATCHES
        while len(todo):
            start = time.monotonic()
            yield observe_batches(job, graph, source, todo[:size], advance)
            todo = todo[size:]
            size = int(min(max(size * part_seconds / max(time.monotonic() - start, 1e-3), 1), 4 * size))

    return parts


def observe_batches(job: Job, graph: onnx.ModelProto, source: Source, batches: I64, advance: Advance) -> State:
    """One part: some batches of a job through the graph.

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
        # A part of which nothing can be read is no reason to stop where the whole is asked to go on.
        if job.on_unreadable == "fail" or len(loader.unreadable) < len(view):
            raise
    state.done, state.unreadable = set(batches.tolist()), list(loader.unreadable)
    return state


class _Inside:
    """The progress of a part, shown as the whole's."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        yield self._advance

    def say(self, line: str) -> None:
        return None
