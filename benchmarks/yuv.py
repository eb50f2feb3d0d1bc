"""What YUV frames cost more than BGR: ``python benchmarks/yuv.py``.

A 1280x720 frame of each format becomes the network's input, 224x224, by a crop of the resized image and by a squash.
YUV is converted by edgeres' own code and by OpenCV's; all calls alternate in random order on one thread. Times are the
calling thread's CPU time, medians, in units of those of BGR in the same run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from itertools import product
from unittest import mock

import cv2
import numpy as np

from edgeres.data import colour
from edgeres.data.preprocess import apply, pixels_read
from edgeres.records import F32, U8, Preprocess
from edgeres.runtime import Frame

HEIGHT, WIDTH, ROUNDS = 720, 1280, 40
SHAPES = {"bgr8": (HEIGHT, WIDTH, 3), "yuyv": (HEIGHT, WIDTH, 2)}
SHAPES |= dict.fromkeys(("nv12", "i420"), (HEIGHT * 3 // 2, WIDTH))
CONTRACTS = {"crop": Preprocess((224, 224), resize_px=256), "squash": Preprocess((224, 224), resize_px=None)}


def prepared(data: U8, name: str, p: Preprocess) -> F32:
    return apply(Frame(data, name).pixels(p.reading, lambda size_px: pixels_read(size_px, p)), p)


def main() -> None:
    cv2.setNumThreads(1)
    if colour._opencv() is None:
        raise SystemExit("this OpenCV has other bits, so edgeres does not use it")
    order, seconds = np.random.default_rng(0), defaultdict[tuple[str, str, bool], list[float]](list)
    works = {
        (kind, name, by_opencv): partial(prepared, order.integers(0, 256, SHAPES[name], np.uint8), name, p)
        for (kind, p), name, by_opencv in product(CONTRACTS.items(), SHAPES, (False, True))
    }
    for _ in range(ROUNDS):
        for key in [list(works)[index] for index in order.permutation(len(works))]:
            with mock.patch.object(colour, "_opencv", return_value=cv2 if key[2] else None):
                start = time.thread_time()
                works[key]()
                seconds[key].append(time.thread_time() - start)
    print("| in units of BGR's time | NV12 | I420 | YUYV |\n|---|---|---|---|")
    for kind, by_opencv in product(CONTRACTS, (False, True)):
        base = np.median(seconds[kind, "bgr8", by_opencv])
        cells = [f"{np.median(seconds[kind, name, by_opencv]) / base:.2f}" for name in ("nv12", "i420", "yuyv")]
        print(f"| {kind}, {'by OpenCV' if by_opencv else 'by edgeres'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
