"""Whether a camera's images still look like those of the calibration, in words.

A classifier looks at its first images, then at one of :data:`EVERY`: it copies some rows, which takes microseconds.
``health`` computes a few figures of each (:mod:`edgeres.data.seen`), and compares those of the last :data:`WINDOW` with
the calibration's.

Images of one scene are alike, so they are no independent draws. They count as ``1 + (n - 1) v (1 - r) / (1 + r)``
images, with v their variance as a share of the calibration's, and r their correlation from one to the next. So a robot
that stands before one scene is told of nothing that could be the scene, except what no calibration image comes near.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgeres.data.seen import Figures, Seen, figures_of, some_rows
from edgeres.records import F64, U8

FIRST, EVERY, WINDOW = 32, 16, 128
LEAST = 8  # images that were looked at; with fewer nothing is said
_KEPT = 32  # whole images, to ask the network whether it is surer with red and blue exchanged
_FROZEN = "frozen"
_CLEAR = 5  # standard errors
_LIKELY = 3.5  # standard errors, where the network is clearly surer with the colours exchanged
_TWINS = {"nv12": "nv21", "i420": "yv12", "yuyv": "yvyu", "rgb8": "bgr8", "rgba8": "bgra8", "rgb16": "bgr16"}
_TWINS |= {"rgba16": "bgra16"} | {other: name for name, other in _TWINS.items()}
_YUV = ("nv12", "nv21", "i420", "yv12", "yuyv", "yvyu", "uyvy")

# The network's highest probability for each image, (N, h, w, 3) in its channel order.
Sureness = Callable[[Sequence[U8]], F64]


@dataclass(frozen=True)
class Health:
    """How a camera's images compare with those of the calibration; as text, one line per finding.

    Attributes:
        images: classified so far.
        looked_at: the images that were compared, the last ones.
        findings: what no longer fits, in words; empty where nothing was found.
        note: why something could not be compared, or "".
    """

    images: int
    looked_at: int
    findings: tuple[str, ...] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __str__(self) -> str:
        fits = "" if self.findings or self.note else f"the last {self.looked_at} images fit the calibration's"
        return "\n".join(filter(None, (*self.findings, self.note, fits)))


class Glance:
    """What is kept of an image: some of its rows, and the frame's format or "". Figures are computed when asked for."""

    def __init__(self, pixels: U8, form: str, *, bgr: bool) -> None:
        self.form = form
        self._rows, self._bgr = some_rows(pixels).copy(), bgr

    @cached_property
    def figures(self) -> Figures:
        return figures_of(self._rows[..., ::-1] if self._bgr else self._rows)

    @cached_property
    def fingerprint(self) -> int:
        return hash(self._rows.tobytes())


class Watch:
    """Looks at some of a classifier's images; any number of threads may use it.

    Args:
        seen: figures of the calibration images; None: there are none.
        bgr: whether the network's channels are blue, green, red.
    """

    def __init__(self, seen: Seen | None, *, bgr: bool) -> None:
        self._seen, self._bgr = seen, bgr
        self._count = itertools.count(1)
        self._images = 0
        self._lock = threading.Lock()
        self._glances: deque[Glance] = deque(maxlen=WINDOW)
        self._kept: deque[U8] = deque(maxlen=_KEPT)

    def wants(self) -> bool:
        """Count an image; whether :meth:`look` is to be called with it."""
        self._images = number = next(self._count)  # one step of the interpreter, so no image is counted twice
        return number <= FIRST or number % EVERY == 0

    def look(self, pixels: U8, form: str = "") -> None:
        """Look at an image after resize and crop, (h, w, 3) in the network's channel order."""
        if pixels.shape[-1] != 3:
            return
        glance = Glance(pixels, form.lower(), bgr=self._bgr)
        kept = pixels.copy()  # where nothing was resized it is the caller's memory
        with self._lock:
            self._glances.append(glance)
            self._kept.append(kept)

    def health(self, sureness: Sureness) -> Health:
        """What no longer fits; ``sureness`` runs the network, where red and blue may be exchanged."""
        with self._lock:
            glances, kept, images = list(self._glances), list(self._kept), self._images
        if len(glances) < LEAST:
            return Health(images, len(glances), note=f"{len(glances)} images so far, {LEAST} are needed to tell")
        found = [*_broken(glances)]
        if self._seen is None:
            note = "the bundle has no statistics of its calibration images; build it again from images to compare more"
            return Health(images, len(glances), tuple(found), note)
        if all(line.startswith(_FROZEN) for line in found):
            compared = _Compared(self._seen, glances)
            light = [*_light(compared)]
            found += light or [*_shape(compared), *_colours(compared, kept, sureness)]
        return Health(images, len(glances), tuple(found))


