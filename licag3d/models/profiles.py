# SPDX-License-Identifier: Apache-2.0
"""Cross profiles of a vessel: half width, middle and depth of contrast by fitting the blurred chord of a round tube."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

STEP_PX = 0.5
SHIFTS = np.arange(-1.5, 1.51, 0.5)


@dataclass(frozen=True)
class ProfileFit:
    """Per point ``(N,)``: radius px, shift along the normal px, contrast at the centre, share of variance explained."""

    radius_px: np.ndarray
    shift_px: np.ndarray
    contrast: np.ndarray
    explained: np.ndarray


def chord_profile(t: np.ndarray, radius_px: float, blur_px: float) -> np.ndarray:
    """Chord of a circle of ``radius_px`` at offsets ``t`` over its diameter, blurred by a Gaussian and the pixel.

    A tube of uniform contrast shows the line integral ``2 mu sqrt(r^2 - t^2)`` across; one at the centre before blur.
    """
    fine = np.linspace(-1.0, 1.0, 65)
    chord = np.sqrt(np.maximum(1 - fine**2, 0))
    # The pixel aperture adds the variance of a unit square, 1/12 px^2; linear interpolation 1/6 px^2 on average.
    sigma = np.sqrt(blur_px**2 + 1 / 12 + 1 / 6)
    weight = chord * (fine[1] - fine[0]) * radius_px / (sigma * np.sqrt(2 * np.pi))
    return (weight * np.exp(-0.5 * ((t[:, None] - radius_px * fine) / sigma) ** 2)).sum(1)


def fit_profiles(image: np.ndarray, points: np.ndarray, tangent: np.ndarray, first_radius_px: np.ndarray, *,
                 blur_px: float, smooth_along: float = 2.0) -> ProfileFit:
    """Fit ``background + slope t + contrast chord(t - shift; radius)`` to the profile across every point.

    Exhaustive over radius (0.45 to 2.2 of the first guess) and shift, linear least squares for the rest, so there is no
    starting value to go wrong. Profiles are averaged along the chain first.

    Args:
        image: ``(rows, cols)``, vessels bright. points: ``(N, 2)`` (col, row), an ordered chain. tangent: ``(N, 2)``.
        first_radius_px: ``(N,)`` radius of the filter scale.
        blur_px: standard deviation of the image blur.
    """
    from scipy import ndimage

    count = len(points)
    reach = 2.1 * float(first_radius_px.max()) + 3.0
    t = np.arange(-np.ceil(reach / STEP_PX), np.ceil(reach / STEP_PX) + 1) * STEP_PX
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    at = points[:, None] + t[None, :, None] * normal[:, None]
    profile = ndimage.map_coordinates(image, [at[..., 1], at[..., 0]], order=1, mode="nearest")
    if count > 3:
        profile = ndimage.gaussian_filter1d(profile, smooth_along, axis=0, mode="nearest")
    out = np.zeros((4, count))
    for first in np.unique(first_radius_px):
        rows = np.flatnonzero(first_radius_px == first)
        out[:, rows] = _fit_group(profile[rows], t, float(first), blur_px)
    return ProfileFit(*out)


@lru_cache(maxsize=64)
def _bank(first: float, blur_px: float):
    """Offsets, weights and orthonormal bases of every (radius, shift) around a first radius."""
    half = np.ceil((2.1 * first + 2.5) / STEP_PX)
    t = np.arange(-half, half + 1) * STEP_PX
    # Farther samples belong to the neighbours as likely as to this vessel.
    weight = np.sqrt(np.exp(-0.5 * (t / (1.4 * first + 2.0)) ** 2))
    radii = np.geomspace(max(0.5, 0.45 * first), 2.2 * first, 20)
    shapes = np.stack([np.stack([chord_profile(t - s, r, blur_px) for s in SHIFTS]) for r in radii])
    basis = np.stack([np.broadcast_to(np.ones_like(t), shapes.shape), np.broadcast_to(t, shapes.shape), shapes], -1)
    q, r_factor = np.linalg.qr(basis * weight[:, None])
    return t, weight, radii, q, r_factor[..., 2, 2]


def _fit_group(profile, t, first, blur_px):
    bank_t, weight, radii, q, pivot = _bank(first, blur_px)
    start = int(round((bank_t[0] - t[0]) / STEP_PX))
    profile = profile[:, start:start + len(bank_t)]
    y = profile * weight
    flat = y - (y @ weight)[:, None] / (weight @ weight) * weight
    coefficient = np.tensordot(y, q, axes=([1], [2]))
    left = (y**2).sum(1)[:, None, None] - (coefficient**2).sum(-1)
    depth = coefficient[..., 2] / pivot
    left = np.where(depth > 0, left, np.inf)
    which = left.reshape(len(y), -1).argmin(1)
    i, j = np.unravel_index(which, left.shape[1:])
    row = np.arange(len(y))
    radius = _parabola(np.log(radii), left[row, :, j], i)
    residual = left[row, i, j]
    valid = np.isfinite(residual)
    explained = np.where(valid, 1 - np.where(valid, residual, 0) / np.maximum((flat**2).sum(1), 1e-12), 0.0)
    return np.stack([np.where(valid, np.exp(radius), first), np.where(valid, SHIFTS[j], 0.0),
                     np.where(valid, depth[row, i, j], 0.0), np.clip(explained, 0, 1)])


def _parabola(x, values, index):
    """Minimum of the parabola through the best sample and its neighbours (even spacing)."""
    row = np.arange(len(index))
    inner = (index > 0) & (index < len(x) - 1)
    k = np.clip(index, 1, len(x) - 2)
    a, b, c = values[row, k - 1], values[row, k], values[row, k + 1]
    with np.errstate(invalid="ignore"):
        curve = a - 2 * b + c
        usable = inner & np.isfinite(curve) & (curve > 1e-12)
        move = np.where(usable, 0.5 * (a - c) / np.where(usable, curve, 1), 0)
    return x[index] + np.clip(np.nan_to_num(move), -1, 1) * (x[1] - x[0])
