# SPDX-License-Identifier: Apache-2.0
"""Reprojection distances and camera errors; definitions in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from licag3d.geometry import Camera
from licag3d.metrics.centerline import nearest_distances


def reprojection_mm(
    pred_lps_mm: np.ndarray, pred_camera: Camera, truth_lps_mm: np.ndarray, truth_camera: Camera
) -> float:
    """Distance between two projected centrelines, mm at the isocentre: mean of the two one-way means.

    Args:
        pred_lps_mm, truth_lps_mm: points ``(n, 3)`` of equal arc length.
        pred_camera, truth_camera: with which each is projected (the same one for a held-out view).

    Returns:
        NaN when either is empty.
    """
    if len(pred_lps_mm) == 0 or len(truth_lps_mm) == 0:
        return float("nan")
    spacing = np.array((truth_camera.spacing_col_mm, truth_camera.spacing_row_mm)) / truth_camera.magnification
    pred = pred_camera.project(pred_lps_mm)[0] * spacing
    truth = truth_camera.project(truth_lps_mm)[0] * spacing
    return 0.5 * float(nearest_distances(pred, truth)[0].mean() + nearest_distances(truth, pred)[0].mean())


def camera_metrics(pred: Sequence[Camera], truth: Sequence[Camera]) -> dict[str, float]:
    """Errors of the offsets and of the relative rotation, means over the views after the first.

    ``offset_error_mm`` is the plain distance of the offsets. Two views cannot know the offset along the scale gauge
    ``t' = s t + (1 - s)(S2 - S1)`` (docs/geometry.md): ``offset_error_beyond_gauge_mm`` is the distance to the nearest
    offset of that family. ``relative_rotation_error_deg`` is the angle between the true and the predicted rotation
    from view 1 to view k. All are 0 for a single view.
    """
    plain, beyond, turned = [], [], []
    for k in range(1, len(truth)):
        offset = np.asarray(pred[k].offset_lps_mm) - np.asarray(pred[0].offset_lps_mm)
        wanted = np.asarray(truth[k].offset_lps_mm) - np.asarray(truth[0].offset_lps_mm)
        source_1 = -truth[0].sod_mm * truth[0].frame.beam
        source_k = -truth[k].sod_mm * truth[k].frame.beam
        along = wanted - (source_k - source_1)
        error = offset - wanted
        plain.append(np.linalg.norm(error))
        beyond.append(np.linalg.norm(error - (error @ along) / (along @ along) * along))
        relative = _rotation(pred[k]).T @ _rotation(pred[0]) @ _rotation(truth[0]).T @ _rotation(truth[k])
        turned.append(np.rad2deg(np.arccos(np.clip((np.trace(relative) - 1) / 2, -1, 1))))
    if not plain:
        return {"offset_error_mm": 0.0, "offset_error_beyond_gauge_mm": 0.0, "relative_rotation_error_deg": 0.0}
    return {
        "offset_error_mm": float(np.mean(plain)),
        "offset_error_beyond_gauge_mm": float(np.mean(beyond)),
        "relative_rotation_error_deg": float(np.mean(turned)),
    }


def _rotation(camera: Camera) -> np.ndarray:
    """Axes of the view as columns ``(3, 3)``."""
    return np.stack(camera.frame, axis=1)
