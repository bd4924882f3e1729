# SPDX-License-Identifier: Apache-2.0
"""Joint labelling of two views against brute force."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from licag3d.inversion.agreement import Joint, Links, agree, total_cost
from licag3d.inversion.tables import PathTables


def random_problem(seed: int, pieces=(2, 2), states: int = 3):
    """Two views of two-point pieces with random costs, links and joints."""
    rng = np.random.default_rng(seed)
    tables, chains, links, joints = [], [], [], []
    counts = [sum(pieces), sum(pieces)]
    for side in (0, 1):
        n = counts[side]
        tables.append(PathTables(rng.uniform(0, 2, (n, states)), rng.uniform(0, 1, (n, states, states)),
                                 np.zeros((n, states, 3)), np.zeros((n, states), int)))
        start = np.concatenate([[0], np.cumsum(pieces)])
        piece_of = np.repeat(np.arange(len(pieces)), pieces)
        chains.append(SimpleNamespace(start=start, pieces=len(pieces), piece_of=piece_of))
    for side in (0, 1):
        point, state = (x.ravel() for x in np.meshgrid(np.arange(counts[side]), np.arange(states - 1), indexing="ij"))
        partner = rng.integers(0, counts[1 - side], len(point))
        links.append(
            Links(point, state, partner, rng.integers(-1, states - 1, len(point)), rng.uniform(0, 0.6, len(point)))
        )
        joints.append([Joint(1, 2, rng.uniform(0, 0.5, (states, states)))])
    return tuple(tables), tuple(chains), tuple(links), tuple(joints)


def brute_force(problem) -> float:
    tables, chains, links, joints = problem
    starts = [c.start for c in chains]
    shape = [(len(t.unary), t.unary.shape[1]) for t in tables]
    best = np.inf
    for first in itertools.product(range(shape[0][1]), repeat=shape[0][0]):
        for second in itertools.product(range(shape[1][1]), repeat=shape[1][0]):
            best = min(best, total_cost([np.array(first), np.array(second)], tables, starts, links, joints))
    return best


def test_joint_labelling_is_as_cheap_as_brute_force():
    gaps = []
    for seed in range(4):
        problem = random_problem(seed)
        states, cost = agree(*problem)
        starts = [c.start for c in problem[1]]
        assert cost == pytest.approx(total_cost(states, problem[0], starts, *problem[2:]))
        gaps.append(cost / brute_force(problem) - 1)
    assert min(gaps) > -1e-9
    assert np.median(gaps) < 1e-9
    assert max(gaps) < 0.1
