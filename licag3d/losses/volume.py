# SPDX-License-Identifier: Apache-2.0
"""Losses on an attenuation field at points whose distance to the true vessels is known."""

from __future__ import annotations

import torch


def occupancy(mu: torch.Tensor, lumen_mu: torch.Tensor) -> torch.Tensor:
    """Share of full contrast, ``(B, N)`` from mu ``(B, N)`` and the attenuation of the lumen ``(B,)``, both 1/mm."""
    return mu / lumen_mu[:, None]


def wall_ramp(signed_distance_mm: torch.Tensor, edge_mm: float) -> torch.Tensor:
    """What a field of this sharpness should hold: 1 inside, 0 outside, linear over ``edge_mm`` across the wall."""
    return (0.5 - signed_distance_mm / edge_mm).clamp(0.0, 1.0)


def point_dice_loss(share: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One minus soft Dice (Milletari et al., 3DV 2016) per item, mean over the batch; all ``(B, N)``.

    ``share`` above 1 counts as its distance from 1 would below: too bright is as wrong as too dark.

    Args:
        weight: importance of the points: the volume that each of them stands for.
    """
    share = torch.where(share > 1, (2 - share).clamp_min(0), share)
    both = (weight * share * truth).sum(1)
    total = (weight * (share.square() + truth.square())).sum(1)
    return 1 - ((2 * both + 1e-3) / (total + 1e-3)).mean()


def attenuation_loss(share: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean absolute error of the attenuation in units of full contrast; all ``(B, N)``."""
    return (weight * (share - truth).abs()).sum() / weight.sum().clamp_min(1e-6)


def connectivity_loss(share: torch.Tensor, branch: torch.Tensor, branches: int, *, sharpness: float = 8.0):
    """How far the darkest place along each branch is from full contrast: one gap makes two trees.

    The least share along a branch is taken softly, ``-log mean exp(-k s) / k``.

    Args:
        share: ``(N,)`` on true centrelines. branch: ``(N,)`` int64, number of the branch of each point, below
            ``branches``; every branch counts once, however short.

    Example:
        >>> gap = connectivity_loss(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]), 2)
        >>> whole = connectivity_loss(torch.ones(4), torch.tensor([0, 0, 1, 1]), 2)
        >>> bool(gap > whole)
        True
    """
    share = share.clamp(0.0, 1.0)
    total = share.new_zeros(branches).index_add(0, branch, torch.exp(-sharpness * share))
    count = share.new_zeros(branches).index_add(0, branch, torch.ones_like(share))
    there = count > 0
    least = -torch.log(total[there] / count[there]) / sharpness
    return (1 - least).clamp_min(0).mean()


def radius_loss(share: torch.Tensor, over_radius: torch.Tensor) -> torch.Tensor:
    """Error of the calibre: full contrast is wanted at shares of the radius below one, none above.

    Args:
        share: ``(N,)`` at points about true centrelines. over_radius: ``(N,)`` their distance from the axis in radii;
            those within a tenth of the wall say nothing.
    """
    inside = (over_radius < 1).to(share.dtype)
    sure = ((over_radius - 1).abs() > 0.1).to(share.dtype)
    wrong = inside * (1 - share).clamp(0, 1) + (1 - inside) * share.clamp(0, 1)
    return (sure * wrong).sum() / sure.sum().clamp_min(1)


def density_loss(mu: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of mu between points and points a little beside them (Chan et al., EG3D, supplement),
    all drawn inside the box; ``(B, N)`` 1/mm.
    """
    return (mu - moved).abs().mean()
