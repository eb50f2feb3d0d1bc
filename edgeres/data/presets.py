"""Preprocessing by name, as libraries and published networks use it.

Geometry is relative to the network's input, so a preset fits any size. What a preset leaves open stays as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeres.errors import EnvironmentError_, UsageError
from edgeres.records import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, ChannelOrder, Interpolation, ResizeMode

HALF = (0.5, 0.5, 0.5)
BYTE = 1 / 255


@dataclass(frozen=True)
class Preset:
    """A preprocessing; None leaves a value open.

    Attributes:
        matches: what it is equal to, for lists.
        mean, std: red, green, blue, in units of ``pixel * pixel_scale``.
        crop_ratio: share of the resized image that the crop takes, for the mode ``crop``.
    """

    matches: str
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    pixel_scale: float = BYTE
    channel_order: ChannelOrder = "RGB"
    resize_mode: ResizeMode | None = None
    crop_ratio: float | None = None
    interpolation: Interpolation | None = None
    fill: tuple[int, ...] | None = None


_KERAS: dict[str, Any] = {"resize_mode": "squash", "interpolation": "nearest"}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "resize_mode": "crop"}
PRESETS: Mapping[str, Preset] = {
    "torchvision": Preset(
        "Resize(256), CenterCrop(224) and ImageNet's mean and std: weights V1",
        **_IMAGENET,
        crop_ratio=0.875,
        interpolation="bilinear",
    ),
    "torchvision-v2": Preset(
        "Resize(232), CenterCrop(224): weights V2 of ResNets", **_IMAGENET, crop_ratio=0.9655, interpolation="bilinear"
    ),
    "imagenet-inception": Preset(
        "timm's mean and std 0.5, crop_pct 0.875, bicubic: Inception, ViT, MobileNet from TensorFlow",
        HALF,
        HALF,
        resize_mode="crop",
        crop_ratio=0.875,
        interpolation="bicubic",
    ),
    "keras-caffe": Preset(
        "preprocess_input of Keras' ResNet and VGG behind load_img: BGR of 0 to 255 less the mean",
        (123.68, 116.779, 103.939),
        pixel_scale=1.0,
        channel_order="BGR",
        **_KERAS,
    ),
    "keras-tf": Preset(
        "preprocess_input of Keras' ResNetV2, MobileNet, Inception, Xception behind load_img: -1 to 1",
        (1.0, 1.0, 1.0),
        pixel_scale=1 / 127.5,
        **_KERAS,
    ),
    "keras-torch": Preset(
        "preprocess_input of Keras' DenseNet behind load_img: ImageNet's mean and std",
        IMAGENET_MEAN,
        IMAGENET_STD,
        **_KERAS,
    ),
    "hf-vit": Preset(
        "transformers' ViTImageProcessor: squash, mean and std 0.5",
        HALF,
        HALF,
        resize_mode="squash",
        interpolation="bilinear",
    ),
    "clip": Preset(
        "CLIP's image encoder: shorter side to the input's, bicubic",
        _CLIP_MEAN,
        _CLIP_STD,
        resize_mode="crop",
        crop_ratio=1.0,
        interpolation="bicubic",
    ),
    "ultralytics": Preset(
        "classify_transforms of Ultralytics: shorter side to the input's, 0 to 1",
        resize_mode="crop",
        crop_ratio=1.0,
        interpolation="bilinear",
    ),
    "letterbox": Preset(
        "LetterBox of Ultralytics and YOLO: gray 114 around, OpenCV's resize, 0 to 1",
        resize_mode="letterbox",
        fill=(114, 114, 114),
        interpolation="cv2-bilinear",
    ),
    "unit": Preset("ToTensor alone: pixels of 0 to 1; geometry as it is"),
    "bytes": Preset("pixels of 0 to 255; geometry as it is", pixel_scale=1.0),
}
_TIMM = "timm:MODEL"
_TIMM_MODES: Mapping[str, ResizeMode] = {"center": "crop", "squash": "squash"}


def preset(name: str) -> Preset:
    """The preset of that name; ``timm:MODEL`` asks timm.

    Raises:
        UsageError: there is none.
        EnvironmentError_: timm is not installed.
    """
    if name.startswith("timm:"):
        return _of_timm(name.partition(":")[2])
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), [*PRESETS, _TIMM], 1, 0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"no preprocessing is named {name!r}", where="--preprocess", hint=f"{hint}there are {', '.join(names())}"
        )
    return PRESETS[name]


def names() -> tuple[str, ...]:
    """All names that are taken."""
    return (*PRESETS, _TIMM)


def _of_timm(model: str) -> Preset:
    where = f"--preprocess timm:{model}"
    try:
        import timm
    except ImportError as error:
        missing = (error.name or "timm").partition(".")[0]
        what = "timm is not installed" if missing == "timm" else f"timm needs {missing}, which is not installed"
        hint = f"pip install {missing}, or copy the values: --mean, --std, --crop-ratio, --interpolation"
        raise EnvironmentError_(what, where=where, hint=hint) from error
    known = timm.list_models() + timm.list_pretrained()
    config = timm.get_pretrained_cfg(model) if model in known else None
    if config is None:
        near = difflib.get_close_matches(model, known, 3, 0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_pretrained() in Python lists all"
        raise UsageError("timm has no such model", where=where, hint=hint)
    named: dict[str, Interpolation] = {name: name for name in INTERPOLATIONS}
    mode = _TIMM_MODES.get(config.crop_mode)
    wrong = None
    if mode is None or (mode == "squash" and config.crop_pct != 1):
        wrong = f"timm's crop_mode {config.crop_mode} with crop_pct {config.crop_pct}"
    elif config.interpolation not in named:
        wrong = f"timm's interpolation {config.interpolation}"
    if wrong:
        hint = "give --resize-mode, --resize and --interpolation yourself, and leave out --preprocess"
        raise UsageError(f"{wrong} is not known here", where=where, hint=hint)
    return Preset(
        f"timm's {model}",
        tuple(config.mean),
        tuple(config.std),
        resize_mode=mode,
        crop_ratio=config.crop_pct if mode == "crop" else None,
        interpolation=named[config.interpolation],
    )
