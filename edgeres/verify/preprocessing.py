"""Searches for another preprocessing (mean, std, pixel scale, channel order) that fits the FP32 network better.

Other preprocessings are tried on some validation images with the FP32 graph. If it gets significantly more of them
right with one of these, it was trained with that one. No baseline is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edgeres.data.base import evenly_spread
from edgeres.data.loader import Loader
from edgeres.records import F32, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from edgeres.runtime.runner import Runner
from edgeres.verify.accuracy import BetterInput, Comparison
from edgeres.verify.answers import REFERENCE
from edgeres.verify.candidates import Candidate
from edgeres.verify.statistics import sign_tail

FIRST, ALL = 32, 128  # images: every way is tried on the first, and on all of them if it is better on the first
LEVEL = 1e-3  # probability of a false alarm, over all ways
_BATCH = 8

Channels = tuple[float, ...]
# Mean and std of pixels in 0 to 1, as networks are commonly trained.
_NORMALIZATIONS: Mapping[str, tuple[Channels, Channels]] = {
    "ImageNet's mean and std": (IMAGENET_MEAN, IMAGENET_STD),
    "mean and std 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mean 0 and std 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
Change = Callable[[F32], F32]  # changes pixels of 0 to 255, (B, h, w, 3), in the network's channel order


def better_input(reference: Candidate, loader: Loader, comparison: Comparison) -> BetterInput | None:
    """The significantly better preprocessing with the lowest p-value; None where none is.

    Nothing is tried where too few answers are wrong for a significant improvement. Mean and std may be inside the graph
    (the graphs of a bundle take bytes), so both are guessed: the one that the graph uses and the one that it should
    use. A wrong guess improves nothing.
    """
    table = comparison.table
    if not table.labelled:
        return None
    changes = dict(_changes(loader.preprocess))
    wrong = 1 - table.right(REFERENCE).sum() / table.labelled
    if sign_tail(round(wrong * ALL), 0) * len(changes) > LEVEL:
        return None
    labelled = np.flatnonzero(loader.source.labels >= 0)
    chosen = np.random.default_rng(0).permutation(labelled[evenly_spread(len(labelled), ALL)])
    sample = Loader(loader.source.at(chosen), loader.preprocess, _BATCH, on_unreadable="skip")
    batches = [(batch.inputs, batch.labels) for batch in sample]
    with reference.open(0) as runner:
        return _Trial(runner, batches, loader.preprocess).best(changes)


class _Trial:
    """Runs the FP32 graph on the same images with different preprocessings."""

    def __init__(self, runner: Runner, batches: list[tuple[F32, np.ndarray]], contract: Preprocess) -> None:
        self._runner, self._contract = runner, contract
        first = -(-FIRST // _BATCH)
        self._parts = (batches[:first], batches[first:])
        self._right = [self._is_right(part, None) for part in self._parts]

    def best(self, changes: Mapping[str, Change]) -> BetterInput | None:
        tried = [self._try(way, change, len(changes)) for way, change in changes.items()]
        return min((better for better in tried if better is not None), key=lambda better: better.p, default=None)

    def _try(self, way: str, change: Change, ways: int) -> BetterInput | None:
        first = self._is_right(self._parts[0], change)
        if first.sum() <= self._right[0].sum():
            return None
        right = np.concatenate(self._right)
        otherwise = np.concatenate([first, self._is_right(self._parts[1], change)])
        p = ways * sign_tail(int((otherwise & ~right).sum()), int((right & ~otherwise).sum()))
        return BetterInput(way, len(right), int(right.sum()), int(otherwise.sum()), p) if p < LEVEL else None

    def _is_right(self, batches: list[tuple[F32, np.ndarray]], change: Change | None) -> np.ndarray:
        """Whether each image is answered right, bool (N,); ``change`` None leaves the inputs as they are."""
        right = [np.zeros(0, np.bool_)]
        for inputs, labels in batches:
            changed = inputs if change is None else _changed(inputs, change, self._contract)
            scores = self._runner.infer({self._runner.input_name: changed})[self._runner.output_name]
            right.append(scores.reshape(len(labels), -1).argmax(axis=1) == labels)
        return np.concatenate(right)


def _changed(inputs: F32, change: Change, contract: Preprocess) -> F32:
    """The network inputs after ``change`` of the pixels that they were computed from."""
    mean, std = np.array(contract.mean, np.float32), np.array(contract.std, np.float32)
    last = np.moveaxis(inputs, 1, -1) if contract.layout == "NCHW" else inputs
    pixels = (last * std + mean) / np.float32(contract.pixel_scale)
    changed = (change(pixels) * np.float32(contract.pixel_scale) - mean) / std
    return np.ascontiguousarray(np.moveaxis(changed, -1, 1) if contract.layout == "NCHW" else changed, np.float32)


def _changes(contract: Preprocess) -> Iterator[tuple[str, Change]]:
    """Changes of the pixels by name; each makes the configured normalization compute another one."""
    order = -1 if contract.channel_order == "BGR" else 1
    yield f"channels in the order {'RGB' if order < 0 else 'BGR'}", lambda pixels: pixels[..., ::-1]
    for used, (mean, std) in _NORMALIZATIONS.items():
        for other, (other_mean, other_std) in _NORMALIZATIONS.items():
            if other != used:
                factor = np.array(std) / np.array(other_std)
                offset = 255 * (np.array(mean) - np.array(other_mean) * factor)
                yield f"{other} in place of {used}", _affine(factor[::order], offset[::order])


def _affine(factor: np.ndarray, offset: np.ndarray) -> Change:
    return lambda pixels: pixels * factor.astype(np.float32) + offset.astype(np.float32)
