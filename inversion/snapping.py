# SPDX-License-Identifier: Apache-2.0
"""A tree laid onto the centrelines of all views: each point moves across the vessels seen, smoothly along its branch.

With u the displacements, X + u is projected and its distance across the nearest centreline (in place, direction and
calibre) made zero in every view that shows it, by iterated weighted least squares (Geman and McClure weights):

    sum over views  v_i (n_i . (J_i u_i + pi(X_i) - p_i))^2 + bend |u_i-1 - 2 u_i + u_i+1|^2 + stretch |u_i - u_i-1|^2
    + stay |u_i|^2

Depth follows from two views that both show the vessel; where one does not, the course of the tree stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains
from licag3d.structures import VesselTree
from licag3d.vessels.tree import resample_tree


@dataclass(frozen=True)
class SnapSettings:
    """Lengths in mm (in the image: at the isocentre).

    Args:
        step_mm: spacing of the points. rounds: of assignment and least squares.
        reach_mm: scale of the robust weight in the first and in the last round.
        bend, stretch, stay: weights of the displacement's second and first differences and of itself.
        direction_mm, calibre_mm: what a right angle, and a factor e of calibre, add to a distance.
    """

    step_mm: float = 1.0
    rounds: int = 10
    reach_mm: tuple[float, float] = (1.0, 0.6)
    bend: float = 100.0
    stretch: float = 0.05
    stay: float = 0.1
    direction_mm: float = 4.0
    calibre_mm: float = 1.5


@dataclass(frozen=True)
class Snapped:
    """``tree``: laid onto the views. ``shown``: per view and branch ``(n,)`` in 0..1, how well the view shows it (NaN
    outside the image)."""

    tree: VesselTree
    shown: tuple[tuple[np.ndarray, ...], ...]


@dataclass(frozen=True)
class Lines:
    """Centreline points of a view, mm at the isocentre: ``points``, ``direction`` ``(N, 2)``, ``log_radius``."""

    points: np.ndarray
    direction: np.ndarray
    log_radius: np.ndarray


def snap_tree(
    tree: VesselTree, cameras: Sequence[Camera], chains: Sequence[Chains], settings: SnapSettings | None = None
) -> Snapped:
    """Lay a tree onto the centrelines of the views.

    Args:
        tree: in the gauge of the cameras, near the truth. Names, radii and links are kept.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import spsolve

    settings = settings or SnapSettings()
    tree = resample_tree(tree, settings.step_mm)
    points, radius, links, bends, same = tree_layout(tree)
    lines = [lines_of(camera, chain) for camera, chain in zip(cameras, chains, strict=True)]
    count = len(points)
    smooth = smoothness(count, links, bends, same, settings)
    moved = np.zeros_like(points)
    for k in range(settings.rounds):
        share = k / max(settings.rounds - 1, 1)
        reach = settings.reach_mm[0] ** (1 - share) * settings.reach_mm[1] ** share
        normal = np.zeros((count, 3, 3))
        right = np.zeros((count, 3))
        for camera, line in zip(cameras, lines, strict=True):
            rows, across, gap, weight = pull(points + moved, radius, links, camera, line, settings, reach)
            normal[rows] += weight[:, None, None] * across[:, :, None] * across[:, None, :]
            right[rows] += weight[:, None] * across * (gap + (across * moved[rows]).sum(1))[:, None]
        at = np.arange(3 * count).reshape(count, 3)
        data = csr_matrix(
            (normal.ravel(), (np.repeat(at, 3, axis=1).ravel(), np.tile(at, (1, 3)).ravel())), (3 * count, 3 * count)
        )
        moved = spsolve((data + smooth).tocsc(), right.ravel()).reshape(count, 3)
    cuts = np.cumsum([len(branch.points_lps_mm) for branch in tree.branches])[:-1]
    placed = np.split(points + moved, cuts)
    laid = VesselTree(tuple(replace(b, points_lps_mm=p) for b, p in zip(tree.branches, placed, strict=True)))
    return shown_tree(laid, cameras, chains, settings)


def shown_tree(
    tree: VesselTree, cameras: Sequence[Camera], chains: Sequence[Chains], settings: SnapSettings | None = None
) -> Snapped:
    """How well the views show a tree that lies on them already."""
    settings = settings or SnapSettings()
    points, radius, links, _, _ = tree_layout(tree)
    cuts = np.cumsum([len(branch.points_lps_mm) for branch in tree.branches])[:-1]
    shown = [_shown(points, radius, links, camera, lines_of(camera, chain), settings)
             for camera, chain in zip(cameras, chains, strict=True)]  # fmt: skip
    return Snapped(tree, tuple(tuple(np.split(value, cuts)) for value in shown))


