# SPDX-License-Identifier: Apache-2.0
"""Evolutionary camera correction: the offset and angles under which most centreline of both views can be matched.

The cost of a candidate camera is the Viterbi cost of every centreline piece of either view through the other
(:func:`licag3d.ops.match.match_cost`): it counts the length left unmatched, jumps in depth and unequal calibres. It
has one wide basin across the epipolar planes, a shallow one toward the detector and is flat along the baseline, where
only an assumption can fix the scale (docs/geometry.md).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains
from licag3d.inversion.consistency import Contrast, disagreement
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.inversion.tables import turn_costs
from licag3d.ops.match import PathPrices, match_cost


@dataclass(frozen=True)
class SearchSettings:
    """Bounds and effort of the search.

    Args:
        range_mm: offsets of the second view are sought within plus or minus this distance across and toward the
            baseline.
        angle_sigma_deg: reading error of a positioner angle; 0 keeps the angles as given.
        starts: restarts of CMA-ES. generations: of each. population: of each.
        coarse: population and generations of the differential evolution over the offset alone.
        consistency_price: per mm of centreline of both views, for contrast that lies in wrong epipolar planes
            (:mod:`licag3d.inversion.consistency`).
        toward_sigma_mm, toward_price: prior of the offset toward the detector: price times log(1 + (offset / sigma)^2).
            Sigma is 1.5 times the offset across the epipolar planes, which is seen well, within these bounds: a table
            that did not move one way hardly moved the other.
        moved_sigma_mm, moved_gain: once more with this least sigma, taken where it saves so much of all other costs:
            the heart has moved, as in another breath, and not as a table does (docs/deformation.md). Not with one
            start.
    """

    range_mm: float = 80.0
    angle_sigma_deg: float = 0.8
    starts: int = 3
    generations: int = 35
    population: int = 16
    coarse: tuple[int, int] = (40, 20)
    toward_sigma_mm: tuple[float, float] = (4.0, 25.0)
    toward_price: float = 30.0
    moved_sigma_mm: float = 12.0
    moved_gain: float = 5.0
    consistency_price: float = 3.0
    prices: PathPrices = PathPrices(none=1.6, jump=0.4, slack=1.5, gap=0.5, turn=1.0, calibre=1.3, tolerance_mm=0.2)


@dataclass(frozen=True)
class CameraSearch:
    """Result of the search.

    Args:
        cameras: both views, corrected (the reference view keeps offset zero).
        cost: the least cost found; ``cost_before`` that of the cameras as given.
        matched_mm: length matched, both views together.
        history: best cost after each generation.
        spread_mm: half the range of the offset, across the epipolar planes and toward the detector, over which the
            cost stays within 2 % of the least.
        evaluations: number of cameras tried.
    """

    cameras: tuple[Camera, Camera]
    cost: float
    cost_before: float
    matched_mm: float
    history: tuple[float, ...]
    spread_mm: tuple[float, float]
    evaluations: int


def camera_costs(
    pairs: list[tuple[Camera, Camera]], chains: tuple[Chains, Chains], prices: PathPrices
) -> tuple[np.ndarray, np.ndarray]:
    """Matching cost and matched length (mm, both views together) of M candidate camera pairs, each ``(M,)``."""
    angles = [[], [], [], []]
    baselines = []
    for cameras in pairs:
        frame = epipolar_pair(*cameras)
        baselines.append(frame.baseline_mm)
        for k in (0, 1):
            theta, phi = epipolar_angles(frame, cameras[k], chains[k].pixels)
            angles[2 * k].append(theta)
            angles[2 * k + 1].append(phi)
    theta_0, phi_0, theta_1, phi_1 = (np.array(x) for x in angles)
    baseline = np.array(baselines)
    reach_mm = 0.5 * (pairs[0][0].sod_mm + pairs[0][1].sod_mm)
    one = match_cost(chains[0], chains[1], theta_0, phi_0, theta_1, phi_1, baseline, turn_costs(chains[1], prices.turn),
                     prices, reach_mm=reach_mm)
    two = match_cost(chains[1], chains[0], theta_1, phi_1, theta_0, phi_0, baseline, turn_costs(chains[0], prices.turn),
                     prices, reach_mm=reach_mm, swapped=True)
    return one[0] + two[0], one[1] + two[1]


def search_cameras(
    cameras: tuple[Camera, Camera],
    chains: tuple[Chains, Chains],
    settings: SearchSettings,
    *,
    seed: int = 0,
    fixed_first: bool = False,
    contrast: tuple[Contrast | None, Contrast | None] = (None, None),
    progress: Callable[[float, str], None] | None = None,
) -> CameraSearch:
    """Correct the offset of the second view, and the angles within their reading error.

    Args:
        cameras: as the user has them; the first is the reference.
        chains: centreline pieces of both views.
        fixed_first: leave the angles of the first view as they are.
        contrast: of both views, where line integrals are known: their profiles over the epipolar planes should agree.
        progress: called with the share done (0..1) and a line of text.

    Returns:
        The corrected cameras. The offset along the baseline stays as given: it is the scale gauge, fixed afterwards
        (:func:`licag3d.inversion.gauge.fix_scale`).
    """
    frame = epipolar_pair(*cameras)
    basis = np.stack([frame.across, frame.toward])
    before = float(camera_costs([cameras], chains, settings.prices)[0][0])
    history: list[float] = []
    tried = [1]
    consistency = settings.consistency_price * sum(chain.length_mm for chain in chains)
    consistency *= all(item is not None for item in contrast)
    scale = np.array([10.0, 10.0, *([settings.angle_sigma_deg] * 3)])

    def build(x: np.ndarray) -> tuple[Camera, Camera]:
        first, second = cameras
        offset = np.asarray(second.offset_lps_mm) + x[:2] @ basis
        turn = np.zeros(3)
        turn[:len(x) - 2] = x[2:]
        turn[0] *= not fixed_first
        first = replace(first, secondary_deg=float(np.clip(first.secondary_deg + turn[0], -90, 90)))
        second = replace(second, primary_deg=float(np.clip(second.primary_deg + turn[1], -180, 180)),
                         secondary_deg=float(np.clip(second.secondary_deg + turn[2], -90, 90)))
        return first, second.with_offset(offset)

    def evident(population: np.ndarray) -> np.ndarray:
        pairs = [build(x) for x in population]
        values = camera_costs(pairs, chains, settings.prices)[0]
        tried[0] += len(population)
        if consistency > 0:
            values = values + consistency * np.array([disagreement(pair, contrast) for pair in pairs])
        if population.shape[1] > 2:
            # Reading errors are normal; one standard deviation costs as much as two millimetres of unmatched vessel.
            values = values + settings.prices.none * ((population[:, 2:] / settings.angle_sigma_deg) ** 2).sum(1)
        return values

    def costs(population: np.ndarray, least_mm: float = settings.toward_sigma_mm[0]) -> np.ndarray:
        # The basin toward the detector is shallow, and far out a wrong arrangement may be cheaper. Heavy tails: a
        # table that did move far is still found.
        sigma_mm = np.clip(1.5 * np.abs(population[:, 0]), least_mm, settings.toward_sigma_mm[1])
        return evident(population) + settings.toward_price * np.log1p((population[:, 1] / sigma_mm) ** 2)

    again = settings.starts > 1 and settings.moved_gain < np.inf
    rounds = 1 + settings.starts + again
    bounds = np.full((2, 2), settings.range_mm) * np.array([[-1.0], [1.0]])
    best, value = evolve("de", costs, bounds, np.zeros(2), settings.coarse[0], settings.coarse[1], seed, history)
    if progress:
        progress(1 / rounds, f"offset search: cost with priors {before:.0f} -> {value:.0f}")
    free = 2 if settings.angle_sigma_deg <= 0 else 5
    found = np.concatenate([best, np.zeros(free - 2)])
    value = float(costs(found[None])[0])
    limits = np.stack([np.full(free, -1.0), np.full(free, 1.0)])
    limits[:, :2] *= settings.range_mm
    limits[:, 2:] *= 3.0 * settings.angle_sigma_deg
    for start in range(settings.starts):
        point, cost = evolve(
            "cmaes",
            costs,
            limits,
            found,
            settings.population,
            settings.generations,
            seed + 1 + start,
            history,
            scale=scale[:free] * (1.0 if start == 0 else 0.5),
        )
        if cost < value:
            found, value = point, cost
        if progress:
            progress((2 + start) / rounds, f"camera search {start + 1}/{settings.starts}: cost with priors {value:.0f}")
    if again:
        point, _ = evolve(
            "cmaes",
            lambda population: costs(population, settings.moved_sigma_mm),
            limits,
            found,
            settings.population,
            settings.generations,
            seed + 1 + settings.starts,
            [],
            scale=scale[:free],
        )
        kept, freed = evident(np.stack([found, point]))
        if freed < kept - settings.moved_gain:
            found = point
        if progress:
            progress(1.0, f"camera search with a moving heart: {kept:.0f} -> {min(kept, freed):.0f}")
    corrected = build(found)
    cost, matched = camera_costs([corrected], chains, settings.prices)
    return CameraSearch(corrected, float(cost[0]), before, float(matched[0]), tuple(history),
                        _spread(corrected, chains, basis, settings.prices), tried[0])


def _spread(cameras, chains, basis, prices) -> tuple[float, float]:
    """How far the offset may move along each axis before the cost rises by 2 %, mm."""
    steps = np.array([-32.0, -16, -8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8, 16, 32])
    spread = []
    for axis in basis:
        offset = np.asarray(cameras[1].offset_lps_mm)
        cost = camera_costs([(cameras[0], cameras[1].with_offset(offset + s * axis)) for s in steps], chains, prices)[0]
        within = steps[cost <= 1.02 * cost[len(steps) // 2] + 1e-9]
        spread.append(float(0.5 * (within.max() - within.min())))
    return tuple(spread)


@contextmanager
def _no_plotting():
    """Keep cma from loading matplotlib for plots that nobody asks for: half a second, a third of its import."""
    missing = "matplotlib" not in sys.modules
    if missing:
        sys.modules["matplotlib"] = None
    try:
        yield
    finally:
        if missing:
            del sys.modules["matplotlib"]


def evolve(
    method: str, costs, limits, start, population, generations, seed, history, scale=None
) -> tuple[np.ndarray, float]:
    """One pymoo run on batches of candidates; returns the best point and its cost."""
    with warnings.catch_warnings(), _no_plotting():
        warnings.simplefilter("ignore")  # pymoo warns about its own dependencies on import
        from pymoo.algorithms.soo.nonconvex.cmaes import CMAES
        from pymoo.algorithms.soo.nonconvex.de import DE
        from pymoo.core.problem import Problem
        from pymoo.optimize import minimize

    unit = np.ones(len(start)) * (limits[1] - limits[0]) if scale is None else scale

    class Cost(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=len(start), n_obj=1, xl=limits[0] / unit, xu=limits[1] / unit)

        def _evaluate(self, x, out, *args, **kwargs) -> None:
            out["F"] = costs(np.atleast_2d(x) * unit)[:, None]

    if method == "de":
        rng = np.random.default_rng(seed)
        first = rng.uniform(limits[0], limits[1], (population, len(start))) / unit
        first[0] = start / unit
        algorithm = DE(pop_size=population, sampling=first, variant="DE/rand/1/bin", CR=0.9)
    else:
        algorithm = CMAES(
            x0=np.clip(start, limits[0], limits[1]) / unit,
            sigma=0.5,
            popsize=population,
            restarts=0,
            normalize=False,
            maxfevals=population * generations,
        )
    best = [np.inf]

    def note(algorithm) -> None:
        best[0] = min(best[0], float(np.min(algorithm.pop.get("F"))))
        history.append(best[0])

    result = minimize(Cost(), algorithm, ("n_gen", generations), seed=seed, callback=note, verbose=False)
    if result.X is None:
        return np.asarray(start, float), float("inf")
    return np.asarray(result.X, float) * unit, float(result.F[0])
