"""What exporters leave behind is folded away: batch norm in other clothes, and what is computed from sizes.

Every normalized graph is compared with the original file on ONNX Runtime.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from foreign_graphs import CLASSES, PX, Writer, relu
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeres.errors import ModelError
from edgeres.graph.graph import Graph
from edgeres.graph.normalize import normalize

IMAGES = np.random.default_rng(1).standard_normal((3, 3, PX, PX)).astype(np.float32)
PLAIN = {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
Array = npt.NDArray[Any]


def scores(model: onnx.ModelProto, images: Array = IMAGES, batch: int = 3) -> Array:
    """The scores of a graph on ONNX Runtime, which takes it as it is written."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    return np.concatenate(parts).reshape(len(images), -1)


def normalized(model: onnx.ModelProto, images: Array = IMAGES, batch: int = 3) -> onnx.ModelProto:
    """The canonical form, after a comparison with the file."""
    found = normalize(model).model
    onnx.checker.check_model(found, full_check=True)
    expected = scores(model, images, batch)
    np.testing.assert_allclose(scores(found, images), expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    return found


def operators(model: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph.node))


# Batch norm in other clothes.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["Add", "Sub", "Mul", "Div"]),
        st.booleans(),  # the constant comes first
        st.sampled_from(["scalar", "one", "channels", "batched"]),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=5,
)


def constant(w: Writer, form: str, seed: int, channels: int, behind: int) -> str:
    """A constant of about one size, with ``behind`` axes behind that of the channels."""
    shape = {"scalar": (), "one": (1,), "channels": (channels,), "batched": (1, channels)}[form]
    if form in {"channels", "batched"}:
        shape += (1,) * behind
    rng = np.random.default_rng(seed)
    return w.const((rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 2, shape)).astype(np.float32))


def steps(w: Writer, x: str, chain: list[tuple[str, bool, str, int]], channels: int, behind: int) -> str:
    for op, first, form, seed in chain:
        pair = [x, constant(w, form, seed, channels, behind)]
        # A constant over the image is no scale and shift.
        x = w.op(op, *(reversed(pair) if first and op != "Div" else pair))
    return x


@settings(max_examples=15, deadline=None)
@given(STEPS, st.sampled_from([1, 8]), st.booleans())
def test_any_chain_of_constants_behind_a_convolution_is_folded(chain: Any, group: int, bias: bool) -> None:
    w = Writer()
    x = w.conv("data", (3, 8), 3, 4, bias=bias) if group == 1 else w.conv(w.conv("data", (3, 8)), (8, 8), group=8)
    model = w.model(w.head(relu(w, steps(w, x, chain, 8, 2)), 8))
    assert operators(normalized(model)) == {**PLAIN, "Conv": 1 if group == 1 else 2}


@settings(max_examples=15, deadline=None)
@given(STEPS, st.sampled_from(["MatMul", "Gemm", "Gemm, transposed", "Gemm, scaled"]))
def test_any_chain_of_constants_behind_a_matrix_product_is_folded(chain: Any, product: str) -> None:
    w = Writer()
    flat = w.op("Flatten", w.op("GlobalAveragePool", relu(w, w.conv("data", (3, 8), 3, 4))))
    if product == "MatMul":
        x = w.op("MatMul", flat, w.random(8, 6))
    elif product == "Gemm":
        x = w.op("Gemm", flat, w.random(8, 6), w.random(1, 6))
    elif product == "Gemm, transposed":
        x = w.op("Gemm", flat, w.random(6, 8), transB=1)
    else:
        x = w.op("Gemm", flat, w.random(8, 6), w.random(6), alpha=0.5, beta=-2.0)
    x = relu(w, steps(w, x, chain, 6, 0))
    model = w.model(w.op("Gemm", x, w.random(6, CLASSES), w.random(CLASSES)))
    found = normalized(model)
    assert {**operators(found), "MatMul": 0, "Gemm": 2} == {**PLAIN, "Relu": 2, "MatMul": 0, "Gemm": 2}


