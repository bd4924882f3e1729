# SPDX-License-Identifier: Apache-2.0
"""Which patches VasoMIM hides, and what it asks of their reconstruction.

Equations: Huang et al., arXiv 2508.10794 and 2602.11536. With G = eta B + (1 - eta) sigmoid(S(I)) (B binary vesselness,
S a frozen segmentor) the vascular distribution of the patches is f(i) = sum_j G_ij / sum_k sum_j G_kj. Of the
gamma N hidden patches a share beta is drawn by f without replacement, the rest uniformly; beta rises from 0 to 0.5 over
training. The loss is the error of the hidden patches plus the cross entropy of S(I') and S(I), where I' has its visible
patches pasted back: the decoder is never trained on them, so what it draws there means nothing to S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from licag3d.models.vit import patchify, unpatchify


@dataclass(frozen=True)
class MaskedLosses:
    """Terms of one step, scalars: ``reconstruction`` (no unit), ``consistency`` (nat per pixel, 0 without)."""

    reconstruction: Tensor
    consistency: Tensor

    @property
    def total(self) -> Tensor:
        """Both with weight one, as published."""
        return self.reconstruction + self.consistency


def guided_share(step: int, steps: int, first: float = 0.0, last: float = 0.5) -> float:
    """beta of a step: rises linearly from ``first`` to ``last`` over ``steps``."""
    return first + (last - first) * min(max(step / max(steps - 1, 1), 0.0), 1.0)


def guidance_map(vesselness: Tensor, logits: Tensor | None = None, eta: float = 0.5) -> Tensor:
    """G = eta B + (1 - eta) sigmoid(S(I)); B alone where there is no segmentor.

    Args:
        vesselness: B, ``(n, 1, h, w)`` in 0..1.
        logits: S(I), same shape, or None.
        eta: weight of B.
    """
    return vesselness if logits is None else eta * vesselness + (1 - eta) * torch.sigmoid(logits.float())


def vascular_distribution(guidance: Tensor, patch_px: int) -> Tensor:
    """f ``(n, patches)``, each row of sum 1; all zeros where the image has no guidance."""
    mass = patchify(guidance.float(), patch_px).sum(-1)
    return mass / mass.sum(1, keepdim=True).clamp_min(1e-12)


def draw_mask(distribution: Tensor, *, hidden: int, beta: float, generator: torch.Generator | None = None) -> Tensor:
    """Choose ``hidden`` patches per image at once: floor(beta hidden) by the distribution, the rest uniformly.

    Drawing k items without replacement with probabilities f is taking the k largest of log f plus Gumbel noise (Yellott
    1977; Vieira 2014), which needs no loop. Every image loses exactly ``hidden`` patches; one with fewer vessel patches
    than asked for gives all of them, and one without any is masked at random.

    Args:
        distribution: ``(n, patches)``, not negative; see :func:`vascular_distribution`.
        hidden: number of hidden patches, gamma N.
        beta: share of them that follows the distribution.

    Returns:
        ``(n, patches)`` bool, True where hidden.

    Example:
        >>> import torch
        >>> f = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
        >>> draw_mask(f, hidden=2, beta=0.5)[0, 2].item(), int(draw_mask(f, hidden=2, beta=0.5).sum())
        (True, 2)
    """
    n, count = distribution.shape
    if not 0 <= hidden <= count or not 0 <= beta <= 1:
        raise ValueError(f"hidden {hidden} of {count} patches with beta {beta}: out of range")
    device = distribution.device
    uniform = torch.rand(2, n, count, generator=generator, device=device).clamp_(1e-20, 1 - 1e-7)
    gumbel = -torch.log(-torch.log(uniform[0]))
    guided = int(beta * hidden + 1e-9)
    keys = torch.where(distribution > 0, torch.log(distribution) + gumbel, -torch.inf)
    chosen = torch.zeros(n, count, dtype=torch.bool, device=device)
    if guided:
        value, index = keys.topk(guided, dim=1)
        chosen.scatter_(1, index, torch.isfinite(value))
    # Chosen patches go before all uniform keys, which are below one.
    return torch.zeros_like(chosen).scatter_(1, (uniform[1] + 2.0 * chosen).topk(hidden, dim=1).indices, True)


#: Keeps the collimator border from becoming pure noise: a quarter of an 8-bit grey value.
SPREAD_FLOOR = 1e-3


def vessel_share(vesselness: Tensor, mask: Tensor, patch_px: int, least: float = 0.05) -> Tensor:
    """Share of vessel patches among the hidden ones, a scalar.

    A vessel patch has at least ``least`` of its pixels in ``vesselness`` ``(n, 1, h, w)``.
    """
    vessel = patchify(vesselness.float(), patch_px).mean(-1) >= least
    return (vessel & mask).sum() / mask.sum().clamp_min(1)


def normalise_patches(patches: Tensor, floor: float = SPREAD_FLOOR) -> tuple[Tensor, Tensor, Tensor]:
    """Patches with mean 0 and variance 1 each, and that mean and standard deviation (He et al. 2022).

    ``floor`` is added to the standard deviation (in squares): flat patches, whose pattern is mostly quantum noise, then
    weigh less than vessels.
    """
    mean = patches.mean(-1, keepdim=True)
    spread = (patches.var(-1, keepdim=True) + floor**2).sqrt()
    return (patches - mean) / spread, mean, spread


def paste_visible(
    predicted: Tensor,
    images: Tensor,
    mask: Tensor,
    patch_px: int,
    *,
    normalised: bool = True,
    floor: float = SPREAD_FLOOR,
) -> Tensor:
    """I': the image with its hidden patches replaced by predictions and its visible ones untouched.

    Args:
        predicted: ``(n, patches, patch_px ** 2)``; in units of their own mean and spread where ``normalised`` (these
            are taken from the true patch: right for training, a leak for pictures).
        images: ``(n, 1, h, w)``.
        mask: ``(n, patches)`` bool, True where hidden.
    """
    true = patchify(images, patch_px)
    if normalised:
        _, mean, spread = normalise_patches(true, floor)
        predicted = predicted * spread + mean
    return unpatchify(torch.where(mask[..., None], predicted, true), patch_px, images.shape[-2] // patch_px)


def reconstruction_loss(
    predicted: Tensor,
    images: Tensor,
    mask: Tensor,
    patch_px: int,
    *,
    normalised: bool = True,
    floor: float = SPREAD_FLOOR,
) -> Tensor:
    """Mean squared error over the pixels of the hidden patches."""
    target = patchify(images, patch_px)
    if normalised:
        target = normalise_patches(target, floor)[0]
    error = (predicted.float() - target).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp_min(1)


def consistency_loss(segmentor: Callable[[Tensor], Tensor], pasted: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of S(I') against the soft target sigmoid(S(I)), nat per pixel; gradients reach I' alone.

    Args:
        segmentor: frozen, image ``(n, 1, h, w)`` to logits of the same shape.
        pasted: I' of :func:`paste_visible`.
        wanted: S(I), logits ``(n, 1, h, w)``.
    """
    return F.binary_cross_entropy_with_logits(segmentor(pasted).float(), torch.sigmoid(wanted.float()).detach())


