"""Graphs are measured by arithmetic before a library reads them; what arithmetic cannot tell runs with limits."""

from __future__ import annotations

import os
from pathlib import Path

import bombs
import foreign_graphs as foreign
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import workshop
from bombs import BOMBS, classifier, node
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeres.errors import EdgeresError, ModelError
from edgeres.graph import confined
from edgeres.graph.budget import admit
from edgeres.graph.lint import lint
from edgeres.graph.normalize import load_onnx, normalize_foreign
from edgeres.graph.sizes import _Sum
from edgeres.graph.skeleton import Damaged, Skeleton
from edgeres.quantize.inspect import inspect
from edgeres.runtime.ort import OrtRunner

# Bombs that arithmetic does not refuse: they are tried with limits, or ("") are harmless after all.
TRIED = {
    "sizes doubled": "large",
    "outer einsum": "Einsum",
    "one hot": "OneHot",
    "random": "Random",
    "window": "Window",
    "hidden size": "NonZero",
    "hidden list": "NonZero",
    "loop": "subgraphs",
    "loops in loops": "subgraphs",
    "if 8 deep": "subgraphs",
    "filled negative": "negative",
    "nodes 5000": "",
    "softmax 5000": "",
    "empty values": "",
    "sum of 3000": "",
}
GRAPHS = {
    name: getattr(foreign, name)
    for name in ("mxnet_v1", "caffe2", "dynamo", "tf2onnx", "keras_pixels", "paddle", "torchscript", "squeeze_excite")
} | {name: getattr(foreign, name) for name in ("option_a", "option_a_concat", "bottleneck", "three_way")}


@pytest.mark.parametrize("name", BOMBS["ONNX"])
def test_a_bomb_is_refused_by_arithmetic_or_tried_with_limits(name: str, tmp_path: Path) -> None:
    BOMBS["ONNX"][name](tmp_path / "a.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    if name not in TRIED:
        with pytest.raises(ModelError):
            admit(content, None)
    else:
        doubt = admit(content, None)
        assert TRIED[name] in doubt
        assert bool(doubt) is bool(TRIED[name])


@pytest.mark.parametrize("name", GRAPHS)
def test_sizes_are_those_that_onnx_runtime_computes(name: str) -> None:
    model = GRAPHS[name]()
    told = _Sum(skeleton := Skeleton(model.SerializeToString()), 32)
    for index, each in enumerate(skeleton.nodes):
        told.add(index, each)
    assert told.unknown == ""
    names = [output for each in model.graph.node for output in each.output if output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=output) for output in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    sizes = [size if isinstance(size, int) else 1 for size in image.shape]
    found = session.run(names, {image.name: np.zeros(sizes, np.float32)})
    assert {output: told.known[output].shape for output in names} == {
        output: value.shape for output, value in zip(names, found, strict=True)
    }
    few = {output: value for output, value in zip(names, found, strict=True) if told.known[output].values is not None}
    assert all(np.array_equal(told.known[output].values, value) for output, value in few.items())


def test_a_function_and_a_subgraph_are_counted_where_they_are_called() -> None:
    assert Skeleton(bombs.functions(3, 4).SerializeToString()).expanded() == 8 + 4 + 16 + 64
    assert Skeleton(bombs.deep_if(2).SerializeToString()).expanded() == 7 + 1 + 2 + 4


def test_a_function_that_calls_itself_is_refused() -> None:
    model = bombs.functions(2, 1)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "F1", "f"
    with pytest.raises(ModelError, match=r"F[01] calls itself"):
        admit(model.SerializeToString(), "a.onnx")


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_bytes_are_read_as_protobuf_reads_them_or_refused(content: bytes) -> None:
    try:
        skeleton = Skeleton(content)
    except Damaged:
        return
    try:
        model = onnx.load_from_string(content)
    except Exception:  # protobuf's own kinds
        return
    assert [each.op for each in skeleton.nodes] == [each.op_type for each in model.graph.node]


def limited(monkeypatch: pytest.MonkeyPatch, memory: int = 600_000_000, seconds: int = 5) -> None:
    monkeypatch.setattr(confined, "MEMORY", memory)
    monkeypatch.setattr(confined, "SECONDS", seconds)


def test_what_hides_its_size_ends_in_the_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch)
    path = tmp_path / "a.onnx"
    path.write_bytes(bombs.hidden().SerializeToString())
    for read in (load_onnx, OrtRunner, lambda it: normalize_foreign(load_onnx(it, tried=False), where=it)):
        with pytest.raises(ModelError, match=r"a\.onnx: trying this graph takes more than"):
            read(path)


