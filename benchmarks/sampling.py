"""Measure how sampling of large tensors changes ranges: ``python benchmarks/sampling.py [--images 256]``.

In one pass of the bundled ResNet-18 over generated signs at 224x224, every tensor is counted completely, sampled as
edgeres does, and counted completely on half of the batches, which shows for comparison how much other images change.
For each method the table shows the difference of the ranges of both graphs to those of the complete count, and the
increase of the tensor's rounding and clipping error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

import numpy as np

from edgeres.calibrate.activations import ActivationRunner
from edgeres.calibrate.forward import Observer
from edgeres.calibrate.ranges import Moments, choose_range, rounding_error
from edgeres.calibrate.sketch import Histogram, Sketch
from edgeres.data.loader import Loader
from edgeres.data.signs import Signs
from edgeres.graph.graph import Graph
from edgeres.pipeline.take import Fp32Model, ModelChoice, take, with_exact_input
from edgeres.quantize.graphs import wanted_ranges
from edgeres.quantize.placement import place
from edgeres.records import METHODS, Method, TensorRange

Sketches = Mapping[str, Sketch]
BATCH = 8


def count(model: Fp32Model, tensors: list[str], images: int) -> dict[str, Sketches]:
    """The sketches of every tensor, by way of counting."""
    whole, half = ({name: Sketch() for name in tensors} for _ in range(2))
    loader = Loader(Signs("calibration", images, model.spec.preprocess.crop_px[0]), model.spec.preprocess, BATCH)
    with ActivationRunner(model.graph, tensors) as activations, Observer(model.graph, tensors) as observer:
        for number, batch in enumerate(loader):
            observer.add(batch.inputs)
            for name, values in activations.infer(batch.inputs).items():
                whole[name].add(values)
                if number % 4 in (1, 2):  # classes take turns, eight per batch, so this half holds all of them
                    half[name].add(values)
        return {"whole": whole, "sampled, as edgeres does": observer.sketches(), "half of the images": half}


def compare(
    wanted: Mapping[str, bool], method: Method, whole: Sketches, other: Sketches
) -> Iterator[tuple[float, float]]:
    """For each range, relative to the complete count: its difference, and the increase of the error."""
    for tensor, symmetric in wanted.items():
        everything = whole[tensor].histogram()
        best, found = (
            choose_range(tensor, histogram, method, 1, symmetric=symmetric)
            for histogram in (everything, other[tensor].histogram())
        )
        errors = [_error(everything, chosen, symmetric) for chosen in (best, found)]
        yield abs(_width(found) / _width(best) - 1), errors[1] / errors[0] - 1


def _width(chosen: TensorRange) -> float:
    return chosen.high - chosen.low


def _error(histogram: Histogram, chosen: TensorRange, symmetric: bool) -> float:
    """Rounding and clipping error with 255 codes around zero, or 256 codes from low to high."""
    scale = chosen.amax / 127 if symmetric else _width(chosen) / 255
    low, codes = (-127, 255) if symmetric else (round(chosen.low / scale), 256)
    return float(rounding_error(Moments.of(histogram), np.array([scale]), np.array([low]), codes)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    given = parser.parse_args()
    model = with_exact_input(take(ModelChoice("resnet18")))
    asked = [wanted_ranges(place(Graph(model.graph), style)) for style in ("tensorrt", "cpu")]
    ranges = [
        {tensor: True for tensor in wanted.symmetric if tensor not in model.known}
        | {tensor: False for tensor in wanted.affine if tensor not in model.known}
        for wanted in asked
    ]
    sketches = count(model, list(dict.fromkeys(tensor for some in ranges for tensor in some)), given.images)
    whole = sketches.pop("whole")
    print(f"{given.images} images, {sum(map(len, ranges))} ranges\n")
    print("| counted | method | range: median, largest difference | error: mean, largest increase |\n|---|---|---|---|")
    for name, other in sketches.items():
        for method in METHODS:
            found = np.array([pair for some in ranges for pair in compare(some, method, whole, other)]) * 100
            width, error = found.T
            print(
                f"| {name} | {method} | {np.median(width):.2f} %, {width.max():.1f} %"
                f" | {error.mean():+.2f} %, {error.max():+.1f} % |"
            )


if __name__ == "__main__":
    main()
