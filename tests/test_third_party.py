"""Published third-party ResNets, real images: FP32 as published, INT8 within 0.3 points, and RTX takes the graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeres.device.libraries import available
from edgeres.pipeline.build import build

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = {"resnet20": ("resnet20-12fca82f.th", 91.5), "resnet32": ("resnet32-d509ac18.th", 92.8)}

pytestmark = pytest.mark.skipif(
    not (SHARED / "weights").is_dir(), reason="third-party weights and CIFAR-10 images are not in ../shared"
)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_third_party_resnet_keeps_its_accuracy(name: str, tmp_path: Path) -> None:
    file, published = WEIGHTS[name]
    result = build(
        name,
        weights=str(SHARED / "weights" / file),
        calibration=str(SHARED / "data" / "cifar10_train4000.npz"),
        validation=str(SHARED / "data" / "cifar10_test1000.npz"),
        output=tmp_path / name,
    )
    accuracy = result.report["accuracy"]
    assert accuracy["fp32"]["top1"] == pytest.approx(published, abs=0.05)
    assert set(accuracy["graphs"]) == ({"cpu", "tensorrt", "rtx"} if available("rtx").can_build else {"cpu"})
    for style, graph in accuracy["graphs"].items():
        assert graph["drop_pp"] <= 0.3 + 1e-9, style
        assert graph["logit_sqnr_db"] > 25, style
    assert result.passed
    if available("rtx").can_build:
        built = [e for e in result.report["engines"] if e["precision"] == "int8" and e["runtime"] == "rtx"]
        assert built and all((result.path / e["file"]).stat().st_size == e["size_bytes"] for e in built)
