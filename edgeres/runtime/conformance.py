"""Checks whether a backend keeps the contract; you can run them on a backend of your own:

    subject = Subject(make=lambda: MyRunner("model.bin"), expected=reference)
    conform(subject)

or one by one under a test runner: ``CHECKS`` maps names to functions that raise AssertionError.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres.errors import InputError, UsageError
from edgeres.runtime.runner import Backend, Feed, TensorSpec

__all__ = ["CHECKS", "Subject", "conform"]

THREADS = 4
_ROUNDS = 5
_FREE_BATCH = 5  # the largest batch tried where a backend takes any


@dataclass(frozen=True)
class Subject:
    """A backend under test; its inputs have no free size but the batch.

    Attributes:
        make: opens the backend.
        expected: the reference: what the network computes for a feed, by other means.
        tolerance: absolute and relative tolerance of output values.
    """

    make: Callable[[], Backend]
    expected: Callable[[Feed], Feed]
    tolerance: float = 1e-5

    def feed(self, backend: Backend, batch: int, seed: int = 0) -> Feed:
        """Random inputs."""
        rng = np.random.default_rng(seed)
        return {tensor.name: _random(rng, tensor, batch) for tensor in backend.inputs}

    def check(self, found: Feed, feed: Feed) -> None:
        wanted = self.expected(feed)
        for name, values in wanted.items():
            assert name in found, f"no output {name}"
            assert found[name].dtype == values.dtype, f"{name} is {found[name].dtype}, not {values.dtype}"
            assert found[name].shape == values.shape, f"{name} is {found[name].shape}, not {values.shape}"
            np.testing.assert_allclose(found[name], values, rtol=self.tolerance, atol=self.tolerance)


def it_says_what_it_takes(subject: Subject) -> None:
    """Names, dtypes and shapes are known before the first inference."""
    with subject.make() as backend:
        assert backend.name and "\n" not in backend.name
        assert backend.input_name in {tensor.name for tensor in backend.inputs}
        assert backend.output_name in {tensor.name for tensor in backend.outputs}
        for tensor in backend.inputs:
            assert tensor.shape and None not in tensor.shape[1:], f"{tensor.name} has free sizes besides the batch"
        assert backend.max_batch is None or backend.max_batch >= 1


def every_batch_is_right(subject: Subject) -> None:
    """Results equal the reference for small and large batches in changing order."""
    with subject.make() as backend:
        largest = backend.max_batch or _FREE_BATCH
        for seed, batch in enumerate((1, largest, 1, 1, 1, (largest + 1) // 2, largest, largest, largest)):
            feed = subject.feed(backend, batch, seed)
            subject.check(_run(backend, feed), feed)


def a_larger_batch_is_cut(subject: Subject) -> None:
    """A batch above the largest is run in parts, or refused by an InputError that names it."""
    with subject.make() as backend:
        if backend.max_batch is None:
            return
        for batch in (backend.max_batch + 1, 2 * backend.max_batch, 3 * backend.max_batch + 1):
            feed = subject.feed(backend, batch, batch)
            try:
                found = backend.infer(feed)
            except InputError as error:
                assert str(batch) in str(error) and "\n" not in str(error)
            else:
                subject.check(found, feed)


def a_wrong_feed_is_refused_in_one_line(subject: Subject) -> None:
    """A wrong name, dtype or shape is refused in one line, and the next valid feed runs."""
    with subject.make() as backend:
        good, name = subject.feed(backend, backend.max_batch or 1), backend.input_name
        array = good[name]
        wrong: dict[str, Any] = {
            "dtype": {**good, name: array.astype(np.float64 if array.dtype != np.float64 else np.float32)},
            "size": {**good, name: array[..., :-1]},
            "rank": {**good, name: array[0]},
            "name": {**{key: good[key] for key in good if key != name}, f"{name}_": array},
            "nothing": {},
            "more": {**good, "more": array},
            "list": {**good, name: array.tolist()},
            "empty": {**good, name: array[:0]},
        }
        for what, feed in wrong.items():
            with _refused(InputError, what) as errors:
                backend.infer(feed)
            assert name in str(errors[0]), f"{what}: the error does not name {name}"
        subject.check(backend.infer(good), good)


def memory_layout_does_not_matter(subject: Subject) -> None:
    """Views, Fortran order and read-only arrays give what a contiguous copy gives."""
    with subject.make() as backend:
        feed, name = subject.feed(backend, backend.max_batch or 2), backend.input_name
        array, plain = feed[name], _run(backend, feed)
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        locked = array.copy()
        locked.flags.writeable = False
        layouts = {
            "every other": wide[..., ::2],
            "reversed": np.ascontiguousarray(array[::-1])[::-1],
            "transposed": np.ascontiguousarray(array.swapaxes(1, -1)).swapaxes(1, -1),
            "Fortran": np.asfortranarray(array),
            "read-only": locked,
        }
        for layout, view in layouts.items():
            _same(backend.infer({**feed, name: view}), plain, layout)


def outputs_belong_to_the_caller(subject: Subject) -> None:
    """No later call changes a result, writing into a result changes no later call, and inputs are not changed."""
    with subject.make() as backend:
        batch = backend.max_batch or 1
        first_feed, second_feed = subject.feed(backend, batch, 1), subject.feed(backend, batch, 2)
        before = {name: array.copy() for name, array in first_feed.items()}
        for _ in range(_ROUNDS):
            first = backend.infer(first_feed)
            kept = {name: array.copy() for name, array in first.items()}
            backend.infer(second_feed)
            _same(first, kept, "after another call")
            for array in first.values():
                array[...] = 0
            _same(backend.infer(first_feed), kept, "after writing into a result")
        _same(first_feed, before, "the input, after it was run")


def threads_get_what_one_gets(subject: Subject) -> None:
    """Results of concurrent threads equal those of one thread to the last bit."""
    with subject.make() as backend:
        largest = backend.max_batch or _FREE_BATCH
        feeds = [subject.feed(backend, 1 if index % 2 else largest, index) for index in range(2 * THREADS)]
        alone = [_run(backend, feed) for feed in feeds]
        start = threading.Barrier(THREADS)

        def work(number: int) -> None:
            start.wait()
            for turn in range(_ROUNDS * len(feeds)):
                index = (number + turn) % len(feeds)
                _same(_run(backend, feeds[index]), alone[index], f"thread {number}, feed {index}")

        _in_threads(work)


def a_closed_one_says_so(subject: Subject) -> None:
    """A call after closing is a UsageError, closing twice is allowed, and another backend opens afterwards."""
    backend = subject.make()
    feed = subject.feed(backend, backend.max_batch or 1)
    with backend:
        backend.infer(feed)
    for _ in range(2):
        with _refused(UsageError, "closed"):
            backend.infer(feed)
        backend.close()
    with subject.make() as again:
        subject.check(again.infer(feed), feed)


def closing_waits_for_threads(subject: Subject) -> None:
    """Threads that infer while another thread closes get their result or a UsageError."""
    backend = subject.make()
    feed = subject.feed(backend, backend.max_batch or 1)
    right = backend.infer(feed)
    running = threading.Barrier(THREADS + 1)

    def work(number: int) -> None:
        running.wait()
        with suppress(UsageError):
            while True:
                _same(backend.infer(feed), right, f"thread {number}, while closing")

    def close() -> None:
        running.wait()
        for _ in range(_ROUNDS):
            backend.infer(feed)
        backend.close()

    _in_threads(work, close)


CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        it_says_what_it_takes,
        every_batch_is_right,
        a_larger_batch_is_cut,
        a_wrong_feed_is_refused_in_one_line,
        memory_layout_does_not_matter,
        outputs_belong_to_the_caller,
        threads_get_what_one_gets,
        a_closed_one_says_so,
        closing_waits_for_threads,
    )
}


def conform(subject: Subject) -> None:
    """Run every check.

    Raises:
        AssertionError: a check failed; the message names it.
    """
    for name, check in CHECKS.items():
        try:
            check(subject)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def _random(rng: np.random.Generator, tensor: TensorSpec, batch: int) -> npt.NDArray[Any]:
    shape = (batch, *(size for size in tensor.shape[1:] if size is not None))
    if tensor.dtype.kind == "f":
        return rng.standard_normal(shape).astype(tensor.dtype)
    return rng.integers(0, 128, shape).astype(tensor.dtype)


def _run(backend: Backend, feed: Feed) -> Feed:
    """Infer; where the backend has a fixed batch, the last image is repeated to fill the last part."""
    fixed = backend.inputs[0].shape[0]
    count = len(next(iter(feed.values())))
    if fixed is None or count % fixed == 0:
        return backend.infer(feed)
    full = {name: np.concatenate([array, *[array[-1:]] * (fixed - count % fixed)]) for name, array in feed.items()}
    return {name: array[:count] for name, array in backend.infer(full).items()}


def _same(found: Feed, wanted: Feed, where: str) -> None:
    for name, array in wanted.items():
        assert found[name].tobytes() == array.tobytes(), f"{name} differs: {where}"


@contextmanager
def _refused(kind: type[Exception], what: str) -> Iterator[list[Exception]]:
    errors: list[Exception] = []
    try:
        yield errors
    except kind as error:
        errors.append(error)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} instead of {kind.__name__}: {error}") from error
    assert errors, f"{what} is not refused"
    assert "\n" not in str(errors[0]), f"{what}: the error takes more than one line"


def _in_threads(work: Callable[[int], None], here: Callable[[], None] = lambda: None) -> None:
    """Call ``work`` with a number in each of several threads, and ``here`` in this one; raise a thread's error."""
    with ThreadPoolExecutor(THREADS) as pool:
        threads = [pool.submit(work, number) for number in range(THREADS)]
        here()
    for thread in threads:
        thread.result()
