"""Load and compare each graph on probe images before it is written; a form that fails is left out, the others are kept.

    insert_pairs(graph, plan)  ->  model.int8.onnx      ->  model.int8.rtx.onnx
             ^ compared with         ^ compared with

A form is compared with the graph that it was written from, by the noise that either has against FP32. Both round, in
different places, so their scores differ by about as much as either differs from FP32; codes that fall the other way in
float16 made 1.0 to 1.4 times the noise in tests over some 80 operators. A fault in a rewrite moves values by whole
activations, not by steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto

from edgeres.data.loader import Loader
from edgeres.data.preprocess import normalize
from edgeres.device.memory import return_freed
from edgeres.device.targets import Runtime
from edgeres.errors import ModelError, why_left_out
from edgeres.graph.forms import FORMS, GraphForm, forms_for
from edgeres.graph.graph import Graph
from edgeres.graph.lint import lint
from edgeres.progress import SILENT, Progress
from edgeres.quantize.graphs import Quantized
from edgeres.quantize.rewrite import insert_pairs
from edgeres.records import F32, F64, Preprocess
from edgeres.runtime.ort import OrtRunner
from edgeres.runtime.rows import rows, weights

PROBES = 8
_PROBE_BYTES = 64 << 20
# The noise that a form may have, over that of the graph it was written from: 6 dB, four times as much power.
_MORE_NOISE = 4.0
# Noise below this share of the scores' power, 40 dB, is no fault, however little the other graph has.
_NO_NOISE = 1e-4
# float16 has 11 bits, INT8 has 8 and keeps 20 dB on any network that is of use.
_FP16_NOISE = 1e-2


@dataclass(frozen=True)
class Probes:
    """Network inputs, (N, C, h, w) or (N, h, w, C), and the scores that FP32 gives for them, (N, classes).

    Attributes:
        weights: factors that let each of several outputs count the same, float64 (classes,); None: there is one output.
    """

    images: F32
    exact: F32
    weights: F64 | None = None

    @classmethod
    def of(cls, fp32: ModelProto, images: F32) -> Probes:
        exact = _scores(fp32, images)
        return cls(images, exact, weights(exact, Graph(fp32).output_shapes()))

    def first(self, count: int = PROBES) -> Probes:
        """The first few of them."""
        return Probes(self.images[:count], self.exact[:count], self.weights)

    def noise(self, found: F32) -> float:
        """Power of the difference to FP32's scores, as a share of their power, over all images together."""
        exact = self.exact.astype(np.float64)
        if self.weights is not None:
            exact *= self.weights
            return float(((found * self.weights - exact) ** 2).sum() / max(float((exact**2).sum()), 1e-30))
        return float(((found - exact) ** 2).sum() / max(float((exact**2).sum()), 1e-30))


@dataclass(frozen=True)
class Tried:
    """Graphs that may be written, by the name of their form, and the reasons for each that may not.

    ``sqnr_db`` is that of the scores against FP32's on the probe images.
    """

    graphs: Mapping[str, ModelProto]
    sqnr_db: Mapping[str, float]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def figure(self, name: str) -> float | None:
        """The SQNR of a form, rounded; None where its scores equal FP32's, as all-zero ones do."""
        found = self.sqnr_db[name]
        return None if found >= _db(0.0) else round(found, 2)


