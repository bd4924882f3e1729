# SPDX-License-Identifier: Apache-2.0
"""Frames and units that do not agree, lumen scores against SimpleITK, scipy and counting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.metrics.centerline import CenterlinePoints
from licag3d.metrics.folders import frame_warnings
from licag3d.metrics.overlap import VOXEL_MM, Lumen, lumen_components, overlap_metrics
from licag3d.phantom.anatomy import sample_tree
from licag3d.structures import VesselTree

TREE = VesselTree(sample_tree(3, "rca").branches[:3])


def changed(factor, shift=(0.0, 0, 0)) -> VesselTree:
    return VesselTree(tuple(replace(b, points_lps_mm=b.points_lps_mm * factor + shift) for b in TREE.branches))


@pytest.mark.parametrize(
    ("pred", "words"),
    [
        (changed(np.array((-1, -1, 1))), "RAS"),
        (changed(np.array((-1, 1, 1))), "mirrored"),
        (changed(1e-3), "metres"),
        (changed(1.0, (300, 0, 0)), "another frame"),
    ],
)
def test_another_frame_or_unit_is_said(pred, words):
    assert words in frame_warnings(pred, TREE)[0]


def test_an_ordinary_error_is_not():
    assert frame_warnings(changed(1.05, (10, -8, 6)), TREE) == [] == frame_warnings(VesselTree(), TREE)


def test_lumen_scores_are_those_of_simpleitk_and_of_counting():
    import SimpleITK as sitk
    from scipy import ndimage
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(0)
    pred, true = (Lumen.of(CenterlinePoints(rng.uniform(2, 10, (12, 3)), rng.uniform(0.4, 1.2, 12))) for _ in range(2))
    grids = []
    for lumen in (pred, true):
        grid = np.zeros((30, 30, 30), np.uint8)
        grid[tuple(lumen.voxels.T)] = 1
        grids.append(grid)
    scores = overlap_metrics(pred, true)
    filter_ = sitk.LabelOverlapMeasuresImageFilter()
    filter_.Execute(*(sitk.GetImageFromArray(grid) for grid in grids))
    assert scores["dice"] == pytest.approx(filter_.GetDiceCoefficient())
    apart = cdist(pred.voxels, true.voxels) * VOXEL_MM
    for d in (1, 2):
        near = (apart.min(1) <= d).sum() + (apart.min(0) <= d).sum()
        assert scores[f"ot_{d}mm"] == pytest.approx(near / sum(apart.shape))
    surfaces = [np.argwhere(grid & ~ndimage.binary_erosion(grid)) for grid in (g.astype(bool) for g in grids)]
    pooled = cdist(*surfaces) * VOXEL_MM
    assert scores["hd95_mm"] == pytest.approx(np.percentile(np.concatenate((pooled.min(0), pooled.min(1))), 95))
    assert lumen_components(pred) == ndimage.label(grids[0], np.ones((3, 3, 3)))[1]
