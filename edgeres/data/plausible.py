"""Refuses, before anything is computed, a normalization and images from which no network can see anything.

A mean in units of 0 to 255 with pixels of 0 to 1, or the reverse, gives every network inputs that it was not trained
on; so do images that were all read as the same plain white or black. INT8 then agrees with FP32: both see nothing.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import numpy as np

from edgeres.data.base import Source, evenly_spread
from edgeres.data.preprocess import geometry
from edgeres.errors import InputError, SourceError, UsageError
from edgeres.records import U8, PixelReading, Preprocess

# Images that are looked at, and the numbers of them from which a warning and a refusal mean something.
SAMPLE, FEW, ENOUGH = 32, 3, 8
# Inputs of networks as they are trained: raw bytes reach 255, and from black to white there is at least 1.
MOST_INPUT, LEAST_CONTRAST = 300.0, 0.1
# Shares of an image's values, and of a source's images. JPEG and sensors spread a plain wall over more than 5 levels.
PLAIN_SHARE, PLAIN_LEVELS, MOST_PLAIN, SOME_PLAIN = 0.995, 2, 0.9, 0.1


def check_normalization(p: Preprocess) -> list[str]:
    """Refuse a mean, std and pixel scale that do not belong together; warn of values that are only unusual.

    Returns:
        Warnings, one line each.

    Raises:
        UsageError: a mean that no pixel can have, or inputs far beyond or far below those that networks are trained on.
    """
    white = 255 * p.pixel_scale
    for mean in p.mean:
        if mean > white * (1 + 1e-6):
            what = f"mean {mean:g} is above {white:g}, the value of white at {_scale(p)}"
            raise UsageError(what, where="--mean", hint=_other_units(p))
    if white > 1.5 and all(0 < mean < 1 for mean in p.mean):
        what = f"mean {p.mean[0]:g} is below 1, but pixels reach {white:g} at {_scale(p)}"
        raise UsageError(what, where="--mean", hint=_other_units(p))
    for mean, std in zip(p.mean, p.std, strict=True):
        black, bright = -mean / std, (white - mean) / std
        told = f"black becomes {black:.3g} and white {bright:.3g} with mean {mean:g}, std {std:g} and {_scale(p)}"
        if max(-black, bright) > MOST_INPUT and not _measures(p):  # depth may be in mm
            raise UsageError(f"{told}, far beyond what networks are trained on", where="--std", hint=_other_units(p))
        if bright - black < LEAST_CONTRAST:
            raise UsageError(f"{told}, which leaves no contrast", where="--std", hint=_other_units(p))
    if min(p.mean) < 0:
        return [f"mean {min(p.mean):g} is negative, and pixels are not: the mean is subtracted, so check its sign"]
    return []


def _scale(p: Preprocess) -> str:
    per = 1 / p.pixel_scale
    return f"pixel scale 1/{per:g}" if per > 1 and per == round(per, 6) else f"pixel scale {p.pixel_scale:.4g}"


def _measures(p: Preprocess) -> bool:
    """Whether pixels may be measurements, such as depth, of which many legitimately are the same."""
    return p.channels == 1 or p.reading.full_scale != PixelReading().full_scale


def _other_units(p: Preprocess) -> str:
    """What to give instead."""
    largest = max(*p.mean, *p.std)
    if _measures(p):
        scale, full = p.reading.full_scale / 255, p.reading.full_scale
        return f"add --pixel-scale {scale:.6g} where mean and std are in units of the files, in which white is {full}"
    if largest > 1 and p.pixel_scale < 0.5:
        return "add --pixel-scale 1 where mean and std are in units of 0 to 255, or give them in units of 0 to 1"
    if p.pixel_scale > 0.5:
        return "leave out --pixel-scale where mean and std are in units of 0 to 1, or give both in units of 0 to 255"
    return "give mean and std in units of pixel x pixel scale"


def check_images(source: Source, p: Preprocess) -> list[str]:
    """Refuse images that are all the same plain colour; warn where many are plain, or all are the same picture.

    :data:`SAMPLE` images, evenly spread, are looked at as the network sees them. Unreadable ones are left to the step
    that reads all of them.

    Returns:
        Warnings, one line each.

    Raises:
        SourceError: nearly all are the same plain white, black or grey, and not measurements such as depth.
    """
    positions = evenly_spread(len(source), SAMPLE) if len(source) else np.zeros(0, np.int64)
    seen: list[tuple[str, U8]] = []
    for index in positions.tolist():
        with suppress(InputError):
            seen.append((source.name(index), geometry(source.image_as(index, p.reading), p)))
    if len(seen) < FEW:
        return []
    levels = [(name, level) for name, pixels in seen if (level := _plain_level(pixels)) is not None]
    share = len(levels) / len(seen)
    count, where = f"{len(levels)} of {len(seen)} images that were looked at", source.description
    if levels and share >= MOST_PLAIN and np.ptp([level for _, level in levels]) <= PLAIN_LEVELS:
        what = f"{count} are plain {_colour(levels[0][1])}, such as {levels[0][0]}"
        hint = "look at the files: 16 bits a pixel, a mask, a closed shutter?"
        if _measures(p):
            hint = f"values of 16 bits from {p.reading.full_scale} on are white: does --full-scale fit them?"
        refused = SourceError(what, where=where, hint=hint)
        if len(seen) >= ENOUGH and not _measures(p):
            raise refused
        return [str(refused)]
    told = []
    if share >= SOME_PLAIN and len(levels) > 1:
        told.append(f"{where}: {count} have one plain colour, such as {levels[0][0]}; look at them")
    (_, same), *_ = Counter(pixels.tobytes() for _, pixels in seen).most_common(1)
    if same == len(seen) and not levels:
        told.append(f"{where}: all {same} images that were looked at are the same picture")
    return told


def _plain_level(pixels: U8) -> float | None:
    """The level of an image that has one colour, apart from a few pixels; None for any other image.

    A fourth channel has to be plain, too, but does not change the level: alpha is 255 on black images as on white ones.
    """
    middle = np.median(pixels.reshape(-1, pixels.shape[-1]), axis=0)
    near = (np.abs(pixels - middle) <= PLAIN_LEVELS).all(axis=-1).mean()
    return float(middle[:3].mean()) if near >= PLAIN_SHARE else None


def _colour(level: float) -> str:
    return "white" if level > 250 else "black" if level < 5 else f"grey (level {level:.0f})"
