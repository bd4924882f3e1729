# SPDX-License-Identifier: Apache-2.0
"""Vessel centrelines of one view: a graph of ordered, sub-pixel pieces traced in a 2D mask.

A point is ``(col, row)`` in pixels, (0, 0) being the centre of the top-left pixel. Pieces run from node to node and
carry the node position as their first and last point, so neighbouring pieces meet exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.models import skeleton_graph
from licag3d.structures import VesselEvidence, View

#: Where vessels were found and not given: free-standing pieces and dead ends shorter than this, mm at the isocentre,
#: are left out. Half of what is shorter are twigs and false alarms (docs/evidence.md).
SHORTEST_MM = (6.0, 3.0)


@dataclass(frozen=True)
class Piece2D:
    """One stretch of centreline between two nodes; ``indices`` ``(n,)`` are rows of the point arrays, in order."""

    id: int
    node_start: int
    node_end: int
    indices: np.ndarray


@dataclass(frozen=True)
class Crossing2D:
    """Two vessels that pass over each other at ``node``: each pair holds the (piece id, end) that continue straight.

    ``end`` is 0 where the piece starts at the node and 1 where it ends there.
    """

    node: int
    pairs: tuple[tuple[tuple[int, int], tuple[int, int]], ...]


@dataclass(frozen=True)
class CenterlineGraph2D:
    """The traced centrelines of one view; N points, M nodes.

    Args:
        points: ``(N, 2)`` float64 (col, row), about 1 px apart along each piece.
        radius_px: ``(N,)`` vessel half width on the detector, px.
        line_integral: ``(N,)`` mean line integral over the central half of the vessel width (0.957 of the value at the
            centre for a round vessel), no unit; zero where no line integral was given.
        probability: ``(N,)`` vessel probability at the point, 0..1.
        tangent: ``(N, 2)`` unit vectors (col, row) in the direction of the piece.
        piece_of: ``(N,)`` id of the piece of every point.
        pieces: the pieces; ``pieces[k].id == k``.
        nodes: ``(M, 2)`` float64 (col, row).
        node_degree: ``(M,)`` number of piece ends at the node.
        node_kind: ``(M,)`` text: ``end``, ``branch``, ``crossing`` (candidate) or ``loop`` (a closed curve cut open).
        crossings: for every ``crossing`` node, which pieces continue into which.
    """

    points: np.ndarray
    radius_px: np.ndarray
    line_integral: np.ndarray
    probability: np.ndarray
    tangent: np.ndarray
    piece_of: np.ndarray
    pieces: tuple[Piece2D, ...]
    nodes: np.ndarray
    node_degree: np.ndarray
    node_kind: np.ndarray
    crossings: tuple[Crossing2D, ...] = ()

    def piece_length_px(self, piece_id: int) -> float:
        """Arc length of one piece, px."""
        points = self.points[self.pieces[piece_id].indices]
        return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


def trace_centerlines(evidence: VesselEvidence, view: View | None = None) -> CenterlineGraph2D:
    """Trace the vessels of ``evidence.mask`` as a graph of sub-pixel centreline pieces.

    The skeleton is refined by the centroid of the line integral across the vessel; the radius is taken from
    ``evidence.radius_px`` where that is given and from the width of the mask elsewhere.

    Args:
        evidence: all arrays ``(rows, cols)``; only ``mask`` must be filled, the others may be zero.
        view: when given, points outside ``view.valid`` are not traced.

    Example:
        >>> import numpy as np
        >>> from licag3d.structures import VesselEvidence
        >>> mask = np.zeros((40, 60), bool)
        >>> mask[18:23, 5:55] = True
        >>> zero = np.zeros(mask.shape, np.float32)
        >>> graph = trace_centerlines(VesselEvidence(mask.astype(np.float32), zero, zero, zero, mask))
        >>> len(graph.pieces), graph.node_kind.tolist(), bool((abs(graph.points[:, 1] - 20) < 0.2).all())
        (1, ['end', 'end'], True)
    """
    mask = evidence.mask if view is None else evidence.mask & view.valid
    least = (5.0, 0.0)
    if view is not None and view.mask is None:
        least = tuple(length_mm / view.camera.mm_per_pixel for length_mm in SHORTEST_MM)
    return trace_mask(mask, line_integral=evidence.line_integral, probability=evidence.probability,
                      radius_px=evidence.radius_px, min_length_px=least[0], min_dead_end_px=least[1])


def trace_mask(mask, *, line_integral=None, probability=None, radius_px=None, spur_ratio: float = 1.5,
               min_length_px: float = 5.0, min_dead_end_px: float = 0.0) -> CenterlineGraph2D:
    """Trace any ``(rows, cols)`` bool mask; see :func:`trace_centerlines`.

    Args:
        line_integral, probability, radius_px: optional ``(rows, cols)`` images, zero where unknown.
        spur_ratio: a dead end shorter than this many vessel radii (of the vessel it leaves) plus 2 px is pruned.
        min_length_px: free-standing pieces shorter than this are dropped.
        min_dead_end_px: so are dead ends shorter than this.

    Raises:
        ValueError: the mask is not a 2D array.
    """
    from scipy import ndimage

    mask = np.asarray(mask, bool)
    if mask.ndim != 2:
        raise ValueError(f"mask has {mask.ndim} dimensions; expected 2 (rows, cols)")
    if not mask.any():
        return _assemble([], np.zeros((0, 2)), [], [], [])
    mask = _fill_pinholes(mask)
    # A frame of background around the image: vessels cut by the image edge keep their half width there. (Distances are
    # to the nearest background pixel centre, half a pixel beyond the boundary.)
    distance_px = np.maximum(ndimage.distance_transform_edt(mask) - 0.5, 0.5)
    graph = skeleton_graph.build(mask)
    skeleton_graph.prune(graph, distance_px, spur_ratio=spur_ratio, min_length_px=min_length_px,
                         min_dead_end_px=min_dead_end_px)
    skeleton_graph.merge_junctions(graph, distance_px)
    nodes, kinds, chains, crossings = skeleton_graph.finish(graph, distance_px)
    chains = [(a, b, *_trim(points, radius, kinds[a] == "end", kinds[b] == "end")) for a, b, points, radius in chains]
    soft_mask = ndimage.gaussian_filter(mask.astype(np.float32), 0.7)
    weight = None
    if line_integral is not None and np.any(line_integral):
        weight = np.asarray(line_integral, np.float32)
    lines = [_refine(points, soft_mask, weight, radius, fixed=(kinds[a] != "end", kinds[b] != "end"))
             for a, b, points, radius in chains]
    nodes = _settle_nodes(nodes, kinds, chains, lines, distance_px)
    per_piece = []
    for (a, b, _, _), (points, half_width) in zip(chains, lines, strict=True):
        points, half_width = _attach(points, half_width, nodes[a], nodes[b], distance_px)
        tangent = _tangent(points)
        measured = _measure(points, tangent, half_width, weight, probability, radius_px, mask)
        per_piece.append((a, b, points, *measured, tangent))
    degree = np.bincount([n for a, b, _, _ in chains for n in (a, b)], minlength=len(nodes))
    return _assemble(per_piece, nodes, kinds, degree, crossings)


def _fill_pinholes(mask: np.ndarray, area_px: int = 10) -> np.ndarray:
    """Close holes of a few pixels: each would become a loop of the skeleton."""
    from scipy import ndimage

    holes, count = ndimage.label(~mask)
    if not count:
        return mask
    area = np.bincount(holes.ravel())
    small = area <= area_px
    small[0] = False
    return mask | small[holes]


def _trim(points, radius, start_free: bool, stop_free: bool):
    """Cut the hook off a dead end: thinning runs into a corner of a blunt tip, where the distance to the edge falls."""
    for free in (start_free, stop_free):
        points, radius = points[::-1], radius[::-1]
        count = len(points)
        if not free or count < 8:
            continue
        body = float(np.median(radius[-int(min(count, 4 * radius.max() + 6)):]))
        cut = 0
        while cut < min(1.5 * body, count - 6) and radius[count - 1 - cut] < 0.8 * body:
            cut += 1
        points, radius = points[:count - cut], radius[:count - cut]
    # Reversed twice: the order is the old one. The first pass looked at the stop end of the reversed chain, its start.
    return points, radius


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing along axis 0; odd extension, so that the two ends stay where they are."""
    from scipy import ndimage

    count = len(values)
    if count < 3 or sigma <= 0:
        return values
    pad = min(count - 1, int(4 * sigma + 1))
    before, after = 2 * values[0] - values[pad:0:-1], 2 * values[-1] - values[-2:-pad - 2:-1]
    smooth = ndimage.gaussian_filter1d(np.concatenate([before, values, after]), sigma, axis=0, mode="nearest")
    return smooth[pad:pad + count]


