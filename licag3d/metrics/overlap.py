# SPDX-License-Identifier: Apache-2.0
"""Overlap of vessel lumens on a 0.5 mm grid; definitions in docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.metrics.centerline import CenterlinePoints, harmonic, nearest_distances

#: Voxel edge, mm; voxel (i, j, k) has its centre at (i + 0.5, j + 0.5, k + 0.5) times it, LPS.
VOXEL_MM = 0.5
_CHUNK = 250


def lumen_voxels(points: CenterlinePoints) -> np.ndarray:
    """Indices ``(n, 3)`` of the voxels of the lumen, in sorted order: those whose centre lies in the union of balls
    along the centreline, and those that a centreline point lies in (vessels thinner than a voxel stay one line).

    With a ball every 0.25 mm the union is short of the tube by less than 0.01 mm of radius.

    Raises:
        ValueError: a radius that is negative, not finite or beyond 25 mm.
    """
    if len(points.points_lps_mm) == 0:
        return np.zeros((0, 3), np.int64)
    radius = points.radius_mm
    if not np.all(np.isfinite(radius)) or radius.min() < 0 or radius.max() > 25:
        raise ValueError("radii must be finite and within 0 to 25 mm")
    unique = [np.unique(_keys(_voxel_of(points.points_lps_mm)))]
    # Balls of similar size share one stencil.
    order = np.argsort(radius, kind="stable")
    for begin in range(0, len(order), _CHUNK):
        chosen = order[begin : begin + _CHUNK]
        reach = int(np.ceil(radius[chosen].max() / VOXEL_MM)) + 1
        stencil = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
        for part in np.array_split(chosen, max(1, len(chosen) * len(stencil) // 2_000_000)):
            centre = points.points_lps_mm[part] / VOXEL_MM - 0.5
            voxel = np.rint(centre).astype(np.int64)[:, None, :] + stencil
            inside = ((voxel - centre[:, None, :]) ** 2).sum(-1) <= (radius[part, None] / VOXEL_MM) ** 2
            unique.append(np.unique(_keys(voxel[inside])))
    return _voxels(np.unique(np.concatenate(unique)))


@dataclass(frozen=True)
class Lumen:
    """A centreline with the voxels of its lumen: ``keys`` sorted ``(n,)``, ``voxels`` ``(n, 3)``, ``surface``
    ``(m, 3)`` those with a face neighbour outside."""

    points: CenterlinePoints
    voxels: np.ndarray
    keys: np.ndarray
    surface: np.ndarray

    @classmethod
    def of(cls, points: CenterlinePoints) -> Lumen:
        """Fill the tubes; raises ValueError as :func:`lumen_voxels`."""
        voxels = lumen_voxels(points)
        keys = _keys(voxels)
        return cls(points, voxels, keys, _surface(voxels, keys))


def overlap_metrics(pred: CenterlinePoints | Lumen, truth: CenterlinePoints | Lumen) -> dict[str, float]:
    """Dice, Ot(1 mm), Ot(2 mm), clDice (Shit et al., CVPR 2021), HD95 and Chamfer of the surfaces, on the 0.5 mm grid.

    Ot(d) is the share of voxels of both lumens whose centre lies within d of a voxel centre of the other (used with
    NeCA and DeepCA); at d = 0 it is Dice. The skeleton of clDice is the centreline itself, by length: both sides have
    one, and thinning of voxels breaks it or erases it on even-sized vessels. HD95 pools the distances of both
    directions between boundary voxels; the surface Chamfer is the mean of the two one-way means, not squared. Empty
    prediction: overlaps 0, distances NaN.
    """
    a, b = (x if isinstance(x, Lumen) else Lumen.of(x) for x in (pred, truth))
    if len(a.voxels) == 0 or len(b.voxels) == 0:
        shares = dict.fromkeys(("dice", "ot_1mm", "ot_2mm", "cldice"), 0.0)
        return shares | {"hd95_mm": float("nan"), "surface_chamfer_mm": float("nan")}
    in_b, in_a = _contains(b.keys, a.keys), _contains(a.keys, b.keys)
    # A voxel outside the other lumen is nearest to a voxel of its surface.
    far_a, _ = nearest_distances(a.voxels[~in_b] * VOXEL_MM, b.surface * VOXEL_MM)
    far_b, _ = nearest_distances(b.voxels[~in_a] * VOXEL_MM, a.surface * VOXEL_MM)
    common, total = int(in_b.sum()), len(a.voxels) + len(b.voxels)
    near = {d: int((far_a <= d + 1e-9).sum() + (far_b <= d + 1e-9).sum()) for d in (1, 2)}
    precision = float(_contains(b.keys, _keys(_voxel_of(a.points.points_lps_mm))).mean())
    sensitivity = float(_contains(a.keys, _keys(_voxel_of(b.points.points_lps_mm))).mean())
    forward, _ = nearest_distances(a.surface * VOXEL_MM, b.surface * VOXEL_MM)
    backward, _ = nearest_distances(b.surface * VOXEL_MM, a.surface * VOXEL_MM)
    return {
        "dice": 2 * common / total,
        "ot_1mm": (2 * common + near[1]) / total,
        "ot_2mm": (2 * common + near[2]) / total,
        "cldice": harmonic(precision, sensitivity),
        "hd95_mm": float(np.percentile(np.concatenate((forward, backward)), 95)),
        "surface_chamfer_mm": 0.5 * float(forward.mean() + backward.mean()),
    }


def lumen_components(lumen: Lumen) -> int:
    """Number of pieces of a lumen: voxels that share a face, an edge or a corner belong together."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(lumen.keys)
    if count == 0:
        return 0
    rows, cols = [], []
    offsets = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)[14:]  # one of each pair
    for offset in offsets:
        wanted = _keys(lumen.voxels + offset)
        at = np.minimum(np.searchsorted(lumen.keys, wanted), count - 1)
        found = np.flatnonzero(lumen.keys[at] == wanted)
        rows.append(found)
        cols.append(at[found])
    row, col = np.concatenate(rows), np.concatenate(cols)
    return int(connected_components(coo_matrix((np.ones(len(row), bool), (row, col)), (count, count)), False)[0])


def _surface(voxels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Voxels with a face neighbour outside."""
    inner = np.ones(len(voxels), bool)
    for axis in range(3):
        for step in (-1, 1):
            neighbour = voxels.copy()
            neighbour[:, axis] += step
            inner &= _contains(keys, _keys(neighbour))
    return voxels[~inner]


def _contains(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each key is among the sorted ``keys``."""
    if len(keys) == 0:
        return np.zeros(wanted.shape, bool)
    return keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted


def _voxel_of(points_lps_mm: np.ndarray) -> np.ndarray:
    return np.floor(points_lps_mm / VOXEL_MM).astype(np.int64)


def _keys(voxels: np.ndarray) -> np.ndarray:
    """One integer per voxel (21 bits an axis: a million voxels either way)."""
    shifted = voxels.astype(np.int64) + (1 << 20)
    return (shifted[..., 0] << 42) | (shifted[..., 1] << 21) | shifted[..., 2]


def _voxels(keys: np.ndarray) -> np.ndarray:
    mask = (1 << 21) - 1
    return np.stack((keys >> 42, (keys >> 21) & mask, keys & mask), -1) - (1 << 20)
