# SPDX-License-Identifier: Apache-2.0
"""Tubes of the phantom (vessels, catheter, wire, ribs) to the operator that projects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselTree


@dataclass(frozen=True)
class Line:
    """A tube: points ``(n, 3)`` LPS mm and radius ``(n,)`` mm."""

    points_lps_mm: np.ndarray
    radius_mm: np.ndarray


def tree_lines(tree: VesselTree) -> list[Line]:
    """The branches of a tree as tubes."""
    return [Line(branch.points_lps_mm, branch.radius_mm) for branch in tree.branches]


def path_length_mm(lines: Sequence[Line], camera: Camera) -> np.ndarray:
    """Path length ``(rows, cols)`` float32 in mm of every pixel's ray through the union of the tubes."""
    lines = [line for line in lines if len(line.points_lps_mm) > 1]
    if not lines:
        return np.zeros((camera.rows, camera.cols), np.float32)
    import torch

    from licag3d.geometry import Cameras
    from licag3d.ops import project_tubes

    first = np.cumsum([0] + [len(line.points_lps_mm) for line in lines])
    starts = np.concatenate([np.arange(a, b - 1) for a, b in zip(first[:-1], first[1:], strict=True)])
    path_mm = project_tubes(
        torch.from_numpy(np.concatenate([line.points_lps_mm for line in lines])),
        torch.from_numpy(np.concatenate([line.radius_mm for line in lines])),
        torch.from_numpy(np.stack((starts, starts + 1), axis=1)),
        Cameras.stack([camera]),
    )
    return path_mm[0].numpy()