def test_batch_norm_of_keras_between_transposes_is_folded() -> None:
    """Keras 3 in channels_last: the constants are (1, 1, 1, C), or (C,) from tf2onnx, behind a Transpose to NHWC."""
    w = Writer()
    x = w.op("Transpose", "data", perm=[0, 3, 1, 2])
    for channels, shape in (((3, 8), (1, 1, 1, 8)), ((8, 8), (8,))):
        x = w.op("Transpose", w.conv(x, channels, stride=2), perm=[0, 2, 3, 1])
        x = w.op("Sub", w.op("Add", x, w.random(*shape)), w.random(*shape))
        x = w.op("Add", w.op("Mul", x, w.random(*shape)), w.random(*shape))
        x = w.op("Transpose", relu(w, x), perm=[0, 3, 1, 2])
    found = normalized(w.model(w.head(x, 8), shape=("N", PX, PX, 3)), IMAGES.transpose(0, 2, 3, 1).copy())
    assert {op: n for op, n in operators(found).items() if op not in {"Transpose"}} == {**PLAIN, "Conv": 2, "Relu": 2}


@pytest.mark.parametrize("opset", [17, 18])
def test_a_mean_over_channels_last_needs_no_transpose(opset: int) -> None:
    w = Writer(opset=opset)
    x = relu(w, w.conv("data", (3, 8), 3, 2))
    x = w.op("Transpose", w.op("Add", w.conv(x, (8, 8)), x), perm=[0, 2, 3, 1])
    x = w.op("Clip", relu(w, x), "", w.const(np.float32(6)))
    over = {"axes": [1, -2]} if opset < 18 else {}
    mean = w.op("ReduceMean", x, *([] if over else [w.const([1, 2])]), keepdims=0, **over)
    found = normalized(w.model(w.op("Gemm", mean, w.random(8, CLASSES))))
    # ONNX Runtime makes one Clip of a ReLU and a Clip.
    assert operators(found) == {"Conv": 2, "Relu": 1, "Add": 1, "Clip": 1, "ReduceMean": 1, "Gemm": 1}


def test_a_mean_over_the_channels_keeps_its_transpose() -> None:
    w = Writer()
    x = relu(w, w.op("Transpose", w.conv("data", (3, 8), 3, 2), perm=[0, 3, 2, 1]))
    mean = w.op("Flatten", w.op("ReduceMean", x, axes=[3], keepdims=0))
    found = normalized(w.model(w.op("Gemm", mean, w.random(256, CLASSES))))
    assert operators(found)["Transpose"] == 1


def test_batch_norm_behind_a_gemm_is_folded() -> None:
    w = Writer()
    flat = w.op("Flatten", w.op("GlobalAveragePool", relu(w, w.conv("data", (3, 8), 3, 4))))
    x = relu(w, w.bn(w.op("Gemm", flat, w.random(16, 8), transB=1), 16))
    found = normalized(w.model(w.op("Gemm", x, w.random(16, CLASSES))))
    assert operators(found) == {**PLAIN, "Relu": 2, "Gemm": 2}


def keeps_before_the_convolution(w: Writer) -> str:
    x = relu(w, w.op("Add", w.op("Mul", w.conv("data", (3, 8)), w.random(8, 1, 1)), w.random(8, 1, 1)))
    x = w.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return w.conv(w.op("Add", w.op("Mul", x, w.random(8, 1, 1)), w.random(8, 1, 1)), (8, 8))


def two_readers(w: Writer) -> str:
    x = w.conv("data", (3, 8), stride=2)
    return w.op("Concat", w.op("Sub", x, w.random(8, 1, 1)), w.op("Div", x, w.random(8, 1, 1)), axis=1)


def over_the_image(w: Writer) -> str:
    x = w.op("Sub", w.conv("data", (3, 8), stride=2), w.random(1, 8, 16, 16))
    return w.op("Mul", w.op("Sub", x, w.random(1, 1, 16, 1)), w.random(16))


def divides(w: Writer) -> str:
    return w.op("Div", w.random(8, 1, 1), w.op("Add", w.op("Abs", w.conv("data", (3, 8))), w.const(np.float32(1))))


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        (keeps_before_the_convolution, {"Mul": 1, "Add": 1}),
        (two_readers, {"Add": 1, "Mul": 1}),
        (over_the_image, {"Sub": 2, "Mul": 1}),
        (divides, {"Div": 1, "Add": 1}),
    ],
)
def test_what_is_no_scale_and_shift_of_one_convolution_stays(
    layers: Callable[[Writer], str], left: dict[str, int]
) -> None:
    w = Writer()
    y = w.head(layers(w), 16 if layers is two_readers else 8)
    found = operators(normalized(w.model(y)))
    assert {op: n for op, n in found.items() if op in {"Add", "Sub", "Mul", "Div"}} == left


