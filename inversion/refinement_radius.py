# SPDX-License-Identifier: Apache-2.0
"""Radius along a vessel from scattered readings: a robust fit whose slope changes seldom.

Minimised per branch over u = log r, with readings y of standard deviation s and h the spacing:

    sum over readings of rho((y - u) / s)  +  bend * sum |slope of u after a point - slope before it|

The penalty is l1 trend filtering (Kim, Koh, Boyd, Gorinevsky, SIAM Review 51 (2009) 339): straight tapers cost nothing,
and a stenosis costs a few kinks instead of being flattened, as it would be by squares or by total variation of the
radius itself. rho is Cauchy's. Both are solved by iterated reweighting, each time one banded system.
"""

from __future__ import annotations

import numpy as np

#: Change of slope (1/mm) from which a kink costs less than in proportion: the ends of a short tight stenosis.
SHARP = 0.15


def robust_trend(
    arc_mm: np.ndarray,
    readings: np.ndarray,
    sigma: np.ndarray,
    start: np.ndarray,
    *,
    bend: float,
    start_sigma: float,
    rounds: int = 12,
) -> np.ndarray:
    """Fit ``u`` ``(n,)`` to readings ``(n, m)``.

    Args:
        arc_mm: ``(n,)`` increasing.
        sigma: ``(n, m)`` standard deviation, infinite where there is no reading.
        start: ``(n,)`` value before, which counts with ``start_sigma`` (weakly: it fills gaps).
        bend: price of a change of slope, mm.

    Example:
        >>> arc = np.arange(40.0)
        >>> true = np.where(arc < 20, -0.01 * arc, -0.2)
        >>> noisy = true + 0.05 * np.cos(3.0 * arc)
        >>> noisy[11] = 2.0
        >>> fit = robust_trend(arc, noisy[:, None], np.full((40, 1), 0.05), 0 * arc, bend=20.0, start_sigma=5.0)
        >>> bool(np.abs(fit - true).max() < 0.04)
        True
    """
    from scipy.linalg import solveh_banded

    count = len(arc_mm)
    precision = np.where(np.isfinite(sigma), 1.0 / np.maximum(sigma, 1e-9) ** 2, 0.0)
    if not precision.any():
        return start.copy()
    weak = 1.0 / start_sigma**2
    gap = np.maximum(np.diff(arc_mm), 1e-6)
    # One reading speaks for its share of arc, so that the result does not depend on the spacing of the points.
    share = np.zeros(count)
    share[:-1] += 0.5 * gap
    share[1:] += 0.5 * gap
    share = np.maximum(share, 1e-3) if count > 1 else np.ones(1)
    precision = precision * share[:, None]
    u = start.copy()
    total = precision.sum(1)
    known = total > 0
    u[known] = (precision * np.where(precision > 0, readings, 0.0)).sum(1)[known] / total[known]
    u = np.interp(arc_mm, arc_mm[known], u[known]) if known.any() else u
    for number in range(rounds):
        miss = np.where(precision > 0, readings - u[:, None], 0.0)
        # The first rounds are nearly plain least squares, so that the start decides nothing.
        scale = 2.0 * max(1.0, 4.0 - number)
        weight = precision / (1.0 + (miss / (scale * np.where(precision > 0, sigma, 1.0))) ** 2)
        diagonal = weight.sum(1) + weak * share
        right = (weight * np.where(precision > 0, readings, 0.0)).sum(1) + weak * share * start
        bands = np.zeros((3, count))
        bands[0] = diagonal
        if count > 2:
            a, c = 1.0 / gap[:-1], 1.0 / gap[1:]
            stencil = np.stack([a, -(a + c), c], 1)
            kink = np.abs(stencil[:, 0] * u[:-2] + stencil[:, 1] * u[1:-1] + stencil[:, 2] * u[2:])
            price = bend / (kink + 2e-3) * SHARP / (SHARP + kink)
            for i in range(3):
                for j in range(i, 3):
                    bands[j - i, i : i + count - 2] += price * stencil[:, i] * stencil[:, j]
        u = solveh_banded(bands, right, lower=True)
    return u
