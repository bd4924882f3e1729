# SPDX-License-Identifier: Apache-2.0
"""Path length through vessel tubes in plain numpy, until the operator is there."""

from __future__ import annotations

import numpy as np

from licag3d.geometry import Camera
from licag3d.phantom.tubes import Line


def project_lines_numpy(lines: list[Line], camera: Camera) -> np.ndarray:
    """Path length ``(rows, cols)`` in mm: per branch the longest cylinder chord, summed over branches."""
    total = np.zeros((camera.rows, camera.cols))
    for branch in lines:
        image = np.zeros_like(total)
        points, radius = branch.points_lps_mm, branch.radius_mm
        pixels, depth = camera.project(points)
        source = camera.source_lps_mm
        for k in range(len(points) - 1):
            reach = radius[k] * camera.sid_mm / depth[k] / camera.spacing_col_mm + 2.5
            low = np.floor(pixels[k:k + 2].min(0) - reach).astype(int)
            high = np.ceil(pixels[k:k + 2].max(0) + reach).astype(int) + 1
            c0, r0 = np.maximum(low, 0)
            c1, r1 = min(high[0], camera.cols), min(high[1], camera.rows)
            if c0 >= c1 or r0 >= r1:
                continue
            row, col = np.mgrid[r0:r1, c0:c1]
            ray = camera.rays(col, row)[1]
            ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
            axis = points[k + 1] - points[k]
            length = np.linalg.norm(axis)
            axis = axis / length
            normal = np.cross(ray, axis)
            sine = np.maximum(np.linalg.norm(normal, axis=-1), 0.15)
            between = points[k] - source
            distance = np.abs(normal @ between) / sine
            # Where along the axis the ray passes closest: keep the chord near the piece only.
            along = -(between @ axis - (ray @ between) * (ray @ axis)) / sine**2
            near = (along >= -0.5 * length) & (along <= 1.5 * length)
            chord = np.where(near, 2 * np.sqrt(np.maximum(radius[k] ** 2 - distance**2, 0)) / sine, 0)
            patch = image[r0:r1, c0:c1]
            np.maximum(patch, chord, out=patch)
        total += image
    return total
