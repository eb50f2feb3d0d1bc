"""What a calibration run knows, and the file it is kept in.

``calibration.json`` is meant for people and tools alike: which network and which images, with what preprocessing; for
every tensor the chosen ranges by style and the summary of its histogram. It belongs to no machine, and
:mod:`edgeres.calibrate.ranges_file` reads it back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from edgeres.calibrate.ranges import PERCENTILE, choose_range, magnitudes, quantile
from edgeres.calibrate.sketch import Histogram, Sketch
from edgeres.records import Method, Preprocess, TensorRange

SCHEMA = 2
IMPORTED = "imported"


@dataclass(frozen=True)
class Wanted:
    """The ranges that one style of codes asks for, by the tensors' names.

    Attributes:
        symmetric: for codes around zero.
        affine: for codes from low to high.
        like: tensors that take over the range of another.
    """

    symmetric: tuple[str, ...] = ()
    affine: tuple[str, ...] = ()
    like: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.symmetric, *self.affine)

    def complete(self, found: dict[str, TensorRange]) -> dict[str, TensorRange]:
        """The ranges found, and those that are taken over from them."""
        return found | {name: replace(found[other], tensor=name) for name, other in self.like.items()}

    def to_dict(self) -> dict[str, Any]:
        return {"symmetric": list(self.symmetric), "affine": list(self.affine), "like": dict(self.like)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Wanted:
        return Wanted(tuple(data["symmetric"]), tuple(data["affine"]), dict(data["like"]))


# By style: tensorrt, cpu, and symmetric for what knows one scale per tensor and no zero point.
Ranges = dict[str, dict[str, TensorRange]]


@dataclass(frozen=True)
class Calibration:
    """Sketches of the observed tensors.

    Attributes:
        sketches: by tensor name.
        samples: images they were made from.
        source, source_digest: the images, in words and as SHA-256.
        preprocess: what was done to them.
    """

    sketches: Mapping[str, Sketch]
    samples: int
    source: str
    source_digest: str
    preprocess: Preprocess

    def choose(
        self, method: Method, wanted: Mapping[Any, Wanted], known: Mapping[str, TensorRange] = MappingProxyType({})
    ) -> Ranges:
        """The ranges that each style asks for; what two of them ask for is searched once.

        Args:
            known: ranges that stand, whatever was observed.
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
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """The content of calibration.json for ranges that were chosen from this calibration.

        Args:
            about: what else the head shall tell: ``model``, an ``Identity`` as a dict, and ``batch``.
        """
        head = {
            "method": method,
            "samples": self.samples,
            "source": self.source,
            "source_digest": self.source_digest,
            "preprocess": self.preprocess.to_dict(),
            **about,
        }
        return document(head, ranges, {name: summary(sketch) for name, sketch in self.sketches.items()})


def document(
    head: Mapping[str, Any],
    ranges: Mapping[Any, Mapping[str, TensorRange]],
    observed: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of calibration.json.

    Args:
        head: method, samples, source, source_digest, preprocess, model.
        ranges: by style and tensor.
        observed: what was seen of each tensor, from :func:`summary`; tensors of an imported calibration have none.
    """
    names = dict.fromkeys([*observed, *(name for found in ranges.values() for name in found)])
    return {
        "schema": SCHEMA,
        **head,
        "tensors": {
            name: {
                **({"observed": dict(observed[name])} if name in observed else {}),
                "ranges": {
                    style: [float(r[name].low), float(r[name].high)] for style, r in ranges.items() if name in r
                },
            }
            for name in names
        },
    }


def summary(sketch: Sketch) -> dict[str, float | int]:
    """A sketch in a few numbers: exact extremes, how many values and zeros, a high percentile of the magnitude."""
    histogram = sketch.histogram()
    return {
        "low": histogram.low,
        "high": histogram.high,
        "values": sketch.count,
        "zeros": histogram.zeros,
        f"abs_p{PERCENTILE}": quantile(magnitudes(histogram), PERCENTILE / 100),
    }


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON document in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_json(content: Mapping[str, Any]) -> str:
    """The text of calibration.json: indented, with lists of numbers on one line.

    >>> to_json({"ranges": {"cpu": [0.0, 2.5]}}).splitlines()[2]
    '    "cpu": [0.0, 2.5]'
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    return re.sub(r"\[\n\s+([^][{}\"]+?)\n\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"
