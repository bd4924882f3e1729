# SPDX-License-Identifier: Apache-2.0
"""The joint refinement: the loss falls, a known offset is found, the gauge and the reference view stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from licag3d.geometry import Camera, Cameras
from licag3d.inversion.field import refine_field
from licag3d.inversion.settings import FieldSettings
from licag3d.ops import project_tubes
from licag3d.structures import Branch, VesselEvidence, VesselTree
from licag3d.vessels.tree import flatten_tree

MU_PER_MM = 0.25


def _tree() -> VesselTree:
    t = np.linspace(0, 1, 60)
    main = np.stack([30 * np.sin(2 * t), 12 * np.cos(3 * t), 50 * t - 25], 1)
    side = main[20] + np.stack([-25 * t, 10 * t**2, 8 * t], 1)
    return VesselTree((Branch(0, None, main, np.full(60, 1.8)), Branch(1, 0, side, np.full(60, 1.1))))


def _cameras() -> tuple[Camera, Camera]:
    common = dict(sid_mm=1000, sod_mm=750, spacing_row_mm=0.8, spacing_col_mm=0.8, rows=160, cols=160)
    return Camera(-30, 0, **common), Camera(35, 10, **common)


def _evidence(tree: VesselTree, camera: Camera, gain: float = 1.0) -> VesselEvidence:
    flat = flatten_tree(tree)
    path = project_tubes(
        torch.from_numpy(flat.points_lps_mm).float(),
        torch.from_numpy(flat.radius_mm).float(),
        torch.from_numpy(flat.segments),
        Cameras.stack([camera]),
    )[0].numpy()
    mask = path > 0.3
    p = (gain * MU_PER_MM * path).astype(np.float32)
    return VesselEvidence(mask.astype(np.float32), p, mask.astype(np.float32), np.zeros_like(p), mask)


def test_field_explains_the_images_with_the_right_attenuation():
    tree, cameras = _tree(), _cameras()
    evidence = [_evidence(tree, camera) for camera in cameras]
    result = refine_field(tree, cameras, evidence, FieldSettings(iterations=25), move_cameras=False)
    assert result.losses["data"][-1] < 0.7 * result.losses["data"][0]
    assert result.losses["data"][-1] < 0.06
    inside = result.volume.values[result.volume.values > 0.5 * result.volume.values.max()]
    assert np.median(inside) == pytest.approx(MU_PER_MM, rel=0.15)
    assert result.volume.values.min() >= 0
    assert result.cameras == cameras


def test_gain_of_a_display_image_is_found():
    tree, cameras = _tree(), _cameras()
    evidence = [_evidence(tree, cameras[0]), _evidence(tree, cameras[1], gain=2.0)]
    result = refine_field(tree, cameras, evidence, FieldSettings(iterations=3), move_cameras=False)
    assert result.gains[1] / result.gains[0] == pytest.approx(2.0, rel=0.02)


def test_offset_error_shrinks_and_the_gauge_stays():
    tree, cameras = _tree(), _cameras()
    evidence = [_evidence(tree, camera) for camera in cameras]
    first, second = cameras
    baseline = second.source_lps_mm - first.source_lps_mm
    baseline /= np.linalg.norm(baseline)
    across = np.cross(baseline, first.frame.beam)
    wrong = (first, second.with_offset(1.0 * across / np.linalg.norm(across)))
    result = refine_field(tree, wrong, evidence, FieldSettings(iterations=40, camera_rate_mm=0.08))
    moved = np.subtract(result.cameras[1].offset_lps_mm, wrong[1].offset_lps_mm)
    assert np.linalg.norm(result.cameras[1].offset_lps_mm) < 0.5
    assert abs(moved @ baseline) < 0.02
    assert result.cameras[0] == first


def test_no_iterations_gives_the_tubes():
    tree, cameras = _tree(), _cameras()
    evidence = [_evidence(tree, camera) for camera in cameras]
    result = refine_field(tree, cameras, evidence, FieldSettings(iterations=0))
    assert result.losses["data"] == [] and result.cameras == cameras
    assert result.volume.values.max() == pytest.approx(MU_PER_MM, rel=0.2)


def test_same_seed_same_field():
    tree, cameras = _tree(), _cameras()
    evidence = [_evidence(tree, camera) for camera in cameras]
    settings = replace(FieldSettings(), iterations=3, rays=500)
    one, two = (refine_field(tree, cameras, evidence, settings, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.volume.values, two.volume.values)
