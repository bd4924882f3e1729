# SPDX-License-Identifier: Apache-2.0
"""Gaps are filled along the image with interpolated depth, and only where that is safe."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from licag3d.inversion.filling import FILLED_CONFIDENCE, FillSettings, fill_gaps
from licag3d.inversion.matching import MatchSettings, match_views

sys.path.insert(0, str(Path(__file__).parent))
from match_cases import chains_of, two_cameras, vessels


def _match():
    cameras = two_cameras()
    chains = tuple(chains_of(vessels(), camera) for camera in cameras)
    return cameras, match_views(cameras, chains, MatchSettings())


def _with_gap(match, rows):
    points = [p.copy() for p in match.points_mm]
    confidence = [c.copy() for c in match.confidence]
    points[0][rows] = np.nan
    confidence[0][rows] = 0
    return replace(match, points_mm=tuple(points), confidence=tuple(confidence))


def test_a_short_gap_comes_back_close_to_what_was_there():
    cameras, match = _match()
    begin = match.chains[0].start[0]
    rows = np.arange(begin + 20, begin + 30)
    filled = fill_gaps(_with_gap(match, rows), cameras, FillSettings())
    off = np.linalg.norm(filled.points_mm[0][rows] - match.points_mm[0][rows], axis=1)
    assert np.nanmax(off) < 1.0
    assert (filled.confidence[0][rows] == FILLED_CONFIDENCE).all()
    # The image is kept to the pixel: only the depth was interpolated.
    pixels, _ = cameras[0].project(filled.points_mm[0][rows])
    np.testing.assert_allclose(pixels, match.chains[0].pixels[rows], atol=1e-6)


def test_what_is_known_stays():
    cameras, match = _match()
    filled = fill_gaps(match, cameras, FillSettings())
    for k in (0, 1):
        known = np.isfinite(match.points_mm[k][:, 0]) & (match.confidence[k] > 0)
        np.testing.assert_array_equal(filled.points_mm[k][known], match.points_mm[k][known])


def test_long_and_steep_gaps_stay_open():
    cameras, match = _match()
    begin = match.chains[0].start[0]
    rows = np.arange(begin + 20, begin + 40)
    gap = _with_gap(match, rows)
    assert np.isnan(fill_gaps(gap, cameras, FillSettings(longest_mm=3.0)).points_mm[0][rows]).all()
    moved = [p.copy() for p in gap.points_mm]
    moved[0][rows[-1] + 1:] += 80 * cameras[0].frame.beam
    steep = replace(gap, points_mm=tuple(moved))
    assert np.isnan(fill_gaps(steep, cameras, FillSettings()).points_mm[0][rows]).all()
