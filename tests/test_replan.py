"""Plans made from a refined plan, scales in float16, shared weights and the cost model; compared with ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import foreign_graphs
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bundles import write_bundle
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeres.bundle import Bundle
from edgeres.device.libraries import available
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.engine.kernels import read_program
from edgeres.errors import BundleError
from edgeres.graph.graph import Graph
from edgeres.graph.half_scales import half_with_scales
from edgeres.graph.lint import lint
from edgeres.graph.normalize import normalize
from edgeres.graph.shared_weights import share_weights, whole_graph
from edgeres.quantize.alternatives import Alternative, Material, alternatives, largest_pooled, worthwhile
from edgeres.quantize.cost import Cost, cost_of, stages
from edgeres.quantize.placement import place
from edgeres.quantize.plan import make_plan
from edgeres.quantize.replan import only, with_codes, with_half_scales, with_pools
from edgeres.quantize.rewrite import rewrite
from edgeres.records import CODES, Codes, FormRecord, QuantParams, QuantPlan, TensorRange, WeightEdge

PX = foreign_graphs.PX


def infer(model: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    given_ = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = ort.SessionOptions()
    # 1.32 folds a Pad in float16 into the convolution as if it were filled with zeros.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(given_, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def sqnr_db(exact: np.ndarray, found: np.ndarray) -> float:
    return 10 * float(np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (4, 3, PX, PX)).astype(np.float32)


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return normalize(foreign_graphs.option_a()).model


@pytest.fixture(scope="module")
def ranges(fp32: onnx.ModelProto, x: np.ndarray) -> dict[str, TensorRange]:
    """Of every tensor, from ONNX Runtime."""
    shown = onnx.ModelProto()
    shown.CopyFrom(fp32)
    names = [name for name in Graph(fp32).types if name != Graph(fp32).input]
    shown.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name != Graph(fp32).output
    )
    session = ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    found = dict(zip(outputs, session.run(None, {Graph(fp32).input: x}), strict=True)) | {Graph(fp32).input: x}
    return {
        name: TensorRange(name, min(0.0, float(values.min())), max(0.0, float(values.max())), "minmax", len(x))
        for name, values in found.items()
    }


def plan_with(fp32: onnx.ModelProto, ranges: dict[str, TensorRange], codes: Codes) -> QuantPlan:
    view = Graph(fp32)
    return make_plan(view, place(view, "tensorrt", codes), ranges, "")


@pytest.mark.parametrize("source", CODES)
@pytest.mark.parametrize("wanted", CODES)
def test_other_codes_are_those_of_a_plan_made_for_them(
    source: Codes, wanted: Codes, fp32: onnx.ModelProto, ranges: dict[str, TensorRange]
) -> None:
    made = with_codes(Graph(fp32), plan_with(fp32, ranges, source), wanted)
    direct = plan_with(fp32, ranges, wanted)
    for edge, expected in zip(made.edges, direct.edges, strict=True):
        assert (edge.tensor, edge.consumers) == (expected.tensor, expected.consumers)
        assert edge.params.zero_point == expected.params.zero_point
        assert float(edge.params.scale) == pytest.approx(float(expected.params.scale), rel=1e-6)


def test_a_tensor_of_zeros_keeps_its_zero_point(fp32: onnx.ModelProto, ranges: dict[str, TensorRange]) -> None:
    plan = plan_with(fp32, ranges, "half")
    full = [edge.tensor for edge in with_codes(Graph(fp32), plan, "full").edges if edge.params.zero_point]
    without = with_codes(Graph(fp32), plan, "full", frozenset(full[:1]))
    assert {edge.tensor for edge in without.edges if edge.params.zero_point} < set(full)
    assert next(edge for edge in without.edges if edge.tensor == full[0]) in plan.edges


def test_layers_left_out_of_a_plan_compute_in_float(
    fp32: onnx.ModelProto, ranges: dict[str, TensorRange], x: np.ndarray
) -> None:
    plan, view = plan_with(fp32, ranges, "half"), Graph(fp32)
    convs = [node.name for node in view.of("Conv")]
    late = set(convs[len(convs) // 2 :])
    graph = Graph(rewrite(fp32, only(plan, late.__contains__)))
    for name in convs:
        kinds = [getattr(graph.producer(tensor), "op_type", "") for tensor in graph.node(name).input[:2]]
        assert (kinds == ["DequantizeLinear"] * 2) == (name in late), name
    exact = infer(fp32, x)
    assert sqnr_db(exact, infer(graph.model, x)) > sqnr_db(exact, infer(rewrite(fp32, plan), x))


@pytest.mark.parametrize("codes", CODES)
def test_float16_scales_leave_float16_between_the_codes(
    codes: Codes, fp32: onnx.ModelProto, ranges: dict[str, TensorRange], x: np.ndarray
) -> None:
    plan = with_half_scales(plan_with(fp32, ranges, codes))
    single = rewrite(fp32, plan)
    before = single.SerializeToString()
    half = half_with_scales(single)
    assert single.SerializeToString() == before
    assert half.opset_import[0].version == 19
    assert not [finding for finding in lint(half) if finding.effect in {"refused", "wrong", "slow"}]
    graph = Graph(half)
    for conv in graph.of("Conv"):
        assert [graph.writer(name).op_type for name in conv.input[:2]] == ["DequantizeLinear"] * 2
        scales = [graph.stored(graph.writer(name).input[1]) for name in conv.input[:2]]
        assert {scale.data_type for scale in scales if scale} == {TensorProto.FLOAT16}
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True, check_type=True)
    kinds = Counter(value.type.tensor_type.elem_type for value in inferred.graph.value_info)
    assert kinds[TensorProto.FLOAT16] > kinds[TensorProto.FLOAT]
    # Codes that fall the other way in float16 make about as much noise as the codes themselves.
    assert sqnr_db(infer(single, x), infer(half, x)) > sqnr_db(infer(fp32, x), infer(single, x)) - 3


@given(st.lists(st.floats(1e-12, 1e3), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_weights_keep_their_values_within_half_a_step_of_float16_scales(scales: list[float], seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-127, 128, (len(scales), 3, 1, 1)).astype(np.int8)
    params = QuantParams(np.asarray(scales, np.float32), 0, "int8", 0)
    plan = QuantPlan("tensorrt", (), (WeightEdge("w", "conv", params, codes),), (), "")
    (found,) = with_half_scales(plan).weights
    assert np.array_equal(found.params.scale, found.params.scale.astype(np.float16).astype(np.float32))
    assert found.params.scale.min() >= 2.0**-14
    before, after = (
        weight.codes * weight.params.scale.astype(np.float64)[:, None, None, None]
        for weight in (plan.weights[0], found)
    )
    rounding = 127 * 2.0**-11  # of the scale itself, in steps
    step = found.params.scale.astype(np.float64)[:, None, None, None]
    assert (np.abs(after - before) <= (0.5 + rounding) * step).all()


# Shared weights.


def shared(model: onnx.ModelProto, folder: Path, holders: dict[str, bytes]) -> tuple[Path, tuple[str, ...]]:
    for name, content in holders.items():
        (folder / name).write_bytes(content)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    used = share_weights(changed, holders)
    (folder / "shared.onnx").write_bytes(changed.SerializeToString())
    return folder / "shared.onnx", used


def test_weights_in_another_graph_are_read_in_place(
    fp32: onnx.ModelProto,
    ranges: dict[str, TensorRange],
    x: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_with(fp32, ranges, "half")
    first = rewrite(fp32, plan)
    other = rewrite(fp32, with_codes(Graph(fp32), plan, "full"))
    path, used = shared(other, tmp_path, {"none.onnx": b"", "first.onnx": first.SerializeToString()})
    assert used == ("first.onnx",)
    assert path.stat().st_size < len(other.SerializeToString()) / 2
    monkeypatch.chdir("/")
    assert np.array_equal(infer(path, x), infer(other, x))
    read, whole = (
        {t.name: numpy_helper.to_array(t) for t in model.graph.initializer} for model in (onnx.load(str(path)), other)
    )
    assert all(np.array_equal(read[name], whole[name]) for name in whole)
    # For another machine they are put together again.
    assert np.array_equal(infer(onnx.load_from_string(whole_graph(path)), x), infer(other, x))
    assert whole_graph(tmp_path / "first.onnx") == first.SerializeToString()


def test_rtx_reads_shared_weights_in_place(
    fp32: onnx.ModelProto, ranges: dict[str, TensorRange], tmp_path: Path
) -> None:
    if not available("rtx").can_build:
        pytest.skip(available("rtx").reason)
    first = rewrite(fp32, plan_with(fp32, ranges, "half"))
    path, _ = shared(first, tmp_path, {"first.onnx": first.SerializeToString()})
    given_: tuple[Path | bytes, ...] = (path, first.SerializeToString())
    engines = [build_engine(model, BuildRequest("int8"), "rtx").data for model in given_]
    programs = [read_program(data) for data in engines]
    assert programs[0].kernels == programs[1].kernels
    codes = {numpy_helper.to_array(t).tobytes() for t in first.graph.initializer if t.data_type == TensorProto.INT8}
    stored = [{code in data for code in codes} for data in engines]
    assert stored[0] == stored[1]


def external(location: str, padding: int = 0) -> bytes:
    """A graph with a tensor in another file, ``padding`` bytes behind its beginning."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        weight.external_data.add(key=key, value=value)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.producer_name = "p" * padding
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("padding", [0, (1 << 20) - 60, (1 << 20) - 100, (1 << 20) - 140, (1 << 21) - 110])
def test_a_graph_is_checked_with_the_files_of_its_weights(tmp_path: Path, padding: int) -> None:
    files = {"model.int8.onnx": b"12345678", "model.int8.half.onnx": external("model.int8.onnx", padding)}
    path = write_bundle(tmp_path / "b.edgeres", files=files)
    Bundle(path).file("model.int8.half.onnx")
    (path / "model.int8.onnx").write_bytes(b"12345679")
    with pytest.raises(BundleError, match=r"model\.int8\.onnx was changed"):
        Bundle(path).file("model.int8.half.onnx")


