"""Questions to a graph: which input of an Add is the skip, what codes pass through, what depends on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import foreign_graphs as foreign
import numpy as np
import onnx
import pytest
from foreign_graphs import Writer, relu
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgeres.graph.graph import GraphView, inputs_of, prune
from edgeres.graph.normalize import normalize
from edgeres.records import ModelSpec
from edgeres.zoo.architectures import ARCHITECTURES
from edgeres.zoo.export import export
from edgeres.zoo.resnet import ResNet

Branch = Callable[[Writer, str], str]


def conv(w: Writer, x: str) -> str:
    return w.conv(x, (4, 4))


def identity(w: Writer, x: str) -> str:
    return x


def batch_norm(w: Writer, x: str) -> str:
    return w.bn(x, 4)


def mean(w: Writer, x: str) -> str:
    return w.op("AveragePool", x, kernel_shape=[1, 1])


def gate(w: Writer, x: str) -> str:
    """Squeeze and excite: two further convolutions, but not on the way of the image."""
    small = relu(w, w.conv(w.op("GlobalAveragePool", x), (4, 4), 1))
    return w.op("Mul", x, w.op("Sigmoid", w.conv(small, (4, 4), 1)))


def view_of(*branches: list[Branch]) -> tuple[GraphView, onnx.NodeProto, list[str]]:
    """A stem, one branch per list behind it, their Add: the view, the Add, and the branches' ends."""
    w = Writer()
    x = relu(w, w.conv("data", (3, 4)))
    ends = []
    for steps in branches:
        end = x
        for step in steps:
            end = step(w, end)
        ends.append(end)
    total = w.op("Add", *ends)
    model = w.model(w.head(relu(w, total), 4))
    return GraphView(model), next(node for node in model.graph.node if node.output[0] == total), ends


MAIN: list[Branch] = [conv, relu, conv]


@pytest.mark.parametrize(
    "skip",
    [
        pytest.param([], id="identity"),
        pytest.param([conv], id="projection"),
        pytest.param([mean, conv], id="ResNet-D"),
        pytest.param([mean, conv, batch_norm], id="ResNet-D with batch norm"),
        pytest.param([mean, mean, batch_norm, relu], id="many operators without weights"),
    ],
)
@pytest.mark.parametrize(
    "main",
    [
        pytest.param(MAIN, id="basic"),
        pytest.param([conv, relu, conv, relu, conv], id="bottleneck"),
        pytest.param([batch_norm, relu, *MAIN], id="pre-activation"),
        pytest.param([*MAIN, gate], id="squeeze and excite"),
    ],
)
def test_skip_is_the_shorter_way_whichever_side_it_stands(main: list[Branch], skip: list[Branch]) -> None:
    for branches in ([main, skip], [skip, main]):
        view, add, ends = view_of(*branches)
        assert view.skip_input(add) == ends[branches.index(skip)]


@settings(deadline=None)
@given(
    counts=st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(lambda pair: sum(pair) > 0),
    light=st.lists(st.lists(st.sampled_from([relu, batch_norm, mean]), max_size=3), min_size=2, max_size=2),
)
def test_skip_has_fewer_weighted_layers(counts: tuple[int, int], light: list[list[Branch]]) -> None:
    """However many operators without weights lie on either side; of equals it is the second."""
    left, right = ([*others, *[conv] * count] for others, count in zip(light, counts, strict=True))
    view, add, ends = view_of(left, right)
    if counts[0] != counts[1]:
        assert view.skip_input(add) == ends[0 if counts[0] < counts[1] else 1]
    elif len(left) == len(right):
        assert view.skip_input(add) == ends[1]


@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", 2), ("resnet50", 3), ("resnet18v2", 2), ("resnet50v2", 3), ("resnet20", 2)]
)
def test_main_branch_in_the_zoo_is_the_one_that_ends_in_the_last_convolution_of_the_block(name: str, last: int) -> None:
    arch = replace(ARCHITECTURES[name], depths=(2, 2))
    spec = ModelSpec(name, replace(arch.preprocess, crop_px=(32, 32), resize_px=None), ())
    view = GraphView(export(ResNet(arch, 4), spec).model)
    adds = [node for node in view.nodes if view.is_residual_add(node)]
    assert len(adds) == 4
    for add in adds:
        skip = view.skip_input(add)
        producers = {tensor == skip: view.producer(tensor) for tensor in add.input}
        assert producers[False] is not None and f"/conv{last}/" in producers[False].name
        assert producers[True] is not None and f"/conv{last}/" not in producers[True].name


