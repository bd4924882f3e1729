# SPDX-License-Identifier: Apache-2.0
"""Kernel distances between two sets of feature vectors: unbiased, so they may come out slightly negative."""

from __future__ import annotations

import numpy as np

from licag3d.metrics.feature_space.frechet import check_features


def kernel_inception_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared MMD with the kernel ``(x.y/d + 1)^3``, U-statistic over all pairs (Binkowski et al., ICLR 2018).

    The name of the statistic is kept, the features are not those of Inception: results are named after the encoder.

    Args:
        a: ``(n, d)``, n at least 2.
        b: ``(m, d)``, m at least 2.
    """
    a, b = check_features(a, b)
    d = a.shape[1]
    return _u_statistic(*((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))))


def mmd_rbf(
    a: np.ndarray, b: np.ndarray, *, permutations: int = 200, seed: int = 0, bandwidth: float | None = None
) -> tuple[float, float]:
    """Squared MMD with a Gaussian kernel and its permutation p-value (Gretton et al., JMLR 2012).

    Args:
        a: ``(n, d)``, n at least 2.
        b: ``(m, d)``, m at least 2.
        permutations: random re-labellings for the p-value; it is never below ``1 / (permutations + 1)``.
        bandwidth: of ``exp(-|x - y|^2 / (2 h^2))``; without it the median distance of the pooled set.

    Returns:
        The U-statistic and the p-value of "both sets come from one distribution".
    """
    a, b = check_features(a, b)
    both = np.concatenate((a, b))
    squared = squared_distances(both, both)
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(squared[np.triu_indices(len(both), 1)])))
    kernel = np.exp(-squared / (2 * max(bandwidth, 1e-12) ** 2))
    n = len(a)

    def statistic(order: np.ndarray) -> float:
        i, j = order[:n], order[n:]
        return _u_statistic(kernel[np.ix_(i, i)], kernel[np.ix_(j, j)], kernel[np.ix_(i, j)])

    value = statistic(np.arange(len(both)))
    rng = np.random.default_rng(seed)
    above = sum(statistic(rng.permutation(len(both))) >= value for _ in range(permutations))
    return value, (above + 1) / (permutations + 1)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances ``(n, m)``, never negative."""
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0.0)


def _u_statistic(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> float:
    n, m = len(aa), len(bb)
    within_a = (aa.sum() - np.trace(aa)) / (n * (n - 1))
    within_b = (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within_a + within_b - 2 * ab.mean())
