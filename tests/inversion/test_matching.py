# SPDX-License-Identifier: Apache-2.0
"""Matching and assembly: exact curves come back, a simulated case becomes a valid tree, further views are witnesses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from match_cases import chains_of, no_chains, simulated, two_cameras, vessels

from licag3d.geometry import Camera
from licag3d.inversion.assembly import Assembly, AssemblySettings, assemble_tree, matched_curves
from licag3d.inversion.matching import MatchSettings, match_views
from licag3d.inversion.smoothing import smooth_curve
from licag3d.metrics.centerline import centerline_metrics, nearest_distances, tree_points
from licag3d.structures import VesselTree
from licag3d.vessels.tree import component_count, validate_tree


def test_exact_projections_come_back():
    cameras = two_cameras((0.0, 3.0, -2.0))
    match = match_views(cameras, tuple(chains_of(vessels(), c) for c in cameras), MatchSettings())
    truth = np.concatenate(vessels())
    for points, confidence in zip(match.points_mm, match.confidence, strict=True):
        known = np.isfinite(points[:, 0])
        assert known.mean() > 0.9
        assert np.median(nearest_distances(points[known], truth)[0]) < 0.1
        assert (confidence[known] == 1).mean() > 0.9


def test_simulated_case_becomes_a_good_and_valid_tree():
    case, chains = simulated("rca")
    cameras = tuple(case.true_cameras)
    match = match_views(cameras, chains, MatchSettings())
    assembly = assemble_tree(matched_curves(match, cameras, AssemblySettings()), AssemblySettings())
    tree, bridges = assembly.tree, assembly.bridges
    assert validate_tree(tree) == []
    scores = centerline_metrics(tree_points(tree), tree_points(case.tree))
    assert scores["centerline_precision_1mm"] > 0.75
    assert scores["centerline_f1_1mm"] > 0.6
    assert component_count(tree) == 1
    assert all(0 < bridge.gap_mm < 60 for bridge in bridges)
    assert all(length < AssemblySettings().stray_mm for length in assembly.strays_mm)
    sure = np.concatenate([p[c == 1] for p, c in zip(match.points_mm, match.confidence, strict=True)])
    assert (nearest_distances(sure, tree_points(case.tree).points_lps_mm)[0] < 1).mean() > 0.75


def test_same_input_gives_the_same_match():
    case, chains = simulated("rca")
    one, two = (match_views(tuple(case.true_cameras), chains, MatchSettings()) for _ in range(2))
    assert one.cost == two.cost
    for k in (0, 1):
        np.testing.assert_array_equal(one.points_mm[k], two.points_mm[k])


def test_nothing_in_one_view_leaves_everything_unmatched():
    cameras = two_cameras()
    chains = chains_of(vessels(), cameras[0]), no_chains(cameras[1])
    match = match_views(cameras, chains, MatchSettings())
    assert np.isnan(match.points_mm[0]).all()
    assert len(match.points_mm[1]) == 0
    assert match.cost == pytest.approx(MatchSettings().path.none * chains[0].length_mm, rel=1e-6)
    assert assemble_tree(matched_curves(match, cameras, AssemblySettings()), AssemblySettings()) == Assembly(
        VesselTree(), (), ())


def test_a_further_view_forbids_what_it_does_not_show():
    cameras = two_cameras()
    chains = tuple(chains_of(vessels(), c) for c in cameras)
    witness = replace(cameras[0], primary_deg=0.0, secondary_deg=30.0)
    shown = match_views(cameras, chains, MatchSettings(), witnesses=[(witness, chains_of(vessels(), witness))])
    plain = match_views(cameras, chains, MatchSettings())
    assert shown.cost == pytest.approx(plain.cost, rel=0.05)
    elsewhere = chains_of([v + [0, 0, 60.0] for v in vessels()], witness)
    dear = replace(MatchSettings(), witness_price=5.0)
    refused = match_views(cameras, chains, dear, witnesses=[(witness, elsewhere)])
    assert np.isfinite(refused.points_mm[0][:, 0]).mean() < 0.2


def test_smoothing_keeps_a_bent_curve_and_repairs_depth():
    s = np.arange(0, 40, 0.45)
    truth = np.stack([20 * np.cos(s / 20), 20 * np.sin(s / 20), 0.3 * s], 1)
    tangent = np.gradient(truth, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    camera_a, camera_b = Camera(-30, 0, 1000, 750, 0.3, 0.3, 512, 512), Camera(30, 0, 1000, 750, 0.3, 0.3, 512, 512)
    normals = tuple(np.cross(tangent, truth - c.source_lps_mm) for c in (camera_a, camera_b))
    normals = tuple(n / np.linalg.norm(n, axis=1, keepdims=True) for n in normals)
    step = np.r_[0.0, np.linalg.norm(np.diff(truth, axis=0), axis=1)]
    np.testing.assert_allclose(smooth_curve(truth, normals, step), truth, atol=0.15)
    rng = np.random.default_rng(0)
    # Noise along the vessel does not matter; noise across it is averaged.
    noisy = truth + rng.normal(0, 0.4, (len(s), 1)) * tangent + rng.normal(0, 0.3, truth.shape)
    before = nearest_distances(noisy, truth)[0]
    after = nearest_distances(smooth_curve(noisy, normals, step), truth)[0]
    assert after.mean() < 0.7 * before.mean()


def test_what_a_place_costs_is_added_to_every_candidate():
    cameras = two_cameras()
    chains = tuple(chains_of(vessels(), c) for c in cameras)
    plain = match_views(cameras, chains, MatchSettings())
    free = match_views(cameras, chains, MatchSettings(), place_costs=[lambda points_mm: np.zeros(len(points_mm))])
    assert free.cost == plain.cost
    asked = []

    def low_is_dear(points_mm):
        asked.append(points_mm)
        return np.where(points_mm[:, 2] < 10.0, 50.0, 0.0)

    match = match_views(cameras, chains, MatchSettings(), place_costs=[low_is_dear])
    assert all(np.isfinite(points).all() for points in asked)
    for before, after in zip(plain.points_mm, match.points_mm, strict=True):
        assert (before[:, 2] < 10.0).sum() > 20
        assert (after[np.isfinite(after[:, 0]), 2] >= 10.0).all()