@pytest.mark.parametrize("location", ["other.bin", "../b.onnx", "model.int8.half.onnx", "", "n" * 128, "/dev/zero"])
@pytest.mark.parametrize("padding", [0, (1 << 20) - 100])
def test_weights_in_files_that_are_not_of_the_bundle_are_refused(tmp_path: Path, location: str, padding: int) -> None:
    files = {"model.int8.onnx": b"12345678", "model.int8.half.onnx": external(location, padding)}
    path = write_bundle(tmp_path / "b.edgeres", files=files)
    with pytest.raises(BundleError, match="takes weights from another file"):
        Bundle(path).file("model.int8.half.onnx")


def test_a_name_behind_its_key_alone_is_seen(tmp_path: Path) -> None:
    """Protobuf allows the value in front of its key."""
    content = external("other.bin").replace(b"\x0a\x08location\x12\x09other.bin", b"\x12\x09other.bin\x0a\x08location")
    assert onnx.load_from_string(content).graph.initializer[0].external_data[0].value == "other.bin"
    path = write_bundle(tmp_path / "b.edgeres", files={"model.onnx": content, "other.bin": b"12345678"})
    with pytest.raises(BundleError, match="takes weights from another file"):
        Bundle(path).file("model.onnx")


# What a form costs.


def two_layers() -> onnx.ModelProto:
    """Conv 3 -> 8, 3x3 with padding, ReLU; Conv 8 -> 4, 1x1: all on 6 x 6."""
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 3, 3, 3), "b": (4, 8, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), n) for n, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["u"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["u"], ["v"], "relu"),
        helper.make_node("Conv", ["v", "b"], ["y"], "second"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size, 6, 6]) for name, size in (("x", 3), ("y", 4))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_the_cost_of_two_layers_by_hand() -> None:
    graph = Graph(two_layers())
    ranges = {name: TensorRange(name, 0.0, 1.0, "minmax", 1) for name in "xv"}
    plan = make_plan(graph, place(graph, "tensorrt", "half"), ranges, "")
    first, second = 36 * 8 * 27, 36 * 4 * 8
    image, between, scores = 36 * 3, 36 * 8, 36 * 4
    weights = 8 * 27 + 4 * 8
    floats = 4 * (image + between + between + scores + weights)
    assert cost_of(graph, None, 4, "tensorrt") == Cost(2, floats, 0, first + second, frozenset())
    assert cost_of(graph, None, 2, "rtx") == Cost(2, floats // 2, 0, first + second, frozenset())
    # The image is quantized by a kernel of its own, and the first convolution reads three channels.
    codes = 5 * image + image + 2 * between + 4 * scores + weights
    assert cost_of(graph, plan, 4, "tensorrt") == Cost(3, codes, first + second, 0, frozenset({"first"}))
    # RTX writes float and reads it once more.
    assert cost_of(graph, plan, 4, "rtx") == Cost(4, codes + 8 * between, first + second, 0, frozenset({"first"}))
    late = only(plan, {"second"}.__contains__)
    mixed = 2 * image + 2 * between + 2 * scores + 2 * 8 * 27 + 4 * 8
    assert cost_of(graph, late, 2, "tensorrt") == Cost(2, mixed, second, first, frozenset())


def test_a_pad_is_a_kernel_that_may_not_fuse(fp32: onnx.ModelProto, ranges: dict[str, TensorRange]) -> None:
    view = Graph(fp32)
    plans = {codes: plan_with(fp32, ranges, codes) for codes in CODES}
    costs = {codes: cost_of(view, plan, 4, "tensorrt") for codes, plan in plans.items()}
    pads = {codes: len(Graph(rewrite(fp32, plan)).of("Pad")) for codes, plan in plans.items()}
    assert costs["free"].kernels == costs["half"].kernels
    assert costs["full"].kernels - costs["half"].kernels == pads["full"] - pads["half"] > 0
    assert costs["full"].unsure > costs["free"].unsure


def test_stages_end_with_the_smallest_images(fp32: onnx.ModelProto) -> None:
    found = stages(Graph(fp32))
    sizes = [size for size, _ in found]
    assert sizes == sorted(set(sizes), reverse=True) and len(found) > 1
    assert all(later < earlier for (_, earlier), (_, later) in pairwise(found))
    convs = [node.name for node in Graph(fp32).of("Conv")]
    assert convs[-1] in found[-1][1] and convs[0] not in found[-1][1]


def form(name: str, cost: Cost) -> Alternative:
    record = FormRecord(name, f"{name}.onnx", ("tensorrt",), "int8", "half", "float32", "")
    return Alternative(record, onnx.ModelProto, 1.0, {"tensorrt": cost})


def test_forms_that_cannot_win_are_dropped() -> None:
    default = Cost(10, 1000, 500, 0, frozenset("abc"))
    found = [
        form("same", default),
        form("surer", replace(default, unsure=frozenset("ad"))),
        form("fewer bytes", replace(default, moved_bytes=900, unsure=frozenset("abcd"))),
        form("slower", replace(default, kernels=20, moved_bytes=2000)),
        form("slower, accurate", replace(default, kernels=20, moved_bytes=2000)),
        form("failed", Cost(0, 0, 0, 0, frozenset())),
    ]
    figures = {
        "tensorrt": 30.0,
        "same": 29.0,
        "surer": 20.0,
        "fewer bytes": 30.0,
        "slower": 30.0,
        "slower, accurate": 35.0,
    }
    kept = [one.record.name for one in worthwhile(found, {"tensorrt": default}, figures, 8)]
    assert kept == ["surer", "fewer bytes", "slower, accurate"]
    assert len(worthwhile(found, {"tensorrt": default}, figures, 2)) == 2


def test_a_target_without_float16_scales_gets_no_form_with_them(
    fp32: onnx.ModelProto, ranges: dict[str, TensorRange]
) -> None:
    plan = plan_with(fp32, ranges, "free")

    def forms(newest: int, oldest: int) -> dict[str, str]:
        material = Material(fp32, fp32, plan, max_opset=newest, min_opset=oldest)
        return {one.record.name: one.record.between for one in alternatives(material)}

    both, orin, xavier = forms(20, 17), forms(20, 20), forms(17, 17)
    assert orin.keys() == {"fp16", "half", "float16", "head", "mixed", "rtx-mixed", "full"} == both.keys()
    assert xavier.keys() == orin.keys() - {"float16", "head", "mixed"}
    # A form that each target could take must not be written so that one of them cannot.
    assert (orin["half"], both["half"], xavier["half"]) == ("float16", "float32", "float32")


def test_no_form_is_written_twice(fp32: onnx.ModelProto, ranges: dict[str, TensorRange]) -> None:
    for codes in CODES:
        plan = plan_with(fp32, ranges, codes)
        written = [one.write() for one in alternatives(Material(fp32, fp32, plan, codes))]
        for graph in written:
            del graph.metadata_props[:]
        assert len({graph.SerializeToString(deterministic=True) for graph in written}) == len(written)


def test_an_average_pool_in_int8_has_codes_on_both_sides(
    fp32: onnx.ModelProto, ranges: dict[str, TensorRange], x: np.ndarray
) -> None:
    plan = plan_with(fp32, ranges, "free")
    (pool,) = Graph(fp32).of("GlobalAveragePool")
    largest = largest_pooled(fp32, plan, x)
    assert largest == {pool.input[0]: pytest.approx(max(ranges[pool.input[0]].high, -ranges[pool.input[0]].low))}
    found = {one.record.name: one for one in alternatives(Material(fp32, fp32, plan, pooled=largest))}
    graph = found["pool"].write()
    view = Graph(graph)
    (pool,) = view.of("GlobalAveragePool")
    assert view.writer(pool.input[0]).op_type == "DequantizeLinear"
    after = pool.output[0]
    while (reader := view.consumers(after)[0]).op_type in {"Flatten", "Reshape"}:
        after = reader.output[0]
    assert reader.op_type == "QuantizeLinear"
    assert sqnr_db(infer(fp32, x), infer(graph, x)) > 20
    pooled, plain = found["pool"].costs["tensorrt"], found["float16"].costs["tensorrt"]
    assert pooled.moved_bytes < plain.moved_bytes and pooled.kernels == plain.kernels
    assert pooled.unsure < plain.unsure  # the last Add's sum is read as codes


def test_no_pool_in_int8_where_its_result_is_float(fp32: onnx.ModelProto, ranges: dict[str, TensorRange]) -> None:
    plan = plan_with(fp32, ranges, "free")
    headless = only(plan, lambda name: Graph(fp32).node(name).op_type != "Gemm")
    assert with_pools(Graph(fp32), headless, {Graph(fp32).of("GlobalAveragePool")[0].input[0]: 1.0}) is None
    assert with_pools(Graph(fp32), plan, {}) is None
