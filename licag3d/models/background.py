# SPDX-License-Identifier: Apache-2.0
"""Grey values to something proportional to attenuation, and the image as it would be without vessels."""

from __future__ import annotations

import numpy as np


def attenuation_image(image: np.ndarray, intensity: str) -> np.ndarray:
    """An image that rises with the line integral, vessels bright: ``-log`` of the detected intensity.

    Beer-Lambert: a vessel adds its own line integral p to ``-log(I)``, whatever lies behind it, so vessel and
    background separate by subtraction. ``log`` images have that already.

    ``display`` values are monotone in the intensity but otherwise unknown, anything from linear to logarithmic with a
    window, where black is not zero intensity. ``-log(grey + median grey)`` lies between: its slope falls by about three
    from black to white, where the true slope would be constant (logarithmic display) or fall without bound (linear).
    Measured against both ends in docs/evidence.md.

    Args:
        image: ``(rows, cols)`` in 0..1, vessels dark.
        intensity: ``display``, ``linear`` or ``log``.
    """
    image = np.asarray(image, np.float32)
    if intensity == "log":
        return -image
    middle = max(float(np.median(image)), 1e-3)
    if intensity == "linear":
        # A floor, so that the logarithm of black pixels (border, clipped spine) does not outweigh the picture.
        return -np.log(np.maximum(image, 0.02 * middle)).astype(np.float32)
    return -np.log(np.maximum(image, 0.0) + middle).astype(np.float32)


def fill_smooth(image: np.ndarray, known: np.ndarray, *, relax: int = 12) -> np.ndarray:
    """Continue ``image`` smoothly over the pixels that are not ``known`` (both ``(rows, cols)``).

    Averages of the known pixels on ever coarser grids, refined from coarse to fine ("pull-push"), then relaxed towards
    the Laplace equation on the unknown pixels.
    """
    from scipy import ndimage

    known = np.asarray(known, bool)
    image = np.asarray(image, np.float32)
    if known.all():
        return image.copy()
    if not known.any():
        return np.zeros_like(image)
    levels = [(np.where(known, image, 0.0).astype(np.float32), known.astype(np.float32))]
    while min(levels[-1][0].shape) > 1 and (levels[-1][1] <= 0).any():
        levels.append(tuple(_halve(x) for x in levels[-1]))
    total, weight = levels[-1]
    mean = float(total.sum() / max(weight.sum(), 1e-9))
    filled = np.where(weight > 0, total / np.maximum(weight, 1e-9), mean)
    for total, weight in reversed(levels[:-1]):
        coarse = _double(filled, total.shape)
        # Full trust in a fully known cell, shared trust where only a corner of it is known.
        share = np.clip(2.0 * weight, 0.0, 1.0)
        filled = share * total / np.maximum(weight, 1e-9) + (1.0 - share) * coarse
        unknown = weight < 0.5
        for _ in range(relax):
            filled = np.where(unknown, ndimage.uniform_filter(filled, 3, mode="nearest"), filled)
    return np.where(known, image, filled).astype(np.float32)


def _halve(x: np.ndarray) -> np.ndarray:
    rows, cols = x.shape
    x = np.pad(x, ((0, rows % 2), (0, cols % 2)))
    return 0.25 * (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2])


def _double(x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    from scipy import ndimage

    grid = [np.clip((np.arange(n) + 0.5) / 2 - 0.5, 0, m - 1) for n, m in zip(shape, x.shape, strict=True)]
    return ndimage.map_coordinates(x, np.meshgrid(*grid, indexing="ij"), order=1, mode="nearest").astype(np.float32)


def masked_gaussian(image: np.ndarray, known: np.ndarray, sigma_px: float) -> np.ndarray:
    """Gaussian smoothing that sees the known pixels only (normalised convolution); unknown pixels far away become 0."""
    from scipy import ndimage

    weight = known.astype(np.float32)
    top = ndimage.gaussian_filter(np.where(known, image, 0).astype(np.float32), sigma_px, mode="nearest")
    bottom = ndimage.gaussian_filter(weight, sigma_px, mode="nearest")
    return np.where(bottom > 1e-3, top / np.maximum(bottom, 1e-3), 0).astype(np.float32)


def background_under(image: np.ndarray, vessels: np.ndarray, valid: np.ndarray, *, sigma_px: float = 1.5) -> np.ndarray:
    """What the attenuation image would show without the vessels: interpolated from both sides across them.

    Args:
        image: ``(rows, cols)`` from :func:`attenuation_image`.
        vessels: bool, generous (it should include the blur of the vessel edge).
        valid: bool, the X-ray field.
    """
    known = valid & ~vessels
    # The pixels beside a vessel carry its whole background: their noise is averaged first.
    return fill_smooth(masked_gaussian(image, known, sigma_px), known)
