"""Precision of the residual stream: the change of the graph, its cost, and the budget of ``auto``."""

from __future__ import annotations

import numpy as np
import pytest
from noise import noise_power
from onnx import TensorProto

from edgeres.data.arrays import Arrays
from edgeres.data.loader import Loader
from edgeres.graph.graph import Graph
from edgeres.pipeline.take import Fp32Model, ModelChoice, take
from edgeres.quantize.graphs import RangeChoice, quantize
from edgeres.quantize.plan import plan_digest
from edgeres.records import F32
from edgeres.refine.candidate import CandidatePlan, logits
from edgeres.refine.residual import choose_residual, keep_in_half, skips


@pytest.fixture(scope="module")
def fp32() -> Fp32Model:
    return take(ModelChoice("resnet20", weights="random"))


@pytest.fixture(scope="module")
def images(fp32: Fp32Model) -> F32:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    source = Arrays(pixels, np.zeros(24, np.int64), ("one",), "random")
    return next(iter(Loader(source, fp32.spec.preprocess, 24))).inputs


@pytest.fixture(scope="module")
def candidate(fp32: Fp32Model) -> CandidatePlan:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    loader = Loader(Arrays(pixels, np.zeros(24, np.int64), ("one",), "random"), fp32.spec.preprocess, 8)
    return CandidatePlan(fp32.graph, quantize(fp32.graph, ["tensorrt"], loader, RangeChoice()).plans["tensorrt"])


def test_every_residual_add_has_one_skip(candidate: CandidatePlan) -> None:
    found = skips(Graph(candidate.graph), candidate.plan)
    assert len(found) == 9
    assert len(set(found.values())) == 9


def test_half_skips_are_casts_and_convolutions_keep_their_codes(candidate: CandidatePlan) -> None:
    view = Graph(candidate.graph)
    found = skips(view, candidate.plan)
    plan = keep_in_half(view, candidate.plan, found)
    graph = CandidatePlan(candidate.graph, plan).quantized().graph
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert sum(node.attribute[0].i == TensorProto.FLOAT16 for node in casts) == 9
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            assert producer[node.input[0]].op_type == "DequantizeLinear"
        if node.op_type == "Add":
            assert sum(producer[name].op_type == "Cast" for name in node.input) == 1
    assert not any(node.op_type == "Slice" and producer[node.input[0]].op_type != "Relu" for node in graph.node)
    assert plan_digest(plan) != plan_digest(candidate.plan)


def test_half_skips_are_as_good_as_float_ones(candidate: CandidatePlan, fp32: Fp32Model, images: F32) -> None:
    view = Graph(candidate.graph)
    plan = keep_in_half(view, candidate.plan, skips(view, candidate.plan))
    without = CandidatePlan(candidate.graph, type(plan)(**{**vars(plan), "halves": ()}))
    reference = logits(fp32.graph, images)
    halved = noise_power(reference, logits(CandidatePlan(candidate.graph, plan).quantized(), images))
    assert halved == pytest.approx(
        noise_power(reference, logits(without.quantized(), images)), rel=0.15
    )  # a few codes flip


def test_auto_keeps_the_budget_and_names_every_block(candidate: CandidatePlan, fp32: Fp32Model, images: F32) -> None:
    reference = logits(fp32.graph, images)
    view = Graph(candidate.graph)

    def noise(plan: object) -> float:
        """Of the typical image: one that saturates must not decide."""
        found = logits(CandidatePlan(candidate.graph, plan).quantized(), images)  # type: ignore[arg-type]
        shares = [np.sum((a - b) ** 2) / np.sum(a**2) for a, b in zip(reference, found, strict=True)]
        return float(np.prod(np.array(shares, np.float64) ** (1 / len(shares))))

    chosen, costs = choose_residual(candidate, reference, images, budget=1.2)
    floor = noise(keep_in_half(view, candidate.plan, skips(view, candidate.plan)))
    assert noise(chosen.plan) <= 1.2 * floor
    assert [cost.add for cost in costs] == list(skips(view, candidate.plan))
    assert {half.consumers[0] for half in chosen.plan.halves} == {c.add for c in costs if c.precision == "fp16"}
    # 32x32x16 values: three bytes more where the block's Conv reads the codes, too.
    assert costs[0].bytes_moved == 3 * 16 * 32 * 32
    everything, _ = choose_residual(candidate, reference, images, budget=1e9)
    assert not everything.plan.halves
