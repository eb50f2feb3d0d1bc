"""The preprocessing inside the graph, in figures: ``python benchmarks/frames.py BUNDLE [--network FILE.onnx]``.

- pixels: of every format, two camera sizes, crop and squash, bilinear and bicubic, the bytes behind the graph's resize
  on ONNX Runtime are compared with the contract's, which are Pillow's and, for YUV, OpenCV's
- answers: signs, rendered and enlarged to the camera's size, through the graph with its frame and through the contract
- engines: TensorRT-RTX builds the bundle's network with each frame; kernels, bytes and size beside the one for images
- multiply-adds of the resize, as written and as two products with matrices, beside those of the network

The tables are written between two comments of docs/formulations.md. Nothing is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from pages import put
from PIL import Image

from edgeres.bundle import Bundle
from edgeres.data.preprocess import apply, geometry
from edgeres.data.signs import Signs
from edgeres.engine.builder import BuildRequest, build_engine
from edgeres.engine.kernels import read_program
from edgeres.graph.forms import form_for
from edgeres.graph.frame import multiply_adds, pixels_of, with_frame
from edgeres.graph.graph import Graph, attributes
from edgeres.graph.normalize import load_onnx
from edgeres.records import BYTE_FORMATS, FrameSpec, Interpolation, Preprocess
from edgeres.runtime.frames import frame_from, frame_spec
from edgeres.runtime.ort import OrtRunner
from edgeres.verify.engines import sqnr_db

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- frames: written by benchmarks/frames.py, change nothing between these comments -->"
END = "<!-- end of frames -->"
SIZES = ("1280x720", "1920x1080")
FILTERS: tuple[Interpolation, ...] = ("bilinear", "bicubic")
CAMERA = "1280x720:bgr8"


def contracts(p: Preprocess) -> dict[str, Preprocess]:
    """A bundle's contract with each geometry; a crop is 224 of 256."""
    found = {}
    for kind in FILTERS:
        shorter = round(min(p.crop_px) * 256 / 224)
        found[f"crop, {kind}"] = replace(p, resize_px=shorter, interpolation=kind)
        found[f"squash, {kind}"] = replace(p, resize_px=None, interpolation=kind)
    return found


def pixels(p: Preprocess, frame: FrameSpec) -> tuple[float, int]:
    """Share of the bytes that are equal, and the largest difference, on noise."""
    data = np.random.default_rng(0).integers(0, 256, frame.shape, np.uint8)
    with OrtRunner(pixels_of(p, frame).SerializeToString(), threads=1) as runner:
        found = runner.infer({runner.input_name: data[None]})[runner.output_name][0]
    wanted = geometry(frame_from(frame, data).rgb(), p)
    return float((found == wanted).mean()), int(np.abs(found.astype(int) - wanted).max())


def pixel_table(p: Preprocess, formats: Sequence[str]) -> Iterator[str]:
    yield "| frame | " + " | ".join(contracts(p)) + " |"
    yield "|---|" + "---|" * len(contracts(p))
    for size in SIZES:
        for name in formats:
            cells = [pixels(one, frame_spec(f"{size}:{name}")) for one in contracts(p).values()]
            row = " | ".join(f"{100 * equal:.4g} %, {worst}" for equal, worst in cells)
            yield f"| `{size}:{name}` | {row} |"


