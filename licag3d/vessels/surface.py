# SPDX-License-Identifier: Apache-2.0
"""Watertight lumen surfaces in world LPS mm, from a vessel tree or from an attenuation volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.errors import InputError
from licag3d.structures import VesselTree
from licag3d.vessels.distance import distance_blocks, signed_distance, tree_cones
from licag3d.vessels.volume import Volume, covering_grid

_MAX_POINTS = 120e6  # 0.5 GB of float32, where all of them are held
#: Cells along an edge of the blocks that are searched for the surface, most of which hold none of it.
_BLOCK = 48


@dataclass(frozen=True)
class Surface:
    """A triangle mesh: ``vertices_lps_mm`` ``(N, 3)`` float64, ``faces`` ``(M, 3)`` int64, outward orientation."""

    vertices_lps_mm: np.ndarray
    faces: np.ndarray

    @property
    def volume_mm3(self) -> float:
        """Enclosed volume, positive when the faces look outward."""
        a, b, c = (self.vertices_lps_mm[self.faces[:, k]] for k in range(3))
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @property
    def area_mm2(self) -> float:
        """Area of all faces."""
        a, b, c = (self.vertices_lps_mm[self.faces[:, k]] for k in range(3))
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)

    def open_edges(self) -> int:
        """Number of edges that are not shared by exactly two faces: 0 for a watertight surface."""
        edges = np.sort(np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]]), axis=1)
        _, count = np.unique(edges[:, 0] * np.int64(len(self.vertices_lps_mm)) + edges[:, 1], return_counts=True)
        return int((count != 2).sum())


@dataclass(frozen=True)
class SurfacePart:
    """One connected piece of a surface.

    ``volume_mm3`` is negative for a cavity (a closed hole inside the lumen); ``center_lps_mm`` is its mean vertex.
    """

    faces: int
    volume_mm3: float
    center_lps_mm: tuple[float, float, float]


def tree_surface(tree: VesselTree, *, spacing_mm: float = 0.3, blend_mm: float = 0.0) -> Surface:
    """The lumen surface of a tree: the union of its round cones, closed with round ends.

    The chord error of a tube of radius r is about ``spacing_mm ** 2 / (8 r)``: 0.02 mm for r = 0.5 and 0.3 mm.

    Args:
        spacing_mm: largest grid step; half the thinnest radius is used where that is smaller, down to 0.2 mm (to
            0.8 of the thinnest radius below that), so that no thin branch is cut.
        blend_mm: rounding of the crotch at bifurcations, 0 for the exact union.

    Raises:
        InputError: the tree has no points, or the spacing makes an absurd grid.
    """
    cones = tree_cones(tree)
    if len(cones) == 0:
        raise InputError("the vessel tree has no points, so it has no surface; nothing was reconstructed")
    thinnest = float(np.minimum(cones.start_radius, cones.end_radius).min())
    if not np.isfinite(thinnest) or thinnest <= 0:
        raise InputError(f"a vessel radius is {thinnest} mm; every radius must be positive")
    step = min(spacing_mm, max(0.5 * thinnest, min(0.2, 0.8 * thinnest)))
    low, high = cones.bounds()
    # No finer than this many grid points allow, as long as no vessel is lost.
    step = max(step, 0.05, min(float(np.prod(high - low) / _MAX_POINTS) ** (1 / 3), spacing_mm, 0.8 * thinnest))
    margin = 2 * step + blend_mm
    origin, shape = covering_grid(low - margin, high + margin, step)
    band = max(2 * step, 1.5 * blend_mm)
    if blend_mm > 0:
        blocks = _blocks_of(signed_distance(cones, origin, step, shape, band=band, blend=blend_mm))
    else:
        blocks = distance_blocks(cones, origin, step, shape, band=band, cells=_BLOCK)
    deepest = float(np.maximum(cones.start_radius, cones.end_radius).max())
    inside = ((first, np.negative(values, out=values)) for first, values in blocks)
    return _isosurface(inside, 0.0, band + deepest, origin, step)


def volume_surface(volume: Volume, level: float) -> Surface:
    """The iso-surface of a volume at ``level`` (the units of its values), closed where the volume ends.

    Raises:
        InputError: nothing or everything lies above the level, or the volume holds NaN.
    """
    values = np.asarray(volume.values, np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise InputError("the attenuation volume holds NaN or infinite values, so it has no surface")
    if not low < level < high:
        raise InputError(f"no surface at level {level:g}: the volume spans {low:g} to {high:g}; "
                         "give a level in between")
    # The pad mirrors the strongest excess over the level: the surface then leaves the volume by half a voxel, the
    # edge of the outermost voxels.
    pad = level - (high - level)
    padded = np.pad(values, 1, constant_values=pad)
    origin = np.asarray(volume.origin_mm) - volume.spacing_mm
    return _isosurface(_blocks_of(padded), level, high - min(low, pad), tuple(origin), volume.spacing_mm)


def surface_parts(surface: Surface) -> tuple[SurfacePart, ...]:
    """The connected pieces, largest volume first: small ones are for the caller to report, none is dropped here."""
    label = face_parts(surface)
    a, b, c = (surface.vertices_lps_mm[surface.faces[:, k]] for k in range(3))
    # Volumes about the mesh centre: the plain formula loses digits for a part far from the origin.
    center = surface.vertices_lps_mm.mean(0) if len(surface.vertices_lps_mm) else np.zeros(3)
    volume = np.einsum("ij,ij->i", a - center, np.cross(b - center, c - center)) / 6
    parts = []
    for part in range(int(label.max()) + 1 if len(label) else 0):
        mine = label == part
        middle = surface.vertices_lps_mm[np.unique(surface.faces[mine])].mean(0)
        parts.append(SurfacePart(int(mine.sum()), float(volume[mine].sum()), tuple(float(x) for x in middle)))
    return tuple(sorted(parts, key=lambda p: -abs(p.volume_mm3)))


def face_parts(surface: Surface) -> np.ndarray:
    """Number of the connected piece of each face, ``(M,)`` int."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(surface.vertices_lps_mm)
    rows = np.concatenate([surface.faces[:, 0], surface.faces[:, 1]])
    cols = np.concatenate([surface.faces[:, 1], surface.faces[:, 2]])
    edges = coo_matrix((np.ones(len(rows), np.int8), (rows, cols)), shape=(n, n))
    _, label = connected_components(edges, directed=False)
    return label[surface.faces[:, 0]] if len(surface.faces) else np.zeros(0, int)


