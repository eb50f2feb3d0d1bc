"""Masks of classes beside images: PNG files of class indices, found by the names of files and folders.

masks in a folder of their own    x.jpg and x.png, x_mask.png or x_label.png
Pascal VOC                        JPEGImages/x.jpg              SegmentationClass/x.png
Cityscapes                        leftImg8bit/.../x_leftImg8bit.png    gtFine/.../x_gtFine_labelTrainIds.png
others                            images/x.jpg                  masks/, labels/ or annotations/x.png
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeres.data.base import Source, View, some
from edgeres.data.headers import check_header
from edgeres.data.preprocess import geometry
from edgeres.errors import SourceError, reading
from edgeres.records import I64, Fit, PixelReading, Preprocess

IGNORED = 255
_FOLDERS = frozenset({"segmentationclass", "masks", "mask", "labels", "annotations", "gtfine"})
_SUFFIX = re.compile(r"(_leftimg8bit|_gtfine_labeltrainids|_gtfine_labelids|_mask|_labels?|_seg)$")
_UNUSED = re.compile(r"_gtfine_(color|instanceids|polygons)$")
_HOW = "give --validation-labels FOLDER of PNG masks, each named as its image"
_CHECKED = 8  # images whose size is compared with their mask's before anything is computed

Labels = npt.NDArray[np.uint8]


class Masked(View):
    """Images of another source with a mask each; a mask that is empty stands for none.

    Attributes:
        masks: path of each image's mask.
    """

    def __init__(self, source: Source, positions: I64, masks: Sequence[Path], description: str) -> None:
        super().__init__(source, positions, np.full(len(positions), -1, np.int64), (), description)
        self.masks = tuple(masks)

    def at(self, positions: I64, description: str = "") -> Masked:
        chosen = [self.masks[index] for index in positions.tolist()] if self.masks else []
        view = Masked(self, positions, chosen, description or self.description)
        view.notes = self.notes
        return view

    def digest(self) -> str:
        own = hashlib.sha256(super().digest().encode())
        for path in self.masks:
            own.update(f"{path.name}\0{path.stat().st_size if path.exists() else -1}\n".encode())
        return own.hexdigest()

    def digest_with_names(self) -> str:
        return self.digest()

    def mask(self, index: int, p: Preprocess) -> Labels:
        """The class of each pixel that the network sees, (h, w); :data:`IGNORED` outside of the image.

        Raises:
            SourceError: it is no mask of classes.
        """
        return placed(read_mask(self.masks[index]), p)


def with_masks(source: Source, root: Path, folder: Path | None) -> Masked:
    """The images that have a mask.

    Args:
        source: all images below ``root``, among them masks where ``folder`` is None.
        folder: where the masks are; None: in folders of ``root`` whose names say so.

    Raises:
        SourceError: there are no masks, or they match no image, or have another size.
    """
    names = [source.name(index) for index in range(len(source))]
    is_mask = [folder is None and _in_mask_folder(name) for name in names]
    if folder is None:
        paths = [root / name for name, yes in zip(names, is_mask, strict=True) if yes]
    else:
        with reading(folder, error=SourceError, hint=_HOW):
            paths = sorted(path for path in folder.rglob("*.png") if path.is_file())
    by_key = _by_key(paths)
    images = [index for index, yes in enumerate(is_mask) if not yes]
    found = {index: by_key[key] for index in images if (key := _key(names[index])) in by_key}
    where = folder or root
    if not found:
        what = f"has {len(paths):,} masks" if paths else "has no masks"
        shown = some((names[index] for index in images), len(images), 3)
        raise SourceError(f"{what}, and none is named as one of the images: {shown}", where=where, hint=_HOW)
    positions = np.array(sorted(found), np.int64)
    masks = [found[index] for index in positions.tolist()]
    view = Masked(source, positions, masks, f"{root.resolve().name}: {len(positions):,} images with masks")
    if missing := [names[index] for index in images if index not in found]:
        view.notes = (f"left out: {len(missing):,} images without a mask: {some(missing, len(missing), 3)}",)
    for index in range(min(_CHECKED, len(positions))):
        have, wanted = read_mask(masks[index]).shape, source.image(int(positions[index])).shape[:2]
        if have != wanted:
            what = f"has {have[0]}x{have[1]} pixels, and its image {wanted[0]}x{wanted[1]}"
            raise SourceError(what, where=masks[index], hint="give masks of the images' size")
    return view


def read_mask(path: Path) -> Labels:
    """The class index of each pixel, (H, W) uint8, of a gray or a palette PNG.

    Raises:
        SourceError: it cannot be read, or holds colours in place of indices.
    """
    from PIL import Image

    if (claim := check_header(path)) is not None:
        raise SourceError(f"{claim}, which is not decoded", where=path, hint=_HOW)
    with (
        reading(path, "cannot be read as a mask", error=SourceError, hint=_HOW),
        Image.open(path, formats=("PNG",)) as image,
    ):
        if image.mode not in ("L", "P", "1"):
            what = f"holds pixels of {image.mode}, and a mask holds indices of classes, gray or with a palette"
            raise SourceError(what, where=path, hint="convert it to indices, 255 where a pixel is not judged")
        return np.asarray(image.convert("L") if image.mode == "1" else image, np.uint8).copy()


def placed(mask: Labels, p: Preprocess) -> Labels:
    """A mask as the network sees its image, by the nearest pixel: (h, w), :data:`IGNORED` around the image."""
    fit = Fit((0, 0, 0), p.fit.keep_aspect) if p.fit.fill is not None else p.fit
    contract = replace(
        p,
        interpolation="nearest",
        fit=fit,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        channel_order="RGB",
        reading=PixelReading(3, exif=False),
    )
    inside = np.full_like(mask, 1)
    moved = geometry(np.stack([mask, inside, inside], axis=-1), contract)
    return np.where(moved[..., 1] == 1, moved[..., 0], np.uint8(IGNORED))


def _in_mask_folder(name: str) -> bool:
    return any(part.casefold() in _FOLDERS for part in name.split("/")[:-1])


def _by_key(paths: Sequence[Path]) -> dict[str, Path]:
    """Masks by what they share with the names of their images; training ids of Cityscapes come before its own."""
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: "labelids" in path.stem.casefold()):
        if path.suffix.lower() == ".png" and not _UNUSED.search(path.stem.casefold()):
            found.setdefault(_key(path.name), path)
    return found


def _key(name: str) -> str:
    stem = name.rpartition("/")[2].rpartition(".")[0].casefold()
    return _SUFFIX.sub("", stem)
