# SPDX-License-Identifier: Apache-2.0
"""Smooth curves in space that stay on both image centrelines.

A matched place is well known across the planes of ray and image tangent of both views, and badly known along
directions that lie in both planes: where the vessel runs within the epipolar plane, its depth is open. Smoothing
therefore weighs each place by these two planes and lets bending decide the rest.
"""

from __future__ import annotations

import numpy as np

#: Standard deviation of an image centreline, mm at the isocentre.
CENTRELINE_SIGMA_MM = 0.3
#: Coronary arteries bend with radii of about 1 / BEND_PER_MM mm, over stretches of BEND_LENGTH_MM.
BEND_PER_MM = 0.12
BEND_LENGTH_MM = 4.0
#: How far matched places may slide along the curve, as a share of the weight across it.
SLIDE_SHARE = 0.02


def smooth_curve(
    points_mm: np.ndarray, normals: tuple[np.ndarray, np.ndarray], step_mm: np.ndarray, *, rounds: int = 3
) -> np.ndarray:
    """Least-squares curve: residuals across both planes, plus bending; places that do not fit lose weight (Cauchy).

    Args:
        points_mm: ``(n, 3)`` matched places in order.
        normals: per view ``(n, 3)`` unit normal of the plane of ray and image tangent; zero where not known.
        step_mm: ``(n,)`` arc length from the previous point in the image.

    Returns:
        ``(n, 3)``.
    """
    from scipy.linalg import solveh_banded

    count = len(points_mm)
    if count < 4:
        return points_mm.copy()
    rough = local_lines(points_mm, np.cumsum(step_mm), 1.5)
    gap = np.maximum(np.linalg.norm(np.diff(rough, axis=0), axis=1), 0.5 * np.maximum(step_mm[1:], 0.1))
    bend = _bending(gap)
    across = sum(n[:, :, None] * n[:, None, :] for n in normals) + SLIDE_SHARE * np.eye(3)
    curve, trust = rough, np.ones(count)
    for _ in range(rounds):
        information = (trust / CENTRELINE_SIGMA_MM**2)[:, None, None] * across
        right = np.einsum("nij,nj->ni", information, points_mm)
        curve = solveh_banded(_bands(information, bend), right.ravel(), lower=True).reshape(count, 3)
        miss = sum(np.einsum("ni,ni->n", n, curve - points_mm) ** 2 for n in normals)
        slide = SLIDE_SHARE * ((curve - points_mm) ** 2).sum(1)
        trust = 1.0 / (1.0 + (miss + slide) / (2 * CENTRELINE_SIGMA_MM) ** 2)
    return curve


def local_lines(points: np.ndarray, arc: np.ndarray, sigma_mm: float) -> np.ndarray:
    """Local linear regression along the arc: smooths without shrinking ends or bends toward the chord."""
    lag = arc[:, None] - arc[None, :]
    weight = np.exp(-0.5 * (lag / max(sigma_mm, 1e-3)) ** 2)
    total = weight.sum(1)
    mean = (weight * -lag).sum(1) / total
    spread = (weight * lag**2).sum(1) / total - mean**2
    value = weight @ points / total[:, None]
    cross = (weight * -lag) @ points / total[:, None] - mean[:, None] * value
    return value - np.where(spread > 1e-9, mean / np.maximum(spread, 1e-9), 0.0)[:, None] * cross


def _bending(gap: np.ndarray) -> np.ndarray:
    """``(n, 3)`` lower bands of the matrix of the bending energy (one coordinate), for spacings ``gap`` ``(n -
    1,)``."""
    count = len(gap) + 1
    half = 0.5 * (gap[:-1] + gap[1:])
    # Second derivative at inner points: coefficients of the point before, the point, and the point after.
    stencil = np.stack([1 / gap[:-1], -(1 / gap[:-1] + 1 / gap[1:]), 1 / gap[1:]], axis=1) / half[:, None]
    weight = half / (BEND_LENGTH_MM * BEND_PER_MM**2)
    bands = np.zeros((count, 3))
    for i in range(3):
        for j in range(i, 3):
            bands[i:i + count - 2, j - i] += weight * stencil[:, i] * stencil[:, j]
    return bands


def _bands(information: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Lower banded form (rows = offset 0..6) of the block matrix with 3 coordinates per point."""
    count = len(information)
    bands = np.zeros((7, 3 * count))
    for axis in range(3):
        for offset in range(3):
            bands[3 * offset, axis::3][:count - offset] += bend[:count - offset, offset]
        for other in range(axis, 3):
            bands[other - axis, axis::3] += information[:, other, axis]
    return bands
