# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from vessel_trees import coronary, tube

from licag3d.errors import InputError
from licag3d.structures import Branch, VesselTree
from licag3d.vessels import surface as surfaces
from licag3d.vessels.distance import Cones, cone_distance, distance_blocks, signed_distance, tree_cones
from licag3d.vessels.surface import Surface, decimated, surface_parts, tree_surface, volume_surface
from licag3d.vessels.volume import Volume, covering_grid


def assert_watertight(surface: Surface) -> None:
    """By two independent judges: our own edge count, and trimesh after it merged equal vertices."""
    import trimesh

    assert surface.open_edges() == 0
    mesh = trimesh.Trimesh(surface.vertices_lps_mm, surface.faces, process=True)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume > 0
    assert mesh.volume == pytest.approx(surface.volume_mm3, rel=1e-6)
    assert mesh.area == pytest.approx(surface.area_mm2, rel=1e-6)


def ball_tree(radius_mm=4.0, center=(50.0, 20.0, -30.0)) -> VesselTree:
    return VesselTree((Branch(0, None, np.array([center]), np.array([radius_mm])),))


def ball_volume(radius_mm=5.0, center=(1.0, -2.0, 3.0), spacing_mm=0.5, size=30) -> Volume:
    grid = Volume(np.zeros((size, size + 2, size + 4)), (-7.0, -9.0, -5.0), spacing_mm)
    points = grid.index_to_lps(np.stack(np.indices(grid.values.shape), -1))
    return Volume((radius_mm - np.linalg.norm(points - center, axis=-1)).astype(np.float32), grid.origin_mm, spacing_mm)


def test_cone_distance_against_brute_force_union_of_balls():
    rng = np.random.default_rng(3)
    for dim in (2, 3):
        for _ in range(20):
            start, end = rng.normal(size=(2, dim)) * 3
            r0, r1 = rng.uniform(0.2, 4, 2)
            points = rng.normal(size=(50, dim)) * 5
            s = np.linspace(0, 1, 4001)[:, None]
            centre, radius = start + s * (end - start), r0 + s[:, 0] * (r1 - r0)
            truth = (np.linalg.norm(points[:, None] - centre, axis=-1) - radius).min(1)
            np.testing.assert_allclose(cone_distance(points, start, end, r0, r1), truth, atol=5e-3)


def test_grid_distance_is_the_cone_distance():
    rng = np.random.default_rng(5)
    for dim in (2, 3):
        for k in range(12):
            start, end = rng.normal(size=(2, dim)) * 2 + 50
            radius = rng.uniform(0.2, 3, 2)
            end = start if k == 0 else end  # a ball
            radius[1] = radius[0] if k == 1 else radius[1]  # a cylinder
            cones = Cones(start[None], end[None], radius[:1], radius[1:], np.zeros(1, int))
            shape = (30,) * dim
            field = signed_distance(cones, np.full(dim, 44.0), 0.4, shape, band=1.0)
            points = 44 + 0.4 * np.stack(np.indices(shape), -1)[..., ::-1]
            exact = cone_distance(points, start, end, *radius)
            np.testing.assert_allclose(field[exact < 1], exact[exact < 1], atol=2e-3)
            assert (field[exact > 1.5] >= 1 - 1e-6).all() and (field[exact >= 1] >= 1 - 2e-3).all()


def test_ball_has_the_area_and_volume_of_a_sphere_where_it_should_be():
    surface = tree_surface(ball_tree())
    assert_watertight(surface)
    distance = np.linalg.norm(surface.vertices_lps_mm - [50, 20, -30], axis=1)
    assert np.abs(distance - 4).max() < 0.01
    assert surface.volume_mm3 == pytest.approx(4 / 3 * math.pi * 64, rel=0.01)
    assert surface.area_mm2 == pytest.approx(4 * math.pi * 16, rel=0.01)


