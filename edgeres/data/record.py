"""Records of the images that a run used, for reports."""

from __future__ import annotations

from dataclasses import dataclass

from edgeres.data.loader import Loader
from edgeres.data.pixels import Pixels


@dataclass(frozen=True)
class DataRecord:
    """A data source as it was used.

    Attributes:
        images: number of images that were read.
        unreadable: names of images that could not be decoded.
        pixels: mean colours; None where they were not measured.
    """

    description: str
    sha256: str
    images: int
    unreadable: tuple[str, ...] = ()
    pixels: Pixels | None = None

    @staticmethod
    def of(loader: Loader, images: int, pixels: Pixels | None) -> DataRecord:
        """The record of a loader after its iteration."""
        return DataRecord(loader.source.description, loader.source.digest(), images, tuple(loader.unreadable), pixels)


@dataclass(frozen=True)
class CalibrationRecord:
    """How ranges were found: from the images ``data``, in batches of ``batch_size``."""

    data: DataRecord
    method: str
    batch_size: int
