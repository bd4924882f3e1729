# SPDX-License-Identifier: Apache-2.0
"""Candidate matches of a centreline point: where its epipolar line meets the other view's centrelines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.inversion.chains import Chains
from licag3d.inversion.epipolar import EpipolarPair, triangulate
from licag3d.ops.match import PathPrices


@dataclass(frozen=True)
class Candidates:
    """Up to K candidates for each of N points; unused places have ``cost = inf``.

    ``edge`` ``(N, K)``: the candidate lies between points ``edge`` and ``edge + 1`` of the other view, at
    ``fraction`` ``(N, K)``; ``points_mm`` ``(N, K, 3)``; ``cost`` ``(N, K)`` of the epipolar and calibre mismatch.
    """

    edge: np.ndarray
    fraction: np.ndarray
    points_mm: np.ndarray
    cost: np.ndarray


def find_candidates(pair: EpipolarPair, swapped: bool, chains_a: Chains, angles_a, chains_b: Chains, angles_b,
                    prices: PathPrices, *, reach_mm: float, limit: int = 32) -> Candidates:
    """Candidates in view b for every centreline point of view a.

    Args:
        pair: baseline frame; ``swapped`` says that view a of this call is its second view.
        angles_a, angles_b: ``(theta, phi)`` of :func:`licag3d.inversion.epipolar.epipolar_angles`.
        prices: tolerance and calibre are used here.
        reach_mm: distance from the baseline to the scene, to turn angles into mm.
        limit: K.
    """
    theta_a, phi_a = angles_a
    theta_b, phi_b = angles_b
    if not len(theta_a) or not len(theta_b):
        shape = (len(theta_a), 1)
        return Candidates(np.zeros(shape, np.int64), np.zeros(shape), np.zeros((*shape, 3)), np.full(shape, np.inf))
    piece = chains_b.piece_of
    edges = np.flatnonzero(piece[1:] == piece[:-1])
    low, high = theta_b[edges], theta_b[edges + 1]
    slope = (high - low) * reach_mm
    flat = np.abs(slope) < prices.flat * np.maximum(chains_b.step_mm[edges + 1], 1e-6)
    ends = np.zeros(len(piece) + 1, bool)
    ends[chains_b.start[:-1]] = True
    last = np.zeros(len(piece) + 1, bool)
    last[chains_b.start[1:] - 1] = True
    terminal = ends[edges] | last[edges + 1]

    offset = theta_a[:, None] - low[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(np.abs(high - low) < 1e-9, 0.5, offset / (high - low))
    inside = (fraction >= 0) & (fraction < 1)
    clipped = np.clip(fraction, 0, 1)
    miss_mm = np.abs(offset - clipped * (high - low)) * reach_mm
    allowed = inside | ((miss_mm < prices.tolerance_mm) & (flat | terminal)[None, :])
    rows, columns = np.nonzero(allowed)
    miss = miss_mm[rows, columns]
    radius_b = chains_b.radius_mm[edges[columns]]
    calibre = np.abs(np.log(np.maximum(chains_a.radius_mm[rows], 0.1) / np.maximum(radius_b, 0.1)))
    cost = prices.calibre * np.minimum(calibre, prices.calibre_cap) + (miss / prices.tolerance_mm) ** 2 * 0.5
    order = np.lexsort((cost, rows))
    rows, columns, cost = rows[order], columns[order], cost[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
    keep = rank < limit
    rows, columns, cost, rank = rows[keep], columns[keep], cost[keep], rank[keep]
    count = len(theta_a)
    width = int(rank.max()) + 1 if len(rank) else 1
    edge = np.zeros((count, width), np.int64)
    where = np.zeros((count, width))
    costs = np.full((count, width), np.inf)
    edge[rows, rank] = edges[columns]
    where[rows, rank] = clipped[rows, columns]
    costs[rows, rank] = cost
    phi_match = phi_b[edge] * (1 - where) + phi_b[np.minimum(edge + 1, len(phi_b) - 1)] * where
    theta = np.broadcast_to(theta_a[:, None], phi_match.shape)
    if swapped:
        points = triangulate(pair, theta, phi_match, phi_a[:, None])
    else:
        points = triangulate(pair, theta, phi_a[:, None], phi_match)
    return Candidates(edge, where, points, costs)
