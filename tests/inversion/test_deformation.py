# SPDX-License-Identifier: Apache-2.0
"""What the heart moved between two views: nothing where nothing moved, a smooth motion across the planes otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from match_cases import chains_of, two_cameras, vessels

from licag3d.inversion.deformation import find_deformation, undeformed
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.inversion.snapping import snap_tree
from licag3d.structures import Branch, VesselTree

RADII = (1.6, 1.1, 0.8)


def scene(amount_mm: float):
    """A tree, its views and the motion before view 2: a smooth bend across the epipolar planes."""
    curves, cameras = vessels(), two_cameras()
    across = epipolar_pair(*cameras).across
    middle = np.concatenate(curves).mean(0)

    def moved(points):
        unit = (points - middle) / 20.0
        return points + amount_mm * (0.6 + 0.5 * unit[:, :1] + 0.8 * unit[:, :1] ** 2) * across

    chains = (chains_of(curves, cameras[0]), chains_of([moved(c) for c in curves], cameras[1]))
    branches = [
        Branch(k, 0 if k else None, curve, np.full(len(curve), RADII[k]), str(k)) for k, curve in enumerate(curves)
    ]
    return VesselTree(tuple(branches)), cameras, chains, moved, across


def points_of(tree: VesselTree) -> np.ndarray:
    return np.concatenate([branch.points_lps_mm for branch in tree.branches])


def test_views_of_one_moment_show_no_motion():
    tree, cameras, chains, _, _ = scene(0.0)
    (found,) = find_deformation(tree, cameras, chains)
    assert np.linalg.norm(found.at(points_of(tree)), axis=1).max() < 0.05


def test_a_smooth_motion_across_the_planes_is_found():
    tree, cameras, chains, moved, across = scene(1.0)
    (found,) = find_deformation(tree, cameras, chains)
    points = points_of(tree)
    wanted = (moved(points) - points) @ across
    left = found.at(points) @ across - wanted
    assert np.sqrt((wanted**2).mean()) > 0.6
    assert np.sqrt((left**2).mean()) < 0.3 * np.sqrt((wanted**2).mean())


def test_nothing_is_said_along_the_epipolar_lines():
    tree, cameras, chains, _, across = scene(1.0)
    (found,) = find_deformation(tree, cameras, chains)
    displaced = found.at(points_of(tree))
    assert np.abs(np.cross(displaced, across)).max() < 1e-9


def test_undone_the_views_agree_on_the_planes_and_the_tree_fits_both():
    tree, cameras, chains, _, _ = scene(1.0)
    (found,) = find_deformation(tree, cameras, chains)
    back = undeformed(chains[1], cameras[1], found, points_of(tree))
    frame = epipolar_pair(*cameras)

    def apart(second) -> float:
        plane = [
            epipolar_angles(frame, camera, chain.pixels)[0]
            for camera, chain in zip(cameras, (chains[0], second), strict=True)
        ]
        return float(750.0 * np.sqrt(np.mean((plane[0] - plane[1]) ** 2)))

    assert apart(back) < 0.35 * apart(chains[1])
    # Ends, lengths and bends go along with the centrelines.
    ends = np.stack([back.pixels[back.start[:-1]], back.pixels[back.start[1:] - 1]], 1)
    was = np.stack([chains[1].pixels[back.start[:-1]], chains[1].pixels[back.start[1:] - 1]], 1)
    gap = np.linalg.norm(back.node_pixels[back.node] - ends, axis=2)
    np.testing.assert_allclose(gap, np.linalg.norm(chains[1].node_pixels[back.node] - was, axis=2), atol=0.3)
    drawn = sum(np.linalg.norm(np.diff(p, axis=0), axis=1).sum() for p in np.split(back.pixels, back.start[1:-1]))
    assert back.length_mm == pytest.approx(drawn * back.mm_per_pixel)
    truth = points_of(tree)
    plain, better = (points_of(snap_tree(tree, cameras, (chains[0], second)).tree) for second in (chains[1], back))

    def off(points) -> float:
        return float(np.linalg.norm(points[:, None] - truth[None], axis=2).min(1).mean())

    assert off(better) < off(plain)
