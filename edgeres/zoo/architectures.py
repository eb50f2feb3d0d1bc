"""The architectures of the zoo. This module does not import torch, so that help pages and robots can use it.

Shapes and figures come from

- He et al. 2015, "Deep Residual Learning for Image Recognition" (stacks, plain, CIFAR family, option A),
- He et al. 2016, "Identity Mappings in Deep Residual Networks" (pre-activation, ``v2`` here),
- Zagoruyko and Komodakis 2016 (wide), Xie et al. 2017 (ResNeXt),
- torchvision's model pages for parameter counts and multiply-adds of the networks it publishes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgeres.records import Preprocess

Family = Literal["imagenet", "cifar"]
BlockKind = Literal["basic", "bottleneck"]
Shortcut = Literal["projection", "pad", "none"]


@dataclass(frozen=True)
class Size:
    """Size of a network, at the number of classes and the image size that it was published with.

    Attributes:
        params: weights and biases that are trained.
        gmacs: 1e9 multiply-adds of convolutions and the classifier for one image.
        source: who published these figures; ``counted``: they were counted here. He et al. 2015 published
            rounded figures: the parameters of the CIFAR family and the multiply-adds of plain networks.
    """

    params: int
    gmacs: float
    source: str


@dataclass(frozen=True)
class Architecture:
    """One residual network.

    Attributes:
        family: ``imagenet`` has a 7x7/2 stem with max pooling and four stages, ``cifar`` a 3x3 stem and three.
        block: ``basic`` is 3x3, 3x3; ``bottleneck`` is 1x1, 3x3, 1x1 with four times as many channels out as within.
        depths: blocks per stage.
        shortcut: the path around a block where the shape changes: a 1x1 convolution (He et al.'s option B), strided
            subsampling with zero channels (option A), or ``none``: a plain network without shortcuts.
        preactivation: batch norm and ReLU before each convolution (v2), so nothing is applied to the sum between
            blocks.
        groups, width_per_group: of the bottleneck's 3x3 convolution (ResNeXt: more groups; wide: double width).
    """

    name: str
    family: Family
    block: BlockKind
    depths: tuple[int, ...]
    size: Size
    shortcut: Shortcut = "projection"
    preactivation: bool = False
    groups: int = 1
    width_per_group: int = 64

    @property
    def num_classes(self) -> int:
        return 1000 if self.family == "imagenet" else 10

    @property
    def input_px(self) -> int:
        return 224 if self.family == "imagenet" else 32

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(crop_px=(self.input_px, self.input_px), resize_px=256 if self.family == "imagenet" else None)

    @property
    def head(self) -> str:
        """Name of the classifier in a checkpoint: torchvision's ``fc``, ``linear`` in the CIFAR family."""
        return "fc" if self.family == "imagenet" else "linear"


_HE_2015 = "He et al. 2015"
_D18, _D50, _D101, _D152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)


def _v1(name: str, block: BlockKind, depths: tuple[int, ...], params: int, gmacs: float) -> Architecture:
    return Architecture(name, "imagenet", block, depths, Size(params, gmacs, "torchvision"))


def _v2(layers: int, block: BlockKind, depths: tuple[int, ...], params: int, gmacs: float) -> Architecture:
    size = Size(params, gmacs, "counted")
    return Architecture(f"resnet{layers}v2", "imagenet", block, depths, size, preactivation=True)


def _plain(layers: int, depths: tuple[int, ...], params: int, gmacs: float) -> Architecture:
    return Architecture(f"plain{layers}", "imagenet", "basic", depths, Size(params, gmacs, _HE_2015), "none")


def _cifar(layers: int, params: int, gmacs: float, *, v2: bool = False) -> Architecture:
    name, source = (f"resnet{layers}v2", "counted") if v2 else (f"resnet{layers}", _HE_2015)
    depths = ((layers - 2) // 6,) * 3
    return Architecture(name, "cifar", "basic", depths, Size(params, gmacs, source), "pad", preactivation=v2)


# Layers, parameters, multiply-adds in 1e9.
_CIFAR = (
    (20, 269_722, 0.0406),
    (32, 464_154, 0.0689),
    (44, 658_586, 0.0972),
    (56, 853_018, 0.1255),
    (110, 1_727_962, 0.2529),
)
_ALL = (
    _v1("resnet18", "basic", _D18, 11_689_512, 1.81),
    _v1("resnet34", "basic", _D50, 21_797_672, 3.66),
    _v1("resnet50", "bottleneck", _D50, 25_557_032, 4.09),
    _v1("resnet101", "bottleneck", _D101, 44_549_160, 7.80),
    _v1("resnet152", "bottleneck", _D152, 60_192_808, 11.51),
    replace(_v1("wide_resnet50_2", "bottleneck", _D50, 68_883_240, 11.40), width_per_group=128),
    replace(_v1("wide_resnet101_2", "bottleneck", _D101, 126_886_696, 22.75), width_per_group=128),
    replace(_v1("resnext50_32x4d", "bottleneck", _D50, 25_028_904, 4.23), groups=32, width_per_group=4),
    replace(_v1("resnext101_32x8d", "bottleneck", _D101, 88_791_336, 16.41), groups=32, width_per_group=8),
    replace(_v1("resnext101_64x4d", "bottleneck", _D101, 83_455_272, 15.46), groups=64, width_per_group=4),
    _v2(18, "basic", _D18, 11_687_720, 1.81),
    _v2(34, "basic", _D50, 21_795_880, 3.66),
    _v2(50, "bottleneck", _D50, 25_549_352, 4.09),
    _v2(101, "bottleneck", _D101, 44_541_480, 7.80),
    _v2(152, "bottleneck", _D152, 60_185_128, 11.51),
    _plain(18, _D18, 11_515_688, 1.79),
    _plain(34, _D50, 21_623_848, 3.64),
    *(_cifar(*size, v2=v2) for v2 in (False, True) for size in _CIFAR),
)

ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in _ALL}
