# SPDX-License-Identifier: Apache-2.0
"""Cine runs: filling and motion over the frames, noise that is new in each, and the truth of every frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.io.keyframe import find_key_frame
from licag3d.phantom.cine import simulate_cine
from licag3d.phantom.filling import opacity_at
from licag3d.phantom.motion import move_tree
from licag3d.phantom.simulate_case import simulate_case


@pytest.fixture(scope="module")
def case():
    return simulate_case(7, "rca", background="full", rows=96, cols=96, held_out=0)


@pytest.fixture(scope="module")
def cine(case):
    return simulate_cine(case, 0, frames_per_s=4, respiration_mm=6)


def test_contrast_flows_in_fills_and_washes_out(cine):
    assert cine.filling[0] < 0.02 and cine.filling[-1] < 0.3 < 0.7 < cine.filling.max()
    filled = np.flatnonzero(cine.filled)
    assert 0 < filled[0] and filled[-1] < len(cine.frames) - 1 and np.all(np.diff(filled) == 1)
    assert cine.time_s[0] < 0 and np.allclose(np.diff(cine.time_s), 0.25)
    assert cine.frames.dtype == np.uint8 and len(cine.frames) == len(cine.phase) == len(cine.points_lps_mm)


def test_the_key_frame_lies_in_the_filled_interval(case):
    plain = replace(case, patient=replace(case.patient, surroundings=None))
    run = simulate_cine(plain, 1, frames_per_s=5)
    key = find_key_frame(lambda numbers: (run.frames[k].astype(np.float32) / 255 for k in numbers), len(run.frames))
    assert run.filled[key.frame]
    darkness = -run.frames.astype(float).mean((1, 2))  # the vessels move, so the whole picture is summed up
    assert np.corrcoef(darkness, run.filling)[0, 1] > 0.9


def test_every_frame_has_its_true_tree(case, cine):
    assert cine.phase.min() >= 0 and cine.phase.max() < 1 and np.ptp(cine.phase) > 0.4
    assert 0 <= cine.respiration_mm.min() and 4 < cine.respiration_mm.max() <= 6
    for k in (0, len(cine.frames) // 2):
        expected = move_tree(case.patient.tree, cine.phase[k], cine.respiration_mm[k], motion=case.patient.motion)
        for one, two in zip(cine.tree_of(k).branches, expected.branches, strict=True):
            assert one.name == two.name
            np.testing.assert_allclose(one.points_lps_mm, two.points_lps_mm, atol=1e-3)
    best = int(cine.filling.argmax())
    assert opacity_at(case.patient.tree, 1.0, case.patient.filling)[0].shape == cine.tree.branches[0].radius_mm.shape
    assert cine.filled[best]


def test_noise_is_new_in_every_frame_and_the_run_repeats_bit_for_bit(case, cine):
    short = {"frames_per_s": 10, "seconds": 0.4}
    first, again = (simulate_cine(case, 0, **short) for _ in range(2))
    assert np.array_equal(first.frames, again.frames)
    a, b = first.frames[:2].astype(float)
    assert (a != b).mean() > 0.3  # no vessel is filled yet: only noise and a little motion
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.8  # the chest is the same
    deep = simulate_cine(case, 0, bits=12, **short)
    assert deep.frames.dtype == np.uint16 and 255 < deep.frames.max() <= 4095


@pytest.mark.parametrize(
    "wrong",
    [
        {"view": 2},
        {"view": -1},
        {"frames_per_s": 0},
        {"frames_per_s": float("nan")},
        {"respiration_mm": -1},
        {"seconds": 0},
    ],
)
def test_runs_out_of_range_are_refused(case, wrong):
    with pytest.raises(InputError, match="give|has views"):
        simulate_cine(case, **({"view": 0} | wrong))
    with pytest.raises(InputError, match="no patient"):
        simulate_cine(replace(case, patient=None), 0)
