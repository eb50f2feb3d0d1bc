"""Frames of every format and layout beside OpenCV, bit for bit; and arguments of Frame as bad callers give them."""

from __future__ import annotations

import sys
import types
from typing import Any
from unittest import mock

import numpy as np
import pytest

from edgeres.data import colour
from edgeres.errors import EdgeresError
from edgeres.runtime import Frame
from edgeres.runtime.frames import FORMATS

cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
import frame_cases  # noqa: E402  it imports cv2


@pytest.fixture(autouse=True)
def without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """The own conversion is tried, though this process has imported OpenCV."""
    monkeypatch.setattr(colour, "_opencv", lambda: None)


def test_every_format_is_tested() -> None:
    assert {name.lower() for name in frame_cases.NAMES} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_random_frames_have_opencvs_bits(name: str) -> None:
    """1,000 frames of each format with random sizes, steps, offsets and containers."""
    name = {"16uc1": "16UC1"}.get(name, name)
    for seed in range(1000):
        given = frame_cases.case(np.random.default_rng(seed), name)
        found, wanted = Frame(**given).rgb(), frame_cases.reference(given)
        assert found.dtype == np.uint8 and found.shape == wanted.shape, (seed, name)
        assert np.array_equal(found, wanted), (seed, name, given)


@pytest.mark.parametrize("name", ["nv12", "nv21", "i420", "yv12", "yuyv", "yvyu", "uyvy"])
def test_opencv_converts_where_it_is_imported_and_has_these_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    used = mock.Mock(wraps=colour._from_yuv_by_opencv)
    monkeypatch.setattr(colour, "_from_yuv_by_opencv", used)
    for seed in range(100):
        given = {**frame_cases.case(np.random.default_rng(seed), name), "colour": "bt601"}
        assert np.array_equal(Frame(**given).rgb(), frame_cases.reference(given)), (seed, given)
    assert used.call_count >= 100
    Frame(np.zeros((6, 4), np.uint8), "nv12", colour="bt709").rgb()
    assert used.call_args.args[1].shape != (4, 4)  # of OpenCV only BT.601 is known


@pytest.mark.parametrize("other", ["bits", "nothing", "error"])
def test_another_opencv_is_left_alone(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors where it rounds in another way, in a stub, and in an older version."""
    monkeypatch.undo()
    fake: Any = types.ModuleType("cv2")
    if other != "nothing":
        fake.__dict__.update({name: value for name, value in vars(cv2).items() if "YUV" in name or name == "error"})
    if other == "bits":
        fake.cvtColorTwoPlane = lambda *given: cv2.cvtColorTwoPlane(*given) ^ (np.arange(3) == 2).astype(np.uint8)
        fake.cvtColor = cv2.cvtColor
    elif other == "error":
        fake.cvtColorTwoPlane = fake.cvtColor = lambda *given: cv2.cvtColor(np.zeros((1, 1), np.uint8), given[-1])
    monkeypatch.setitem(sys.modules, "cv2", fake)
    y, u, v = np.random.default_rng(1).integers(0, 256, (3, 8, 16), np.uint8)
    found = colour.from_yuv(y, u[::2, ::2], v[::2, ::2])
    assert found.strides[1] == 1  # in planes: the own conversion
    pairs = np.stack([u[::2, ::2], v[::2, ::2]], -1)
    np.testing.assert_array_equal(found, cv2.cvtColorTwoPlane(y, pairs, cv2.COLOR_YUV2RGB_NV12))


def test_bad_arguments_are_an_error_or_give_the_right_pixels() -> None:
    """20,000 calls: an error of edgeres in one line, or what OpenCV makes of the same bytes."""
    refused = 0
    for seed in range(20_000):
        given = frame_cases.hostile(np.random.default_rng(seed))
        try:
            found = Frame(**given).rgb()
        except EdgeresError as error:
            refused += 1
            assert "\n" not in str(error), (seed, str(error))
            continue
        wanted = frame_cases.reference(_by_its_name(given))
        assert found.shape == wanted.shape and np.array_equal(found, wanted), (seed, given)
    assert 0.3 < refused / 20_000 < 0.9


def _by_its_name(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the format under the name that the reference has."""
    name = {"RGB": "rgb8", "NV12": "nv12"}.get(given["format"], given["format"])
    return {**given, "format": name}
