# SPDX-License-Identifier: Apache-2.0
"""Utilities on vessel trees: lengths, validation, resampling, joining, transforming, flattening."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from licag3d.structures import Branch, VesselTree
from licag3d.vessels.graph import trace_tree


@dataclass(frozen=True)
class FlatTree:
    """A tree as arrays, for ``licag3d.ops.project_tubes`` and for nearest-point queries.

    ``points_lps_mm`` ``(N, 3)``, ``radius_mm`` ``(N,)``, ``segments`` ``(S, 2)`` int64 point pairs within branches,
    ``branch`` ``(N,)`` position of the branch in the tree, ``confidence`` and ``error_mm`` ``(N,)`` (NaN where
    unknown).
    """

    points_lps_mm: np.ndarray
    radius_mm: np.ndarray
    segments: np.ndarray
    branch: np.ndarray
    confidence: np.ndarray
    error_mm: np.ndarray


def branch_length_mm(branch: Branch) -> float:
    """Arc length of one branch."""
    return float(np.linalg.norm(np.diff(branch.points_lps_mm, axis=0), axis=1).sum())


def arc_length_mm(points_lps_mm) -> np.ndarray:
    """Arc length ``(N,)`` from the first point of a polyline ``(N, 3)``."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points_lps_mm, axis=0), axis=1))])


def validate_tree(tree: VesselTree, *, tolerance_mm: float = 1.0) -> list[str]:
    """What is wrong with a tree, one sentence each; empty when it is sound.

    Checked: ids unique, parents before children, shapes, finite points, positive radii, confidence in 0..1, and the
    first point of a branch within ``tolerance_mm`` of its parent's centreline.
    """
    faults: list[str] = []
    seen: dict[int, Branch] = {}
    for branch in tree.branches:
        here = f"branch {branch.id}"
        points, radius = np.asarray(branch.points_lps_mm), np.asarray(branch.radius_mm)
        if branch.id in seen:
            faults.append(f"{here}: the id is used twice")
        if points.ndim != 2 or points.shape[1:] != (3,) or len(points) < 1 or radius.shape != (len(points),):
            faults.append(f"{here}: points {points.shape} and radii {radius.shape} do not fit together")
            continue
        if not (np.isfinite(points).all() and np.isfinite(radius).all()):
            faults.append(f"{here}: a coordinate or a radius is not finite")
            continue
        if (radius <= 0).any():
            faults.append(f"{here}: a radius is {radius.min():g} mm; it must be positive")
        if branch.confidence is not None:
            confidence = np.asarray(branch.confidence)
            if confidence.shape != radius.shape or not ((confidence >= 0) & (confidence <= 1)).all():
                faults.append(f"{here}: the confidence must be one number in 0..1 per point")
        if branch.error_mm is not None:
            error = np.asarray(branch.error_mm)
            if error.shape != radius.shape or not (error >= 0).all():
                faults.append(f"{here}: the error must be one number per point, not negative")
        if branch.radius_sigma_mm is not None:
            spread = np.asarray(branch.radius_sigma_mm)
            if spread.shape != radius.shape or not (spread >= 0).all():
                faults.append(f"{here}: the deviation of the radius must be one number per point, not negative")
        if branch.parent is not None and branch.parent not in seen:
            faults.append(f"{here}: its parent {branch.parent} does not come before it")
        elif branch.parent is not None:
            gap = point_to_polyline_mm(points[0], seen[branch.parent].points_lps_mm)
            if gap > tolerance_mm:
                faults.append(f"{here}: its first point lies {gap:.2f} mm off its parent {branch.parent}")
        seen[branch.id] = branch
    return faults


def point_to_polyline_mm(point, polyline) -> float:
    """Distance of a point ``(3,)`` to a polyline ``(N, 3)``, mm."""
    point, polyline = np.asarray(point, np.float64), np.asarray(polyline, np.float64)
    if len(polyline) == 1:
        return float(np.linalg.norm(point - polyline[0]))
    start, step = polyline[:-1], np.diff(polyline, axis=0)
    along = np.clip(((point - start) * step).sum(1) / np.maximum((step * step).sum(1), 1e-18), 0, 1)
    return float(np.linalg.norm(start + along[:, None] * step - point, axis=1).min())


def resample_branch(branch: Branch, step_mm: float) -> Branch:
    """Points at equal arc length of about ``step_mm``; both ends stay, and so does the shape up to the step."""
    if len(branch.points_lps_mm) < 2:
        return branch
    if not step_mm > 0:
        raise ValueError(f"step_mm is {step_mm}; expected a positive number")
    arc = arc_length_mm(branch.points_lps_mm)
    if arc[-1] == 0:
        return branch
    at = np.linspace(0, arc[-1], max(2, round(arc[-1] / step_mm) + 1))
    points = np.stack([np.interp(at, arc, np.asarray(branch.points_lps_mm)[:, k]) for k in range(3)], -1)
    confidence = None if branch.confidence is None else np.interp(at, arc, branch.confidence)
    error = None if branch.error_mm is None else np.interp(at, arc, branch.error_mm)
    spread = None if branch.radius_sigma_mm is None else np.interp(at, arc, branch.radius_sigma_mm)
    return replace(branch, points_lps_mm=points, radius_mm=np.interp(at, arc, branch.radius_mm), confidence=confidence,
                   error_mm=error, radius_sigma_mm=spread)


def resample_tree(tree: VesselTree, step_mm: float) -> VesselTree:
    """Every branch at equal arc length of about ``step_mm``."""
    return VesselTree(tuple(resample_branch(branch, step_mm) for branch in tree.branches))