def probe_images(loader: Loader, count: int = PROBES) -> F32:
    """Inputs from a few of the loader's images, (N, ...); random ones where it only has a description of its images.

    There are ``count``, and fewer only where the loader has fewer or where they would take more than 64 MiB.

    Raises:
        SourceError: no image can be read.
    """
    height, width = loader.preprocess.crop_px
    count = min(count, max(PROBES, _PROBE_BYTES // (12 * height * width)))
    if not len(loader.source):
        return random_images(loader.preprocess, count)
    order = np.random.RandomState(0).permutation(len(loader.source)).astype(np.int64)
    batches = iter(replace(loader, source=loader.source.at(order), batch_size=count))
    return next(batches).inputs


def random_images(preprocess: Preprocess, count: int = PROBES) -> F32:
    """Inputs from images of random pixels, (N, ...)."""
    shape = (count, *preprocess.crop_px, preprocess.channels)
    pixels = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    return normalize(pixels, preprocess)


def try_forms(quantized: Quantized, runtimes: Iterable[Runtime], probes: Probes, progress: Progress = SILENT) -> Tried:
    """Write every form that these runtimes need, load it and compare it; each that fails is left out with a line."""
    graphs: dict[str, ModelProto] = {}
    noises: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for form in forms_for(runtimes):
        try:
            graph, base = _written(form, quantized, graphs, noises, probes)
            noises[form.name] = _noise(graph, base, probes, integer=form.integer)
            graphs[form.name] = graph
        except Exception as error:  # whatever is wrong with one form must not end the others
            left_out[form.name] = why_left_out(error)
            progress.say(f"{form.file} is left out: {left_out[form.name]}")
    return Tried(graphs, {name: _db(noises[name]) for name in graphs}, left_out)


def compared(graph: ModelProto, probes: Probes, expected: float) -> float:
    """The SQNR in dB of a graph for TensorRT that is written from another one.

    Args:
        expected: the noise that it may have, as a share of the scores' power.

    Raises:
        ModelError: TensorRT would refuse it, it cannot be loaded, or it has far more noise.
    """
    _refuse_unparsable(graph)
    return _db(_noise(graph, expected / _MORE_NOISE, probes))


def compare_rewritten(graph: ModelProto, base: ModelProto, fp32: ModelProto, images: F32) -> None:
    """Refuse a form that differs from the graph that it was rewritten from.

    Raises:
        ModelError: it cannot be loaded, or its scores are far from that graph's.
    """
    probes = Probes.of(fp32, images)
    _noise(graph, probes.noise(_scores(base, images)), probes)


def compare_half(graph: ModelProto, fp32: ModelProto, images: F32) -> None:
    """Refuse a graph in float16 that differs from FP32.

    Raises:
        ModelError: it cannot be loaded, or its scores are far from FP32's.
    """
    _noise(graph, _FP16_NOISE / _MORE_NOISE, Probes.of(fp32, images))


def _written(
    form: GraphForm,
    quantized: Quantized,
    graphs: Mapping[str, ModelProto],
    noises: Mapping[str, float],
    probes: Probes,
) -> tuple[ModelProto, float]:
    """The graph in a form, and the noise of what it was written from."""
    if form.style in quantized.left_out:
        raise ModelError(quantized.left_out[form.style])
    if form.made_from is None or form.rewrite is None:
        graph = quantized.graphs[form.style]
        pairs = insert_pairs(quantized.floats[form.style], quantized.plans[form.style])
        base = probes.noise(_scores(pairs, probes.images))
    elif form.made_from in graphs:
        graph, base = form.rewrite(graphs[form.made_from]), noises[form.made_from]
    else:
        raise ModelError(f"it is made from {FORMS[form.made_from].file}, which is left out")
    if form.runtime != "onnxruntime":
        _refuse_unparsable(graph)
    return graph, base


def _noise(graph: ModelProto, base: float, probes: Probes, *, integer: bool = False) -> float:
    """The noise of a graph on the probe images.

    Args:
        base: the noise of the graph that it was written from.

    Raises:
        ModelError: the graph does not run, or has far more noise.
    """
    found = _scores(graph, probes.images, integer=integer)
    if not np.isfinite(found).all():
        raise ModelError("its scores are not finite on the probe images")
    noise = probes.noise(found)
    if noise > max(_MORE_NOISE * base, _NO_NOISE):
        what = f"its scores have {_db(noise):.1f} dB SQNR against FP32's on the probe images"
        raise ModelError(f"{what}, and {_db(base):.1f} dB were expected")
    return noise


def _db(noise: float) -> float:
    return -10 * float(np.log10(max(noise, 1e-30)))


def _scores(graph: ModelProto, images: F32, *, integer: bool = False) -> F32:
    serialized = graph.SerializeToString()
    return_freed()
    with OrtRunner(serialized, integer=integer) as runner:
        return rows(runner.infer({runner.input_name: images}))


def _refuse_unparsable(model: ModelProto) -> None:
    """Raise if TensorRT's parsers would refuse the graph or misread it."""
    found = [finding for finding in lint(model) if finding.effect in {"refused", "wrong"}]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelError(f"TensorRT would not take the graph: {found[0]}{more}")
