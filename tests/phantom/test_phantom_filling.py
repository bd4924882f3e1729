# SPDX-License-Identifier: Apache-2.0
"""Contrast over time, and the X-ray path weighted by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.phantom.anatomy import sample_tree
from licag3d.phantom.filling import (
    Filling,
    arrival_times_s,
    filled_time_s,
    opacified_path_mm,
    opacity_at,
    sample_filling,
)
from licag3d.phantom.tubes import path_length_mm, tree_lines
from licag3d.structures import Branch, VesselTree

CAMERA = Camera(30, 10, sid_mm=1000, sod_mm=750, spacing_row_mm=2, spacing_col_mm=2, rows=96, cols=96)
QUIET = Filling(0.0, 2.5, 200.0, pulsatility=0.0, streaming=0.0, uneven=0.0)


def straight(count: int = 81, radius: float = 1.5) -> VesselTree:
    points = np.zeros((count, 3))
    points[:, 2] = np.linspace(-40, 40, count)
    return VesselTree((Branch(0, None, points, np.full(count, radius), "A"),))


@pytest.fixture(scope="module", params=["rca", "lca"])
def tree(request) -> VesselTree:
    return sample_tree(5, request.param)


def test_full_contrast_is_the_plain_path_and_half_contrast_half_of_it(tree):
    full = path_length_mm(tree_lines(tree), CAMERA)
    ones = {branch.id: np.ones(len(branch.radius_mm)) for branch in tree.branches}
    assert np.array_equal(opacified_path_mm(tree, None, CAMERA), full)
    assert np.array_equal(opacified_path_mm(tree, ones, CAMERA), full)
    half = {key: 0.5 * value for key, value in ones.items()}
    np.testing.assert_allclose(opacified_path_mm(tree, half, CAMERA), 0.5 * full, atol=1e-5)
    none = {key: 0.0 * value for key, value in ones.items()}
    assert not opacified_path_mm(tree, none, CAMERA).any()


def test_the_layer_cake_is_the_sum_over_tubes_that_do_not_overlap():
    """Two vessels side by side, one behind the other: each ray gets each path times its own concentration."""
    one = straight()
    far = one.branches[0].points_lps_mm + np.array((3.0, -30.0, 0.0))
    both = VesselTree((*one.branches, Branch(1, None, far, np.full(81, 2.0), "B")))
    opacity = {0: np.full(81, 0.75), 1: np.full(81, 0.25)}
    expected = 0.75 * path_length_mm(tree_lines(one), CAMERA)
    expected = expected + 0.25 * path_length_mm(tree_lines(VesselTree(both.branches[1:])), CAMERA)
    np.testing.assert_allclose(opacified_path_mm(both, opacity, CAMERA), expected, atol=1e-4)


def test_quantisation_stays_below_half_a_step(tree):
    rng = np.random.default_rng(0)
    opacity = {branch.id: rng.uniform(0, 1, len(branch.radius_mm)) for branch in tree.branches}
    coarse, fine = (opacified_path_mm(tree, opacity, CAMERA, levels=n) for n in (16, 256))
    full = path_length_mm(tree_lines(tree), CAMERA)
    assert np.all(np.abs(coarse - fine) <= full * (0.5 / 16 + 0.5 / 256) + 1e-4)
    assert np.all(fine <= full + 1e-4)


def test_transit_times_follow_the_length_and_the_calibre():
    wide = arrival_times_s(straight(), 200.0)[0]
    np.testing.assert_allclose(wide, np.linspace(0, 0.4, 81), atol=1e-9)
    thin = straight(radius=1.5).branches[0]
    pair = VesselTree(
        (thin, Branch(1, 0, thin.points_lps_mm[80] + np.eye(3)[2] * np.arange(9)[:, None], np.full(9, 1.5 / 8), "B"))
    )
    side = arrival_times_s(pair, 200.0)[1]
    assert side[0] == pytest.approx(0.4)
    assert side[-1] - side[0] == pytest.approx(8 / 100.0)  # an eighth of the calibre: half the speed


def test_nothing_passes_an_occlusion_and_a_stenosis_does_not_slow_the_stream():
    plain = straight().branches[0]
    radius = plain.radius_mm.copy()
    radius[38:43] = 0.3
    narrow = VesselTree((replace(plain, radius_mm=radius),))
    np.testing.assert_allclose(arrival_times_s(narrow, 200.0)[0], arrival_times_s(straight(), 200.0)[0])
    radius[40] = 0.0
    closed = VesselTree((replace(plain, radius_mm=radius),))
    opacity = opacity_at(closed, 1.5, QUIET)[0]
    assert opacity[:39].min() > 0.95 and not opacity[41:].any()


def test_contrast_comes_stays_and_goes_from_the_ostium_outwards(tree):
    filling = sample_filling(np.random.default_rng(2), "rca")
    at = filled_time_s(tree, filling)
    assert filling.start_s < at < filling.start_s + filling.duration_s + 1.0
    mean = {t: np.concatenate(list(opacity_at(tree, t, filling).values())).mean() for t in (-0.5, 0.0, 0.2, at, 9.0)}
    assert mean[-0.5] == mean[0.0] == 0 and 0 < mean[0.2] < 0.5 < mean[at] and mean[9.0] < 0.01
    trunk = opacity_at(tree, 0.25, QUIET)[tree.branches[0].id]
    assert np.all(np.diff(trunk) <= 1e-6)  # the front: less and less the further
    for value in opacity_at(tree, 1.0, filling).values():
        assert value.dtype == np.float32 and value.min() >= 0 and value.max() <= 1


def test_as_much_contrast_leaves_as_came():
    """The time integral of opacity is peak times duration at every point: nothing is lost on the way."""
    times = np.arange(0.0, 12.0, 0.02)
    values = np.stack([opacity_at(straight(), float(t), QUIET)[0] for t in times])
    np.testing.assert_allclose(0.02 * values.sum(0), QUIET.duration_s, rtol=0.02)


def test_the_pulse_moves_the_front_but_not_the_mean_flow():
    pulsatile = replace(QUIET, pulsatility=0.7, period_s=0.8)
    beats = 0.8 * np.arange(6)
    np.testing.assert_allclose(pulsatile.flow_time_s(beats), beats, atol=1e-12)
    clock = pulsatile.flow_time_s(np.linspace(0, 3.2, 400))
    assert np.all(np.diff(clock) > 0)
    assert np.diff(clock).max() > 3 * np.diff(clock).min()


def test_side_branches_fill_unevenly_and_the_same_way_each_time(tree):
    filling = replace(QUIET, uneven=1.0, seed=11)
    at_peak = opacity_at(tree, 2.0, filling)
    ends = [value[-1] for value in at_peak.values()]
    assert np.std(ends) > 0.03 and min(ends) > 0
    again = opacity_at(tree, 2.0, filling)
    assert all(np.array_equal(at_peak[key], again[key]) for key in at_peak)
    even = [value[-1] for value in opacity_at(tree, 2.0, QUIET).values()]
    assert min(even) > 0.97


@pytest.mark.parametrize(
    "wrong", [{}, {0: np.ones(7)}, {0: np.full(81, 1.5)}, {0: np.full(81, np.nan)}, {0: np.full(81, -0.1)}]
)
def test_opacity_that_does_not_fit_the_tree_is_refused(wrong):
    with pytest.raises(InputError, match="give"):
        opacified_path_mm(straight(), wrong, CAMERA)


@pytest.mark.parametrize("wrong", [{"speed_mm_s": 0}, {"duration_s": float("nan")}, {"peak": 1.2}, {"streaming": -1}])
def test_an_absurd_injection_is_refused(wrong):
    with pytest.raises(InputError, match="give"):
        replace(QUIET, **wrong)
