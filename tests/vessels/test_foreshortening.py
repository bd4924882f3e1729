# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from vessel_trees import coronary, tube

from licag3d.geometry import Camera
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.foreshortening import (
    REACH_PRIMARY_DEG,
    REACH_SECONDARY_DEG,
    best_views,
    branch_pieces,
    covered,
    joined,
    tree_pieces,
    view_figures,
    view_maps,
)

ALL = slice(None)


def view(primary_deg, secondary_deg, offset=(0.0, 0.0, 0.0)) -> Camera:
    return Camera(primary_deg, secondary_deg, sid_mm=1000, sod_mm=750, spacing_row_mm=0.3, spacing_col_mm=0.3, rows=512,
                  cols=512, offset_lps_mm=offset)


def line(start, end, radius_mm=1.5, number=0, name="") -> Branch:
    points = np.linspace(start, end, 81)
    return Branch(number, None, points, np.full(81, radius_mm), name)


def figures(tree: VesselTree, camera: Camera, position: int | None = None) -> tuple[float, float]:
    """Foreshortening and overlap, percent, of a tree or one of its branches in one view."""
    pieces = tree_pieces(tree)
    own = ALL if position is None else pieces.branch == position
    short, hidden = view_figures(pieces, [own], camera.source_lps_mm, pieces)[0]
    return float(short[0]), float(hidden[0])


def a_map(tree: VesselTree, own=ALL, camera=None):
    pieces = tree_pieces(tree)
    return view_maps(pieces, [own], camera or view(0, 0), pieces)[0]


def test_a_vessel_across_and_along_the_beam():
    lying = tube(20, direction=(0, 0, 1), start=(0, 0, -10))  # along the body axis
    assert figures(lying, view(0, 0))[0] == pytest.approx(0, abs=0.02)
    assert figures(lying, view(0, 90))[0] == pytest.approx(100, abs=0.1)
    assert figures(lying, view(0, 30))[0] == pytest.approx(100 * (1 - np.cos(np.pi / 6)), abs=0.1)


def test_rays_diverge():
    """Off the centre, a vessel along the central beam is not quite along its own ray."""
    along = tube(20, direction=(0, 1, 0), start=(60, -10, 0))
    expected = 100 * (1 - 60 / np.hypot(60, 750.0))
    assert figures(along, view(0, 0))[0] == pytest.approx(expected, abs=0.3)
    assert figures(along, view(0, 0, (-60, 0, 0)))[0] == pytest.approx(100, abs=0.1)


def test_maps_say_what_cameras_see():
    tree, at = coronary(), view(0, 0, (4.0, -3.0, 8.0))
    found = a_map(tree, camera=at)
    assert found.cost_percent.shape == (len(found.primary_deg), len(found.secondary_deg)) == (25, 17)
    for i, j in ((0, 0), (7, 12), (24, 3)):
        here = figures(tree, view(found.primary_deg[i], found.secondary_deg[j], at.offset_lps_mm))
        assert (found.foreshortening_percent[i, j], found.overlap_percent[i, j]) == pytest.approx(here, abs=1e-9)


def test_a_straight_vessel_is_best_seen_from_across():
    right_to_left = VesselTree((line([-20, 0, 0], [20, 0, 0]),))
    first, second = best_views(a_map(right_to_left))
    assert (first.primary_deg, first.secondary_deg) == (0, 0)
    assert first.foreshortening_percent < 0.1 and first.overlap_percent == 0
    assert second.primary_deg == 0 and abs(second.secondary_deg) >= 30  # across as well, from elsewhere
    forward = VesselTree((line([-12, 20, 0], [12, -20, 0]),))  # mostly toward the front: from the side that faces it
    best = best_views(a_map(forward), count=1)[0]
    direction = np.array([24, -40, 0]) / np.hypot(24, 40)
    assert abs(view(best.primary_deg, best.secondary_deg).frame.beam @ direction) < 0.05
    assert figures(forward, view(0, 0))[0] > 30


