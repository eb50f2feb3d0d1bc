"""Where nodes that move values take each of them from, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from moving_graphs import MOVING
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeres.calibrate.forward import with_outputs
from edgeres.graph.graph import Graph
from edgeres.graph.normalize import normalize
from edgeres.refine.layout import TensorLayout
from edgeres.runtime.ort import OrtRunner

NUMBERS = np.arange(24).reshape(1, 6, 2, 2)


def alone(op: str, constants: list[Any], **attributes: Any) -> ModelProto:
    names = [f"c{index}" for index in range(len(constants))]
    node = helper.make_node(op, ["x", *names], ["y"], name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for value, name in zip(constants, names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def blocks(size: int) -> np.ndarray:
    return NUMBERS.reshape(1, 6, 2 // size, size, 2 // size, size).transpose(0, 3, 5, 1, 2, 4).reshape(1, -1, 1, 1)


CASES: dict[str, tuple[ModelProto, np.ndarray]] = {
    "reshape": (alone("Reshape", [np.array([-1, 3, 8])]), NUMBERS.reshape(1, 3, 8)),
    "transpose": (alone("Transpose", [], perm=[0, 2, 3, 1]), NUMBERS.transpose(0, 2, 3, 1)),
    "slice": (alone("Slice", [np.array([5]), np.array([-99]), np.array([1]), np.array([-2])]), NUMBERS[:, ::-2]),
    "gather": (alone("Gather", [np.array([3, 3, -1])], axis=1), NUMBERS[:, [3, 3, 5]]),
    "tile": (alone("Tile", [np.array([1, 1, 2, 1])]), np.tile(NUMBERS, (1, 1, 2, 1))),
    "pad": (
        alone("Pad", [np.array([0, 1, 0, 0, 0, 0, 0, 1])]),
        np.pad(NUMBERS, ((0, 0), (1, 0), (0, 0), (0, 1)), constant_values=-1),
    ),
    "pad by edge": (
        alone("Pad", [np.array([0, 0, 1, 0, 0, 0, 0, 0])], mode="edge"),
        np.pad(NUMBERS, ((0, 0), (0, 0), (1, 0), (0, 0)), mode="edge"),
    ),
    "concat": (
        alone("Concat", [np.ones((1, 1, 2, 2), np.float32)], axis=1),
        np.pad(NUMBERS, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=-1),
    ),
    "space to depth": (alone("SpaceToDepth", [], blocksize=2), blocks(2)),
    "nearest": (
        alone("Resize", [np.array([], np.float32), np.array([1, 1, 2, 1], np.float32)], mode="nearest"),
        NUMBERS.repeat(2, axis=2),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_element_is_found_where_numpy_takes_it_from(case: str) -> None:
    model, expected = CASES[case]
    graph = Graph(model)
    (found,) = TensorLayout(graph, np.zeros((1, 6, 2, 2), np.float32)).sources(graph.nodes[0], "x") or [None]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "model",
    [
        alone("Relu", []),
        alone("Pad", [np.array([0, 1, 0, 0, 0, 0, 0, 1]), np.float32(2)]),
        alone("Resize", [np.array([], np.float32), np.array([1, 1, 2, 1], np.float32)], mode="linear"),
    ],
)
def test_what_computes_values_moves_none(model: ModelProto) -> None:
    graph = Graph(model)
    assert TensorLayout(graph, np.zeros((1, 6, 2, 2), np.float32)).sources(graph.nodes[0], "x") is None


@pytest.mark.parametrize("name", MOVING)
def test_shapes_are_those_of_a_run(name: str) -> None:
    model = normalize(MOVING[name]()).model
    image = np.zeros((1, 3, 32, 32), np.float32)
    shape = TensorLayout(Graph(model), image).shape
    tensors = [tensor for tensor in shape if tensor != model.graph.input[0].name]
    with OrtRunner(with_outputs(model, tensors)) as runner:
        measured = runner.infer({runner.input_name: image})
    assert {tensor: shape[tensor] for tensor in tensors} == {name: value.shape for name, value in measured.items()}
    assert len(tensors) > 6
