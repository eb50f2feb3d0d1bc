"""Calibrate on the user's Dask cluster: ``--scheduler tcp://host:8786``.

A task runs some batches on a worker and returns a packed :class:`~edgeres.calibrate.shards.State`. Other tasks merge
these states in groups, so that little data comes back. If a worker dies, the scheduler runs its tasks again. A part
depends on its batches alone and merging is exact, so the result is the same, bit for bit on one kind of processor.

Workers need the same version of edgeres and the images at the same path; they render generated sets themselves. One
thread per worker is best, because ONNX Runtime uses every core: ``dask worker --nthreads 1``.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edgeres._version import __version__
from edgeres.calibrate.run import Backend, observe_batches
from edgeres.calibrate.shards import CalibrationJob, State
from edgeres.data.base import Role, Source
from edgeres.data.choose import DataChoice, choose_calibration, choose_validation
from edgeres.data.sources import locate
from edgeres.errors import EdgeresError, EnvironmentError_, SourceError, needs
from edgeres.progress import Advance
from edgeres.records import I64, ModelSpec

_TASK_IMAGES = 256
_GROUP, _LEAST_GROUPS = 16, 8
_CONNECT_SECONDS = 20


@dataclass(frozen=True)
class Recipe:
    """How a worker opens the images: from the user's arguments, which must lead to the same images.

    Attributes:
        digest: of the source on this machine.
    """

    data: DataChoice
    spec: ModelSpec
    digest: str
    role: Role = "calibration"

    def absolute(self) -> Recipe:
        """The same with absolute paths."""
        calibration, validation = _absolute(self.data.calibration), _absolute(self.data.validation)
        table = self.data.validation_labels
        labels = None if table is None else str(Path(table).expanduser().resolve())
        data = replace(self.data, calibration=calibration, validation=validation, validation_labels=labels)
        return replace(self, data=data)


def _absolute(text: str | None) -> str | None:
    path = None if text is None else locate(text)
    return text if path is None else str(path.resolve())


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """A client of a running scheduler.

    Raises:
        EnvironmentError_: dask is not installed, or no scheduler answers at the address.
    """
    try:
        from distributed import Client
        from distributed.comm import parse_address
        from distributed.comm.registry import get_backend
    except ImportError as error:
        raise needs("scale", "dask.distributed") from error
    try:
        get_backend(parse_address(address)[0])  # Client leaves threads behind if the scheme is unknown
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, ImportError) as error:
        what = f"no Dask scheduler answers ({error})"
        raise EnvironmentError_(what, where=address, hint="start one with dask scheduler") from error
    with client:
        if not client.nthreads():
            raise EnvironmentError_("the scheduler has no workers", where=address, hint=f"dask worker {address}")
        yield client


def cluster(client: Any, job: CalibrationJob, graph: bytes, recipe: Recipe) -> Backend:
    """A backend that runs parts on a cluster; ``graph`` is serialized."""
    recipe = recipe.absolute()

    def parts(todo: I64, advance: Advance) -> Iterator[State]:
        size = task_batches(client, len(todo), job.batch)
        pieces = [todo[start : start + size] for start in range(0, len(todo), size)]
        for packed in _merged(client, (hold(client, graph), job, recipe), pieces):
            part = State.unpack(packed)
            advance(len(job.positions(np.array(sorted(part.done), np.int64))))
            yield part

    return parts


def task_batches(client: Any, batches: int, batch: int) -> int:
    """Batches per task: enough images for the cost of a session, and enough tasks to keep every worker busy."""
    threads = max(sum(map(int, client.nthreads().values())), 1)
    return max(1, min(_TASK_IMAGES // batch, -(-batches // (2 * threads))))


def hold(client: Any, graph: bytes) -> Any:
    """A serialized graph on the cluster, as a future.

    It is the result of a task: scattered data would be lost with the workers that hold it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Dask warns that the graph is large
        return client.submit(bytes, graph, key=f"edgeres-graph-{hashlib.sha256(graph).hexdigest()}")


