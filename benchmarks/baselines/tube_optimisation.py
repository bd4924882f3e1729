# SPDX-License-Identifier: Apache-2.0
"""Direct optimisation of tubes: centreline points and radii moved by gradient until both views are explained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.baselines import Inputs, Result
from benchmarks.baselines.visual_hull import hull
from benchmarks.volumes import volume_tree
from licag3d.geometry import Cameras
from licag3d.structures import VesselTree
from licag3d.vessels.tree import FlatTree, flatten_tree, resample_tree, tree_edges

SOURCE = (
    "per-case optimisation of branches against two silhouettes: the ablation of that name in PPCAR-Net (arXiv "
    "2610.09383)"
)
CORRECTS_OFFSET = False
DIFFERS = (
    "starts from the skeleton of the visual hull instead of a learned coarse tree (a start without a prior); points "
    "every 1 mm instead of B-splines; 250 steps of Adam"
)
STEPS = 250
POINT_STEP_MM = 1.0
LEARNING_RATE_MM = 0.15
REACH_MM = 5.0  # a distance in the image counts no further than this
BEND_PRICE, STRETCH_PRICE, RADIUS_PRICE = 4.0, 0.5, 0.3
UNSEEN_MM = 2.0  # a point whose projection ends farther from the vessel than this in a view is dropped
START_TOLERANCE_MM = 1.5


def reconstruct(inputs: Inputs, *, steps: int = STEPS) -> Result:
    """Start from the hull, optimise, drop what no view supports. Raises ValueError where a mask is empty."""
    start = volume_tree(hull(inputs, spacing_mm=0.8, tolerance_mm=START_TOLERANCE_MM), 0.5)
    if not start.branches:
        return Result(VesselTree(), facts={"points": 0})
    tree = resample_tree(start, POINT_STEP_MM)
    flat = flatten_tree(tree)
    lines = [_skeleton(mask) for mask in inputs.masks]
    points = torch.tensor(flat.points_lps_mm, dtype=torch.float32, requires_grad=True)
    log_radius = torch.tensor(np.log(np.maximum(flat.radius_mm, 0.3)), dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [points], "lr": LEARNING_RATE_MM}, {"params": [log_radius], "lr": 0.02}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 0.01 * LEARNING_RATE_MM)
    edges = torch.from_numpy(tree_edges(tree))
    inner = torch.from_numpy(_triples(flat))
    length = (points.detach()[edges[:, 0]] - points.detach()[edges[:, 1]]).norm(dim=1)
    views = [Cameras.stack([camera], dtype=torch.float32) for camera in inputs.cameras]
    scale = [camera.mm_per_pixel for camera in inputs.cameras]
    loss, nearest = torch.zeros(()), []
    for step in range(steps):
        projected = [view.project(points)[0][0] for view in views]
        if step % 10 == 0:
            nearest = [_nearest(p.detach().numpy(), line) for p, line in zip(projected, lines, strict=True)]
        optimizer.zero_grad()
        loss = BEND_PRICE * ((points[inner[:, 0]] - 2 * points[inner[:, 1]] + points[inner[:, 2]]) ** 2).sum(1).mean()
        now = (points[edges[:, 0]] - points[edges[:, 1]]).norm(dim=1)
        loss = loss + STRETCH_PRICE * ((now - length) ** 2).mean()
        for p, line, near, mm in zip(projected, lines, nearest, scale, strict=True):
            loss = loss + _distance(p - line.pixels[near.forward], mm) + _distance(p[near.backward] - line.pixels, mm)
            seen = torch.log(line.radius_px[near.forward] * mm)
            loss = loss + RADIUS_PRICE * (log_radius - seen).abs().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    finished = points.detach().numpy().astype(np.float64)
    supported = np.ones(len(finished), bool)
    for camera, line in zip(inputs.cameras, lines, strict=True):
        away = line.tree.query(camera.project(finished)[0])[0] * camera.mm_per_pixel
        supported &= away <= UNSEEN_MM
    tree = _supported(tree, flat, finished, np.exp(log_radius.detach().numpy().astype(np.float64)), supported)
    return Result(tree, facts={"points": len(finished), "loss": float(loss.detach())})


class _skeleton:
    """Skeleton pixels of a mask ``(n, 2)`` (col, row), half widths, and a search tree."""

    def __init__(self, mask: np.ndarray) -> None:
        from scipy.ndimage import distance_transform_edt
        from scipy.spatial import cKDTree
        from skimage.morphology import skeletonize

        rows, cols = np.nonzero(skeletonize(mask))
        self.tree = cKDTree(np.stack([cols, rows], 1))
        self.pixels = torch.from_numpy(np.stack([cols, rows], 1).astype(np.float32))
        inside = distance_transform_edt(mask)[rows, cols] - 0.5
        self.radius_px = torch.from_numpy(np.maximum(inside, 0.5).astype(np.float32))


class _nearest:
    """Nearest skeleton pixel of every projected point (``forward``) and the other way round (``backward``)."""

    def __init__(self, projected: np.ndarray, line: _skeleton) -> None:
        from scipy.spatial import cKDTree

        self.forward = torch.from_numpy(line.tree.query(projected)[1])
        self.backward = torch.from_numpy(cKDTree(projected).query(line.pixels.numpy())[1])


def _distance(gap_px: torch.Tensor, mm_per_pixel: float) -> torch.Tensor:
    """Mean robust distance in mm: squares near zero, flat beyond ``REACH_MM``."""
    square = (gap_px * mm_per_pixel).square().sum(1)
    return (square / (1 + square / REACH_MM**2)).mean()


def _triples(flat: FlatTree) -> np.ndarray:
    """Neighbouring points within a branch, ``(n, 3)`` indices."""
    index = np.arange(1, len(flat.branch) - 1)
    index = index[(flat.branch[index - 1] == flat.branch[index]) & (flat.branch[index + 1] == flat.branch[index])]
    return np.stack([index - 1, index, index + 1], 1)


def _supported(tree: VesselTree, flat: FlatTree, points, radius, kept) -> VesselTree:
    """The optimised tree, cut to the runs of at least three points that every view supports."""
    branches = []
    for position, branch in enumerate(tree.branches):
        own = np.flatnonzero(flat.branch == position)
        runs = np.split(own[kept[own]], np.flatnonzero(np.diff(own[kept[own]]) > 1) + 1)
        for run in runs:
            if len(run) >= 3:
                cut = {"points_lps_mm": points[run], "radius_mm": radius[run]}
                branches.append(replace(branch, id=len(branches), parent=None, **cut))
    return VesselTree(tuple(branches))
