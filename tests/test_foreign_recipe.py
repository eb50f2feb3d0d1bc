"""ResNets as other exporters write them go through the whole recipe."""

from __future__ import annotations

from pathlib import Path

import foreign_graphs
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from moving_graphs import MOVING

from edgeres.data.choose import DataChoice
from edgeres.graph.lint import lint
from edgeres.graph.normalize import normalize
from edgeres.pipeline.options import RangeOptions
from edgeres.pipeline.quantize import quantize_file
from edgeres.pipeline.take import ModelChoice
from edgeres.records import CODES
from edgeres.refine.choice import RefineChoice

NETWORKS = {**foreign_graphs.FOREIGN, **MOVING}


@pytest.mark.parametrize("name", NETWORKS)
def test_balanced_refines_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeres.refine.recipe._LEAST_HELD_TO_EQUALIZE", 16)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(40) % 4)
    onnx.save(NETWORKS[name](), tmp_path / "model.onnx")
    done = quantize_file(
        ModelChoice(tmp_path / "model.onnx"),
        DataChoice(str(tmp_path / "images.npz"), None, 40, None, 0),
        RangeOptions(),
        RefineChoice("balanced", "auto"),
    )
    graph = onnx.load_from_string(done.model)
    assert not [finding for finding in lint(graph) if finding.effect in {"refused", "wrong", "slow"}]
    # Learning may have been tried twice: see _Refiner._learn.
    names = {step["name"].partition(",")[0] for step in done.summary["refinement"]}
    assert names == {"equalization", "learned ranges", "bias correction"}
    assert all(step["after_db"] is not None for step in done.summary["refinement"])

    reference = normalize(NETWORKS[name]()).model
    shape = [size.dim_value for size in reference.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(1).standard_normal((8, *shape)).astype(np.float32)
    x = np.abs(x) * 60 if any("0 to 255" in note for note in done.summary["notes"]) else x
    expected, found = (
        ort.InferenceSession(model.SerializeToString()).run(None, {model.graph.input[0].name: x})[0]
        for model in (reference, graph)
    )
    assert 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()) > 15


def test_half_codes_leave_padding_to_the_convolutions(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(8) % 4)
    onnx.save(foreign_graphs.torchscript(), tmp_path / "model.onnx")
    pads = {}
    for codes in CODES:
        done = quantize_file(
            ModelChoice(tmp_path / "model.onnx"),
            DataChoice(str(tmp_path / "images.npz"), None, 8, None, 0),
            RangeOptions(codes=codes),
            RefineChoice("fast"),
        )
        graph = onnx.load_from_string(done.model).graph
        pads[codes] = sum(node.op_type == "Pad" for node in graph.node)
    assert pads["half"] == pads["free"] == 1  # the exact input's fourth channel
    assert pads["full"] > 1
