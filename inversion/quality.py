# SPDX-License-Identifier: Apache-2.0
"""How well the result explains the views it was made from. The 3D truth is another matter: these are not accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from licag3d.geometry import Cameras
from licag3d.inversion.chains import Chains
from licag3d.inversion.field import FieldResult
from licag3d.ops import project_volume
from licag3d.structures import VesselEvidence, VesselTree
from licag3d.vessels.tree import flatten_tree


def view_metrics(
    tree: VesselTree, field: FieldResult, evidence: Sequence[VesselEvidence], chains: Sequence[Chains]
) -> tuple[tuple[dict[str, float], ...], list[np.ndarray]]:
    """Image metrics of every view, and the projection of the field in it.

    ``centerline_to_vessel_px``: median distance of the reprojected centreline to the centreline traced in the view, px.
    ``centerline_on_vessel``: share of the reprojected centreline inside the mask. ``vessel_explained``: share of the
    mask's skeleton within 3 px of the reprojected centreline. ``reprojection_dice``: Dice of the mask and the field's
    projection above a tenth of its maximum. ``ssim``: of the field's projection and the estimated line integral (Wang
    2004, Gaussian window of sigma 1.5 px, data range the 99th percentile of the estimate), whole image.
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree
    from skimage.metrics import structural_similarity
    from skimage.morphology import skeletonize

    metrics, pictures = [], []
    points = flatten_tree(tree).points_lps_mm
    volume = torch.from_numpy(field.volume.values)
    for camera, gain, item, chain in zip(field.cameras, field.gains, evidence, chains, strict=True):
        with torch.no_grad():
            rendered = (
                gain
                * project_volume(
                    volume,
                    Cameras.stack([camera]),
                    voxel_size_mm=field.volume.spacing_mm,
                    origin_mm=field.volume.origin_mm,
                )[0].numpy()
            )
        middle = skeletonize(item.mask)
        pixels, _ = camera.project(points)
        col, row = np.rint(pixels[:, 0]).astype(int), np.rint(pixels[:, 1]).astype(int)
        inside = (col >= 0) & (row >= 0) & (col < camera.cols) & (row < camera.rows)
        col, row = col[inside], row[inside]
        drawn = np.zeros(item.mask.shape, bool)
        drawn[row, col] = True
        values: dict[str, float] = {}
        if middle.any() and drawn.any():
            to_drawn = ndimage.distance_transform_edt(~drawn)
            values["centerline_to_vessel_px"] = float(np.median(cKDTree(_dense(chain)).query(pixels[inside])[0]))
            values["centerline_on_vessel"] = float(item.mask[row, col].mean())
            values["vessel_explained"] = float((to_drawn[middle] <= 3.0).mean())
        shadow = rendered > 0.1 * max(float(rendered.max()), 1e-9)
        values["reprojection_dice"] = float(2 * (shadow & item.mask).sum() / max(shadow.sum() + item.mask.sum(), 1))
        span = float(np.quantile(item.line_integral[item.mask], 0.99)) if item.mask.any() else 1.0
        values["ssim"] = float(
            structural_similarity(
                item.line_integral,
                rendered.astype(np.float32),
                data_range=max(span, 1e-6),
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        )
        metrics.append(values)
        pictures.append(rendered)
    return tuple(metrics), pictures


def _dense(chains: Chains, step_px: float = 0.25) -> np.ndarray:
    """Points ``(N, 2)`` (col, row) along the traced centrelines, close enough to measure distances to them."""
    parts = []
    for begin, end in zip(chains.start[:-1], chains.start[1:], strict=True):
        points = chains.pixels[begin:end]
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        at = np.arange(0.0, arc[-1] + step_px, step_px)
        parts.append(np.stack([np.interp(at, arc, points[:, k]) for k in (0, 1)], axis=1))
    return np.concatenate(parts)
