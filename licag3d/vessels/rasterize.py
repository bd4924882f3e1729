# SPDX-License-Identifier: Apache-2.0
"""A vessel tree as voxels: labels and attenuation, antialiased, on an isotropic grid."""

from __future__ import annotations

import math

import numpy as np

from licag3d.errors import InputError
from licag3d.structures import VesselTree
from licag3d.vessels.distance import Cones, cone_boxes, cone_distance, shortened, signed_distance, tree_cones
from licag3d.vessels.volume import Volume, covering_grid


def tree_grid(tree: VesselTree, spacing_mm: float, *, margin_mm: float = 3.0) -> Volume:
    """An empty (zero, uint8) volume around the tree with a margin on every side.

    Raises:
        InputError: no points in the tree, or an absurd spacing.
    """
    cones = tree_cones(tree)
    if len(cones) == 0:
        raise InputError("the vessel tree has no points, so no volume can be laid around it")
    low, high = cones.bounds()
    origin, shape = covering_grid(low - margin_mm, high + margin_mm, spacing_mm)
    return Volume(np.zeros(shape, np.uint8), origin, spacing_mm)


def tree_occupancy(tree: VesselTree, grid: Volume, *, supersample: int | None = None) -> Volume:
    """The share of each voxel of ``grid`` that lies inside the lumen, float32 in 0..1.

    Each voxel is divided in ``supersample ** 3`` cells; the share of a cell follows from the signed distance at its
    centre as ``clip(0.5 - distance / cell, 0, 1)``. The default keeps cells below half of the thin vessels' radius
    (at most 4 per axis), where the volume of a tube is kept to 2 %.
    """
    cones = tree_cones(tree)
    out = np.zeros(grid.values.shape, np.float32)
    if len(cones) == 0:
        return Volume(out, grid.origin_mm, grid.spacing_mm)
    if supersample is None:
        thin = float(np.percentile(np.minimum(cones.start_radius, cones.end_radius), 5))
        supersample = int(np.clip(math.ceil(2 * grid.spacing_mm / max(thin, 1e-6)), 1, 4))
    spacing, shape = grid.spacing_mm, grid.values.shape
    low, high = cones.bounds()
    # Only voxels that the tree can touch are looked at: (x, y, z) index window.
    first = np.clip(np.floor((low - grid.origin_mm) / spacing).astype(int), 0, shape[::-1])
    last = np.clip(np.ceil((high - grid.origin_mm) / spacing).astype(int) + 1, 0, shape[::-1])
    if np.any(first >= last):
        return Volume(out, grid.origin_mm, spacing)
    origin = np.asarray(grid.origin_mm) + spacing * first
    # A voxel reaches sqrt(3)/2 spacings from its centre; only where the border may pass through is it divided.
    reach = 0.9 * spacing
    coarse = signed_distance(cones, origin, spacing, tuple((last - first)[::-1]), band=1.5 * spacing)
    share = (coarse < 0).astype(np.float32)
    mixed = np.abs(coarse) < reach
    share[mixed] = _divided(cones, origin, spacing, mixed, supersample)
    out[first[2]:last[2], first[1]:last[1], first[0]:last[0]] = share
    return Volume(out, grid.origin_mm, spacing)


def _divided(cones: Cones, origin: np.ndarray, spacing: float, mixed: np.ndarray, supersample: int) -> np.ndarray:
    """Share inside the cones of each ``mixed`` voxel, in their order, from ``supersample ** 3`` cells each."""
    cell = spacing / supersample
    row = np.full(mixed.shape, -1, np.int32)
    row[mixed] = np.arange(int(mixed.sum()), dtype=np.int32)
    steps = (np.arange(supersample) - (supersample - 1) / 2) * cell
    inner = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    distance = np.full((int(mixed.sum()), len(inner)), cell, np.float32)
    cones = shortened(cones, 2 * spacing)
    low, high = cone_boxes(cones, np.arange(len(cones)), origin, spacing, np.asarray(mixed.shape[::-1]), spacing)
    for cone in range(len(cones)):
        a, b = low[cone], high[cone]
        if np.any(a >= b):
            continue
        rows = row[a[2]:b[2], a[1]:b[1], a[0]:b[0]]
        place = np.argwhere(rows >= 0)
        rows = rows[tuple(place.T)]
        center = origin + spacing * (place[:, ::-1] + a)
        # Of the box's voxels, those the cone can reach.
        near = cone_distance(center, cones.start[cone], cones.end[cone], cones.start_radius[cone],
                             cones.end_radius[cone]) < 2 * spacing
        rows = rows[near]
        found = cone_distance(center[near, None] + inner, cones.start[cone], cones.end[cone], cones.start_radius[cone],
                              cones.end_radius[cone])
        distance[rows] = np.minimum(distance[rows], found)
    return np.clip(0.5 - distance / np.float32(cell), 0, 1).mean(1)


def tree_attenuation(tree: VesselTree, grid: Volume, attenuation_per_mm: float, *,
                     supersample: int | None = None) -> Volume:
    """Partial-volume attenuation of a homogeneous lumen, float32 in 1/mm."""
    if not (math.isfinite(attenuation_per_mm) and attenuation_per_mm >= 0):
        raise ValueError(f"attenuation_per_mm is {attenuation_per_mm}; expected a number of at least 0")
    occupancy = tree_occupancy(tree, grid, supersample=supersample)
    return Volume(occupancy.values * np.float32(attenuation_per_mm), grid.origin_mm, grid.spacing_mm)


def tree_labels(tree: VesselTree, grid: Volume, *, by_branch: bool = False) -> Volume:
    """Labels uint8: 0 background, 1 vessel (or the position of the branch + 1 with ``by_branch``, at most 255).

    A voxel is vessel when at least half of it is, or when a centreline runs through it: a vessel thinner than a voxel
    stays one connected line instead of falling to pieces.
    """
    labels = np.zeros(grid.values.shape, np.uint8)
    if not by_branch:
        labels[tree_occupancy(tree, grid).values >= 0.5] = 1
        _draw_centerlines(labels, grid, tree, [1] * len(tree.branches))
        return Volume(labels, grid.origin_mm, grid.spacing_mm)
    if len(tree.branches) > 255:
        raise InputError(f"{len(tree.branches)} branches do not fit in uint8 labels (at most 255); "
                         "prune short branches or write one label")
    for position, branch in reversed(list(enumerate(tree.branches))):  # parents last: they own the shared root voxels
        labels[tree_occupancy(VesselTree((branch,)), grid).values >= 0.5] = position + 1
    _draw_centerlines(labels, grid, tree, list(range(1, len(tree.branches) + 1)), only_empty=True)
    return Volume(labels, grid.origin_mm, grid.spacing_mm)


def _draw_centerlines(labels: np.ndarray, grid: Volume, tree: VesselTree, values: list[int], *,
                      only_empty: bool = False) -> None:
    for branch, value in zip(tree.branches, values, strict=True):
        points = np.asarray(branch.points_lps_mm, np.float64)
        if len(points) > 1:
            steps = np.ceil(np.linalg.norm(np.diff(points, axis=0), axis=1) / (grid.spacing_mm / 4)).astype(int) + 1
            pieces = zip(points[:-1], points[1:], steps, strict=True)
            points = np.concatenate([np.linspace(a, b, n) for a, b, n in pieces])
        index = np.rint(grid.lps_to_index(points)).astype(int)
        index = index[np.all((index >= 0) & (index < labels.shape), axis=1)]
        place = tuple(index.T)
        labels[place] = np.where(labels[place] == 0, value, labels[place]) if only_empty else value
