# SPDX-License-Identifier: Apache-2.0
"""Rows of the sensitivity card do what their names say, and nothing where they should not."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.metrics.feature_space.degradations import Scene, degradations, degrade, other_tree


@pytest.fixture(scope="module")
def scene() -> Scene:
    rng = np.random.default_rng(0)
    without = (0.6 + 0.1 * rng.random((96, 128))).astype(np.float32)
    mask = np.zeros((96, 128), bool)
    mask[40:44], mask[:, 60:63] = True, True
    return Scene(np.where(mask, 0.5 * without, without), without, mask)


@pytest.mark.parametrize("name", degradations())
def test_every_row_changes_the_frame_and_stays_in_range(name, scene):
    out = degrade(name, scene, np.random.default_rng(1))
    assert out.shape == scene.image.shape and out.dtype == np.float32
    assert out.min() >= 0 and out.max() <= 1 and np.abs(out - scene.image).max() > 1e-3


def test_erasing_takes_the_share_asked_for_and_leaves_the_background(scene):
    for name, share in (
        ("vessels erased, 25 %", 0.25),
        ("vessels erased, 50 %", 0.5),
        ("gaps in 30 % of the length", 0.3),
    ):
        shares = []
        for seed in range(20):
            out = degrade(name, scene, np.random.default_rng(seed))
            assert np.array_equal(out[~scene.mask], scene.without[~scene.mask])
            shares.append((out[scene.mask] > scene.image[scene.mask] + 0.1).mean())
        assert np.mean(shares) == pytest.approx(share, abs=0.1)
    assert np.array_equal(degrade("vessels erased, all", scene, None), scene.without)


def test_moved_vessels_keep_their_depth_and_the_background(scene):
    out = degrade("vessels moved 3 px", scene, None)
    moved = np.roll(scene.mask, (3, -3), axis=(0, 1))
    assert np.allclose(out[~moved], scene.without[~moved], atol=1e-6)
    assert np.allclose(out[moved], 0.5 * scene.without[moved], atol=1e-6)


def test_another_tree_on_this_background(scene):
    donor = Scene(np.ascontiguousarray(scene.image[::-1]), np.ascontiguousarray(scene.without[::-1]), scene.mask[::-1])
    out = other_tree(scene, donor)
    assert np.allclose(out[donor.mask], 0.5 * scene.without[donor.mask], atol=1e-6)
    assert np.allclose(out[~donor.mask], scene.without[~donor.mask], atol=1e-6)
