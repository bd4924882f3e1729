# SPDX-License-Identifier: Apache-2.0
"""From any graph of centreline points to a vessel tree: cycles broken, main vessels first, spurs pruned."""

from __future__ import annotations

import numpy as np

from licag3d.structures import Branch, VesselTree


def trace_tree(points_lps_mm, radius_mm, edges, *, root: int | None = None, min_branch_mm: float = 0.0,
               confidence=None, names=None) -> VesselTree:
    """A tree of branches from a graph.

    Cycles are broken at their weakest place: of all spanning trees the one with the least sum of length over radius is
    kept, so that the thin side of a loop is cut. From the root, the path that maximises the integral of the radius over
    its length is the main vessel; what is left hangs on it as side branches, found the same way. The first point of a
    branch is a point of its parent.

    Args:
        points_lps_mm: ``(N, 3)``; ``radius_mm`` ``(N,)`` positive; ``edges`` ``(E, 2)`` int.
        root: point to start at; default the thickest end of each connected piece (mean radius of the last 3 mm).
            The piece that holds a given root comes first.
        min_branch_mm: side branches that stick out of their parent's lumen by less are spurs and are dropped.
        confidence: ``(N,)``, handed on to the branches. ``names``: ``(N,)`` str, a branch takes its most frequent.

    Returns:
        One root branch per connected piece, largest total length first.
    """
    points, radius = np.asarray(points_lps_mm, np.float64).reshape(-1, 3), np.asarray(radius_mm, np.float64)
    if len(points) == 0:
        return VesselTree()
    neighbours = _spanning_forest(points, radius, np.asarray(edges, np.int64).reshape(-1, 2))
    pieces = sorted(_pieces(neighbours), key=lambda piece: (root not in piece, -_length(points, neighbours, piece)))
    branches: list[Branch] = []
    for piece in pieces:
        start = root if root in piece else _thickest_end(points, radius, neighbours, piece)
        base = len(branches)
        for parent, path in _paths(points, radius, neighbours, start, min_branch_mm):
            branches.append(Branch(
                len(branches), None if parent is None else base + parent, points[path], radius[path],
                _name(names, path), None if confidence is None else np.asarray(confidence, np.float64)[path]))
    return VesselTree(tuple(branches))


def _spanning_forest(points: np.ndarray, radius: np.ndarray, edges: np.ndarray) -> list[list[int]]:
    """Adjacency lists of the minimum spanning forest for the weight length / radius (thin loops are opened)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    n = len(points)
    neighbours: list[list[int]] = [[] for _ in range(n)]
    edges = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
    if len(edges) == 0:
        return neighbours
    length = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    thickness = np.maximum(radius[edges].mean(1), 1e-6)
    # An exact zero would be "no edge" to the sparse matrix.
    weight = np.maximum(length, 1e-9) / thickness
    kept = minimum_spanning_tree(coo_matrix((weight, (edges[:, 0], edges[:, 1])), shape=(n, n)).tocsr()).tocoo()
    for a, b in sorted(zip(kept.row.tolist(), kept.col.tolist(), strict=True)):
        neighbours[a].append(b)
        neighbours[b].append(a)
    return neighbours


def _pieces(neighbours: list[list[int]]) -> list[set[int]]:
    seen = np.zeros(len(neighbours), bool)
    pieces = []
    for first in range(len(neighbours)):
        if seen[first]:
            continue
        seen[first] = True
        piece, queue = set(), [first]
        while queue:
            node = queue.pop()
            piece.add(node)
            for other in neighbours[node]:
                if not seen[other]:
                    seen[other] = True
                    queue.append(other)
        pieces.append(piece)
    return pieces


def _length(points: np.ndarray, neighbours: list[list[int]], piece: set[int]) -> float:
    return sum(float(np.linalg.norm(points[a] - points[b])) for a in piece for b in neighbours[a]) / 2


def _thickest_end(points: np.ndarray, radius: np.ndarray, neighbours: list[list[int]], piece: set[int]) -> int:
    """The end point with the largest mean radius over its last 3 mm."""
    ends = [node for node in piece if len(neighbours[node]) <= 1] or sorted(piece)[:1]

    def mean_radius(end: int) -> float:
        path, previous, travelled = [end], -1, 0.0
        while travelled < 3.0:
            onward = [n for n in neighbours[path[-1]] if n != previous]
            if len(onward) != 1:
                break
            previous = path[-1]
            path.append(onward[0])
            travelled += float(np.linalg.norm(points[path[-1]] - points[previous]))
        return float(radius[path].mean())

    return max(sorted(ends), key=mean_radius)


def _paths(points: np.ndarray, radius: np.ndarray, neighbours: list[list[int]], start: int, min_branch_mm: float):
    """(position of the parent path or None, nodes) of one rooted piece, parents first."""
    order, above = [start], {start: -1}
    for node in order:
        for other in neighbours[node]:
            if other != above[node]:
                above[other] = node
                order.append(other)
    best: dict[int, float] = {}  # integral of the radius along the best way down
    length: dict[int, float] = {}  # length of the longest way down
    onward: dict[int, int] = {}
    for node in reversed(order):
        best[node], length[node], onward[node] = 0.0, 0.0, -1
        for child in neighbours[node]:
            if child == above[node]:
                continue
            step = float(np.linalg.norm(points[node] - points[child]))
            value = best[child] + step * (radius[node] + radius[child]) / 2
            length[node] = max(length[node], length[child] + step)
            if onward[node] < 0 or value > best[node]:
                best[node], onward[node] = value, child
    waiting: list[tuple[int | None, int | None, int]] = [(None, None, start)]
    made = 0
    while waiting:
        parent, joint, node = waiting.pop(0)
        path = [] if joint is None else [joint]
        while node >= 0:
            path.append(node)
            node = onward[node]
        yield parent, path
        for position in path[(0 if joint is None else 1):]:
            for child in neighbours[position]:
                if child == above[position] or child == onward[position]:
                    continue
                sticks_out = length[child] + float(np.linalg.norm(points[child] - points[position])) - radius[position]
                if min_branch_mm <= 0 or sticks_out >= min_branch_mm:
                    waiting.append((made, position, child))
        made += 1


def _name(names, path: list[int]) -> str:
    if names is None:
        return ""
    found = [names[node] for node in path[1:] or path if names[node]]
    return max(sorted(set(found)), key=found.count) if found else ""