def transform_tree(tree: VesselTree, *, scale: float = 1.0, rotation=None,
                   translation_mm=(0.0, 0.0, 0.0)) -> VesselTree:
    """The tree under ``x -> scale * rotation @ x + translation``; radii and errors scale along."""
    if not scale > 0:
        raise ValueError(f"scale is {scale}; expected a positive number")
    matrix = np.eye(3) if rotation is None else np.asarray(rotation, np.float64)
    if matrix.shape != (3, 3) or not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-6):
        raise ValueError("rotation must be an orthogonal 3x3 matrix")
    move = np.asarray(translation_mm, np.float64)
    return VesselTree(tuple(replace(branch, points_lps_mm=scale * np.asarray(branch.points_lps_mm) @ matrix.T + move,
                                    radius_mm=scale * np.asarray(branch.radius_mm),
                                    error_mm=None if branch.error_mm is None else scale * np.asarray(branch.error_mm),
                                    radius_sigma_mm=None if branch.radius_sigma_mm is None
                                    else scale * np.asarray(branch.radius_sigma_mm))
                            for branch in tree.branches))


def flatten_tree(tree: VesselTree) -> FlatTree:
    """All points, radii and within-branch segments as arrays."""
    points, radius, segments, branch_of, confidence, error = [], [], [], [], [], []
    count = 0
    for position, branch in enumerate(tree.branches):
        n = len(branch.points_lps_mm)
        points.append(np.asarray(branch.points_lps_mm, np.float64).reshape(-1, 3))
        radius.append(np.asarray(branch.radius_mm, np.float64))
        index = np.arange(count, count + n)
        segments.append(np.stack([index[:-1], index[1:]], -1))
        branch_of.append(np.full(n, position))
        known = branch.confidence is not None
        confidence.append(np.asarray(branch.confidence, np.float64) if known else np.full(n, np.nan))
        error.append(np.full(n, np.nan) if branch.error_mm is None else np.asarray(branch.error_mm, np.float64))
        count += n
    if not points:
        return FlatTree(np.zeros((0, 3)), np.zeros(0), np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0),
                        np.zeros(0))
    return FlatTree(np.concatenate(points), np.concatenate(radius), np.concatenate(segments).astype(np.int64),
                    np.concatenate(branch_of).astype(np.int64), np.concatenate(confidence), np.concatenate(error))


def tree_edges(tree: VesselTree) -> np.ndarray:
    """Segments ``(E, 2)`` into the points of ``flatten_tree``, joints of children to their parents included."""
    flat = flatten_tree(tree)
    position = {branch.id: k for k, branch in enumerate(tree.branches)}
    edges = [flat.segments]
    for k, branch in enumerate(tree.branches):
        if branch.parent is not None:
            first = np.flatnonzero(flat.branch == k)[0]
            parent = np.flatnonzero(flat.branch == position[branch.parent])
            nearest = parent[np.argmin(((flat.points_lps_mm[parent] - flat.points_lps_mm[first]) ** 2).sum(1))]
            edges.append([[first, nearest]])
    return np.concatenate(edges)


def retrace_tree(tree: VesselTree, *, root_lps_mm=None, min_branch_mm: float = 0.0) -> VesselTree:
    """The same centrelines with branches found anew: from the end nearest to ``root_lps_mm`` (default the thickest),
    main vessels first, spurs shorter than ``min_branch_mm`` beyond their parent's lumen dropped."""
    flat = flatten_tree(tree)
    if len(flat.points_lps_mm) == 0:
        return tree
    points, radius, edges, confidence, kept = _merged(flat, tree_edges(tree))
    root = None
    if root_lps_mm is not None:
        degree = np.bincount(edges.ravel(), minlength=len(points))
        ends = np.flatnonzero(degree <= 1)
        ends = ends if len(ends) else np.arange(len(points))
        root = int(ends[np.argmin(((points[ends] - np.asarray(root_lps_mm)) ** 2).sum(1))])
    known = any(branch.confidence is not None for branch in tree.branches)
    names = [tree.branches[k].name for k in flat.branch[kept]]
    return trace_tree(points, radius, edges, root=root, min_branch_mm=min_branch_mm, names=names,
                      confidence=np.nan_to_num(confidence, nan=0.0) if known else None)


def prune_spurs(tree: VesselTree, min_branch_mm: float) -> VesselTree:
    """Without end branches that stick out of their parent's lumen by less than ``min_branch_mm``; ids are kept."""
    branches = list(tree.branches)
    while True:
        parents = {branch.parent for branch in branches}
        by_id = {branch.id: branch for branch in branches}

        def is_spur(branch: Branch, parents=parents, by_id=by_id) -> bool:
            if branch.id in parents or branch.parent is None:
                return False
            parent = by_id[branch.parent]
            nearest = np.argmin(((np.asarray(parent.points_lps_mm) - branch.points_lps_mm[0]) ** 2).sum(1))
            return branch_length_mm(branch) - float(parent.radius_mm[nearest]) < min_branch_mm

        kept = [branch for branch in branches if not is_spur(branch)]
        if len(kept) == len(branches):
            return VesselTree(tuple(branches))
        branches = kept


def component_count(tree: VesselTree) -> int:
    """Number of pieces that no parent link joins."""
    return sum(branch.parent is None for branch in tree.branches)


def _merged(flat: FlatTree, edges: np.ndarray):
    """Points that coincide (the joint of a child and its parent) become one."""
    key = np.round(flat.points_lps_mm / 1e-6).astype(np.int64)
    _, kept, new = np.unique(key, axis=0, return_index=True, return_inverse=True)
    new = np.asarray(new).ravel()
    radius = np.full(len(kept), 0.0)
    np.maximum.at(radius, new, flat.radius_mm)
    edges = new[edges]
    return (flat.points_lps_mm[kept], radius, edges[edges[:, 0] != edges[:, 1]], flat.confidence[kept], kept)
