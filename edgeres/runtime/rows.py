"""The outputs of a network as one row of values per image, to hold two networks of any outputs against each other.

Of an output with many values, as a map has, evenly spread ones are taken. Networks with several outputs have several
scales: :func:`weights` brings each output to the same power, so that none is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edgeres.records import F32, F64
from edgeres.runtime.runner import Feed

MOST = 1 << 15  # values of an output that are kept of an image


def rows(outputs: Feed, names: Iterable[str] = ()) -> F32:
    """All outputs of a batch, float32 (N, V), in the order of ``names``, or as they come."""
    parts = [outputs[name] for name in names] if names else list(outputs.values())
    return np.concatenate([_row(part) for part in parts], axis=1) if len(parts) > 1 else _row(parts[0])


def width(shape: Sequence[int | None]) -> int:
    """How many values :func:`rows` keeps of an output of this shape for one image."""
    values = math.prod(size or 1 for size in shape)
    return -(-values // _step(values))


def weights(reference: F32, shapes: Mapping[str, Sequence[int | None]]) -> F64 | None:
    """Factors that bring each output to the power of one, float64 (V,); None where there is one output.

    Args:
        reference: rows of the FP32 network.
        shapes: of the outputs for one image, in the order of the rows.
    """
    if len(shapes) < 2:
        return None
    found, start = np.empty(reference.shape[1]), 0
    for shape in shapes.values():
        own = slice(start, start + width(shape))
        power = float(np.square(reference[:, own], dtype=np.float64).sum(axis=1).mean())
        found[own] = 1 / math.sqrt(max(power, 1e-30))
        start = own.stop
    return found


def _row(output: F32) -> F32:
    flat = output.reshape(len(output), -1)
    step = _step(flat.shape[1])
    return flat if step == 1 else np.ascontiguousarray(flat[:, ::step])


def _step(values: int) -> int:
    return -(-values // MOST)
