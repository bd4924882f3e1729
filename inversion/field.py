# SPDX-License-Identifier: Apache-2.0
"""The attenuation field: tubes around the matched tree, refined together with the cameras against the line integrals.

Minimised by Adam (Kingma and Ba 2015) with the exact gradients of ``project_volume`` for the voxels and for the rays:

    sum over rays of c (g_k P_k(mu) - p)^2 + sparsity |mu| + smoothness |grad mu|^2 + anchor (mu - tubes)^2,  mu >= 0

with the confidence c of the evidence and a gain g_k per view, since a display image fixes p only up to a factor.
Only voxels near the tree are free: the matched centrelines hold the field, the images shape it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from licag3d.geometry import Camera, Cameras, Rays
from licag3d.inversion.adam import Adam
from licag3d.inversion.settings import FieldSettings
from licag3d.ops import project_volume
from licag3d.structures import VesselEvidence, VesselTree
from licag3d.vessels.distance import signed_distance, tree_cones
from licag3d.vessels.rasterize import tree_grid, tree_occupancy
from licag3d.vessels.tree import flatten_tree
from licag3d.vessels.volume import Volume


@dataclass(frozen=True)
class FieldResult:
    """Refined field in 1/mm, cameras, gain of every view, and the loss terms per iteration."""

    volume: Volume
    cameras: tuple[Camera, ...]
    gains: tuple[float, ...]
    losses: dict[str, list[float]]


def refine_field(
    tree: VesselTree,
    cameras: Sequence[Camera],
    evidence: Sequence[VesselEvidence],
    settings: FieldSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    move_cameras: bool = True,
    progress: Callable[[float, str], None] | None = None,
) -> FieldResult:
    """Build the field of a tree and refine it together with the offsets of all views but the first.

    Args:
        tree: in the gauge of ``cameras``.
        evidence: per view; ``line_integral`` is compared by its ``confidence``, and with zero off the vessels.
        move_cameras: False leaves the cameras as they are.
    """
    grid = tree_grid(tree, settings.spacing_mm, margin_mm=settings.reach_mm + 2.0)
    occupancy = torch.from_numpy(tree_occupancy(tree, grid).values).to(device)
    support = _near(tree, grid, settings.reach_mm).to(device)
    rays = _Rays(cameras, evidence, tree, settings, seed, device)
    moves = torch.zeros(
        len(cameras), 3, dtype=torch.float64, device=device, requires_grad=move_cameras and len(cameras) > 1
    )
    level, gains = _levels(occupancy, rays, grid)
    tubes = level * occupancy
    index = support.nonzero(as_tuple=True)
    values = tubes[index].clone().requires_grad_(True)
    pairs = _neighbours(support)
    losses: dict[str, list[float]] = {name: [] for name in ("data", "sparsity", "smoothness", "anchor", "offset_mm")}
    groups = [{"params": [values], "lr": 0.04 * level}]
    if moves.requires_grad:
        groups.append({"params": [moves], "lr": settings.camera_rate_mm})
    optimizer = Adam(groups)
    still = _fixed_directions(cameras, device)
    for iteration in range(settings.iterations):
        optimizer.zero_grad()
        volume = torch.zeros_like(tubes).index_put(index, values)
        data = rays.loss(volume, grid, gains, moves)
        scale = level**2
        sparsity = settings.sparsity * values.mean() / level
        smoothness = (
            settings.smoothness * sum(((values[a] - values[b]) ** 2).sum() for a, b in pairs) / (len(values) * scale)
        )
        anchor = settings.anchor * ((values - tubes[index]) ** 2).mean() / scale
        (data + sparsity + smoothness + anchor).backward()
        if moves.requires_grad:
            # The reference view stays, and no view moves along the scale gauge.
            moves.grad = moves.grad - (moves.grad * still).sum(1, keepdim=True) * still
            moves.grad[0] = 0
        optimizer.step()
        with torch.no_grad():
            values.clamp_(min=0)
            moves.sub_((moves * still).sum(1, keepdim=True) * still)
        for name, value in (
            ("data", data),
            ("sparsity", sparsity),
            ("smoothness", smoothness),
            ("anchor", anchor),
            ("offset_mm", moves.detach().norm(dim=1).max()),
        ):
            losses[name].append(float(value.detach()))
        if progress:
            progress((iteration + 1) / settings.iterations, f"data loss {losses['data'][-1]:.4f}")
    field = torch.zeros_like(tubes).index_put(index, values.detach())
    shift = moves.detach().cpu().numpy()
    moved = tuple(camera.with_offset(np.asarray(camera.offset_lps_mm) + shift[k]) for k, camera in enumerate(cameras))
    return FieldResult(Volume(field.cpu().numpy(), grid.origin_mm, grid.spacing_mm), moved, gains, losses)


class _Rays:
    """The pixels of all views that are compared, drawn once: near the vessels of the image and of the tree."""

    def __init__(self, cameras, evidence, tree: VesselTree, settings: FieldSettings, seed: int, device: str) -> None:
        points = flatten_tree(tree).points_lps_mm
        self.cameras, self.pixels, targets, weights, views = [], [], [], [], []
        for k, (camera, item) in enumerate(zip(cameras, evidence, strict=True)):
            rows, cols = compared_pixels(camera, item, points, settings.rays, seed + k)
            self.cameras.append(Cameras.stack([camera], device=device))
            self.pixels.append(torch.as_tensor(np.stack([cols, rows], 1)[None], dtype=torch.float64, device=device))
            target = item.line_integral[rows, cols]
            # Off the vessels the target is zero: less trusted, since the tree may know of a vessel the evidence missed.
            trust = np.where(item.mask[rows, cols], np.maximum(item.confidence[rows, cols], 0.05), 0.25)
            # Every view counts the same, whatever the unit of its line integrals.
            weights.append(trust / max(float((trust * target**2).sum()), 1e-9))
            targets.append(target)
            views.append(np.full(len(rows), k))
        self.target = torch.as_tensor(np.concatenate(targets), dtype=torch.float32, device=device)
        self.weight = torch.as_tensor(np.concatenate(weights), dtype=torch.float32, device=device)
        self.view = torch.as_tensor(np.concatenate(views), device=device)

    def project(self, volume: torch.Tensor, grid: Volume, moves: torch.Tensor | None = None) -> torch.Tensor:
        """Line integrals of all rays, one call: the gradient to the volume is summed in one pass."""
        origins, directions = [], []
        for k, (camera, pixels) in enumerate(zip(self.cameras, self.pixels, strict=True)):
            if moves is not None:
                camera = camera.replace(offset_lps_mm=camera.offset_lps_mm + moves[k])
            origin, direction = camera.rays(pixels)
            origins.append(origin[0])
            directions.append(direction[0])
        return project_volume(
            volume,
            Rays(torch.cat(origins), torch.cat(directions)),
            voxel_size_mm=grid.spacing_mm,
            origin_mm=grid.origin_mm,
        )

    def loss(self, volume, grid, gains, moves) -> torch.Tensor:
        """Confidence-weighted squared error as a share of the squared target, summed over views."""
        gain = torch.tensor(gains, dtype=torch.float32, device=self.target.device)[self.view]
        return (self.weight * (gain * self.project(volume, grid, moves) - self.target) ** 2).sum()


def compared_pixels(camera: Camera, evidence: VesselEvidence, points: np.ndarray, limit: int, seed: int):
    from scipy import ndimage

    near = ndimage.binary_dilation(evidence.mask, iterations=4)
    pixels, _ = camera.project(points)
    col, row = np.rint(pixels[:, 0]).astype(int), np.rint(pixels[:, 1]).astype(int)
    seen = (col >= 0) & (row >= 0) & (col < camera.cols) & (row < camera.rows)
    drawn = np.zeros_like(near)
    drawn[row[seen], col[seen]] = True
    rows, cols = np.nonzero(near | ndimage.binary_dilation(drawn, iterations=6))
    if len(rows) > limit:
        keep = np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))
        rows, cols = rows[keep], cols[keep]
    return rows, cols


def _levels(occupancy: torch.Tensor, rays: _Rays, grid: Volume) -> tuple[float, tuple[float, ...]]:
    """Attenuation of the lumen, and gain of every view relative to it (least squares)."""
    with torch.no_grad():
        path_mm = rays.project(occupancy, grid)
    slopes = []
    for k in range(len(rays.cameras)):
        own = rays.view == k
        weight, path, target = rays.weight[own], path_mm[own], rays.target[own]
        slopes.append(float((weight * path * target).sum() / (weight * path**2).sum().clamp(min=1e-9)))
    level = max(float(np.median(slopes)), 1e-4)
    return level, tuple(max(slope, 0.05 * level) / level for slope in slopes)


def _near(tree: VesselTree, grid: Volume, reach_mm: float) -> torch.Tensor:
    """Voxels within the vessel radius plus ``reach_mm`` of the tree, to half a voxel."""
    cones = tree_cones(tree)
    wide = replace(cones, start_radius=cones.start_radius + reach_mm, end_radius=cones.end_radius + reach_mm)
    distance = signed_distance(wide, grid.origin_mm, grid.spacing_mm, grid.values.shape, band=grid.spacing_mm)
    return torch.from_numpy(distance < 0.5 * grid.spacing_mm)


def _neighbours(support: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Along each axis the positions of voxels of the support that touch, as two index vectors into its values."""
    number = torch.full(support.shape, -1, dtype=torch.long, device=support.device)
    number[support] = torch.arange(int(support.sum()), device=support.device)
    pairs = []
    for axis in range(3):
        a, b = number.narrow(axis, 0, number.shape[axis] - 1), number.narrow(axis, 1, number.shape[axis] - 1)
        both = (a >= 0) & (b >= 0)
        pairs.append((a[both], b[both]))
    return pairs


def _fixed_directions(cameras: Sequence[Camera], device: str) -> torch.Tensor:
    """``(V, 3)`` unit vectors along which the offset of a view is the scale gauge and must not move."""
    first = cameras[0].source_lps_mm
    along = np.array([camera.source_lps_mm - first for camera in cameras])
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    return torch.as_tensor(along, dtype=torch.float64, device=device)
