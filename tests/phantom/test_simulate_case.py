# SPDX-License-Identifier: Apache-2.0
"""Simulated cases: what a user gets against the truth, views, offsets, images, reproducibility."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.geometry import view_angle_deg
from licag3d.phantom.anatomy import sample_tree
from licag3d.phantom.motion import move_tree
from licag3d.phantom.simulate_case import simulate_case
from licag3d.phantom.views import MARGIN, PRIMARY_LIMIT_DEG, SECONDARY_LIMIT_DEG, choose_angles
from licag3d.structures import Branch, VesselTree


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
    {"angle_error_deg": 11}, {"background": "none"}, {"rows": 10}, {"held_out": -1}, {"isocentre_distance_mm": 500},
    {"kappa": 1.1}, {"kappa": float("nan")}, {"bits": 11}, {"phases": "odd"}, {"phases": (0.1,)}, {"phases": (0, 2)},
    {"respiration_mm": -1}, {"disease": "some"}, {"filling": "half"}, {"time_s": -1}, {"angles": "any"},
    {"distance_error_mm": -1}, {"distance_jitter_mm": float("inf")}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match="give|choose"):
        simulate_case(0, "rca", **wrong)


SMALL = {"rows": 96, "cols": 96, "held_out": 0}


def test_views_at_other_phases_show_the_moved_tree_and_change_nothing_else():
    plain = simulate_case(3, "lca", **SMALL)
    moved = simulate_case(3, "lca", phases="different", respiration_mm=6, **SMALL)
    assert np.array_equal(points_of(plain), points_of(moved))
    first, second = moved.views
    assert first.tree is None and (first.phase, first.respiration_mm) == (0, 0)
    assert 0.1 <= second.phase <= 0.9 and abs(second.respiration_mm) == 6
    expected = move_tree(moved.tree, second.phase, second.respiration_mm, motion=moved.patient.motion)
    for branch, shown in zip(expected.branches, moved.trees[1].branches, strict=True):
        np.testing.assert_allclose(branch.points_lps_mm, shown.points_lps_mm, atol=1e-9)
    for one, two in zip(plain.true_cameras, moved.true_cameras, strict=True):
        assert (one.primary_deg, one.secondary_deg, one.sid_mm) == (two.primary_deg, two.secondary_deg, two.sid_mm)
    # The picture shows the tree of its own moment, not that of the first view.
    def covered(tree) -> float:
        thick = np.concatenate([b.points_lps_mm[b.radius_mm > 1.2] for b in tree.branches])
        col, row = np.rint(second.true_camera.project(thick)[0]).astype(int).T
        return float(second.mask[row, col].mean())

    assert covered(moved.trees[1]) > 0.98 and covered(moved.tree) < 0.9
    given = simulate_case(3, "lca", phases=(0.36, 0.36), **SMALL)
    assert given.views[0].phase == 0.36 and given.views[1].tree is None
    assert np.abs(points_of(given) - points_of(plain)).max() > 3


def test_every_moment_stays_in_the_picture():
    case = simulate_case(5, "rca", phases=(0.0, 0.36), respiration_mm=10, separation_deg=40, **SMALL)
    for view, tree in zip(case.views, case.trees, strict=True):
        pixels, _ = view.true_camera.project(np.concatenate([b.points_lps_mm for b in tree.branches]))
        assert pixels.min() > 0 and pixels.max() < 95


def test_the_contrast_free_twin_has_kappa_of_the_contrast():
    case = simulate_case(4, "rca", kappa=0.25, rows=192, cols=192, held_out=0)
    view = case.views[0]
    deep = view.line_integral > 0.5 * view.line_integral.max()
    ratio = np.median(view.contrast_free_measured[deep]) / np.median(view.measured[deep])
    assert ratio == pytest.approx(0.25, abs=0.08)
    assert view.contrast_free_image.dtype == np.uint8
    assert case.views[1].contrast_free_image is not None
    plain = simulate_case(4, "rca", rows=192, cols=192, held_out=0)
    assert np.array_equal(plain.images[0], case.images[0]) and plain.views[0].contrast_free_image is None


def test_partial_filling_hides_what_is_not_filled():
    early = simulate_case(4, "lca", time_s=0.3, **SMALL)
    full = simulate_case(4, "lca", **SMALL)
    assert np.array_equal(points_of(early), points_of(full))  # the truth is the whole tree
    assert 0 < early.masks[0].sum() < 0.8 * full.masks[0].sum()
    assert np.all(early.line_integrals[0] <= full.line_integrals[0] + 1e-5)
    drawn = simulate_case(4, "lca", filling="random", **SMALL)
    means = [np.concatenate(list(view.opacity.values())).mean() for view in drawn.views]
    assert means[0] != means[1] and all(0.02 < mean <= 1 for mean in means)


def test_distances_can_differ_by_view_and_be_misread():
    plain = simulate_case(6, "rca", **SMALL)
    case = simulate_case(6, "rca", distance_jitter_mm=30, distance_error_mm=10, **SMALL)
    for base, true, user in zip(plain.true_cameras, case.true_cameras, case.user_cameras, strict=True):
        assert np.hypot(true.sid_mm - base.sid_mm, true.sod_mm - base.sod_mm) == pytest.approx(30)
        assert np.hypot(true.sid_mm - user.sid_mm, true.sod_mm - user.sod_mm) == pytest.approx(10)
        assert (true.primary_deg, true.secondary_deg) == (base.primary_deg, base.secondary_deg)
    assert case.true_cameras[0].sid_mm != case.true_cameras[1].sid_mm


def test_free_angles_keep_separation_and_reach():
    seen = []
    for seed in range(4):
        case = simulate_case(seed, "rca", angles="free", separation_deg=50, **SMALL)
        assert view_angle_deg(*case.true_cameras) == pytest.approx(50, abs=1e-6)
        seen += [(c.primary_deg, c.secondary_deg) for c in case.true_cameras]
    assert all(abs(a) <= PRIMARY_LIMIT_DEG and abs(b) <= SECONDARY_LIMIT_DEG for a, b in seen)


def test_deeper_images_have_more_levels_of_the_same_picture():
    plain, deep = (simulate_case(2, "lca", bits=bits, background="full", **SMALL).images[0] for bits in (8, 12))
    assert deep.dtype == np.uint16 and 255 < deep.max() <= 4095
    assert np.abs(deep / 4095 * 255 - plain).max() < 0.6
    assert len(np.unique(deep)) > 1.5 * len(np.unique(plain))


def test_disease_is_on_record_and_in_the_radii():
    for seed in range(60, 90):
        case = simulate_case(seed, "rca", disease="random", views=1, rows=64, cols=64, held_out=0)
        narrowed = [lesion for lesion in case.lesions if lesion.kind == "stenosis"]
        if narrowed:
            break
    healthy = sample_tree(seed, "rca")
    change = [
        (a.radius_mm - b.radius_mm[: len(a.radius_mm)]).min()
        for a, b in zip(case.tree.branches, healthy.branches, strict=False)
        if a.name == b.name
    ]
    assert min(change) < -0.1


def test_a_tree_from_elsewhere_is_used_as_it_is():
    tree = sample_tree(8, "lca")
    case = simulate_case(1, "lca", tree=tree, phases="different", background="full", **SMALL)
    moves = [a.points_lps_mm - b.points_lps_mm for a, b in zip(case.tree.branches, tree.branches, strict=True)]
    np.testing.assert_allclose(np.concatenate(moves), np.broadcast_to(moves[0][0], (sum(map(len, moves)), 3)))
    assert all(np.array_equal(a.radius_mm, b.radius_mm) for a, b in zip(case.tree.branches, tree.branches, strict=True))


@pytest.mark.parametrize("points, radius, words", [
    (np.zeros((5, 3)), np.ones(5), "mm large"),
    (np.linspace(0, 50, 15).reshape(5, 3), -np.ones(5), "radius of -1"),
    (np.linspace(0, 50, 15).reshape(5, 3), np.full(5, np.nan), "radius of nan"),
    (np.full((5, 3), np.inf), np.ones(5), "not finite"),
    (np.linspace(0, 50, 15).reshape(5, 3), np.ones(4), "shape"),
    (np.zeros((1, 3)), np.ones(1), "no branch")])
def test_trees_from_elsewhere_that_cannot_be_rendered_are_refused(points, radius, words):
    with pytest.raises(InputError, match=words):
        simulate_case(1, "rca", tree=VesselTree((Branch(0, None, points, radius, "A"),)))


def test_twigs_are_in_the_picture_and_in_no_truth():
    plain = simulate_case(3, "rca", rows=192, cols=192, held_out=0)
    case = simulate_case(3, "rca", twigs=True, rows=192, cols=192, held_out=0)
    assert [b.name for b in case.tree.branches] == [b.name for b in plain.tree.branches]
    assert len(case.patient.tree.branches) > len(case.tree.branches)
    view = case.views[0]
    assert view.twigs.sum() > 20 and not (view.twigs & view.mask).any()
    assert np.median(view.measured[view.twigs]) > np.median(view.measured[~view.twigs & ~view.mask])
