# SPDX-License-Identifier: Apache-2.0
"""Perceptual distance on the project's own angiogram encoder."""

from __future__ import annotations

import torch


def perceptual_distance(encoder, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the channel-normalised feature maps of two batches of frames.

    As LPIPS without its learned weights (Zhang et al., CVPR 2018, equation 1): every position of every map is scaled to
    unit length over the channels, squared differences are summed over channels and averaged over positions and maps.
    0 for equal frames, at most 4.

    Args:
        encoder: anything with ``maps(images) -> list of (n, c, h', w')``, differentiable, for example
            :func:`licag3d.models.vasomim.load_encoder`. Its weights should be frozen.
        a: ``(n, 1, rows, cols)``, 0..1, vessels dark.
        b: the same shape.

    Returns:
        ``(n,)``, differentiable in both.

    Raises:
        ValueError: other shapes.
    """
    if a.ndim != 4 or a.shape != b.shape or a.shape[1] != 1:
        raise ValueError(f"frames need one shape (n, 1, rows, cols); got {tuple(a.shape)} and {tuple(b.shape)}")
    maps = zip(encoder.maps(a), encoder.maps(b), strict=True)
    return torch.stack([(_unit(x) - _unit(y)).square().sum(1).mean((1, 2)) for x, y in maps]).mean(0)


def _unit(x: torch.Tensor) -> torch.Tensor:
    # The small number keeps the gradient finite where a map is zero.
    return x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-8)
