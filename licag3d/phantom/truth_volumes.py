# SPDX-License-Identifier: Apache-2.0
"""Surface and labels of a true tree, fast: only bricks of space that hold a vessel wall are looked at.

Both come from one exact signed distance to the union of the tree's round cones, as those of ``licag3d.vessels`` do. A
tree fills a thousandth of its box, so bricks of it save most of the time and memory; their borders are computed to the
last bit alike on both sides, so that the surface closes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.errors import InputError
from licag3d.structures import VesselTree
from licag3d.vessels.distance import Cones, _grid_distance, cone_boxes, shortened, tree_cones
from licag3d.vessels.surface import Surface
from licag3d.vessels.volume import Volume, covering_grid

#: Grid steps along a side of a brick, an even number (labels halve it).
_BRICK = 40
_LABEL_SPACING_MM = 0.5


@dataclass(frozen=True)
class _Lattice:
    """Grid point ``i`` lies at ``origin + step * i``; ``shape`` in points, x first."""

    origin: np.ndarray
    step: float
    shape: np.ndarray

    def axis(self, k: int, low: int, high: int) -> np.ndarray:
        # From the number of the point over the whole grid: the same bits in every brick that shares it.
        return self.origin[k] + self.step * np.arange(low, high)


def truth_surface(tree: VesselTree, *, spacing_mm: float = 0.3) -> Surface:
    """The watertight lumen surface: marching cubes (Lewiner et al. 2003) brick by brick, joined at shared vertices.

    The chord error of a tube of radius r is about ``step ** 2 / (8 r)`` with a grid step of ``spacing_mm``, less for
    thin vessels (0.8 of the thinnest radius, but at least 0.1 mm).

    Raises:
        InputError: the tree has no points, or a radius that is not above 0.
    """
    cones = tree_cones(tree)
    if len(cones) == 0:
        raise InputError("the vessel tree has no points, so it has no surface")
    thinnest = float(np.minimum(cones.start_radius, cones.end_radius).min())
    if not np.isfinite(thinnest) or thinnest <= 0:
        raise InputError(f"a vessel radius is {thinnest} mm; every radius must be positive")
    step = max(min(spacing_mm, 0.8 * thinnest), 0.1)
    low, high = cones.bounds()
    origin, shape = covering_grid(low - 2 * step, high + 2 * step, step)
    lattice = _Lattice(np.asarray(origin, np.float64), step, np.asarray(shape[::-1]))
    band = 2 * step
    vertices, faces, count = [], [], 0
    for corner, field in _bricks(cones, lattice, band):
        found = _brick_surface(field, band)
        if found is None:
            continue
        vertices.append(found[0] + corner[::-1])  # grid numbers z, y, x
        faces.append(found[1] + count)
        count += len(found[0])
    if not vertices:
        raise InputError("the vessel tree is too thin to have a surface; give radii above 0.1 mm")
    surface = _joined(np.concatenate(vertices), np.concatenate(faces), lattice)
    if surface.open_edges():
        raise RuntimeError(f"the truth surface has {surface.open_edges()} open edges")
    return surface


def truth_labels(tree: VesselTree, *, spacing_mm: float = _LABEL_SPACING_MM, margin_mm: float = 3.0) -> Volume:
    """Labels uint8 (0 background, 1 vessel): voxels at least half of which is lumen, or that a centreline crosses.

    The share follows from the signed distance at 8 cells per voxel, ``clip(0.5 - distance / cell, 0, 1)`` each.
    """
    from licag3d.vessels.rasterize import _draw_centerlines, tree_grid

    grid = tree_grid(tree, spacing_mm, margin_mm=margin_mm)
    labels = np.zeros(grid.values.shape, np.uint8)
    # Cells of a quarter voxel about each centre: an even number, so that bricks of cells are whole voxels.
    cell = spacing_mm / 2
    shape = 2 * np.asarray(grid.values.shape[::-1])
    lattice = _Lattice(np.asarray(grid.origin_mm, np.float64) - cell / 2, cell, shape)
    cones = tree_cones(tree)
    for corner, field in _bricks(cones, lattice, 1.5 * cell, overlap=0):
        share = np.clip(0.5 - field / cell, 0, 1)
        z, y, x = (n // 2 for n in share.shape)
        share = share.reshape(z, 2, y, 2, x, 2).mean((1, 3, 5))
        a, b, c = corner[::-1] // 2
        labels[a : a + z, b : b + y, c : c + x] = share >= 0.5
    _draw_centerlines(labels, grid, tree, [1] * len(tree.branches))
    return Volume(labels, grid.origin_mm, grid.spacing_mm)


def _bricks(cones: Cones, lattice: _Lattice, band: float, *, overlap: int = 1):
    """Corner ``(3,)`` x first and signed distance ``(z, y, x)`` float32, cut off at ``band``, of every brick that a
    cone comes near. Bricks share ``overlap`` layers of points with their neighbours.
    """
    cones = shortened(cones, 2 * band)
    low, high = cone_boxes(cones, np.arange(len(cones)), lattice.origin, lattice.step, lattice.shape, band)
    members: dict[tuple[int, int, int], list[int]] = {}
    first, last = low // _BRICK, np.maximum(high - 1, low) // _BRICK
    # A brick's last layer belongs to the next brick as well.
    first = np.where((low % _BRICK == 0) & (low > 0) & (overlap > 0), first - 1, first)
    for cone in range(len(cones)):
        for x in range(first[cone, 0], last[cone, 0] + 1):
            for y in range(first[cone, 1], last[cone, 1] + 1):
                for z in range(first[cone, 2], last[cone, 2] + 1):
                    members.setdefault((x, y, z), []).append(cone)
    for key in sorted(members):
        corner = _BRICK * np.asarray(key)
        end = np.minimum(corner + _BRICK + overlap, lattice.shape)
        field = np.full((end - corner)[::-1], band, np.float32)
        for cone in members[key]:
            a, b = np.maximum(low[cone], corner), np.minimum(high[cone], end)
            if np.any(a >= b):
                continue
            axes = [lattice.axis(k, a[k], b[k]) for k in range(3)]
            window = tuple(slice(a[k] - corner[k], b[k] - corner[k]) for k in (2, 1, 0))
            distance = _grid_distance(
                axes, cones.start[cone], cones.end[cone], cones.start_radius[cone], cones.end_radius[cone]
            )
            np.minimum(field[window], distance, out=field[window])
        yield corner, field


def _brick_surface(field: np.ndarray, band: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices ``(n, 3)`` in grid steps z, y, x and faces of one brick, or None where no wall runs through it."""
    from skimage.measure import marching_cubes

    # A vertex exactly on a grid point would be several vertices at one place: push such values off the wall, the same
    # way in every brick, as it depends on the value alone.
    tolerance = np.float32(5e-4 * band)
    near = np.abs(field) < tolerance
    field[near] = np.where(field[near] > 0, tolerance, -tolerance)
    if min(field.shape) < 2 or not (field.min() < 0 < field.max()):
        return None
    vertices, faces, _, _ = marching_cubes(field, 0.0, allow_degenerate=True)
    return vertices.astype(np.float64), faces.astype(np.int64)


def _joined(vertices_zyx: np.ndarray, faces: np.ndarray, lattice: _Lattice) -> Surface:
    """One mesh: vertices of two bricks on the same edge of the grid (or in the same cell) become one."""
    nearest = np.rint(vertices_zyx)
    # No vertex lies nearer than 2.5e-4 to a grid point; float32 inside a brick is exact to 2e-6.
    between = np.abs(vertices_zyx - nearest) > 1e-4
    lower = np.where(between, np.floor(vertices_zyx), nearest).astype(np.int64)
    kind = np.where(between.sum(1) == 1, between.argmax(1), 3)  # along z, y, x, or inside a cell
    z, y, x = lower.T
    _, index, inverse = np.unique(
        ((kind * lattice.shape[2] + z) * lattice.shape[1] + y) * lattice.shape[0] + x,
        return_index=True,
        return_inverse=True,
    )
    vertices = lattice.origin + lattice.step * vertices_zyx[index][:, ::-1]
    surface = Surface(vertices, inverse[faces])
    return surface if surface.volume_mm3 >= 0 else Surface(vertices, surface.faces[:, ::-1])
