# SPDX-License-Identifier: Apache-2.0
"""The scale that two views leave open, fixed by a stated assumption (docs/geometry.md, "What two views cannot
know")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera, scale_gauge
from licag3d.inversion.epipolar import epipolar_pair

#: How far a vessel tree lies from the isocentre of a view: one standard deviation, mm. Operators centre the tree in
#: every view before they turn the C-arm.
ISOCENTRE_SIGMA_MM = 15.0
#: Bounds of the standard deviation of a table shift, mm. A table is locked or moved: where the component that is seen
#: well is near zero, it was most likely locked (chosen on 40 validation cases with shifts of 0 to 8 mm: the share of
#: matched points within 1 mm of the truth, without any alignment, was 0.33 at 2 mm and 0.25 at 6 mm).
OFFSET_SIGMA_MM = (2.0, 25.0)


@dataclass(frozen=True)
class ScaleGauge:
    """``scale`` about ``center_lps_mm`` (the first source) takes the matched points to the fixed gauge; ``cameras`` go
    with it.

    ``sigma`` is the relative standard deviation of the scale under the assumption; ``reason`` says what fixed it.
    """

    scale: float
    center_lps_mm: np.ndarray
    cameras: tuple[Camera, ...]
    sigma: float
    reason: str

    def apply(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """Points ``(..., 3)`` in the fixed gauge."""
        return self.center_lps_mm + self.scale * (np.asarray(points_lps_mm) - self.center_lps_mm)


def fix_scale(cameras: Sequence[Camera], points_lps_mm: np.ndarray) -> ScaleGauge:
    """Choose the scale under which the tree lies nearest to the isocentres of all views and the offsets are small.

    Args:
        cameras: two or more views, offsets corrected up to the gauge; the first is the reference.
        points_lps_mm: ``(N, 3)`` matched points.
    """
    first = cameras[0]
    source = first.source_lps_mm
    low, high = np.percentile(points_lps_mm, [2, 98], axis=0)
    middle = 0.5 * (low + high)
    # Every term is linear in (scale - 1): value + (scale - 1) * slope, over its standard deviation.
    value, slope = [middle / ISOCENTRE_SIGMA_MM], [(middle - source) / ISOCENTRE_SIGMA_MM]
    for camera in cameras[1:]:
        offset, drift = np.asarray(camera.offset_lps_mm), -(camera.source_lps_mm - source)
        # One component of the shift is well known, the one across the epipolar planes. It tells whether the table moved
        # much or little: where it is small, the unknown component is likely small too.
        across = abs(float(offset @ epipolar_pair(first, camera).across))
        sigma = float(np.clip(1.5 * across, *OFFSET_SIGMA_MM))
        value += [(middle + offset) / ISOCENTRE_SIGMA_MM, offset / sigma]
        slope += [(middle - source + drift) / ISOCENTRE_SIGMA_MM, drift / sigma]
    value, slope = np.concatenate(value), np.concatenate(slope)
    scale = float(np.clip(1.0 - value @ slope / (slope @ slope), 0.7, 1.4))
    moved = [first, *(scale_gauge(first, camera, scale)[1] for camera in cameras[1:])]
    return ScaleGauge(scale, source, tuple(moved), float(1.0 / np.sqrt(slope @ slope)),
                      "the tree is taken to lie near the isocentres of the views, and table shifts to be small")