def _resample(points: np.ndarray, *others: np.ndarray, step_px: float = 1.0):
    """Points (and arrays beside them) at even arc length, about ``step_px`` apart; the ends are kept."""
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    keep = np.concatenate([[True], np.diff(arc) > 1e-9])
    arc, points, others = arc[keep], points[keep], [x[keep] for x in others]
    if len(arc) < 2:
        return points, *others
    at = np.linspace(0.0, arc[-1], max(2, int(round(arc[-1] / step_px)) + 1))
    even = np.stack([np.interp(at, arc, points[:, 0]), np.interp(at, arc, points[:, 1])], 1)
    return even, *[np.interp(at, arc, x) for x in others]


def _tangent(points: np.ndarray) -> np.ndarray:
    if len(points) < 2:
        return np.tile([1.0, 0.0], (len(points), 1))
    difference = np.gradient(_smooth(points, 1.0), axis=0)
    return difference / np.maximum(np.linalg.norm(difference, axis=1, keepdims=True), 1e-9)


def _sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.map_coordinates(image, [points[..., 1], points[..., 0]], order=1, mode="constant")


def _edges(soft_mask, points, tangent, reach_px: float, step_px: float = 0.25):
    """Where the mask ends on both sides of each point: signed distances along the normal, and a validity flag."""
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    t = np.arange(0.0, reach_px + step_px, step_px)
    found, position = [], []
    for side in (-1.0, 1.0):
        profile = _sample(soft_mask, points[:, None] + side * t[None, :, None] * normal[:, None])
        below = profile < 0.5
        first = below.argmax(1)
        found.append(below.any(1) & (first > 0))
        row = np.arange(len(points))
        inside, outside = profile[row, np.maximum(first - 1, 0)], profile[row, first]
        share = (inside - 0.5) / np.maximum(inside - outside, 1e-6)
        position.append(side * (t[np.maximum(first - 1, 0)] + step_px * share))
    return position[0], position[1], found[0] & found[1], normal


