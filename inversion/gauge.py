# SPDX-License-Identifier: Apache-2.0
"""The scale that views with unknown table offsets leave open, however many they are: fixed by a stated assumption, and
by a catheter where one is seen (docs/geometry.md, "What two views cannot tell")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera, scale_gauge
from licag3d.inversion.catheter import Ruler
from licag3d.inversion.epipolar import epipolar_pair

#: What a catheter says about the scale of points under cameras; None where it cannot be seen.
Ruling = Callable[[Sequence[Camera], np.ndarray], Ruler | None]

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

    ``sigma`` is the relative standard deviation of the scale under the assumption; ``reason`` says what fixed it;
    ``warnings``: one sentence each.
    """

    scale: float
    center_lps_mm: np.ndarray
    cameras: tuple[Camera, ...]
    sigma: float
    reason: str
    warnings: tuple[str, ...] = ()

    def apply(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """Points ``(..., 3)`` in the fixed gauge."""
        return self.center_lps_mm + self.scale * (np.asarray(points_lps_mm) - self.center_lps_mm)


#: A catheter and the isocentre that differ by more than this many standard deviations are not averaged.
CONTRADICTION = 2.5


def fix_scale(
    cameras: Sequence[Camera],
    points_lps_mm: np.ndarray,
    ruler: Ruling | None = None,
) -> ScaleGauge:
    """Choose the scale under which the tree lies nearest to the isocentres of all views and the offsets are small.

    Scaling object and sources about the first source leaves every image as it is, whatever the number of views (each
    further offset t_k becomes s t_k + (1 - s)(S_k - S_1)). Further views help only by their isocentres, and where two
    of them share one table position.

    Args:
        cameras: two or more views, offsets corrected up to the gauge; the first is the reference.
        points_lps_mm: ``(N, 3)`` matched points.
        ruler: what a catheter of known calibre says (:func:`licag3d.inversion.catheter.catheter_scale` with all but
            cameras and points filled in). It is averaged with the assumption, each by its precision; where they
            contradict each other the catheter, being seen, decides.
    """
    first = cameras[0]
    source = first.source_lps_mm
    low, high = np.percentile(points_lps_mm, [2, 98], axis=0)
    middle = 0.5 * (low + high)
    # Every term is linear in (scale - 1): value + (scale - 1) * slope, over its standard deviation.
    value, slope = [middle / ISOCENTRE_SIGMA_MM], [(middle - source) / ISOCENTRE_SIGMA_MM]
    for k, camera in enumerate(cameras[1:], 1):
        offset, drift = np.asarray(camera.offset_lps_mm), -(camera.source_lps_mm - source)
        value.append((middle + offset) / ISOCENTRE_SIGMA_MM)
        slope.append((middle - source + drift) / ISOCENTRE_SIGMA_MM)
        # One component of a shift is well known, the one across the epipolar planes. It tells whether the table moved
        # much or little: where it is small, the unknown component is likely small too. Of all earlier views, the one
        # that most likely was taken at the same table position speaks.
        shifts = []
        for other in cameras[:k]:
            shift = offset - np.asarray(other.offset_lps_mm)
            across = abs(float(shift @ epipolar_pair(other, camera).across))
            sigma = float(np.clip(1.5 * across, *OFFSET_SIGMA_MM))
            shifts.append((sigma, shift, other.source_lps_mm - camera.source_lps_mm))
        sigma, shift, drift = min(shifts, key=lambda item: item[0])
        value.append(shift / sigma)
        slope.append(drift / sigma)
    value, slope = np.concatenate(value), np.concatenate(slope)
    scale = float(np.clip(1.0 - value @ slope / (slope @ slope), 0.7, 1.4))
    sigma = float(1.0 / np.sqrt(slope @ slope))
    reason = "the tree is taken to lie near the isocentres of the views, and table shifts to be small"
    warnings: tuple[str, ...] = ()
    seen = None if ruler is None else ruler(cameras, points_lps_mm)
    if ruler is not None:
        scale, sigma, reason, warnings = _with_catheter(scale, sigma, reason, seen)
    moved = [first, *(scale_gauge(first, camera, scale)[1] for camera in cameras[1:])]
    return ScaleGauge(scale, source, tuple(moved), sigma, reason, warnings)


def _with_catheter(scale: float, sigma: float, reason: str, seen: Ruler | None):
    """Scale, its standard deviation, the reason and warnings when a catheter was looked for."""
    if seen is None:
        return scale, sigma, reason, (
            "The catheter was not found in any view, or its width could not be measured: the absolute scale rests on "
            "the isocentre assumption.",
        )
    where = f"view{'s' * (len(seen.views) > 1)} {' and '.join(str(k) for k in seen.views)}"
    apart = np.log(seen.scale / scale)
    if abs(apart) > CONTRADICTION * np.hypot(sigma, seen.sigma):
        chosen = float(np.clip(seen.scale, 0.7, 1.4))
        return chosen, seen.sigma, f"the width of the catheter in {where}", (
            f"The catheter in {where} says that the tree is {100 * abs(np.expm1(apart)):.0f} % "
            f"{'larger' if apart > 0 else 'smaller'} than if it lay at the isocentre; the catheter decides. Check the "
            "French size, SID and SOD.",
        )
    weight = np.array([sigma**-2, seen.sigma**-2])
    chosen = float(np.exp((weight * np.log([scale, seen.scale])).sum() / weight.sum()))
    told = (
        f"the width of the catheter in {where} (alone: {100 * np.expm1(apart):+.0f} %, one standard deviation "
        f"{100 * seen.sigma:.0f} %) averaged by precision with the assumption that the tree lies near the isocentres "
        f"of the views and table shifts are small (one standard deviation {100 * sigma:.1f} %)"
    )
    return chosen, float(weight.sum() ** -0.5), told, ()
