# SPDX-License-Identifier: Apache-2.0
"""Centreline metrics on points of equal arc length; definitions in docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.structures import VesselTree

#: Arc length that one centreline point stands for, mm.
STEP_MM = 0.25
#: Tolerances of precision, recall and F1, mm.
TOLERANCES_MM = (1.0, 2.0)
#: Prediction and truth are compared in calibre where their centrelines are at most this far apart, mm.
RADIUS_MATCH_MM = 2.0


@dataclass(frozen=True)
class CenterlinePoints:
    """Points ``(n, 3)`` LPS mm, each standing for the same arc length, and the vessel radius ``(n,)`` there, mm."""

    points_lps_mm: np.ndarray
    radius_mm: np.ndarray


def tree_points(tree: VesselTree, step_mm: float = STEP_MM) -> CenterlinePoints:
    """Points at the middles of equal pieces of every branch, so that counting points measures length.

    Example:
        >>> import numpy as np
        >>> from licag3d.structures import Branch
        >>> line = Branch(0, None, np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([1.0, 2.0]))
        >>> tree_points(VesselTree((line,)), 0.5).points_lps_mm[:, 0].tolist()
        [0.25, 0.75]
    """
    points, radii = [np.zeros((0, 3))], [np.zeros(0)]
    for branch in tree.branches:
        line = np.asarray(branch.points_lps_mm, np.float64)
        if len(line) < 2:
            continue
        arc = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))))
        if arc[-1] <= 0:
            continue
        count = max(1, round(arc[-1] / step_mm))
        wanted = (np.arange(count) + 0.5) * arc[-1] / count
        points.append(np.stack([np.interp(wanted, arc, line[:, k]) for k in range(3)], axis=1))
        radii.append(np.interp(wanted, arc, branch.radius_mm))
    return CenterlinePoints(np.concatenate(points), np.concatenate(radii))


def nearest_distances(points: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance ``(n,)`` from every point to the nearest of the others, and its index (inf and 0 without others)."""
    from scipy.spatial import cKDTree

    if len(points) == 0 or len(others) == 0:
        return np.full(len(points), np.inf), np.zeros(len(points), np.int64)
    distance, index = cKDTree(others).query(points)
    return distance, index


def harmonic(precision: float, recall: float) -> float:
    """F1 of precision and recall; 0 when both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def centerline_metrics(pred: CenterlinePoints, truth: CenterlinePoints) -> dict[str, float]:
    """Precision, recall, F1 at 1 and 2 mm, Chamfer, HD95 and calibre error of a predicted centreline.

    Precision is the share of predicted length within the tolerance of the truth, recall the share of true length within
    the tolerance of the prediction. Distances of an empty prediction are NaN, its shares 0.
    """
    forward, index = nearest_distances(pred.points_lps_mm, truth.points_lps_mm)
    backward, _ = nearest_distances(truth.points_lps_mm, pred.points_lps_mm)
    result: dict[str, float] = {}
    for tolerance in TOLERANCES_MM:
        precision = float((forward <= tolerance).mean()) if len(forward) else 0.0
        recall = float((backward <= tolerance).mean()) if len(backward) else 0.0
        result[f"centerline_f1_{tolerance:g}mm"] = harmonic(precision, recall)
        result[f"centerline_precision_{tolerance:g}mm"] = precision
        result[f"centerline_recall_{tolerance:g}mm"] = recall
    empty = len(forward) == 0 or len(backward) == 0
    result["chamfer_mm"] = float("nan") if empty else 0.5 * float(forward.mean() + backward.mean())
    result["centerline_hd95_mm"] = (
        float("nan") if empty else float(np.percentile(np.concatenate((forward, backward)), 95))
    )
    near = forward <= RADIUS_MATCH_MM
    error = pred.radius_mm[near] - truth.radius_mm[index[near]] if near.any() else np.array([np.nan])
    result["radius_mae_mm"] = float(np.abs(error).mean())
    result["radius_bias_mm"] = float(error.mean())
    return result
