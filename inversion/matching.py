# SPDX-License-Identifier: Apache-2.0
"""Centreline matching of two views: every piece of either view takes a path through the other, and the two must
agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.agreement import agree, agreement_links, node_joints
from licag3d.inversion.candidates import Candidates, find_candidates
from licag3d.inversion.chains import Chains
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.inversion.tables import PathTables, path_tables
from licag3d.ops.match import PathPrices

if TYPE_CHECKING:
    from licag3d.models.correspondence_judge import PairJudge, Verdict

#: Cost per mm ``(M,)`` of places ``(M, 3)``, mm in the frame of the cameras given.
PlaceCost = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class MatchSettings:
    """Prices (cost per mm of centreline) and tolerances.

    Args:
        path: of a single path, see :class:`licag3d.ops.match.PathPrices`.
        along_share: share of the price of a jump that remains where the other view's centreline bridges it.
        node_price: per mm between piece ends that meet at a node of the image, up to ``node_cap_mm``.
        mutual_price: per mm that the other view's path contradicts; places nearer than ``agree_mm`` are the same.
        slope_price: per mm, for a factor e between the contrast seen and that expected for the slope in space.
        bore_price: per mm, for diameters that differ altogether according to the contrast of both views.
        end_price: per mm between a vessel end (junction) of one view and the next one of the other, up to
            ``end_cap_mm``.
        witness_price: per mm of centreline and per mm that a place lies off the centrelines of a further view, up to
            ``witness_cap_mm``.
        candidates: places that a point may take, at most.
        rounds: of message passing.
        judge_price: with a judge (:mod:`licag3d.models.correspondence_judge`): per mm and natural unit of minus the log
            of its probability, at most ``judge_cap`` units; ``judge_none`` is added to its price of no match.
        judge_hand_share: of the hand-made costs that is kept beside the judge's.
        judge_near_mm: the chance told of a place is that of all candidates this near to it.
    """

    path: PathPrices = PathPrices(none=2.0, jump=0.4, slack=1.5, gap=0.5, turn=1.0, calibre=1.5, tolerance_mm=0.2)
    along_share: float = 0.5
    node_price: float = 0.5
    node_cap_mm: float = 6.0
    mutual_price: float = 0.75
    agree_mm: float = 1.5
    slope_price: float = 1.2
    bore_price: float = 0.5
    end_price: float = 0.4
    end_cap_mm: float = 5.0
    witness_price: float = 0.7
    witness_cap_mm: float = 2.5
    candidates: int = 20
    rounds: int = 20
    judge_price: float = 0.6
    judge_cap: float = 5.0
    judge_none: float = 1.1
    judge_hand_share: float = 0.0
    judge_near_mm: float = 3.0


@dataclass(frozen=True)
class Match:
    """The chosen path of every point of either view.

    For view k (0 or 1): ``points_mm[k]`` ``(N_k, 3)`` LPS mm, NaN where unmatched; ``confidence[k]`` ``(N_k,)`` in
    0..1: 1 where the other view's path says the same, 0.25 where it says nothing, 0 where it says something else;
    ``partner[k]`` ``(N_k,)`` nearest point of the other view, -1 where unmatched. ``cost``: of the whole labelling.
    ``chance``: with a judge, per view ``(N_k,)`` the probability that it gives to the place and its neighbours, NaN
    where unmatched.
    """

    chains: tuple[Chains, Chains]
    points_mm: tuple[np.ndarray, np.ndarray]
    confidence: tuple[np.ndarray, np.ndarray]
    partner: tuple[np.ndarray, np.ndarray]
    cost: float
    chance: tuple[np.ndarray, np.ndarray] | None = None


def both_candidates(cameras: tuple[Camera, Camera], chains: tuple[Chains, Chains],
                    settings: MatchSettings) -> tuple[Candidates, Candidates]:
    """Candidates of view 0 in view 1 and of view 1 in view 0."""
    pair = epipolar_pair(*cameras)
    angles = [epipolar_angles(pair, camera, chain.pixels) for camera, chain in zip(cameras, chains, strict=True)]
    reach_mm = 0.5 * (cameras[0].sod_mm + cameras[1].sod_mm)
    return tuple(find_candidates(pair, a == 1, chains[a], angles[a], chains[1 - a], angles[1 - a], settings.path,
                                 reach_mm=reach_mm, limit=settings.candidates) for a in (0, 1))


def match_views(
    cameras: tuple[Camera, Camera],
    chains: tuple[Chains, Chains],
    settings: MatchSettings,
    *,
    witnesses: Sequence[tuple[Camera, Chains]] = (),
    place_costs: Sequence[PlaceCost] = (),
    judge: PairJudge | None = None,
) -> Match:
    """Match the centrelines of two views.

    Args:
        cameras: the two views, corrected.
        chains: their centreline pieces.
        witnesses: further views, corrected, with their centrelines: places that they do not show as vessel cost more.
        place_costs: what every place costs besides, per mm of centreline, as a prior of the tree says.
        judge: the network that says how likely every place is; None leaves that to the hand-made costs.
    """
    candidates = both_candidates(cameras, chains, settings)
    verdicts = None if judge is None else judge.ask(cameras, chains, candidates, settings.path)
    tables = both_tables(cameras, chains, settings, candidates, witnesses, place_costs, verdicts)
    links = tuple(
        agreement_links(tables[a], tables[1 - a], chains[a].weight_mm, settings.mutual_price, settings.agree_mm)
        for a in (0, 1)
    )
    joints = tuple(node_joints(tables[a], chains[a], settings.node_price, settings.node_cap_mm) for a in (0, 1))
    states, cost = agree(tables, chains, links, joints, rounds=settings.rounds)
    match = _collect(states, tables, chains, cost, settings.agree_mm)
    return match if verdicts is None else replace(match, chance=_chances(tables, states, verdicts, settings))


def both_tables(
    cameras, chains, settings: MatchSettings, candidates, witnesses=(), place_costs=(), verdicts=None
) -> tuple[PathTables, PathTables]:
    """Cost tables of the paths of either view through the other."""
    judged = (None, None) if verdicts is None else tuple(_judged(verdict, settings) for verdict in verdicts)
    return tuple(
        path_tables(
            candidates[a],
            (cameras[a], cameras[1 - a]),
            (chains[a], chains[1 - a]),
            settings.path,
            slope_price=settings.slope_price,
            bore_price=settings.bore_price,
            end_price=settings.end_price,
            end_cap_mm=settings.end_cap_mm,
            along_share=settings.along_share,
            extra=_extra_costs(candidates[a], witnesses, place_costs, settings),
            judged=judged[a],
            hand_share=1.0 if verdicts is None else settings.judge_hand_share,
        )
        for a in (0, 1)
    )


def _judged(verdict: Verdict, settings: MatchSettings) -> tuple[np.ndarray, np.ndarray]:
    """A verdict as cost per mm of every candidate and of none."""
    place = settings.judge_price * np.minimum(-verdict.log_place, settings.judge_cap)
    none = settings.judge_price * np.minimum(-verdict.log_none, settings.judge_cap) + settings.judge_none
    return place, none


def _extra_costs(candidates: Candidates, witnesses, place_costs, settings: MatchSettings) -> np.ndarray | None:
    """What further views and others say about every candidate, cost per mm; ``(N, K)``, None where nobody is asked."""
    total = _witness_costs(candidates, witnesses, settings)
    for ask in place_costs:
        cost = np.zeros(candidates.cost.shape)
        real = np.isfinite(candidates.cost)
        cost[real] = ask(candidates.points_mm[real])
        total = cost if total is None else total + cost
    return total


def _witness_costs(candidates: Candidates, witnesses, settings: MatchSettings) -> np.ndarray | None:
    """How far every candidate lies from the centrelines of further views, as cost per mm; ``(N, K)``."""
    from scipy.spatial import cKDTree

    total = None
    for camera, chains in witnesses:
        if not len(chains.pixels):
            continue
        pixels, depth = camera.project(candidates.points_mm.reshape(-1, 3))
        gap_mm = cKDTree(chains.pixels).query(pixels)[0] * chains.mm_per_pixel
        inside = ((pixels >= 0) & (pixels <= [camera.cols - 1, camera.rows - 1])).all(axis=1) & (depth > 0)
        # Outside the witness's image nothing is known.
        off_mm = np.where(inside, np.clip(gap_mm - 0.5, 0.0, settings.witness_cap_mm), 0.0)
        cost = settings.witness_price * off_mm.reshape(candidates.cost.shape)
        total = cost if total is None else total + cost
    return total


def _collect(states, tables, chains, cost, agree_mm) -> Match:
    rows = [np.arange(len(s)) for s in states]
    points = [t.points_mm[r, s] for t, r, s in zip(tables, rows, states, strict=True)]
    partner = [t.partner[r, s] for t, r, s in zip(tables, rows, states, strict=True)]
    confidence = []
    for side in (0, 1):
        value = np.zeros(len(rows[side]))
        matched = np.flatnonzero(partner[side] >= 0)
        apart = np.linalg.norm(points[1 - side][partner[side][matched]] - points[side][matched], axis=1)
        value[matched] = np.where(np.isnan(apart), 0.25, np.where(apart < agree_mm, 1.0, 0.0))
        confidence.append(value)
    return Match(tuple(chains), tuple(points), tuple(confidence), tuple(partner), cost)


def _chances(tables, states, verdicts, settings: MatchSettings) -> tuple[np.ndarray, ...]:
    """The judge's chance of every chosen place with its neighbours: places along one vessel share what it gives."""
    chances = []
    for table, state, verdict in zip(tables, states, verdicts, strict=True):
        rows = np.arange(len(state))
        gap = np.linalg.norm(table.points_mm[:, :-1] - table.points_mm[rows, state][:, None], axis=-1)
        near = np.exp(verdict.log_place) * (np.nan_to_num(gap, nan=np.inf) < settings.judge_near_mm)
        chances.append(np.where(table.partner[rows, state] >= 0, near.sum(axis=1), np.nan))
    return tuple(chances)
