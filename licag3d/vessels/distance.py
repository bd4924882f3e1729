# SPDX-License-Identifier: Apache-2.0
"""Signed distance to a union of round cones on a grid, evaluated in a narrow band, in 2D or 3D.

A vessel piece between two centreline points is the union of all balls whose centre runs along the segment and whose
radius is interpolated linearly: a round cone. With ``k = (r0 - r1) / L`` and the query at axial position ``t`` and
distance ``q`` from the axis, the distance is

    min over s in [0, L] of  sqrt((t - s)^2 + q^2) - (r0 - k s),

convex in s; setting its derivative to zero gives ``t - s = k q / sqrt(1 - k^2)``, clipped to the segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.structures import VesselTree


@dataclass(frozen=True)
class Cones:
    """N round cones in 2 or 3 dimensions: ``start``, ``end`` ``(N, dim)``, radii ``(N,)``, ``group`` ``(N,)`` int."""

    start: np.ndarray
    end: np.ndarray
    start_radius: np.ndarray
    end_radius: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners ``(dim,)`` of the box around all cones."""
        radius = np.concatenate([self.start_radius, self.end_radius])[:, None]
        points = np.concatenate([self.start, self.end])
        return (points - radius).min(0), (points + radius).max(0)


def tree_cones(tree: VesselTree) -> Cones:
    """The cones of all branches in mm, ``group`` the position of the branch in the tree; a lone point is a ball."""
    parts: list[tuple] = []
    for position, branch in enumerate(tree.branches):
        points, radius = np.asarray(branch.points_lps_mm, np.float64), np.asarray(branch.radius_mm, np.float64)
        if len(points) == 1:
            points, radius = points.repeat(2, 0), radius.repeat(2)
        if len(points) >= 2:
            parts.append((points[:-1], points[1:], radius[:-1], radius[1:], np.full(len(points) - 1, position)))
    if not parts:
        return Cones(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, int))
    return Cones(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def cone_distance(points: np.ndarray, start: np.ndarray, end: np.ndarray, start_radius: float,
                  end_radius: float) -> np.ndarray:
    """Signed distance ``(...)`` of points ``(..., dim)`` to one round cone, negative inside."""
    axis = end - start
    length = float(np.linalg.norm(axis))
    offset = points - start
    slope = (start_radius - end_radius) / length if length > 0 else 0.0
    if abs(slope) >= 1 or length == 0:  # the larger ball holds the smaller one
        centre, radius = (start, start_radius) if start_radius >= end_radius else (end, end_radius)
        return np.sqrt(((points - centre) ** 2).sum(-1)) - radius
    along = offset @ (axis / length)
    across_squared = np.maximum((offset * offset).sum(-1) - along * along, 0.0)
    nearest = along if slope == 0 else along - slope / np.sqrt(1 - slope * slope) * np.sqrt(across_squared)
    nearest = np.clip(nearest, 0.0, length)
    return np.sqrt((along - nearest) ** 2 + across_squared) - (start_radius - slope * nearest)


def signed_distance(cones: Cones, origin, spacing: float, shape: tuple[int, ...], *, band: float,
                    blend: float = 0.0) -> np.ndarray:
    """Signed distance to the union of cones on a grid, exact within ``band`` of the surface outside, and inside.

    Args:
        cones: in the units of ``spacing``, coordinates x, y(, z).
        origin: ``(dim,)`` x, y(, z) of grid point 0.
        shape: grid size in index order (z,) y, x.
        band: distance beyond which the value is cut off at ``band``; cost grows with it, memory does not.
        blend: width over which cones of different groups melt into each other at a bifurcation (polynomial smooth
            minimum, raising the surface by at most ``blend / 4``); 0 is the plain union. Must not exceed ``band``.

    Returns:
        float32 of ``shape``.
    """
    if blend > band:
        raise ValueError(f"blend {blend} exceeds the band {band}")
    field = np.full(shape, band, np.float32)
    cones = shortened(cones, 2 * band)
    groups = np.unique(cones.group) if blend > 0 else [None]
    for group in groups:
        chosen = np.arange(len(cones)) if group is None else np.flatnonzero(cones.group == group)
        if group is None:
            _lower(field, cones, chosen, origin, spacing, band)
            continue
        low, high = _index_box(cones, chosen, origin, spacing, shape, band)
        if np.any(low >= high):
            continue
        window = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
        local = np.full([s.stop - s.start for s in window], band, np.float32)
        _lower(local, cones, chosen, np.asarray(origin) + spacing * low, spacing, band)
        mixed = np.maximum(blend - np.abs(field[window] - local), 0.0) / blend
        # Two values that are both cut off at the band are far from both surfaces: nothing to melt.
        mixed[np.maximum(field[window], local) >= band] = 0.0
        field[window] = np.minimum(field[window], local) - mixed * mixed * (blend / 4)
    return field


def distance_blocks(cones: Cones, origin, spacing: float, shape: tuple[int, ...], *, band: float, cells: int):
    """``signed_distance`` of a 3D grid in blocks of ``cells`` along an edge, those that a cone comes near alone.

    A tree fills a hundredth of its box; the grid as a whole is never held. Neighbouring blocks share a plane of
    points, with the same values.

    Yields:
        Index (z, y, x) of the first point, and float32 of at most ``cells + 1`` points an edge.
    """
    cones = shortened(cones, 2 * band)
    origin, size = np.asarray(origin, np.float64), np.asarray(shape[::-1])
    low, high = cone_boxes(cones, np.arange(len(cones)), origin, spacing, size, band)
    first, last = np.maximum((low - 1) // cells, 0), np.minimum((high - 1) // cells, (size - 2) // cells)
    touched: dict[tuple[int, ...], list[int]] = {}
    for cone in np.flatnonzero((low < high).all(1)):
        for block in np.ndindex(*(last[cone] - first[cone] + 1)):
            touched.setdefault(tuple(first[cone] + block)[::-1], []).append(cone)
    for block in sorted(touched):
        start = np.array(block) * cells
        begin = start[::-1]
        end = np.minimum(begin + cells + 1, size)
        field = np.full((end - begin)[::-1], band, np.float32)
        for cone in touched[block]:
            _lower_by(field, cones, cone, np.maximum(low[cone], begin), np.minimum(high[cone], end), begin, origin,
                      spacing)
        yield start, field


def _lower(field: np.ndarray, cones: Cones, chosen: np.ndarray, origin, spacing: float, band: float) -> None:
    """Lower ``field`` to the distance of each chosen cone, inside the cone's own box only."""
    origin = np.asarray(origin, np.float64)
    low, high = cone_boxes(cones, chosen, origin, spacing, np.asarray(field.shape[::-1]), band)
    for position, cone in enumerate(chosen):
        _lower_by(field, cones, cone, low[position], high[position], np.zeros(origin.size, int), origin, spacing)


def _lower_by(field: np.ndarray, cones: Cones, cone: int, low, high, begin, origin, spacing: float) -> None:
    """Lower the points ``low`` to ``high`` (x first) of a grid, of which ``field`` holds those from ``begin`` on."""
    if np.any(low >= high):
        return
    axes = [origin[k] + spacing * np.arange(low[k], high[k]) for k in range(origin.size)]
    window = tuple(slice(low[k] - begin[k], high[k] - begin[k]) for k in reversed(range(origin.size)))
    distance = _grid_distance(axes, cones.start[cone], cones.end[cone], cones.start_radius[cone],
                              cones.end_radius[cone])
    np.minimum(field[window], distance, out=field[window])


def cone_boxes(cones: Cones, chosen: np.ndarray, origin, spacing: float, size, band: float):
    """First and one-past-last grid index ``(len(chosen), dim)``, x first, of what lies within ``band`` of each cone."""
    reach = np.maximum(cones.start_radius, cones.end_radius)[chosen, None] + band
    low = np.floor((np.minimum(cones.start[chosen], cones.end[chosen]) - reach - origin) / spacing).astype(int)
    high = np.ceil((np.maximum(cones.start[chosen], cones.end[chosen]) + reach - origin) / spacing).astype(int) + 1
    return np.clip(low, 0, size), np.clip(high, 0, size)


def _grid_distance(axes: list[np.ndarray], start: np.ndarray, end: np.ndarray, start_radius: float,
                   end_radius: float) -> np.ndarray:
    """``cone_distance`` on a small grid, float32, without ever storing the points: sums over broadcast axes."""
    axis = end - start
    length = float(np.linalg.norm(axis))
    slope = (start_radius - end_radius) / length if length > 0 else 0.0
    ball = abs(slope) >= 1 or length == 0
    if ball and end_radius > start_radius:
        start, start_radius = end, end_radius
    dim = len(axes)
    # Grid axes run z, y, x; offsets from the start keep float32 exact enough.
    offsets = [(axes[k] - start[k]).astype(np.float32).reshape([-1 if d == dim - 1 - k else 1 for d in range(dim)])
               for k in range(dim)]
    squared = sum(offset * offset for offset in offsets[:-1]) + offsets[-1] ** 2
    if ball:
        return np.sqrt(squared) - np.float32(start_radius)
    along = sum(offset * np.float32(u) for offset, u in zip(offsets, axis / length, strict=True))
    across = np.maximum(squared - along * along, 0)
    if slope == 0:
        nearest = np.clip(along, 0, np.float32(length))
    else:
        tilt = np.float32(slope / np.sqrt(1 - slope * slope))
        nearest = np.clip(along - tilt * np.sqrt(across), 0, np.float32(length))
    along -= nearest
    across += along * along
    return np.sqrt(across) - (np.float32(start_radius) - np.float32(slope) * nearest)


def _index_box(cones: Cones, chosen: np.ndarray, origin, spacing: float, shape, band: float):
    part = Cones(*(getattr(cones, name)[chosen] for name in ("start", "end", "start_radius", "end_radius", "group")))
    low, high = part.bounds()
    size = np.asarray(shape[::-1])
    first = np.floor((low - band - origin) / spacing).astype(int)
    last = np.ceil((high + band - origin) / spacing).astype(int) + 1
    return np.clip(first, 0, size), np.clip(last, 0, size)


def shortened(cones: Cones, extra: float) -> Cones:
    """Cut long cones in equal pieces, so that the box of a slanted one stays small; the union is the same."""
    if len(cones) == 0:
        return cones
    length = np.linalg.norm(cones.end - cones.start, axis=1)
    wish = 2 * np.maximum(cones.start_radius, cones.end_radius) + extra
    pieces = np.maximum(1, np.ceil(length / np.maximum(wish, 1e-9))).astype(int)
    which = np.repeat(np.arange(len(cones)), pieces)
    first = np.concatenate([np.arange(n) for n in pieces]) / pieces[which]
    last = first + 1 / pieces[which]

    def at(s: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a[which] + (b - a)[which] * (s[:, None] if a.ndim == 2 else s)

    return Cones(at(first, cones.start, cones.end), at(last, cones.start, cones.end),
                 at(first, cones.start_radius, cones.end_radius), at(last, cones.start_radius, cones.end_radius),
                 cones.group[which])
