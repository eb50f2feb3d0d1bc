"""What a report tells of the images that a run used."""

from __future__ import annotations

from dataclasses import dataclass

from edgeres.data.loader import Loader
from edgeres.data.pixels import Pixels


@dataclass(frozen=True)
class DataRecord:
    """A data source as it was used.

    Attributes:
        images: that were read and counted.
        unreadable: names of those that could not be decoded.
        pixels: what they look like on average; None where that was not measured.
    """

    description: str
    sha256: str
    images: int
    unreadable: tuple[str, ...] = ()
    pixels: Pixels | None = None

    @staticmethod
    def of(loader: Loader, images: int, pixels: Pixels | None) -> DataRecord:
        """What a loader read; it must have been run through."""
        return DataRecord(loader.source.description, loader.source.digest(), images, tuple(loader.unreadable), pixels)


@dataclass(frozen=True)
class CalibrationRecord:
    """How ranges were found; ``images`` come from ``data`` in batches of ``batch_size``."""

    data: DataRecord
    method: str
    batch_size: int
