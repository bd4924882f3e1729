# SPDX-License-Identifier: Apache-2.0
"""One view: what it shows and the prior's tree does not explain gets its depth from where it hangs on that tree.

The course is that of the image. Where the fitted tree runs along a centreline its depth is known; from there it spreads
along the traced graph as the harmonic function (every unknown point the mean of its neighbours, weighted by 1 /
distance): linear between two known places, constant on what hangs on by one end. Pieces that hang on nowhere are left
out: often they are no vessels. So are stretches that would climb steeply: two vessels cross there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.assembly import LEAST_RADIUS_MM, Curve, stretches
from licag3d.inversion.chains import THROUGH_DEG, Chains
from licag3d.inversion.filling import FILLED_CONFIDENCE


@dataclass(frozen=True)
class LiftSettings:
    """Lengths in mm at the isocentre.

    Args:
        near_mm, turn_deg: the tree explains a centreline point where it runs this near, and as parallel.
        farthest_mm: centreline farther than this along the graph from what is explained stays out.
        shortest_mm: of a stretch that is added. steepest: change of its depth, at most, per mm of centreline seen.
    """

    near_mm: float = 1.5
    turn_deg: float = 40.0
    farthest_mm: float = 25.0
    shortest_mm: float = 4.0
    steepest: float = 2.0


def lifted_curves(
    chains: Chains, camera: Camera, known: Sequence[Curve], settings: LiftSettings | None = None
) -> list[Curve]:
    """Curves for the centreline of a single view that ``known`` (LPS mm) does not explain; confidence is low.

    Example:
        >>> # curves += lifted_curves(chains[0], camera, curves)
    """
    settings = settings or LiftSettings()
    if not known or not len(chains.pixels):
        return []
    share, explained = _known_depths(chains, camera, known, settings)
    if not explained.any():
        return []
    links, length = _links(chains)
    reached = _distance(len(share), links, length, explained) <= settings.farthest_mm
    share = _harmonic(share, explained, reached, links, length)
    source, rays = camera.rays(chains.pixels[:, 0], chains.pixels[:, 1])
    points = source + np.nan_to_num(share, nan=camera.sod_mm / camera.sid_mm)[:, None] * rays
    radius = np.maximum(chains.radius_mm * camera.project(points)[1] / camera.sod_mm, LEAST_RADIUS_MM)
    keep = reached & ~explained
    for run in _runs(keep, chains):
        seen = chains.weight_mm[run].sum()
        if seen < settings.shortest_mm or np.ptp(points[run] @ camera.frame.beam) > settings.steepest * seen:
            keep[run] = False
    out = []
    for p in range(chains.pieces):
        rows = np.arange(chains.start[p], chains.start[p + 1])
        nodes = tuple((0, int(node)) for node in chains.node[p])
        # Points beyond reach have no place.
        for run in np.split(rows, np.flatnonzero(np.diff(reached[rows].astype(int))) + 1):
            if reached[run[0]]:
                ends = (nodes[0] if run[0] == rows[0] else None, nodes[1] if run[-1] == rows[-1] else None)
                whole = Curve(points[run], radius[run], np.full(len(run), FILLED_CONFIDENCE), ends)
                out += stretches(whole, keep[run], settings.shortest_mm)
    return out


def _runs(marked: np.ndarray, chains: Chains) -> list[np.ndarray]:
    """Runs of marked points, none over the end of a piece."""
    change = np.flatnonzero(np.diff(marked.astype(int))) + 1
    cuts = np.unique(np.concatenate([change, chains.start[1:-1]]))
    return [run for run in np.split(np.arange(len(marked)), cuts) if len(run) and marked[run[0]]]


def _known_depths(chains: Chains, camera: Camera, known: Sequence[Curve], settings: LiftSettings):
    """Share of the way along the ray to the detector ``(N,)``, NaN where the tree does not explain the point."""
    from scipy.spatial import cKDTree

    places = np.concatenate([curve.points_mm for curve in known])
    along = np.concatenate([np.gradient(camera.project(curve.points_mm)[0], axis=0) for curve in known])
    pixels = camera.project(places)[0]
    gap, nearest = cKDTree(pixels * camera.mm_per_pixel).query(chains.pixels * camera.mm_per_pixel)
    course = np.zeros_like(chains.pixels)
    for a, b in zip(chains.start[:-1], chains.start[1:], strict=True):
        if b - a > 1:
            course[a:b] = np.gradient(chains.pixels[a:b], axis=0)
    along = along[nearest]
    size = np.linalg.norm(course, axis=1) * np.linalg.norm(along, axis=1)
    cosine = np.abs((course * along).sum(1)) / np.maximum(size, 1e-9)
    explained = (gap < settings.near_mm) & (cosine > np.cos(np.radians(settings.turn_deg)))
    source, rays = camera.rays(chains.pixels[:, 0], chains.pixels[:, 1])
    beam = camera.frame.beam
    share = ((places[nearest] - source) @ beam) / (rays @ beam)
    return np.where(explained, share, np.nan), explained


def _links(chains: Chains) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours along pieces and at nodes ``(L, 2)`` and their distance ``(L,)``, mm; straight on at a crossing."""
    inner = np.setdiff1d(np.arange(len(chains.pixels)), chains.start[:-1])
    links, length = [np.stack([inner - 1, inner], 1)], [np.maximum(chains.step_mm[inner], 1e-3)]
    ends = np.stack([chains.start[:-1], chains.start[1:] - 1], 1)
    for p, q, end_p, end_q in np.argwhere(~np.isnan(chains.turn_deg)):
        if p < q and not (chains.crossing[chains.node[p, end_p]] and chains.turn_deg[p, q, end_p, end_q] > THROUGH_DEG):
            a, b = ends[p, end_p], ends[q, end_q]
            gap = np.linalg.norm(chains.pixels[a] - chains.pixels[b]) * chains.mm_per_pixel
            links.append(np.array([[a, b]]))
            length.append(np.array([max(gap, 0.1)]))
    return np.concatenate(links), np.concatenate(length)


def _graph(count: int, links: np.ndarray, weight: np.ndarray):
    from scipy.sparse import coo_matrix

    half = coo_matrix((weight, (links[:, 0], links[:, 1])), shape=(count, count)).tocsr()
    return half + half.T


def _distance(count: int, links: np.ndarray, length: np.ndarray, start: np.ndarray) -> np.ndarray:
    from scipy.sparse.csgraph import dijkstra

    return dijkstra(_graph(count, links, length), indices=np.flatnonzero(start), min_only=True)


def _harmonic(share: np.ndarray, fixed: np.ndarray, reached: np.ndarray, links, length) -> np.ndarray:
    from scipy.sparse import diags
    from scipy.sparse.linalg import spsolve

    free = reached & ~fixed
    if not free.any():
        return share
    use = reached[links].all(1)
    weights = _graph(len(share), links[use], 1.0 / length[use])
    rows = weights[free]
    matrix = diags(np.asarray(rows.sum(1)).ravel()) - rows[:, free]
    out = share.copy()
    out[free] = spsolve(matrix.tocsc(), rows[:, fixed] @ share[fixed])
    return out
