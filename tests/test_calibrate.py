"""Sketches and ranges against exact statistics, brute force and ONNX Runtime's own quantizer."""

from __future__ import annotations

import json
from collections.abc import Callable

import hypothesis.extra.numpy as hnp
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector

from edgeres.calibrate.identity import Identity
from edgeres.calibrate.ranges import LEVELS, Moments, choose_range, magnitudes, quantile, rounding_error
from edgeres.calibrate.record import CALIBRATION_KIND, Calibration, Wanted
from edgeres.calibrate.sketch import MANTISSA_BITS, Histogram, Sketch
from edgeres.errors import InputError
from edgeres.records import METHODS, Preprocess

RESOLUTION = 2.0**-MANTISSA_BITS

floats = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=2, max_side=40),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


def sketch_of(*arrays: np.ndarray) -> Sketch:
    sketch = Sketch()
    for array in arrays:
        sketch.add(array)
    return sketch


def relu_like(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(200_000).astype(np.float32)
    return np.maximum(values, 0) * 1.7


def two_sided(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.laplace(0.3, 0.8, 200_000)).astype(np.float32)


@given(floats)
def test_every_value_is_counted_in_the_bin_that_holds_it(values: np.ndarray) -> None:
    histogram = sketch_of(values).histogram()
    assert histogram.total == values.size
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    for value in values.ravel()[:20]:
        inside = (histogram.lows <= value) & (value <= histogram.highs)
        assert value == 0 or inside.any()


@given(st.lists(floats, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_order_and_grouping_change_nothing(arrays: list[np.ndarray], random: object) -> None:
    forward = sketch_of(*arrays)
    shuffled = list(arrays)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left, right = sketch_of(*shuffled[:1]), sketch_of(*shuffled[1:])
    right.merge(left)
    whole = sketch_of(np.concatenate([a.ravel() for a in arrays]))
    for other in (right, whole):
        assert np.array_equal(forward.counts, other.counts)
        assert (forward.low, forward.high) == (other.low, other.high)


@pytest.mark.parametrize("values", [relu_like(), two_sided(), -relu_like(3)])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.9, 0.999, 0.9999])
def test_quantiles_are_exact_to_the_width_of_a_bin(values: np.ndarray, share: float) -> None:
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert quantile(sketch_of(values).histogram(), share) == pytest.approx(exact, rel=RESOLUTION, abs=1e-30)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="infinite or undefined"):
        sketch_of(np.array([1.0, bad], np.float32))


def test_magnitudes_fold_both_signs() -> None:
    values = two_sided()
    folded = magnitudes(sketch_of(values).histogram())
    expected = sketch_of(np.abs(values)).histogram()
    assert folded.total == expected.total
    assert folded.counts.tolist() == expected.counts.tolist()
    assert folded.lows == pytest.approx(expected.lows, rel=RESOLUTION)


