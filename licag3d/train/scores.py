# SPDX-License-Identifier: Apache-2.0
"""Scores of vessel masks in two dimensions."""

from __future__ import annotations

import numpy as np


def mask_scores(found: np.ndarray, truth: np.ndarray, *, lines: bool = True, tolerance_px: float = 2.0) -> dict:
    """Dice, clDice and skeleton precision and recall of one mask.

    Args:
        found, truth: ``(rows, cols)`` bool. lines: also the scores of the skeletons.
        tolerance_px: distance at which a skeleton pixel counts as found.

    Returns:
        ``dice``; with ``lines`` also ``cldice`` (Shit et al., CVPR 2021), ``skeleton_precision`` and
        ``skeleton_recall``. Two empty masks agree; NaN where a share has nothing to count.

    Example:
        >>> a = np.zeros((32, 32), bool); a[14:18] = True
        >>> mask_scores(a, a)["cldice"]
        1.0
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    both, total = int((found & truth).sum()), int(found.sum() + truth.sum())
    scores = {"dice": 2 * both / total if total else 1.0}
    if not lines:
        return scores
    if not total:
        return scores | {"cldice": 1.0, "skeleton_precision": np.nan, "skeleton_recall": np.nan}
    ours, theirs = skeletonize(found), skeletonize(truth)
    precision = float(truth[ours].mean()) if ours.any() else 0.0
    sensitivity = float(found[theirs].mean()) if theirs.any() else 0.0
    harmonic = 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0

    def near(points: np.ndarray, target: np.ndarray) -> float:
        if not points.any():
            return np.nan
        if not target.any():
            return 0.0
        return float((ndimage.distance_transform_edt(~target)[points] <= tolerance_px).mean())

    return scores | {
        "cldice": harmonic,
        "skeleton_precision": near(ours, theirs),
        "skeleton_recall": near(theirs, ours),
    }