def masked_losses(
    predicted: Tensor,
    images: Tensor,
    mask: Tensor,
    patch_px: int,
    *,
    segmentor: Callable[[Tensor], Tensor] | None = None,
    wanted: Tensor | None = None,
    normalised: bool = True,
    floor: float = SPREAD_FLOOR,
) -> MaskedLosses:
    """Both losses of a step; without a segmentor the consistency is zero (plain MAE)."""
    reconstruction = reconstruction_loss(predicted, images, mask, patch_px, normalised=normalised, floor=floor)
    if segmentor is None:
        return MaskedLosses(reconstruction, torch.zeros((), device=images.device))
    pasted = paste_visible(predicted.float(), images, mask, patch_px, normalised=normalised, floor=floor)
    return MaskedLosses(reconstruction, consistency_loss(segmentor, pasted, wanted))


class TinySegmentor(nn.Module):
    """S: a small convolutional segmentor (0.12 M), image ``(n, 1, h, w)`` in 0..1 to vessel logits of the same shape.

    Its first step folds 2 x 2 pixels into channels, so that no convolution runs at full resolution: S runs twice per
    training step. Sides must be multiples of 8.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        w1, w2, w3 = width, 2 * width, 4 * width
        self.enter = _pair(4, w1)
        self.down1, self.down2 = _pair(w1, w2, stride=2), _pair(w2, w3, stride=2)
        self.up2, self.up1 = _pair(w3 + w2, w2), _pair(w2 + w1, w1)
        self.leave = nn.Conv2d(w1, 4, 1)
        nn.init.constant_(self.leave.bias, -2.0)  # vessels are few

    def forward(self, images: Tensor) -> Tensor:
        x = F.pixel_unshuffle((images - 0.5) * 4, 2).contiguous(memory_format=torch.channels_last)
        a = self.enter(x)
        b = self.down1(a)
        c = self.down2(b)
        b = self.up2(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        a = self.up1(torch.cat([F.interpolate(b, scale_factor=2), a], 1))
        return F.pixel_shuffle(self.leave(a), 2)


def _pair(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Half cross entropy, half one minus the soft Dice of each image; ``target`` in 0..1."""
    logits = logits.float()
    probability = torch.sigmoid(logits)
    overlap = (probability * target).flatten(1).sum(1)
    total = probability.flatten(1).sum(1) + target.flatten(1).sum(1)
    dice = (2 * overlap + 1) / (total + 1)
    return 0.5 * F.binary_cross_entropy_with_logits(logits, target) + 0.5 * (1 - dice.mean())