@pytest.mark.parametrize(("radius_mm", "rel"), [(0.3, 0.11), (0.5, 0.06), (1.5, 0.015)])
def test_tube_radius_within_a_twentieth_of_a_millimetre(radius_mm, rel):
    tree = tube(radius_mm=radius_mm)
    surface = tree_surface(tree)
    assert_watertight(surface)
    first, last = tree.branches[0].points_lps_mm[[0, -1]]
    direction = (last - first) / 30
    offset = surface.vertices_lps_mm - first
    along = offset @ direction
    across = np.linalg.norm(offset - along[:, None] * direction, axis=1)
    middle = (along > 2) & (along < 28)
    assert np.abs(across[middle] - radius_mm).max() < 0.05
    assert surface.volume_mm3 == pytest.approx(math.pi * radius_mm**2 * 30 + 4 / 3 * math.pi * radius_mm**3, rel=rel)
    assert surface.area_mm2 == pytest.approx(2 * math.pi * radius_mm * 30 + 4 * math.pi * radius_mm**2, rel=rel)


def test_bent_tree_is_one_watertight_piece_with_and_without_blending():
    plain, blended = tree_surface(coronary()), tree_surface(coronary(), blend_mm=0.4)
    for surface in (plain, blended):
        assert_watertight(surface)
        assert len(surface_parts(surface)) == 1
    assert 0 < blended.volume_mm3 - plain.volume_mm3 < 0.02 * plain.volume_mm3  # the crotch is filled, nothing else


def test_blending_leaves_the_far_end_of_a_vessel_alone():
    plain, blended = tree_surface(coronary()), tree_surface(coronary(), blend_mm=0.4)
    low = plain.vertices_lps_mm[:, 2].min()
    assert blended.vertices_lps_mm[:, 2].min() == pytest.approx(low, abs=0.03)  # the grids differ


def test_separate_pieces_are_all_reported():
    branches = coronary().branches + ball_tree(0.6, (80.0, 0.0, 0.0)).branches
    tree = VesselTree(tuple(Branch(k, b.parent, b.points_lps_mm, b.radius_mm) for k, b in enumerate(branches)))
    surface = tree_surface(tree)
    assert_watertight(surface)
    parts = surface_parts(surface)
    assert len(parts) == 2
    assert parts[0].volume_mm3 > parts[1].volume_mm3
    assert parts[1].volume_mm3 == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.1)
    assert parts[1].center_lps_mm == pytest.approx((80, 0, 0), abs=0.04)
    assert sum(p.faces for p in parts) == len(surface.faces)


def test_volume_surface_of_a_ball_sub_voxel():
    surface = volume_surface(ball_volume(), 0.0)
    assert_watertight(surface)
    assert np.abs(np.linalg.norm(surface.vertices_lps_mm - [1, -2, 3], axis=1) - 5).max() < 0.02


def test_volume_surface_is_closed_where_the_vessel_leaves_the_volume():
    column = np.pad(np.ones((6, 4, 4), np.float32), ((0, 0), (3, 3), (3, 3)))
    surface = volume_surface(Volume(column, (0, 0, 0), 1.0), 0.5)
    assert_watertight(surface)
    assert surface.vertices_lps_mm[:, 2].min() == pytest.approx(-0.5, abs=1e-3)
    assert surface.vertices_lps_mm[:, 2].max() == pytest.approx(5.5, abs=1e-3)


def test_a_cavity_is_a_part_of_negative_volume():
    solid = ball_volume().values
    surface = volume_surface(Volume(np.minimum(solid, 3.0 - solid), (0, 0, 0), 0.5), 0.0)  # a shell 2..5 mm
    parts = surface_parts(surface)
    assert len(parts) == 2 and parts[0].volume_mm3 > 0 > parts[1].volume_mm3


