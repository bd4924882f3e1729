# SPDX-License-Identifier: Apache-2.0
"""Adversarial losses, and augmentation that knows the camera."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def generator_loss(on_fakes: torch.Tensor) -> torch.Tensor:
    """Non-saturating logistic loss ``softplus(-D(G(z)))`` (Goodfellow et al., NeurIPS 2014)."""
    return F.softplus(-on_fakes).mean()


def discriminator_loss(on_real: torch.Tensor, on_fakes: torch.Tensor) -> torch.Tensor:
    """Logistic loss ``softplus(D(G(z))) + softplus(-D(x))``."""
    return F.softplus(on_fakes).mean() + F.softplus(-on_real).mean()


def r1_penalty(on_real: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """``|grad_x D(x)|^2`` summed over an item, mean over items (Mescheder et al., ICML 2018).

    ``real`` needs a gradient.

    Times gamma / 2 it is the R1 term. Lazily, every k steps, it is also times k (Karras et al., CVPR 2020, section
    3.1), and the optimiser's betas take the power ``k / (k + 1)``: :func:`lazy_factor`.
    """
    (gradient,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def lazy_factor(every: int) -> float:
    """``k / (k + 1)`` for a regulariser that runs every k steps.

    Example:
        >>> lazy_factor(4)
        0.8
    """
    return every / (every + 1)


def augment(images: torch.Tensor, camera: torch.Tensor, chance: torch.Tensor | float, *, rotate_deg: float = 20.0,
            shift: float = 0.1, scale: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Rotate, shift and scale line-integral images, and write it into their camera labels.

    The label tells what was done, so a discriminator that reads it never takes a turned picture for the truth of
    another view. Anatomy is never mirrored: a mirrored coronary tree is no coronary tree. Outside the image the line
    integral is zero, as beside the vessels.

    Args:
        images: ``(B, V, H, W)``. camera: ``(B, V, K)`` whose last four numbers are rotation in degrees / 20, shift of
            columns and rows in images / 0.1, and log2 of the scale / 0.2: those of the image as it comes in.
        chance: probability of each of the three, 0..1.

    Returns:
        Images and labels of the same shapes.
    """
    batch, views = images.shape[:2]
    like = {"device": images.device, "dtype": torch.float32}

    def draw(count: int, size: float) -> torch.Tensor:
        on = (torch.rand(batch, views, 1, **like) < chance).float()
        return on * (2 * torch.rand(batch, views, count, **like) - 1) * size

    angle, move, zoom = draw(1, rotate_deg), draw(2, shift), draw(1, scale)
    turn, factor = angle[..., 0] * (math.pi / 180), torch.exp2(-zoom[..., 0])
    cos, sin = torch.cos(turn) * factor, torch.sin(turn) * factor
    # grid_sample asks where a pixel of the result comes from; image coordinates run from -1 to 1.
    matrix = torch.stack(
        [torch.stack([cos, sin, -2 * move[..., 0]], -1), torch.stack([-sin, cos, -2 * move[..., 1]], -1)], -2
    ).flatten(0, 1)
    flat = images.flatten(0, 1)[:, None]
    grid = F.affine_grid(matrix, list(flat.shape), align_corners=False).to(flat.dtype)
    out = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    done = torch.cat([angle / 20, move / 0.1, zoom / 0.2], -1)
    label = torch.cat([camera[..., :-4], camera[..., -4:] + done], -1)
    return out[:, 0].unflatten(0, (batch, views)), label


def adapted_chance(chance: torch.Tensor, on_real: torch.Tensor, *, target: float = 0.6, images: float = 50_000):
    """The next augmentation probability (Karras et al., NeurIPS 2020, section 3): up when the discriminator is surer of
    real images than ``target`` (mean sign of its output), down when less; from 0 to 1 in ``images`` images.
    """
    step = on_real.shape[0] / images
    return (chance + step * torch.sign(on_real.detach().float().sign().mean() - target)).clamp(0.0, 0.8)