def test_no_skip_without_a_common_ancestor() -> None:
    w = Writer()
    w.op("Add", w.conv("data", (3, 4)), w.op("RandomNormal", shape=[1, 4, 32, 32]))
    model = w.model(w.head(w.nodes[-1].output[0], 4))
    assert GraphView(model).skip_input(w.nodes[2]) is None


def test_an_add_of_a_constant_is_no_residual() -> None:
    w = Writer()
    biased = w.op("Add", w.conv("data", (3, 4)), w.random(1, 4, 1, 1))
    scaled = w.op("Mul", biased, w.random(1, 4, 1, 1))
    joined = w.op("Add", scaled, w.op("Mul", scaled, biased))
    view = GraphView(w.model(w.head(joined, 4)))
    assert [view.is_residual_add(node) for node in view.nodes[:5]] == [False, False, False, False, True]
    assert [view.joins_activations(node) for node in view.nodes[:5]] == [False, False, False, True, True]


def clip(low: float | None, high: float | None) -> Branch:
    def write(w: Writer, x: str) -> str:
        limits = ["" if limit is None else w.const(np.float32(limit)) for limit in (low, high)]
        return w.op("Clip", x, *limits)

    return write


@pytest.mark.parametrize(
    ("activation", "absorbed"),
    [
        (relu, True),
        (clip(0, 6), True),
        (clip(0, None), True),
        (clip(-1, 1), False),
        (clip(None, 6), False),
        (lambda w, x: w.op("LeakyRelu", x), False),
    ],
)
def test_activation_after(activation: Branch, absorbed: bool) -> None:
    w = Writer()
    x = w.conv("data", (3, 4))
    after = activation(w, x)
    view = GraphView(w.model(w.head(after, 4)))
    assert view.activation_after(view.nodes[0]) == (after if absorbed else x)


def test_activation_after_a_tensor_that_others_read() -> None:
    w = Writer()
    x = w.conv("data", (3, 4))
    view = GraphView(w.model(w.head(w.op("Add", relu(w, x), x), 4)))
    assert view.activation_after(view.nodes[0]) == x


@pytest.mark.parametrize(
    ("value", "mode", "kept"),
    [(None, "constant", True), (0.0, "constant", True), (1.0, "constant", False), (None, "reflect", True)],
)
def test_pads_keep_codes_unless_they_write_a_value(value: float | None, mode: str, kept: bool) -> None:
    w = Writer()
    filled = [] if value is None else [w.const(np.float32(value))]
    w.op("Pad", "data", w.const([0, 0, 1, 1, 0, 0, 1, 1]), *filled, mode=mode)
    view = GraphView(w.model(w.head(w.conv(w.nodes[0].output[0], (3, 4)), 4)))
    assert [view.keeps_codes(node) for node in view.nodes[:2]] == [kept, False]


def test_source_of() -> None:
    view = GraphView(normalize(foreign.option_a()).model)
    pad = next(node for node in view.nodes if node.op_type == "Pad")
    source = view.source_of(pad.output[0])
    assert view.producer(source).op_type == "Relu"  # type: ignore[union-attr]
    assert {node.op_type for node in view.consumers(source)} == {"Conv", "Slice"}
    assert view.source_of(view.input) == view.input


def test_prune_keeps_what_a_subgraph_reads() -> None:
    w = Writer()
    needed, unused = w.conv("data", (3, 4)), w.conv("data", (3, 4))
    branch = helper.make_graph(
        [helper.make_node("Relu", [needed], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    condition = w.const(np.array(True))
    out = w.op("If", condition, then_branch=branch, else_branch=branch)
    model = w.model(w.head(out, 4))
    before = {tensor.name for tensor in model.graph.initializer}
    prune(model.graph, [model.graph.output[0].name])
    assert unused not in {name for node in model.graph.node for name in node.output}
    assert needed in {name for node in model.graph.node for name in node.output}
    assert before - {tensor.name for tensor in model.graph.initializer} == {w.nodes[1].input[1]}
    assert set(inputs_of(next(node for node in model.graph.node if node.op_type == "If"))) == {condition, needed}


def test_prune_leaves_a_graph_that_is_all_needed() -> None:
    model = foreign.squeeze_excite()
    before = model.SerializeToString()
    prune(model.graph, [model.graph.output[0].name])
    assert model.SerializeToString() == before
