"""Frames of every format and layout beside OpenCV, bit for bit; and arguments of Frame as bad callers give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeres.errors import EdgeresError
from edgeres.runtime import Frame
from edgeres.runtime.frames import FORMATS

frame_cases = pytest.importorskip("frame_cases", reason="needs opencv-python-headless")


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
