# SPDX-License-Identifier: Apache-2.0
"""Cheapest paths and min-marginals: native against twin, and both against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from licag3d.ops import native
from licag3d.ops import paths as fast
from licag3d.ops.reference import paths as slow

needs_native = pytest.mark.skipif(native.cpu_library() is None, reason="the native library is not built")


def costs_of(pieces, states: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    start = np.concatenate([[0], np.cumsum(pieces)]).astype(int)
    count = int(start[-1])
    return start, rng.uniform(0, 1, (count, states)), rng.uniform(0, 1, (count, states, states))


@pytest.mark.parametrize("module", [fast, slow])
def test_against_enumeration(module):
    start, unary, pair = costs_of((4, 1, 3), 3, seed=3)
    margins = module.min_marginals(start, unary, pair)
    states, costs = module.cheapest_paths(start, unary, pair)
    for piece, (a, b) in enumerate(itertools.pairwise(start)):
        cheapest = np.full((b - a, 3), np.inf)
        for path in itertools.product(range(3), repeat=b - a):
            cost = sum(unary[a + i, s] for i, s in enumerate(path)) + sum(
                pair[a + i, path[i - 1], path[i]] for i in range(1, b - a))
            for i, s in enumerate(path):
                cheapest[i, s] = min(cheapest[i, s], cost)
        np.testing.assert_allclose(margins[a:b], cheapest)
        assert costs[piece] == pytest.approx(cheapest.min())
        np.testing.assert_allclose(cheapest[np.arange(b - a), states[a:b]], costs[piece])


@needs_native
@pytest.mark.parametrize(("pieces", "states"), [((1,), 1), ((2,), 1), ((1, 1, 1), 5), ((7, 33, 2, 1, 64), 21), ((), 4)])
def test_native_is_the_twin_bit_for_bit(pieces, states):
    """Sums and minima in the same order: an inversion must not depend on whether the library is there."""
    problem = costs_of(pieces, states)
    np.testing.assert_array_equal(fast.min_marginals(*problem), slow.min_marginals(*problem))
    for got, wanted in zip(fast.cheapest_paths(*problem), slow.cheapest_paths(*problem), strict=True):
        np.testing.assert_array_equal(got, wanted)


@needs_native
def test_of_equal_paths_the_first_is_taken():
    start, unary, pair = costs_of((5, 3), 4)
    unary[:], pair[:] = 1.0, 0.0
    states, costs = fast.cheapest_paths(start, unary, pair)
    assert not states.any()
    np.testing.assert_array_equal(costs, [5.0, 3.0])


def test_costs_before_the_first_point_of_a_piece_are_not_read():
    start, unary, pair = costs_of((3, 4), 6)
    wanted = fast.min_marginals(start, unary, pair), fast.cheapest_paths(start, unary, pair)[0]
    pair[start[:-1]] = np.nan
    np.testing.assert_array_equal(fast.min_marginals(start, unary, pair), wanted[0])
    np.testing.assert_array_equal(fast.cheapest_paths(start, unary, pair)[0], wanted[1])


@pytest.mark.parametrize(
    ("start", "unary", "pair"),
    [
        ([0, 3], np.zeros((4, 2)), np.zeros((4, 2, 2))),  # a point of no piece
        ([0, 2, 2, 4], np.zeros((4, 2)), np.zeros((4, 2, 2))),  # an empty piece
        ([1, 4], np.zeros((4, 2)), np.zeros((4, 2, 2))),
        ([0, 4], np.zeros((4, 2)), np.zeros((4, 2, 3))),
        ([0, 4], np.zeros((4, 2)), np.zeros((3, 2, 2))),
        ([0, 4], np.zeros((4, 0)), np.zeros((4, 0, 0))),
    ],
)
def test_arrays_that_do_not_fit_are_refused(start, unary, pair):
    for function in (fast.min_marginals, fast.cheapest_paths):
        with pytest.raises(ValueError, match="fit|pieces"):
            function(start, unary, pair)
