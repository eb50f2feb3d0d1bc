"""Learned rounding against all possible roundings, and learned networks against FP32 on other images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import foreign_graphs
import numpy as np
import onnx
import pytest
import torch
from noise import noise_power
from onnx import TensorProto, helper, numpy_helper
from test_torch_graph import Maker, planned

from edgeres.errors import ModelError, UsageError
from edgeres.graph.graph import WEIGHTED, Graph
from edgeres.graph.normalize import normalize
from edgeres.progress import Advance, Silent
from edgeres.quantize.affine import codes
from edgeres.quantize.plan import plan_digest
from edgeres.records import F32, Edge, QuantParams, QuantPlan, Style, WeightEdge
from edgeres.refine.blocks import split, whole
from edgeres.refine.candidate import CandidatePlan, logits
from edgeres.refine.reconstruct import ReconstructOptions, reconstruct, reconstruct_blocks
from edgeres.refine.resume import Resume

QUICK = ReconstructOptions(steps=30, batch=16)


def error(candidate: CandidatePlan, fp32: onnx.ModelProto, images: F32) -> float:
    return noise_power(logits(fp32, images), logits(candidate.quantized(), images))


def view_of(graph: Maker) -> Graph:
    return Graph(normalize(graph()).model)


@pytest.mark.parametrize("name", foreign_graphs.FOREIGN)
def test_blocks_hold_every_node_once_and_meet_at_single_tensors(name: str) -> None:
    view = Graph(normalize(foreign_graphs.FOREIGN[name]()).model)
    blocks = split(view)
    order = [node for block in blocks for node in block.nodes]
    softmax = [node.name for node in view.nodes if node.op_type == "Softmax" and node.output[0] == view.output]
    assert order + softmax == [node.name for node in view.nodes]
    assert [block.input for block in blocks] == [view.input, *(block.output for block in blocks[:-1])]
    nodes = {node.name: node for node in view.nodes}
    for block in blocks:
        own = {tensor for node in block.nodes for tensor in nodes[node].output}
        read = {t for node in block.nodes for t in nodes[node].input if t and not view.is_constant(t)}
        assert read - own == {block.input}
        assert block.output in own
        assert any(nodes[node].op_type in WEIGHTED for node in block.nodes)
    assert whole(view).nodes == tuple(order)


def test_a_block_ends_behind_every_residual_add() -> None:
    view = view_of(foreign_graphs.option_a)
    ends = {view.activation_after(node) for node in view.nodes if view.is_residual_add(node)}
    assert ends < {block.output for block in split(view)}
    assert len(split(view)) == len(ends) + 2  # a stem and a head


def one_layer(weight: F32, scale: float) -> CandidatePlan:
    """logits = x @ weight.T, with weights rounded to multiples of ``scale`` and inputs on a very fine grid."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="layer", transB=1)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", weight.shape[1]))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", weight.shape[0]))],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    params = QuantParams(np.full(len(weight), scale, np.float32), 0, "int8", 0)
    data = QuantParams(np.asarray(0.05, np.float32), 0, "int8")
    coded = WeightEdge("w", "layer", params, codes(weight, params).astype(np.int8))
    return CandidatePlan(model, QuantPlan("tensorrt", (Edge("x", data, ("layer",), "input"),), (coded,), (), "digest"))


@pytest.mark.parametrize("seed", range(3))
def test_learned_rounding_is_near_the_best_of_all(seed: int) -> None:
    """Two rows of eight weights: all 256 choices of up and down are tried for each."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((8, 8)) * 0.5 + 1.0  # correlated inputs: where nearest is not best
    images = (rng.standard_normal((256, 8)) @ mixing / 3).astype(np.float32)
    weight = rng.uniform(-1, 1, (2, 8)).astype(np.float32)
    candidate = one_layer(weight, 0.3)
    learned = reconstruct(
        candidate, candidate.graph, images, ReconstructOptions(steps=0, block_steps=600, batch=256, rounding=True)
    )
    (edge,), (coded,) = learned.plan.edges, learned.plan.weights
    seen = codes(images, edge.params) * float(edge.params.scale)
    target = images.astype(np.float64) @ weight.T
    learned_error = nearest_error = 0.0
    for row, found in enumerate(coded.codes):
        exact = weight[row] / 0.3
        every = np.array([seen @ (0.3 * (np.floor(exact) + up)) for up in product((0, 1), repeat=8)])
        errors = ((every - target[:, row]) ** 2).mean(axis=1)
        mine = ((seen @ (0.3 * found) - target[:, row]) ** 2).mean()
        assert mine <= np.quantile(errors, 0.05)
        learned_error += mine
        nearest_error += ((seen @ (0.3 * np.rint(exact)) - target[:, row]) ** 2).mean()
    assert learned_error < 0.7 * nearest_error
    assert not np.array_equal(coded.codes, candidate.plan.weights[0].codes)


@pytest.mark.parametrize("style", ["tensorrt", "cpu"])
@pytest.mark.parametrize("graph", [foreign_graphs.option_a, lambda: foreign_graphs.bottleneck(group=4)])
def test_learning_lowers_the_error_on_other_images(graph: Maker, style: Style) -> None:
    candidate, images = planned(graph, style, count=96)
    kept, held = images[:64], images[64:]
    before = error(candidate, candidate.graph, held)
    assert error(reconstruct(candidate, candidate.graph, kept, QUICK), candidate.graph, held) < 0.9 * before


def test_blocks_are_handed_out_one_by_one_and_nothing_given_changes() -> None:
    candidate, images = planned(foreign_graphs.option_a, "tensorrt", count=48)
    graph, digest = candidate.graph.SerializeToString(), plan_digest(candidate.plan)
    blocks = split(Graph(candidate.graph))
    options = replace(QUICK, steps=2, block_steps=20)
    first_scale = {edge.tensor: float(edge.params.scale) for edge in candidate.plan.edges}
    last_read = candidate.plan.edges[-1].tensor
    found = list(reconstruct_blocks(candidate, candidate.graph, images, options))
    assert [name for name, _ in found] == [*(block.name for block in blocks), blocks[-1].output]
    after_first = {edge.tensor: float(edge.params.scale) for edge in found[0][1].plan.edges}
    assert after_first[blocks[0].input] != first_scale[blocks[0].input]
    assert after_first[last_read] == first_scale[last_read]
    assert error(found[-2][1], candidate.graph, images) < error(candidate, candidate.graph, images)
    assert (candidate.graph.SerializeToString(), plan_digest(candidate.plan)) == (graph, digest)


def test_the_same_seed_gives_the_same_network_and_another_another() -> None:
    candidate, images = planned(foreign_graphs.option_a, "tensorrt", count=32)
    options = replace(QUICK, steps=3)
    digests = [
        plan_digest(reconstruct(candidate, candidate.graph, images, replace(options, seed=seed)).plan)
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


class StopAt(Silent):
    """Raises KeyboardInterrupt after a number of learning steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Advance]:
        def advance(count: int) -> None:
            self.left -= count
            if self.left < 0:
                raise KeyboardInterrupt

        yield advance