def _refine(points, soft_mask, weight, radius, *, fixed, rounds: int = 3):
    """Move a chain of skeleton pixels onto the middle of the vessel.

    Each round: perpendicular profiles, their centroid (of the line integral across the mask, of the mask itself without
    one), offsets smoothed along the piece. Profiles near a junction see the other vessel and are left out.

    Returns:
        points ``(n, 2)`` about 1 px apart, and the half width ``(n,)`` of the mask there.
    """
    points, radius = _resample(points, radius)
    if len(points) < 5:
        return points, radius
    points = _smooth(points, 1.5)
    for _ in range(rounds):
        points, radius = _resample(points, radius)
        tangent = _tangent(points)
        low, high, good, normal = _edges(soft_mask, points, tangent, reach_px=2.5 * float(radius.max()) + 3.0)
        width = np.where(good, high - low, 0.0)
        good &= width < 2 * 1.6 * radius + 2.0
        offset = 0.5 * (low + high)
        if weight is not None:
            # One pixel beyond the mask: its stepped edge must not decide which samples count.
            t = np.linspace(0.0, 1.0, 41)[None] * (high - low + 2.0)[:, None] + low[:, None] - 1.0
            profile = np.maximum(_sample(weight, points[:, None] + t[..., None] * normal[:, None]), 0.0)
            total = profile.sum(1)
            offset = np.where(total > 0, (profile * t).sum(1) / np.maximum(total, 1e-9), offset)
        trust = good.astype(float)
        arc = np.arange(len(points), dtype=float)
        for is_fixed, from_node in ((fixed[0], arc), (fixed[1], arc[::-1])):
            if is_fixed:
                trust *= np.clip((from_node - 0.5 * radius) / np.maximum(radius, 1.0), 0.0, 1.0)
        limit = np.maximum(1.0, 0.7 * radius)
        offset = np.where(trust > 0, np.clip(offset, -limit, limit), 0.0)
        points = points + _weighted_smooth(offset, trust, 3.0, fixed)[:, None] * normal
        half = _weighted_smooth(0.5 * width, trust, 2.0, (False, False))
        radius = np.where(_weighted_smooth(np.ones_like(trust), trust, 2.0, (False, False)) > 0.5, half, radius)
    return points, radius


