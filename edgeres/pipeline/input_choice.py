"""The user's choices for the network's input, and the preprocessing that they give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from edgeres.data.presets import preset
from edgeres.errors import UsageError
from edgeres.records import (
    INTERPOLATIONS,
    RESIZE_MODES,
    ChannelOrder,
    Fit,
    Interpolation,
    PixelReading,
    Preprocess,
    ResizeMode,
)

FILL = 114  # Ultralytics' gray


@dataclass(frozen=True)
class FitChoice:
    """How images are brought to the input's size; None: as it is known for the model, or by default.

    Attributes:
        crop_ratio: share of the resized image that the crop takes, timm's ``crop_pct``: both sides of the input are
            divided by it and rounded down.
        fill: letterbox: colour around the image, red, green, blue, 0 to 255, or one value for all channels.
    """

    resize_mode: ResizeMode | None = None
    crop_ratio: float | None = None
    interpolation: Interpolation | None = None
    fill: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.resize_mode not in (None, *RESIZE_MODES):
            raise UsageError(f"no resize mode is {self.resize_mode!r}", hint=f"one of {', '.join(RESIZE_MODES)}")
        if self.interpolation not in (None, *INTERPOLATIONS):
            raise UsageError(f"no interpolation is {self.interpolation!r}", hint=f"one of {', '.join(INTERPOLATIONS)}")
        ratio = self.crop_ratio
        if ratio is not None and not 0 < ratio <= 1:
            raise UsageError(f"crop ratio {ratio:g} is not above 0 and at most 1", hint="0.875 is 224 of 256")
        if ratio is not None and self.resize_mode in ("squash", "letterbox"):
            what = f"a crop ratio has no meaning with resize mode {self.resize_mode}, which keeps the whole image"
            hint = "leave it out, or use crop; --resize 256x256 squashes to these sides and then crops"
            raise UsageError(what, where="--crop-ratio", hint=hint)
        if self.fill is not None:
            if self.resize_mode not in (None, "letterbox"):
                what = f"a fill colour has no meaning with resize mode {self.resize_mode}"
                raise UsageError(what, where="--fill", hint="it needs --resize-mode letterbox")
            if not all(0 <= value <= 255 and value == int(value) for value in self.fill):
                raise UsageError("a fill colour has whole values from 0 to 255", where="--fill")


@dataclass(frozen=True)
class InputChoice:
    """The user's choices for the network's input; None keeps the value known for the model, or the default.

    ``input = (pixel * pixel_scale - mean) / std`` after resize and crop.

    Attributes:
        mean, std: one value per channel, always in the order red, green, blue, even if the network takes BGR.
        resize_px: the shorter side before the crop; or height and width, which the image is squashed to before it.
        exif: whether the orientation noted in files is applied.
        full_scale: value of 16-bit gray images that becomes 255.
        preprocess: name of a preset, which gives what is not given here; see :mod:`edgeres.data.presets`.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pixel_scale: float | None = None
    resize_px: int | tuple[int, int] | None = None
    channel_order: ChannelOrder | None = None
    exif: bool | None = None
    full_scale: int | None = None
    preprocess: str | None = None
    fit: FitChoice = FitChoice()

    def __post_init__(self) -> None:
        numbers = (*(self.mean or ()), *(self.std or ()), *(() if self.pixel_scale is None else (self.pixel_scale,)))
        if not all(math.isfinite(number) for number in numbers):
            raise UsageError("mean, std and pixel scale must be finite numbers")
        if any(value <= 0 for value in self.std or ()) or (self.pixel_scale is not None and self.pixel_scale <= 0):
            raise UsageError("std and pixel scale must be above zero", hint="leave them out to use ImageNet's")
        if self.full_scale is not None and not 1 <= self.full_scale <= 65535:
            what = f"full scale {self.full_scale} is not 1 to 65535"
            raise UsageError(what, where="--full-scale", hint="5000 for depth in mm up to 5 m; 4095 for 12 bits")
        self._check_sides()

    def _check_sides(self) -> None:
        sides, mode = self.resize_px, self.fit.resize_mode
        if sides is None:
            return
        if min(sides if isinstance(sides, tuple) else (sides,)) < 1:
            raise UsageError(f"resize {sides} is not above 0", where="--resize")
        if self.fit.crop_ratio is not None:
            raise UsageError("exclude each other", where="--resize and --crop-ratio", hint="give one of them")
        if mode == "letterbox" or self.fit.fill is not None:
            what = "has no meaning with a letterbox, which fits the image into the input"
            raise UsageError(what, where="--resize", hint="leave it out")
        if mode == "squash" and not isinstance(sides, tuple):
            what = f"{sides} is the shorter side, which keeps the aspect ratio, and a squash does not"
            raise UsageError(what, where="--resize", hint=f"leave it out, or give both sides: {sides}x{sides}")
        if mode == "crop" and isinstance(sides, tuple):
            what = "both sides are given, which is a squash before the crop"
            raise UsageError(what, where="--resize", hint="leave out --resize-mode, or give the shorter side alone")

    @staticmethod
    def of(given: Mapping[str, Any]) -> InputChoice:
        """From keyword arguments, those of :class:`FitChoice` beside the others."""
        names = {field.name for field in fields(FitChoice)}
        fit = FitChoice(**{name: value for name, value in given.items() if name in names})
        return InputChoice(**{"fit": fit, **{name: value for name, value in given.items() if name not in names}})

    def over(self, known: Preprocess) -> Preprocess:
        """The known preprocessing with the user's choices, and a preset's, in place of its values.

        Raises:
            UsageError: the preset does not exist, or values do not fit the network's channels.
        """
        asked = self._with_preset(known.channels)
        count, order = known.channels, asked.channel_order or known.channel_order
        if order == "BGR" and count == 1:
            raise UsageError("a network of one channel has no order of channels", where="--channel-order")
        statistics: dict[str, Any] = {}
        for name in ("mean", "std"):
            values = getattr(asked, name)
            if values is not None and len(values) != count:
                what = f"{_count(len(values), 'value')} for a network with {_count(count, 'channel')}"
                raise UsageError(what, where=f"--{name}", hint="give one per channel of the image")
            statistics[name] = _reorder(values or _reorder(getattr(known, name), known.channel_order), order)
        return replace(
            known,
            **statistics,
            **asked._geometry(known),
            channel_order=order,
            pixel_scale=asked.pixel_scale or known.pixel_scale,
            reading=asked._reading(known.reading),
        )

    def _with_preset(self, channels: int) -> InputChoice:
        """The same with the values of the preset where none are given."""
        if self.preprocess is None:
            return self
        named, fit = preset(self.preprocess), self.fit
        if channels != 3:
            what = f"{self.preprocess} is for three channels, and the network takes {channels}"
            raise UsageError(what, where="--preprocess", hint="give --mean, --std and --resize-mode instead")
        given = {name: value for name, value in vars(self).items() if value is not None and name != "fit"}
        own = {name: getattr(named, name) for name in ("mean", "std", "pixel_scale", "channel_order")}
        if self.pixel_scale is not None and self.pixel_scale != named.pixel_scale:
            what = f"{self.preprocess} has pixel scale {named.pixel_scale:.4g}, which its mean and std are in units of"
            raise UsageError(what, where="--pixel-scale", hint="leave it out, or give all three without a preset")
        mode = fit.resize_mode or (None if self.resize_px or fit.fill else named.resize_mode)
        ratio = fit.crop_ratio or (named.crop_ratio if mode == "crop" and not self.resize_px else None)
        fill = fit.fill or (named.fill if mode == "letterbox" else None)
        if fit.crop_ratio:
            mode = "crop"
        return replace(
            self,
            **{**own, **given, "preprocess": None},
            fit=FitChoice(mode, ratio, fit.interpolation or named.interpolation, fill),
        )

    def _geometry(self, known: Preprocess) -> dict[str, Any]:
        """The fields of :class:`Preprocess` on sizes."""
        fit, size = self.fit, known.crop_px
        found: dict[str, Any] = {"interpolation": fit.interpolation or known.interpolation}
        mode = fit.resize_mode or ("letterbox" if fit.fill is not None else None)
        if fit.crop_ratio is not None:
            return {**found, "resize_px": covering(size, fit.crop_ratio), "fit": Fit()}
        if self.resize_px is not None:
            return {**found, "resize_px": self.resize_px, "fit": Fit(keep_aspect=isinstance(self.resize_px, int))}
        if mode == "letterbox":
            fill = fit.fill or known.fit.fill or (FILL,)
            fill = fill * known.channels if len(fill) == 1 else fill
            if len(fill) != known.channels:
                what = f"{len(fill)} values for a network with {known.channels} channels"
                raise UsageError(what, where="--fill", hint="give one per channel, or one for all")
            return {**found, "resize_px": None, "fit": Fit(tuple(int(value) for value in fill))}
        if mode == "squash":
            kept = known.resize_mode == "squash"
            return {**found, "resize_px": known.resize_px if kept else None, "fit": known.fit if kept else Fit()}
        if mode == "crop" and known.resize_mode != "crop":
            return {**found, "resize_px": usual_resize(size) or covering(size, 1.0), "fit": Fit()}
        return found

    def _reading(self, known: PixelReading) -> PixelReading:
        exif = known.exif if self.exif is None else self.exif
        return replace(known, exif=exif, full_scale=self.full_scale or known.full_scale)


def covering(size_px: tuple[int, int], ratio: float) -> int | tuple[int, int]:
    """``resize_px`` for a crop that takes this share of each side, by timm's rule."""
    height, width = (math.floor(side / ratio) for side in size_px)
    return height if height == width else (height, width)


def usual_resize(size_px: tuple[int, int]) -> int | tuple[int, int] | None:
    """ImageNet's convention, 256 for a crop of 224; None for small inputs, see :class:`Preprocess`."""
    if min(size_px) < 128:
        return None
    height, width = (round(side * 256 / 224) for side in size_px)
    return height if height == width else (height, width)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _reorder(values: Sequence[float], order: ChannelOrder) -> tuple[float, ...]:
    """Convert per-channel values from RGB to ``order``, or from ``order`` to RGB; a fourth stays the last."""
    return tuple(values) if order == "RGB" else (*tuple(values)[2::-1], *values[3:])
