# SPDX-License-Identifier: Apache-2.0
"""Joint matching of two views: each piece takes a path through the other view, and paths must agree with each other.

A pair (point of one view, candidate in the other) is one place in space, so that the partner point should choose the
same place from its side. Costs of a labelling: the path costs of all pieces, a price per mm where a path is
contradicted by the other view's, and the gap in space where pieces meet at a node. Min-sum messages over these
couplings (Koller and Friedman, Probabilistic Graphical Models, chapter 13), then exact re-routing of one piece at a
time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.inversion.chains import THROUGH_DEG, Chains
from licag3d.inversion.tables import FORBIDDEN, PathTables
from licag3d.ops.paths import cheapest_paths, min_marginals

#: A partner point without a match contradicts less than one matched elsewhere.
SILENT_SHARE = 0.5


@dataclass(frozen=True)
class Links:
    """Places of one view as the other view sees them, F of them.

    ``point``, ``state`` ``(F,)`` of the view that claims the place; ``partner``, ``answer`` ``(F,)`` point and state
    of the other view that would confirm it (answer -1: none would); ``price`` ``(F,)`` cost of being contradicted.
    """

    point: np.ndarray
    state: np.ndarray
    partner: np.ndarray
    answer: np.ndarray
    price: np.ndarray


@dataclass(frozen=True)
class Joint:
    """Two piece ends of one view that meet: rows of their last points, ``cost`` ``(S, S)`` of their states."""

    first: int
    second: int
    cost: np.ndarray


def agreement_links(own: PathTables, other: PathTables, weight_mm: np.ndarray, price: float, agree_mm: float) -> Links:
    """For every candidate of a view, the candidate of the other view that says the same."""
    point, state = np.nonzero(own.partner >= 0)
    partner = own.partner[point, state]
    here = own.points_mm[point, state]
    there = other.points_mm[partner]
    gap = np.linalg.norm(np.nan_to_num(there, nan=1e9) - here[:, None], axis=-1)
    answer = gap.argmin(axis=1)
    agreed = gap[np.arange(len(gap)), answer] < agree_mm
    return Links(point, state, partner, np.where(agreed, answer, -1), price * weight_mm[point])


def node_joints(tables: PathTables, chains: Chains, price: float, cap_mm: float, silent: float = 0.25) -> list[Joint]:
    """Piece ends that should meet in space: all arms of a branch, the two straight pairs of a crossing."""
    joints = []
    row = np.stack([chains.start[:-1], chains.start[1:] - 1], axis=1)
    where = np.argwhere(~np.isnan(chains.turn_deg))
    for p, q, end_p, end_q in where[where[:, 0] < where[:, 1]]:
        if chains.crossing[chains.node[p, end_p]] and chains.turn_deg[p, q, end_p, end_q] > THROUGH_DEG:
            continue
        first, second = int(row[p, end_p]), int(row[q, end_q])
        gap = np.linalg.norm(tables.points_mm[first][:, None] - tables.points_mm[second][None], axis=-1)
        slack = 0.5 + 0.5 * (chains.radius_mm[first] + chains.radius_mm[second])
        cost = price * np.clip(gap - slack, 0.0, cap_mm)
        cost = np.where(np.isnan(cost), silent * price * cap_mm, cost)
        cost[-1, -1] = 0.0
        joints.append(Joint(first, second, cost))
    return joints


def agree(
    tables: tuple[PathTables, PathTables],
    chains: tuple[Chains, Chains],
    links: tuple[Links, Links],
    joints: tuple[list[Joint], list[Joint]],
    *,
    rounds: int = 20,
    dampings: tuple[float, ...] = (0.5, 0.75),
) -> tuple[list[np.ndarray], float]:
    """States of all points of both views that cost least together (not proven to be the least), and their cost."""
    starts = [c.start for c in chains]
    best = None
    # Messages on loops settle in different places; the cost says which is best.
    for damping in (*dampings, None):
        start = (
            [t.unary for t in tables] if damping is None else _messages(tables, starts, links, joints, rounds, damping)
        )
        states = [cheapest_paths(starts[side], start[side], tables[side].pair)[0] for side in (0, 1)]
        states = _reroute(states, tables, chains, links, joints)
        cost = total_cost(states, tables, starts, links, joints)
        if best is None or cost < best[1]:
            best = states, cost
    return best


def total_cost(states, tables, starts, links, joints) -> float:
    """Cost of a labelling; ``states`` ``(N,)`` and first points of the pieces of each view."""
    total = 0.0
    for side in (0, 1):
        here = states[side]
        total += tables[side].unary[np.arange(len(here)), here].sum()
        follow = np.setdiff1d(np.arange(len(here)), starts[side])
        total += tables[side].pair[follow, here[follow - 1], here[follow]].sum()
        link, other = links[side], states[1 - side]
        claimed = here[link.point] == link.state
        total += _penalties(link, np.flatnonzero(claimed), other, tables[1 - side].unary.shape[1] - 1).sum()
        total += sum(joint.cost[here[joint.first], here[joint.second]] for joint in joints[side])
    return float(total)


def _messages(tables, starts, links, joints, rounds, damping) -> list[np.ndarray]:
    """Unary costs with what the couplings say added, after some rounds of damped min-sum messages."""
    none = [t.unary.shape[1] - 1 for t in tables]
    # Of every link: what it adds to the claimed state, and to the answer and the silence of the partner.
    to_claim = [np.zeros(len(link.point)) for link in links]
    to_answer, to_silence = ([np.zeros(len(link.point)) for link in links] for _ in range(2))
    to_joint = [[(np.zeros(t.unary.shape[1]), np.zeros(t.unary.shape[1])) for _ in js]
                for t, js in zip(tables, joints, strict=True)]
    fields = [t.unary.copy() for t in tables]
    for _ in range(rounds):
        fields = _fields(tables, links, joints, to_claim, to_answer, to_silence, to_joint)
        margins = [
            min_marginals(start, field, table.pair) for start, field, table in zip(starts, fields, tables, strict=True)
        ]
        lowest = [_two_lowest(m) for m in margins]
        for side in (0, 1):
            link, other = links[side], 1 - side
            claim = _against_rest(margins[side], lowest[side], link.point, link.state) - to_claim[side]
            known = link.answer >= 0
            answer = np.where(known, link.answer, 0)
            at_answer = np.where(known, margins[other][link.partner, answer] - to_answer[side], FORBIDDEN)
            at_none = margins[other][link.partner, none[other]] - to_silence[side]
            # The cheapest of all other states of the partner; those carry no message of this link.
            elsewhere = _lowest_except(margins[other], link.partner, answer, none[other], known)
            silence, contradiction = SILENT_SHARE * link.price, link.price
            free = np.minimum(np.minimum(at_answer, at_none), elsewhere)
            bound = np.minimum(np.minimum(at_answer, at_none + silence), elsewhere + contradiction)
            to_claim[side] += (1 - damping) * (bound - free - to_claim[side])
            # Toward the partner, relative to its other states.
            refuse = np.minimum(0.0, claim + contradiction)
            to_answer[side] += (1 - damping) * (np.where(known, np.minimum(0.0, claim) - refuse, 0.0) - to_answer[side])
            to_silence[side] += (1 - damping) * (np.minimum(0.0, claim + silence) - refuse - to_silence[side])
            for k, joint in enumerate(joints[side]):
                first, second = to_joint[side][k]
                from_first = margins[side][joint.first] - first
                from_second = margins[side][joint.second] - second
                fresh_first = (from_second[None] + joint.cost).min(axis=1)
                fresh_second = (from_first[:, None] + joint.cost).min(axis=0)
                to_joint[side][k] = (damping * first + (1 - damping) * (fresh_first - fresh_first.min()),
                                     damping * second + (1 - damping) * (fresh_second - fresh_second.min()))
    return fields


def _fields(tables, links, joints, to_claim, to_answer, to_silence, to_joint) -> list[np.ndarray]:
    fields = [t.unary.copy() for t in tables]
    for side in (0, 1):
        link, other = links[side], 1 - side
        np.add.at(fields[side], (link.point, link.state), to_claim[side])
        known = link.answer >= 0
        np.add.at(fields[other], (link.partner[known], link.answer[known]), to_answer[side][known])
        np.add.at(
            fields[other], (link.partner, np.full(len(link.partner), fields[other].shape[1] - 1)), to_silence[side]
        )
        for (first, second), joint in zip(to_joint[side], joints[side], strict=True):
            fields[side][joint.first] += first
            fields[side][joint.second] += second
    return fields


def _two_lowest(margin: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the least, its value, and the second least value of every row."""
    at = margin.argmin(axis=1)
    low = margin[np.arange(len(margin)), at]
    rest = margin.copy()
    rest[np.arange(len(margin)), at] = np.inf
    return at, low, np.minimum(rest.min(axis=1), low + FORBIDDEN)