def _settle_nodes(nodes, kinds, chains, lines, distance_px) -> np.ndarray:
    """Dead ends follow their refined piece; a junction moves to where the straight arms around it meet.

    The skeleton of a junction is pulled into the widest corner. The arms are sound one radius away, so the node is the
    least-squares meeting point of their tangent lines, at most 1.3 radii from the skeleton node.
    """
    nodes = np.array(nodes, float)
    normals: list[list] = [[] for _ in nodes]
    for (a, b, _, _), (points, _) in zip(chains, lines, strict=True):
        for node, line in ((a, points), (b, points[::-1])):
            if kinds[node] == "end":
                nodes[node] = line[0]
            elif kinds[node] != "loop":
                radius = _near(distance_px, nodes[node])
                arc = np.linalg.norm(line - nodes[node], axis=1)
                part = line[(arc > 1.2 * radius) & (arc < 3.0 * radius + 4.0)][:int(2 * radius + 6)]
                if len(part) >= 4:
                    centre = part.mean(0)
                    _, spread, axes = np.linalg.svd(part - centre)
                    if spread[1] < 0.2 * spread[0]:
                        normals[node].append((axes[1], centre))
    for node, found in enumerate(normals):
        if len(found) >= 3:
            n = np.array([x for x, _ in found])
            right = np.array([x @ c for x, c in found])
            # A weak pull to the skeleton node settles the direction that nearly parallel arms leave open.
            pull = 0.1 * np.eye(2)
            moved = np.linalg.solve(n.T @ n + pull, n.T @ right + pull @ nodes[node]) - nodes[node]
            limit = 1.3 * _near(distance_px, nodes[node])
            nodes[node] += moved * min(1.0, limit / max(float(np.linalg.norm(moved)), 1e-9))
    return nodes


def _near(distance_px, point) -> float:
    row, col = (int(np.clip(round(float(x)), 0, n - 1)) for x, n in zip(point[::-1], distance_px.shape, strict=True))
    return max(float(distance_px[row, col]), 1.0)


def _attach(points, half_width, start, stop, distance_px):
    """Lead a refined piece straight into its two nodes, dropping the bent skeleton within a radius of a moved node."""
    keep = np.ones(len(points), bool)
    for node, end in ((start, points[0]), (stop, points[-1])):
        if np.linalg.norm(node - end) > 1e-6:
            keep &= np.linalg.norm(points - node, axis=1) > 1.2 * _near(distance_px, node)
    keep[[0, -1]] = False
    points = np.concatenate([start[None], points[keep], stop[None]])
    half_width = np.concatenate([half_width[:1], half_width[keep], half_width[-1:]])
    return _resample(points, half_width)


def _weighted_smooth(values, weights, sigma, fixed):
    """Normalised convolution along the piece; returns to zero at fixed ends and where nothing is known."""
    from scipy import ndimage

    top = ndimage.gaussian_filter1d(values * weights, sigma, mode="nearest")
    bottom = ndimage.gaussian_filter1d(weights, sigma, mode="nearest")
    smooth = np.where(bottom > 0.02, top / np.maximum(bottom, 0.02), 0.0)
    ramp = np.minimum(1.0, np.arange(len(values)) / 3.0)
    if fixed[0]:
        smooth = smooth * ramp
    if fixed[1]:
        smooth = smooth * ramp[::-1]
    return smooth


def _measure(points, tangent, half_width, weight, probability, radius_px, mask):
    """Radius, mean line integral of the central half, and probability at every point of a piece."""
    from scipy import ndimage

    radius = half_width
    if radius_px is not None and np.any(radius_px):
        known = ((np.asarray(radius_px) > 0) & mask).astype(np.float32)
        share = _sample(known, points)
        given = _sample(np.asarray(radius_px, np.float32) * known, points) / np.maximum(share, 1e-6)
        radius = np.where(share > 0.25, given, half_width)
        if len(radius) > 4:
            radius = ndimage.gaussian_filter1d(radius, 1.5, mode="nearest")
    integral = np.zeros(len(points))
    if weight is not None:
        normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
        t = np.linspace(-0.5, 0.5, 9)[None] * radius[:, None]
        integral = _sample(weight, points[:, None] + t[..., None] * normal[:, None]).mean(1)
    chance = _sample((mask if probability is None else np.asarray(probability)).astype(np.float32), points)
    return radius, integral, chance


def _assemble(per_piece, nodes, kinds, degree, crossings) -> CenterlineGraph2D:
    pieces, start = [], 0
    for number, (a, b, points, *_rest) in enumerate(per_piece):
        pieces.append(Piece2D(number, a, b, np.arange(start, start + len(points))))
        start += len(points)

    def join(column: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([piece[column] for piece in per_piece]) if per_piece else np.zeros(shape)

    return CenterlineGraph2D(
        points=join(2, (0, 2)), radius_px=join(3, (0,)), line_integral=join(4, (0,)), probability=join(5, (0,)),
        tangent=join(6, (0, 2)),
        piece_of=np.repeat(np.arange(len(pieces)), [len(p.indices) for p in pieces]).astype(int), pieces=tuple(pieces),
        nodes=np.asarray(nodes, float).reshape(-1, 2), node_degree=np.asarray(degree, int),
        node_kind=np.asarray(kinds, dtype="<U8"), crossings=tuple(Crossing2D(n, p) for n, p in crossings))
