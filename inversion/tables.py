# SPDX-License-Identifier: Apache-2.0
"""Costs of all paths of one view's pieces through the candidates of the other view, as tables for the Viterbi
algorithm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.candidates import Candidates
from licag3d.inversion.chains import THROUGH_DEG, Chains
from licag3d.inversion.contrast import contrast_mismatch, image_planes
from licag3d.ops.match import PathPrices

#: Cost of a state that does not exist; large, but sums of it stay exact enough to compare.
FORBIDDEN = 1e6


@dataclass(frozen=True)
class PathTables:
    """Costs of the paths of one view; state K of every point is "no match".

    ``unary`` ``(N, K + 1)``; ``pair`` ``(N, K + 1, K + 1)`` from the state of the previous point of the piece to that
    of the point (unused at a piece's start); ``points_mm`` ``(N, K + 1, 3)``, NaN where there is no match; ``partner``
    ``(N, K + 1)`` nearest point of the other view, -1 without one.
    """

    unary: np.ndarray
    pair: np.ndarray
    points_mm: np.ndarray
    partner: np.ndarray


def turn_costs(chains: Chains, price: float) -> np.ndarray:
    """``(P, P)`` price of a path of the other view that goes on from one piece into another."""
    if not chains.pieces:
        return np.zeros((0, 0))
    turn = np.where(np.isnan(chains.turn_deg), 180.0, chains.turn_deg).min(axis=(2, 3))
    cost = np.where(turn < THROUGH_DEG, 0.0, price)
    np.fill_diagonal(cost, 0.0)
    return cost


def path_tables(
    candidates: Candidates,
    cameras: tuple[Camera, Camera],
    chains: tuple[Chains, Chains],
    price: PathPrices,
    *,
    slope_price: float,
    bore_price: float,
    end_price: float,
    end_cap_mm: float,
    along_share: float = 1.0,
    extra: np.ndarray | None = None,
    judged: tuple[np.ndarray, np.ndarray] | None = None,
    hand_share: float = 1.0,
) -> PathTables:
    """Tables of the paths of view 0 of the arguments through its view 1.

    Args:
        slope_price: per mm, for a factor e between the contrast seen and that expected for the slope of the vessel.
        bore_price: per mm, for diameters that differ altogether according to the contrast.
        end_price: per mm between an end (or junction) of one view and the next one of the other view.
        along_share: share of the price of a jump that remains where the other view's centreline bridges it.
        extra: ``(N, K)`` further cost per mm of every candidate.
        judged: what a network says, cost per mm of every candidate ``(N, K)`` and of none ``(N,)``; the latter comes
            instead of ``price.none``.
        hand_share: of the costs of calibre, miss, slope and bore.
    """
    own, other = chains
    count = len(own.step_mm)
    finite = np.isfinite(candidates.cost)
    used = candidates.cost.shape[1]
    per_mm = hand_share * np.where(finite, candidates.cost, 0.0)
    none = np.full(count, price.none)
    edge = np.where(finite, candidates.edge, 0)
    partner = np.where(finite, edge + (candidates.fraction > 0.5), -1)
    near = np.maximum(partner, 0)
    if len(other.step_mm):
        if hand_share > 0 and (slope_price > 0 or bore_price > 0):
            planes = image_planes(cameras[0], own), image_planes(cameras[1], other)
            slope, bore = contrast_mismatch(planes, near, chains)
            per_mm = per_mm + hand_share * (slope_price * slope + bore_price * bore)
        if judged is not None:
            per_mm = per_mm + np.where(finite, judged[0], 0.0)
            none = judged[1]
        if extra is not None:
            per_mm = per_mm + extra
    unary = np.full((count, used + 1), FORBIDDEN)
    unary[:, :used] = np.where(finite, per_mm * own.weight_mm[:, None], FORBIDDEN)
    unary[:, used] = none * own.weight_mm
    if end_price > 0 and len(other.step_mm):
        rows, cost = _end_costs(own, other, near, end_cap_mm)
        unary[rows, :used] += end_price * cost
    points = np.full((count, used + 1, 3), np.nan)
    points[:, :used] = np.where(finite[..., None], candidates.points_mm, np.nan)
    partner = np.concatenate([partner, np.full((count, 1), -1)], axis=1)
    return PathTables(unary, _pair_costs(own, other, points, edge, near, finite, price, along_share), points, partner)


def _pair_costs(own, other, points, edge, near, finite, price, along_share) -> np.ndarray:
    count, used = finite.shape
    pair = np.full((count, used + 1, used + 1), price.gap)
    pair[:, used, used] = 0.0
    if count < 2 or not used or not len(other.step_mm):
        return pair
    here = np.where(finite[..., None], points[:, :used], 0.0)
    step = own.step_mm[1:, None, None]
    distance = np.linalg.norm(here[1:, None] - here[:-1, :, None], axis=-1)
    jump = price.jump * np.clip(distance - price.slack * step, 0.0, price.jump_cap_mm)
    piece = other.piece_of[edge]
    if along_share < 1:
        arc = np.cumsum(other.step_mm)[near]
        moved = np.abs(arc[1:, None, :] - arc[:-1, :, None])
        bridged = (piece[:-1, :, None] == piece[1:, None, :]) & (distance < 3.0 * (moved + step))
        jump = np.where(bridged, along_share * jump, jump)
    pair[1:, :used, :used] = jump + turn_costs(other, price.turn)[piece[:-1, :, None], piece[1:, None, :]]
    return pair


def _end_costs(own: Chains, other: Chains, near: np.ndarray, cap_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """For the ends of all pieces: how far every candidate lies from an end, or junction, of the other view; mm.

    A vessel that ends, or branches, in space does so in both images, unless something overlaps it there.
    """
    to_end, to_junction = _node_distances(other)
    rows, cost = [], []
    for p in range(own.pieces):
        for end, row in ((0, own.start[p]), (1, own.start[p + 1] - 1)):
            node = own.node[p, end]
            if own.crossing[node]:
                continue
            rows.append(row)
            cost.append(np.minimum((to_junction if own.degree[node] >= 3 else to_end)[near[row]], cap_mm))
    return np.array(rows, int), np.array(cost).reshape(len(rows), near.shape[1])


def _node_distances(chains: Chains) -> tuple[np.ndarray, np.ndarray]:
    """Distance in the image of every point to the nearest vessel end, and to the nearest junction, less the radius;
    mm."""
    out = []
    for chosen in (chains.degree == 1, chains.degree >= 3):
        where = np.flatnonzero(chosen)
        if not len(where):
            out.append(np.full(len(chains.step_mm), np.inf))
            continue
        gap = (
            np.linalg.norm(chains.pixels[:, None] - chains.node_pixels[None, where], axis=-1).min(1)
            * chains.mm_per_pixel
        )
        out.append(np.maximum(gap - 1.0 - chains.radius_mm, 0.0))
    return out[0], out[1]
