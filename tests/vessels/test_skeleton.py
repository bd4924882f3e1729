# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from vessel_trees import coronary, tube

from licag3d.errors import InputError
from licag3d.structures import VesselTree
from licag3d.vessels.graph import trace_tree
from licag3d.vessels.rasterize import tree_attenuation, tree_grid, tree_labels
from licag3d.vessels.skeleton import skeleton_tree
from licag3d.vessels.tree import branch_length_mm, flatten_tree, resample_tree, validate_tree
from licag3d.vessels.volume import Volume


def errors_mm(found: VesselTree, truth: VesselTree):
    """Distances found -> truth, truth -> found, and radius errors, all at points every 0.2 mm."""
    from scipy.spatial import cKDTree

    a, b = flatten_tree(resample_tree(found, 0.2)), flatten_tree(resample_tree(truth, 0.1))
    there, nearest = cKDTree(b.points_lps_mm).query(a.points_lps_mm)
    back, _ = cKDTree(a.points_lps_mm).query(b.points_lps_mm)
    return there, back, a.radius_mm - b.radius_mm[nearest]


@pytest.mark.parametrize("kind", ["attenuation", "mask"])
def test_round_trip_of_a_tree(kind):
    truth = coronary()
    grid = tree_grid(truth, 0.5)
    if kind == "mask":
        found, report = skeleton_tree(tree_labels(truth, grid))
    else:
        found, report = skeleton_tree(tree_attenuation(truth, grid, 0.03), level=0.015)
    there, back, radius_error = errors_mm(found, truth)
    assert len(found.branches) == 4 and [b.parent for b in found.branches] == [None, 0, 0, 1]
    assert np.median(there) < 0.06 and np.percentile(there, 95) < 0.25 and np.percentile(back, 95) < 0.25
    assert np.abs(radius_error).mean() < 0.1
    assert validate_tree(found, tolerance_mm=0.01) == []
    # Away from the ostium: the thick end comes first.
    assert np.linalg.norm(found.branches[0].points_lps_mm[0] - truth.branches[0].points_lps_mm[0]) < 2
    assert report.thinning_failures == 0 and report.skipped_mm3 == () and len(report.components_mm3) == 1


@pytest.mark.parametrize("radius_mm", [0.6, 1.2, 2.0])
def test_radius_is_finer_than_a_voxel(radius_mm):
    truth = tube(radius_mm=radius_mm)
    found, _ = skeleton_tree(tree_attenuation(truth, tree_grid(truth, 0.5), 0.03), level=0.015)
    radius = found.branches[0].radius_mm
    assert abs(np.median(radius) - radius_mm) < 0.08


def test_root_may_be_given():
    truth = coronary()
    tip = truth.branches[0].points_lps_mm[-1]
    found, _ = skeleton_tree(tree_labels(truth, tree_grid(truth, 0.6)), root_lps_mm=tip)
    assert np.linalg.norm(found.branches[0].points_lps_mm[0] - tip) < 2


def test_even_blobs_are_not_lost():
    """Lee thinning returns nothing for these: each must still give a point or a path."""
    from skimage.morphology import skeletonize

    cube = np.zeros((14, 14, 14), np.uint8)
    cube[5:9, 5:9, 5:9] = 1
    bar = np.zeros((20, 12, 12), np.uint8)
    bar[2:18, 5:7, 5:7] = 1
    assert skeletonize(bar.astype(bool), method="lee").sum() <= 1  # the defect that is guarded against
    found, report = skeleton_tree(Volume(cube, (0, 0, 0), 1.0))
    assert len(found.branches) == 1 and report.components_mm3 == (64.0,)
    assert np.linalg.norm(found.branches[0].points_lps_mm.mean(0) - 6.5) < 1
    found, report = skeleton_tree(Volume(bar, (0, 0, 0), 1.0))
    assert report.thinning_failures == 1
    assert branch_length_mm(found.branches[0]) > 12
    both = np.concatenate([np.pad(cube, ((0, 0), (0, 0), (0, 0))), np.pad(bar, ((0, 0), (1, 1), (1, 1)))])
    found, report = skeleton_tree(Volume(both, (0, 0, 0), 1.0))
    assert len([b for b in found.branches if b.parent is None]) == 2 == len(report.components_mm3)


def test_small_pieces_are_reported():
    values = tree_labels(tube(), tree_grid(tube(), 0.5))
    values.values[1, 1, 1] = 1
    found, report = skeleton_tree(values, min_component_mm3=1.0)
    assert len(found.branches) == 1
    assert report.skipped_mm3 == pytest.approx((0.125,)) and len(report.components_mm3) == 2


def test_refusals():
    with pytest.raises(InputError, match="lower the level"):
        skeleton_tree(Volume(np.zeros((5, 5, 5)), (0, 0, 0), 1.0))
    with pytest.raises(InputError, match="NaN"):
        skeleton_tree(Volume(np.full((5, 5, 5), np.nan), (0, 0, 0), 1.0))


def test_cycle_is_opened_on_its_thin_side():
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = 10 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
    points = np.concatenate([[[20.0, 0, 0], [15.0, 0, 0]], ring])
    radius = np.concatenate([[2.0, 2.0], np.full(40, 1.0)])
    radius[2 + 13] = 0.2  # the thin spot
    edges = [(0, 1), (1, 2)] + [(2 + k, 2 + (k + 1) % 40) for k in range(40)]
    tree = trace_tree(points, radius, edges)
    assert [b.parent for b in tree.branches] == [None, 0]
    assert tree.branches[0].points_lps_mm[0].tolist() == [20, 0, 0]
    ends = {tuple(np.round(b.points_lps_mm[-1], 6)) for b in tree.branches}
    assert tuple(np.round(points[2 + 13], 6)) in ends
    assert sum(len(b.points_lps_mm) for b in tree.branches) == len(points) + 1


def test_spur_is_pruned_but_branch_is_kept():
    main = np.stack([np.arange(41.0), np.zeros(41), np.zeros(41)], -1)
    spur = np.array([[10.0, 1, 0], [10, 2, 0], [10, 3, 0]])
    side = np.array([[20.0, y, 0] for y in range(1, 12)])
    points = np.concatenate([main, spur, side])
    edges = ([(k, k + 1) for k in range(40)] + [(10, 41), (41, 42), (42, 43), (20, 44)]
             + [(44 + k, 45 + k) for k in range(10)])
    radius = np.full(len(points), 1.5)
    radius[0] = 2.0
    assert len(trace_tree(points, radius, edges, min_branch_mm=3.0).branches) == 2
    assert len(trace_tree(points, radius, edges, min_branch_mm=0.0).branches) == 3
    assert trace_tree(np.zeros((0, 3)), [], []).branches == ()
