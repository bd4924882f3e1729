# SPDX-License-Identifier: Apache-2.0
"""Fields to voxels to trees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from licag3d.errors import InputError
from licag3d.models.tree_from_field import bake, bake_function, tree_from_field
from licag3d.ops import query_triplane
from licag3d.ops.triplane_decoder import TriplaneDecoder
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.volume import Volume


def test_a_baked_field_is_the_field_at_the_voxel_centres():
    rng = torch.Generator().manual_seed(0)
    planes, decoder = torch.randn(3, 4, 12, 12, generator=rng), TriplaneDecoder.random(4, 8, mu_scale=0.1)
    center = (3.0, -5.0, 7.0)
    volume = bake(planes, decoder, box_center_mm=center, box_size_mm=30.0, spacing_mm=2.0)
    assert volume.values.shape == (15, 15, 15) and volume.spacing_mm == 2.0
    index = np.array([[0, 0, 0], [14, 14, 14], [3, 9, 12]])
    points = torch.from_numpy(volume.index_to_lps(index).astype(np.float32))
    wanted = query_triplane(planes, decoder, points, box_center_mm=center, box_size_mm=30.0)
    assert volume.values[tuple(index.T)] == pytest.approx(wanted.numpy(), rel=1e-5)


def tube_field(points: np.ndarray) -> np.ndarray:
    """A straight vessel of radius 1.2 mm along x from -15 to 15 mm, a little off the grid."""
    points = points - np.array([0.1, 0.2, 0.3], np.float32)
    along = np.clip(points[:, 0], -15, 15)
    away = np.linalg.norm(points - np.stack([along, 0 * along, 0 * along], -1), axis=1)
    return np.clip((1.2 - away) + 0.5, 0, 1).astype(np.float32)


@pytest.mark.parametrize("spacing", [0.5, 0.8])
def test_two_passes_find_what_one_finds(spacing):
    whole = bake_function(tube_field, box_size_mm=40.0, spacing_mm=spacing)
    quick = bake_function(tube_field, box_size_mm=40.0, spacing_mm=spacing, skip_below=0.05)
    assert np.array_equal(whole.values, quick.values)


def test_a_tube_becomes_one_branch_of_its_length_and_radius():
    volume = bake_function(lambda p: 0.15 * tube_field(p), box_size_mm=40.0, spacing_mm=0.5)
    found = tree_from_field(volume, level_per_mm=0.075, mesh=True)
    assert found.pieces == 1 and found.largest_share == 1 and len(found.tree.branches) == 1
    assert found.tree.length_mm == pytest.approx(30, abs=2.5)
    assert np.median(found.tree.branches[0].radius_mm) == pytest.approx(1.2, abs=0.05)
    capsule_mm3 = np.pi * 1.2**2 * 30 + 4 / 3 * np.pi * 1.2**3
    assert found.surface.volume_mm3 == pytest.approx(capsule_mm3, rel=0.08)


def test_peaks_do_not_move_the_border():
    """A field that overshoots inside has the same wall: values are cut at twice the level."""
    plain = bake_function(tube_field, box_size_mm=40.0, spacing_mm=0.5)
    peaked = Volume(plain.values * np.where(plain.values > 0.99, 50, 1), plain.origin_mm, plain.spacing_mm)
    a, b = (tree_from_field(v, level_per_mm=0.5) for v in (plain, peaked))
    assert np.median(b.tree.branches[0].radius_mm) == pytest.approx(np.median(a.tree.branches[0].radius_mm), abs=0.01)


def test_crumbs_are_counted_but_not_traced():
    volume = bake_function(tube_field, box_size_mm=40.0, spacing_mm=0.5)
    values = volume.values.copy()
    values[5:7, 5:7, 5:7] = 1.0  # 1 mm3
    found = tree_from_field(Volume(values, volume.origin_mm, 0.5), level_per_mm=0.5)
    assert found.pieces == 1 and found.pieces_mm3[1] == 1.0 and 0.98 < found.largest_share < 1
    values[60:70, 60:70, 60:70] = 1.0
    assert tree_from_field(Volume(values, volume.origin_mm, 0.5), level_per_mm=0.5).pieces == 2


def test_nothing_and_nonsense():
    empty = Volume(np.zeros((4, 4, 4), np.float32), (0, 0, 0), 1.0)
    found = tree_from_field(empty, level_per_mm=0.1, mesh=True)
    assert found.pieces == 0 and found.surface is None and not found.tree.branches and found.largest_share == 0
    broken = Volume(np.full((4, 4, 4), np.nan, np.float32), (0, 0, 0), 1.0)
    with pytest.raises(InputError, match="NaN"):
        tree_from_field(broken, level_per_mm=0.1)
    for level in (0.0, float("nan")):
        with pytest.raises(InputError, match="level"):
            tree_from_field(empty, level_per_mm=level)
    for spacing in (0.0, float("nan"), 50.0):
        with pytest.raises(InputError, match="spacing"):
            bake_function(tube_field, box_size_mm=40.0, spacing_mm=spacing)
    with pytest.raises(InputError, match="larger"):
        bake_function(tube_field, box_size_mm=40.0, spacing_mm=0.01)


def test_a_field_is_asked_near_a_tree_alone():
    """All voxels within the reach of its walls, none a voxel's diagonal beyond it."""
    points = np.stack([np.linspace(-9, 9, 40), np.linspace(-3, 5, 40), np.zeros(40)], 1)
    tree = VesselTree((Branch(0, None, points, np.full(40, 1.0), "RCA"),))
    volume = bake_function(lambda p: np.ones(len(p)), box_center_mm=(0, 0, 0), box_size_mm=24, spacing_mm=0.5,
                           near=tree, reach_mm=2.0)  # fmt: skip
    grid = np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij"), -1)[..., ::-1] * 0.5 - 11.75
    fine = np.stack([np.interp(np.linspace(0, 39, 800), np.arange(40), axis) for axis in points.T], 1)
    away = cKDTree(fine).query(grid.reshape(-1, 3))[0].reshape(volume.values.shape)
    assert (volume.values[away <= 3.0] == 1).all() and (volume.values[away > 4.6] == 0).all()
