"""What computes in float between INT8 layers is told, where it is much."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from foreign_graphs import Writer, basic_block, relu

from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.graph.graph import Graph
from edgeres.graph.normalize import normalize
from edgeres.quantize.between import float_between
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.records import Style

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)


def told(layers: Callable[[Writer, str], str], style: Style) -> str | None:
    w = Writer()
    canonical = normalize(w.model(w.head(layers(w, relu(w, w.conv("data", (3, 16), 3, 2))), 16)))
    loader = Loader(Arrays(IMAGES, np.full(8, -1), (), "random"), canonical.preprocess, 8)
    plan = quantize(canonical.model, [style], loader, RangeChoice("minmax")).plans[style]
    return float_between(Graph(canonical.model), plan)


def softplus(w: Writer, x: str) -> str:
    for _ in range(3):
        x = w.op("Softplus", w.conv(w.op("Abs", x), (16, 16)))
    return x


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
def test_operators_without_an_integer_kernel_are_counted(style: Style) -> None:
    # The last Softplus is behind the last convolution, and before the Gemm.
    assert told(softplus, style) == (
        f"6 operators between the 5 INT8 layers of the {style} graph compute in float (3 Abs, 3 Softplus), which may "
        "cost the time that INT8 saves; edgeres inspect lists them"
    )


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
def test_a_residual_network_has_nothing_to_tell(style: Style) -> None:
    assert told(lambda w, x: basic_block(w, basic_block(w, x, (16, 16)), (16, 16)), style) is None