def test_a_shared_weight_is_folded_for_its_own_node_only() -> None:
    w = Writer()
    x = relu(w, w.conv("data", (3, 8), stride=2))
    weight = w.random(8, 8, 1, 1)
    plain = w.op("Conv", x, weight)
    scaled = w.op("Sub", w.random(8, 1, 1), w.op("Conv", plain, weight))
    assert operators(normalized(w.model(w.head(scaled, 8))))["Conv"] == 3


def test_scores_that_a_convolution_writes_stay_an_output() -> None:
    w = Writer()
    pooled = w.op("GlobalAveragePool", relu(w, w.conv("data", (3, 8))))
    y = w.op("Sub", w.conv(pooled, (8, CLASSES), 1), w.random(CLASSES, 1, 1))
    found = normalized(w.model(y, output_shape=("N", CLASSES, 1, 1)))
    assert operators(found) == {"Conv": 2, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1}


# What is computed from sizes.


def size(w: Writer, x: str, axis: int) -> str:
    return w.op("Gather", w.op("Shape", x), w.const(np.int64(axis)), axis=0)


def mean_by_hand(w: Writer, x: str) -> str:
    area = w.op("Cast", w.op("Mul", size(w, x, 2), size(w, x, 3)), to=TensorProto.FLOAT)
    return w.op("Div", w.op("ReduceSum", x, w.const([2, 3]), keepdims=0), area)


def same_padding(w: Writer, x: str) -> str:
    """TensorFlow's SAME for kernel 3 and stride 2, as Keras 3 computes it from the shape."""
    one, two, three = (w.const(np.int64(value)) for value in (1, 2, 3))
    pads = []
    for axis in (2, 3):
        length = size(w, x, axis)
        outputs = w.op("Div", w.op("Add", length, one), two)
        total = w.op("Sub", w.op("Add", w.op("Mul", w.op("Sub", outputs, one), two), three), length)
        pads += [w.op("Div", total, two), w.op("Sub", total, w.op("Div", total, two))]
    low, high = ([w.op("Unsqueeze", pad, w.const([0])) for pad in pads[i::2]] for i in (0, 1))
    zeros = w.const([0, 0])
    x = w.op("Pad", x, w.op("Concat", zeros, *low, zeros, *high, axis=0), "")
    x = relu(w, w.conv(x, (8, 8), 3, 2, pads=[0] * 4))
    return w.op("ReduceMean", x, axes=[2, 3], keepdims=0)


def as_strided(w: Writer, x: str) -> str:
    """torch's dynamo exporter in channels_last: a mean that it reads through places in the flat tensor."""
    pooled = w.op("GlobalAveragePool", x)
    batch = w.op("Squeeze", w.op("Slice", w.op("Shape", pooled), w.const([0]), w.const([1])), w.const([0]))
    rows = w.op("Mul", w.op("Range", w.const(np.int64(0)), batch, w.const(np.int64(1))), w.const(np.int64(8)))
    places = w.op("Add", w.op("Unsqueeze", rows, w.const([1])), w.const(np.arange(8).reshape(1, 8)))
    return w.op("Gather", w.op("Reshape", pooled, w.const([-1])), places, axis=0)


def places_in_another_order(w: Writer, x: str) -> str:
    pooled = w.op("GlobalAveragePool", x)
    rows = w.op("Mul", w.op("Range", w.const(np.int64(0)), size(w, x, 0), w.const(np.int64(1))), w.const(np.int64(8)))
    places = w.op("Add", w.op("Unsqueeze", rows, w.const([1])), w.const(np.array([[7, 6, 5, 4, 3, 2, 1, 1]])))
    return w.op("Gather", w.op("Reshape", pooled, w.const([-1])), places, axis=0)


