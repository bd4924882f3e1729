# SPDX-License-Identifier: Apache-2.0
"""Short stretches without a match between matched ones: the image shows the way, the depth is interpolated."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.chains import THROUGH_DEG, Chains
from licag3d.inversion.matching import Match

#: Confidence of an interpolated place: it is on the vessel in one image, its depth is a guess between two known ones.
FILLED_CONFIDENCE = 0.1


@dataclass(frozen=True)
class FillSettings:
    """Which gaps are filled.

    Args:
        longest_mm: centreline without a match, at most, mm at the isocentre.
        steepest: change of depth over the gap, at most, per mm of centreline seen.
        node_mm: a matched place within this arc of a node tells the depth of the node.
    """

    longest_mm: float = 15.0
    steepest: float = 2.0
    node_mm: float = 4.0


def fill_gaps(
    match: Match, cameras: tuple[Camera, Camera], settings: FillSettings, *, surer_than: float = 0.0
) -> Match:
    """Give short unmatched stretches of either view a place.

    Args:
        surer_than: places that are not surer than this count as unmatched.

    Returns:
        The match with filled places (confidence ``FILLED_CONFIDENCE``); all others are as they were.
    """
    points, confidence = [], []
    for side in (0, 1):
        filled, sure = _fill(match, side, cameras[side], settings, surer_than)
        points.append(filled)
        confidence.append(sure)
    return replace(match, points_mm=tuple(points), confidence=tuple(confidence))


def _fill(match: Match, side: int, camera: Camera, settings: FillSettings, surer_than: float):
    chains: Chains = match.chains[side]
    points, confidence = match.points_mm[side].copy(), match.confidence[side].copy()
    if not len(points):
        return points, confidence
    source, rays = camera.rays(chains.pixels[:, 0], chains.pixels[:, 1])
    # Depth as the share of the way from source to detector pixel: linear along the ray.
    share = ((points - source) * rays).sum(1) / (rays * rays).sum(1)
    known = np.isfinite(share) & (confidence > surer_than)
    node_share = _node_depths(chains, share, known, settings.node_mm)
    for p in range(chains.pieces):
        rows = np.arange(chains.start[p], chains.start[p + 1])
        arc = np.cumsum(chains.step_mm[rows])
        changes = np.flatnonzero(np.diff(known[rows].astype(int))) + 1
        for run in np.split(np.arange(len(rows)), changes):
            if known[rows[run[0]]]:
                continue
            before = _boundary(run[0] - 1, rows, arc, share, node_share.get((p, 0)), arc[0])
            after = _boundary(run[-1] + 1, rows, arc, share, node_share.get((p, 1)), arc[-1])
            if before is None or after is None:
                continue
            length = after[0] - before[0]
            depth_mm = abs(after[1] - before[1]) * float(np.linalg.norm(rays[rows[run[0]]]))
            if length > settings.longest_mm or depth_mm > settings.steepest * max(length, 1.0):
                continue
            at = np.interp(arc[run], [before[0], after[0]], [before[1], after[1]])
            points[rows[run]] = source + at[:, None] * rays[rows[run]]
            confidence[rows[run]] = FILLED_CONFIDENCE
    return points, confidence


def _boundary(i: int, rows, arc, share, node: float | None, node_arc: float) -> tuple[float, float] | None:
    """Arc and depth of the known place beside a gap: a point of the piece, or the node that the gap reaches."""
    if 0 <= i < len(rows):
        return float(arc[i]), float(share[rows[i]])
    return None if node is None else (float(node_arc), node)


def _node_depths(chains: Chains, share: np.ndarray, known: np.ndarray, reach_mm: float) -> dict[tuple[int, int], float]:
    """Depth of the node at either end of a piece, as the piece that runs on straightest from there knows it."""
    ends: dict[tuple[int, int], float] = {}
    for p in range(chains.pieces):
        rows = np.arange(chains.start[p], chains.start[p + 1])
        arc = np.cumsum(chains.step_mm[rows])
        for end, order, distance in ((0, slice(None), arc), (1, slice(None, None, -1), arc[-1] - arc)):
            near = rows[order][(distance[order] <= reach_mm) & known[rows[order]]]
            if len(near):
                ends[p, end] = float(share[near[0]])
    found = {}
    for p in range(chains.pieces):
        for end in (0, 1):
            if (p, end) in ends:
                continue
            crossing = chains.crossing[chains.node[p, end]]
            others = [(chains.turn_deg[p, q, end, f], depth) for (q, f), depth in ends.items()
                      if np.isfinite(chains.turn_deg[p, q, end, f])]
            others = [other for other in others if not crossing or other[0] < THROUGH_DEG]
            if others:
                found[p, end] = min(others)[1]
    return found
