# SPDX-License-Identifier: Apache-2.0
"""Precision, recall, density and coverage: does a set stay among the real ones, and does it reach all of them?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.metrics.feature_space.frechet import check_features
from licag3d.metrics.feature_space.kernels import squared_distances


@dataclass(frozen=True)
class Neighbours:
    """Shares 0..1 (``density`` may exceed 1)."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_scores(real: np.ndarray, other: np.ndarray, *, k: int = 5) -> Neighbours:
    """Precision and recall (Kynkaanniemi et al., NeurIPS 2019), density and coverage (Naeem et al., ICML 2020).

    Every vector has a ball up to its k-th nearest neighbour in its own set (itself not counted). Precision: share of
    ``other`` inside some real ball; recall: share of ``real`` inside some ball of ``other``; density: mean number of
    real balls around one of ``other``, over k; coverage: share of real balls that hold one of ``other``.

    Args:
        real: ``(n, d)``, n above k.
        other: ``(m, d)``, m above k.

    Raises:
        ValueError: k is not smaller than both sets.
    """
    real, other = check_features(real, other)
    if not 1 <= k < min(len(real), len(other)):
        raise ValueError(f"k is {k} for sets of {len(real)} and {len(other)}; both must be larger than k")
    distance = squared_distances(real, other)
    real_ball, other_ball = (_ball(x, k) for x in (real, other))
    in_real = distance <= real_ball[:, None]
    return Neighbours(
        precision=float(in_real.any(0).mean()),
        recall=float((distance <= other_ball[None]).any(1).mean()),
        density=float(in_real.sum(0).mean() / k),
        coverage=float(in_real.any(1).mean()),
    )


def _ball(x: np.ndarray, k: int) -> np.ndarray:
    squared = squared_distances(x, x)
    np.fill_diagonal(squared, 0.0)  # rounding leaves a little, which would order duplicates at random
    return np.partition(squared, k, axis=1)[:, k]