def channel_shuffle(w: Writer, x: str) -> str:
    two = w.const([2])
    sizes = [w.op("Unsqueeze", size(w, x, axis), w.const([0])) for axis in range(4)]
    half = w.op("Div", sizes[1], two)
    grouped = w.op("Reshape", x, w.op("Concat", sizes[0], two, half, *sizes[2:], axis=0))
    swapped = w.op("Transpose", grouped, perm=[0, 2, 1, 3, 4])
    x = w.op("Reshape", swapped, w.op("Concat", *sizes, axis=0))
    return w.op("ReduceMean", relu(w, w.conv(x, (8, 8))), axes=[2, 3], keepdims=0)


def heads_beside_the_batch(w: Writer, x: str) -> str:
    """Two heads of four channels as 2 N rows, as attention is written: no axis has the size of the batch."""
    batch = w.op("Unsqueeze", size(w, x, 0), w.const([0]))
    rows = w.op("Concat", w.op("Mul", batch, w.const([2])), w.const([4, -1]), axis=0)
    mean = w.op("ReduceMean", w.op("Reshape", x, rows), axes=[2], keepdims=0)
    return w.op("Reshape", mean, w.op("Concat", batch, w.const([8]), axis=0))


def squeezed_by_a_branch(w: Writer, x: str) -> str:
    """``x.squeeze(2)`` with a free batch: the exporter asks at run time whether the axis has the size 1."""
    pooled = w.op("Squeeze", w.op("GlobalAveragePool", x), w.const([3]))
    alone = w.op("Equal", size(w, pooled, 2), w.const(np.int64(1)))
    axis = helper.make_node("Constant", [], ["axis"], value=helper.make_tensor("two", TensorProto.INT64, (1,), [2]))
    bodies = (
        [axis, helper.make_node("Squeeze", [pooled, "axis"], ["then"])],
        [helper.make_node("Identity", [pooled], ["otherwise"])],
    )
    branches = [
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        for nodes, name in zip(bodies, ("then", "otherwise"), strict=True)
    ]
    return w.op("If", alone, then_branch=branches[0], else_branch=branches[1])


HEADS = (
    mean_by_hand,
    same_padding,
    as_strided,
    places_in_another_order,
    channel_shuffle,
    heads_beside_the_batch,
    squeezed_by_a_branch,
)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@pytest.mark.parametrize("batch", ["N", 3])
def test_sizes_are_constants(head: Callable[[Writer, str], str], batch: Any) -> None:
    w = Writer()
    flat = head(w, relu(w, w.conv("data", (3, 8), 3, 2)))
    y = w.op("Gemm", flat, w.random(8, CLASSES), w.random(CLASSES))
    found = normalized(w.model(y, shape=(batch, 3, PX, PX), output_shape=(batch, CLASSES)))
    graph = Graph(found)
    computed = [name for node in graph.nodes for name in node.output]
    assert computed and all(graph.carries_activations(name) for name in computed)


def resized(w: Writer, x: str, mode: str = "linear") -> str:
    """Feature pyramids resize to the size of another level: sizes with the batch among them."""
    small = w.conv(x, (8, 8), 3, 3)
    sizes = w.op("Concat", *(w.op("Unsqueeze", size(w, x, axis), w.const([0])) for axis in range(4)), axis=0)
    joined = w.op("Add", x, w.op("Resize", small, "", "", sizes, mode=mode))
    return w.op("ReduceMean", joined, axes=[2, 3], keepdims=0)


def resized_nearest(w: Writer, x: str) -> str:
    return resized(w, x, "nearest")


def classification_token(w: Writer, x: str) -> str:
    """A row that is expanded to the batch and put before the pixels, as transformers have it."""
    rows = w.op("Transpose", w.op("Reshape", x, w.const([0, 8, -1])), perm=[0, 2, 1])
    batch = w.op("Unsqueeze", size(w, x, 0), w.const([0]))
    token = w.op("Expand", w.random(1, 1, 8), w.op("Concat", batch, w.const([1, 8]), axis=0))
    mixed = w.op("MatMul", w.op("Concat", token, rows, axis=1), w.random(8, 8))
    return w.op("ReduceMax", mixed, axes=[1], keepdims=0)


def divided_by_its_length(w: Writer, x: str) -> str:
    """``torch.nn.functional.normalize``: the length is expanded to the tensor's shape."""
    mean = w.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    return w.op("Div", mean, w.op("Expand", w.op("ReduceL2", mean, axes=[1]), w.op("Shape", mean)))


