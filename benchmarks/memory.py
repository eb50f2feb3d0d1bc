"""Peak memory of quantizing a network by number of calibration images: ``python benchmarks/memory.py``.

    resnet50 with random weights, 224 px  ->  edgeres quantize --effort balanced, in a process of its own
        ->  its peak resident memory and its time, for 32 and for 160 images

The images are noise with structure at several scales: memory does not depend on what they show. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def write_images(path: Path, count: int, px: int) -> None:
    """Noise at 4, 16 and 64 cells a side, enlarged and summed."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((count, px, px, 3), np.float32)
    for cells in (4, 16, 64):
        index = np.arange(px) * cells // px
        pixels += 40 * rng.standard_normal((count, cells, cells, 3), np.float32)[:, index][:, :, index]
    np.savez(path, images=(128 + pixels).clip(0, 255).astype(np.uint8), labels=np.arange(count) % 10)


def edgeres(*arguments: str, cache: Path) -> None:
    """Run the command line in a child process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EDGERES_CACHE": str(cache)}
    command = [sys.executable, "-m", "edgeres", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(folder: Path, count: int, effort: str) -> None:
    """Quantize with so many images; print the peak of this process's children, of which there is one."""
    images = folder / f"{count}.npz"
    write_images(images, count, 224)
    start = time.perf_counter()
    choice = ["--calibration", str(images), "--calibration-size", str(count), "--effort", effort]
    edgeres("quantize", str(folder / "model.onnx"), *choice, "-o", str(folder / "int8.onnx"), cache=folder / str(count))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"| {count} | {peak:,.0f} MB | {time.perf_counter() - start:.0f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--images", type=int, nargs="+", default=[32, 160])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.folder is not None:  # a process for each number of images: the peak of children is that of the largest
        measure(asked.folder, asked.images[0], asked.effort)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        edgeres(
            *("export", "--model", asked.model, "--weights", "random", "-o", str(folder / "model.onnx")), cache=folder
        )
        print("| images | peak memory | time |\n|---|---|---|", flush=True)
        for count in asked.images:
            own = [sys.executable, __file__, "--folder", name, "--effort", asked.effort, "--images", str(count)]
            subprocess.run(own, check=True)


if __name__ == "__main__":
    main()
