# SPDX-License-Identifier: Apache-2.0
"""The package ``benchmarks`` lies in the repository root and is not installed; and small cases for its tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.baselines import Inputs, inputs_of  # noqa: E402
from licag3d.geometry import Camera, Cameras  # noqa: E402
from licag3d.structures import Branch, VesselEvidence, VesselTree, View  # noqa: E402

#: Attenuation of the contrast in the small cases, 1/mm.
MU = 0.16


def straight_tube() -> VesselTree:
    """One slanted tube of 2 mm radius, 60 mm long."""
    s = np.linspace(-30, 30, 61)[:, None]
    points = s * np.array([[0.35, 0.25, 0.9]]) / np.linalg.norm([0.35, 0.25, 0.9])
    return VesselTree((Branch(0, None, points, np.full(61, 2.0)),))


def two_cameras(rows: int = 192, offset=(0.0, 0.0, 0.0)) -> list[Camera]:
    """Two views 90 degrees apart, 0.56 mm per pixel at the isocentre at 192 rows."""
    spacing = 0.75 * 192 / rows
    return [
        Camera(primary, 0.0, 1000.0, 750.0, spacing, spacing, rows, rows, shift)
        for primary, shift in ((-45.0, (0.0, 0.0, 0.0)), (45.0, offset))
    ]


def inputs_from_tree(tree: VesselTree, true: list[Camera], user: list[Camera], track: str = "masks") -> Inputs:
    """Exact masks and line integrals of a tree, with cameras as a user would have them."""
    import torch
    from scipy.ndimage import distance_transform_edt

    from licag3d.ops import project_tubes
    from licag3d.vessels.tree import flatten_tree

    flat = flatten_tree(tree)
    paths = project_tubes(
        torch.from_numpy(flat.points_lps_mm),
        torch.from_numpy(flat.radius_mm),
        torch.from_numpy(flat.segments),
        Cameras.stack(true),
    ).numpy()
    views, evidence = [], []
    for path, camera in zip(paths, user, strict=True):
        mask = path > 0
        radius = np.where(mask, distance_transform_edt(mask), 0).astype(np.float32)
        image = (0.8 * np.exp(-MU * path)).astype(np.float32)
        views.append(View(image, camera, np.ones(mask.shape, bool)))
        share = mask.astype(np.float32)
        evidence.append(VesselEvidence(share, (MU * path).astype(np.float32), share, radius, mask))
    return inputs_of(tuple(views), tuple(evidence), artery="rca", track=track, seed=3)


@pytest.fixture(scope="session")
def tube() -> tuple[VesselTree, Inputs]:
    """The straight tube and its inputs, cameras exact."""
    tree, cameras = straight_tube(), two_cameras()
    return tree, inputs_from_tree(tree, cameras, cameras)