def decimated(surface: Surface, cell_mm: float) -> Surface:
    """A lighter mesh for display: vertices of one cell become their mean. Not guaranteed watertight."""
    cell = np.floor((surface.vertices_lps_mm - surface.vertices_lps_mm.min(0)) / cell_mm).astype(np.int64)
    size = cell.max(0) + 1
    _, new, count = np.unique((cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2], return_inverse=True,
                              return_counts=True)
    vertices = np.stack([np.bincount(new, surface.vertices_lps_mm[:, k]) / count for k in range(3)], -1)
    faces = new[surface.faces]
    kept = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return Surface(vertices, faces[kept])


def _isosurface(blocks, level: float, span: float, origin, spacing_mm: float) -> Surface:
    """Marching cubes (Lewiner et al. 2003) of blocks of a grid whose border is below level; ``span`` of the values."""
    vertices_zyx, faces = _marching_blocks(blocks, np.float32(level), np.float32(2.5e-4 * max(span, 1e-12)))
    surface = Surface(Volume(np.zeros((1, 1, 1), np.float32), origin, spacing_mm).index_to_lps(vertices_zyx), faces)
    if surface.volume_mm3 < 0:
        surface = Surface(surface.vertices_lps_mm, surface.faces[:, ::-1])
    if surface.open_edges():
        raise RuntimeError(f"marching cubes left {surface.open_edges()} open edges in the lumen surface")
    return surface


def _blocks_of(values: np.ndarray):
    """A grid in blocks that share a plane of points with their neighbours: (first index, copy of the values)."""
    for corner in np.ndindex(*(-(-(n - 1) // _BLOCK) for n in values.shape)):
        first = np.array(corner) * _BLOCK
        yield first, values[tuple(slice(a, a + _BLOCK + 1) for a in first)].copy()


def _marching_blocks(blocks, level: np.float32, tolerance: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (index coordinates z, y, x) and faces of the level, block by block where it passes through."""
    from skimage.measure import marching_cubes

    vertices, faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for first, block in blocks:
        # A vertex exactly on a grid point would be several vertices at one place: push such values off the level, by
        # the value alone, so that neighbouring blocks agree on it.
        on_level = np.abs(block - level) < tolerance
        block[on_level] = level + np.where(block[on_level] > level, tolerance, -tolerance)
        if not block.min() < level < block.max():
            continue
        found, corners, _, _ = marching_cubes(block, level, allow_degenerate=True)
        vertices.append(found + first)
        faces.append(corners.astype(np.int64) + count)
        count += len(found)
    return _joined(np.concatenate(vertices), np.concatenate(faces))


def _joined(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One vertex for those that two blocks found on the same edge of the grid."""
    # A vertex lies between two neighbours of the grid and is named by the first of them and the direction.
    cell = np.floor(vertices + 2e-5).astype(np.int64)
    along = vertices - cell
    border = np.flatnonzero((np.rint(vertices) % _BLOCK == 0).any(1) & ((along > 2e-5).sum(1) == 1))
    name = np.concatenate([cell[border], along[border].argmax(1)[:, None]], axis=1)
    _, first, same = np.unique(name, axis=0, return_index=True, return_inverse=True)
    new = np.arange(len(vertices))
    new[border] = border[first[same.reshape(-1)]]
    kept = np.flatnonzero(new == np.arange(len(vertices)))
    number = np.zeros(len(vertices), np.int64)
    number[kept] = np.arange(len(kept))
    return vertices[kept], number[new[faces]]