def zeros_beside(w: Writer, x: str) -> str:
    both = w.op("Concat", x, w.op("ConstantOfShape", w.op("Shape", x)), axis=1)
    return w.op("ReduceMean", w.conv(both, (16, 8)), axes=[2, 3], keepdims=0)


def rows_of_the_batch(w: Writer, x: str) -> str:
    batch = w.op("Unsqueeze", size(w, x, 0), w.const([0]))
    rows = w.op("Expand", w.random(1, 8), w.op("Concat", batch, w.const([8]), axis=0))
    return w.op(
        "Where", w.op("Greater", rows, w.const(np.float32(0))), w.op("ReduceMean", x, axes=[2, 3], keepdims=0), rows
    )


@pytest.mark.parametrize(
    "head",
    [resized, resized_nearest, classification_token, divided_by_its_length, zeros_beside, rows_of_the_batch],
    ids=lambda head: head.__name__,
)
@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_sizes_with_the_batch_among_them_take_any_batch(head: Callable[[Writer, str], str], batch: Any) -> None:
    w = Writer()
    flat = head(w, relu(w, w.conv("data", (3, 8), 3, 2)))
    y = w.op("Gemm", flat, w.random(8, CLASSES), w.random(CLASSES))
    model = w.model(y, shape=(batch, 3, PX, PX), output_shape=(batch, CLASSES))
    found = normalized(model, batch=3 if batch == "N" else batch)
    assert found.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    if head in {resized, resized_nearest, divided_by_its_length}:
        assert not operators(found).keys() & {"Shape", "Expand"}
    elif batch == "N" and head is not zeros_beside:
        assert {op: n for op, n in operators(found).items() if op in {"Shape", "Gather", "Unsqueeze"}} == {"Shape": 1}


def test_zeros_of_the_batch_stay_computed() -> None:
    """A shortcut of zeros beside a padding: the sizes of the image become constants, the batch does not."""
    w = Writer()
    x = relu(w, w.conv("data", (3, 8), stride=2))
    zeros = w.op("ConstantOfShape", w.op("Shape", x))
    found = normalized(w.model(w.head(w.op("Concat", x, zeros, axis=1), 16)))
    assert operators(found) == {**PLAIN, "Shape": 1, "ConstantOfShape": 1, "Concat": 1}


# What is refused says why, and what to do.


def refusal(model: onnx.ModelProto) -> str:
    onnx.checker.check_model(model)
    with pytest.raises(ModelError) as raised:
        normalize(model, where="g")
    return str(raised.value)


def with_batch_norm(opset: int, outputs: int, **attributes: Any) -> onnx.ModelProto:
    w = Writer(opset=opset)
    x = w.bn(w.conv("data", (3, 8), 3, 2), 8, **attributes)
    w.nodes[-1].output.extend(f"statistics_{i}" for i in range(1, outputs))
    return w.model(w.head(relu(w, x), 8))


def with_dropout(*, training: bool, ratio: float = 0.5) -> onnx.ModelProto:
    w = Writer(opset=13)
    x = relu(w, w.conv("data", (3, 8), 3, 2))
    x = w.op("Dropout", x, w.const(np.float32(ratio)), w.const(np.bool_(training)))
    w.nodes[-1].output.append("mask")
    return w.model(w.head(x, 8))


@pytest.mark.parametrize(("opset", "outputs", "mode"), [(17, 3, {"training_mode": 1}), (13, 5, {}), (9, 5, {})])
def test_batch_norm_in_training_mode_is_named(opset: int, outputs: int, mode: dict[str, int]) -> None:
    assert refusal(with_batch_norm(opset, outputs, **mode)) == (
        "g: exported in training mode: BatchNormalization BatchNormalization_1 normalizes with the statistics of each "
        "batch; export after model.eval()"
    )


