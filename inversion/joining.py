# SPDX-License-Identifier: Apache-2.0
"""Pieces of a tree joined where no view speaks against it.

A straight bridge is a guess. One that every view shows as vessel all the way is right in most cases; one that crosses
empty background in a view that sees the place hardly ever is (docs/matching.md). Such pieces stay apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.inversion.sights import LEAST_CHANCE, Sight, least_chance
from licag3d.structures import VesselTree
from licag3d.vessels.graph import trace_tree
from licag3d.vessels.tree import arc_length_mm, flatten_tree, tree_edges

#: Spacing of the points of a bridge, mm. Its confidence is 0: nobody saw it.
STEP_MM = 0.5
#: Places at least this sure are those on which two views agree.
SURE = 0.9


@dataclass(frozen=True)
class Join:
    """A bridge between two pieces: gap in mm between ``from_lps_mm`` and ``to_lps_mm``, and the length of the smaller
    of both pieces."""

    gap_mm: float
    from_lps_mm: tuple[float, float, float]
    to_lps_mm: tuple[float, float, float]
    joined_length_mm: float


@dataclass(frozen=True)
class JoinSettings:
    """Lengths in mm.

    Args:
        longest_mm: of a bridge. shown: share of it, beyond both lumens, that every view which sees it must show.
    """

    longest_mm: float = 25.0
    shown: float = 0.9


def borne_out(
    start: np.ndarray, end: np.ndarray, radii_mm: tuple[float, float], sights: Sequence[Sight], shown: float
) -> bool:
    """Whether every view shows a straight bridge as vessel (True where no view is asked).

    Args:
        radii_mm: of the vessels at both ends, whose own shadows say nothing.
    """
    gap = float(np.linalg.norm(end - start))
    at = np.linspace(0.0, gap, max(5, int(4 * gap)))
    between = (at >= min(radii_mm[0], 0.3 * gap)) & (at <= gap - min(radii_mm[1], 0.3 * gap))
    points = start + (end - start) * (at[between] / max(gap, 1e-9))[:, None]
    return bool((least_chance(points, sights) > LEAST_CHANCE).mean() >= shown)


def join_pieces(
    tree: VesselTree,
    sights: Sequence[Sight],
    settings: JoinSettings | None = None,
    *,
    longest_mm: float | None = None,
    min_branch_mm: float = 0.0,
) -> tuple[VesselTree, tuple[Join, ...]]:
    """Bridge the pieces of a tree where the views bear it out, nearest first; branches are traced anew.

    Args:
        sights: of all views; without any, every bridge is laid.
        longest_mm: of a bridge, instead of that of the settings. min_branch_mm: shorter side branches are dropped.

    Returns:
        The tree, in one piece or in several, and the bridges.
    """
    settings = settings or JoinSettings()
    longest = longest_mm or (settings.longest_mm if sights else np.inf)
    flat = flatten_tree(tree)
    points, radius = flat.points_lps_mm, flat.radius_mm
    if not len(points):
        return tree, ()
    edges = tree_edges(tree)
    label = _labels(len(points), edges)
    step = np.linalg.norm(points[flat.segments[:, 0]] - points[flat.segments[:, 1]], axis=1)
    length = np.bincount(label[flat.segments[:, 0]], step, minlength=int(label.max()) + 1)
    joins, bridges = [], []
    for gap, a, b in _candidates(points, edges, label, longest):
        if label[a] == label[b]:
            continue
        if not borne_out(points[a], points[b], (radius[a], radius[b]), sights, settings.shown):
            continue
        small, large = (a, b) if length[label[a]] <= length[label[b]] else (b, a)
        joins.append(Join(gap, _triple(points[small]), _triple(points[large]), float(length[label[small]])))
        bridges.append((a, b))
        length[label[large]] += length[label[small]] + gap
        label[label == label[small]] = label[large]
    return _traced(tree, flat, edges, bridges, min_branch_mm), tuple(joins)


def _candidates(points, edges, label, longest: float) -> list[tuple[float, int, int]]:
    """Places where pieces could be joined, nearest first: the shortest gap of any two, and from every end."""
    from scipy.spatial import cKDTree

    degree = np.bincount(edges.ravel(), minlength=len(points))
    found = set()
    pieces = [np.flatnonzero(label == piece) for piece in np.unique(label)]
    trees = [cKDTree(points[rows]) for rows in pieces]
    for i, mine in enumerate(pieces):
        ends = mine[degree[mine] <= 1]
        for j, other in enumerate(pieces):
            if i == j:
                continue
            gap, nearest = trees[j].query(points[mine])
            best = int(gap.argmin())
            found.add((float(gap[best]), *sorted((int(mine[best]), int(other[nearest[best]])))))
            gap, nearest = trees[j].query(points[ends])
            found |= {(float(g), *sorted((int(a), int(other[k])))) for g, a, k in zip(gap, ends, nearest, strict=True)}
    return sorted(candidate for candidate in found if candidate[0] <= longest)


def _traced(tree: VesselTree, flat, edges, bridges, min_branch_mm: float) -> VesselTree:
    """Branches found anew. Bridges get points of their own: their confidence is 0, not that of their ends."""
    points, radius = [flat.points_lps_mm], [flat.radius_mm]
    known = any(branch.confidence is not None for branch in tree.branches)
    sure = [np.nan_to_num(flat.confidence, nan=0.0)]
    names = [np.array([tree.branches[k].name for k in flat.branch], object)]
    links, count = [edges], len(flat.points_lps_mm)
    for a, b in bridges:
        start, end = flat.points_lps_mm[a], flat.points_lps_mm[b]
        share = np.linspace(0, 1, max(2, round(np.linalg.norm(end - start) / STEP_MM)) + 1)[1:-1, None]
        points.append(start + share * (end - start))
        radius.append((flat.radius_mm[a] + share * (flat.radius_mm[b] - flat.radius_mm[a]))[:, 0])
        sure.append(np.zeros(len(share)))
        names.append(np.full(len(share), "", object))
        way = np.array([a, *range(count, count + len(share)), b])
        links.append(np.stack([way[:-1], way[1:]], 1))
        count += len(share)
    places = np.concatenate(points)
    # The joint of a child and its parent is one point.
    _, kept, new = np.unique(np.round(places / 1e-6).astype(np.int64), axis=0, return_index=True, return_inverse=True)
    new = np.asarray(new).ravel()
    width = np.zeros(len(kept))
    np.maximum.at(width, new, np.concatenate(radius))
    joined = new[np.concatenate(links)]
    return trace_tree(
        places[kept],
        width,
        joined[joined[:, 0] != joined[:, 1]],
        min_branch_mm=min_branch_mm,
        names=list(np.concatenate(names)[kept]),
        confidence=np.concatenate(sure)[kept] if known else None,
    )


def piece_lengths(tree: VesselTree) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per branch the number of its piece, and per piece its length and how much of it is surely seen, mm."""
    piece, root = [], {}
    for branch in tree.branches:  # a branch follows its parent
        root[branch.id] = len(set(root.values())) if branch.parent is None else root[branch.parent]
        piece.append(root[branch.id])
    owner = np.array(piece, int)
    length, sure = np.zeros(owner.max(initial=-1) + 1), np.zeros(owner.max(initial=-1) + 1)
    for branch, k in zip(tree.branches, owner, strict=True):
        step = np.diff(arc_length_mm(branch.points_lps_mm))
        length[k] += step.sum()
        if branch.confidence is not None:
            sure[k] += (step * (branch.confidence[1:] >= SURE)).sum()
    return owner, length, sure


def _labels(count: int, edges: np.ndarray) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _triple(point) -> tuple[float, float, float]:
    return float(point[0]), float(point[1]), float(point[2])
