"""A folder as transformers' ``save_pretrained`` writes it, of ResNetForImageClassification; transformers is not needed.

config.json + model.safetensors + preprocessor_config.json -> a residual network of the zoo's form
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from edgeres.errors import InputError, WeightsError, reading
from edgeres.files import read_file
from edgeres.files import sha256 as file_sha256
from edgeres.records import Interpolation, ModelSpec, Preprocess
from edgeres.zoo.architectures import ARCHITECTURES, Architecture
from edgeres.zoo.checkpoint import Loaded, WeightsChoice, network_of
from edgeres.zoo.match import match, wanted_of
from edgeres.zoo.state_dict import Checkpoint, load_checkpoint

_ONNX = "export it as ONNX and give that as the model"
_LARGEST_JSON = 4 << 20  # bytes; 1,000 names of classes take 30,000
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Pillow's numbers of filters.
_FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_RENAMED = (
    (re.compile(r"embedder\.embedder\.convolution\."), "conv1."),
    (re.compile(r"embedder\.embedder\.normalization\."), "bn1."),
    (re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\."), lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (re.compile(r"(?<=\.)layer\.(\d)\.convolution\."), lambda m: f"conv{int(m[1]) + 1}."),
    (re.compile(r"(?<=\.)layer\.(\d)\.normalization\."), lambda m: f"bn{int(m[1]) + 1}."),
    (re.compile(r"(?<=\.)shortcut\.convolution\."), "downsample.0."),
    (re.compile(r"(?<=\.)shortcut\.normalization\."), "downsample.1."),
)


def load_folder(name: str, choice: WeightsChoice) -> Loaded:
    """The network in a folder.

    Args:
        name: ``hf:FOLDER``.

    Raises:
        InputError: a file is missing or cannot be read, or the network has another form.
    """
    folder = Path(name.partition(":")[2]).expanduser()
    if not folder.is_dir():
        hint = f"fetch it first: huggingface-cli download {folder} --local-dir DIR, then hf:DIR"
        raise InputError("no such folder", where=name, hint=hint)
    config = _json(folder / "config.json")
    arch = _architecture(config, folder)
    file = (
        Path(choice.weights) if choice.weights else next((folder / f for f in _FILES if (folder / f).is_file()), None)
    )
    if file is None:
        raise WeightsError("holds no weights", where=folder, hint=f"one of {', '.join(_FILES)}")
    found = match(
        wanted_of(arch), _renamed(load_checkpoint(file)), averaged=choice.averaged, activation=choice.head_activation
    )
    network = network_of(arch, found, file)
    if config.get("downsample_in_bottleneck") and arch.block == "bottleneck":
        _stride_first(network)
    classes = found.around[f"{found.layers[-1].name}.weight"].shape[0]
    labels, label_notes = _labels(config, classes)
    preprocess, notes = _preprocess(folder / "preprocessor_config.json", arch.preprocess)
    title = folder.resolve().name
    spec = ModelSpec(title, preprocess, labels, weights=file.name, weights_sha256=file_sha256(file))
    return Loaded(network, spec, (*label_notes, *notes, *found.notes))


def _json(path: Path) -> Mapping[str, Any]:
    with reading(path, hint="give a folder of save_pretrained"):
        content = json.loads(read_file(path, _LARGEST_JSON))
    if not isinstance(content, dict):
        raise InputError("is no JSON object", where=path, hint="fetch it again")
    return content


def _architecture(config: Mapping[str, Any], folder: Path) -> Architecture:
    """The zoo's architecture of these sizes, with the depths of the file."""
    where = folder / "config.json"
    if "pretrained_cfg" in config and "architecture" in config:
        hint = f"--model timm:{config['architecture']} --weights {folder / 'model.safetensors'}"
        raise InputError("is a model of timm", where=where, hint=hint)
    if config.get("model_type") != "resnet":
        raise InputError(f"is a model of type {config.get('model_type')!r:.60}, not resnet", where=where, hint=_ONNX)
    block = config.get("layer_type", "bottleneck")
    expected = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}.get(str(block))
    depths = config.get("depths", [3, 4, 6, 3])
    differ = [
        (expected is not None, f"layer_type {block!r:.40}"),
        (
            config.get("hidden_sizes", [256, 512, 1024, 2048]) == expected,
            f"hidden_sizes {config.get('hidden_sizes')!r:.60}",
        ),
        (config.get("embedding_size", 64) == 64, f"embedding_size {config.get('embedding_size')!r:.20}"),
        (config.get("num_channels", 3) == 3, f"num_channels {config.get('num_channels')!r:.20}"),
        (config.get("hidden_act", "relu") == "relu", f"hidden_act {config.get('hidden_act')!r:.20}"),
        (not config.get("downsample_in_first_stage"), "downsample_in_first_stage"),
        (_are_depths(depths), f"depths {depths!r:.60}"),
    ]
    if wrong := [words for right, words in differ if not right]:
        raise InputError(f"the zoo has no ResNet with {', '.join(wrong)}", where=where, hint=_ONNX)
    known = next(
        (a for a in ARCHITECTURES.values() if (a.block, list(a.depths)) == (block, depths) and _plain(a)), None
    )
    if known is None:
        raise InputError(f"the zoo has no ResNet with depths {depths}", where=where, hint=_ONNX)
    return known


