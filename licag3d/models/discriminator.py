# SPDX-License-Identifier: Apache-2.0
"""Discriminator of line-integral images under known cameras, for the training of the generator.

Residual convolutions, minibatch standard deviation, and projection onto an embedding of camera and label (Miyato and
Koyama, ICLR 2018): whether an image is real is asked given where it was taken from.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from licag3d.geometry import Cameras
from licag3d.models.synthesis import ScaledLinear, unit_moment

#: Numbers of a camera label, see :func:`camera_label`.
CAMERA_DIM = 10


class ScaledConv(nn.Module):
    """A convolution with weights of unit variance, scaled where they are used."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1.0 / math.sqrt(inputs * kernel * kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight * self.scale).to(x.dtype)
        return F.conv2d(x, weight, self.bias.to(x.dtype), padding=weight.shape[-1] // 2)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.second = ScaledConv(inputs, inputs, 3), ScaledConv(inputs, outputs, 3)
        self.skip = ScaledConv(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(self.first(x), 0.2) * math.sqrt(2)
        y = F.leaky_relu(self.second(F.avg_pool2d(y, 2)), 0.2) * math.sqrt(2)
        return (y + self.skip(F.avg_pool2d(x, 2))) / math.sqrt(2)


class Discriminator(nn.Module):
    """Real or not, of V views of one patient seen together: ``(B, V, H, W)`` and their cameras to ``(B,)``.

    Views of one patient are judged together, as channels: alone, each may be a fine picture of another patient.

    Args:
        views: V. size: H = W, a power of two times four. widths: channels at size, size / 2, ..., one per halving to 4.
        labels: entries of the label vector.
    """

    def __init__(self, views: int, size: int, widths: tuple[int, ...], labels: int, *, embed: int = 128):
        super().__init__()
        if size != 4 << len(widths):
            raise ValueError(
                f"size is {size} and widths {widths}: {4 << len(widths)} px need one width per halving to 4"
            )
        self.enter = ScaledConv(views, widths[0], 1)
        after = (*widths[1:], widths[-1])
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in zip(widths, after, strict=True))
        self.last = ScaledConv(widths[-1] + 1, widths[-1], 3)
        self.flat = ScaledLinear(widths[-1] * 16, embed)
        self.condition = nn.Sequential(
            ScaledLinear(views * CAMERA_DIM + labels, embed), nn.LeakyReLU(0.2), ScaledLinear(embed, embed)
        )
        self.score = ScaledLinear(embed, 1)
        self.size = size
        #: Probability of augmentation; goes with the weights, so that a resumed run has it.
        self.register_buffer("chance", torch.zeros(()))

    def forward(self, images: torch.Tensor, camera: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Line integrals ``(B, V, size, size)``, ``camera`` ``(B, V, CAMERA_DIM)``, ``label`` ``(B, labels)``."""
        x = (images * 4.0).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.enter(x), 0.2) * math.sqrt(2)
        for block in self.blocks:
            x = block(x)
        x = x.float()
        spread = x.var(0, unbiased=False).add(1e-8).sqrt().mean()
        x = torch.cat([x, spread.expand(len(x), 1, *x.shape[2:])], 1)
        x = F.leaky_relu(self.last(x), 0.2) * math.sqrt(2)
        x = F.leaky_relu(self.flat(x.flatten(1)), 0.2) * math.sqrt(2)
        condition = unit_moment(self.condition(torch.cat([camera.flatten(1), label], 1)).float())
        return self.score(x)[:, 0].float() + (x.float() * condition).mean(1)


class TreeCritic(nn.Module):
    """Real or not, of the vector of a tree (:mod:`licag3d.models.branch_table`): ``(B, size)`` to ``(B,)``.

    Images show a wrong junction as a few pixels; here it is a number.

    Args:
        sizes: length of the vector by artery. labels: entries of the label vector.
    """

    def __init__(self, sizes: dict[str, int], labels: int, *, hidden: int = 384):
        super().__init__()
        self.enter = nn.ModuleDict({artery: ScaledLinear(size + labels, hidden) for artery, size in sizes.items()})
        self.middle = nn.ModuleList(ScaledLinear(hidden + 1, hidden) for _ in range(2))
        self.score = ScaledLinear(hidden, 1)

    def forward(self, vector: torch.Tensor, label: torch.Tensor, artery: str) -> torch.Tensor:
        """``vector`` in units of the spread, entries of absent branches zero."""
        x = F.leaky_relu(self.enter[artery](torch.cat([vector, label], 1)), 0.2) * math.sqrt(2)
        for layer in self.middle:
            spread = x.var(0, unbiased=False).add(1e-8).sqrt().mean().expand(len(x), 1)
            x = F.leaky_relu(layer(torch.cat([x, spread], 1)), 0.2) * math.sqrt(2)
        return self.score(x)[:, 0]


def camera_label(cameras: Cameras, *, rotation_deg: float = 0.0) -> torch.Tensor:
    """What a discriminator is told about views: ``(V, CAMERA_DIM)`` float32.

    Cosine and sine of both angles; logarithms of pixel size at the isocentre and of magnification; then rotation,
    column and row shift and scale of the image, which augmentation fills in.
    """
    first, second = torch.deg2rad(cameras.primary_deg), torch.deg2rad(cameras.secondary_deg)
    magnification = cameras.sid_mm / cameras.sod_mm
    field_mm = cameras.spacing_col_mm * cameras.cols / magnification
    numbers = [first.cos(), first.sin(), second.cos(), second.sin(), 4 * torch.log(field_mm / 130.0),
               4 * torch.log(magnification / 1.35)]  # fmt: skip
    zero = torch.zeros_like(first)
    return torch.stack([*numbers, zero + rotation_deg / 20, zero, zero, zero], 1).float()
