# SPDX-License-Identifier: Apache-2.0
"""The second search, for hearts that moved between the views, counts only where it saves enough."""

from __future__ import annotations

import numpy as np
import pytest
from match_cases import chains_of, two_cameras, vessels

from licag3d.inversion import camera_search
from licag3d.inversion.camera_search import SearchSettings, search_cameras
from licag3d.inversion.epipolar import epipolar_pair

OFF_MM = (0.0, 0.0, 6.0)


def offset_mm(monkeypatch, gain: float, starts: int) -> tuple[np.ndarray, int]:
    """Offset of the second view where every search stays at its start, 6 mm off, and only the one after all of them
    finds the truth; and how many searches there were."""
    cameras = two_cameras()
    chains = tuple(chains_of(vessels(), camera) for camera in cameras)
    start = (cameras[0], cameras[1].with_offset(OFF_MM))
    frame = epipolar_pair(*start)
    truth = -np.stack([frame.across, frame.toward]) @ OFF_MM
    calls = []

    def evolve(method, costs, limits, begin, *rest, **more):
        calls.append(method)
        point = truth if len(calls) == 2 + starts else np.asarray(begin, float)
        return point, float(costs(point[None])[0])

    monkeypatch.setattr(camera_search, "evolve", evolve)
    settings = SearchSettings(starts=starts, angle_sigma_deg=0.0, moved_gain=gain)
    return np.array(search_cameras(start, chains, settings).cameras[1].offset_lps_mm), len(calls)


@pytest.mark.parametrize(("gain", "taken"), [(5.0, True), (1e6, False)])
def test_the_second_search_counts_where_it_saves_enough(monkeypatch, gain, taken):
    offset, calls = offset_mm(monkeypatch, gain, starts=2)
    assert calls == 4
    assert np.allclose(offset, OFF_MM) is not taken
    assert np.linalg.norm(offset) < 2.0 or not taken


@pytest.mark.parametrize(("gain", "starts", "calls"), [(np.inf, 2, 3), (5.0, 1, 2)])
def test_it_can_be_left_out_and_one_start_has_none(monkeypatch, gain, starts, calls):
    offset, made = offset_mm(monkeypatch, gain, starts)
    assert made == calls
    assert np.allclose(offset, OFF_MM)
