# SPDX-License-Identifier: Apache-2.0
"""Overlap on the 0.5 mm grid: brute force, analytic volumes, clDice and HD95 of known shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from licag3d.metrics.centerline import CenterlinePoints, tree_points
from licag3d.metrics.overlap import VOXEL_MM, lumen_voxels, overlap_metrics
from licag3d.structures import Branch, VesselTree


def tube(start, end, radius_mm: float) -> CenterlinePoints:
    points = np.linspace(start, end, 50)
    return tree_points(VesselTree((Branch(0, None, points, np.full(50, radius_mm)),)))


def test_voxels_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    points = CenterlinePoints(rng.uniform(-4, 4, (40, 3)), rng.uniform(0.1, 1.9, 40))
    axis = np.arange(-14, 14)
    every = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    inside = (cdist((every + 0.5) * VOXEL_MM, points.points_lps_mm) <= points.radius_mm).any(1)
    inside |= (np.floor(points.points_lps_mm / VOXEL_MM)[None] == every[:, None]).all(2).any(1)
    found = lumen_voxels(points)
    assert {tuple(v) for v in found} == {tuple(v) for v in every[inside]}
    assert len(np.unique(found, axis=0)) == len(found)


def test_the_volume_is_that_of_a_capsule():
    voxels = lumen_voxels(tube((0.2, -0.1, 0.3), (30.2, -0.1, 0.3), 2.0))
    capsule = math.pi * 4 * 29.75 + 4 / 3 * math.pi * 8  # the points stand half a step inside both ends
    assert len(voxels) * VOXEL_MM**3 == pytest.approx(capsule, rel=0.03)


def test_identical_and_disjoint_lumens():
    one, far = tube((0, 0, 0), (20, 0, 0), 1.5), tube((0, 30, 0), (20, 30, 0), 1.5)
    same = overlap_metrics(one, one)
    assert (same["dice"], same["cldice"], same["hd95_mm"], same["surface_chamfer_mm"]) == (1, 1, 0, 0)
    apart = overlap_metrics(one, far)
    assert (apart["dice"], apart["cldice"]) == (0, 0)
    assert apart["hd95_mm"] == pytest.approx(30, abs=3)


def test_dice_of_two_overlapping_capsules_agrees_with_counting():
    one, two = tube((0, 0, 0), (20, 0, 0), 2.0), tube((0, 1.5, 0), (20, 1.5, 0), 2.0)
    a, b = ({tuple(v) for v in lumen_voxels(x)} for x in (one, two))
    scores = overlap_metrics(one, two)
    assert scores["dice"] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert 0.4 < scores["dice"] < 0.7
    assert scores["cldice"] == 1  # each centreline lies inside the other lumen


def test_a_thin_line_in_a_thick_tube_has_full_cldice_and_small_dice():
    thin, thick = tube((0, 0, 0), (30, 0, 0), 0.5), tube((0, 0, 0), (30, 0, 0), 2.0)
    scores = overlap_metrics(thin, thick)
    assert scores["cldice"] > 0.95 and scores["dice"] < 0.25
    assert scores["surface_chamfer_mm"] == pytest.approx(1.5, abs=0.35)


def test_grid_does_not_depend_on_the_other_tree():
    one, two = tube((0, 0, 0), (20, 0, 0), 1.5), tube((300, 5, -700), (320, 5, -700), 1.5)
    assert overlap_metrics(one, two)["dice"] == 0


def test_empty_and_bad_input():
    empty = tree_points(VesselTree())
    scores = overlap_metrics(empty, tube((0, 0, 0), (5, 0, 0), 1))
    assert scores["dice"] == scores["cldice"] == 0 and math.isnan(scores["hd95_mm"])
    with pytest.raises(ValueError, match="radii"):
        lumen_voxels(CenterlinePoints(np.zeros((2, 3)), np.array([1.0, np.inf])))