def test_what_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, seconds=2)
    path = tmp_path / "a.onnx"
    path.write_bytes(bombs.deep_loop(1, 1 << 60).SerializeToString())
    with pytest.raises(ModelError, match=r"a\.onnx: trying this graph takes more than 2 s"):
        OrtRunner(path)


def test_an_unusual_graph_that_is_small_is_taken_all_the_same(tmp_path: Path) -> None:
    model = classifier([node("Einsum", ["x"], "y", equation="nchw->nchw")], head="y")
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString())
    assert "Einsum" in admit(path.read_bytes(), path)
    canonical = normalize_foreign(load_onnx(path), where=path)
    assert (canonical.num_classes, canonical.size_px) == (10, (32, 32))
    images = np.ones((2, 3, 32, 32), np.float32)
    feed = {canonical.model.graph.input[0].name: images}
    with OrtRunner(path) as foreign_runner, OrtRunner(canonical.model.SerializeToString()) as runner:
        before, after = foreign_runner.infer({"x": images}), runner.infer(feed)
    assert np.allclose(next(iter(before.values())), next(iter(after.values())), atol=1e-4)


def test_an_error_of_the_other_process_is_the_error_here() -> None:
    nodes = [node("NonZero", ["x"], "places"), node("ReduceMax", ["places"], "i", keepdims=0)]
    nodes.append(node("Cast", ["i"], "n", to=onnx.TensorProto.FLOAT))
    with pytest.raises(EdgeresError, match="b: ") as told:
        normalize_foreign(classifier(nodes, extra="n", shape=("N", 5, 7, 32)), where="b")
    assert "no axis of three channels" in str(told.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_no_graph(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.onnx")
    for read in (load_onnx, OrtRunner):
        with pytest.raises(ModelError, match="is a named pipe, not a file"):
            read(tmp_path / "a.onnx")


def test_weights_beside_a_graph_are_held_to_their_files(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(1000))
    model = classifier(extra="far0")
    for index in range(9):
        tensor = model.graph.initializer.add(name=f"far{index}", data_type=1, dims=[250], data_location=1)
        for key, value in (("location", "w.bin"), ("length", "1000")):
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="take 9,000 bytes from files of 1,000"):
        load_onnx(tmp_path / "a.onnx")
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(10 << 30)
    with pytest.raises(ModelError, match=r"bytes are stored|bytes, and 0 are stored"):
        load_onnx(tmp_path / "a.onnx")


@pytest.mark.parametrize("where", ["input", "output", "Cast"])
def test_a_type_of_values_that_onnx_does_not_know_is_refused(where: str) -> None:
    model = onnx.load_from_string(workshop.network())
    if where == "Cast":
        scores, model.graph.node[-1].output[0] = model.graph.output[0].name, "before"
        model.graph.node.append(onnx.helper.make_node("Cast", ["before"], [scores], to=1))
        model.graph.node[-1].attribute[0].i = 999
    else:
        getattr(model.graph, where)[0].type.tensor_type.elem_type = 999
    with pytest.raises(ModelError):
        normalize_foreign(model, where="a.onnx")
    told = [one.hint for one in lint(model) if one.rule == "type"]
    assert told == ([] if where == "output" else ["TensorRT has no type 999, which is unknown; export in float32"])


def test_a_graph_that_cannot_be_inspected_is_named(tmp_path: Path) -> None:
    model = onnx.load_from_string(workshop.network())
    scale = onnx.numpy_helper.from_array(np.float32(1), "scale")
    scale.data_type = 77
    model.graph.initializer.append(scale)
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", [model.graph.output[0].name, "scale"], ["codes"]))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"a\.onnx: cannot be inspected \(KeyError 77\)"):
        inspect(tmp_path / "a.onnx")


@pytest.mark.parametrize("name", ["input", "output"])
def test_a_graph_without_inputs_or_outputs_does_not_run(name: str) -> None:
    model = onnx.load_from_string(workshop.network())
    value = onnx.numpy_helper.from_array(np.zeros((1, 3, 32, 32), np.float32), model.graph.input[0].name)
    if name == "input":
        model.graph.initializer.append(value)
    del getattr(model.graph, name)[:]
    with pytest.raises(ModelError, match=rf"\b0 {name}s"):
        OrtRunner(model.SerializeToString())
