# SPDX-License-Identifier: Apache-2.0
"""Hypotheses: the few good ways in which one centreline piece can run through the candidates of the other view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.inversion.candidates import Candidates
from licag3d.inversion.chains import THROUGH_DEG, Chains
from licag3d.ops.match import PathPrices


@dataclass(frozen=True)
class Hypothesis:
    """One path of a piece: ``choice`` ``(n,)`` candidate of each point or -1; ``points_mm`` ``(n, 3)``, NaN where unmatched;
    ``cost`` of the path (without any coupling to other pieces)."""

    choice: np.ndarray
    points_mm: np.ndarray
    cost: float


def turn_costs(chains: Chains, price: float) -> np.ndarray:
    """``(P, P)`` price of a path of the other view that goes on from one piece into another."""
    if not chains.pieces:
        return np.zeros((0, 0))
    turn = np.where(np.isnan(chains.turn_deg), 180.0, chains.turn_deg).min(axis=(2, 3))
    cost = np.where(turn < THROUGH_DEG, 0.0, price)
    np.fill_diagonal(cost, 0.0)
    return cost


def diverse_paths(candidates: Candidates, chains: Chains, other: Chains, price: PathPrices, *, limit: int = 10,
                  every_mm: float = 4.0, apart_mm: float = 1.0, excess: float = 12.0) -> list[list[Hypothesis]]:
    """Several different cheap paths per piece: the cheapest one through each candidate of a few seed points.

    Args:
        limit: paths per piece. ``every_mm``: distance of the seed points. ``apart_mm``: paths nearer than this to a
            cheaper one over their whole length are left out. ``excess``: dearer paths than the best plus this are too.

    Returns:
        For each piece its hypotheses, cheapest first, the last one being "no match at all".
    """
    turns = turn_costs(other, price.turn)
    return [_diverse(candidates, chains, other, turns, price, p, limit, every_mm, apart_mm, excess)
            for p in range(chains.pieces)]


def _tables(candidates, chains, other, turns, price, p):
    """Unary costs ``(n, K + 1)`` and pairwise costs ``(n - 1, K + 1, K + 1)`` of piece p; the last state is "none"."""
    rows = slice(chains.start[p], chains.start[p + 1])
    weight = chains.weight_mm[rows, None]
    used = int(np.isfinite(candidates.cost[rows]).sum(1).max(initial=0))
    points = candidates.points_mm[rows, :used]
    unary = np.concatenate([candidates.cost[rows, :used] * weight, price.none * weight], axis=1)
    step = chains.step_mm[rows][1:, None, None]
    distance = np.linalg.norm(points[1:, None, :, :] - points[:-1, :, None, :], axis=-1)
    jump = price.jump * np.clip(distance - price.slack * step, 0.0, price.jump_cap_mm)
    piece = other.piece_of[candidates.edge[rows, :used]] if used else np.zeros((len(points), 0), int)
    jump = jump + turns[piece[:-1, :, None], piece[1:, None, :]] if used else jump
    pair = np.full((len(points) - 1, used + 1, used + 1), price.gap)
    pair[:, :used, :used] = jump
    pair[:, used, used] = 0.0
    return unary, pair


def _forward(unary, pair):
    """Cheapest cost of reaching every state, and where it came from."""
    cost = np.empty_like(unary)
    back = np.zeros(unary.shape, np.int64)
    cost[0] = unary[0]
    for i in range(1, len(unary)):
        arrive = cost[i - 1][:, None] + pair[i - 1]
        back[i] = arrive.argmin(axis=0)
        cost[i] = arrive.min(axis=0) + unary[i]
    return cost, back


def _diverse(candidates, chains, other, turns, price, p, limit, every_mm, apart_mm, excess) -> list[Hypothesis]:
    rows = slice(chains.start[p], chains.start[p + 1])
    count = chains.start[p + 1] - chains.start[p]
    unary, pair = _tables(candidates, chains, other, turns, price, p)
    used = unary.shape[1] - 1
    forward, back = _forward(unary, pair)
    reverse, ahead = _forward(unary[::-1], pair[::-1].transpose(0, 2, 1))
    reverse, ahead = reverse[::-1], ahead[::-1]
    through = np.where(np.isfinite(unary), forward + reverse - np.where(np.isfinite(unary), unary, 0.0), np.inf)
    best = through[0].min()
    arc = np.cumsum(chains.step_mm[rows])
    seeds = np.unique(np.searchsorted(arc, np.arange(0.5 * every_mm, arc[-1] + every_mm, every_mm)).clip(0, count - 1))
    order = sorted((float(through[i, k]), int(i), int(k)) for i in seeds for k in range(used)
                   if through[i, k] < best + excess)
    chosen: list[Hypothesis] = []
    for cost, i, k in order:
        if len(chosen) == limit:
            break
        states = np.empty(count, np.int64)
        states[i] = k
        for j in range(i, 0, -1):
            states[j - 1] = back[j][states[j]]
        for j in range(i, count - 1):
            states[j + 1] = ahead[j][states[j]]
        points = np.full((count, 3), np.nan)
        matched = states < used
        points[matched] = candidates.points_mm[rows][matched, states[matched]]
        if any(_same_path(points, other_path.points_mm, apart_mm) for other_path in chosen):
            continue
        chosen.append(Hypothesis(np.where(matched, states, -1), points, cost))
    nothing = Hypothesis(np.full(count, -1), np.full((count, 3), np.nan), float(unary[:, -1].sum()))
    return [*chosen, nothing]


def _same_path(a: np.ndarray, b: np.ndarray, apart_mm: float) -> bool:
    matched_a, matched_b = np.isfinite(a[:, 0]), np.isfinite(b[:, 0])
    differ = matched_a != matched_b
    both = matched_a & matched_b
    differ[both] = np.linalg.norm(a[both] - b[both], axis=1) > apart_mm
    return differ.sum() <= max(2, 0.05 * len(a))
