# SPDX-License-Identifier: Apache-2.0
"""Layers of a style-based generator, written from the equations of Karras et al., CVPR 2020 (StyleGAN2).

Weights are stored with unit variance and scaled where they are used (Karras et al., ICLR 2018, section 4.1): all
layers learn at one speed. Modulation scales the input of a convolution and demodulation its output: this equals
modulated weights (equations 1 to 3 of StyleGAN2) and leaves one ordinary convolution for the whole batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

_GAIN = math.sqrt(2.0)


class ScaledLinear(nn.Module):
    """``rate * (x W / sqrt(fan_in) + b)`` with W of unit variance: gradients reach it ``rate`` times slower.

    Args:
        rate: learning rate multiplier, with ``W`` started at ``1 / rate``. bias: start of b. gain: of the start of W.
    """

    def __init__(self, inputs: int, outputs: int, *, rate: float = 1.0, bias: float = 0.0, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (gain / rate))
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale = rate / math.sqrt(inputs)
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias.to(x.dtype) * self.rate)


class MappingNetwork(nn.Module):
    """``(z, label) -> w``. Both are brought to unit second moment first, so that neither drowns the other.

    A straight path beside the layers (``w = linear(z) + layers(z)``) keeps the map well conditioned: inversion and
    encoders work in w. Before both, z is moved and turned in a way of its own for each of the first ``own`` labels:
    codes of right and left trees have distributions of their own.

    Args:
        z_dim, labels, w_dim: sizes. hidden, layers: of the perceptron. rate: learning rate multiplier.
        own: labels with an affine map of their own, which begins as the identity.
    """

    def __init__(
        self,
        z_dim: int,
        labels: int,
        w_dim: int,
        *,
        hidden: int = 256,
        layers: int = 2,
        rate: float = 0.1,
        own: int = 0,
    ):
        super().__init__()
        # Fitted in closed form (licag3d.train.generator_prior), so buffers.
        self.register_buffer("own", torch.zeros(own, z_dim, z_dim) if own else None)
        self.register_buffer("own_shift", torch.zeros(own, z_dim) if own else None)
        self.embed = ScaledLinear(labels, hidden)
        sizes = [z_dim + hidden] + [hidden] * layers
        self.layers = nn.ModuleList(ScaledLinear(a, b, rate=rate) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.out = ScaledLinear(hidden, w_dim, rate=rate)
        self.straight = ScaledLinear(z_dim + hidden, w_dim)

    def placed(self, z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Normal deviates ``(B, z_dim)`` to codes distributed as those of the label's trees."""
        if self.own is None:
            return z
        share = label[:, : len(self.own)]
        return z + torch.einsum("bl,bi,lij->bj", share, z, self.own) + share @ self.own_shift

    def forward(self, z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = torch.cat([z, unit_moment(self.embed(label))], 1)
        y = x
        for layer in self.layers:
            y = F.leaky_relu(layer(y), 0.2) * _GAIN
        return self.straight(x) + self.out(y)


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, its output brought back to unit variance.

    With style ``s = A w`` (A affine, started at one), ``y_o = d_o sum_i w_oi * (s_i x_i)`` and
    ``d_o = 1 / sqrt(sum_ik (s_i w_oik)^2)``: equations 1 and 3 of StyleGAN2.
    """

    def __init__(self, inputs: int, outputs: int, w_dim: int, *, kernel: int = 3, demodulate: bool = True):
        super().__init__()
        self.style = ScaledLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1.0 / math.sqrt(inputs * kernel * kernel)
        self.demodulate = demodulate

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        style = self.style(w)
        weight = self.weight * self.scale
        x = x * style[:, :, None, None].to(x.dtype)
        x = F.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)
        if self.demodulate:
            spread = style.float().square() @ weight.square().sum((2, 3)).T
            x = x * torch.rsqrt(spread + 1e-8)[:, :, None, None].to(x.dtype)
        return x + self.bias[:, None, None].to(x.dtype)


class SynthesisNetwork(nn.Module):
    """W+ codes to images of ``channels`` channels: learned start of 4 x 4, two convolutions per resolution, outputs of
    all resolutions summed up (the skip architecture of StyleGAN2, figure 7). No noise inputs: a code is one field.

    Args:
        widths: channels at 4, 8, 16, ... pixels; the last is the resolution of the result.
        context: channels of a picture that enters every resolution, averaged down to it; 0 for none.
        out_gain: of the weights of the outputs at the start.
    """

    def __init__(self, w_dim: int, widths: tuple[int, ...], channels: int, *, context: int = 0, out_gain: float = 1.0):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.convs, self.outs = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for level, width in enumerate(widths):
            for k in range(1 if level == 0 else 2):
                self.convs.append(ModulatedConv(before if k == 0 else width, width, w_dim))
            out = ModulatedConv(width, channels, w_dim, kernel=1, demodulate=False)
            with torch.no_grad():
                out.weight.mul_(out_gain)
            self.outs.append(out)
            before = width
        self.levels = len(widths)
        self.enter = nn.ModuleList(
            nn.Conv2d(context, width, 3, padding=1) for width in ((widths[0], *widths[:-1]) if context else ())
        )

    @property
    def layers(self) -> int:
        """Codes that :meth:`forward` takes: one per 3 x 3 convolution; an output shares that of the one before it."""
        return len(self.convs)

    def forward(
        self, w_plus: torch.Tensor, *, context: torch.Tensor | None = None, levels: int | None = None
    ) -> torch.Tensor:
        """``(B, layers, w_dim)`` and context ``(B, context, m, m)`` to ``(B, channels, n, n)``.

        n is 4 * 2^(levels - 1): fewer levels for a coarse start of training.
        """
        x = self.start.expand(len(w_plus), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        total, index = None, 0
        pictures = _pyramid(context, 4, levels or self.levels) if context is not None else None
        for level in range(levels or self.levels):
            for k in range(1 if level == 0 else 2):
                if level and k == 0:
                    x = double(x)
                if k == 0 and pictures is not None:
                    x = x + self.enter[level](pictures[level].to(x.dtype))
                x = F.leaky_relu(self.convs[index](x, w_plus[:, index]), 0.2) * _GAIN
                index += 1
            out = self.outs[level](x, w_plus[:, index - 1])
            total = out if total is None else double(total) + out
        return total


def _pyramid(picture: torch.Tensor, smallest: int, levels: int) -> list[torch.Tensor]:
    """Averages of a picture at ``smallest``, twice that, ... pixels; its size is a multiple of the largest of them."""
    out = []
    for level in reversed(range(levels)):
        picture = F.avg_pool2d(picture, picture.shape[-1] // (smallest << level))
        out.append(picture.contiguous(memory_format=torch.channels_last))
    return out[::-1]


def double(x: torch.Tensor) -> torch.Tensor:
    """Twice the size, bilinear: the filter 1, 3, 3, 1 of StyleGAN2."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def unit_moment(x: torch.Tensor) -> torch.Tensor:
    """Rows of second moment one."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
