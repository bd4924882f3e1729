# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from vessel_trees import coronary, tube

from licag3d.errors import InputError
from licag3d.structures import VesselTree
from licag3d.vessels.rasterize import tree_attenuation, tree_grid, tree_labels, tree_occupancy
from licag3d.vessels.volume import Volume


@pytest.mark.parametrize(("radius_mm", "spacing_mm"), [(0.3, 0.5), (0.5, 0.5), (1.5, 0.5), (1.5, 1.0), (2.0, 0.3)])
def test_occupancy_keeps_the_volume_of_a_tube(radius_mm, spacing_mm):
    tree = tube(radius_mm=radius_mm, length_mm=20)
    grid = tree_grid(tree, spacing_mm)
    occupancy = tree_occupancy(tree, grid)
    truth = math.pi * radius_mm**2 * 20 + 4 / 3 * math.pi * radius_mm**3
    assert occupancy.values.sum() * spacing_mm**3 == pytest.approx(truth, rel=0.025)
    assert occupancy.values.min() >= 0 and occupancy.values.max() <= 1
    if radius_mm > 2 * spacing_mm:
        assert occupancy.values.max() == 1


def test_occupancy_against_counting_points():
    """Random points in chosen voxels, inside or outside by distance to the axis."""
    tree = tube(radius_mm=1.3, length_mm=12)
    grid = tree_grid(tree, 0.8)
    occupancy = tree_occupancy(tree, grid).values
    rng = np.random.default_rng(1)
    mixed = np.argwhere((occupancy > 0.1) & (occupancy < 0.9))
    axis = tree.branches[0].points_lps_mm
    direction = (axis[-1] - axis[0]) / 12
    for index in rng.choice(mixed, 25, replace=False):
        points = grid.index_to_lps(index + rng.uniform(-0.5, 0.5, (4000, 3))) - axis[0]
        along = np.clip(points @ direction, 0, 12)
        inside = np.linalg.norm(points - along[:, None] * direction, axis=1) <= 1.3
        assert occupancy[tuple(index)] == pytest.approx(inside.mean(), abs=0.08)


def test_position_in_space():
    tree = tube(radius_mm=1.5)
    attenuation = tree_attenuation(tree, tree_grid(tree, 0.5), 0.04)
    assert attenuation.values.max() == pytest.approx(0.04)
    index = np.stack(np.indices(attenuation.values.shape), -1)
    mean = (attenuation.values[..., None] * attenuation.index_to_lps(index)).sum((0, 1, 2)) / attenuation.values.sum()
    np.testing.assert_allclose(mean, tree.branches[0].points_lps_mm.mean(0), atol=0.02)


def test_grid_need_not_hold_the_tree():
    tree = tube(radius_mm=1.5)
    away = Volume(np.zeros((5, 5, 5)), (500, 500, 500), 0.5)
    assert not tree_occupancy(tree, away).values.any()
    partly = Volume(np.zeros((8, 20, 20)), tuple(tree.branches[0].points_lps_mm[0] - 3), 0.5)
    assert 0 < tree_labels(tree, partly).values.sum() < partly.values.size


def test_thin_vessels_stay_connected_in_the_labels():
    from scipy.ndimage import label

    tree = tube(radius_mm=0.2, length_mm=40)
    labels = tree_labels(tree, tree_grid(tree, 1.0)).values
    assert labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 1}
    assert label(labels, np.ones((3, 3, 3)))[1] == 1


def test_labels_by_branch_hold_every_branch():
    tree = coronary()
    grid = tree_grid(tree, 0.5)
    labels = tree_labels(tree, grid, by_branch=True).values
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    for position, branch in enumerate(tree.branches):
        tip = np.rint(grid.lps_to_index(branch.points_lps_mm[-1])).astype(int)
        assert labels[tuple(tip)] == position + 1


def test_refusals():
    with pytest.raises(InputError, match="no points"):
        tree_grid(VesselTree(), 0.5)
    with pytest.raises(InputError, match="spacing"):
        tree_grid(coronary(), 0.0)
    with pytest.raises(ValueError, match="attenuation_per_mm"):
        tree_attenuation(coronary(), tree_grid(coronary(), 1.0), float("nan"))