def _are_depths(depths: Any) -> bool:
    return isinstance(depths, list) and len(depths) == 4 and all(type(depth) is int and depth > 0 for depth in depths)


def _plain(arch: Architecture) -> bool:
    """Whether it is He et al.'s form of 2015 with projections, not wider and without groups."""
    usual = arch.shortcut == "projection" and not arch.preactivation
    return usual and arch.family == "imagenet" and arch.groups == 1 and arch.width_per_group == 64


def _renamed(checkpoint: Checkpoint) -> Checkpoint:
    """The same tensors by torchvision's names."""

    def new(name: str) -> str:
        for pattern, words in _RENAMED:
            name = pattern.sub(words, name)
        return name

    tensors = {new(name): tensor for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors, holders={new(n): holder for n, holder in checkpoint.holders.items()})


def _stride_first(network: nn.Module) -> None:
    """Move the stride of bottlenecks from the 3x3 to the first 1x1 convolution."""
    for module in list(network.modules()):
        first, second = getattr(module, "conv1", None), getattr(module, "conv2", None)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
            first.stride, second.stride = second.stride, first.stride


def _labels(config: Mapping[str, Any], classes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    named = config.get("id2label")
    if isinstance(named, dict) and set(map(str, named)) == set(map(str, range(classes))):
        return tuple(str(named[str(i)]) for i in range(classes)), ()
    unnamed = tuple(f"class {i}" for i in range(classes))
    return unnamed, (f"config.json names no {classes} classes (id2label)",)


def _preprocess(path: Path, known: Preprocess) -> tuple[Preprocess, tuple[str, ...]]:
    """What the image processor does, as far as it is resize, centre crop, rescale and normalize."""
    if not path.is_file():
        return known, ("there is no preprocessor_config.json: ImageNet's preprocessing is used",)
    stated = _json(path)
    with reading(path, "is no image processor", hint="give --mean, --std and --resize"):
        size, crop = _side(stated.get("size", known.crop_px[0])), stated.get("crop_size")
        if isinstance(stated.get("size"), dict) and "height" in stated["size"]:
            crop_px, resize = (int(stated["size"]["height"]), int(stated["size"]["width"])), None
        elif "ConvNext" in str(stated.get("image_processor_type", stated.get("feature_extractor_type", ""))):
            # Its own rule: below 384 the shorter side becomes size / crop_pct, and the centre is cut out.
            share = stated.get("crop_pct") or 224 / 256
            crop_px, resize = (size, size), int(size / share) if size < 384 else None
        else:
            cut = _side(crop) if crop and stated.get("do_center_crop", True) else size
            crop_px, resize = (cut, cut), size
        if crop and stated.get("do_center_crop") and resize is None:
            cut = _side(crop)
            crop_px, resize = (cut, cut), crop_px[0]
        normalizes = stated.get("do_normalize", True)
        mean = tuple(map(float, stated.get("image_mean", known.mean))) if normalizes else (0.0,) * 3
        std = tuple(map(float, stated.get("image_std", known.std))) if normalizes else (1.0,) * 3
        scale = float(stated.get("rescale_factor", 1 / 255)) if stated.get("do_rescale", True) else 1.0
        filter_ = _FILTERS.get(stated.get("resample", 3))
        notes = () if filter_ else (f"resample {stated.get('resample')} is not known here; bilinear is used",)
        return Preprocess(crop_px, resize, filter_ or "bilinear", mean, std, pixel_scale=scale), notes


def _side(size: Any) -> int:
    """The shorter side, or the side of a square, in pixels."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return int(size)