def _against_rest(margin, lowest, point, state) -> np.ndarray:
    """Min-marginal of a state less that of the best other state."""
    at, low, second = lowest
    return margin[point, state] - np.where(at[point] == state, second[point], low[point])


def _lowest_except(margin, partner, answer, none, known) -> np.ndarray:
    rest = margin[partner].copy()
    rows = np.arange(len(partner))
    rest[:, none] = np.inf
    rest[rows[known], answer[known]] = np.inf
    return np.minimum(rest.min(axis=1), 2 * FORBIDDEN)


def _reroute(states, tables, chains, links, joints, rounds: int = 8) -> list[np.ndarray]:
    """Give one piece after the other its cheapest path with all others held, until nothing changes."""
    states = [s.copy() for s in states]
    by_piece = [_index(side, chains, links, joints) for side in (0, 1)]
    for _ in range(rounds):
        changed = False
        for side in (0, 1):
            own, other = tables[side], states[1 - side]
            none = own.unary.shape[1] - 1
            for p in range(chains[side].pieces):
                begin, end = chains[side].start[p], chains[side].start[p + 1]
                field = own.unary[begin:end].copy()
                claims, answers, ends = by_piece[side][p]
                link = links[side]
                field[link.point[claims] - begin, link.state[claims]] += _penalties(
                    link, claims, other, tables[1 - side].unary.shape[1] - 1)
                link = links[1 - side]
                active = answers[other[link.point[answers]] == link.state[answers]]
                row = link.partner[active] - begin
                np.add.at(field, row, link.price[active][:, None])
                known = link.answer[active] >= 0
                np.add.at(field, (row[known], link.answer[active][known]), -link.price[active][known])
                np.add.at(field, (row, np.full(len(row), none)), -(1 - SILENT_SHARE) * link.price[active])
                for row, cost, elsewhere in ends:
                    field[row - begin] += cost[:, states[side][elsewhere]]
                path, _ = cheapest_paths([0, end - begin], field, own.pair[begin:end])
                if not np.array_equal(path, states[side][begin:end]):
                    before = states[side][begin:end]
                    if (
                        _path_cost(path, field, own.pair[begin:end])
                        < _path_cost(before, field, own.pair[begin:end]) - 1e-9
                    ):
                        states[side][begin:end] = path
                        changed = True
        if not changed:
            break
    return states


def _penalties(link: Links, chosen: np.ndarray, other: np.ndarray, none: int) -> np.ndarray:
    """Cost of the chosen links' claims, given the states of the other view."""
    said = other[link.partner[chosen]]
    return link.price[chosen] * np.where(said == link.answer[chosen], 0.0, np.where(said == none, SILENT_SHARE, 1.0))


def _path_cost(path, field, pair) -> float:
    rows = np.arange(len(path))
    return float(field[rows, path].sum() + pair[rows[1:], path[:-1], path[1:]].sum())


def _index(side, chains, links, joints):
    """Per piece: its own links, the other view's links that ask it, and its joints as (row, cost by own state, other
    row)."""
    piece = chains[side].piece_of
    out = []
    claims, answers = piece[links[side].point], piece[links[1 - side].partner]
    for p in range(chains[side].pieces):
        ends = []
        for joint in joints[side]:
            if piece[joint.first] == p:
                ends.append((joint.first, joint.cost, joint.second))
            if piece[joint.second] == p:
                ends.append((joint.second, joint.cost.T, joint.first))
        out.append((np.flatnonzero(claims == p), np.flatnonzero(answers == p), ends))
    return out
