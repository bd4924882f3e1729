# SPDX-License-Identifier: Apache-2.0
"""The native matching cost against its readable twin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from match_cases import chains_of, no_chains, simulated, two_cameras, vessels

from licag3d.inversion.camera_search import camera_costs
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.inversion.tables import turn_costs
from licag3d.ops import native
from licag3d.ops.match import PathPrices, match_cost
from licag3d.ops.reference.match import match_cost as twin

needs_native = pytest.mark.skipif(native.cpu_library() is None, reason="the native library is not built")
PRICES = PathPrices(none=1.6, jump=0.4, calibre=1.3, tolerance_mm=0.3)


def arguments(cameras, chains, shifts=(0.0,)):
    """Angles for several offsets of the second camera, stacked."""
    stacks, baselines = [[], [], [], []], []
    for shift in shifts:
        moved = (cameras[0], cameras[1].with_offset(np.add(cameras[1].offset_lps_mm, (0, 0, shift))))
        pair = epipolar_pair(*moved)
        baselines.append(pair.baseline_mm)
        for k in (0, 1):
            for j, value in enumerate(epipolar_angles(pair, moved[k], chains[k].pixels)):
                stacks[2 * k + j].append(value)
    return [np.array(s).reshape(len(shifts), -1) for s in stacks], np.array(baselines)


def both(first, second, angles, baselines, prices=PRICES, swapped=False):
    turn = turn_costs(second, prices.turn)
    call = (first, second, *angles, baselines, turn, prices)
    return (match_cost(*call, reach_mm=750.0, swapped=swapped), twin(*call, reach_mm=750.0, swapped=swapped))


@needs_native
@pytest.mark.parametrize("prices", [PRICES, PathPrices(), replace(PRICES, tolerance_mm=1.5, flat=0.9, gap=0.0)])
@pytest.mark.parametrize("swapped", [False, True])
def test_native_equals_twin(prices, swapped):
    cameras = two_cameras((0.0, 2.0, 0.0))
    chains = tuple(chains_of(vessels(), c) for c in cameras)
    angles, baselines = arguments(cameras, chains, (0.0, 0.37, -3.0, 40.0))
    first, second = chains
    if swapped:
        first, second, angles = second, first, [*angles[2:], *angles[:2]]
    fast, slow = both(first, second, angles, baselines, prices, swapped)
    np.testing.assert_allclose(fast, slow, rtol=1e-9, atol=1e-7)


@needs_native
@pytest.mark.parametrize("length", [1, 2, 3, 7, 33])
def test_odd_sizes(length):
    cameras = two_cameras()
    curves = [vessels()[0][:max(length, 2)], vessels()[1]]
    chains = tuple(chains_of(curves, c) for c in cameras)
    angles, baselines = arguments(cameras, chains, tuple(0.1 * np.arange(length)))
    fast, slow = both(*chains, angles, baselines)
    assert fast[0].shape == (length,)
    np.testing.assert_allclose(fast, slow, rtol=1e-9, atol=1e-7)


def test_nothing_to_match():
    cameras = two_cameras()
    some, none = chains_of(vessels(), cameras[0]), no_chains(cameras[1])
    angles, baselines = arguments(cameras, (some, none))
    cost, matched = match_cost(some, none, *angles, baselines, np.zeros((0, 0)), PRICES, reach_mm=750.0)
    assert cost[0] == pytest.approx(PRICES.none * some.length_mm)
    assert matched[0] == 0
    cost, matched = match_cost(
        none, some, *angles[2:], *angles[:2], baselines, turn_costs(some, 1.0), PRICES, reach_mm=750.0
    )
    assert (cost[0], matched[0]) == (0, 0)
    cost, matched = match_cost(some, some, *(np.zeros((0, len(some.step_mm))) for _ in range(4)), np.zeros(0),
                               turn_costs(some, 1.0), PRICES, reach_mm=750.0)
    assert len(cost) == len(matched) == 0


def test_wrong_shapes_are_refused():
    cameras = two_cameras()
    chains = tuple(chains_of(vessels(), c) for c in cameras)
    angles, baselines = arguments(cameras, chains)
    with pytest.raises(ValueError, match="phi_b has shape"):
        match_cost(
            *chains, *angles[:3], angles[3][:, 1:], baselines, turn_costs(chains[1], 1.0), PRICES, reach_mm=750.0
        )
    with pytest.raises(ValueError, match="turn has shape"):
        match_cost(*chains, *angles, baselines, np.zeros((1, 1)), PRICES, reach_mm=750.0)


def test_true_cameras_match_nearly_everything_and_cost_least():
    cameras = two_cameras()
    chains = tuple(chains_of(vessels(), c) for c in cameras)
    shifted = [(cameras[0], cameras[1].with_offset((0, 0, z))) for z in (0.0, 1.0, -1.0, 6.0, -6.0)]
    cost, matched = camera_costs(shifted, chains, PRICES)
    assert cost.argmin() == 0
    assert matched[0] > 0.97 * sum(c.length_mm for c in chains)


def test_true_cameras_of_a_simulated_case_cost_less_than_wrong_ones():
    case, chains = simulated()
    first, second = case.true_cameras
    wrong = [(first, second.with_offset(np.add(second.offset_lps_mm, (0, 0, z)))) for z in (-12.0, 12.0)]
    cost, _ = camera_costs([(first, second), *wrong], chains, PRICES)
    assert cost[0] < 0.8 * cost[1:].min()