def test_parallel_vessels_are_seen_beside_each_other():
    """One 12 mm behind the other: from the front they lie on top of each other, at 45 degrees they do not."""
    tree = VesselTree((line([0, 0, -30], [0, 0, 30]), line([0, 12, -30], [0, 12, 30], number=1)))
    assert figures(tree, view(0, 0))[1] == 100
    assert figures(tree, view(45, 0))[1] == 0
    found = a_map(tree)
    middle = len(found.primary_deg) // 2
    assert found.overlap_percent[middle, len(found.secondary_deg) // 2] == 100
    for best in best_views(found):
        assert best.overlap_percent == 0 and abs(best.primary_deg) >= 15  # asin(3 mm / 12 mm) = 14.5 degrees
    # The shadow grows towards the source: what is 12 mm nearer to it is thrown wider by 12 in 750.
    beside = VesselTree((line([0, 0, -30], [0, 0, 30]), line([3.01, -12, -30], [3.01, -12, 30], number=1)))
    assert figures(beside, view(0, 0))[1] == 100  # 3.01 mm are less than 1.5 + 1.5 * 750 / 738 = 3.024 mm there
    wider = VesselTree((line([0, 0, -30], [0, 0, 30]), line([3.1, -12, -30], [3.1, -12, 30], number=1)))
    assert figures(wider, view(0, 0))[1] == 0


def test_a_lesion_under_a_crossing():
    """A thin branch in front crosses the vessel at its narrowest place: seldom, but just there."""
    vessel, crossing = line([0, 0, -30], [0, 0, 30]), line([-25, -20, 0], [25, -20, 0], 1.0, number=1)
    tree = VesselTree((vessel, crossing))
    whole = tree_pieces(tree)
    lesion = branch_pieces(vessel, 0, from_mm=25, to_mm=35, step_mm=1.0)
    assert len(lesion) == 10
    every = joined([whole, lesion])
    own = np.arange(len(whole), len(every))
    front = view(0, 0).source_lps_mm
    _, hidden = view_figures(every, [own], front, whole)[0]
    assert hidden[0] == pytest.approx(50, abs=11)  # shadows 1.5 + 1 mm wide each way, in pieces of 1 mm
    assert figures(tree, view(0, 0), 0)[1] < 15
    for best in best_views(view_maps(every, [own], view(0, 0), whole)[0]):
        assert best.overlap_percent == 0
        # From above or below the crossing branch leaves the stretch: 20 mm of depth times the tangent.
        assert abs(best.secondary_deg) >= 15


def test_overlap_agrees_with_a_projection_point_by_point():
    """Against drawing: distances of projected centrelines, with projected radii."""
    tree, camera = coronary(), view(-25, 15, (3.0, 5.0, -2.0))
    pieces = tree_pieces(tree)
    found = covered(pieces, camera.source_lps_mm, pieces)[0]
    middle = (pieces.start_lps_mm + pieces.end_lps_mm) / 2
    pixel, depth = camera.project(middle)
    along = np.linspace(0, 1, 101)[:, None, None]
    fine = pieces.start_lps_mm + along * (pieces.end_lps_mm - pieces.start_lps_mm)
    other, other_depth = camera.project(fine)
    reach = (pieces.radius_mm / depth)[:, None, None] + pieces.radius_mm / other_depth
    near = np.linalg.norm(pixel[:, None, None] - other, axis=-1) * 0.3 / 1000 < reach
    apart = np.linalg.norm(middle[:, None, None] - fine, axis=-1) - pieces.radius_mm[:, None, None] - pieces.radius_mm
    expected = (near.any(1) & (apart.min(1) > 2.3) & (pieces.branch[:, None] != pieces.branch)).any(1)
    free = ~(near.any(1) & (apart.min(1) > 0.5) & (pieces.branch[:, None] != pieces.branch)).any(1)
    assert expected.sum() > 5 and free.sum() > 20
    assert found[expected].all() and not found[free].any()


def test_a_bifurcation_is_no_overlap():
    trunk = line([0, 0, -20], [0, 0, 20])
    side = Branch(1, 0, np.linspace([0, 0, 0], [15, 0, 15], 41), np.full(41, 1.0))
    tree = VesselTree((trunk, side))
    assert figures(tree, view(0, 0)) == pytest.approx((0, 0), abs=0.2)


def test_never_out_of_reach_and_always_the_same():
    tree = coronary()
    found = a_map(tree)
    best = best_views(found, count=3)
    assert best == best_views(a_map(tree), count=3)
    for k, one in enumerate(best):
        assert abs(one.primary_deg) <= REACH_PRIMARY_DEG and abs(one.secondary_deg) <= REACH_SECONDARY_DEG
        beam = view(one.primary_deg, one.secondary_deg).frame.beam
        for other in best[:k]:
            apart = np.degrees(np.arccos(beam @ view(other.primary_deg, other.secondary_deg).frame.beam))
            assert apart >= 29.9
    cost = [one.foreshortening_percent + one.overlap_percent for one in best]
    assert cost[0] <= np.quantile(found.cost_percent, 0.1)


def test_nothing_to_see():
    empty = tree_pieces(VesselTree())
    assert len(empty) == 0
    assert [float(x[0]) for x in view_figures(empty, [ALL], [[0, 700, 0]], empty)[0]] == [0, 0]
    point = VesselTree((Branch(0, None, np.zeros((1, 3)), np.ones(1)),))
    assert len(tree_pieces(point)) == 0
    assert len(branch_pieces(line([0, 0, 0], [9, 0, 0]), 0, from_mm=20, to_mm=30)) == 0
    long = VesselTree(tuple(line([0, y, 0], [400, y, 0], number=y) for y in range(8)))
    assert len(tree_pieces(long)) <= 510  # so that time stays bounded