def test_random_fields_are_watertight():
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = rng.standard_normal((14, 13, 15)).astype(np.float32)
        values[rng.random(values.shape) < 0.1] = 0.0  # exactly on the level: the hard case
        assert_watertight(volume_surface(Volume(values, (3, 4, 5), 0.7), 0.0))


def test_blocks_hold_the_distances_of_the_whole_grid():
    cones, shape, origin = tree_cones(coronary()), (61, 50, 97), np.array([-21.0, -17.0, -13.0])
    cones = Cones(cones.start - cones.start.mean(0), cones.end - cones.start.mean(0), cones.start_radius,
                  cones.end_radius, cones.group)
    whole = signed_distance(cones, origin, 0.45, shape, band=0.9)
    assert (whole < 0.9).any()
    missed = np.full(shape, True)
    for first, block in distance_blocks(cones, origin, 0.45, shape, band=0.9, cells=16):
        window = tuple(slice(a, a + 17) for a in first)
        np.testing.assert_array_equal(block, whole[window])
        missed[window] = False
    assert missed.any()
    assert (whole[missed] == np.float32(0.9)).all()


@pytest.mark.parametrize("cells", [1, 7, 31])
def test_the_surface_does_not_depend_on_the_blocks(monkeypatch, cells):
    tree = ball_tree() if cells == 1 else coronary()
    monkeypatch.setattr(surfaces, "_BLOCK", 10_000)
    whole = tree_surface(tree, spacing_mm=0.5)
    rough = volume_surface(Volume(np.random.default_rng(1).normal(size=(9, 14, 11)), (0, 0, 0), 1.0), 0.3)
    monkeypatch.setattr(surfaces, "_BLOCK", cells)
    for wanted, got in (
        (whole, tree_surface(tree, spacing_mm=0.5)),
        (rough, volume_surface(Volume(np.random.default_rng(1).normal(size=(9, 14, 11)), (0, 0, 0), 1.0), 0.3)),
    ):
        assert len(got.faces) == len(wanted.faces)
        assert len(got.vertices_lps_mm) == len(wanted.vertices_lps_mm)
        assert got.open_edges() == 0
        assert got.volume_mm3 == pytest.approx(wanted.volume_mm3, rel=1e-5)
        assert got.area_mm2 == pytest.approx(wanted.area_mm2, rel=1e-5)


def test_decimated_is_lighter_and_near():
    full = tree_surface(coronary())
    light = decimated(full, 0.8)
    assert len(light.faces) < 0.4 * len(full.faces)
    assert light.volume_mm3 == pytest.approx(full.volume_mm3, rel=0.15)


@pytest.mark.parametrize(("volume", "level", "words"), [
    (np.zeros((4, 4, 4), np.float32), 0.5, "spans 0 to 0"),
    (np.full((4, 4, 4), np.nan, np.float32), 0.5, "NaN"),
])
def test_volume_without_surface_is_refused(volume, level, words):
    with pytest.raises(InputError, match=words):
        volume_surface(Volume(volume, (0, 0, 0), 1.0), level)


def test_empty_and_absurd_trees_are_refused():
    with pytest.raises(InputError, match="no points"):
        tree_surface(VesselTree())
    with pytest.raises(InputError, match="must be positive"):
        tree_surface(ball_tree(0.0))
    with pytest.raises(InputError, match="larger spacing"):
        covering_grid((0, 0, 0), (500, 500, 500), 0.1)
    for spacing in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="positive"):
            covering_grid((0, 0, 0), (5, 5, 5), spacing)


def test_grid_covers_the_box():
    origin, shape = covering_grid((0.0, -3.0, 10.0), (7.3, 4.0, 10.2), 0.5)
    last = np.asarray(origin) + 0.5 * (np.asarray(shape[::-1]) - 1)
    assert np.all(np.asarray(origin) <= [0, -3, 10]) and np.all(last >= [7.3, 4, 10.2])
    assert np.all(last - [7.3, 4, 10.2] < 0.5 + 1e-9)