def answers(bundle: Bundle, images: int) -> str:
    """Classes and logits of frames and of their prepared images."""
    p, frame = bundle.manifest.model.preprocess, frame_spec(CAMERA)
    model = load_onnx(bundle.file(form_for("tensorrt").file))
    signs, found = Signs("validation", images, max(p.crop_px)), dict[str, list[Any]](frame=[], image=[])
    graphs = {"frame": with_frame(model, p, frame), "image": model}
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(OrtRunner(graph.SerializeToString(), threads=1, integer=False))
            for name, graph in graphs.items()
        }
        for index in range(images):
            size = frame.width_px, frame.height_px
            picture = np.asarray(Image.fromarray(signs.image(index)).resize(size, Image.Resampling.BICUBIC))
            bgr = np.ascontiguousarray(picture[..., ::-1])
            feeds = {"frame": bgr, "image": apply(frame_from(frame, bgr).rgb(), p)}
            for name, runner in runners.items():
                found[name].append(runner.infer({runner.input_name: feeds[name][None]})[runner.output_name][0])
    ours, other = np.array(found["frame"]), np.array(found["image"])
    same = int((ours.argmax(1) == other.argmax(1)).sum())
    equal = int((ours == other).all(axis=1).sum())
    return (
        f"{images:,} signs, enlarged to {CAMERA}: the same class on {same:,}, logits equal in every bit on {equal:,}, "
        f"SQNR of the logits {sqnr_db(other, ours):.1f} dB."
    )


def network_multiply_adds(model: onnx.ModelProto) -> int:
    """Of the convolutions and the classifier, for one image."""
    graph, total = Graph(model), 0
    for node in graph.of("Conv", "Gemm"):
        weights = graph.shape(node.input[1]) or graph.constant(node.input[1]).shape
        places = prod(graph.shape(node.output[0])[2:]) if node.op_type == "Conv" else 1
        total += prod(weights) * places
    assert all(attributes(node).get("group", 1) >= 1 for node in graph.of("Conv"))
    return total


def engines(bundle: Bundle, formats: Sequence[str]) -> Iterator[str]:
    """Kernels, bytes and sizes of RTX engines, each beside the one for prepared images."""
    form = bundle.default_form("rtx") or bundle.default_form("tensorrt")
    assert form is not None
    model, given = load_onnx(bundle.file(form.file)), bundle.manifest.model.preprocess
    plain_data = built(model)
    plain = read_program(plain_data)
    yield (
        f"More than the engine for prepared images, which has {len(plain.kernels)} kernels, "
        f"{plain.moved_bytes / 1e6:.2f} MB of activations and {len(plain_data) / 1e6:.2f} MB:"
    )
    yield ""
    yield "| frame | contract | kernels | activations, MB | engine, MB | multiply-adds, M | as matrices, M |"
    yield "|---|---|---|---|---|---|---|"
    for size in SIZES:
        for name in formats:
            frame = frame_spec(f"{size}:{name}")
            for words, p in contracts(given).items():
                data = built(with_frame(model, p, frame))
                program = read_program(data)
                more = len(program.kernels) - len(plain.kernels), program.moved_bytes - plain.moved_bytes
                sparse, dense = multiply_adds(p, frame)
                yield (
                    f"| `{frame}` | {words} | {more[0]} | {more[1] / 1e6:.2f} | "
                    f"{(len(data) - len(plain_data)) / 1e6:.2f} | {sparse / 1e6:.1f} | {dense / 1e6:,.0f} |"
                )


def built(model: onnx.ModelProto) -> bytes:
    return build_engine(model.SerializeToString(), BuildRequest("int8", max_batch=1), "rtx").data


def tables(given: Any) -> Iterator[str]:
    bundle = Bundle(given.bundle)
    p = bundle.manifest.model.preprocess
    yield "Bytes that equal the contract's, and the largest difference in levels, on noise:"
    yield ""
    yield from pixel_table(p, given.formats)
    yield ""
    yield answers(bundle, given.images)
    yield ""
    yield from engines(bundle, given.formats)
    yield ""
    for path in (bundle.file("model.fp32.onnx"), *given.network):
        name = bundle.manifest.model.name if path.name == "model.fp32.onnx" else path.stem
        yield f"Multiply-adds of {name}: {network_multiply_adds(load_onnx(path)) / 1e6:,.0f} M."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--network", type=Path, action="append", default=[], help="ONNX file to count, too")
    parser.add_argument("--formats", nargs="+", default=BYTE_FORMATS, choices=BYTE_FORMATS)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "formulations.md")
    given = parser.parse_args(arguments)
    print(put(given.page, BEGIN, END, "\n".join(tables(given)) + "\n"))


if __name__ == "__main__":
    main()
