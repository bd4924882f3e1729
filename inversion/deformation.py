# SPDX-License-Identifier: Apache-2.0
"""How the heart has moved between the views, as far as two views show it: smoothly, across the epipolar planes.

Views of two injections show another phase of the heart and another breath. A point that view 1 sees at X lies at
X + d_k(X) a_k for view k, with a_k the unit vector across the epipolar planes of views 1 and k and

    d_k(X) = sum_j c_kj b_j(X),    b = 1, x, y, z, x^2, xy, ... in units of the size of the tree.

Along the epipolar lines a displacement looks like another depth: nothing there is estimated (docs/deformation.md).
The coefficients are found together with the displacements u of the points of a tree that is laid onto the views
(:mod:`licag3d.inversion.snapping`):

    sum over views  v_i (n_i . J_i (u_i + d_k(X_i) a_k) - gap_i)^2 + smoothness of u + sum_j c_kj^2 / sigma_j^2

The tree may go where it wants in depth; what is left across the planes, over the whole tree, is d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains, moved_chains
from licag3d.inversion.epipolar import epipolar_pair
from licag3d.inversion.snapping import SnapSettings, lines_of, pull, smoothness, tree_layout
from licag3d.structures import VesselTree
from licag3d.vessels.tree import resample_tree


@dataclass(frozen=True)
class DeformationSettings:
    """Lengths in mm.

    Args:
        sigma_mm: standard deviation of a coefficient of degree 0, 1 and 2: what it displaces at one ``radius`` (root
            mean square distance of the tree's points from their middle).
        rounds: of assignment and least squares. reach_mm: scale of the robust weight, first and last round.
        noise_mm: standard deviation of the middle of a vessel, per mm of vessel seen.
    """

    sigma_mm: tuple[float, float, float] = (2.0, 1.0, 0.5)
    rounds: int = 8
    reach_mm: tuple[float, float] = (2.5, 0.8)
    noise_mm: float = 1.0


@dataclass(frozen=True)
class Deformation:
    """Displacement of one view: ``along`` ``(3,)`` unit vector, ``middle_mm`` ``(3,)``, ``radius_mm``, ``coefficients``
    ``(10,)`` mm and their standard deviations ``sigma_mm`` ``(10,)``."""

    along: np.ndarray
    middle_mm: np.ndarray
    radius_mm: float
    coefficients: np.ndarray
    sigma_mm: np.ndarray

    def at(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """Displacements ``(N, 3)`` of points ``(N, 3)``."""
        return (basis((points_lps_mm - self.middle_mm) / self.radius_mm) @ self.coefficients)[:, None] * self.along


#: Degree of every polynomial of :func:`basis`.
DEGREES = np.array([0, 1, 1, 1, 2, 2, 2, 2, 2, 2])


def basis(unit: np.ndarray) -> np.ndarray:
    """Polynomials ``(N, 10)`` of degree two or less of points ``(N, 3)`` in units of the tree."""
    x, y, z = unit.T
    return np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], 1)


def find_deformation(
    tree: VesselTree,
    cameras: Sequence[Camera],
    chains: Sequence[Chains],
    settings: DeformationSettings | None = None,
    snap: SnapSettings | None = None,
) -> tuple[Deformation, ...]:
    """Displacement of every view after the first, for a tree near the truth in the gauge of the cameras."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import splu

    settings, snap = settings or DeformationSettings(), snap or SnapSettings()
    points, radius, links, bends, same = tree_layout(resample_tree(tree, snap.step_mm))
    lines = [lines_of(camera, chain) for camera, chain in zip(cameras, chains, strict=True)]
    count, views = len(points), len(cameras)
    middle = points.mean(0)
    size = float(np.sqrt(((points - middle) ** 2).sum(1).mean()))
    shapes = basis((points - middle) / size)
    across = [None, *(epipolar_pair(cameras[0], camera).across for camera in cameras[1:])]
    wide = shapes.shape[1]
    smooth = smoothness(count, links, bends, same, snap)
    prior = np.tile(settings.noise_mm**2 / np.array(settings.sigma_mm)[DEGREES] ** 2, views - 1)
    moved, found = np.zeros_like(points), np.zeros((views - 1) * wide)
    at = np.arange(3 * count).reshape(count, 3)
    for number in range(settings.rounds):
        share = number / max(settings.rounds - 1, 1)
        reach = settings.reach_mm[0] ** (1 - share) * settings.reach_mm[1] ** share
        normal, right = np.zeros((count, 3, 3)), np.zeros((count, 3))
        cross, inner, wanted = np.zeros((3 * count, len(found))), np.diag(prior), np.zeros(len(found))
        for k, (camera, line) in enumerate(zip(cameras, lines, strict=True)):
            gone = moved.copy()
            if k:
                part = slice((k - 1) * wide, k * wide)
                gone += (shapes @ found[part])[:, None] * across[k]
            rows, normals, gap, weight = pull(points + gone, radius, links, camera, line, snap, reach)
            total = gap + (normals * gone[rows]).sum(1)
            normal[rows] += weight[:, None, None] * normals[:, :, None] * normals[:, None, :]
            right[rows] += weight[:, None] * normals * total[:, None]
            if k:
                slope = (normals @ across[k])[:, None] * shapes[rows]
                for axis in range(3):
                    cross[at[rows, axis], part] += (weight * normals[:, axis])[:, None] * slope
                inner[part, part] += (weight[:, None] * slope).T @ slope
                wanted[part] += slope.T @ (weight * total)
        data = csr_matrix(
            (normal.ravel(), (np.repeat(at, 3, axis=1).ravel(), np.tile(at, (1, 3)).ravel())), (3 * count, 3 * count)
        )
        solved = splu((data + smooth).tocsc()).solve(np.concatenate([right.reshape(-1, 1), cross], 1))
        schur = inner - cross.T @ solved[:, 1:]
        found = np.linalg.solve(schur, wanted - cross.T @ solved[:, 0])
        moved = (solved[:, 0] - solved[:, 1:] @ found).reshape(count, 3)
    sigma = settings.noise_mm * np.sqrt(np.diag(np.linalg.inv(schur)))
    return tuple(
        Deformation(across[k], middle, size, found[(k - 1) * wide : k * wide], sigma[(k - 1) * wide : k * wide])
        for k in range(1, views)
    )


def undeformed(chains: Chains, camera: Camera, deformation: Deformation, points_lps_mm: np.ndarray) -> Chains:
    """Centrelines of a view as they would lie at the moment of view 1.

    Args:
        points_lps_mm: ``(M, 3)`` of the tree: a pixel takes the depth of the nearest one.
    """
    from scipy.spatial import cKDTree

    flat, _ = camera.project(points_lps_mm + deformation.at(points_lps_mm))
    search, few = cKDTree(flat), min(8, len(flat))

    def back(pixels: np.ndarray) -> np.ndarray:
        near = search.query(pixels, k=few)[1].reshape(len(pixels), few)
        there = points_lps_mm[near].mean(1)
        return pixels - (camera.project(there + deformation.at(there))[0] - camera.project(there)[0])

    return moved_chains(chains, back(chains.pixels), back(chains.node_pixels))


def at_first_moment(
    tree: VesselTree,
    cameras: Sequence[Camera],
    chains: Sequence[Chains],
    settings: DeformationSettings | None = None,
    snap: SnapSettings | None = None,
) -> tuple[tuple[Chains, ...], tuple[float, ...]]:
    """Centrelines of all views as they would lie at the moment of view 1, and how far each further view had moved, mm
    (root mean square over the tree)."""
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    found = find_deformation(tree, cameras, chains, settings, snap)
    still = [
        undeformed(chain, camera, item, points)
        for chain, camera, item in zip(chains[1:], cameras[1:], found, strict=True)
    ]
    size = [round(float(np.sqrt((item.at(points) ** 2).sum(1).mean())), 3) for item in found]
    return (chains[0], *still), tuple(size)
