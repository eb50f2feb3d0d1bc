"""Other libraries' resizes beside the contract's: ``python benchmarks/resizers.py BUNDLE``.

A 1280x720 RGB frame becomes 224x224, by a crop of the resized image and by a squash, with bilinear weights. Each
library runs in alternating calls with edgeres, on one thread, and its bytes are compared with the contract's. Then the
bundle's INT8 graph for the CPU classifies signs, enlarged to the frame's size, prepared in both ways.

Times are the process's CPU time, as a share of edgeres' own in the same run. The table is written into docs/runtime.md.
``pip install pyvips pyvips-binary`` gives libvips.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("VIPS_CONCURRENCY", "1")

import cv2
import numpy as np
import pyvips
from pages import put
from PIL import Image

from edgeres.bundle import Bundle
from edgeres.data.preprocess import geometry, normalize, placed_image
from edgeres.data.signs import Signs
from edgeres.graph.forms import form_for
from edgeres.records import U8, Preprocess
from edgeres.runtime.ort import OrtRunner

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- resizers: written by benchmarks/resizers.py, change nothing between these comments -->"
END = "<!-- end of resizers -->"
FRAME_PX = (720, 1280)
ROUNDS = 60

Resize: TypeAlias = Callable[[U8, tuple[int, int]], Any]


def _vips(image: U8, size: tuple[int, int]) -> Any:
    across, down = size[1] / image.shape[1], size[0] / image.shape[0]
    return pyvips.Image.new_from_array(image).resize(across, vscale=down, kernel="linear").numpy()


RESIZES: dict[str, Resize] = {
    "Pillow, all of the image": lambda image, size: np.asarray(
        Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    ),
    "Pillow, `reducing_gap=2`": lambda image, size: np.asarray(
        Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2)
    ),
    "libvips, linear": _vips,
    "OpenCV, area": lambda image, size: cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA),
    "OpenCV, linear": lambda image, size: cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR),
}


def prepared(resize: Resize, image: U8, p: Preprocess) -> U8:
    """The same crop of the image that another library resized."""
    where = placed_image(image.shape[:2], p)
    rows, columns = (slice(*part) for part in where.keep)
    return np.ascontiguousarray(resize(image, where.size_px)[rows, columns])


def share_of_time(resize: Resize, image: U8, p: Preprocess) -> float:
    """Median CPU time in units of edgeres' own."""
    works = {"ours": lambda: geometry(image, p), "other": lambda: prepared(resize, image, p)}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    return float(np.median(seconds["other"]) / np.median(seconds["ours"]))


def frames(count: int, side: int) -> list[U8]:
    signs, size = Signs("validation", count, side), FRAME_PX[::-1]
    pictures = (Image.fromarray(signs.image(index)) for index in range(count))
    return [np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures]


def rows(bundle: Bundle, count: int) -> list[str]:
    form, known = form_for("onnxruntime"), bundle.manifest.model.preprocess
    pictures = frames(count, max(known.crop_px))
    contracts = {
        "crop": replace(known, crop_px=(224, 224), resize_px=256, interpolation="bilinear"),
        "squash": replace(known, crop_px=(224, 224), resize_px=None, interpolation="bilinear"),
    }
    table = [
        "| resize to 224x224 | time, crop | squash | equal bytes | largest difference | same class |",
        "|" + "---|" * 6,
    ]
    with OrtRunner(bundle.file(form.file), threads=1) as runner:

        def classes(images: list[U8], p: Preprocess) -> Any:
            feeds = (normalize(image, p)[None] for image in images)
            return np.array([runner.infer({runner.input_name: feed})[runner.output_name][0].argmax() for feed in feeds])

        squash = contracts["squash"]
        ours = [geometry(picture, squash) for picture in pictures]
        answers = classes(ours, squash)
        for name, resize in RESIZES.items():
            times = [share_of_time(resize, pictures[0], p) for p in contracts.values()]
            theirs = [prepared(resize, picture, squash) for picture in pictures]
            gaps = [np.abs(a.astype(int) - b) for a, b in zip(ours, theirs, strict=True)]
            equal, worst = np.mean([(gap == 0).mean() for gap in gaps]), max(int(gap.max()) for gap in gaps)
            same = int((classes(theirs, squash) == answers).sum())
            figures = f"{times[0]:.2f} | {times[1]:.2f} | {100 * equal:.3g} % | {worst} | {same:,} of {count:,}"
            table.append(f"| {name} | {figures} |")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    table = rows(Bundle(given.bundle), given.images)
    print("\n".join(table))
    put(ROOT / "docs" / "runtime.md", BEGIN, END, "\n".join(table))


if __name__ == "__main__":
    main()
