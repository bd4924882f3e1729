# SPDX-License-Identifier: Apache-2.0
"""Vessel diameters of a prediction against the truth, point by point; definitions in docs/metrics.md."""

from __future__ import annotations

import numpy as np

from licag3d.metrics.centerline import tree_points
from licag3d.structures import VesselTree

#: Diameters are compared where the truth is at least this wide, mm: what quantitative angiography measures.
LEAST_DIAMETER_MM = 1.5
#: A predicted point is read where the true centreline is at most this far, mm.
MATCH_MM = 1.0


def diameter_errors_mm(pred: VesselTree, truth: VesselTree) -> np.ndarray:
    """Predicted less true diameter ``(n,)``, mm, per 0.25 mm of predicted centreline within 1 mm of a true one whose
    diameter is above 1.5 mm.

    The first stretch of a branch, inside the lumen of its parent, is left out on both sides: a vessel has no diameter
    of its own there.

    Example:
        >>> from licag3d.structures import Branch
        >>> line = np.linspace((0, 0, 0), (20, 0, 0), 81)
        >>> wide, true = (VesselTree((Branch(0, None, line, np.full(81, r)),)) for r in (1.1, 1.0))
        >>> round(float(diameter_errors_mm(wide, true).mean()), 3)
        0.2
    """
    from scipy.spatial import cKDTree

    mine, reference = _free_points(pred), _free_points(truth)
    if mine is None or reference is None:
        return np.zeros(0)
    away, nearest = cKDTree(reference[0]).query(mine[0])
    use = (away <= MATCH_MM) & mine[2] & reference[2][nearest]
    use &= 2 * reference[1][nearest] > LEAST_DIAMETER_MM
    return 2 * (mine[1] - reference[1][nearest])[use]


def diameter_metrics(pred: VesselTree, truth: VesselTree) -> dict[str, float]:
    """``diameter_bias_mm``, ``diameter_sd_mm`` and ``diameter_mae_mm`` of :func:`diameter_errors_mm`; NaN where nothing
    can be compared."""
    errors = diameter_errors_mm(pred, truth)
    if not len(errors):
        return dict.fromkeys(("diameter_bias_mm", "diameter_sd_mm", "diameter_mae_mm"), float("nan"))
    return {
        "diameter_bias_mm": float(errors.mean()),
        "diameter_sd_mm": float(errors.std()),
        "diameter_mae_mm": float(np.abs(errors).mean()),
    }


def _free_points(tree: VesselTree) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Points, radii, and whether a point lies outside the lumen of its branch's parent."""
    from scipy.spatial import cKDTree

    by_id = {branch.id: branch for branch in tree.branches}
    points, radius, free = [], [], []
    for branch in tree.branches:
        own = tree_points(VesselTree((branch,)))
        if not len(own.radius_mm):
            continue
        points.append(own.points_lps_mm)
        radius.append(own.radius_mm)
        outside = np.ones(len(own.radius_mm), bool)
        parent = by_id.get(branch.parent)
        if parent is not None:
            away, nearest = cKDTree(parent.points_lps_mm).query(own.points_lps_mm)
            outside = away > np.asarray(parent.radius_mm)[nearest]
        free.append(outside)
    if not points:
        return None
    return np.concatenate(points), np.concatenate(radius), np.concatenate(free)
