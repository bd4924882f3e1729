# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from vessel_trees import coronary

from licag3d.geometry import Camera
from licag3d.inversion.assembly import AssemblySettings, Curve, assemble_tree, without_denied
from licag3d.inversion.joining import join_pieces
from licag3d.inversion.sights import Sight, chances, least_chance, sights_of
from licag3d.inversion.tree_stages import assembly_warnings
from licag3d.structures import Branch, VesselEvidence, VesselTree, View
from licag3d.vessels.tree import component_count

CAMERAS = tuple(
    Camera(
        primary_deg=angle,
        secondary_deg=0.0,
        sid_mm=1000.0,
        sod_mm=750.0,
        spacing_row_mm=0.4,
        spacing_col_mm=0.4,
        rows=256,
        cols=256,
    )
    for angle in (-30.0, 30.0)
)


def line(start, end, confidence=1.0, radius=1.2):
    start, end = np.asarray(start, float), np.asarray(end, float)
    count = round(2 * np.linalg.norm(end - start)) + 1
    points = start + np.linspace(0, 1, count)[:, None] * (end - start)
    return Curve(points, np.full(count, radius), np.full(count, float(confidence)), (None, None))


def sights(*shown):
    """Per view the curves that it shows."""
    out = []
    for camera, curves in zip(CAMERAS, shown, strict=False):
        chance = np.zeros((camera.rows, camera.cols))
        for curve in curves:
            at = np.rint(camera.project(curve.points_mm)[0]).astype(int)
            for row in range(-3, 4):
                for col in range(-3, 4):
                    chance[at[:, 1] + row, at[:, 0] + col] = 1.0
        out.append(Sight(camera, chance))
    return tuple(out)


LEFT, GAP, RIGHT = line((0, 0, -22), (0, 0, -5)), line((0, 0, -5), (0, 0, 5)), line((0, 0, 5), (0, 0, 22))


def test_a_bridge_that_every_view_shows_is_laid_with_no_confidence():
    whole = [LEFT, GAP, RIGHT]
    found = assemble_tree([LEFT, RIGHT], AssemblySettings(), sights(whole, whole))
    assert component_count(found.tree) == 1 and len(found.bridges) == 1
    assert found.tree.length_mm == pytest.approx(44.0, abs=0.2)
    sure = np.concatenate([branch.confidence for branch in found.tree.branches])
    height = np.concatenate([branch.points_lps_mm[:, 2] for branch in found.tree.branches])
    assert np.all(sure[np.abs(height) < 4.4] == 0.0) and np.all(sure[np.abs(height) > 5.1] == 1.0)
    assert any("bridged" in said for said in assembly_warnings(found))


@pytest.mark.parametrize("blind", [0, 1])
def test_a_bridge_that_one_view_denies_is_not_laid(blind):
    shown = [[LEFT, GAP, RIGHT], [LEFT, GAP, RIGHT]]
    shown[blind] = [LEFT, RIGHT]
    found = assemble_tree([LEFT, RIGHT], AssemblySettings(), sights(*shown))
    assert component_count(found.tree) == 2 and not found.bridges
    assert found.tree.length_mm == pytest.approx(34.0, abs=0.2)
    assert any("in 2 pieces" in said for said in assembly_warnings(found))
    # Where that view sees nothing, beyond its shutter, it does not speak.
    views = list(sights(*shown))
    views[blind] = Sight(CAMERAS[blind], np.full((256, 256), np.nan))
    assert component_count(assemble_tree([LEFT, RIGHT], AssemblySettings(), views).tree) == 1
    # Nobody asked: one tree.
    assert component_count(assemble_tree([LEFT, RIGHT], AssemblySettings()).tree) == 1


def test_an_end_does_not_snap_across_background():
    side = line((4, 0, 0), (14, 0, 8), radius=0.8)
    main = line((0, 0, -22), (0, 0, 22))
    views = sights([main, side], [main, side])
    assert component_count(assemble_tree([main, side], AssemblySettings(), views).tree) == 2
    near = line((1.0, 0, 0), (14, 0, 8), radius=0.8)
    views = sights([main, near], [main, near])
    assert component_count(assemble_tree([main, near], AssemblySettings(), views).tree) == 1


