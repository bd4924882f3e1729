# SPDX-License-Identifier: Apache-2.0
"""The best translation and similarity: known motions are found, bounds and order hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from licag3d.metrics.alignment import ROTATION_LIMIT_DEG, SCALE_RANGE, Similarity, best_similarity, best_translation
from licag3d.metrics.centerline import CenterlinePoints, centerline_metrics, tree_points
from licag3d.phantom.anatomy import sample_tree


def f1(pred: np.ndarray, truth: np.ndarray) -> float:
    return centerline_metrics(CenterlinePoints(pred, np.ones(len(pred))), CenterlinePoints(truth, np.ones(len(truth))))[
        "centerline_f1_1mm"
    ]


def turned(points: np.ndarray, scale: float, rotation_deg: float, shift, axis=(0.3, -0.8, 0.5)) -> np.ndarray:
    axis = np.asarray(axis) / np.linalg.norm(axis)
    rotation = Rotation.from_rotvec(np.deg2rad(rotation_deg) * axis).as_matrix()
    centre = points.mean(0)
    return scale * (points - centre) @ rotation.T + centre + shift


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return tree_points(sample_tree(5, "lca"), 0.5).points_lps_mm


def test_a_large_translation_is_found(truth):
    moved = truth + (48.0, -35.5, 21.3)
    found = best_translation(moved, truth)
    assert f1(found.apply(moved), truth) == 1
    np.testing.assert_allclose(found.apply(moved), truth, atol=0.6)


def test_a_similarity_is_found_among_ghosts_and_gaps(truth):
    rng = np.random.default_rng(1)
    seen = truth[np.arange(len(truth)) % 300 < 200]
    ghosts = rng.uniform(truth.min(0), truth.max(0), (len(truth) // 5, 3))
    clean = np.concatenate((seen + rng.normal(0, 0.25, seen.shape), ghosts))
    moved = turned(clean, 0.91, 5.0, (-30.0, 14.0, 22.0))
    found = best_similarity(moved, truth)
    assert found.scale == pytest.approx(1 / 0.91, abs=0.01)
    assert found.rotation_deg == pytest.approx(5.0, abs=1.0)
    assert f1(found.apply(moved), truth) > f1(clean, truth) - 0.02
    assert f1(best_translation(moved, truth).apply(moved), truth) < f1(found.apply(moved), truth) - 0.2


def test_scores_never_fall_with_more_freedom(truth):
    rng = np.random.default_rng(3)
    for seed in range(2):
        other = tree_points(sample_tree(20 + seed, "lca"), 0.5).points_lps_mm[::2] + rng.normal(0, 3, 3)
        translation = best_translation(other, truth)
        similarity = best_similarity(other, truth, translation)
        scores = [f1(other, truth), f1(translation.apply(other), truth), f1(similarity.apply(other), truth)]
        assert scores[0] <= scores[1] + 1e-12 and scores[1] <= scores[2] + 1e-12


def test_bounds_hold_and_a_reflection_is_not_undone(truth):
    mirrored = truth * (-1, 1, 1)
    found = best_similarity(mirrored, truth)
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    assert found.rotation_deg <= ROTATION_LIMIT_DEG + 1e-6
    assert f1(found.apply(mirrored), truth) < 0.6
    far = best_similarity(turned(truth, 0.5, 0, (0, 0, 0)), truth)  # would need a scale of 2
    assert SCALE_RANGE[0] <= far.scale <= SCALE_RANGE[1]


def test_beats_a_dense_search_over_translations(truth):
    """A bent tree has no exact answer: compare with exhaustive steps of 1.5 mm."""
    thin = truth[::3]
    bent = thin + 4 * np.sin(thin[:, [1, 2, 0]] / 18) + (3.0, -2.0, 1.0)
    grid = np.stack(np.meshgrid(*[np.arange(-9, 9.1, 1.5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    exhaustive = max(f1(bent + shift, thin) for shift in grid)
    assert 0.15 < exhaustive < 0.9
    assert f1(best_translation(bent, thin).apply(bent), thin) >= exhaustive


def test_is_deterministic_and_leaves_an_exact_prediction_alone(truth):
    moved = turned(truth, 1.1, 3, (5, 5, 5))
    one, two = (best_similarity(moved[::3], truth[::3]) for _ in range(2))
    assert one.scale == two.scale and np.array_equal(one.translation_mm, two.translation_mm)
    exact = best_similarity(truth, truth)
    np.testing.assert_array_equal(exact.apply(truth), Similarity(pivot_mm=exact.pivot_mm).apply(truth))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_tiny_predictions_do_not_break_it(truth, count):
    found = best_similarity(truth[:count], truth, best_translation(truth[:count], truth))
    assert np.isfinite(found.apply(truth[:count])).all()
