# SPDX-License-Identifier: Apache-2.0
"""Frechet distance between two sets of feature vectors."""

from __future__ import annotations

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets (Dowson and Landau, J. Multivar. Anal. 1982).

    ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` with unbiased covariances in float64. The trace of the root
    is the sum of the singular values of ``S_a^(1/2) S_b^(1/2)``, which stays real when the sets are smaller than the
    dimension. The estimate is biased upwards by about a constant over n: compare only equal sizes, beside the
    distance of two halves of the real set.

    Args:
        a: ``(n, d)``, n at least 2.
        b: ``(m, d)``, m at least 2.

    Raises:
        ValueError: fewer than two vectors, other dimensions, or values that are not finite.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> a = rng.standard_normal((200, 3))
        >>> round(frechet_distance(a, a + (3.0, 0.0, 0.0)), 6)
        9.0
    """
    a, b = check_features(a, b)
    centred = [x - x.mean(0) for x in (a, b)]
    # S = X^T X / (n - 1): with X = U s V^T the root of S is V s V^T / sqrt(n - 1).
    roots = []
    for x in centred:
        _, s, vt = np.linalg.svd(x, full_matrices=False)
        roots.append((vt.T * (s / np.sqrt(len(x) - 1))) @ vt)
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    spread = sum(float((root**2).sum()) for root in roots)
    gap = a.mean(0) - b.mean(0)
    return float(max(gap @ gap + spread - 2 * cross, 0.0))


def check_features(*sets: np.ndarray) -> list[np.ndarray]:
    """The sets ``(n, d)`` as float64, all of one dimension d and finite, each with at least two vectors.

    Raises:
        ValueError: naming what is wrong.
    """
    sets = tuple(np.asarray(x, np.float64) for x in sets)
    for x in sets:
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != sets[0].shape[1]:
            raise ValueError(f"feature sets need shape (n >= 2, d) with one d; got {[y.shape for y in sets]}")
        if not np.isfinite(x).all():
            raise ValueError("features are not finite; the encoder or an image is broken")
    return list(sets)
