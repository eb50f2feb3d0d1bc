"""How far results are from their reference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def noise_power(reference: F32, found: F32) -> float:
    """Mean squared error over mean square: 10**(-SQNR/10)."""
    reference = reference.astype(np.float64)
    return float(((reference - found) ** 2).sum() / (reference**2).sum())
