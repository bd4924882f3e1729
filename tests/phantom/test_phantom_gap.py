# SPDX-License-Identifier: Apache-2.0
"""The measure of what tells phantom frames from real ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter


@pytest.fixture(scope="module")
def gap():
    path = Path(__file__).parents[2] / "tools" / "phantom_gap.py"
    spec = importlib.util.spec_from_file_location("phantom_gap", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["phantom_gap"] = module
    spec.loader.exec_module(module)
    return module


def textures(count: int, blur_px: float, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [0.5 + 0.03 * gaussian_filter(rng.normal(size=(64, 64)), blur_px) for _ in range(count)]


def test_a_real_difference_is_found_on_frames_never_seen_and_none_where_there_is_none(gap):
    owner = np.repeat(np.arange(12), 5)
    real = owner < 4
    for blur_px, low, high in ((0.0, 0.2, 0.8), (0.8, 0.98, 1.0)):
        crops = textures(20, blur_px, 1) + textures(40, 0.0, 2)
        numbers = np.array([gap.numbers_of(crop) for crop in crops])
        assert np.isfinite(numbers).all() and numbers.shape == (60, len(gap.NAMES))
        assert low <= gap.judged(numbers, real, owner) <= high


def test_a_frame_that_was_left_out_is_not_learnt_by_heart(gap):
    # Every frame has a mark of its own and nothing tells real from phantom.
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(16), 6)
    marks = np.eye(16)[owner] + 0.01 * rng.normal(size=(96, 16))
    real = owner < 8
    assert gap.area_under(gap.fitted(marks, real)(marks), real) > 0.99
    assert gap.judged(marks, real, owner) < 0.7


def test_crops_keep_to_the_field_and_changes_to_the_frame(gap):
    valid = np.zeros((200, 200), bool)
    valid[:, :128] = True
    grey = np.full((200, 200), 0.5, np.float32)
    vessels = np.zeros((200, 200), bool)
    vessels[90:100] = True
    grey[vessels] = 0.3
    frame = gap.Frame(grey, valid, vessels)
    assert len(gap.crops_of(frame, 64)) == 3
    rng = np.random.default_rng(0)
    changes = gap.changes()
    assert all(change(frame, rng).shape == grey.shape for change in changes.values())
    fainter = changes["vessels a quarter fainter"](frame, rng)
    assert fainter[95, 64] == pytest.approx(0.35, abs=0.01) and fainter[50, 64] == pytest.approx(0.5)


def test_training_samples_can_stand_in_for_frames(gap, tmp_path):
    from licag3d.data.phantom_frames import grow_pool

    grow_pool(tmp_path, 1, views=1, rows=160)
    frames = gap.training_samples(tmp_path, 2)
    assert len(frames) == 2 and all(frame.grey.shape == (320, 320) and frame.valid.all() for frame in frames)
    assert sum(len(gap.crops_of(frame, 128)) for frame in frames) == 8
