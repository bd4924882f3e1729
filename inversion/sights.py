# SPDX-License-Identifier: Apache-2.0
"""What every view has to say to a place in space: how likely a vessel is where it projects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselEvidence, View

#: A place may project this far beside the vessel, mm at the isocentre: cameras and places are not exact.
BESIDE_MM = 0.5
#: Less probability than this in a view that sees the place speaks against a vessel there: of centreline whose depth was
#: filled in, or taken from the prior, 3 and 13 to 24 % is right below it, 56 and 50 to 90 % above.
LEAST_CHANCE = 0.12


@dataclass(frozen=True)
class Sight:
    """One view: ``camera``, and ``chance`` ``(rows, cols)`` 0..1, the highest probability of a vessel about a pixel,
    NaN where the view sees nothing (border, shutter)."""

    camera: Camera
    chance: np.ndarray


def sights_of(
    cameras: Sequence[Camera], views: Sequence[View], evidence: Sequence[VesselEvidence]
) -> tuple[Sight, ...]:
    """What the views say, for cameras that may have moved since they were read."""
    from scipy.ndimage import maximum_filter

    out = []
    for camera, view, item in zip(cameras, views, evidence, strict=True):
        size = 2 * max(1, round(BESIDE_MM / camera.mm_per_pixel)) + 1
        chance = maximum_filter(np.where(view.valid, item.probability, 0.0).astype(np.float32), size)
        out.append(Sight(camera, np.where(view.valid, chance, np.nan)))
    return tuple(out)


def chances(points_mm: np.ndarray, sights: Sequence[Sight]) -> np.ndarray:
    """``(views, n)`` of points ``(n, 3)`` in LPS mm; NaN where a view does not see the place."""
    out = np.full((len(sights), len(points_mm)), np.nan)
    for row, sight in zip(out, sights, strict=True):
        at = np.rint(sight.camera.project(points_mm)[0]).astype(int)
        inside = ((at >= 0) & (at < [sight.camera.cols, sight.camera.rows])).all(1)
        row[inside] = sight.chance[at[inside, 1], at[inside, 0]]
    return out


def least_chance(points_mm: np.ndarray, sights: Sequence[Sight]) -> np.ndarray:
    """``(n,)``: the chance in the view that shows the place least, 1 where none sees it."""
    seen = chances(points_mm, sights)
    return np.where(np.isnan(seen), 1.0, seen).min(0, initial=1.0)
