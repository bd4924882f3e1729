# SPDX-License-Identifier: Apache-2.0
"""Ridge filter of Sato et al. (Medical Image Analysis 1998) in torch, for many frames at once, and a rough vessel mask
from it.

The mask is a prior for pre-training, weak and quick; :mod:`licag3d.models.vessel_evidence` is the one to measure with.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: Half widths of vessels in pixels of a frame of 256 pixels.
SIGMAS_PX = (1.0, 1.6, 2.4, 3.6)
#: The brightest share of the ridge pixels that counts as vessel, and the share that seeds a component.
VESSEL_SHARE, SEED_SHARE = 0.08, 0.03


def sato(images: Tensor, sigmas: tuple[float, ...] = SIGMAS_PX) -> Tensor:
    """Strength of dark ridges ``(n, 1, h, w)``: the largest eigenvalue of the scale-normalised Hessian, not below zero,
    at the best of ``sigmas`` (px).

    The Hessian is taken by derivatives of sampled Gaussians, separable; eigenvalues in closed form.

    Example:
        >>> import torch
        >>> image = torch.ones(1, 1, 32, 32)
        >>> image[..., 15:17] = 0
        >>> strength = sato(image)
        >>> bool(strength[0, 0, 16, 15] > 10 * strength[0, 0, 16, 4])
        True
    """
    best = None
    for sigma in sigmas:
        rr, rc, cc = _hessian(images, sigma)
        half = torch.sqrt(((rr - cc) / 2).square() + rc.square())
        value = sigma**2 * ((rr + cc) / 2 + half).clamp_min(0)
        best = value if best is None else torch.maximum(best, value)
    return best


def _hessian(images: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    reach = int(math.ceil(4 * sigma))
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    plain = torch.exp(-0.5 * (at / sigma) ** 2)
    plain = plain / plain.sum()
    first = -at / sigma**2 * plain
    second = (at**2 / sigma**4 - 1 / sigma**2) * plain
    # Sampling leaves a small response to flat areas and a slightly wrong gain; both are put right.
    second = second - second.mean()
    second = second * (2 / (second * at**2).sum())
    first = first * (-1 / (first * at).sum())
    kernels = [k.to(images.dtype).to(images.device) for k in (plain, first, second)]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    along = [F.conv2d(padded, k.view(1, 1, -1, 1)) for k in kernels]
    rr = F.conv2d(along[2], kernels[0].view(1, 1, 1, -1))
    rc = F.conv2d(along[1], kernels[1].view(1, 1, 1, -1))
    cc = F.conv2d(along[0], kernels[2].view(1, 1, 1, -1))
    return rr, rc, cc


def rough_vessel_mask(
    image: np.ndarray,
    *,
    share: float = VESSEL_SHARE,
    seed_share: float = SEED_SHARE,
    border: float = 0.03,
    smallest: float = 0.0015,
) -> np.ndarray:
    """A weak vessel mask ``(rows, cols)`` bool of one frame, by Sato's filter, hysteresis and size of components.

    Contrast is taken relative to the local brightness, so that vessels over the spine count like those over the lung;
    the collimator border is left out. All large components stay: keeping only the one that holds the strongest pixel
    loses half a tree at the first gap, or keeps the catheter alone.

    Args:
        image: ``(rows, cols)`` uint8 or float in 0..1, vessels dark; filtered at its own size (256 pixels suit the
            default widths).
        share: share of the pixels inside the field that may be vessel.
        seed_share: share of the pixels strong enough to start a component.
        border: rim left out, in image sides.
        smallest: least size of a component, in image areas.

    Example:
        >>> import numpy as np
        >>> image = np.full((128, 128), 0.8, np.float32)
        >>> image[:, 60:64] = 0.4
        >>> mask = rough_vessel_mask(image)
        >>> bool(mask[64, 61]), bool(mask[64, 20])
        (True, False)
    """
    from scipy import ndimage

    from licag3d.io.collimator import valid_area

    grey = image.astype(np.float32) / (255.0 if image.dtype == np.uint8 else 1.0)
    rows, cols = grey.shape
    rim = max(2, round(border * min(rows, cols)))
    # Border and brightness have no detail: a quarter of the pixels is enough for them.
    half = grey[::2, ::2]
    field = valid_area(half).repeat(2, 0).repeat(2, 1)[:rows, :cols]
    inside = ndimage.binary_erosion(field, iterations=rim, border_value=0)
    if inside.mean() < 0.05:
        return np.zeros(grey.shape, bool)
    level = ndimage.gaussian_filter(half, min(half.shape) / 16).repeat(2, 0).repeat(2, 1)[:rows, :cols]
    strength = sato(torch.from_numpy(grey / (level + 0.05))[None, None])[0, 0].numpy() * inside
    values = strength[inside]
    low, high = np.quantile(values, (1 - share, 1 - seed_share))
    if high <= 1e-4:  # a blank frame
        return np.zeros(grey.shape, bool)
    labels, count = ndimage.label(strength > max(low, 1e-4), np.ones((3, 3), int))
    if not count:
        return np.zeros(grey.shape, bool)
    size = np.bincount(labels.ravel(), minlength=count + 1)
    strong = np.bincount(labels[strength > high], minlength=count + 1) > 0
    keep = strong & (size >= smallest * grey.size)
    keep[0] = False
    return keep[labels]