def ort_error(values: np.ndarray, scale: float, dtype: int, zero_point: int) -> float:
    """Mean squared error of ONNX Runtime's QuantizeLinear and DequantizeLinear."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [scale]), helper.make_tensor("z", dtype, [], [zero_point])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": values.ravel()})[0]
    return float(np.mean((values.ravel().astype(np.float64) - got) ** 2))


def error_of(histogram: Histogram, scale: float, code_low: int, codes: int) -> float:
    return float(rounding_error(Moments.of(histogram), np.array([scale]), np.array([code_low]), codes)[0])


@pytest.mark.parametrize("make", [relu_like, two_sided])
@pytest.mark.parametrize("amax", [0.5, 2.0, 6.0])
def test_rounding_error_is_what_onnx_runtime_commits(make: Callable[[], np.ndarray], amax: float) -> None:
    values = make()
    scale = amax / 127
    predicted = error_of(sketch_of(values).histogram(), scale, -127, 255)
    assert predicted == pytest.approx(ort_error(values, scale, TensorProto.INT8, 0), rel=0.02)


@given(st.floats(0.01, 3.0), st.integers(1, 127))
def test_rounding_error_of_a_uniform_bin_is_the_integral(scale: float, top: int) -> None:
    histogram = Histogram(np.array([0.5]), np.array([0.75]), np.array([10.0]), 0, 0.5, 0.75)
    points = 0.5 + (np.arange(200_000) + 0.5) * (0.25 / 200_000)
    brute = np.mean((points - scale * np.clip(np.rint(points / scale), -top, top)) ** 2)
    assert error_of(histogram, scale, -top, 2 * top + 1) == pytest.approx(brute, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("make", [relu_like, two_sided])
def test_mse_finds_the_least_error_of_an_exhaustive_search(make: Callable[[], np.ndarray]) -> None:
    values = make()
    chosen = choose_range("x", sketch_of(values).histogram(), "mse", 1, symmetric=True)
    top = float(np.abs(values).max())
    least = min(ort_error(values, a / 127, TensorProto.INT8, 0) for a in np.linspace(0.05 * top, top, 150))
    assert ort_error(values, chosen.amax / 127, TensorProto.INT8, 0) <= 1.01 * least


def test_affine_mse_finds_the_least_error_of_an_exhaustive_search() -> None:
    values = two_sided()
    chosen = choose_range("x", sketch_of(values).histogram(), "mse", 1, symmetric=False)

    def error(low: float, high: float) -> float:
        scale = (high - low) / 255
        return ort_error(values, scale, TensorProto.UINT8, round(-low / scale))

    low, high = float(values.min()), float(values.max())
    grid = [(low * a, high * b) for a in np.linspace(0.2, 1, 15) for b in np.linspace(0.2, 1, 15)]
    assert error(chosen.low, chosen.high) <= 1.01 * min(error(*pair) for pair in grid)


@given(st.lists(st.floats(-5.0, 5.0, width=32), min_size=1, max_size=12), st.floats(0.01, 1.0), st.integers(-255, 0))
def test_rounding_error_of_single_values(values: list[float], scale: float, code_low: int) -> None:
    """Bins without width, at code boundaries too, on either side of zero and clipped: value by value."""
    exact = np.unique(np.array(values, np.float64))
    nonzero = exact[exact != 0]
    assume(len(nonzero))
    histogram = Histogram(nonzero, nonzero, np.ones(len(nonzero)), len(exact) - len(nonzero), exact[0], exact[-1])
    codes = np.clip(np.rint(exact / scale), code_low, code_low + 255)
    brute = np.mean((exact - scale * codes) ** 2)
    assert error_of(histogram, scale, code_low, 256) == pytest.approx(brute, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("draw", ["laplace", "standard_normal"])
def test_entropy_agrees_with_onnx_runtimes_search(draw: str) -> None:
    """With 2048 bins a side and 128 levels a side; enough samples that the tail's noise does not decide."""
    values = getattr(np.random.default_rng(5), draw)(size=2_000_000).astype(np.float32)
    both = np.concatenate([-np.abs(values), np.abs(values)])
    top = float(np.abs(values).max())
    collector = HistogramCollector("entropy", True, 4095, 2 * LEVELS - 1, 99.99, "same")
    bins = (*np.histogram(both, 4095), -top, top, top)
    expected = float(collector.get_entropy_threshold(bins, 2 * LEVELS - 1)[1])
    chosen = choose_range("x", sketch_of(values).histogram(), "entropy", 1, symmetric=True)
    assert chosen.amax == pytest.approx(expected, rel=0.12)
    assert chosen.amax < 0.97 * top


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=25, deadline=None)
@given(values=floats)
def test_ranges_hold_zero_and_stay_inside_what_was_seen(method: str, symmetric: bool, values: np.ndarray) -> None:
    chosen = choose_range("x", sketch_of(values).histogram(), method, 7, symmetric=symmetric)  # type: ignore[arg-type]
    top = float(np.abs(values).max())
    assert chosen.low <= 0 <= chosen.high
    assert chosen.amax <= top * (1 + 1e-6)
    assert chosen.amax > 0 or top == 0 or not symmetric
    assert chosen.samples == 7
    if symmetric and values.min() < 0:
        assert chosen.low == -chosen.high


def test_minmax_is_exact() -> None:
    values = two_sided()
    chosen = choose_range("x", sketch_of(values).histogram(), "minmax", 1, symmetric=False)
    assert (chosen.low, chosen.high) == (values.min(), values.max())


def test_what_a_calibration_writes_is_read_and_its_digest_ignores_key_order() -> None:
    calibration = Calibration({"x": sketch_of(relu_like())}, 3, "three images", "0" * 64, Preprocess((8, 8)))
    ranges = calibration.choose("mse", {"tensorrt": Wanted(symmetric=("x",))})["tensorrt"]
    document = calibration.to_dict("mse", {"tensorrt": ranges}, Identity("1" * 64, 0, 0.0, 0.0), 8)
    reversed_ = json.dumps(dict(reversed(list(document.items()))))
    found = CALIBRATION_KIND.decode(reversed_.encode(), "here")
    assert found.tensors["x"].ranges == {"tensorrt": (ranges["x"].low, ranges["x"].high)}
    assert (found.samples, found.source, found.batch, found.unreadable) == (3, "three images", 8, ())
    with pytest.raises(InputError, match="was changed after it was written"):
        CALIBRATION_KIND.decode(json.dumps({**document, "samples": 4}).encode(), "here")
