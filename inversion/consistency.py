# SPDX-License-Identifier: Apache-2.0
"""What a whole path must fulfil beyond meeting its epipolar lines: junctions shared, contrast explained by its slope."""

from __future__ import annotations

import numpy as np

from licag3d.inversion.candidates import Candidates
from licag3d.inversion.chains import Chains
from licag3d.inversion.hypotheses import Hypothesis


def partner_index(candidates: Candidates, rows: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """Nearest point of the other view for chosen candidates."""
    return candidates.edge[rows, choice] + (candidates.fraction[rows, choice] > 0.5)


def expected_stretch(chains: Chains, window_mm: float = 4.0) -> np.ndarray:
    """How much longer than its image a vessel must be to give its line integral, per point, 1..5; ``(N,)``.

    A ray meets a vessel of radius r under angle a over the length 2 r / sin(a), so that p = mu 2 r / sin(a), while the vessel
    appears shortened by sin(a): p / (2 r mu) is the ratio of its true length to its length in the image. The attenuation mu
    of the contrast agent is taken from the vessels themselves: over directions at random the median of 1 / sin(a) is 1.155.
    """
    if not len(chains.step_mm):
        return np.ones(0)
    ratio = chains.line_integral / (2.0 * chains.radius_mm)
    good = (ratio > 0) & (chains.radius_mm > np.quantile(chains.radius_mm, 0.3))
    if not good.any():
        return np.full(len(ratio), np.nan)
    mu = np.median(ratio[good]) / 1.155
    smooth = windowed_mean(ratio, chains, window_mm)
    return np.clip(smooth / mu, 1.0, 5.0)


def windowed_mean(values: np.ndarray, chains: Chains, window_mm: float) -> np.ndarray:
    """Mean of ``(N,)`` values over a window along each piece."""
    out = np.empty(len(values))
    for a, b in zip(chains.start[:-1], chains.start[1:], strict=True):
        out[a:b] = window_mean(values[a:b], np.cumsum(chains.step_mm[a:b]), window_mm)
    return out


def window_mean(values: np.ndarray, arc: np.ndarray, window_mm: float) -> np.ndarray:
    """Mean of ``(n,)`` values within half a window of arc length on either side."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.searchsorted(arc, arc - 0.5 * window_mm)
    high = np.searchsorted(arc, arc + 0.5 * window_mm, side="right")
    return (total[high] - total[low]) / np.maximum(high - low, 1)


def stretch_cost(path: Hypothesis, piece: int, chains: Chains, stretch: np.ndarray, window_mm: float = 4.0) -> float:
    """Mismatch of the slope of a path and the contrast along it: mm times |log ratio|, at most 1 per mm."""
    rows = slice(chains.start[piece], chains.start[piece + 1])
    step = chains.step_mm[rows]
    length = np.concatenate([[np.nan], np.linalg.norm(np.diff(path.points_mm, axis=0), axis=1)])
    # Joints of 3 mm or more are jumps, priced elsewhere.
    usable = np.isfinite(length) & (length < np.maximum(3.0, 6 * step))
    if usable.sum() < 4:
        return 0.0
    arc = np.cumsum(step)[usable]
    ratio = window_mean(length[usable], arc, window_mm) / np.maximum(window_mean(step[usable], arc, window_mm), 1e-6)
    mismatch = np.abs(np.log(np.clip(ratio, 1.0, 5.0) / stretch[rows][usable]))
    return float((np.nan_to_num(np.minimum(mismatch, 1.0)) * chains.weight_mm[rows][usable]).sum())


def end_cost(path: Hypothesis, piece: int, chains: Chains, other: Chains, candidates: Candidates, cap_mm: float) -> float:
    """How far the ends of a path lie from where the other view's graph ends or branches: mm, at most ``cap_mm`` each.

    A vessel that ends, or branches, in space does so in both images, unless something overlaps it there.
    """
    rows = np.arange(chains.start[piece], chains.start[piece + 1])
    matched = np.flatnonzero(path.choice >= 0)
    if not len(matched):
        return 0.0
    total = 0.0
    arc = np.cumsum(chains.step_mm[rows])
    for end, i in ((0, matched[0]), (1, matched[-1])):
        node = chains.node[piece, end]
        if chains.crossing[node]:
            continue
        unmatched = arc[i] if end == 0 else arc[-1] - arc[i]
        if unmatched > cap_mm:
            continue  # the path stops before this end: priced as unmatched already
        at = int(partner_index(candidates, rows[i:i + 1], path.choice[i:i + 1])[0])
        total += min(_distance_to_node(other, at, chains.degree[node]), cap_mm)
    return total


def _distance_to_node(chains: Chains, at: int, degree: int) -> float:
    """Arc length from a point to the nearest end of its piece whose node is of the same sort (vessel end, or junction), mm."""
    piece = int(np.searchsorted(chains.start, at, side="right")) - 1
    arc = np.cumsum(chains.step_mm[chains.start[piece]:chains.start[piece + 1]])
    here = arc[at - chains.start[piece]]
    best = np.inf
    for end, distance in ((0, here), (1, arc[-1] - here)):
        same = (chains.degree[chains.node[piece, end]] >= 3) == (degree >= 3)
        if same:
            best = min(best, float(distance))
    radius = float(chains.radius_mm[at])
    return max(0.0, best - 1.0 - radius)
