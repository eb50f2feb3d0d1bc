"""Read a calibration.json and use its ranges in place of measured ones, if they belong to the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgeres.calibrate.identity import Identity
from edgeres.calibrate.record import CALIBRATION_KIND, CalibrationFile, Ranges, Wanted, entries
from edgeres.data.base import Source
from edgeres.documents import Json
from edgeres.errors import InputError
from edgeres.records import U8, Method, Preprocess, TensorRange

_AGAIN = "edgeres calibrate makes a new one"


@dataclass(frozen=True)
class RangesFile:
    """A calibration.json that was read from ``path``."""

    path: Path
    content: CalibrationFile

    @property
    def method(self) -> Any:
        """A :data:`Method`, or ``imported``."""
        return self.content.method

    @property
    def samples(self) -> int:
        return self.content.samples

    def limits(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Low and high of every range, by style and tensor."""
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for tensor, entry in self.content.tensors.items():
            for style, pair in entry.ranges.items():
                found.setdefault(style, {})[tensor] = pair
        return found

    def zeros(self) -> dict[str, float]:
        """Share of exact zeros by tensor, for tensors with zeros; empty for imported ranges."""
        observed = {name: entry.observed for name, entry in self.content.tensors.items()}
        return {name: o.zeros / o.values for name, o in observed.items() if o and o.zeros}

    def choose(
        self, method: Method, wanted: Mapping[Any, Wanted], known: Mapping[str, TensorRange] = MappingProxyType({})
    ) -> Ranges:
        """The recorded ranges, for any method; see :meth:`Calibration.choose`.

        Raises:
            InputError: the file does not hold all of them.
        """
        return {style: asked.complete(self._of_style(style, asked, known)) for style, asked in wanted.items()}

    def _of_style(self, style: str, asked: Wanted, known: Mapping[str, TensorRange]) -> dict[str, TensorRange]:
        ranges = {name: entry.ranges for name, entry in self.content.tensors.items()}
        limits = {name: ranges.get(name, {}).get(style) for name in asked.all if name not in known}
        for name in limits.keys() & set(asked.symmetric):
            # The tensorrt range of a tensor behind a ReLU may have been chosen for twice as many codes.
            limits[name] = ranges.get(name, {}).get("symmetric") or limits[name]
        found = {name: self.range(name, pair) for name, pair in limits.items() if pair is not None}
        missing = [name for name in limits if name not in found]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            what = f"holds no range of {missing[0]}{more} for the {style} graph"
            raise InputError(what, where=self.path, hint=_AGAIN)
        return found | {name: known[name] for name in asked.all if name in known}

    def range(self, name: str, limits: tuple[float, float]) -> TensorRange:
        """The range of a tensor with these limits."""
        return TensorRange(name, *limits, self.content.method, self.content.samples)

    def to_dict(
        self,
        method: Method,
        ranges: Mapping[Any, Mapping[str, TensorRange]],
        model: Identity,
        batch: int,
        unreadable: tuple[str, ...] = (),
    ) -> Json:
        """The content of a calibration.json with these ranges, for ``model``.

        All else is written as it is in this file; the other arguments are those of :meth:`Calibration.to_dict`.
        """
        used = {name for found in ranges.values() for name in found}
        kept = {name: entry for name, entry in self.content.tensors.items() if name in used}
        symmetric = {n: self.range(n, e.ranges["symmetric"]) for n, e in kept.items() if "symmetric" in e.ranges}
        observed = {name: entry.observed for name, entry in kept.items() if entry.observed is not None}
        tensors = entries({**ranges, "symmetric": symmetric}, observed)
        own = replace(model, name=self.content.model.name)
        return CALIBRATION_KIND.content(replace(self.content, model=own, tensors=tensors))

    def images(self) -> Source:
        """The calibration images as a source that describes them but cannot read them."""
        return _PastImages(self.content.source, self.content.source_digest)

    def of(self, forms: Iterable[tuple[Identity, Preprocess]]) -> RangesFile:
        """The same ranges, stated for the first of ``forms``.

        Args:
            forms: graphs of one network with the preprocessing of their inputs. They share all tensors behind the first
                convolution, so ranges that were recorded for any of them hold for all. Iteration stops at a match.

        Raises:
            InputError: the ranges belong to another network or other inputs; the message says what differs.
        """
        own = self.content
        tried: list[tuple[Identity, Preprocess]] = []
        for model, preprocess in forms:
            tried.append((model, preprocess))
            if own.model.matches(model) and _same_input(own.preprocess, preprocess):
                return replace(self, content=replace(own, model=tried[0][0], preprocess=tried[0][1]))
        alike = sorted(tried, key=lambda form: (not own.model.matches(form[0]), form[0].graph != own.model.graph))
        model, preprocess = alike[0]
        wrong = own.model.difference(model) or _difference(own.preprocess, preprocess)
        if wrong.endswith("weights") and set(own.preprocess.std) == {1.0}:
            wrong += ", or another mean and std, which are part of them in a bundle"
        raise InputError(f"does not belong here: {wrong}", where=self.path, hint=_AGAIN)


class _PastImages(Source):
    """A description of calibration images that are not at hand."""

    def __init__(self, description: str, digest: str) -> None:
        self.classes = ()
        self.labels = np.zeros(0, np.int64)
        self.description = description
        self._digest = digest

    def name(self, index: int) -> str:
        raise IndexError(index)

    def image(self, index: int) -> U8:
        raise IndexError(index)

    def digest(self) -> str:
        return self._digest


def _same_input(recorded: Preprocess, asked: Preprocess) -> bool:
    """Whether inputs are made alike. How files are read is not asked of ranges from before it was recorded."""
    return replace(recorded, reading=asked.reading) == asked and (
        (recorded.channels == asked.channels and 255 in (recorded.reading.full_scale, asked.reading.full_scale))
        or recorded.reading == asked.reading
    )


def _difference(recorded: Preprocess, asked: Preprocess) -> str:
    ours, theirs = asked.to_dict(), recorded.to_dict()
    name = next(name for name in ours if ours[name] != theirs[name])
    return f"it was made with {name} {_plain(theirs[name])}, and this network's is {_plain(ours[name])}"


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_calibration(path: str | Path) -> RangesFile:
    """Read a calibration.json.

    Raises:
        InputError: it is missing, damaged, in another format, or of another tool.
    """
    return RangesFile(Path(path), CALIBRATION_KIND.read(path))
