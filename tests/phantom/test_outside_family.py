# SPDX-License-Identifier: Apache-2.0
"""Trees outside the phantom's family: how far they are from the tree they come from."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.phantom.anatomy import sample_tree
from licag3d.phantom.outside_family import BEND_MM, outside_tree
from licag3d.phantom.simulate_case import simulate_case


@pytest.mark.parametrize("artery", ["rca", "lca"])
def test_a_tree_is_bent_loses_two_branches_and_grows_two(artery):
    tree = sample_tree(50001, artery)
    strange, again = outside_tree(tree, 50001), outside_tree(tree, 50001)
    names = [branch.name for branch in strange.branches]
    assert names[-2:] == ["X1", "X2"] and len(names) == len(tree.branches)
    assert all(np.array_equal(a.points_lps_mm, b.points_lps_mm) for a, b in zip(strange.branches, again.branches,
                                                                              strict=True))  # fmt: skip
    ids = {branch.id: branch for branch in strange.branches}
    for branch in strange.branches:
        if branch.parent is not None:
            gap = np.linalg.norm(ids[branch.parent].points_lps_mm - branch.points_lps_mm[0], axis=1).min()
            assert gap < 0.6
    before = {branch.name: branch.points_lps_mm for branch in tree.branches}
    first = np.concatenate([before[b.name] for b in strange.branches[:-2]])
    after = np.concatenate([b.points_lps_mm for b in strange.branches[:-2]])
    # What no affine map explains is the bending.
    flat = np.column_stack([first, np.ones(len(first))])
    left = after - flat @ np.linalg.lstsq(flat, after, rcond=None)[0]
    assert np.sqrt((left**2).sum(1).mean()) == pytest.approx(BEND_MM, rel=0.35)
    step = np.linalg.norm(np.diff(strange.branches[-1].points_lps_mm, axis=0), axis=1)
    assert step.max() < 1.2 and 15 < step.sum() < 60


def test_it_can_be_rendered():
    tree = outside_tree(sample_tree(50002, "rca"), 50002)
    case = simulate_case(50002, "rca", tree=tree, rows=128, cols=128, background="full", held_out=0)
    assert {branch.name for branch in case.tree.branches} >= {"X1", "X2"} and all(mask.any() for mask in case.masks)
