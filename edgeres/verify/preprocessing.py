"""Whether images reach the network as it expects them: mean, std and scale of pixels, and the order of channels.

Two looks, neither needs a baseline:

* other ways to prepare the pixels are tried on some validation images with the FP32 graph. A network that answers far
  more of them rightly was trained with the other way;
* behind a ReLU, the share of zeros that calibration saw is compared with that of the validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edgeres.data.base import View
from edgeres.data.loader import Loader
from edgeres.records import F32, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from edgeres.runtime.runner import Runner
from edgeres.verify.accuracy import BetterInput, Comparison
from edgeres.verify.answers import REFERENCE
from edgeres.verify.candidates import Candidate
from edgeres.verify.statistics import sign_tail

FIRST, ALL = 32, 128  # images: on the first every way is tried, on all those that did not fall behind
LEVEL = 1e-3  # chance, over all ways, that one is called better that is not
_BATCH = 8

Channels = tuple[float, ...]
# Means and standard deviations of pixels in 0 to 1 that networks are trained with.
_WAYS: Mapping[str, tuple[Channels, Channels]] = {
    "ImageNet's mean and std": (IMAGENET_MEAN, IMAGENET_STD),
    "mean and std 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mean 0 and std 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


Change = Callable[[F32], F32]  # of bytes as floats, (B, h, w, 3) in the order of the contract


def better_input(reference: Candidate, loader: Loader, comparison: Comparison) -> BetterInput | None:
    """Try the other ways; None where none is better, or where so few answers are wrong that none could be.

    A graph may hold its own mean and std (that of a bundle takes bytes), so each way is a guess at both: what the
    build was told, and what it should have been. A wrong guess makes nothing better.
    """
    table = comparison.table
    if not table.labelled:
        return None
    ways = dict(_changes(loader.preprocess))
    wrong = 1 - table.right(REFERENCE).sum() / table.labelled
    if sign_tail(round(wrong * ALL), 0) * len(ways) > LEVEL:
        return None
    source = loader.source
    known = np.flatnonzero(source.labels >= 0)
    chosen = known[np.unique(np.linspace(0, len(known) - 1, ALL).astype(np.int64))]
    chosen = np.random.default_rng(0).permutation(chosen)
    view = View(source, chosen, source.labels[chosen], source.classes, source.description)
    batches = [(batch.inputs, batch.labels) for batch in Loader(view, loader.preprocess, _BATCH, on_unreadable="skip")]
    with reference.open(0) as runner:
        trial = _Trial(runner, batches, loader.preprocess)
        return trial.best(ways)


class _Trial:
    """FP32 on the same images, prepared this way and that."""

    def __init__(self, runner: Runner, batches: list[tuple[F32, np.ndarray]], contract: Preprocess) -> None:
        self._runner, self._contract = runner, contract
        few = -(-FIRST // _BATCH)
        self._parts = (batches[:few], batches[few:])
        self._right = [self._answers(part, None) for part in self._parts]

    def best(self, ways: Mapping[str, Change]) -> BetterInput | None:
        found = [tried for way, change in ways.items() if (tried := self._try(way, change, len(ways))) is not None]
        return min(found, key=lambda tried: tried.p, default=None)

    def _try(self, way: str, change: Change, ways: int) -> BetterInput | None:
        first = self._answers(self._parts[0], change)
        if first.sum() <= self._right[0].sum():
            return None
        now = np.concatenate([first, self._answers(self._parts[1], change)])
        before = np.concatenate(self._right)
        p = ways * sign_tail(int((now & ~before).sum()), int((before & ~now).sum()))
        return BetterInput(way, len(now), int(before.sum()), int(now.sum()), p) if p < LEVEL else None

    def _answers(self, batches: list[tuple[F32, np.ndarray]], change: Change | None) -> np.ndarray:
        """Which are right, bool (N,)."""
        right = [np.zeros(0, np.bool_)]
        for inputs, labels in batches:
            feed = inputs if change is None else _with(change, inputs, self._contract)
            scores = self._runner.infer({self._runner.input_name: feed})[self._runner.output_name]
            right.append(scores.reshape(len(labels), -1).argmax(axis=1) == labels)
        return np.concatenate(right)


def _with(change: Change, inputs: F32, contract: Preprocess) -> F32:
    """Network inputs as they would be of other bytes."""
    mean, std = np.array(contract.mean, np.float32), np.array(contract.std, np.float32)
    last = np.moveaxis(inputs, 1, -1) if contract.layout == "NCHW" else inputs
    pixels = (last * std + mean) / np.float32(contract.pixel_scale)
    changed = (change(pixels) * np.float32(contract.pixel_scale) - mean) / std
    return np.ascontiguousarray(np.moveaxis(changed, -1, 1) if contract.layout == "NCHW" else changed, np.float32)


def _changes(contract: Preprocess) -> Iterator[tuple[str, Change]]:
    """Ways to prepare bytes so that what follows, as it was told, comes to what another training had."""
    order = -1 if contract.channel_order == "BGR" else 1
    yield f"channels in the order {'RGB' if order < 0 else 'BGR'}", lambda pixels: pixels[..., ::-1]
    for told, (mean, std) in _WAYS.items():
        for way, (other_mean, other_std) in _WAYS.items():
            if way != told:
                factor = np.array(std) / np.array(other_std)
                offset = 255 * (np.array(mean) - np.array(other_mean) * factor)
                yield f"{way} in place of {told}", _affine(factor[::order], offset[::order])


def _affine(factor: np.ndarray, offset: np.ndarray) -> Change:
    return lambda pixels: pixels * factor.astype(np.float32) + offset.astype(np.float32)
