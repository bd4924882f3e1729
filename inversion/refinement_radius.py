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
#: Readings within this share their errors, mm; the fit is never surer than this, nor less sure than that (log radius).
SHARED_MM, LEAST_SIGMA, MOST_SIGMA = 1.0, 0.03, 0.6
#: Share of the depth of a dip within that length which is left open.
DIP_SHARE = 1.0
#: How much a kind of reading counts that the fit overruled though it sees a narrower lumen; what is narrower than this
#: radius (mm) is not told from noise; and the deviation with that is not above (log radius).
OVERRULED, LEAST_TOLD_MM, WIDEST_SIGMA = 2.0, 0.25, 1.0


def trend_sigma(arc_mm: np.ndarray, readings: np.ndarray, sigma: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Standard deviation ``(n,)`` of a fit of :func:`robust_trend`, log radius.

    Readings of one kind within :data:`SHARED_MM` share their errors (blur, texture, a neighbour), so along the vessel
    they count once; kinds and views count each. Where they scatter more than they say, so does the fit. Where one kind
    sees a narrower lumen, by more than its own deviation, the fit may follow readings that another vessel made wide:
    :data:`OVERRULED` times that gap is added, for hidden stenoses look just so (chosen on phantoms).

    Args:
        arc_mm: ``(n,)``. readings, sigma: ``(n, m)``, log mm, one column per kind and view. fit: ``(n,)``.

    Example:
        >>> arc = np.arange(20.0)
        >>> two = trend_sigma(arc, np.zeros((20, 2)), np.full((20, 2), 0.1), np.zeros(20))
        >>> bool(np.allclose(two, np.hypot(0.1 / np.sqrt(2), LEAST_SIGMA)))
        True
    """
    known = np.isfinite(sigma)
    miss = np.where(known, (readings - fit[:, None]) / np.where(known, sigma, 1.0), 0.0)
    weight = np.where(known, 1.0 / np.maximum(np.where(known, sigma, 1.0), 1e-9) ** 2, 0.0) / (1.0 + (miss / 2.0) ** 2)
    kernel = np.exp(-0.5 * ((arc_mm[:, None] - arc_mm[None]) / SHARED_MM) ** 2)
    kernel /= kernel.sum(1, keepdims=True)
    total = kernel @ weight.sum(1)
    excess = (kernel @ (weight * miss**2).sum(1)) / np.maximum(total, 1e-12)
    spread = np.sqrt(np.maximum(excess, 1.0) / np.maximum(total, 1.0 / MOST_SIGMA**2))
    # A dip shorter than what is averaged along the vessel is deeper than it looks.
    dip = DIP_SHARE * np.abs(kernel @ fit - fit)
    usual = np.minimum(np.sqrt(spread**2 + dip**2 + LEAST_SIGMA**2), MOST_SIGMA)
    thinner = fit[:, None] - np.maximum(readings, np.log(LEAST_TOLD_MM)) - np.where(known, sigma, 0.0)
    overruled = (kernel @ np.where(known, np.maximum(thinner, 0.0), 0.0)).max(1)
    return np.minimum(np.hypot(usual, OVERRULED * overruled), WIDEST_SIGMA)


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