def _merged(client: Any, shared: Sequence[Any], pieces: Sequence[I64]) -> Iterator[bytes]:
    """The states of all pieces, merged on the cluster in groups; groups are yielded as they finish."""
    from distributed import as_completed

    together = max(1, min(_GROUP, len(pieces) // _LEAST_GROUPS))
    groups = []
    with failures(client):
        for start in range(0, len(pieces), together):
            mine = pieces[start : start + together]
            found = [client.submit(_observe, *shared, __version__, piece, pure=False) for piece in mine]
            groups.append(client.submit(_merge, found, pure=False))
        for group in as_completed(groups, loop=client.loop):
            yield group.result()
            group.release()


def in_order(client: Any, work: Callable[..., Any], shared: Sequence[Any], pieces: Sequence[I64]) -> Iterator[Any]:
    """``work(*shared, version, piece)`` for every piece, in order; each worker has a few tasks at a time.

    Args:
        work: a function in a module of edgeres; it calls :func:`check_version`.

    Raises:
        EdgeresError: a task raised it, or workers keep dying.
    """
    todo, under_way = iter(pieces), deque[Any]()
    with failures(client):
        while True:
            window = 4 * max(sum(map(int, client.nthreads().values())), 1)
            for _, piece in zip(range(window - len(under_way)), todo, strict=False):
                under_way.append(client.submit(work, *shared, __version__, piece, pure=False))
            if not under_way:
                return
            yield under_way.popleft().result()


@contextmanager
def failures(client: Any) -> Iterator[None]:
    """Turn failures of a cluster into errors that a user can act on.

    Raises:
        EdgeresError: a task raised it, or workers keep dying.
    """
    from distributed import KilledWorker

    where = client.scheduler.address
    try:
        yield
    except EdgeresError:
        raise
    except KilledWorker as error:
        what = f"a task ended {error.allowed_failures + 1} workers one after another; they may lack memory"
        raise EnvironmentError_(what, where=where, hint="see their logs") from error
    except Exception as error:  # dask raises here what a worker raised, of any kind, and its own errors share no base
        what = f"the cluster failed ({type(error).__name__}: {error})"
        raise EnvironmentError_(what, where=where, hint="see the workers' logs") from error


def check_version(theirs: str) -> None:
    """On a worker: refuse to compute for a client of another version.

    Raises:
        EnvironmentError_: it differs.
    """
    if theirs != __version__:
        what = f"a worker has edgeres {__version__}, and this is {theirs}"
        raise EnvironmentError_(what, hint="install one version everywhere")


@lru_cache(maxsize=4)
def images_of(recipe: Recipe) -> Source:
    """On a worker: the images of a recipe.

    Raises:
        SourceError: the worker cannot open them, or finds other images.
    """
    hint = "every worker must see the same images at the same path"
    data, spec = recipe.data, recipe.spec
    try:
        calibration = recipe.role == "calibration"
        source = choose_calibration(data, spec) if calibration else choose_validation(data, spec)[0]
    except SourceError as error:
        raise SourceError(f"a worker cannot open it: {error.what}", where=error.where, hint=hint) from None
    if source.digest() != recipe.digest:
        raise SourceError("a worker sees other images", where=source.description, hint=hint)
    return source


def _observe(graph: bytes, job: CalibrationJob, recipe: Recipe, version: str, batches: I64) -> bytes:
    """On a worker: one part, packed."""
    check_version(version)
    import onnx

    loaded = onnx.load_from_string(graph)
    return observe_batches(job, loaded, images_of(recipe), batches, lambda steps: None).pack()


def _merge(packed: list[bytes]) -> bytes:
    """On a worker: some parts, as one."""
    state = State.unpack(packed[0])
    for part in packed[1:]:
        state.merge(State.unpack(part))
    return state.pack()
