"""The residual networks of the zoo as torch modules.

    image -> stem -> stages of blocks -> global average pool -> classifier

State dicts have torchvision's keys (``layer1.0.downsample.0.weight``, ``fc``) in the ImageNet family and those of the
published CIFAR-10 checkpoints (``linear``) in the CIFAR family. Forward passes export only to Conv,
BatchNormalization, Relu, MaxPool, Slice, Pad, Add, GlobalAveragePool, Flatten and Gemm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeres.errors import UsageError
from edgeres.zoo.architectures import ARCHITECTURES, Architecture


@dataclass(frozen=True)
class Shape:
    """Shape of one block: (N, channels_in, H, W) -> (N, width, ..) within -> (N, channels_out, H/stride, W/stride)."""

    channels_in: int
    width: int
    channels_out: int
    stride: int

    @property
    def same(self) -> bool:
        return self.stride == 1 and self.channels_in == self.channels_out


def conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps H and W at stride 1; no bias, because batch norm has one."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)


class _SubsampleAndPad(torch.autograd.Function):
    """:class:`PadShortcut` as one Slice and one Pad: torch's exporter writes two Slices and a dozen shape nodes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, each_side: int) -> Tensor:
        return F.pad(x[..., ::2, ::2], (0, 0, 0, 0, each_side, each_side))

    @staticmethod
    def symbolic(g: Any, x: Any, each_side: int) -> Any:
        def ints(*values: int) -> Any:
            return g.op("Constant", value_t=torch.tensor(values))

        end = torch.iinfo(torch.int64).max
        sampled = g.op("Slice", x, ints(0, 0), ints(end, end), ints(2, 3), ints(2, 2))
        return g.op("Pad", sampled, ints(0, each_side, 0, 0, 0, each_side, 0, 0))


class PadShortcut(nn.Module):
    """Option A of He et al. 2015: every second pixel, with new channels of zeros on both sides.

    (N, C, H, W) -> (N, 2C, H/2, W/2), without parameters.
    """

    def __init__(self, channels_new: int) -> None:
        super().__init__()
        self.each_side = channels_new // 2

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return _SubsampleAndPad.apply(x, self.each_side)  # type: ignore[no-any-return, no-untyped-call]
        return F.pad(x[..., ::2, ::2], (0, 0, 0, 0, self.each_side, self.each_side))


def shortcut(arch: Architecture, shape: Shape) -> nn.Module:
    """The path around a block: the identity where the shape does not change."""
    if shape.same or arch.shortcut == "none":
        return nn.Identity()
    if arch.shortcut == "pad":
        return PadShortcut(shape.channels_out - shape.channels_in)
    norm = () if arch.preactivation else (nn.BatchNorm2d(shape.channels_out),)
    return nn.Sequential(conv(shape.channels_in, shape.channels_out, 1, shape.stride), *norm)


class PostActBlock(nn.Module):
    """y = relu(F(x) + shortcut(x)); without the shortcut in a plain network.

    F = 3x3/s, 3x3 in a basic block, and 1x1, 3x3/s, 1x1 in a bottleneck: torchvision, too, has the stride in the 3x3
    (ResNet v1.5).
    """

    def __init__(self, arch: Architecture, shape: Shape) -> None:
        super().__init__()
        self.plain, self.bottleneck = arch.shortcut == "none", arch.block == "bottleneck"
        first = (1, 1) if self.bottleneck else (3, shape.stride)
        self.conv1 = conv(shape.channels_in, shape.width, *first)
        self.bn1 = nn.BatchNorm2d(shape.width)
        if self.bottleneck:
            self.conv2 = conv(shape.width, shape.width, 3, shape.stride, arch.groups)
            self.bn2 = nn.BatchNorm2d(shape.width)
            self.conv3 = conv(shape.width, shape.channels_out, 1)
            self.bn3 = nn.BatchNorm2d(shape.channels_out)
        else:
            self.conv2 = conv(shape.width, shape.channels_out, 3)
            self.bn2 = nn.BatchNorm2d(shape.channels_out)
        self.downsample = shortcut(arch, shape)

    def forward(self, x: Tensor) -> Tensor:  # (N, channels_in, H, W)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))  # H and W are divided by s
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y if self.plain else y + self.downsample(x))  # (N, channels_out, H/s, W/s)


