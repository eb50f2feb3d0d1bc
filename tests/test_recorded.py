"""The calibrations in calibration/ are what the bundled models and their images give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeres.calibrate.ranges_file import RangesFile, read_calibration
from edgeres.data.choose import DataChoice
from edgeres.graph.graph import Graph
from edgeres.pipeline.calibrate import CalibrateOptions, calibrate_file
from edgeres.pipeline.network import input_variants
from edgeres.pipeline.take import ModelChoice, take, with_exact_input
from edgeres.quantize.graphs import STYLES, wanted_ranges
from edgeres.quantize.placement import place

FOLDER = Path(__file__).parents[1] / "calibration"


def recorded(name: str) -> RangesFile:
    return read_calibration(FOLDER / f"{name}-signs.json")


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_builds_of_the_bundled_models_take_them(name: str) -> None:
    """Whatever the graph takes: normalized images as exported, bytes as built, bytes out of normalized images."""
    taken = take(ModelChoice(name))
    for form in (taken, with_exact_input(taken), with_exact_input(taken, "normalized")):
        ranges = recorded(name).of(input_variants(form, taken))
        wanted = {style: wanted_ranges(place(Graph(form.graph), style)) for style in STYLES}
        found = ranges.choose("mse", wanted, form.known)
        assert all(found[style].keys() >= set(asked.all) for style, asked in wanted.items())


def test_calibrating_anew_finds_the_recorded_ranges(tmp_path: Path) -> None:
    """To the width of a few bins: another processor rounds its convolutions differently."""
    file = recorded("resnet20").content
    data = DataChoice(calibration_size=file.samples)
    options = CalibrateOptions(file.method, file.batch)
    calibrate_file(ModelChoice("resnet20"), data, options, tmp_path / "c.json")
    again = read_calibration(tmp_path / "c.json").content
    assert replace(again, tensors={}, model=file.model, preprocess=file.preprocess) == replace(file, tensors={})
    assert again.tensors.keys() == file.tensors.keys()
    for tensor, entry in file.tensors.items():
        assert again.tensors[tensor].ranges.keys() == entry.ranges.keys()
        for style, limits in entry.ranges.items():
            found = again.tensors[tensor].ranges[style]
            assert found == pytest.approx(limits, rel=0.02, abs=1e-4), (tensor, style)
