"""Searches for another preprocessing with which the FP32 network is right far more often.

Normalizations as networks are commonly trained with, the other order of channels, the usual input sizes, and a resize
without a crop (or with one) are tried on some validation images with the FP32 graph. If it gets significantly more of
them right in one of these ways, it was trained in that way. No baseline is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from edgeres.data.base import Source, evenly_spread
from edgeres.data.loader import Batch, Loader
from edgeres.data.preprocess import resized
from edgeres.errors import EdgeresError
from edgeres.progress import SILENT, Progress
from edgeres.records import F32, IMAGENET_MEAN, IMAGENET_STD, ChannelOrder, Fit, ModelSpec, Preprocess
from edgeres.runtime.runner import Runner
from edgeres.verify.accuracy import BetterInput, Comparison
from edgeres.verify.answers import REFERENCE, Mask
from edgeres.verify.candidates import Candidates
from edgeres.verify.statistics import sign_tail

FIRST, ALL = 32, 128  # images: every way is tried on the first, and on all of them if it is better on the first
LEVEL = 1e-3  # probability of a false alarm, over all ways
_BATCH = 8
_UNIT = 1 / 255

# How networks are commonly trained: mean and std in red, green, blue, and the pixel scale that they are for.
Normalization = tuple[tuple[float, ...], tuple[float, ...], float]
NORMALIZATIONS: dict[str, Normalization] = {
    "ImageNet's mean and std": (IMAGENET_MEAN, IMAGENET_STD, _UNIT),
    "mean and std 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), _UNIT),
    "mean 0 and std 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), _UNIT),
    "raw pixels of 0 to 255": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0),
    "Caffe's mean on pixels of 0 to 255": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0), 1.0),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), _UNIT),
}
LETTERBOX_FILL = 114  # Ultralytics' gray
SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384)
_LARGEST = 224  # a larger input is tried up to about twice the pixels of the network's own
Change = Callable[[F32], F32]  # changes pixels of 0 to 255, (B, h, w, 3), in the network's channel order


@dataclass(frozen=True)
class Way:
    """Another preprocessing.

    Attributes:
        words: what it does.
        options: of the command line, for the next build.
        contract: its geometry; mean, std and scale are those of the graph's input.
        change: of the pixels, so that the graph's own normalization computes another one; None leaves them.
    """

    words: str
    options: str
    contract: Preprocess
    change: Change | None = None


@dataclass(frozen=True)
class Search:
    """What was tried; ``better`` is the significantly better way with the lowest p-value, None where none is."""

    tried: tuple[str, ...] = ()
    better: BetterInput | None = None


def search(
    candidates: Candidates, spec: ModelSpec, loader: Loader, comparison: Comparison, progress: Progress = SILENT
) -> Search:
    """Try the other ways, unless too few answers are wrong for a significant improvement.

    Where the graph took over mean and std (it takes bytes then) and the bundle does not say which they were, they are
    guessed, too: a wrong guess improves nothing.
    """
    table = comparison.table
    if not table.labelled:
        return Search()
    if loader.preprocess.channels != 3:
        return Search()
    ways = [*_ways(loader.preprocess, spec.given), _otherwise_turned(loader.preprocess)]
    wrong = 1 - table.right(REFERENCE).sum() / table.labelled
    if sign_tail(round(wrong * ALL), 0) * len(ways) > LEVEL:
        return Search()
    labelled = np.flatnonzero(loader.source.labels >= 0)
    chosen = np.random.default_rng(0).permutation(labelled[evenly_spread(len(labelled), ALL)])
    sizes = [way for way in ways if way.contract.crop_px != loader.preprocess.crop_px]
    # Only the best size is tried with other resize modes, but the test allows for the choice among all of them.
    possible = len(ways) + sum(len(list(_both(size))) for size in sizes)
    with ExitStack() as stack, progress.task("trying other preprocessings", total=len(ways)) as advance:
        trial = _Trial(candidates, loader.source.at(chosen), loader.preprocess, stack)
        found = {}
        for way in ways:
            found[way] = trial.compare(way, possible)
            advance(1)
        if tried := [(better.p, number) for number, size in enumerate(sizes) if (better := found[size]) is not None]:
            for way in _both(sizes[min(tried)[1]]):
                found[way] = trial.compare(way, possible)
    better = min((better for better in found.values() if better is not None), key=lambda better: better.p, default=None)
    return Search(tuple(way.words for way in found), better)


class _Trial:
    """Runs the FP32 graph on the same images in different ways."""

    def __init__(self, candidates: Candidates, sample: Source, contract: Preprocess, stack: ExitStack) -> None:
        self._candidates, self._sample, self._contract, self._stack = candidates, sample, contract, stack
        self._parts = (range(min(FIRST, len(sample))), range(min(FIRST, len(sample)), len(sample)))
        self._runner: Runner = stack.enter_context(candidates.reference.open(0))
        self._of_any_size: Runner | None = None
        self._own = [list(self._load(contract, part)) for part in self._parts]
        own = Way("", "", contract)
        self._right = [self._is_right(own, part) for part in range(2)]

    def compare(self, way: Way, ways: int) -> BetterInput | None:
        """The way, if it is significantly better; ``ways`` is the number of all."""
        try:
            first = self._is_right(way, 0, int(self._right[0].sum()) + 1)
            if first.sum() <= self._right[0].sum():
                return None
            right, otherwise = np.concatenate(self._right), np.concatenate([first, self._is_right(way, 1)])
        except Exception:  # a graph that does not run at another size: ONNX Runtime's errors share no other base
            if way.contract.crop_px == self._contract.crop_px:
                raise
            return None
        p = ways * sign_tail(int((otherwise & ~right).sum()), int((right & ~otherwise).sum()))
        counts = len(right), int(right.sum()), int(otherwise.sum())
        return BetterInput(way.words, *counts, p, way.options) if p < LEVEL else None

    def _is_right(self, way: Way, part: int, wanted: int = 0) -> Mask:
        """Whether each image of a part is answered right, bool (N,); False where it cannot be read.

        Args:
            wanted: so many have to be right; it stops where that cannot be reached any more.
        """
        right = np.zeros(len(self._parts[part]), np.bool_)
        is_own = way.contract == self._contract
        runner = self._runner if way.contract.crop_px == self._contract.crop_px else self._any_size()
        for batch in self._own[part] if is_own else self._load(way.contract, self._parts[part]):
            inputs = batch.inputs if way.change is None else _changed(batch.inputs, way.change, way.contract)
            scores = runner.infer({runner.input_name: inputs})[runner.output_name]
            right[batch.indices] = scores.reshape(len(inputs), -1).argmax(axis=1) == batch.labels
            if right.sum() + len(right) - 1 - batch.indices[-1] < wanted:
                break
        return right

    def _load(self, contract: Preprocess, part: Sequence[int]) -> Iterator[Batch]:
        if part:
            yield from Loader(self._sample.at(np.array(part)), contract, _BATCH, on_unreadable="skip")

    def _any_size(self) -> Runner:
        """The FP32 graph with a free height and width."""
        if self._of_any_size is None:
            graph = _with_free_size(self._candidates, self._contract)
            self._of_any_size = self._stack.enter_context(self._candidates.open_graph(graph, integer=False))
        return self._of_any_size


def _with_free_size(candidates: Candidates, contract: Preprocess) -> bytes:
    import onnx

    path = candidates.reference.graph
    if path is None:
        raise EdgeresError("the reference is no graph")
    model = onnx.load(path)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for axis, name in zip((2, 3) if contract.layout == "NCHW" else (1, 2), ("height", "width"), strict=True):
        dims[axis].dim_param = name
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


def _changed(inputs: F32, change: Change, contract: Preprocess) -> F32:
    """The network inputs after ``change`` of the pixels that they were computed from."""
    mean, std = np.array(contract.mean, np.float32), np.array(contract.std, np.float32)
    last = np.moveaxis(inputs, 1, -1) if contract.layout == "NCHW" else inputs
    pixels = (last * std + mean) / np.float32(contract.pixel_scale)
    changed = (change(pixels) * np.float32(contract.pixel_scale) - mean) / std
    return np.ascontiguousarray(np.moveaxis(changed, -1, 1) if contract.layout == "NCHW" else changed, np.float32)


def _ways(contract: Preprocess, given: Preprocess | None) -> Iterator[Way]:
    """The ways to try.

    Args:
        contract: of the graph's input.
        given: by the user, where the graph took over mean and std; None: it is the contract, or not known.
    """
    own = given or contract
    other_order: ChannelOrder = "RGB" if own.channel_order == "BGR" else "BGR"
    if given is None and _is_bytes(contract):
        yield Way(f"channels in the order {other_order}", f"--channel-order {other_order}", contract, _swapped)
        for used in list(NORMALIZATIONS)[:3]:
            guess = _as(NORMALIZATIONS[used], own)
            yield from (
                _renormalized(contract, guess, _as(NORMALIZATIONS[x], own)) for x in NORMALIZATIONS if x != used
            )
    else:
        tried = [own, *(_as(values, own) for name, values in NORMALIZATIONS.items() if name != _name(own))]
        swapped = [replace(p, channel_order=other_order, mean=p.mean[::-1], std=p.std[::-1]) for p in tried]
        yield from (_renormalized(contract, own, other) for other in (*tried[1:], *swapped))
    yield from _sizes(contract)
    yield from _geometries(contract)


def _is_bytes(contract: Preprocess) -> bool:
    """Whether the graph takes bytes minus 128, so that it normalizes them itself."""
    return contract.pixel_scale == 1 and set(contract.mean) == {128.0} and set(contract.std) == {1.0}


def _as(normalization: Normalization, p: Preprocess) -> Preprocess:
    """The same geometry and order of channels with another normalization."""
    mean, std, scale = normalization
    return replace(p, mean=_in_order(mean, p), std=_in_order(std, p), pixel_scale=scale)


def _renormalized(contract: Preprocess, used: Preprocess, other: Preprocess) -> Way:
    """``other`` in place of ``used``, on a graph that computes ``used`` from its pixels, at once or inside.

    Channel by channel, the byte b' for which (b' s - m) / d, as used, equals (b s' - m') / d', as tried.
    """
    mean, std, new_mean, new_std = (np.array(values) for values in (used.mean, used.std, other.mean, other.std))
    factor = other.pixel_scale * std / (new_std * used.pixel_scale)
    offset = (mean - new_mean * std / new_std) / used.pixel_scale
    words, options = [], []
    if (name := _name(other)) != (before := _name(used)):
        words.append(f"{name} in place of {before}")
        options.append(f"--mean {_numbers(other.mean, other)} --std {_numbers(other.std, other)}")
    if other.pixel_scale != used.pixel_scale:
        options.append(f"--pixel-scale {other.pixel_scale:.9g}")
    swaps = other.channel_order != used.channel_order
    if swaps:
        words.append(f"channels in the order {other.channel_order}")
        options.append(f"--channel-order {other.channel_order}")
    change = partial(_affine, factor.astype(np.float32), offset.astype(np.float32), -1 if swaps else 1)
    return Way(", and ".join(words), " ".join(options), contract, change)


def _affine(factor: F32, offset: F32, order: int, pixels: F32) -> F32:
    changed: F32 = pixels[..., ::order] * factor + offset
    return changed


def _swapped(pixels: F32) -> F32:
    return pixels[..., ::-1]


def _name(used: Preprocess) -> str:
    """Mean, std and scale in words."""
    own = (_in_order(used.mean, used), _in_order(used.std, used), (used.pixel_scale,))
    for name, (mean, std, scale) in NORMALIZATIONS.items():
        pairs = zip((mean, std, (scale,)), own, strict=True)
        if all(np.allclose(a, b, rtol=2e-3, atol=1e-3 * scale) for a, b in pairs):
            return name
    told = "" if abs(255 * used.pixel_scale - 1) < 1e-6 else f", pixel scale {used.pixel_scale:.4g}"
    return f"mean {_numbers(used.mean, used)}, std {_numbers(used.std, used)}{told}"


def _in_order(values: Sequence[float], p: Preprocess) -> tuple[float, ...]:
    """Values in red, green, blue in the order of the network's channels, or the reverse."""
    return tuple(values) if p.channel_order == "RGB" else tuple(values)[::-1]


