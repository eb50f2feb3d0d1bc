"""The index of a graph equals a recomputation after any edits; and the questions about a residual network."""

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
from onnx import TensorProto, helper

from edgeres.graph.graph import Graph, inputs_of
from edgeres.graph.normalize import normalize
from edgeres.records import ModelSpec
from edgeres.zoo.architectures import ARCHITECTURES
from edgeres.zoo.export import export
from edgeres.zoo.resnet import ResNet

# The index. The graphs are random and cannot be computed: only their names matter.

TENSORS = [f"t{i}" for i in range(6)]


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """Nodes that write t0, t1, ... and read inputs, initializers, constants, tensors before them, or nothing."""
    nodes = []
    for i in range(draw(st.integers(1, 8))):
        known = ["x", "w", "", *(f"t{j}" for j in range(i))]
        inputs = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
        op = draw(st.sampled_from(["Add", "Identity", "Constant"]))
        value = {"value": helper.make_tensor(f"v{i}", TensorProto.FLOAT, (1,), [float(i)])} if op == "Constant" else {}
        nodes.append(helper.make_node(op, [] if value else inputs, [f"t{i}"], f"n{i}", **value))
    outputs = draw(st.lists(st.sampled_from([node.output[0] for node in nodes]), min_size=1, max_size=2, unique=True))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", *outputs)]
    weight = helper.make_tensor("w", TensorProto.FLOAT, (2,), [1.0, 2.0])
    return helper.make_model(helper.make_graph(nodes, "random", values[:1], values[1:], [weight]))


def edit(graph: Graph, draw: Callable[..., int], number: int) -> None:
    """Make one edit of any kind; ``number`` makes its new names unique."""
    nodes = graph.nodes
    if not nodes:
        return
    node, other = nodes[draw(len(nodes))], nodes[draw(len(nodes))]
    match draw(9):
        case 0:
            made = [helper.make_node("Add", ["x", "w"], [f"a{number}_{i}"], f"m{number}_{i}") for i in range(2)]
            before, behind = ((node, None), (None, node), (None, None))[draw(3)]
            assert [n.name for n in graph.insert(made, before=before, behind=behind)] == [n.name for n in made]
        case 1:
            graph.put_before(node, "Add", ["x", other.output[0]], f"b{number}")
        case 2:
            graph.put_behind(node, "Add", ["w"], f"c{number}")
        case 3:
            graph.remove(node)
        case 4:
            graph.set_inputs(node, [other.output[0], "w", other.output[0]])
        case 5:
            graph.redirect(node, ["x", "w", other.output[0]][draw(3)], ["x", other.output[0]][draw(2)])
        case 6:
            graph.set_inputs(node, [graph.add_constant(graph.free_name("k"), np.float32(number))])
        case 7:
            graph.insert([helper.make_node("Add", ["x", "w"], node.output, f"d{number}")], behind=node)
            graph.remove(node)
        case _:
            graph.prune()


def is_constant(model: onnx.ModelProto, tensor: str) -> bool:
    if any(stored.name == tensor for stored in model.graph.initializer):
        return True
    node = next((node for node in model.graph.node if tensor in node.output), None)
    if node is None or node.op_type == "Add":
        return False
    return node.op_type == "Constant" or (len(node.input) > 0 and is_constant(model, node.input[0]))


@given(models(), st.data())
def test_the_index_is_that_of_a_new_graph_after_any_edits(model: onnx.ModelProto, data: st.DataObject) -> None:
    given_bytes = model.SerializeToString()
    graph = Graph.copy_of(model)
    for number in range(data.draw(st.integers(0, 12))):
        edit(graph, lambda count: data.draw(st.integers(0, count - 1)), number)
    nodes = list(graph.model.graph.node)
    assert [node.name for node in graph.nodes] == [node.name for node in nodes]
    assert [graph.position(node) for node in graph.nodes] == list(range(len(nodes)))
    names = {name for node in nodes for name in (*node.input, *node.output)} | {"x", "w", "k", "nothing"}
    for name in names - {""}:
        writers = [node.name for node in nodes if name in node.output]
        readers = [node.name for node in nodes if name in node.input]
        producer = graph.producer(name)
        assert ([] if producer is None else [producer.name]) == writers
        assert [node.name for node in graph.consumers(name)] == readers
        last = (
            len(nodes)
            if name in graph.outputs
            else max((i for i, n in enumerate(nodes) if name in n.input), default=-1)
        )
        assert graph.last_use(name) == last
        stored = {tensor.name for tensor in graph.model.graph.initializer}
        assert (name in graph) == (bool(writers) or name in stored or name == "x")
        if not _is_circular(nodes):
            assert graph.is_constant(name) == is_constant(graph.model, name)
    assert all(graph.node(node.name).output == node.output for node in nodes)
    assert model.SerializeToString() == given_bytes


