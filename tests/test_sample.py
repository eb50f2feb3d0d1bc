"""What is counted of large tensors stands for all of their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeres.calibrate import sample
from edgeres.calibrate.sample import WHOLE, Split, phase_of, split
from edgeres.records import F32

Small = tuple[int, int, int, int]


def relu_like(count: int, seed: int = 0) -> F32:
    random = np.random.default_rng(seed)
    return np.maximum(random.standard_normal(count) * random.gamma(1.0, 1.0, count), 0).astype(np.float32)


def two_sided(count: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_t(4, count).astype(np.float32)


def one(values: F32, phase: int) -> Split:
    (found,) = split(values[None], [phase])
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same method on tensors so small that every phase can be tried."""
    for name, value in {"WHOLE": 16, "SCANNED": 64, "SAMPLE": 16, "_PROBE": 8, "OUTER": 0.15}.items():
        monkeypatch.setattr(sample, name, value)
    sample._layout.cache_clear()
    yield
    sample._layout.cache_clear()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [120, 121, 96])
@pytest.mark.parametrize("shape", [two_sided, lambda count: -two_sided(count), lambda count: np.abs(two_sided(count))])
def test_every_value_is_counted_once_in_the_mean_over_all_phases(count, shape) -> None:
    values = shape(count)
    assert len(np.unique(values)) == count
    layout = sample._layout(count)
    phases = layout.parts * layout.step * layout.probe_step
    times: Counter[float] = Counter()
    for phase in range(phases):
        found = one(values, phase)
        for some, weight in ((found.outer, found.outer_weight), (found.body, found.body_weight)):
            for value in some.tolist():
                times[value] += weight
    assert times == dict.fromkeys(values.tolist(), phases)


@given(st.integers(WHOLE + 1, 300_000), st.integers(0, 2**32 - 1), st.sampled_from([relu_like, two_sided]))
@settings(max_examples=60)
def test_extremes_are_exact_and_counts_add_up(count, phase, shape) -> None:
    values = shape(count)
    found = one(values, phase)
    assert (found.low, found.high) == (values.min(), values.max())
    assert np.isin(found.outer, values).all() and np.isin(found.body, values).all()
    total = len(found.outer) * found.outer_weight + len(found.body) * found.body_weight
    assert total == pytest.approx(count, rel=0.2)


@pytest.mark.parametrize("count", [64 * 112 * 112, 256 * 56 * 56, 512 * 7 * 7, 16 * 32 * 33])
@pytest.mark.parametrize("shape", [relu_like, two_sided])
def test_quantiles_of_a_few_images_are_near_the_exact_ones(count, shape) -> None:
    images = [shape(count, seed) for seed in range(8)]
    parts = [one(image, phase_of(image)) for image in images]
    found = np.concatenate([some for part in parts for some in (part.outer, part.body)])
    weights = np.concatenate(
        [np.full(len(some), weight) for part in parts
         for some, weight in ((part.outer, part.outer_weight), (part.body, part.body_weight))]
    )  # fmt: skip
    order = np.argsort(found)
    below = np.cumsum(weights[order]) / weights.sum()
    for share in (0.01, 0.5, 0.9, 0.99, 0.999, 0.9999):
        exact = np.quantile(np.concatenate(images), share)
        at = np.searchsorted(found[order], exact, side="right")
        spread = 0.15 * (1 - share) if share > 0.99 else 0.02  # the tail is counted value by value
        assert below[at - 1] == pytest.approx(share, abs=spread) or exact == 0


def test_a_small_tensor_is_counted_whole() -> None:
    values = two_sided(2 * WHOLE).reshape(2, -1)
    (found,) = split(values, [1, 2])
    assert np.array_equal(found.outer, values.ravel()) and found.outer_weight == 1
    assert not len(found.body)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [relu_like, two_sided])
def test_one_value_that_is_not_finite_shows_in_the_extremes(bad, shape) -> None:
    values = shape(100_000)
    values[77_777] = bad
    found = one(values, 5)
    assert not (np.isfinite(found.low) and np.isfinite(found.high))


def test_the_phase_is_the_image_s_own() -> None:
    image = two_sided(3 * 32 * 32).reshape(3, 32, 32)
    other = image.copy()
    other.reshape(-1)[61] += 1
    assert phase_of(image) == phase_of(image.copy()) != phase_of(other)
