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


def projection_error_mm(points_lps_mm: np.ndarray, pred_camera: Camera, truth_camera: Camera) -> float:
    """Mean distance between the images of the same points under two cameras, mm at the isocentre (NaN without points).

    Unlike :func:`reprojection_mm` every point is compared with itself.
    """
    if len(points_lps_mm) == 0:
        return float("nan")
    spacing = np.array((truth_camera.spacing_col_mm, truth_camera.spacing_row_mm)) / truth_camera.magnification
    apart = (pred_camera.project(points_lps_mm)[0] - truth_camera.project(points_lps_mm)[0]) * spacing
    return float(np.linalg.norm(apart, axis=1).mean())


def camera_metrics(pred: Sequence[Camera], truth: Sequence[Camera]) -> dict[str, float]:
    """Errors of the offsets and rotations; means over the views after the first, ``rotation_error_deg`` over all views.

    ``offset_error_mm`` is the plain distance of the offsets; ``offset_error_in_plane_mm`` and
    ``offset_error_depth_mm`` are its parts across and along the true beam of view k. Two views cannot know the offset
    along the scale gauge ``t' = s t + (1 - s)(S2 - S1)`` (docs/geometry.md): ``offset_error_beyond_gauge_mm`` is the
    distance to the nearest offset of that family. ``relative_rotation_error_deg`` is the angle between the true and the
    predicted rotation from view 1 to view k, ``rotation_error_deg`` the one between the true and the predicted
    orientation of a view. A single view has no offset error: 0.
    """
    plain, in_plane, depth, beyond, turned = [], [], [], [], []
    for k in range(1, len(truth)):
        offset = np.asarray(pred[k].offset_lps_mm) - np.asarray(pred[0].offset_lps_mm)
        wanted = np.asarray(truth[k].offset_lps_mm) - np.asarray(truth[0].offset_lps_mm)
        source_1 = -truth[0].sod_mm * truth[0].frame.beam
        source_k = -truth[k].sod_mm * truth[k].frame.beam
        along = wanted - (source_k - source_1)
        error = offset - wanted
        beam = truth[k].frame.beam
        plain.append(np.linalg.norm(error))
        depth.append(abs(error @ beam))
        in_plane.append(np.linalg.norm(error - (error @ beam) * beam))
        beyond.append(np.linalg.norm(error - (error @ along) / (along @ along) * along))
        turned.append(
            _angle_deg(_rotation(pred[k]).T @ _rotation(pred[0]) @ _rotation(truth[0]).T @ _rotation(truth[k]))
        )
    alone = [_angle_deg(_rotation(a).T @ _rotation(b)) for a, b in zip(pred, truth, strict=True)]
    return {
        "offset_error_mm": _mean(plain),
        "offset_error_in_plane_mm": _mean(in_plane),
        "offset_error_depth_mm": _mean(depth),
        "offset_error_beyond_gauge_mm": _mean(beyond),
        "relative_rotation_error_deg": _mean(turned),
        "rotation_error_deg": _mean(alone),
    }


def _mean(values: list) -> float:
    return float(np.mean(values)) if values else 0.0


def _angle_deg(rotation: np.ndarray) -> float:
    # atan2 of sine and cosine: arccos alone cannot tell angles below 1e-6 degrees from 0.
    sine = (
        np.linalg.norm(
            [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
        )
        / 2
    )
    return float(np.rad2deg(np.arctan2(sine, (np.trace(rotation) - 1) / 2)))


def _rotation(camera: Camera) -> np.ndarray:
    """Axes of the view as columns ``(3, 3)``."""
    return np.stack(camera.frame, axis=1)