class PreActBlock(nn.Module):
    """y = F(a(x)) + x with a = ReLU of batch norm: nothing is applied to the sum (He et al. 2016).

    F is as in :class:`PostActBlock`. Where the shape changes, a projection reads a(x) as in that paper, and option A
    reads x. In the network's first block, the stem has computed a(x) already.
    """

    def __init__(self, arch: Architecture, shape: Shape, *, first: bool) -> None:
        super().__init__()
        self.first, self.bottleneck = first, arch.block == "bottleneck"
        self.bn1 = nn.Identity() if first else nn.BatchNorm2d(shape.channels_in)
        if self.bottleneck:
            self.conv1 = conv(shape.channels_in, shape.width, 1)
            self.bn2 = nn.BatchNorm2d(shape.width)
            self.conv2 = conv(shape.width, shape.width, 3, shape.stride, arch.groups)
            self.bn3 = nn.BatchNorm2d(shape.width)
            self.conv3 = conv(shape.width, shape.channels_out, 1)
        else:
            self.conv1 = conv(shape.channels_in, shape.width, 3, shape.stride)
            self.bn2 = nn.BatchNorm2d(shape.width)
            self.conv2 = conv(shape.width, shape.channels_out, 3)
        self.downsample = shortcut(arch, shape)
        self.projects = isinstance(self.downsample, nn.Sequential)

    def forward(self, x: Tensor) -> Tensor:  # (N, channels_in, H, W)
        a = x if self.first else F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))  # H and W are divided by s
        if self.bottleneck:
            y = self.conv3(F.relu(self.bn3(y)))
        total: Tensor = y + self.downsample(a if self.projects else x)  # (N, channels_out, H/s, W/s)
        return total


def stage_shapes(arch: Architecture) -> list[list[Shape]]:
    """Shapes of all blocks, stage by stage: 64, 128, 256, 512 planes, or 16, 32, 64 in the CIFAR family."""
    stem = channels_in = 64 if arch.family == "imagenet" else 16
    stages = []
    for s, depth in enumerate(arch.depths):
        planes = stem * 2**s
        width = planes * arch.width_per_group // 64 * arch.groups if arch.block == "bottleneck" else planes
        channels_out = planes * (4 if arch.block == "bottleneck" else 1)
        first = Shape(channels_in, width, channels_out, stride=1 if s == 0 else 2)
        stages.append([first] + [Shape(channels_out, width, channels_out, stride=1)] * (depth - 1))
        channels_in = channels_out
    return stages


def make_block(arch: Architecture, shape: Shape, *, first: bool) -> nn.Module:
    return PreActBlock(arch, shape, first=first) if arch.preactivation else PostActBlock(arch, shape)


class ResNet(nn.Module):
    """Logits, float32 (N, num_classes), of normalised images, float32 (N, 3, H, W); see ``arch.preprocess``.

    ImageNet family at 224: stem 7x7/2 -> 112, max pool -> 56, stages at 56, 28, 14, 7.
    CIFAR family at 32: stem 3x3 -> 32, stages at 32, 16, 8.
    """

    def __init__(self, arch: Architecture, num_classes: int) -> None:
        super().__init__()
        shapes = stage_shapes(arch)
        stem, features = shapes[0][0].channels_in, shapes[-1][-1].channels_out
        imagenet = arch.family == "imagenet"
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False) if imagenet else conv(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        self.stages = [f"layer{s}" for s in range(1, len(shapes) + 1)]
        for name, blocks in zip(self.stages, shapes, strict=True):
            first = name == self.stages[0]
            layer = [make_block(arch, shape, first=first and b == 0) for b, shape in enumerate(blocks)]
            self.add_module(name, nn.Sequential(*layer))
        self.post = nn.Sequential(nn.BatchNorm2d(features), nn.ReLU()) if arch.preactivation else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.head = arch.head
        self.add_module(arch.head, nn.Linear(features, num_classes))
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W)
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))  # (N, stem, H/4, W/4), or (N, stem, H, W) for CIFAR
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = torch.flatten(self.avgpool(self.post(x)), 1)  # (N, features)
        logits: Tensor = self.get_submodule(self.head)(x)
        return logits


def _initialize(module: nn.Module) -> None:
    """Initialize as in He et al. 2015, "Delving Deep into Rectifiers", so that ReLU keeps the variance."""
    if any(weight.is_meta for weight in module.parameters(recurse=False)):
        return  # meta tensors have no values, and torch's first function on them takes 1.5 s to import
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)


def create(name: str, num_classes: int | None = None) -> ResNet:
    """A new network in training mode, initialized from torch's global random state.

    Args:
        name: a key of :data:`~edgeres.zoo.architectures.ARCHITECTURES`.
        num_classes: None: as published.

    Raises:
        UsageError: there is no such architecture, or fewer than one class.
    """
    arch = ARCHITECTURES.get(name)
    if arch is None:
        raise UsageError("no such architecture", where=name, hint=f"one of {', '.join(ARCHITECTURES)}")
    classes = arch.num_classes if num_classes is None else num_classes
    if classes < 1:
        raise UsageError(f"{classes} classes", where=name, hint="give at least one")
    return ResNet(arch, classes)
