# SPDX-License-Identifier: Apache-2.0
"""Frames of one phase fit one tree better than frames of different phases, whatever the table offset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.inversion.chains import chains_from_graph
from licag3d.inversion.frame_pairs import SPACING_MM, rank_frame_pairs
from licag3d.models.centerline2d import trace_centerlines
from licag3d.models.vessel_evidence import evidence_from_mask
from licag3d.phantom.simulate_case import simulate_case
from licag3d.phantom.tubes import path_length_mm, tree_lines
from licag3d.structures import VesselTree, View


def beat(tree: VesselTree, phase: float) -> VesselTree:
    """Contraction towards the centre and a twist, up to 6 mm: enough to tell phases."""
    centre = np.concatenate([b.points_lps_mm for b in tree.branches]).mean(0)
    branches = []
    for branch in tree.branches:
        offset = branch.points_lps_mm - centre
        turn = np.deg2rad(8 * phase)
        cos, sin = np.cos(turn), np.sin(turn)
        twisted = offset @ np.array(((cos, sin, 0), (-sin, cos, 0), (0, 0, 1)))
        branches.append(replace(branch, points_lps_mm=centre + (1 - 0.12 * phase) * twisted))
    return VesselTree(tuple(branches))


def frame(tree: VesselTree, true_camera, user_camera):
    path = path_length_mm(tree_lines(tree), true_camera)
    image = (0.7 * np.exp(-0.15 * path)).astype(np.float32)
    view = View(image, user_camera, np.ones(image.shape, bool), mask=path > 0, intensity="linear")
    return user_camera, chains_from_graph(
        trace_centerlines(evidence_from_mask(view), view), user_camera, spacing_mm=SPACING_MM
    )


@pytest.mark.parametrize("artery", ["rca", "lca"])
def test_the_pair_of_one_phase_is_best(artery):
    case = simulate_case(1, artery, rows=256, cols=256, offset_mm=8, held_out=0)
    trees = [beat(case.tree, phase) for phase in (0.0, 0.5, 1.0)]
    first, second = ([frame(tree, view.true_camera, view.user_camera) for tree in trees] for view in case.views)
    ranked = rank_frame_pairs(first, second[1:])
    assert (ranked[0].first, ranked[0].second + 1) in ((1, 1), (2, 2))
    misfit = {(p.first, p.second + 1): p.misfit for p in ranked}
    assert misfit[2, 2] < misfit[0, 2] and misfit[2, 2] < misfit[2, 1]
    assert abs(sum(misfit.values())) < 1e-9  # the means of the frames are taken off
    assert len(ranked) == 6 and all(0 <= p.matched <= 1 for p in ranked)


def test_frames_without_vessels_are_left_out():
    case = simulate_case(2, "rca", rows=128, cols=128, held_out=0)
    full = frame(case.tree, case.views[0].true_camera, case.views[0].user_camera)
    empty = frame(VesselTree(()), case.views[1].true_camera, case.views[1].user_camera)
    assert rank_frame_pairs([full], [empty]) == []
