# SPDX-License-Identifier: Apache-2.0
"""Vessel radius from contrast: how much is met on the axis tells how thick the vessel is (videodensitometry).

The axis of a round vessel of radius r filled with attenuation mu meets ``p = 2 mu r``. Blur and noise spoil the edges,
from which profile fits read a width, but p hardly at all where a network estimates it; mu is one number per frame. On
phantom frames the radius scatters half as much as that of profile fits (docs/evidence.md).
"""

from __future__ import annotations

import numpy as np

#: Of p over twice the half width of the outline, median over the thickest third, to the true attenuation. Measured on
#: phantom validation frames.
OUTLINE_EXCESS = 0.97
#: Share of the outline in the mean (of logarithms) of both radii where the outline is resolved.
OUTLINE_SHARE = 0.75
#: Radii by contrast (px) from which the outline begins to count, and counts in full: that of thin vessels is too wide.
RESOLVED_PX = (1.0, 3.0)
#: How far (factor) a radius may be off its running median, and the length of that, px.
STEADY, STEADY_PX = 1.3, 31


def radius_from_contrast(mask: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, float]:
    """Radius of the vessel at every pixel of a mask.

    Args:
        mask: ``(rows, cols)`` bool. p: ``(rows, cols)`` line integral inside it, any unit.

    Returns:
        ``(rows, cols)`` float32 radius, px, of the nearest point of the centreline, zero off the mask; and the
        attenuation, unit of p per px (zero where there is nothing to measure).

    Example:
        >>> row = np.abs(np.arange(60.0)[:, None] - 30) * np.ones((1, 200))
        >>> p = 0.1 * np.sqrt(np.maximum(5.0**2 - row**2, 0))
        >>> radius, per_px = radius_from_contrast(p > 0, p)
        >>> round(float(radius[30, 100])), round(per_px, 2)
        (5, 0.05)
    """
    from scipy import ndimage

    from licag3d.models import skeleton_graph

    radius = np.zeros(mask.shape, np.float32)
    width = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    graph = skeleton_graph.build(mask)
    graph.join_through()
    chains = [graph.line(piece)[:, ::-1] for piece in graph.pieces]
    chains = [np.clip(np.rint(chain).astype(int), 0, np.array(mask.shape)[::-1] - 1) for chain in chains if len(chain)]
    if not chains:
        return radius, 0.0
    col, row = np.concatenate(chains).T
    half, met = width[row, col], p[row, col]
    thick = (half >= np.quantile(half, 0.67)) & (half > 0)
    per_px = float(np.median(met[thick] / (2 * half[thick]))) / OUTLINE_EXCESS if thick.any() else 0.0
    if per_px <= 1e-9:
        return radius, 0.0
    for chain in chains:
        col, row = chain.T
        radius[row, col] = np.maximum(radius[row, col], _steady(p[row, col] / (2 * per_px), width[row, col]))
    nearest = ndimage.distance_transform_edt(radius == 0, return_distances=False, return_indices=True)
    return np.where(mask, radius[tuple(nearest)], 0).astype(np.float32), per_px


def _steady(from_contrast: np.ndarray, from_outline: np.ndarray) -> np.ndarray:
    """Radius along a chain: both estimates together, without the jumps at crossings and ends."""
    from scipy import ndimage

    low, high = RESOLVED_PX
    share = OUTLINE_SHARE * np.clip((from_contrast - low) / (high - low), 0, 1)
    log = (1 - share) * np.log(np.maximum(from_contrast, 0.3)) + share * np.log(np.maximum(from_outline, 0.5))
    calm = ndimage.median_filter(log, min(STEADY_PX, len(log)), mode="nearest")
    return np.exp(ndimage.gaussian_filter1d(np.clip(log, calm - np.log(STEADY), calm + np.log(STEADY)), 2.0))