def _is_circular(nodes: list[onnx.NodeProto]) -> bool:
    """Whether an Identity reads its own output, through others perhaps: random edits may do that."""
    source = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Identity" and node.input}
    return any(_walks_back(source, name) for name in source)


def _walks_back(source: dict[str, str], name: str) -> bool:
    seen = set()
    while name in source and name not in seen:
        seen.add(name)
        name = source[name]
    return name in seen


def test_a_node_can_be_inserted_at_the_same_place_many_times() -> None:
    graph = Graph(foreign.squeeze_excite())
    node = graph.nodes[3]
    for number in range(200):
        graph.put_before(node, "Relu", [node.input[0]], f"r{number}")
    assert [n.name for n in graph.nodes[3:203]] == [f"r{number}" for number in range(200)]
    assert graph.position(node) == 203
    readers = [n.name for n in graph.nodes if node.input[0] in n.input]
    assert [n.name for n in graph.consumers(node.input[0])] == readers and len(readers) > 200


def test_constants() -> None:
    w = Writer()
    x = w.conv("data", (3, 4))
    scale = w.op("Constant", value=helper.make_tensor("value", TensorProto.FLOAT, (2,), [1.0, 2.0]))
    alias = w.op("Identity", w.op("Identity", w.const(np.int8(3))))
    graph = Graph(w.model(w.head(w.op("Add", x, w.op("Add", scale, alias)), 4)))
    assert graph.constant(scale).tolist() == [1.0, 2.0]
    assert (graph.constant(alias).dtype, graph.constant(alias).tolist()) == (np.int8, 3)
    assert [graph.is_constant(name) for name in (scale, alias, x, "data", "nothing")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(KeyError):
        graph.constant(x)
    assert graph.add_constant("new", np.zeros(3)) == "new"
    graph.set_constant("new", np.ones(3))
    assert graph.constant("new").tolist() == [1.0] * 3


def test_shapes_follow_edits() -> None:
    w = Writer()
    x = w.conv("data", (3, 4), stride=2)
    graph = Graph(w.model(w.head(x, 4)))
    assert graph.shape("data") == (0, 3, foreign.PX, foreign.PX)
    assert graph.shape(x) == (0, 4, foreign.PX // 2, foreign.PX // 2)
    assert graph.shape(graph.writer(x).input[1]) == (4, 3, 3, 3)
    assert graph.shape("nothing") == ()
    flat = graph.put_before(graph.consumers(x)[0], "Flatten", [x], "flat")
    assert graph.shape(flat) == (0, 4 * (foreign.PX // 2) ** 2)


def test_done_gives_the_valid_model_without_what_nothing_reads() -> None:
    w = Writer()
    x = w.conv("data", (3, 4))
    w.conv("data", (3, 4))
    graph = Graph.copy_of(w.model(w.head(x, 4)))
    assert len(graph.done().graph.node) == len(w.nodes) - 1
    graph.redirect(graph.writer(graph.output), graph.writer(graph.output).input[0], "nothing")
    with pytest.raises(onnx.checker.ValidationError):
        graph.done()


def test_free_names_avoid_inputs_constants_and_outputs() -> None:
    w = Writer()
    graph = Graph(w.model(w.head(w.conv("data", (3, 4)), 4)))
    conv = graph.nodes[0]
    assert graph.free_name("data") == "data_"
    assert graph.free_name("new") == "new"
    assert graph.free_name(conv.output[0]) == f"{conv.output[0]}_"
    stem = conv.input[1][:-1]
    assert graph.free_name(stem, ("_q", conv.input[1][-1])) == f"{stem}_"


# The questions about a residual network.

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
    """Squeeze and excite: it has two convolutions, but not between its input and its output."""
    small = relu(w, w.conv(w.op("GlobalAveragePool", x), (4, 4), 1))
    return w.op("Mul", x, w.op("Sigmoid", w.conv(small, (4, 4), 1)))


def view_of(*branches: list[Branch]) -> tuple[Graph, onnx.NodeProto, list[str]]:
    """A stem, behind it a branch for each list, and their Add: the graph, the Add, and the outputs of the branches."""
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
    return Graph(model), next(node for node in model.graph.node if node.output[0] == total), ends


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
    """The skip has fewer weighted layers, with any number of other operators; of equals it is the second."""
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
    view = Graph(export(ResNet(arch, 4), spec).model)
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
    assert Graph(model).skip_input(w.nodes[2]) is None


def test_an_add_of_a_constant_is_no_residual() -> None:
    w = Writer()
    biased = w.op("Add", w.conv("data", (3, 4)), w.random(1, 4, 1, 1))
    scaled = w.op("Mul", biased, w.random(1, 4, 1, 1))
    joined = w.op("Add", scaled, w.op("Mul", scaled, biased))
    view = Graph(w.model(w.head(joined, 4)))
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
    view = Graph(w.model(w.head(after, 4)))
    assert view.activation_after(view.nodes[0]) == (after if absorbed else x)


def test_activation_after_a_tensor_that_others_read() -> None:
    w = Writer()
    x = w.conv("data", (3, 4))
    view = Graph(w.model(w.head(w.op("Add", relu(w, x), x), 4)))
    assert view.activation_after(view.nodes[0]) == x


@pytest.mark.parametrize(
    ("value", "mode", "kept"),
    [(None, "constant", True), (0.0, "constant", True), (1.0, "constant", False), (None, "reflect", True)],
)
def test_pads_keep_codes_unless_they_write_a_value(value: float | None, mode: str, kept: bool) -> None:
    w = Writer()
    filled = [] if value is None else [w.const(np.float32(value))]
    w.op("Pad", "data", w.const([0, 0, 1, 1, 0, 0, 1, 1]), *filled, mode=mode)
    view = Graph(w.model(w.head(w.conv(w.nodes[0].output[0], (3, 4)), 4)))
    assert [view.keeps_codes(node) for node in view.nodes[:2]] == [kept, False]


def test_source_of() -> None:
    view = Graph(normalize(foreign.option_a()).model)
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
    Graph(model).prune()
    assert unused not in {name for node in model.graph.node for name in node.output}
    assert needed in {name for node in model.graph.node for name in node.output}
    assert before - {tensor.name for tensor in model.graph.initializer} == {w.nodes[1].input[1]}
    assert set(inputs_of(next(node for node in model.graph.node if node.op_type == "If"))) == {condition, needed}


def test_prune_leaves_a_graph_that_is_all_needed() -> None:
    model = foreign.squeeze_excite()
    before = model.SerializeToString()
    Graph(model).prune()
    assert model.SerializeToString() == before


def test_only_float_tensors_with_a_batch_axis_carry_activations() -> None:
    w = Writer()
    x = relu(w, w.conv("data", (3, 8), stride=2))
    sizes = w.op("Shape", x)
    width = w.op("Cast", w.op("Gather", sizes, w.const(np.int64(3))), to=TensorProto.FLOAT)
    zeros = w.op("ConstantOfShape", sizes)
    batch_mean = w.op("ReduceMean", x, axes=[0, 2, 3], keepdims=0)
    channels_first = w.op("Transpose", x, perm=[1, 0, 2, 3])
    target = w.op("Concat", w.op("Slice", sizes, w.const([0]), w.const([1])), w.const([-1]), axis=0)
    flat = w.op("Reshape", x, target)
    double = w.op("Cast", flat, to=TensorProto.DOUBLE)
    weight = w.random(8, 4)
    everything = (x, sizes, width, zeros, batch_mean, channels_first, target, flat, double, weight, "unknown")
    graph = Graph(w.model(w.head(x, 8), flat, output_shape=None))
    assert {tensor for tensor in everything if graph.carries_activations(tensor)} == {x, zeros, flat}
    assert graph.carries_activations("data")
