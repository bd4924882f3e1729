# SPDX-License-Identifier: Apache-2.0
"""Reprojection distance and camera errors: analytic cases, and the scale gauge that two views cannot see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from licag3d.geometry import Camera, scale_gauge
from licag3d.metrics.cameras import camera_metrics, reprojection_mm


def camera(primary_deg: float = 0.0, secondary_deg: float = 0.0, **changes) -> Camera:
    return Camera(primary_deg, secondary_deg, 1000, 750, 0.3, 0.3, 512, 512, **changes)


def test_a_shift_across_the_beam_is_measured_at_the_isocentre_and_one_along_it_hardly():
    z = np.stack((np.zeros(200), np.zeros(200), np.linspace(-30, 30, 200)), axis=1)
    view = camera()
    assert reprojection_mm(z + (2.0, 0, 0), view, z, view) == pytest.approx(2.0, rel=1e-9)
    assert reprojection_mm(z + (0, 2.0, 0), view, z, view) < 0.1  # along the beam at 0, 0 degrees


def test_unequal_pixel_spacing_is_taken_into_account():
    points = np.array([[0.0, 0.0, 0.0]])
    view = replace(camera(), spacing_row_mm=0.6)
    assert reprojection_mm(points + (0, 0, 3.0), view, points, view) == pytest.approx(3.0)
    assert reprojection_mm(points + (3.0, 0, 0), view, points, view) == pytest.approx(3.0)


def test_it_is_the_mean_of_both_directions():
    one = np.array([[0.0, 0, 0]])
    two = np.array([[0.0, 0, 0], [0.0, 0, 10.0]])
    assert reprojection_mm(one, camera(), two, camera()) == pytest.approx(0.5 * (0 + 5.0))
    assert math.isnan(reprojection_mm(np.zeros((0, 3)), camera(), two, camera()))


def test_offset_error_and_rotation_error():
    truth = [camera(-30), camera(30, offset_lps_mm=(3.0, 0, -4.0))]
    user = [camera(-30), camera(32)]
    scores = camera_metrics(user, truth)
    assert scores["offset_error_mm"] == pytest.approx(5.0)
    assert scores["relative_rotation_error_deg"] == pytest.approx(2.0)
    assert scores["offset_error_beyond_gauge_mm"] <= 5.0
    # A common turn of both views is a turn of the world, not an error between the views.
    assert camera_metrics([camera(-25), camera(35, offset_lps_mm=(3.0, 0, -4.0))], truth)[
        "relative_rotation_error_deg"
    ] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [0.85, 0.97, 1.2])
def test_the_gauge_of_two_views_costs_nothing_beyond_the_gauge(scale):
    truth = [camera(-30, 5), camera(35, 20, offset_lps_mm=(6.0, -3.0, 8.0))]
    _, second = scale_gauge(truth[0], truth[1], scale)
    scores = camera_metrics([truth[0], second], truth)
    assert scores["offset_error_mm"] > 10
    assert scores["offset_error_beyond_gauge_mm"] == pytest.approx(0, abs=1e-9)


def test_one_view_has_no_camera_error():
    assert set(camera_metrics([camera()], [camera()]).values()) == {0.0}
