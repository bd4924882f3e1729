# SPDX-License-Identifier: Apache-2.0
"""Centreline matching of two views: every piece of either view chooses a path, and neighbours must agree.

A label of a piece is one of its diverse paths through the other view. Pieces that meet at a node should meet in space, and
where the path of a piece of one view runs along a piece of the other, that one's path should run along it in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.candidates import Candidates, find_candidates
from licag3d.inversion.chains import THROUGH_DEG, Chains
from licag3d.inversion.consistency import end_cost, expected_stretch, partner_index, stretch_cost
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.inversion.hypotheses import Hypothesis, diverse_paths
from licag3d.inversion.labelling import least_cost_labels
from licag3d.ops.match import PathPrices


@dataclass(frozen=True)
class MatchSettings:
    """Prices and tolerances; see :class:`licag3d.ops.match.PathPrices`."""

    path: PathPrices = PathPrices()
    node_price: float = 1.0
    node_cap_mm: float = 6.0
    mutual_price: float = 0.5
    agree_mm: float = 2.0
    hypotheses: int = 10
    stretch_price: float = 0.3
    end_price: float = 0.3
    end_cap_mm: float = 5.0


@dataclass(frozen=True)
class Match:
    """The chosen path of every point of either view.

    For view k (0 or 1): ``points_mm[k]`` ``(N_k, 3)`` LPS mm, NaN where unmatched; ``confidence[k]`` ``(N_k,)`` in 0..1: 1 where
    the other view's path says the same. ``cost``: of the whole labelling.
    """

    chains: tuple[Chains, Chains]
    points_mm: tuple[np.ndarray, np.ndarray]
    confidence: tuple[np.ndarray, np.ndarray]
    partner: tuple[np.ndarray, np.ndarray]
    cost: float


def both_candidates(cameras: tuple[Camera, Camera], chains: tuple[Chains, Chains],
                    settings: MatchSettings) -> tuple[Candidates, Candidates]:
    """Candidates of view 0 in view 1 and of view 1 in view 0."""
    pair = epipolar_pair(*cameras)
    angles = [epipolar_angles(pair, camera, chain.pixels) for camera, chain in zip(cameras, chains, strict=True)]
    reach_mm = 0.5 * (cameras[0].sod_mm + cameras[1].sod_mm)
    return tuple(find_candidates(pair, a == 1, chains[a], angles[a], chains[1 - a], angles[1 - a],
                                 settings.path, reach_mm=reach_mm) for a in (0, 1))


def match_views(cameras: tuple[Camera, Camera], chains: tuple[Chains, Chains], settings: MatchSettings, *,
                seed: int = 0) -> Match:
    """Match the centrelines of two views.

    Args:
        cameras: the two views, corrected.
        chains: their centreline pieces.
    """
    candidates = both_candidates(cameras, chains, settings)
    paths = [diverse_paths(candidates[a], chains[a], chains[1 - a], settings.path, limit=settings.hypotheses)
             for a in (0, 1)]
    unary = [cost for side in (0, 1) for cost in _label_costs(paths[side], candidates[side], chains[side], chains[1 - side], settings)]
    first = chains[0].pieces
    pairwise: dict[tuple[int, int], np.ndarray] = {}
    for side, shift in ((0, 0), (1, first)):
        for key, cost in _node_costs(paths[side], chains[side], settings).items():
            pairwise[key[0] + shift, key[1] + shift] = cost
    for key, cost in _mutual_costs(paths, candidates, chains, settings).items():
        pairwise[key[0], key[1] + first] = cost
    labels, cost = least_cost_labels(unary, pairwise, seed=seed)
    chosen = ([options[k] for options, k in zip(paths[0], labels[:first], strict=True)],
              [options[k] for options, k in zip(paths[1], labels[first:], strict=True)])
    return _collect(chosen, candidates, chains, cost, settings)


def _label_costs(paths, candidates, chains, other, settings) -> list[np.ndarray]:
    """Cost of every label by itself."""
    stretch = expected_stretch(chains)
    return [np.array([h.cost
                      + settings.stretch_price * stretch_cost(h, p, chains, stretch)
                      + settings.end_price * end_cost(h, p, chains, other, candidates, settings.end_cap_mm)
                      for h in options]) for p, options in enumerate(paths)]


def _node_costs(paths: list[list[Hypothesis]], chains: Chains, settings: MatchSettings) -> dict:
    """Distance in space of pieces of one view that meet at a node."""
    costs: dict[tuple[int, int], np.ndarray] = {}
    ends = {}
    for p in range(chains.pieces):
        radius = chains.radius_mm[chains.start[p]:chains.start[p + 1]]
        arc = np.cumsum(chains.step_mm[chains.start[p]:chains.start[p + 1]])
        for end in (0, 1):
            reach = 2.0 + float(np.median(radius))
            near = arc <= reach if end == 0 else arc[-1] - arc <= reach
            ends[p, end] = np.stack([_first_finite(h.points_mm[near][:: 1 if end == 0 else -1]) for h in paths[p]])
    for p in range(chains.pieces):
        for q in range(p + 1, chains.pieces):
            for end_p in (0, 1):
                for end_q in (0, 1):
                    turn = chains.turn_deg[p, q, end_p, end_q]
                    if np.isnan(turn) or (chains.crossing[chains.node[p, end_p]] and turn > THROUGH_DEG):
                        continue
                    gap = np.linalg.norm(ends[p, end_p][:, None] - ends[q, end_q][None], axis=-1)
                    slack = 0.5 + 0.5 * (chains.radius_mm[chains.start[p]] + chains.radius_mm[chains.start[q]])
                    cost = settings.node_price * np.clip(gap - slack, 0.0, settings.node_cap_mm)
                    cost = np.where(np.isnan(cost), 0.25 * settings.node_price * settings.node_cap_mm, cost)
                    cost[-1, -1] = 0.0
                    costs[p, q] = costs.get((p, q), 0.0) + cost
    return costs


def _first_finite(points: np.ndarray) -> np.ndarray:
    finite = np.isfinite(points[:, 0])
    return points[int(np.argmax(finite))] if finite.any() else np.full(3, np.nan)


def _mutual_costs(paths, candidates, chains, settings) -> dict:
    """Length over which the path of a piece and the path of the piece it runs along contradict each other."""
    tables: dict[tuple[int, int], np.ndarray] = {}
    for side in (0, 1):
        own, other = chains[side], chains[1 - side]
        piece_of_other = other.piece_of
        stacked = [np.stack([h.points_mm for h in options]) for options in paths[1 - side]]
        for p, options in enumerate(paths[side]):
            rows = np.arange(own.start[p], own.start[p + 1])
            for h, path in enumerate(options):
                matched = path.choice >= 0
                if not matched.any():
                    continue
                at = partner_index(candidates[side], rows[matched], path.choice[matched])
                weight, here, along = own.weight_mm[rows[matched]], path.points_mm[matched], piece_of_other[at]
                for q in np.unique(along):
                    on = along == q
                    there = stacked[q][:, at[on] - other.start[q]]
                    apart = np.linalg.norm(there - here[on], axis=-1)
                    share = np.where(np.isnan(apart), 0.5, (apart > settings.agree_mm).astype(float))
                    key = (p, int(q)) if side == 0 else (int(q), p)
                    table = tables.setdefault(key, np.zeros((len(paths[0][key[0]]), len(paths[1][key[1]]))))
                    contradiction = settings.mutual_price * (share * weight[on]).sum(axis=1)
                    if side == 0:
                        table[h] += contradiction
                    else:
                        table[:, h] += contradiction
    return tables


def _collect(chosen, candidates, chains, cost, settings) -> Match:
    points = [np.concatenate([h.points_mm for h in side]) if side else np.zeros((0, 3)) for side in chosen]
    confidence, partners = [], []
    for side in (0, 1):
        choice = np.concatenate([h.choice for h in chosen[side]]) if chosen[side] else np.zeros(0, int)
        value = np.zeros(len(choice))
        partner = np.full(len(choice), -1)
        matched = np.flatnonzero(choice >= 0)
        if len(matched):
            at = partner_index(candidates[side], matched, choice[matched])
            partner[matched] = at
            apart = np.linalg.norm(points[1 - side][at] - points[side][matched], axis=1)
            value[matched] = np.where(np.isnan(apart), 0.25, np.where(apart < settings.agree_mm, 1.0, 0.0))
        confidence.append(value)
        partners.append(partner)
    return Match(tuple(chains), tuple(points), tuple(confidence), tuple(partners), cost)
