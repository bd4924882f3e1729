# SPDX-License-Identifier: Apache-2.0
"""Vessels over and beside each other: drawn trees in motion against the exact projector, and told apart by contrast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from licag3d.geometry import Camera
from licag3d.inversion.overlaps import Courses, OverlapSettings, clear_overlaps
from licag3d.inversion.tube_images import near_pixels, path_mm, pooled_view
from licag3d.metrics.images import path_mm as exact_path_mm
from licag3d.structures import Branch, VesselEvidence, VesselTree

COMMON = {"sid_mm": 1000.0, "sod_mm": 750.0, "spacing_row_mm": 0.3, "spacing_col_mm": 0.3, "rows": 261, "cols": 263}
CAMERAS = (Camera(-30, 5, **COMMON), Camera(32, -5, **COMMON))


def pair(shift_mm: float = 0.0) -> VesselTree:
    """A trunk, and a branch that leaves it, which beside each other are one broad line in the second view; the branch
    is off along the rays of the first view by ``shift_mm``, where it is seen alone."""
    s = np.linspace(0, 40, 81)
    trunk = np.stack([3 * np.sin(s / 12), 4 * np.cos(s / 15), 20 - s], 1)
    ray = trunk - CAMERAS[1].source_lps_mm
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    across = np.cross(ray, np.gradient(trunk, axis=0))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    ramp = np.clip(s[:71] / 8, 0, 1)[:, None]
    branch = trunk[10:] + ramp * (7.0 * ray + 1.6 * across)[10:]
    away = branch - CAMERAS[0].source_lps_mm
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    branch = branch + shift_mm * ramp * away
    return VesselTree(
        (Branch(0, None, trunk, np.full(81, 1.1), "trunk"), Branch(4, 0, branch, np.full(71, 0.8), "side"))
    )


def seen(tree: VesselTree, mu_per_mm: float = 0.15) -> list[VesselEvidence]:
    out = []
    for camera in CAMERAS:
        path = exact_path_mm(tree, camera).astype(float)
        p = mu_per_mm * ndimage.gaussian_filter(path, 0.5)
        p += 0.01 * np.random.default_rng(3).standard_normal(p.shape) * (path > 0)
        p, one = p.astype(np.float32), (path > 0).astype(np.float32)
        out.append(VesselEvidence(one, p, one, one, path > 0))
    return out


def off_mm(tree: VesselTree, truth: VesselTree) -> float:
    """Mean distance of the side branch from its true course."""
    from scipy.spatial import cKDTree

    return float(cKDTree(truth.branches[1].points_lps_mm).query(tree.branches[1].points_lps_mm)[0].mean())


@pytest.mark.parametrize("pool", (1, 2))
def test_the_paths_are_those_of_the_exact_projector(pool):
    tree = pair()
    courses = Courses(tree, OverlapSettings())
    exact = exact_path_mm(tree, CAMERAS[0]).astype(np.float32)
    small, image = pooled_view(CAMERAS[0], exact, pool * CAMERAS[0].mm_per_pixel)
    near = near_pixels(
        small, image, courses.points, courses.radius, courses.spans, reach_mm=1.0, dtype=torch.float64
    )
    path = path_mm(near, torch.from_numpy(courses.points), torch.from_numpy(courses.radius), 0.35)
    inside = near.seen > 0.3
    rest = (path - near.seen)[inside]
    assert inside.sum() > 400
    assert abs(float(rest.mean())) < 0.05  # mm, of up to 2.5
    assert float(rest.square().mean().sqrt()) < 0.25
    assert float(torch.corrcoef(torch.stack((path, near.seen)))[0, 1]) > 0.97


def test_the_gradient_is_that_of_small_differences():
    courses = Courses(pair(), OverlapSettings())
    small, image = pooled_view(CAMERAS[1], exact_path_mm(pair(), CAMERAS[1]), 2 * CAMERAS[1].mm_per_pixel)
    near = near_pixels(
        small, image, courses.points, courses.radius, courses.spans, reach_mm=1.0, dtype=torch.float64
    )
    random = torch.Generator().manual_seed(0)
    points = torch.from_numpy(courses.points).requires_grad_()
    radius = torch.from_numpy(courses.radius).requires_grad_()
    step = torch.randn(points.shape, generator=random, dtype=torch.float64)
    wider = torch.rand(radius.shape, generator=random, dtype=torch.float64)

    def cost(p, r):
        return (path_mm(near, p, r, 0.8) - near.seen).square().sum()

    cost(points, radius).backward()
    e = 1e-6
    up, down = cost(points + e * step, radius + e * wider), cost(points - e * step, radius - e * wider)
    by_hand = (up - down).item() / (2 * e)
    ours = float((points.grad * step).sum() + (radius.grad * wider).sum())
    assert ours == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("shift_mm", (1.6, -1.6))
def test_a_branch_that_was_put_onto_its_neighbour_finds_its_depth(shift_mm):
    truth, start = pair(), pair(shift_mm)
    before = off_mm(start, truth)
    found = clear_overlaps(start, CAMERAS, seen(truth))
    assert before > 0.8
    assert off_mm(found.tree, truth) < 0.5 * before
    assert found.facts["contested_share"] > 0.3 and found.facts["moved_mm"] > 0.2
    first, last = found.facts["misfit"][0], found.facts["misfit"][-1]
    assert last < 0.7 * first
    for old, new in zip(start.branches, found.tree.branches, strict=True):
        assert (new.radius_mm == old.radius_mm).all() and new.name == old.name
        assert new.points_lps_mm.shape == old.points_lps_mm.shape
    trunk, side = found.tree.branches
    gap = np.linalg.norm(trunk.points_lps_mm - side.points_lps_mm[0], axis=1).min()
    assert gap < 0.1  # the branch still begins on its parent


def test_a_tree_that_is_right_stays():
    truth = pair()
    found = clear_overlaps(truth, CAMERAS, seen(truth))
    assert off_mm(found.tree, truth) < 0.15


def test_nothing_moves_without_overlap_or_without_a_second_voice():
    truth = pair()
    one = replace(truth, branches=truth.branches[:1])
    assert clear_overlaps(one, CAMERAS, seen(truth)).tree is one
    assert clear_overlaps(truth, CAMERAS[:1], seen(truth)[:1]).tree is truth
    assert clear_overlaps(truth, CAMERAS, seen(truth), OverlapSettings(rounds=0)).tree is truth
    silent = [replace(item, line_integral=np.zeros_like(item.line_integral)) for item in seen(truth)]
    assert clear_overlaps(truth, CAMERAS, [seen(truth)[0], silent[1]]).tree is truth
    elsewhere = replace(CAMERAS[1], offset_lps_mm=(500.0, 0.0, 0.0))
    assert clear_overlaps(truth, (CAMERAS[0], elsewhere), seen(truth)).tree is truth


def test_contested_is_what_another_vessel_lies_over_in_a_view_and_not_in_space():
    courses = Courses(pair(), OverlapSettings())
    contested = courses.contested(CAMERAS, 0.3, 3.0)
    assert contested[courses.branch == 1].mean() > 0.6
    assert not contested[0] and not courses.contested(CAMERAS[:1], 0.3, 3.0)[courses.branch == 1].mean() > 0.3
    assert not courses.contested(CAMERAS, 0.3, 100.0).any()  # side by side in space as well
    assert not courses.contested((), 0.3, 3.0).any()
