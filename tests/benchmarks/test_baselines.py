# SPDX-License-Identifier: Apache-2.0
"""Every rival reconstructs one straight tube, and the parts they share do what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import MU, inputs_from_tree, straight_tube, two_cameras

from benchmarks.baselines import Result, epipolar_ba, sirt_tv, tube_optimisation, visual_hull, voxel_optimisation
from benchmarks.offset import initial_offset
from benchmarks.volumes import make_system, shrunk, view_box, volume_tree
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.metrics.alignment import best_translation
from licag3d.metrics.centerline import CenterlinePoints, centerline_metrics, nearest_distances, tree_points
from licag3d.structures import VesselTree
from licag3d.vessels.volume import Volume

RIVALS = {
    "visual_hull": (visual_hull.reconstruct, 0.5),
    "sirt": (sirt_tv.reconstruct_sirt, 1.0),
    "tv": (sirt_tv.reconstruct_tv, 1.0),
    "voxel_optimisation": (voxel_optimisation.reconstruct, 1.0),
    "epipolar_ba": (epipolar_ba.reconstruct, 0.5),
    "tube_optimisation": (tube_optimisation.reconstruct, 0.5),
}


def settled(result: Result, truth: VesselTree) -> CenterlinePoints:
    """The points found; those of a method that moves cameras after the best translation, as an offset and a place
    cannot be told apart by two landmarks."""
    found = tree_points(result.tree)
    if result.cameras is None:
        return found
    return best_translation(found.points_lps_mm, tree_points(truth).points_lps_mm).apply_to(found)


@pytest.mark.parametrize("name", RIVALS)
def test_a_straight_tube_is_found_within_a_voxel(name, tube):
    tree, inputs = tube
    method, within_mm = RIVALS[name]
    result = method(inputs)
    found = settled(result, tree)
    forward, _ = nearest_distances(found.points_lps_mm, tree_points(tree).points_lps_mm)
    scores = centerline_metrics(found, tree_points(tree))
    assert np.median(forward) <= within_mm
    assert scores["centerline_f1_1mm"] > 0.85
    assert scores["radius_mae_mm"] < 1.0


def test_hull_voxels_lie_within_the_tolerance_of_every_mask(tube):
    tree, inputs = tube
    volume = visual_hull.hull(inputs, spacing_mm=1.0, tolerance_mm=0.0)
    centres = volume.index_to_lps(np.argwhere(volume.values))
    for mask, camera in zip(inputs.masks, inputs.cameras, strict=True):
        pixels = np.rint(camera.project(centres)[0]).astype(int)
        assert mask[pixels[:, 1], pixels[:, 0]].all()
    # Coarse-to-fine carving loses nothing: a brute-force grid finds the same voxels.
    points = volume.index_to_lps(np.argwhere(np.ones(volume.values.shape, bool)))
    kept = np.ones(len(points), bool)
    for mask, camera in zip(inputs.masks, inputs.cameras, strict=True):
        pixels = np.rint(camera.project(points)[0]).astype(int)
        inside = (pixels >= 0).all(1) & (pixels < mask.shape[0]).all(1)
        kept[~inside] = False
        kept[inside] &= mask[pixels[inside, 1], pixels[inside, 0]]
    assert kept.sum() == volume.values.sum() > 500


def test_sirt_and_tv_explain_the_projections(tube):
    _, inputs = tube
    system = make_system(inputs, spacing_mm=2.0)
    start = float(sirt_tv.misfit(system, torch.zeros(system.shape)))
    few, many = (sirt_tv.sirt(system, n)[1] for n in (3, 15))
    smooth, rough = (sirt_tv.tv_least_squares(system, 15, w) for w in (1e-3, 1e-6))
    assert start == pytest.approx(1.0)
    assert many < few < 0.9
    assert float(voxel_optimisation._variation(smooth[0])) < float(voxel_optimisation._variation(rough[0]))
    assert smooth[0].min() >= 0 and rough[1] < 0.6


def test_tv_denoising_solves_its_problem():
    rng = np.random.default_rng(0)
    step = np.zeros((6, 8, 10), np.float32)
    step[:, :, 5:] = 1.0
    noisy = torch.from_numpy(step + 0.1 * rng.normal(size=step.shape).astype(np.float32))

    def objective(x: torch.Tensor, weight: float) -> float:
        front = [torch.diff(x, dim=a, append=x.narrow(a, x.shape[a] - 1, 1)) for a in range(3)]
        return float(0.5 * ((x - noisy) ** 2).sum() + weight * sum(f**2 for f in front).sqrt().sum())

    found = sirt_tv.tv_denoise(noisy, 0.1, [torch.zeros(step.shape) for _ in range(3)], rounds=300)
    assert float((found - torch.from_numpy(step)).abs().mean()) < 0.05
    best = objective(found, 0.1)
    for seed in range(5):
        other = found + 0.01 * torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
        assert objective(other.clamp_min(0), 0.1) > best


def test_the_transpose_of_the_system_is_exact(tube):
    system = make_system(tube[1], spacing_mm=3.0)
    x = torch.rand(system.shape, generator=torch.Generator().manual_seed(1))
    y = [torch.rand(t.shape, generator=torch.Generator().manual_seed(2)) for t in system.targets]
    forward = sum(float((a.double() * b).sum()) for a, b in zip(system.project(x), y, strict=True))
    assert forward == pytest.approx(float((x.double() * system.back(y)).sum()), rel=1e-4)


def test_shrinking_keeps_mean_and_place():
    camera = two_cameras(rows=97)[0]
    image = np.random.default_rng(0).random((97, 97)).astype(np.float32)
    small, smaller = shrunk(image, camera, 2)
    assert small.shape == (48, 48) == (smaller.rows, smaller.cols)
    assert small[3, 5] == pytest.approx(image[6:8, 10:12].mean(), rel=1e-6)
    point = np.array([[5.0, -3.0, 8.0]])
    before, after = camera.project(point)[0][0], smaller.project(point)[0][0]
    np.testing.assert_allclose(after, (before + 0.5) / 2 - 0.5)


def test_the_box_holds_the_tree_and_an_empty_mask_is_refused(tube):
    tree, inputs = tube
    low, high = view_box(inputs)
    points = tree.branches[0].points_lps_mm
    assert (points > low).all() and (points < high).all()
    empty = inputs_from_tree(tree, two_cameras(), two_cameras())
    blank = type(empty)(**{**empty.__dict__, "masks": (empty.masks[0], np.zeros_like(empty.masks[1]))})
    with pytest.raises(ValueError, match="no vessel"):
        view_box(blank)


def test_an_empty_volume_gives_an_empty_tree_and_dust_is_dropped():
    values = np.zeros((20, 20, 20), np.float32)
    assert volume_tree(Volume(values, (0.0, 0.0, 0.0), 1.0), 0.5).branches == ()
    values[3, 3, 3] = 1.0
    assert volume_tree(Volume(values, (0.0, 0.0, 0.0), 1.0), 0.5).branches == ()
    values[8:11, 8:11, 2:18] = 1.0
    tree = volume_tree(Volume(values, (0.0, 0.0, 0.0), 1.0), 0.5)
    assert len(tree.branches) == 1 and tree.length_mm > 10


@pytest.mark.parametrize("shift_mm", [-6.0, 4.0])
def test_the_offset_across_the_epipolar_planes_is_found(shift_mm):
    user = two_cameras()
    pair = epipolar_pair(*user)
    true = [user[0], user[1].with_offset(shift_mm * pair.across + 3.0 * pair.toward)]
    guess = initial_offset(inputs_from_tree(straight_tube(), true, user))
    assert guess.shift_mm[0] == pytest.approx(shift_mm, abs=0.6)
    assert guess.disagreement < guess.disagreement_before


def test_the_pose_is_repaired_on_landmarks_despite_wrong_ones():
    user = two_cameras(rows=256)
    across = epipolar_pair(*user).across
    true = [user[0], user[1].with_offset(4.0 * across)]
    points = np.random.default_rng(0).uniform(-35, 35, (16, 3))
    marks = tuple(camera.project(points)[0] for camera in true)
    marks[1][:3] += 40.0  # three of sixteen belong to something else
    none = (np.zeros((0, 2)),) * 2
    cameras, left = epipolar_ba.refine_pose(tuple(user), tuple(user), none, marks)
    repaired, given = (np.abs(_off_plane(c, points, true)) for c in (cameras, user))
    assert np.median(given) > 3.0 and np.median(repaired) < 0.3 and left < 0.3
    assert np.asarray(cameras[1].offset_lps_mm) @ across == pytest.approx(4.0, abs=0.8)


def _off_plane(cameras, points: np.ndarray, true) -> np.ndarray:
    """Distances in mm of true pixel pairs from a common epipolar plane of the given cameras."""
    pair = epipolar_pair(*cameras)
    theta = [epipolar_angles(pair, c, t.project(points)[0])[0] for c, t in zip(cameras, true, strict=True)]
    return 750.0 * (theta[0] - theta[1])


def test_inputs_hold_the_evidence_they_were_made_of(tube):
    _, inputs = tube
    assert inputs.evidence[1].line_integral is inputs.line_integrals[1]
    assert inputs.line_integrals[0].max() == pytest.approx(MU * 4.0, rel=0.35)
    assert inputs.with_cameras(inputs.cameras[::-1]).cameras[0].primary_deg == 45.0
