# SPDX-License-Identifier: Apache-2.0
"""Simulated cases: what a user gets against the truth, views, offsets, images, reproducibility."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.geometry import view_angle_deg
from licag3d.phantom.simulate_case import simulate_case
from licag3d.phantom.views import MARGIN, PRIMARY_LIMIT_DEG, SECONDARY_LIMIT_DEG, choose_angles


@pytest.fixture(scope="module", params=["rca", "lca"])
def case(request):
    return simulate_case(3, request.param, offset_mm=5, angle_error_deg=1, background="full", rows=256, cols=256)


def points_of(case) -> np.ndarray:
    return np.concatenate([branch.points_lps_mm for branch in case.tree.branches])


def test_offsets_and_reading_errors_have_the_size_asked_for(case):
    first, second = case.true_cameras
    assert first.offset_lps_mm == (0, 0, 0)
    assert np.linalg.norm(second.offset_lps_mm) == pytest.approx(5)
    for true, user in zip(case.true_cameras, case.user_cameras, strict=True):
        assert user.offset_lps_mm == (0, 0, 0)
        error = np.hypot(user.primary_deg - true.primary_deg, user.secondary_deg - true.secondary_deg)
        assert error == pytest.approx(1)
        assert (user.sid_mm, user.sod_mm, user.spacing_row_mm) == (true.sid_mm, true.sod_mm, true.spacing_row_mm)


@pytest.mark.parametrize("separation", [30, 40, 60, 90])
def test_views_have_the_separation_asked_for_within_reach(separation):
    rng = np.random.default_rng(0)
    for artery in ("rca", "lca"):
        for count in (2, 3):
            angles = choose_angles(rng, artery, count, separation)
            assert all(abs(a) <= PRIMARY_LIMIT_DEG and abs(b) <= SECONDARY_LIMIT_DEG for a, b in angles)
            case = simulate_case(1, artery, separation_deg=separation, rows=64, cols=64)
            assert view_angle_deg(*case.true_cameras) == pytest.approx(separation, abs=1e-6)


def test_the_held_out_view_is_another_view(case):
    hidden = case.held_out[0].true_camera
    assert hidden.offset_lps_mm == (0, 0, 0)
    assert min(view_angle_deg(hidden, camera) for camera in case.true_cameras) > 20


def test_the_tree_lies_near_the_isocentre_and_in_every_view(case):
    points = points_of(case)
    assert np.all(np.abs(points.min(0) + points.max(0)) / 2 <= 20)
    for camera in [*case.true_cameras, case.held_out[0].true_camera]:
        pixels, _ = camera.project(points)
        assert pixels.min() >= 0.9 * MARGIN * camera.cols and pixels.max() <= camera.cols * (1 - 0.9 * MARGIN)


def test_masks_and_line_integrals_show_the_tree_through_the_true_camera(case):
    for view in (*case.views, *case.held_out):
        assert view.image.dtype == np.uint8 and view.line_integral.dtype == np.float32 and view.mask.dtype == bool
        assert np.array_equal(view.mask, view.line_integral > 0)
        thick = np.concatenate([b.points_lps_mm[b.radius_mm > 0.8] for b in case.tree.branches])
        pixels, _ = view.true_camera.project(thick)
        col, row = np.rint(pixels).astype(int).T
        assert view.mask[row, col].mean() > 0.995
        # A ray through the centreline crosses at least about a diameter.
        radius = np.concatenate([b.radius_mm[b.radius_mm > 0.8] for b in case.tree.branches])
        assert np.mean(view.line_integral[row, col] > 0.75 * case.mu_per_mm * 2 * radius) > 0.97


def test_vessels_are_darker_than_what_surrounds_them(case):
    from scipy.ndimage import binary_dilation

    for view in case.views:
        strong = view.line_integral > 0.35
        ring = binary_dilation(strong, iterations=6) & ~binary_dilation(view.mask, iterations=2)
        assert view.image[strong].mean() < view.image[ring].mean() - 12
        assert 40 < np.median(view.image) < 215


def test_measured_rises_with_the_line_integral_on_a_flat_background():
    view = simulate_case(2, "rca", rows=256, cols=256).views[0]
    assert np.corrcoef(view.measured[view.mask], view.line_integral[view.mask])[0, 1] > 0.95
    assert abs(np.median(view.measured[~view.mask])) < 0.05


def test_same_arguments_same_case_bit_for_bit(case):
    again = simulate_case(3, case.artery, offset_mm=5, angle_error_deg=1, background="full", rows=256, cols=256)
    for one, two in zip((*case.views, *case.held_out), (*again.views, *again.held_out), strict=True):
        assert one.true_camera == two.true_camera and one.user_camera == two.user_camera
        assert np.array_equal(one.image, two.image) and np.array_equal(one.measured, two.measured)
        assert np.array_equal(one.line_integral, two.line_integral)


def test_offset_and_background_change_nothing_else(case):
    other = simulate_case(3, case.artery, offset_mm=20, angle_error_deg=0, background="flat", rows=256, cols=256)
    assert np.array_equal(points_of(case), points_of(other))
    for one, two in zip(case.true_cameras, other.true_cameras, strict=True):
        assert (one.primary_deg, one.secondary_deg, one.sid_mm) == (two.primary_deg, two.secondary_deg, two.sid_mm)
    small, large = (np.array(c.true_cameras[1].offset_lps_mm) for c in (case, other))
    np.testing.assert_allclose(large, 4 * small)
    assert other.user_cameras[0].primary_deg == other.true_cameras[0].primary_deg


@pytest.mark.parametrize("wrong", [
    {"separation_deg": 0}, {"separation_deg": float("nan")}, {"offset_mm": -1}, {"views": 0}, {"views": 5},
    {"angle_error_deg": 11}, {"background": "none"}, {"rows": 10}, {"held_out": -1}, {"isocentre_distance_mm": 500}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match="give|choose"):
        simulate_case(0, "rca", **wrong)
