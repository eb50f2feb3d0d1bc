"""The calibrations in calibration/ are what a build of the bundled models finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeres.data.choose import DataChoice, choose_calibration
from edgeres.data.loader import Loader
from edgeres.graph.view import GraphView
from edgeres.intake import Fp32Model, ModelChoice, take, with_exact_input
from edgeres.quantize.placement import place
from edgeres.quantize.stage import RangeChoice, quantize

FOLDER = Path(__file__).parents[1] / "calibration"


def recorded(name: str) -> tuple[Fp32Model, dict[str, Any]]:
    fp32 = with_exact_input(take(ModelChoice(name)))
    document: dict[str, Any] = json.loads((FOLDER / f"{name}-signs.json").read_text())
    return fp32, document


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_every_observed_tensor_is_recorded(name: str) -> None:
    fp32, document = recorded(name)
    view = GraphView(fp32.graph)
    assert document["preprocess"] == json.loads(json.dumps(fp32.spec.preprocess.to_dict()))
    for style in ("tensorrt", "cpu"):
        assert all(style in document["tensors"][tensor]["ranges"] for tensor in place(view, style).observed)  # type: ignore[arg-type]


def test_calibrating_anew_finds_the_recorded_ranges() -> None:
    """To the width of two bins: another processor rounds its convolutions differently."""
    fp32, document = recorded("resnet20")
    source = choose_calibration(DataChoice(calibration_size=document["samples"]), fp32.spec)
    assert source.digest() == document["source_digest"]
    loader = Loader(source, fp32.spec.preprocess, 64)
    found = quantize(fp32.graph, ["tensorrt", "cpu"], loader, RangeChoice(document["method"], known=fp32.known))
    for tensor, entry in document["tensors"].items():
        for style, limits in entry["ranges"].items():
            again = found.calibration["tensors"][tensor]["ranges"][style]
            assert again == pytest.approx(limits, rel=0.02, abs=1e-4), (tensor, style)
