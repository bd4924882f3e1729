# SPDX-License-Identifier: Apache-2.0
"""Where vessels divide, and how well a prediction knows it; definitions in docs/metrics.md."""

from __future__ import annotations

import numpy as np

from licag3d.metrics.branches import resampled
from licag3d.metrics.centerline import harmonic
from licag3d.structures import VesselTree

#: Joints nearer to each other than this are one bifurcation (a trifurcation counts once), mm.
MERGE_MM = 1.0
#: Tolerance of precision and recall, and the largest distance of a matched pair, mm.
TOLERANCE_MM, PAIR_MM = 2.0, 5.0


def bifurcations(tree: VesselTree) -> np.ndarray:
    """Points ``(n, 3)`` where at least three arms meet, LPS mm.

    A joint is the point of the parent nearest to the first point of a child. Joints within 1 mm are one. A branch that
    begins or ends there adds one arm, one that passes adds two: so a branch that only continues its parent is none.
    """
    lines = {branch.id: resampled(branch) for branch in tree.branches}
    joints, involved = [], []
    for branch in tree.branches:
        if branch.parent is None or branch.parent not in lines:
            continue
        points, _, arc = lines[branch.parent]
        start = lines[branch.id][0][0]
        at = int(np.argmin(((points - start) ** 2).sum(1)))
        joints.append(points[at])
        passes = min(arc[at], arc[-1] - arc[at]) > MERGE_MM
        involved.append(((branch.parent, 2 if passes else 1), (branch.id, 1)))
    if not joints:
        return np.zeros((0, 3))
    place = np.array(joints)
    group = _linked(place)
    result = []
    for number in range(group.max() + 1):
        members = np.flatnonzero(group == number)
        arms: dict[int, int] = {}
        for member in members:
            for branch_id, count in involved[member]:
                arms[branch_id] = max(arms.get(branch_id, 0), count)
        if sum(arms.values()) >= 3:
            result.append(place[members].mean(0))
    return np.array(result).reshape(-1, 3)


def _linked(points: np.ndarray) -> np.ndarray:
    """Group number ``(n,)`` of points, joined when at most 1 mm apart (in chains)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    pairs = cKDTree(points).query_pairs(MERGE_MM, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (len(points), len(points)))
    return connected_components(graph, False)[1]


def bifurcation_metrics(pred_mm: np.ndarray, truth_mm: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of bifurcations ``(n, 3)``, ``(m, 3)`` at 2 mm, and the mean distance of the pairs.

    Pairs are one to one: as many as possible within 2 mm, of these the least total distance. The error is the mean
    distance of one-to-one pairs of at most 5 mm (chosen in the same way).
    """
    nan = float("nan")
    if len(truth_mm) == 0:
        return {
            "bifurcation_f1_2mm": nan,
            "bifurcation_precision_2mm": nan,
            "bifurcation_recall_2mm": nan,
            "bifurcation_error_mm": nan,
        }
    hits = len(_pairs(pred_mm, truth_mm, TOLERANCE_MM))
    precision, recall = (hits / len(pred_mm) if len(pred_mm) else 0.0), hits / len(truth_mm)
    distances = _pairs(pred_mm, truth_mm, PAIR_MM)
    return {
        "bifurcation_f1_2mm": harmonic(precision, recall),
        "bifurcation_precision_2mm": precision,
        "bifurcation_recall_2mm": recall,
        "bifurcation_error_mm": float(np.mean(distances)) if len(distances) else nan,
    }


def _pairs(pred_mm: np.ndarray, truth_mm: np.ndarray, limit_mm: float) -> np.ndarray:
    """Distances ``(k,)`` of the most one-to-one pairs within the limit."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if len(pred_mm) == 0 or len(truth_mm) == 0:
        return np.zeros(0)
    distance = cdist(pred_mm, truth_mm)
    # One pair more is worth any distance.
    cost = np.where(distance <= limit_mm, distance, limit_mm * (2 + min(distance.shape)))
    rows, cols = linear_sum_assignment(cost)
    found = distance[rows, cols]
    return found[found <= limit_mm]