def tree_layout(tree: VesselTree):
    """All points, radii, links along branches ``(L, 2)``, triples ``(T, 3)``, and pairs ``(P, 2)`` of a branch's first
    point and the nearest point of its parent."""
    first, at = {}, 0
    links, bends, same = [], [], []
    by_id = {branch.id: branch for branch in tree.branches}
    for branch in tree.branches:
        first[branch.id] = at
        n = len(branch.points_lps_mm)
        rows = np.arange(at, at + n)
        links.append(np.stack([rows[:-1], rows[1:]], 1))
        bends.append(np.stack([rows[:-2], rows[1:-1], rows[2:]], 1))
        if branch.parent is not None:
            gap = np.linalg.norm(by_id[branch.parent].points_lps_mm - branch.points_lps_mm[0], axis=1)
            same.append((at, first[branch.parent] + int(gap.argmin())))
        at += n
    points = np.concatenate([np.asarray(branch.points_lps_mm, float) for branch in tree.branches])
    radius = np.concatenate([branch.radius_mm for branch in tree.branches])
    return points, radius, np.concatenate(links), np.concatenate(bends), np.array(same, int).reshape(-1, 2)


def smoothness(count: int, links, bends, same, settings: SnapSettings):
    """Normal matrix ``(3 N, 3 N)`` of all terms that do not look at the images."""
    from scipy.sparse import coo_matrix, identity, kron

    rows, cols, values = [], [], []

    def add(index: np.ndarray, factors: tuple[float, ...], weight: float) -> None:
        base = add.total
        number = np.arange(len(index)) + base
        for column, factor in zip(index.T, factors, strict=True):
            rows.append(number)
            cols.append(column)
            values.append(np.full(len(index), factor * np.sqrt(weight)))
        add.total += len(index)

    add.total = 0
    add(bends, (1.0, -2.0, 1.0), settings.bend)
    add(links, (1.0, -1.0), settings.stretch)
    add(same, (1.0, -1.0), 10.0)
    matrix = coo_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), (add.total, count))
    normal = matrix.T @ matrix + settings.stay * identity(count)
    return kron(normal, identity(3)).tocsr()


def lines_of(camera: Camera, chains: Chains) -> Lines:
    """The centrelines of a view as :func:`snap_tree` compares them."""
    points = chains.pixels * camera.mm_per_pixel
    direction = np.zeros_like(points)
    for a, b in zip(chains.start[:-1], chains.start[1:], strict=True):
        rows = np.arange(a, b)
        direction[rows] = points[np.minimum(rows + 3, b - 1)] - points[np.maximum(rows - 3, a)]
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
    return Lines(points, direction, np.log(chains.radius_mm))


def seen_points(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image points in mm at the isocentre, their derivative ``(N, 2, 3)``, and which lie in the image."""
    pixels, depth = camera.project(points)
    frame = camera.frame
    centre = np.array([camera.principal_col, camera.principal_row])
    spacing = np.array([camera.spacing_col_mm, camera.spacing_row_mm])
    axes = np.stack([frame.column, frame.row])
    scale = camera.sid_mm / spacing / depth[:, None]
    jacobian = scale[:, :, None] * axes - ((pixels - centre) / depth[:, None])[:, :, None] * frame.beam
    inside = ((pixels >= 0) & (pixels <= [camera.cols - 1, camera.rows - 1])).all(1)
    return pixels * camera.mm_per_pixel, jacobian * camera.mm_per_pixel, inside


def _assign(flat, radius, links, line: Lines, settings: SnapSettings):
    """Nearest centreline point of every tree point in place, direction and calibre, and the cosine ``(N,)``."""
    from scipy.spatial import cKDTree

    along = np.zeros_like(flat)
    step = flat[links[:, 1]] - flat[links[:, 0]]
    np.add.at(along, links[:, 0], step)
    np.add.at(along, links[:, 1], step)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    # The nearest in place may run another way: among a few dozen the best in all respects.
    near = min(48, len(line.points))
    gap, index = cKDTree(line.points).query(flat, k=near)
    gap, index = gap.reshape(len(flat), -1), index.reshape(len(flat), -1)
    cosine = (along[:, None] * line.direction[index]).sum(2)
    bore = np.clip(np.log(np.maximum(radius, 0.05))[:, None] - line.log_radius[index], -1.5, 1.5)
    cost = gap**2 + settings.direction_mm**2 * (1 - cosine**2) + settings.calibre_mm**2 * bore**2
    best = cost.argmin(1)
    rows = np.arange(len(flat))
    return index[rows, best], cosine[rows, best]


def pull(points, radius, links, camera, line: Lines, settings, reach: float):
    """Rows ``(n,)``, direction in space across the centreline ``(n, 3)``, distance to go and weight ``(n,)``."""
    flat, jacobian, inside = seen_points(points, camera)
    index, cosine = _assign(flat, radius, links, line, settings)
    off = line.points[index] - flat
    tangent = line.direction[index]
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    gap = (off * normal).sum(1)
    beyond = np.maximum(np.abs((off * tangent).sum(1)) - 1.0, 0.0)
    weight = np.abs(cosine) / (1 + (gap**2 + beyond**2) / reach**2) ** 2
    rows = np.flatnonzero(inside & (weight > 1e-3))
    across = (normal[rows, :, None] * jacobian[rows]).sum(1)
    return rows, across, gap[rows], weight[rows]


def _shown(points, radius, links, camera, line: Lines, settings) -> np.ndarray:
    flat, _, inside = seen_points(points, camera)
    index, cosine = _assign(flat, radius, links, line, settings)
    gap = np.linalg.norm(line.points[index] - flat, axis=1)
    value = np.exp(-0.5 * (gap / 1.0) ** 2) * np.abs(cosine)
    return np.where(inside, value, np.nan)
