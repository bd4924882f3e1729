# SPDX-License-Identifier: Apache-2.0
"""Visual hull: the space that every view shows as vessel."""

from __future__ import annotations

import numpy as np

from benchmarks.baselines import Inputs, Result
from benchmarks.volumes import view_box, volume_tree
from licag3d.vessels.volume import Volume, covering_grid

SOURCE = "Lau and Dziubich, Applied Sciences 2025 (points of a grid kept within 1 px of the mask of every view)"
CORRECTS_OFFSET = False
DIFFERS = (
    "0.5 mm grid over the box of both views instead of 100^3 points, carved coarse to fine; tolerance 0.3 mm at the "
    "isocentre, between 1 and 2 px, the best of 0.3, 0.6 and 0.8 mm on validation seeds"
)
SPACING_MM = 0.5
TOLERANCE_MM = 0.3
_COARSE = 4  # fine voxels per coarse cell, along each axis


def reconstruct(inputs: Inputs, *, tolerance_mm: float = TOLERANCE_MM) -> Result:
    """Carve, then thin. Raises ValueError where a mask is empty."""
    volume = hull(inputs, tolerance_mm=tolerance_mm)
    return Result(volume_tree(volume, 0.5), facts={"hull_mm3": float(volume.values.sum() * volume.spacing_mm**3)})


def hull(inputs: Inputs, *, spacing_mm: float = SPACING_MM, tolerance_mm: float = TOLERANCE_MM) -> Volume:
    """The hull as a volume of 0 and 1: voxels whose centre projects within the tolerance of the mask in every view."""
    from scipy.ndimage import distance_transform_edt

    low, high = view_box(inputs)
    origin, shape = covering_grid(low, high, spacing_mm * _COARSE)
    origin, shape = np.asarray(origin), np.asarray(shape)
    # Distance to the mask in mm at the isocentre, once per view; the border of a pixel is half a pixel nearer.
    distances = [
        np.maximum(distance_transform_edt(~mask) - 0.5, 0) * camera.mm_per_pixel
        for mask, camera in zip(inputs.masks, inputs.cameras, strict=True)
    ]
    cells = np.argwhere(np.ones(shape, bool))
    centre = origin + cells[:, ::-1] * spacing_mm * _COARSE
    half_diagonal = 0.5 * np.sqrt(3) * _COARSE * spacing_mm
    # 15 %: a point before the isocentre is magnified more than one at it.
    cells = cells[_kept(centre, inputs, distances, 1.15 * (half_diagonal + tolerance_mm) + 0.3)]
    inner = np.argwhere(np.ones((_COARSE,) * 3, bool))
    index = (cells[:, None] * _COARSE + inner[None]).reshape(-1, 3)
    start = origin - 0.5 * (_COARSE - 1) * spacing_mm
    values = np.zeros(shape * _COARSE, np.uint8)
    kept = index[_kept(start + index[:, ::-1] * spacing_mm, inputs, distances, tolerance_mm)]
    values[tuple(kept.T)] = 1
    return Volume(values, tuple(start), spacing_mm)


def _kept(points: np.ndarray, inputs: Inputs, distances: list[np.ndarray], tolerance_mm: float) -> np.ndarray:
    """Which points ``(N, 3)`` project within the tolerance of every mask; outside the image is not vessel."""
    kept = np.ones(len(points), bool)
    for distance, camera in zip(distances, inputs.cameras, strict=True):
        chosen = np.flatnonzero(kept)
        pixels = np.rint(camera.project(points[chosen])[0]).astype(np.int64)
        inside = (pixels >= 0).all(1) & (pixels[:, 0] < camera.cols) & (pixels[:, 1] < camera.rows)
        near = np.zeros(len(chosen), bool)
        near[inside] = distance[pixels[inside, 1], pixels[inside, 0]] <= tolerance_mm
        kept[chosen] = near
    return kept