@pytest.mark.parametrize("steps_done", [3, 25, 43])  # in the first block, in a later one, at the scores
def test_interrupted_learning_goes_on_to_the_same_result(
    steps_done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate, images = planned(foreign_graphs.option_a, "tensorrt", count=32)
    blocks = len(split(Graph(candidate.graph)))
    options = replace(QUICK, steps=6, block_steps=10, resume=tmp_path)
    assert 10 * blocks < 43 < 10 * blocks + 6
    straight = reconstruct(candidate, candidate.graph, images, replace(options, resume=None))

    monkeypatch.setattr(Resume, "is_due", lambda self: True)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(candidate, candidate.graph, images, options, StopAt(steps_done))
    assert len(list(tmp_path.glob("*.pt"))) == 1
    worked: list[float] = []
    monkeypatch.setattr("torch.optim.Adam.step", counted(torch.optim.Adam.step, worked))
    resumed = reconstruct(candidate, candidate.graph, images, options)
    assert len(worked) == 10 * blocks + 6 - steps_done
    assert plan_digest(resumed.plan) == plan_digest(straight.plan)
    assert not list(tmp_path.iterdir())


def counted(function: Callable[..., Any], calls: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        return function(*arguments, **more)

    return call


def test_without_rounding_codes_stay() -> None:
    candidate, images = planned(foreign_graphs.option_a, "tensorrt", count=32)
    learned = reconstruct(candidate, candidate.graph, images, ReconstructOptions(steps=5))
    for before, after in zip(candidate.plan.weights, learned.plan.weights, strict=True):
        assert np.array_equal(before.codes, after.codes)
    assert plan_digest(learned.plan) != plan_digest(candidate.plan)


def test_a_small_cache_takes_fewer_images() -> None:
    """Without memory for activations, learning uses the first image only, as if no other was given."""
    candidate, images = planned(foreign_graphs.option_a, "tensorrt", count=32)
    options = replace(QUICK, steps=0, block_steps=2, cache_mb=0)
    small, alone = (reconstruct(candidate, candidate.graph, part, options) for part in (images, images[:1]))
    assert plan_digest(small.plan) == plan_digest(alone.plan)
    assert plan_digest(small.plan) != plan_digest(
        reconstruct(candidate, candidate.graph, images, replace(options, cache_mb=64)).plan
    )


def test_an_exact_input_stays_exact() -> None:
    """Values that equal their codes have no rounding error, so their scale gets no gradient."""
    candidate, images = planned(foreign_graphs.option_a, "tensorrt", count=16)
    name = Graph(candidate.graph).input
    exact = QuantParams(np.asarray(1.0, np.float32), 0, "int8")
    edges = tuple(replace(edge, params=exact) if edge.tensor == name else edge for edge in candidate.plan.edges)
    bytes_in = np.clip(np.rint(images * 40), -128, 127).astype(np.float32)
    learned = reconstruct(
        CandidatePlan(candidate.graph, replace(candidate.plan, edges=edges)), candidate.graph, bytes_in, QUICK
    )
    assert [float(edge.params.scale) for edge in learned.plan.edges if edge.tensor == name] == [1.0]


def test_an_operator_that_cannot_be_learned_through_is_named() -> None:
    candidate, images = planned(lambda: foreign_graphs.activated("Shrink"), "tensorrt", count=4)
    with pytest.raises(ModelError, match="cannot be learned through"):
        reconstruct(candidate, candidate.graph, images, QUICK)


def test_rounding_without_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="block_steps is 0"):
        ReconstructOptions(rounding=True)
