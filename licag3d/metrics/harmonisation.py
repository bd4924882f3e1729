# SPDX-License-Identifier: Apache-2.0
"""What a change of style does to vessels, and how far apart two styles are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Centreline farther than this from the other one is lost or made up rather than moved, px.
MATCH_PX = 5.0
#: Rings of the spectrum that styles are compared by.
RINGS = 24


@dataclass(frozen=True)
class VesselShift:
    """``shift_px``: mean distance of matched centreline pixels, both ways, NaN without any; ``lost`` and ``made_up``:
    shares of the centreline before (after) without a counterpart within :data:`MATCH_PX`.
    """

    shift_px: float
    lost: float
    made_up: float


def vessel_shift(before: np.ndarray, after: np.ndarray) -> VesselShift:
    """How far vessels ``(rows, cols)`` bool moved between two versions of a frame.

    Example:
        >>> mask = np.zeros((40, 40), bool)
        >>> mask[18:23, 4:36] = True
        >>> moved = vessel_shift(mask, np.roll(mask, 2, 0))
        >>> moved.shift_px, moved.lost
        (2.0, 0.0)
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.morphology import skeletonize

    ours, theirs = skeletonize(before), skeletonize(after)
    if not ours.any() or not theirs.any():
        # Nothing there before and after is no shift; everything gone is all lost.
        return VesselShift(0.0 if ours.any() == theirs.any() else float("nan"), float(ours.any()), float(theirs.any()))
    there, back = distance_transform_edt(~theirs)[ours], distance_transform_edt(~ours)[theirs]
    near = [distance[distance <= MATCH_PX] for distance in (there, back)]
    means = [float(distance.mean()) for distance in near if len(distance)]
    shift = float(np.mean(means)) if means else float("nan")
    return VesselShift(shift, float((there > MATCH_PX).mean()), float((back > MATCH_PX).mean()))


def style_vector(image: np.ndarray) -> np.ndarray:
    """Quantiles of the grey values, and of the log spectrum by rings: what a display does, whatever it shows.

    Args:
        image: ``(rows, cols)`` in 0..1, at least 32 px; the border of a sixteenth is left out.
    """
    rows, cols = image.shape
    inner = image[rows // 16 : rows - rows // 16, cols // 16 : cols - cols // 16].astype(np.float64)
    side = min(inner.shape)
    part = inner[:side, :side]
    tone = np.quantile(inner, np.linspace(0.02, 0.98, RINGS))
    window = np.hanning(side)
    power = np.abs(np.fft.fft2((part - part.mean()) * window[:, None] * window)) ** 2
    at = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    ring = np.minimum((at / 0.5 * RINGS).astype(int), RINGS)
    sums, counts = np.bincount(ring.ravel(), power.ravel())[1:RINGS], np.bincount(ring.ravel())[1:RINGS]
    return np.concatenate((tone, 0.1 * np.log(sums / counts + 1e-8)))


def style_distance(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Distance of the mean styles of two sets of frames, root mean square over :func:`style_vector`."""
    a, b = (np.mean([style_vector(image) for image in images], 0) for images in (ours, theirs))
    return float(np.sqrt(np.mean((a - b) ** 2)))
