"""What a calibration run knows, and the file it is kept in.

``calibration.json`` is meant for people and tools alike: for every tensor the chosen ranges by style and the summary
of its histogram, with the method, the images and the preprocessing they came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeres.calibrate.ranges import PERCENTILE, choose_range, magnitudes, quantile
from edgeres.calibrate.sketch import Sketch
from edgeres.records import Method, Preprocess, Style, TensorRange

SCHEMA = 1


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

    def ranges(self, method: Method, style: Style, tensors: Iterable[str]) -> dict[str, TensorRange]:
        """A range for each of the named tensors: symmetric for TensorRT, affine for ONNX Runtime's CPU kernels."""
        symmetric = style == "tensorrt"
        return {
            name: choose_range(name, self.sketches[name].histogram(), method, self.samples, symmetric=symmetric)
            for name in tensors
        }

    def to_dict(self, method: Method, ranges: Mapping[Style, Mapping[str, TensorRange]]) -> dict[str, Any]:
        """The content of calibration.json for ranges that were chosen from this calibration."""
        return {
            "schema": SCHEMA,
            "method": method,
            "samples": self.samples,
            "source": self.source,
            "source_digest": self.source_digest,
            "preprocess": self.preprocess.to_dict(),
            "tensors": {
                name: {
                    "observed": _summary(sketch),
                    "ranges": {
                        style: [float(r[name].low), float(r[name].high)] for style, r in ranges.items() if name in r
                    },
                }
                for name, sketch in self.sketches.items()
            },
        }


def _summary(sketch: Sketch) -> dict[str, float | int]:
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
