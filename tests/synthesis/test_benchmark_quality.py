# SPDX-License-Identifier: Apache-2.0
"""The benchmark of quality scores: references of another heartbeat are a row of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from licag3d.data.contrast_pairs import PairPool, grow_pairs
from licag3d.phantom.splits import VALIDATION

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import benchmark_quality as benchmark


def test_moving_pairs_are_judged_with_both_references(tmp_path, monkeypatch):
    grow_pairs(tmp_path, 1, views=1, rows=256, split=VALIDATION, kappas=(0.0,), moving_share=1.0)
    grow_pairs(tmp_path, 1, first=1, views=1, rows=256, split=VALIDATION, kappas=(0.0,))
    monkeypatch.setattr(benchmark, "MOVING_KINDS", ("erased",))
    monkeypatch.setattr(benchmark, "STEPS", (1.0,))
    pool = PairPool(tmp_path)
    rows, frames = benchmark.measure_moving(pool)
    assert [row["kind"] for row in rows] == [benchmark.MOVING] * 2 + [benchmark.TWIN] * 2
    assert frames.shape == (4, 3, 256, 256) and len({row["patient"] for row in rows}) == 1
    moving, still = rows[:2], rows[2:]
    # The truth is that of the frame's own moment, whatever the reference shows.
    assert [row["truth"] for row in moving] == [row["truth"] for row in still]
    assert np.array_equal(frames[:2, :2], frames[2:, :2]) and not np.array_equal(frames[0, 2], frames[2, 2])
    assert moving[0]["truth"][0] > moving[1]["truth"][0] + 30
    assert moving[0]["rivals"]["region_ssim"] < still[0]["rivals"]["region_ssim"] - 0.02
    whole = benchmark.groups([*rows, {"kind": "none", "patient": 1}])
    assert len(whole["all"]) == 1 and len(whole[benchmark.MOVING]) == len(whole[benchmark.TWIN]) == 2
    pool.entries = pool.entries[1:]
    assert benchmark.measure_moving(pool)[0] == []
