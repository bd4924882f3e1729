# SPDX-License-Identifier: Apache-2.0
"""Which branch of a tree a pixel shows."""

from __future__ import annotations

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselTree


def branch_labels(tree: VesselTree, camera: Camera, mask: np.ndarray, most: int) -> np.ndarray:
    """Which branch each vessel pixel shows ``(rows, cols)`` uint8: 1 + index of the branch whose outline it lies
    deepest in; where two cross, that is the thicker one. Branches after the first ``most`` are left out.
    """
    from scipy.spatial import cKDTree

    labels = np.zeros(mask.shape, np.uint8)
    if not mask.any():
        return labels
    pixels = np.argwhere(mask)[:, ::-1].astype(float)
    best = np.full(len(pixels), np.inf)
    chosen = np.zeros(len(pixels), np.uint8)
    for index, branch in enumerate(tree.branches[:most]):
        at, _ = camera.project(branch.points_lps_mm)
        distance, nearest = cKDTree(at).query(pixels)
        inside = distance - branch.radius_mm[nearest] / camera.mm_per_pixel
        closer = inside < best
        best[closer], chosen[closer] = inside[closer], index + 1
    labels[mask] = chosen
    return labels
