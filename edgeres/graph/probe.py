"""Run foreign graphs to find which values they take, and whether a rewritten graph still computes the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper

from edgeres.device.cpu import usable_cores
from edgeres.errors import ModelError, reading
from edgeres.graph.graph import Graph, opset_of
from edgeres.graph.interface import HALF, Interface
from edgeres.graph.plain import float_types
from edgeres.records import F32

# normalized: the graph does not normalize its input, so the image is normalized before. unit: it takes values from 0 to
# 1 and normalizes them itself. pixels: it takes values from 0 to 255 and normalizes them itself.
InputValues = Literal["normalized", "unit", "pixels"]

# Folding and converting reorder float32 sums; a wrong graph differs by far more.
LIMIT = 1e-3
# The original rounds every activation to float16, which has 11 bits.
HALF_LIMIT = 3e-2


def input_values(model: ModelProto, batch: int, where: object) -> InputValues:
    """The values that the graph takes, found from the input of its first Conv for images of zeros and of ones.

    A network sees values of about unit variance. Where the graph itself scales by 1/0.23 it is given [0, 1]; where it
    scales by 1/58, or subtracts 104 to 124, it is given [0, 255].
    """
    image = model.graph.input[0].name
    first = next((node.input[0] for node in model.graph.node if node.op_type == "Conv"), image)
    if first == image:
        return "normalized"
    stem = deepcopy(model)
    del stem.graph.output[:]
    stem.graph.output.append(helper.make_tensor_value_info(first, TensorProto.FLOAT, None))
    Graph(stem).prune()
    ones = np.ones((batch, *_image_shape(model)), np.float32)
    dark, bright = (_run(stem, images, first, where) for images in (0 * ones, ones))
    if not dark.size:
        return "normalized"  # the Conv reads none of these images: compare() refuses such graphs
    # The median ignores the padding at the border.
    dark, gain = (np.median(x[0].reshape(len(x[0]), -1), axis=1) for x in (dark, bright - dark))
    if np.abs(dark).max() > 16 or np.abs(gain).max() < 0.1:
        return "pixels"
    return "unit" if gain.min() > 1.5 and dark.max() < -0.5 else "normalized"


def compare(original: ModelProto, model: ModelProto, interface: Interface, values: InputValues, where: object) -> float:
    """Largest difference of the scores on random images, relative to the largest score.

    The rewritten graph runs with two images more than the file's batch, which proves that the batch is free.

    Raises:
        ModelError: a graph does not run, or they differ by more than ``LIMIT``, or ``HALF_LIMIT`` where the original
            computes in float16.
    """
    batch = interface.batch or 1
    images = _random_images([batch + 2, *_image_shape(model)], values)
    given = images.astype(_given_type(original))
    images = given.astype(np.float32)
    run = opened(original, where)
    parts = [_rows(run(given[i : i + batch], interface.outputs), batch) for i in range(3)]
    before = np.concatenate([parts[0], parts[1][-1:], parts[2][-1:]]).astype(np.float32)
    if not np.isfinite(before).all():
        hint = "the weights may be damaged: export again"
        raise ModelError("the scores of random images are not finite", where=where, hint=hint)
    try:
        found = run_graph(model, images, [value.name for value in model.graph.output], where)
        after = _rows(found, len(found[0]))
        built_in = f"{len(after)} rows of scores for {len(images)} images" if after.shape != before.shape else ""
    except ModelError as failed:
        built_in = in_words(failed.__cause__ or failed)
    if built_in:
        raise _built_in(model, built_in, interface.batch, where)
    error = float(np.abs(before - after).max() / max(float(np.abs(before).max()), 1e-12))
    if not error < (HALF_LIMIT if HALF & float_types(original) else LIMIT):
        raise _different(model, images, error, where)
    return error


def _built_in(model: ModelProto, failure: str, batch: int | None, where: object) -> ModelError:
    graph = Graph(model)
    computed = [node.name for node in graph.of("Conv") if graph.input in graph.ancestors(node.input[1])]
    if computed:
        what = f"the weights of Conv {computed[0]} are computed from the image, for a batch of {batch or 1} ({failure})"
        return ModelError(what, where=where, hint="give all images of a batch the same weights")
    hint = "export with a dynamic batch"
    if batch is None:
        hint = "export with two images as the example, and keep the batch's size out of Python numbers"
    return ModelError(f"a batch of {batch or 1} is built into the graph ({failure})", where=where, hint=hint)


def _different(model: ModelProto, images: F32, error: float, where: object) -> ModelError:
    mixing = _mixing_node(model, images)
    if mixing is not None:
        what = f"the scores of an image depend on the other images of its batch (node {mixing})"
        return ModelError(what, where=where, hint="let the network compute each image by itself, and export again")
    what = f"the normalized graph's scores differ by {error:.1e} of the largest one"
    return ModelError(what, where=where, hint=f"export with opset {opset_of(model)}, in float32, after model.eval()")


def _mixing_node(model: ModelProto, images: F32) -> str | None:
    """The name of the first node that gives an image other values in a batch than alone; None if none is found.

    The second image is asked: the first or the last one may be those that the others get values from.
    """
    model = deepcopy(model)
    names = [node.output[0] for node in model.graph.node]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        together, alone = (run_graph(model, some, names, None) for some in (images, images[1:2]))
    except ModelError:
        return None
    for node, several, one in zip(model.graph.node, together, alone, strict=True):
        if one.shape[:1] == (1,) and several.shape == (len(images), *one.shape[1:]):
            several = several[1:2]
        if several.shape == one.shape and one.dtype == np.float32:
            largest = max(float(np.abs(one).max(initial=0)), 1e-12)
            if not np.abs(several - one).max(initial=0) < LIMIT * largest:
                return str(node.name)
    return None


def _given_type(model: ModelProto) -> npt.DTypeLike:
    """The type of the images that a graph takes."""
    return helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)


def _image_shape(model: ModelProto) -> list[int]:
    return [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]


def _random_images(shape: list[int], values: InputValues) -> F32:
    generator = np.random.default_rng(0)
    if values == "normalized":
        return generator.standard_normal(shape).astype(np.float32)
    pixels = generator.integers(0, 256, shape).astype(np.float32)
    return pixels if values == "pixels" else pixels / np.float32(255)


def _rows(outputs: Sequence[npt.NDArray[Any]], images: int) -> npt.NDArray[Any]:
    """All values of each image, (N, V)."""
    return np.concatenate([output.reshape(images, -1) for output in outputs], axis=1)


def _run(model: ModelProto, images: npt.NDArray[Any], output: str, where: object) -> F32:
    result: F32 = run_graph(model, images, [output], where)[0]
    return result


def run_graph(
    model: ModelProto, images: npt.NDArray[Any], outputs: Sequence[str], where: object
) -> list[npt.NDArray[Any]]:
    """The outputs of a graph with one input, on ONNX Runtime without optimizations.

    Raises:
        ModelError: ONNX Runtime does not take or run the graph.
    """
    return opened(model, where)(images, outputs)


def opened(model: ModelProto, where: object) -> Callable[[npt.NDArray[Any], Sequence[str]], list[npt.NDArray[Any]]]:
    """A function that gives the outputs of a graph for images, as :func:`run_graph` does; the graph is loaded once."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, usable_cores()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with reading(where, "ONNX Runtime cannot run this graph", error=ModelError, short=in_words):
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(images: npt.NDArray[Any], outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        with reading(where, "ONNX Runtime cannot run this graph", error=ModelError, short=in_words):
            result: list[npt.NDArray[Any]] = session.run(outputs, {session.get_inputs()[0].name: images})
        return result

    return run


def in_words(error: BaseException) -> str:
    """An exception of onnx or ONNX Runtime in one short line: the node that failed, where they name it.

    >>> in_words(Exception("[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Concat node. "
    ...                    "Name:'join' Status Message: concatbase.h:135"))
    'Concat node join fails'
    """
    text = " ".join(str(error).split())
    failed = re.search(r"while running (\w+) node\. Name:'(.*?)' Status", text)
    if failed:
        return f"{failed[1]} node {failed[2]} fails"
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^/\S+:\d+ .*?\) ", "", text)[:160]  # a place in the sources of ONNX Runtime