def test_weights_that_are_standardized_at_run_time_are_stored() -> None:
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.nn import functional

    class Standardized(nn.Conv2d):  # type: ignore[misc]
        """As timm writes weight standardization."""

        def forward(self, x: Any) -> Any:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = functional.batch_norm(flat, None, None, weight=self.gain, training=True, momentum=0.0, eps=1e-6)
            return functional.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)

    torch.manual_seed(0)
    convs = Standardized(3, 8, 3, 2, 1), Standardized(8, 8, 3, 1, 1)
    for conv in convs:
        conv.gain = nn.Parameter(torch.rand(8) + 0.5)
    relus = nn.ReLU(), nn.ReLU()
    tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    network = nn.Sequential(convs[0], relus[0], convs[1], relus[1], *tail).eval()
    file = io.BytesIO()
    options: dict[str, Any] = {"dynamo": False, "opset_version": 17, "input_names": ["data"]}
    torch.onnx.export(network, (torch.zeros(1, 3, PX, PX),), file, dynamic_axes={"data": {0: "n"}}, **options)
    found = normalize(onnx.load_from_string(file.getvalue())).model
    assert operators(found) == {"Conv": 2, "Relu": 2, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    with torch.no_grad():
        expected = network(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(scores(found), expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_dropout_in_training_mode_is_named() -> None:
    assert refusal(with_dropout(training=True)) == (
        "g: exported in training mode: Dropout Dropout_2 drops values at random; export after model.eval()"
    )


def test_random_numbers_are_named() -> None:
    w = Writer()
    x = relu(w, w.conv("data", (3, 8), 3, 2))
    noisy = w.op("Add", x, w.op("RandomNormalLike", x))
    assert "RandomNormalLike_2 draws random numbers; export after model.eval()" in refusal(w.model(w.head(noisy, 8)))


@pytest.mark.parametrize("build", [lambda: with_dropout(training=False), lambda: with_dropout(training=True, ratio=0)])
def test_dropout_that_drops_nothing_is_folded(build: Callable[[], onnx.ModelProto]) -> None:
    assert operators(normalized(build())) == PLAIN


@pytest.mark.parametrize("opset", [14, 17])
def test_statistics_that_nothing_reads_are_dropped_before_anything_reads_the_graph(opset: int) -> None:
    """ONNX Runtime refuses to load the file: inference mode has one output."""
    found = normalize(with_batch_norm(opset, 3, training_mode=0)).model
    expected = scores(with_batch_norm(opset, 1, training_mode=0))
    np.testing.assert_allclose(scores(found), expected, atol=1e-5)
    assert operators(found) == PLAIN


def mean_over_the_batch(w: Writer, x: str) -> str:
    return w.op("Sub", x, w.op("ReduceMean", x, axes=[0], keepdims=1))


def weights_from_the_first_image(w: Writer, x: str) -> str:
    """A convolution whose weights are computed from the first image of the batch."""
    gate = w.op("Sigmoid", w.op("ReduceMean", w.op("Gather", x, w.const(np.int64(0)), axis=0), axes=[1, 2], keepdims=1))
    return w.op("Conv", x, w.op("Mul", w.random(8, 8, 1, 1), w.op("Unsqueeze", gate, w.const([0]))))


def rolled(w: Writer, x: str) -> str:
    last = w.op("Slice", x, w.const([-1]), w.const([2**60]), w.const([0]))
    return w.op("Add", x, last)


@pytest.mark.parametrize(
    ("layers", "node"),
    [
        (mean_over_the_batch, "ReduceMean_2"),
        (weights_from_the_first_image, "Gather_2"),
        (rolled, "Slice_2"),
    ],
)
@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_images_that_mix_are_told_with_the_node(layers: Callable[[Writer, str], str], node: str, batch: Any) -> None:
    w = Writer()
    y = w.head(layers(w, relu(w, w.conv("data", (3, 8), 3, 2))), 8)
    told = refusal(w.model(y, shape=(batch, 3, PX, PX), output_shape=(batch, CLASSES)))
    assert "the scores of an image depend on the other images of its batch" in told
    assert "dynamic batch" not in told
    assert f"(node {node})" in told


def beside_the_batch(w: Writer, x: str) -> str:
    """Reshaped with the channels first, where nothing tells which size is the batch."""
    rows = w.op("Reshape", w.op("Transpose", x, perm=[1, 0, 2, 3]), w.const([8, 1, 256]))
    return w.op("ReduceMean", w.op("Transpose", rows, perm=[1, 0, 2]), axes=[2], keepdims=0)


@pytest.mark.parametrize(
    ("batch", "step"),
    [
        ("N", "export with two images as the example, and keep the batch's size out of Python numbers"),
        (1, "export with a dynamic batch"),
    ],
)
def test_a_batch_inside_a_file_has_a_next_step(batch: Any, step: str) -> None:
    w = Writer()
    y = w.op("Gemm", beside_the_batch(w, relu(w, w.conv("data", (3, 8), 3, 2))), w.random(8, CLASSES))
    told = refusal(w.model(y, shape=(batch, 3, PX, PX), output_shape=(batch, CLASSES)))
    assert told.startswith("g: a batch of 1 is built into the graph (")
    assert told.endswith(f"; {step}")


def test_weights_of_each_image_are_told() -> None:
    """CondConv, as it is exported with one image: the convolution's weights are mixed from experts by the image."""
    w = Writer()
    x = relu(w, w.conv("data", (3, 8), 3, 2))
    mix = w.op("Gemm", w.op("ReduceMean", x, axes=[2, 3], keepdims=0), w.random(8, 4))
    weights = w.op("Reshape", w.op("MatMul", mix, w.random(4, 576)), w.const([8, 8, 3, 3]))
    x = w.op("Reshape", w.op("Conv", x, weights, kernel_shape=[3, 3]), w.const([1, 8, 14, 14]))
    told = refusal(w.model(w.head(x, 8), shape=(1, 3, PX, PX), output_shape=(1, CLASSES)))
    assert told.startswith("g: the weights of Conv Conv_6 are computed from the image, for a batch of 1 (")
    assert told.endswith("; give all images of a batch the same weights")


def test_onnx_has_one_name_for_its_domain() -> None:
    w = Writer()
    model = w.model(w.head(relu(w, w.bn(w.conv("data", (3, 8)), 8)), 8))
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    found = normalized(model)
    assert operators(found) == PLAIN
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 17)]
    assert {node.domain for node in found.graph.node} == {""}


@pytest.mark.parametrize("back", [True, False])
def test_a_head_in_float64_is_computed_in_float32(back: bool) -> None:
    w = Writer()
    x = w.op("Flatten", w.op("GlobalAveragePool", relu(w, w.conv("data", (3, 8), 3, 2))))
    weight = w.const(np.random.default_rng(0).standard_normal((8, CLASSES)))
    y = w.op("MatMul", w.op("Cast", x, to=TensorProto.DOUBLE), weight)
    y = w.op("Clip", y, w.const(np.finfo(np.float64).min), w.const(np.inf))
    y = w.op("Cast", y, to=TensorProto.FLOAT) if back else y
    model = w.model(y)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT if back else TensorProto.DOUBLE

    assert "float64 parts made float32" in normalize(model).notes
    graph = Graph(normalized(model))
    assert all(graph.carries_activations(name) for node in graph.nodes for name in node.output)


def group_norm(w: Writer, x: str) -> str:
    return w.op("GroupNormalization", x, w.random(8), w.random(8), num_groups=2)


def rms_norm(w: Writer, x: str) -> str:
    return w.op("RMSNormalization", x, w.random(16), axis=-1)


def swish(w: Writer, x: str) -> str:
    return w.op("Swish", x)


def largest(w: Writer, x: str) -> str:
    return w.op("GlobalMaxPool", x)


def attention(w: Writer, x: str) -> str:
    rows = w.op("Transpose", w.op("Reshape", x, w.const([0, 8, -1])), perm=[0, 2, 1])
    seen = w.op("Transpose", w.op("Attention", rows, rows, rows, q_num_heads=2, kv_num_heads=2), perm=[0, 2, 1])
    return w.op("Reshape", seen, w.const([0, 8, 16, 16]))


@pytest.mark.parametrize(
    ("layers", "opset"), [(group_norm, 21), (largest, 22), (rms_norm, 23), (attention, 23), (swish, 24)]
)
def test_operators_newer_than_the_canonical_opset_are_written_in_older_ones(
    layers: Callable[[Writer, str], str], opset: int
) -> None:
    w = Writer(opset=opset)
    found = normalized(w.model(w.head(layers(w, w.conv("data", (3, 8), 3, 2)), 8)))
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 20)]
    assert not operators(found).keys() & {"GroupNormalization", "RMSNormalization", "Attention", "Swish", "Cast"}
