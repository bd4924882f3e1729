# SPDX-License-Identifier: Apache-2.0
"""Epipolar consistency of contrast: how much of it lies between neighbouring epipolar planes must agree in two views.

The contrast between two planes through both sources is the sum of the line integral times the pixel area in either view
(Debbeler et al., Fully3D 2013; Aichert et al., IEEE TMI 2015;34:2205, in zeroth order). It needs no matching, no
centreline and no width, and so sees the offset across the planes where pieces are missing or radii are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.structures import VesselEvidence

#: Width of the bins between planes and standard deviation of their smoothing, mm at the isocentre.
BIN_MM, SMOOTH_MM = 0.5, 1.0
#: Pixels of a view that are looked at: the profile is smoother than what more of them would tell.
PIXELS = 2500


@dataclass(frozen=True)
class Contrast:
    """Contrast of one view: ``pixels`` ``(N, 2)`` (col, row) and ``mass`` ``(N,)``, which sums to one."""

    pixels: np.ndarray
    mass: np.ndarray


def contrast_of(evidence: VesselEvidence) -> Contrast | None:
    """Pixels with contrast, evenly thinned; None where no line integral is known."""
    rows, cols = np.nonzero(evidence.line_integral > 0)
    if not len(rows):
        return None
    # A slanted lattice thins evenly in both directions; with the slant of the step itself only columns would be left.
    step = max(1, len(rows) // PIXELS)
    keep = (cols + (7 if step % 7 else 5) * rows) % step == 0
    mass = evidence.line_integral[rows[keep], cols[keep]].astype(np.float64)
    return Contrast(np.stack([cols[keep], rows[keep]], 1).astype(np.float64), mass / mass.sum())


def disagreement(cameras: tuple[Camera, Camera], contrast: tuple[Contrast, Contrast]) -> float:
    """Share of the contrast on which the views disagree: 0 equal profiles, 1 nothing in common."""
    from scipy.ndimage import gaussian_filter1d

    pair = epipolar_pair(*cameras)
    reach_mm = 0.5 * (cameras[0].sod_mm + cameras[1].sod_mm)
    height = [
        reach_mm / BIN_MM * epipolar_angles(pair, camera, item.pixels)[0]
        for camera, item in zip(cameras, contrast, strict=True)
    ]
    margin = 4.0 * SMOOTH_MM / BIN_MM + 1.0
    low = min(h.min() for h in height) - margin
    count = int(max(h.max() for h in height) + margin - low) + 2
    difference = sum(
        sign * _profile(h - low, item.mass, count) for sign, h, item in zip((1, -1), height, contrast, strict=True)
    )
    return 0.5 * float(np.abs(gaussian_filter1d(difference, SMOOTH_MM / BIN_MM)).sum())


def _profile(position: np.ndarray, mass: np.ndarray, count: int) -> np.ndarray:
    """Histogram with linear shares, so that it changes smoothly with the cameras."""
    left = position.astype(int)
    share = position - left
    return np.bincount(left, mass * (1 - share), count) + np.bincount(left + 1, mass * share, count)
