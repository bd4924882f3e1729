# SPDX-License-Identifier: Apache-2.0
"""Surface and labels of the truth, brick by brick, against those over the whole box."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.phantom import truth_volumes
from licag3d.phantom.anatomy import sample_tree
from licag3d.phantom.truth_volumes import truth_labels, truth_surface
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.rasterize import tree_grid, tree_labels
from licag3d.vessels.surface import surface_parts, tree_surface


@pytest.fixture(scope="module")
def tree() -> VesselTree:
    return VesselTree(sample_tree(3, "rca").branches[:2])


def test_the_surface_is_that_of_one_large_grid_closed_and_in_one_piece(tree):
    surface, whole = truth_surface(tree, spacing_mm=0.4), tree_surface(tree, spacing_mm=0.4)
    assert surface.open_edges() == 0 and len(surface_parts(surface)) == 1
    assert surface.volume_mm3 == pytest.approx(whole.volume_mm3, rel=2e-3)
    assert surface.area_mm2 == pytest.approx(whole.area_mm2, rel=1e-2)


def test_the_size_of_a_brick_does_not_show(tree, monkeypatch):
    wide = truth_surface(tree, spacing_mm=0.5)
    monkeypatch.setattr(truth_volumes, "_BRICK", 10)  # walls run along many brick borders
    narrow = truth_surface(tree, spacing_mm=0.5)
    assert narrow.open_edges() == 0 and len(narrow.faces) == len(wide.faces)
    assert narrow.volume_mm3 == pytest.approx(wide.volume_mm3, rel=1e-6)
    assert np.array_equal(truth_labels(tree).values, _labels_with(40, tree, monkeypatch))


def _labels_with(brick: int, tree: VesselTree, monkeypatch) -> np.ndarray:
    monkeypatch.setattr(truth_volumes, "_BRICK", brick)
    return truth_labels(tree).values


def test_a_tube_has_its_volume():
    # At a slant: along an axis all cross-sections would be cut by the voxels alike.
    points = np.linspace(-20, 20, 60)[:, None] * np.array((1.0, 2.0, 3.0)) / np.sqrt(14)
    tube = VesselTree((Branch(0, None, points, np.full(60, 1.5), "A"),))
    expected = np.pi * 1.5**2 * 40 + 4 / 3 * np.pi * 1.5**3
    assert truth_surface(tube, spacing_mm=0.2).volume_mm3 == pytest.approx(expected, rel=0.01)
    assert 0.125 * truth_labels(tube).values.sum() == pytest.approx(expected, rel=0.02)


def test_labels_are_those_of_the_slow_way_but_for_voxels_cut_in_half(tree):
    fast, slow = truth_labels(tree), tree_labels(tree, tree_grid(tree, 0.5))
    assert fast.origin_mm == slow.origin_mm and fast.values.shape == slow.values.shape
    assert (fast.values != slow.values).sum() < 0.01 * slow.values.sum()


def test_trees_without_a_surface_are_refused():
    with pytest.raises(InputError, match="no points"):
        truth_surface(VesselTree())
    line = Branch(0, None, np.array([[0.0, 0, 0], [0, 0, 5]]), np.array([1.0, 0.0]), "A")
    with pytest.raises(InputError, match="positive"):
        truth_surface(VesselTree((line,)))
