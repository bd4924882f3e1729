# SPDX-License-Identifier: Apache-2.0
"""Losses of vessel segmentation: overlap, centreline overlap, line integral of unknown display gain."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def soft_dice_loss(probability: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """One minus the soft Dice overlap over the whole batch (Milletari et al., 3DV 2016).

    Over the batch rather than per sample: an empty sample then costs what its false pixels cost, and no more.

    Args:
        probability, truth, weight: ``(n, 1, h, w)`` in 0..1.
    """
    w = torch.ones_like(truth) if weight is None else weight
    both = (w * probability * truth).sum()
    return 1 - (2 * both + 1) / ((w * probability).sum() + (w * truth).sum() + 1)


def soft_skeleton(image: torch.Tensor, iterations: int) -> torch.Tensor:
    """Differentiable skeleton of ``(n, 1, h, w)`` in 0..1 (Shit et al., clDice, CVPR 2021, algorithm 1).

    Args:
        iterations: at least the largest half width in px, or the middle of wide vessels is left out.
    """
    skeleton = F.relu(image - _dilate(_erode(image)))
    for _ in range(iterations):
        image = _erode(image)
        new = F.relu(image - _dilate(_erode(image)))
        skeleton = skeleton + F.relu(new - skeleton * new)
    return skeleton


def soft_cldice_loss(
    probability: torch.Tensor, truth: torch.Tensor, iterations: int = 5, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """One minus the soft centreline Dice over the batch (Shit et al., CVPR 2021): the harmonic mean of the share of the
    predicted skeleton inside the truth and of the true skeleton inside the prediction.
    """
    w = torch.ones_like(truth) if weight is None else weight
    ours = w * soft_skeleton(probability, iterations)
    with torch.no_grad():
        theirs = w * soft_skeleton(truth, iterations)
    precision = ((ours * truth).sum() + 1) / (ours.sum() + 1)
    sensitivity = ((theirs * probability).sum() + 1) / (theirs.sum() + 1)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def skeleton_recall_loss(
    probability: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Share of the true centreline (grown by a pixel, inside the vessels) that is not found, over the batch (Kirchhoff
    et al., Skeleton Recall Loss, ECCV 2024): a pixel of length counts the same in thin and in thick vessels.
    """
    from skimage.morphology import skeletonize

    lines = np.stack([skeletonize(one[0] > 0.5) for one in truth.detach().cpu().numpy()])[:, None]
    lines = F.max_pool2d(torch.from_numpy(lines).to(truth), 3, 1, 1) * truth
    lines = lines if weight is None else lines * weight
    return 1 - ((lines * probability).sum() + 1) / (lines.sum() + 1)


def narrow_gaps(truth: torch.Tensor, reach: int = 3) -> torch.Tensor:
    """Background ``(n, 1, h, w)`` of 0 and 1 between vessels at most ``2 reach`` px apart, and in the corners of forks:
    small in area, and all that keeps two vessels from becoming one (weighted as by Ronneberger et al., MICCAI 2015).
    """
    size = 2 * reach + 1
    closed = -F.max_pool2d(-F.max_pool2d(truth, size, 1, reach), size, 1, reach)
    return (closed - truth).clamp(0, 1)


def gain_of(p: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, limit: float = 3.0) -> torch.Tensor:
    """Least-squares factor per sample ``(n, 1, 1, 1)`` from predicted to true line integral inside the vessels.

    A display curve hides the scale of p; only its shape can be asked for in full. One for samples without vessels.
    """
    dims = (1, 2, 3)
    cross, own = (inside * p * truth).sum(dims), (inside * p * p).sum(dims)
    gain = torch.where(own > 1e-4, cross / own.clamp_min(1e-4), torch.ones_like(own))
    return gain.clamp(1 / limit, limit)[:, None, None, None]


def line_integral_loss(
    p: torch.Tensor,
    log_spread: torch.Tensor,
    truth: torch.Tensor,
    inside: torch.Tensor,
    *,
    shape_share: float = 0.7,
) -> torch.Tensor:
    """Negative log likelihood of the true line integral under a Laplace density of learnt spread, mean over vessels.

    Args:
        p, log_spread, truth, inside: ``(n, 1, h, w)``; ``inside`` 0 or 1.
        shape_share: weight of the error that is left after the best gain per sample; the rest asks for the scale too,
            which contrast and noise give away in part.
    """
    gain = gain_of(p.detach(), truth, inside)
    error = shape_share * (gain * p - truth).abs() + (1 - shape_share) * (p - truth).abs()
    likelihood = error * torch.exp(-log_spread) + log_spread
    return (inside * likelihood).sum() / inside.sum().clamp_min(1)


def _erode(x: torch.Tensor) -> torch.Tensor:
    """Minimum over a cross of five pixels."""
    tall = -F.max_pool2d(-x, (3, 1), 1, (1, 0))
    wide = -F.max_pool2d(-x, (1, 3), 1, (0, 1))
    return torch.minimum(tall, wide)


def _dilate(x: torch.Tensor) -> torch.Tensor:
    """Maximum over 3 x 3 pixels."""
    return F.max_pool2d(x, 3, 1, 1)