def test_the_piece_joins_where_the_views_agree_not_where_it_is_nearest():
    main, other = line((0, 0, -22), (0, 0, 22)), line((8, 0, -16), (8, 0, 10))
    way = line((8, 0, 10), (0, 0, 10))
    tree = VesselTree(tuple(Branch(k, None, c.points_mm, c.radius_mm) for k, c in enumerate((main, other))))
    joined, bridges = join_pieces(tree, sights([main, other, way], [main, other, way]))
    assert component_count(joined) == 1 and len(bridges) == 1
    assert 0.5 * (bridges[0].from_lps_mm[2] + bridges[0].to_lps_mm[2]) == pytest.approx(10.0, abs=1.0)


def test_what_one_view_has_and_the_other_denies_is_left_out():
    lonely = line((0, 0, -20), (0, 0, 20), confidence=0.2)
    half = line((0, 0, -20), (0, 0, 0))
    (kept,) = without_denied([lonely], sights([lonely], [half]), AssemblySettings())
    assert kept.points_mm[:, 2].max() == pytest.approx(0.0, abs=2.0)
    # What both agree on stays: they have seen it, and probabilities are not exact.
    agreed = line((0, 0, -20), (0, 0, 20), confidence=1.0)
    assert without_denied([agreed], sights([lonely], [half]), AssemblySettings()) == [agreed]


def test_a_doubtful_piece_apart_from_the_tree_is_left_out():
    main, far = line((0, 0, -22), (0, 0, 22)), line((15, 0, -20), (15, 0, 10), confidence=0.2)
    views = sights([main, far], [main, far])
    found = assemble_tree([main, far], AssemblySettings(), views)
    assert component_count(found.tree) == 1 and found.strays_mm == pytest.approx((30.0,), abs=0.1)
    # With one view nothing is agreed on, and nothing follows.
    unsure = line((0, 0, -22), (0, 0, 22), confidence=0.0)
    assert component_count(assemble_tree([unsure, far], AssemblySettings(), views[:1]).tree) == 2


def test_views_say_what_they_see():
    shape = (256, 256)
    probability = np.zeros(shape, np.float32)
    probability[128, 100:150] = 0.8
    valid = np.ones(shape, bool)
    valid[:, :90] = False
    zero = np.zeros(shape, np.float32)
    item = VesselEvidence(probability, zero, zero, zero, probability > 0.5)
    (sight,) = sights_of(CAMERAS[:1], [View(zero, CAMERAS[0], valid)], [item])
    source, rays = CAMERAS[0].rays(np.array([120.0, 120.0, 60.0]), np.array([128.0, 140.0, 128.0]))
    points = source + 0.75 * rays
    seen = chances(points, [sight])[0]
    assert seen[0] == pytest.approx(0.8) and seen[1] == 0.0 and np.isnan(seen[2])
    assert least_chance(points, [sight]) == pytest.approx([0.8, 0.0, 1.0])
    assert least_chance(points, []) == pytest.approx([1.0, 1.0, 1.0])


def test_pieces_are_joined_and_every_bridge_is_reported():
    main = coronary().branches[0]
    pieces = VesselTree((
        Branch(0, None, main.points_lps_mm[:60], main.radius_mm[:60]),
        Branch(1, None, main.points_lps_mm[66:130], main.radius_mm[66:130]),
        Branch(2, None, main.points_lps_mm[140:], main.radius_mm[140:]),
    ))
    joined, joins = join_pieces(pieces, ())
    assert component_count(joined) == 1 and len(joined.branches) == 1 and len(joins) == 2
    truth = [np.linalg.norm(main.points_lps_mm[66] - main.points_lps_mm[59]),
             np.linalg.norm(main.points_lps_mm[140] - main.points_lps_mm[129])]
    assert [j.gap_mm for j in joins] == pytest.approx(sorted(truth))
    assert joined.length_mm == pytest.approx(pieces.length_mm + sum(truth))
    np.testing.assert_allclose(joined.branches[0].points_lps_mm[0], main.points_lps_mm[0])
    near, joins = join_pieces(pieces, (), longest_mm=sum(truth) / 2)
    assert component_count(near) == 2 and len(joins) == 1
    assert join_pieces(VesselTree(), ()) == (VesselTree(), ())