class _Compared:
    """The images of a camera beside those of the calibration, by figure."""

    def __init__(self, seen: Seen, glances: Sequence[Glance]) -> None:
        self.count, self.form = len(glances), glances[-1].form
        self.now = Figures(*np.array([glance.figures for glance in glances]).mean(axis=0).tolist())
        self.mean, self.std = Figures(*seen.mean), Figures(*seen.std)
        self.low, self.high = Figures(*seen.low), Figures(*seen.high)
        self._images = seen.images
        self._series = np.array([glance.figures for glance in glances])

    def error(self, figure: str) -> float:
        """Standard error of the difference between camera and calibration."""
        index = Figures._fields.index(figure)
        std = max(self.std[index], 1e-6)
        return std * math.sqrt(1 / _independent(self._series[:, index], std) + 1 / self._images)

    def is_far(self, figure: str, stds: float) -> int:
        """1 or -1 where the camera's mean is clearly above or below, by this many standard deviations of images."""
        index = Figures._fields.index(figure)
        off = self.now[index] - self.mean[index]
        far = abs(off) > max(_CLEAR * self.error(figure), stds * self.std[index])
        outside = self.now[index] > self.high[index] or self.now[index] < self.low[index]
        return int(math.copysign(1, off)) if far or outside else 0


def _independent(values: F64, std: float) -> float:
    """The number of independent images that these count as."""
    steps = values - values.mean()
    own = float((steps * steps).mean())
    correlation = float((steps[1:] * steps[:-1]).mean()) / own if own > 0 else 1.0
    correlation = min(max(correlation, 0), 1)
    return 1 + (len(values) - 1) * min(own / std**2, 1) * (1 - correlation) / (1 + correlation)


def _broken(glances: Sequence[Glance]) -> Iterator[str]:
    """What is wrong with any camera."""
    largest = max(glance.figures.largest for glance in glances)
    if largest == 0:
        yield "black: every pixel is 0; check the camera, its cover and its exposure"
    elif largest <= 1:
        yield "another scale: every byte is 0 or 1, as of an image scaled to 0 to 1; give bytes from 0 to 255"
    else:
        same = list(itertools.takewhile(lambda glance: glance.fingerprint == glances[-1].fingerprint, glances[::-1]))
        if len(same) >= LEAST:
            what = f"the last {len(same)} images that were looked at are identical"
            yield f"{_FROZEN}: {what}; check the camera and its driver"


def _light(compared: _Compared) -> Iterator[str]:
    now, mean = compared.now, compared.mean
    about = f"mean green {now.green:.0f}, {mean.green:.0f} in the calibration"
    far = compared.is_far("green", 1.2)
    if far < 0 and now.largest < 32 < mean.largest:
        brightest = f"the largest byte is about {now.largest:.0f}"
        yield f"another scale or too dark: {brightest}; samples of 10 or 12 bits need a scale"
    elif far < 0:
        yield f"too dark: {about}; check exposure and light"
    elif far > 0:
        yield f"too bright: {about}, {100 * now.white:.0f} % of the bytes are 255; check exposure and light"
    elif now.white > max(compared.high.white, mean.white + 0.1):
        yield f"overexposed: {100 * now.white:.0f} % of the bytes are 255, {100 * mean.white:.0f} % in the calibration"


def _shape(compared: _Compared) -> Iterator[str]:
    now, mean, low = compared.now, compared.mean, compared.low
    if now.contrast < 0.8 * low.contrast:
        spread = f"{now.contrast:.0f}, {mean.contrast:.0f} in the calibration"
        yield f"hardly any contrast: {spread}; the lens may be covered"
    elif compared.is_far("detail", 1) < 0 and now.detail < 0.7 * mean.detail:
        share = f"{100 * now.detail / mean.detail:.0f} % of the calibration's detail"
        yield f"blurred: {share}; check focus and lens, or whether small images are enlarged"


def _colours(compared: _Compared, kept: Sequence[U8], sureness: Sureness) -> Iterator[str]:
    now, mean = compared.now, compared.mean
    if mean.colour > 4 and now.colour < 0.1 * mean.colour:
        yield "gray: the channels are equal, and those of the calibration are not; check the camera's format"
        return
    error, off, back = compared.error("tint"), now.tint - mean.tint, now.tint + mean.tint
    tints = f"red is {now.tint:+.0f} above blue, {mean.tint:+.0f} in the calibration"
    if abs(off) > _LIKELY * error and abs(back) < abs(off) / 2:
        # a scene may be as blue as others are red: the network is less sure with its colours exchanged
        surer = sureness([image[..., ::-1] for image in kept]) - sureness(kept)
        by = 2 * surer.std() / math.sqrt(len(surer)) if abs(off) < _CLEAR * error else 0
        if surer.mean() > by:
            yield f"{_exchanged(compared.form)}; {tints}, and the network is surer with them exchanged"
    elif compared.is_far("tint", 1.5):
        yield f"another tint: {tints}; check white balance and light"


def _exchanged(form: str) -> str:
    twin = _TWINS.get(form)
    if form in _YUV:
        return "chroma planes look exchanged, U for V" + (f": the frames may be {twin}, not {form}" if twin else "")
    hint = f"the frames may be {twin}, not {form}" if twin else 'OpenCV\'s arrays are BGR: Frame(array, "bgr8")'
    return f"channels look exchanged, red for blue: {hint}"
