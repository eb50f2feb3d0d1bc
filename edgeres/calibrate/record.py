"""The result of a calibration run, and the content of calibration.json.

``calibration.json`` names the network, the images and their preprocessing. For every tensor it holds the ranges by
style and a summary of the histogram. It does not depend on the machine. :mod:`edgeres.calibrate.ranges_file` reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from edgeres.calibrate.identity import Identity
from edgeres.calibrate.ranges import PERCENTILE, choose_range, magnitudes, quantile
from edgeres.calibrate.sketch import Histogram, Sketch
from edgeres.documents import OPTIONAL, DocumentKind, Json, is_sha256, named, require
from edgeres.records import Method, Preprocess, TensorRange, complete_preprocess

IMPORTED: Literal["imported"] = "imported"
# ``symmetric``: for tools that know one scale per tensor and no zero point.
RANGE_STYLES = ("tensorrt", "cpu", "symmetric")


@dataclass(frozen=True)
class Wanted:
    """The ranges that one style needs, by tensor name.

    Attributes:
        symmetric: tensors with codes around zero.
        affine: tensors with codes from low to high.
        like: tensors that take the range of another tensor.
    """

    symmetric: tuple[str, ...] = ()
    affine: tuple[str, ...] = ()
    like: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.symmetric, *self.affine)

    def complete(self, found: dict[str, TensorRange]) -> dict[str, TensorRange]:
        """The ranges found, and those of the tensors in ``like``."""
        return found | {name: replace(found[other], tensor=name) for name, other in self.like.items()}


# By style (one of RANGE_STYLES) and tensor.
Ranges = dict[str, dict[str, TensorRange]]


@dataclass(frozen=True)
class Observed:
    """A summary of one tensor's values.

    Attributes:
        low, high: exact extremes.
        values, zeros: number of all values, and of exact zeros among them.
        abs_percentile: the :data:`PERCENTILE`-th percentile of the magnitudes.
    """

    low: float
    high: float
    values: int
    zeros: int
    abs_percentile: float = field(metadata=named(f"abs_p{PERCENTILE}"))

    def __post_init__(self) -> None:
        require(self.low <= self.high, "low must not be above high")
        require(0 <= self.zeros <= self.values, "zeros must be 0 to values")
        require(self.abs_percentile >= 0, "the percentile of magnitudes must not be negative")

    @staticmethod
    def by(sketch: Sketch) -> Observed:
        """The summary of a sketch."""
        histogram = sketch.histogram()
        percentile = quantile(magnitudes(histogram), PERCENTILE / 100)
        return Observed(histogram.low, histogram.high, sketch.count, histogram.zeros, percentile)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a calibration.json.

    Attributes:
        observed: None in an imported calibration, and for tensors that take the range of another tensor.
        ranges: low and high by style.
    """

    observed: Observed | None = field(default=None, metadata=OPTIONAL)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.ranges.keys() <= {*RANGE_STYLES}, f"styles must be {', '.join(RANGE_STYLES)}")
        ordered = all(low <= 0 <= high for low, high in self.ranges.values())
        require(ordered, "low <= 0 <= high must hold for every range")


@dataclass(frozen=True)
class CalibrationFile:
    """The content of a calibration.json.

    Attributes:
        method: how the ranges were chosen.
        samples: number of images; 0 for imported ranges.
        source, source_digest: description of the images, and their SHA-256.
        preprocess: preprocessing of the images.
        model: the graph whose tensors are named.
        batch: images per step; None where it is unknown.
        unreadable: images that were left out, each with the reason.
    """

    method: Method | Literal["imported"]
    samples: int
    source: str
    source_digest: str
    preprocess: Preprocess
    model: Identity
    batch: int | None = field(default=None, metadata=OPTIONAL)
    unreadable: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.samples >= 0, "samples must not be negative")
        require(is_sha256(self.source_digest), "source_digest must have 64 hex digits")
        require(self.batch is None or self.batch >= 1, "batch must be 1 or more")


_HINT = "edgeres calibrate makes one, of another tool's file with --import"
CALIBRATION_KIND = DocumentKind(
    CalibrationFile, "a calibration.json", _HINT, schemas=(2, 3), digest="optional", upgrade=complete_preprocess
)


@dataclass(frozen=True)
class Calibration:
    """Sketches of the observed tensors.

    Attributes:
        sketches: by tensor name.
        samples, source, source_digest, preprocess: as in :class:`CalibrationFile`.
    """

    sketches: Mapping[str, Sketch]
    samples: int
    source: str
    source_digest: str
    preprocess: Preprocess

    def choose(
        self, method: Method, wanted: Mapping[Any, Wanted], known: Mapping[str, TensorRange] = MappingProxyType({})
    ) -> Ranges:
        """The ranges that each style needs. A range that two styles need is searched once.

        Args:
            known: ranges that are exact and are not searched.
        """

        @cache
        def histogram(tensor: str) -> Histogram:
            return self.sketches[tensor].histogram()

        @cache
        def found(tensor: str, symmetric: bool) -> TensorRange:
            return choose_range(tensor, histogram(tensor), method, self.samples, symmetric=symmetric)

        return {
            style: asked.complete({name: known.get(name) or found(name, name in asked.symmetric) for name in asked.all})
            for style, asked in wanted.items()
        }

    def to_dict(
        self,
        method: Method,
        ranges: Mapping[Any, Mapping[str, TensorRange]],
        model: Identity,
        batch: int,
        unreadable: tuple[str, ...] = (),
    ) -> Json:
        """The content of calibration.json with ranges that were chosen from this calibration."""
        tensors = entries(ranges, {name: Observed.by(sketch) for name, sketch in self.sketches.items()})
        images = (self.samples, self.source, self.source_digest, self.preprocess)
        return CALIBRATION_KIND.content(CalibrationFile(method, *images, model, batch, unreadable, tensors))


def entries(
    ranges: Mapping[Any, Mapping[str, TensorRange]], observed: Mapping[str, Observed]
) -> dict[str, TensorEntry]:
    """The tensors of a calibration.json; ``ranges`` are by style and tensor."""

    def limits(name: str) -> dict[str, tuple[float, float]]:
        return {style: (float(r[name].low), float(r[name].high)) for style, r in ranges.items() if name in r}

    names = dict.fromkeys([*observed, *(name for found in ranges.values() for name in found)])
    return {name: TensorEntry(observed.get(name), limits(name)) for name in names}


def to_json(content: Mapping[str, Any]) -> str:
    """The text of calibration.json: indented, with lists of numbers on one line.

    >>> to_json({"ranges": {"cpu": [0.0, 2.5]}}).splitlines()[2]
    '    "cpu": [0.0, 2.5]'
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    return re.sub(r"\[\n\s+([^][{}\"]+?)\n\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"
