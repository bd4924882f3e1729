# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from vessel_trees import coronary, tube

from licag3d.structures import Branch, VesselTree
from licag3d.vessels.tree import (
    branch_length_mm,
    flatten_tree,
    point_to_polyline_mm,
    prune_spurs,
    resample_tree,
    retrace_tree,
    transform_tree,
    tree_edges,
    validate_tree,
)


def test_lengths_and_resampling():
    tree = tube(length_mm=30, step_mm=0.5)
    assert branch_length_mm(tree.branches[0]) == pytest.approx(30)
    coarse = resample_tree(tree, 2.0)
    assert len(coarse.branches[0].points_lps_mm) == 16
    np.testing.assert_allclose(np.linalg.norm(np.diff(coarse.branches[0].points_lps_mm, axis=0), axis=1), 2.0)
    bent = resample_tree(coronary(), 0.25)
    assert bent.length_mm == pytest.approx(coronary().length_mm, rel=1e-3)
    for a, b in zip(bent.branches, coronary().branches, strict=True):
        np.testing.assert_array_equal(a.points_lps_mm[[0, -1]], b.points_lps_mm[[0, -1]])
        assert a.confidence.shape == a.radius_mm.shape


def test_sound_tree_has_no_faults_and_each_fault_is_named():
    tree = coronary()
    assert validate_tree(tree, tolerance_mm=1e-6) == []
    main, first, second, third = tree.branches
    assert "before" in validate_tree(VesselTree((first, main)))[0]
    assert "twice" in validate_tree(VesselTree((main, replace(main))))[0]
    moved = replace(first, points_lps_mm=first.points_lps_mm + [0, 0, 5.0])
    assert "off its parent" in validate_tree(VesselTree((main, moved)))[0]
    assert "positive" in validate_tree(VesselTree((replace(main, radius_mm=0 * main.radius_mm),)))[0]
    assert "finite" in validate_tree(VesselTree((replace(main, radius_mm=np.nan * main.radius_mm),)))[0]
    assert "fit" in validate_tree(VesselTree((replace(main, radius_mm=main.radius_mm[:-1]),)))[0]
    assert "confidence" in validate_tree(VesselTree((replace(main, confidence=main.confidence + 1),)))[0]


def test_point_to_polyline():
    line = [[0, 0, 0], [10, 0, 0], [10, 10, 0]]
    assert point_to_polyline_mm([5, 3, 4], line) == pytest.approx(5)
    assert point_to_polyline_mm([-3, 4, 0], line) == pytest.approx(5)
    assert point_to_polyline_mm([1, 0, 0], line[:1]) == pytest.approx(1)


def test_flatten_and_edges():
    tree = coronary()
    flat = flatten_tree(tree)
    assert len(flat.points_lps_mm) == sum(len(b.points_lps_mm) for b in tree.branches) == len(flat.confidence)
    assert np.all(flat.branch[flat.segments[:, 0]] == flat.branch[flat.segments[:, 1]])
    length = np.linalg.norm(np.diff(flat.points_lps_mm[flat.segments], axis=1)[:, 0], axis=1).sum()
    assert length == pytest.approx(tree.length_mm)
    joints = tree_edges(tree)[len(flat.segments):]
    assert len(joints) == 3
    assert np.abs(np.diff(flat.points_lps_mm[joints], axis=1)).max() < 1e-9
    assert flatten_tree(VesselTree()).segments.shape == (0, 2)


def test_similarity_transform():
    tree = coronary()
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    moved = transform_tree(tree, scale=2.0, rotation=turn, translation_mm=(1, 2, 3))
    assert moved.length_mm == pytest.approx(2 * tree.length_mm)
    np.testing.assert_allclose(moved.branches[2].radius_mm, 2 * tree.branches[2].radius_mm)
    point = tree.branches[0].points_lps_mm[7]
    np.testing.assert_allclose(moved.branches[0].points_lps_mm[7], 2 * turn @ point + [1, 2, 3])
    assert validate_tree(moved, tolerance_mm=1e-6) == []
    with pytest.raises(ValueError, match="orthogonal"):
        transform_tree(tree, rotation=2 * turn)
    with pytest.raises(ValueError, match="scale"):
        transform_tree(tree, scale=0)


def test_retracing_keeps_the_tree():
    tree = coronary()
    again = retrace_tree(tree)
    assert [b.parent for b in again.branches] == [None, 0, 0, 1]
    assert [b.name for b in again.branches] == ["main", "side 1", "side 2", ""]
    assert again.length_mm == pytest.approx(tree.length_mm, rel=1e-9)
    turned = retrace_tree(tree, root_lps_mm=tree.branches[1].points_lps_mm[-1])
    assert turned.length_mm == pytest.approx(tree.length_mm, rel=1e-9)
    np.testing.assert_allclose(turned.branches[0].points_lps_mm[0], tree.branches[1].points_lps_mm[-1])
    assert validate_tree(turned, tolerance_mm=1e-6) == []


def test_prune_spurs_keeps_parents():
    tree = coronary()
    points = tree.branches[0].points_lps_mm[90] + np.linspace(0, 2, 5)[:, None] * [0, 1, 0]
    short = Branch(9, 0, points, np.full(5, 0.4))
    pruned = prune_spurs(VesselTree((*tree.branches, short)), 3.0)
    assert [b.id for b in pruned.branches] == [0, 1, 2, 3]
    assert [b.id for b in prune_spurs(tree, 20.0).branches] == [0, 1, 2]
    assert [b.id for b in prune_spurs(tree, 1000.0).branches] == [0]
