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
        sha256_with_names: the digest that documents of earlier versions hold; "" where it is not known.
        notes: what was left out of the source, and what was taken for what.
    """

    description: str
    sha256: str
    images: int
    unreadable: tuple[str, ...] = ()
    pixels: Pixels | None = None
    sha256_with_names: str = ""
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(loader: Loader, images: int, pixels: Pixels | None) -> DataRecord:
        """The record of a loader after its iteration."""
        source, unreadable = loader.source, tuple(loader.unreadable)
        digests = source.digest(), source.digest_with_names()
        return DataRecord(source.description, digests[0], images, unreadable, pixels, digests[1], source.notes)

    def is_same(self, other: DataRecord) -> bool:
        """Whether both are the same images in the same order; either may come from an earlier version."""
        return bool({self.sha256, self.sha256_with_names} & {other.sha256, other.sha256_with_names} - {""})


@dataclass(frozen=True)
class CalibrationRecord:
    """How ranges were found: from the images ``data``, in batches of ``batch_size``."""

    data: DataRecord
    method: str
    batch_size: int
