# SPDX-License-Identifier: Apache-2.0
"""Contrast between epipolar planes: equal for the right cameras, and enough to lead the search by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from match_cases import simulated

from licag3d.inversion.camera_search import SearchSettings, search_cameras
from licag3d.inversion.consistency import contrast_of, disagreement
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.structures import VesselEvidence


def evidence(line_integral: np.ndarray) -> VesselEvidence:
    zero = np.zeros_like(line_integral)
    return VesselEvidence(zero, line_integral, zero, zero, line_integral > 0)


def contrasts(case):
    return tuple(contrast_of(evidence(p)) for p in case.line_integrals)


def test_mass_sums_to_one_on_few_pixels_with_contrast():
    case, _ = simulated("rca")
    found = contrasts(case)[0]
    assert found.mass.sum() == pytest.approx(1.0)
    assert 1000 < len(found.mass) < 6000
    col, row = found.pixels.astype(int).T
    assert (case.line_integrals[0][row, col] > 0).all()
    assert contrast_of(evidence(np.zeros((8, 9), np.float32))) is None


@pytest.mark.parametrize("step", [2, 5, 7, 14])
def test_thinning_keeps_its_share_of_every_row_and_column(step):
    side = int(np.sqrt(2500 * step)) + 2
    found = contrast_of(evidence(np.ones((side, side), np.float32)))
    col, row = found.pixels.astype(int).T
    for at in (row, col):
        count = np.bincount(at, minlength=side)
        assert 0.5 * side / step < count.min() and count.max() < 2 * side / step


def test_least_disagreement_is_near_the_true_offset_across_the_planes():
    case, _ = simulated("rca")
    first, second = case.true_cameras
    across = epipolar_pair(first, second).across
    shifts = np.arange(-6, 6.1, 0.5)
    cost = [
        disagreement((first, second.with_offset(np.asarray(second.offset_lps_mm) + s * across)), contrasts(case))
        for s in shifts
    ]
    assert abs(shifts[int(np.argmin(cost))]) <= 1.0
    assert min(cost) < 0.2 * max(cost)
    assert disagreement((first, first), (contrasts(case)[0],) * 2) == 0.0


def test_search_follows_the_contrast_where_the_centrelines_mislead():
    case, chains = simulated("rca")
    # Radii at random and half of the second view missing: the price of the paths alone is blunt.
    rng = np.random.default_rng(0)
    broken = replace(chains[1], radius_mm=chains[1].radius_mm * np.exp(rng.normal(0, 0.8, len(chains[1].radius_mm))))
    settings = SearchSettings(starts=1, generations=6, population=8, coarse=(16, 8), angle_sigma_deg=0.0)
    start = (case.true_cameras[0], case.true_cameras[1].with_offset(np.zeros(3)))

    def miss(contrast) -> float:
        found = search_cameras(start, (chains[0], broken), settings, contrast=contrast).cameras
        points = case.tree.branches[0].points_lps_mm
        pixels = [camera.project(points)[0] for camera in case.true_cameras]
        pair = epipolar_pair(*found)
        theta = [epipolar_angles(pair, camera, p)[0] for camera, p in zip(found, pixels, strict=True)]
        return 750.0 * float(np.abs(theta[0] - theta[1]).mean())

    assert miss(contrasts(case)) < min(0.6, 0.7 * miss((None, None)))
