# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from vessel_trees import coronary, tube

from licag3d.geometry import Camera
from licag3d.structures import VesselTree
from licag3d.vessels.foreshortening import best_views, foreshortening_map, foreshortening_percent


def view(primary_deg, secondary_deg, offset=(0.0, 0.0, 0.0)) -> Camera:
    return Camera(primary_deg, secondary_deg, sid_mm=1000, sod_mm=750, spacing_row_mm=0.3, spacing_col_mm=0.3, rows=512,
                  cols=512, offset_lps_mm=offset)


def test_a_vessel_across_and_along_the_beam():
    lying = tube(20, direction=(0, 0, 1), start=(0, 0, -10)).branches[0]  # along the body axis
    assert foreshortening_percent(lying, view(0, 0)) == pytest.approx(0, abs=0.02)
    assert foreshortening_percent(lying, view(0, 90)) == pytest.approx(100, abs=0.1)
    assert foreshortening_percent(lying, view(0, 30)) == pytest.approx(100 * (1 - np.cos(np.pi / 6)), abs=0.1)


def test_rays_diverge():
    """Off the centre, a vessel along the central beam is not quite along its own ray."""
    along = tube(20, direction=(0, 1, 0), start=(60, -10, 0)).branches[0]
    source_distance = 750.0
    expected = 100 * (1 - 60 / np.hypot(60, source_distance))
    assert foreshortening_percent(along, view(0, 0)) == pytest.approx(expected, abs=0.3)
    assert foreshortening_percent(along, view(0, 0, (-60, 0, 0))) == pytest.approx(100, abs=0.1)


def test_map_agrees_with_far_cameras():
    tree = coronary()
    percent = foreshortening_map(tree, [-30, 0, 40], [-20, 25])
    assert percent.shape == (3, 2)
    far = Camera(40, 25, sid_mm=5000, sod_mm=4999, spacing_row_mm=0.3, spacing_col_mm=0.3, rows=512, cols=512)
    length = [np.linalg.norm(np.diff(b.points_lps_mm, axis=0), axis=1).sum() for b in tree.branches]
    mean = np.average([foreshortening_percent(b, far) for b in tree.branches], weights=length)
    assert percent[2, 1] == pytest.approx(mean, abs=0.3)


def test_best_view_of_a_straight_vessel_looks_across_it():
    tree = tube(20, direction=(np.sin(0.5), -np.cos(0.5) * 0.9, 0.2))
    best = best_views(tree, count=3)
    direction = np.diff(tree.branches[0].points_lps_mm[[0, -1]], axis=0)[0] / 20
    for found in best:
        beam = view(found.primary_deg, found.secondary_deg).frame.beam
        assert found.foreshortening_percent == pytest.approx(100 * (1 - np.sqrt(1 - (beam @ direction) ** 2)), abs=1e-6)
    everywhere = foreshortening_map(tree, np.arange(-60, 61, 5.0), np.arange(-40, 41, 5.0))
    assert best[0].foreshortening_percent == pytest.approx(everywhere.min())
    beams = [view(b.primary_deg, b.secondary_deg).frame.beam for b in best]
    assert all(np.degrees(np.arccos(a @ b)) >= 24.9 for k, a in enumerate(beams) for b in beams[:k])
    assert foreshortening_map(VesselTree(), [0], [0]) == pytest.approx(0)
