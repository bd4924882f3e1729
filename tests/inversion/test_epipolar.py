# SPDX-License-Identifier: Apache-2.0
"""Epipolar angles, triangulation and the scale gauge against the camera model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.geometry import Camera, scale_gauge
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair, triangulate
from licag3d.inversion.gauge import fix_scale

COMMON = {"sid_mm": 1000.0, "sod_mm": 750.0, "spacing_row_mm": 0.3, "spacing_col_mm": 0.3, "rows": 512, "cols": 512}


def pair_of_cameras(offset=(4.0, -7.0, 11.0)) -> tuple[Camera, Camera]:
    return Camera(-30, 10, **COMMON), Camera(28, -15, offset_lps_mm=offset, **COMMON)


def some_points(count: int = 40) -> np.ndarray:
    return np.random.default_rng(5).uniform(-45, 45, (count, 3))


def test_pixels_of_one_point_share_their_plane_and_give_the_point_back():
    cameras, points = pair_of_cameras(), some_points()
    pair = epipolar_pair(*cameras)
    (theta_a, phi_a), (theta_b, phi_b) = (epipolar_angles(pair, c, c.project(points)[0]) for c in cameras)
    np.testing.assert_allclose(theta_a, theta_b, atol=1e-9)
    np.testing.assert_allclose(triangulate(pair, theta_a, phi_a, phi_b), points, atol=1e-6)


def test_order_of_views_changes_the_frame_but_not_the_point():
    first, second = pair_of_cameras()
    points = some_points()
    pair = epipolar_pair(second, first)
    (theta, phi_a), (_, phi_b) = (epipolar_angles(pair, c, c.project(points)[0]) for c in (second, first))
    np.testing.assert_allclose(triangulate(pair, theta, phi_a, phi_b), points, atol=1e-6)


def test_parallel_rays_stay_finite():
    pair = epipolar_pair(*pair_of_cameras())
    point = triangulate(pair, np.zeros(1), np.array([1.0]), np.array([1.0]))
    assert np.isfinite(point).all()
    assert np.linalg.norm(point - pair.source_a) <= 10.001 * pair.baseline_mm


def test_baseline_frame_is_orthonormal():
    pair = epipolar_pair(*pair_of_cameras())
    frame = np.stack([pair.along, pair.toward, pair.across])
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(pair.source_a + pair.baseline_mm * pair.along, pair.source_b, atol=1e-9)


@pytest.mark.parametrize("scale", [0.92, 1.0, 1.08])
def test_fixed_scale_undoes_a_gauge_drift_and_changes_no_image(scale):
    first, second = pair_of_cameras(offset=(0.0, 0.0, 0.0))
    points = some_points(200)
    points -= 0.5 * (np.percentile(points, 2, axis=0) + np.percentile(points, 98, axis=0))
    source, drifted = scale_gauge(first, second, scale)
    moved = source + scale * (points - source)
    gauge = fix_scale([first, drifted], moved)
    assert gauge.scale == pytest.approx(1 / scale, rel=2e-3)
    np.testing.assert_allclose(gauge.apply(moved), points, atol=1.5)
    for camera, before in zip(gauge.cameras, (first, drifted), strict=True):
        np.testing.assert_allclose(camera.project(gauge.apply(moved))[0], before.project(moved)[0], atol=1e-6)


def test_gauge_says_how_sure_it_is():
    first, second = pair_of_cameras()
    gauge = fix_scale([first, replace(second)], some_points())
    assert 0.005 < gauge.sigma < 0.05
    assert "isocentre" in gauge.reason
