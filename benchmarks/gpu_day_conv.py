"""Convolutions as one Triton kernel, in FP16 and in INT8: the kernels of ``benchmarks/gpu_day.py``.

An implicit matrix product over (positions, filter taps * channels): NHWC activations, weights (K, R, S, C). One source
serves both types, so that they differ in nothing but the type:

    fp16   float32 sums, + bias, ReLU, to float16
    int8   int32 sums, * scale per channel + bias, ReLU, rounded to int8

``PADDED`` reads zeros outside the image, as a fused convolution pads. Without it the kernel reads an image that has its
border already: what is left of a convolution whose border has a code of its own (DQ -> Pad -> Q -> DQ -> Conv).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Positions, output channels and depth of a block, and warps: the fastest is taken for each convolution.
TILES = ((64, 64, 64, 4), (128, 64, 64, 4), (64, 32, 128, 4), (32, 32, 128, 2), (128, 128, 64, 8))


# A kernel is not compiled anew where one of these is 1 or a multiple of 16: that would be hundreds of kernels for the
# two networks. The depth and the filters are left out, since they decide how wide the loads are.
_ONE_KERNEL = ("positions", "height", "width", "rows", "columns", "side", "stride", "pad")


@triton.jit(do_not_specialize=_ONE_KERNEL)  # type: ignore[untyped-decorator, unused-ignore]  # untyped without Triton
def _conv(  # noqa: PLR0913
    x, w, scale, bias, y,
    positions, height, width, depth, filters, rows, columns, side, stride, pad,
    INT8: tl.constexpr, PADDED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * M + tl.arange(0, M)
    out = tl.program_id(1) * N + tl.arange(0, N)
    deep = tl.arange(0, K)
    image, row, column = at // (rows * columns), at // columns % rows, at % columns
    total = tl.zeros((M, N), tl.int32 if INT8 else tl.float32)
    for tap in range(side * side):
        h = row * stride + tap // side - pad
        v = column * stride + tap % side - pad
        inside = at < positions
        if PADDED:
            inside = inside & (h >= 0) & (h < height) & (v >= 0) & (v < width)
        for first in range(0, depth, K):
            channel = first + deep
            a = tl.load(
                x + ((image * height + h) * width + v)[:, None] * depth + channel[None, :],
                mask=inside[:, None] & (channel < depth)[None, :],
                other=0,
            )
            b = tl.load(
                w + (out * side * side + tap)[None, :] * depth + channel[:, None],
                mask=(out < filters)[None, :] & (channel < depth)[:, None],
                other=0,
            )
            total = tl.dot(a, b, total, out_dtype=tl.int32 if INT8 else tl.float32)
    shift = tl.load(bias + out, mask=out < filters, other=0)
    if INT8:
        step = tl.load(scale + out, mask=out < filters, other=0)
        value = tl.maximum(total.to(tl.float32) * step[None, :] + shift[None, :], 0.0)
        found = tl.minimum(value + 0.5, 127.0).to(tl.int8)
    else:
        found = tl.maximum(total + shift[None, :], 0.0).to(tl.float16)
    tl.store(y + at[:, None] * filters + out[None, :], found, mask=(at < positions)[:, None] & (out < filters)[None, :])


@dataclass(frozen=True)
class Conv:
    """One convolution of a network: square filters, and the number of times that the network has it."""

    side: int
    stride: int
    depth: int
    filters: int
    height: int
    count: int = 1

    @property
    def pad(self) -> int:
        return self.side // 2

    @property
    def rows(self) -> int:
        return (self.height + 2 * self.pad - self.side) // self.stride + 1

    def macs(self, batch: int) -> int:
        return batch * self.rows**2 * self.filters * self.side**2 * self.depth


@dataclass
class Layer:
    """The tensors of one convolution on a device, in one type; ``x`` (B, H, W, C), ``w`` (K, R, S, C)."""

    conv: Conv
    x: Tensor
    w: Tensor
    scale: Tensor
    bias: Tensor
    y: Tensor

    @classmethod
    def random(cls, conv: Conv, batch: int, dtype: torch.dtype, device: str) -> Layer:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            if dtype == torch.int8:
                return torch.randint(-127, 128, shape, dtype=dtype, generator=generator).to(device)
            return (torch.randn(shape, generator=generator) / 8).to(device, dtype)

        depth = conv.depth
        x, w = draw(batch, conv.height, conv.height, depth), draw(conv.filters, conv.side, conv.side, depth)
        scale = (0.5 + torch.rand(conv.filters, generator=generator)) / (80 * (conv.side**2 * depth) ** 0.5)
        bias = torch.randn(conv.filters, generator=generator)
        y = torch.empty(batch, conv.rows, conv.rows, conv.filters, dtype=dtype, device=device)
        return cls(conv, x, w, scale.to(device), bias.to(device), y)

    def run(self, tile: tuple[int, int, int, int]) -> Tensor:
        """The convolution with its padding inside the kernel."""
        return self._launch(self.x, self.conv.pad, True, tile)

    def run_padded(self, tile: tuple[int, int, int, int]) -> Tensor:
        """The border is written by a kernel of its own, with the code -128, and the convolution pads nothing."""
        pad = self.conv.pad
        bordered = torch.nn.functional.pad(self.x, (0, 0, pad, pad, pad, pad), value=-128.0) if pad else self.x
        return self._launch(bordered, 0, False, tile)

    def _launch(self, x: Tensor, pad: int, padded: bool, tile: tuple[int, int, int, int]) -> Tensor:
        conv, (m, n, k, warps) = self.conv, tile
        positions = self.y.shape[0] * conv.rows**2
        grid = (triton.cdiv(positions, m), triton.cdiv(conv.filters, n))
        sizes = (positions, x.shape[1], x.shape[2], conv.depth, conv.filters, conv.rows, conv.rows)
        options: dict[str, Any] = {"INT8": x.dtype == torch.int8, "PADDED": padded, "M": m, "N": n, "K": k}
        launch: Any = _conv[grid]
        launch(
            x, self.w, self.scale, self.bias, self.y, *sizes, conv.side, conv.stride, pad, **options, num_warps=warps
        )
        return self.y

    def expected(self, border: float = 0.0) -> Tensor:
        """The same by ``torch.conv2d`` in double precision on the CPU."""
        conv = self.conv
        x, w = (values.cpu().double().permute(0, 3, 1, 2) for values in (self.x, self.w))
        pad = conv.pad
        y = torch.conv2d(torch.nn.functional.pad(x, (pad, pad, pad, pad), value=border), w, stride=conv.stride)
        bias = self.bias.cpu().double()[:, None, None]
        if self.x.dtype == torch.int8:
            y = (y * self.scale.cpu().double()[:, None, None] + bias).clamp(min=0).add(0.5).floor().clamp(max=127)
        else:
            y = (y + bias).clamp(min=0)
        return y.permute(0, 2, 3, 1)