def _numbers(values: Sequence[float], p: Preprocess) -> str:
    return " ".join(f"{value:.6g}" for value in _in_order(values, p))


def _sizes(contract: Preprocess) -> Iterator[Way]:
    """Other input sizes, with the same share of the image."""
    own = contract.crop_px
    least = min(own)
    for side in SIZES:
        if side == least or side > max(_LARGEST, round(1.45 * least)):
            continue
        crop = (max(1, round(side * own[0] / least)), max(1, round(side * own[1] / least)))
        size = str(side) if crop[0] == crop[1] else f"{crop[0]}x{crop[1]}"
        words = f"inputs of {crop[0]}x{crop[1]} pixels in place of {own[0]}x{own[1]}"
        yield Way(words, f"--input-px {size}", resized(contract, crop))


def _geometries(contract: Preprocess) -> Iterator[Way]:
    """The other resize modes."""
    mode = contract.resize_mode
    if mode != "squash":
        words = "images resized to the input's height and width without a crop"
        yield Way(words, "--resize-mode squash", replace(contract, resize_px=None, fit=Fit()))
    if mode != "letterbox":
        words = "images fitted into the input with borders"
        letterbox = replace(contract, resize_px=None, fit=Fit((LETTERBOX_FILL,) * contract.channels))
        yield Way(words, "--resize-mode letterbox", letterbox)
    if mode != "crop":
        usual = round(min(contract.crop_px) * 256 / 224)
        before = "borders around them" if mode == "letterbox" else "a resize without a crop"
        words = f"images resized to {usual} pixels on their shorter side and cropped, in place of {before}"
        yield Way(words, f"--resize-mode crop --resize {usual}", replace(contract, resize_px=usual, fit=Fit()))


def _otherwise_turned(contract: Preprocess) -> Way:
    """Images turned as their EXIF data say, or as they are stored: torchvision's ``ImageFolder`` does not turn them."""
    exif = not contract.reading.exif
    words = "images turned as their EXIF data say" if exif else "images as they are stored, not turned by EXIF data"
    turned = replace(contract, reading=replace(contract.reading, exif=exif))
    return Way(words, "--exif" if exif else "--no-exif", turned)


def _both(size: Way) -> Iterator[Way]:
    """Another size together with each of the other resize modes."""
    for way in _geometries(size.contract):
        yield replace(way, words=f"{size.words}, and {way.words}", options=f"{size.options} {way.options}")
