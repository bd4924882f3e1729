# SPDX-License-Identifier: Apache-2.0
"""Distances in feature space: closed forms, definitions written out as loops, and what must not pass unseen."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from licag3d.metrics.feature_space import (
    compare_features,
    frechet_distance,
    kernel_inception_distance,
    mmd_rbf,
    neighbour_scores,
)


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((80, 6)), 0.7 * rng.standard_normal((60, 6)) + 0.4


def test_frechet_has_the_closed_form_of_two_gaussians():
    # Samples whose mean and covariance are exactly those asked for.
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((50, 4))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T)).T)
    scales_a, scales_b, shift = np.array((1.0, 2, 3, 0.5)), np.array((2.0, 2, 1, 1)), np.array((1.0, -2, 0, 0.5))
    want = float(shift @ shift + ((scales_a - scales_b) ** 2).sum())
    assert frechet_distance(white * scales_a, white * scales_b + shift) == pytest.approx(want, rel=1e-9)


def test_frechet_agrees_with_the_matrix_square_root(sets):
    a, b = sets
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_of_a_set_with_itself_is_zero_even_with_fewer_vectors_than_dimensions():
    a = np.random.default_rng(1).standard_normal((7, 30))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a + 1.0) == pytest.approx(30.0, rel=1e-9)


def test_kid_is_the_mean_over_pairs_of_the_polynomial_kernel(sets):
    a, b = sets[0][:9], sets[1][:7]

    def kernel(x, y):
        return (x @ y / 6 + 1) ** 3

    within = [np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    want = within[0] + within[1] - 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_inception_distance(a, b) == pytest.approx(want, rel=1e-10)


def test_kid_is_unbiased_where_the_frechet_distance_is_not():
    rng = np.random.default_rng(5)
    pairs = [(rng.standard_normal((30, 5)), rng.standard_normal((30, 5))) for _ in range(60)]
    kid = np.array([kernel_inception_distance(a, b) for a, b in pairs])
    assert abs(kid.mean()) < 3 * kid.std() / np.sqrt(len(kid)) and (kid < 0).any()
    assert min(frechet_distance(a, b) for a, b in pairs) > 0.2


def test_mmd_sees_a_shift_and_its_p_value_is_uniform_without_one(sets):
    a, b = sets
    value, p = mmd_rbf(a, b, permutations=99)
    assert value > 0 and p == pytest.approx(0.01)
    rng = np.random.default_rng(7)
    p_values = [
        mmd_rbf(rng.standard_normal((20, 3)), rng.standard_normal((20, 3)), permutations=39, seed=k)[1]
        for k in range(80)
    ]
    assert 0.35 < np.mean(p_values) < 0.65 and np.mean(np.array(p_values) <= 0.1) < 0.22


def test_mmd_takes_the_median_distance_as_bandwidth(sets):
    a, b = sets
    both = np.concatenate(sets)
    distances = [np.linalg.norm(both[i] - both[j]) for i in range(len(both)) for j in range(i)]
    assert mmd_rbf(a, b, permutations=0)[0] == pytest.approx(
        mmd_rbf(a, b, permutations=0, bandwidth=float(np.median(distances)))[0], rel=1e-6
    )


def test_neighbour_scores_are_their_definitions(sets):
    real, other, k = sets[0][:25], sets[1][:20], 3

    def ball(x, i):
        return sorted(np.linalg.norm(x[i] - y) for j, y in enumerate(x) if j != i)[k - 1]

    real_ball = [ball(real, i) for i in range(len(real))]
    other_ball = [ball(other, j) for j in range(len(other))]
    near = np.array([[np.linalg.norm(x - y) for y in other] for x in real])
    scores = neighbour_scores(real, other, k=k)
    assert scores.precision == np.mean([(near[:, j] <= real_ball).any() for j in range(len(other))])
    assert scores.recall == np.mean([(near[i] <= other_ball).any() for i in range(len(real))])
    assert scores.density == pytest.approx(
        sum((near[:, j] <= real_ball).sum() for j in range(len(other))) / (k * len(other))
    )
    assert scores.coverage == np.mean([(near[i] <= real_ball[i]).any() for i in range(len(real))])


def test_neighbour_scores_of_equal_sets_are_one_and_of_distant_sets_zero(sets):
    a = sets[0]
    same, far = neighbour_scores(a, a), neighbour_scores(a, a + 100)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_a_collapsed_set_is_precise_but_does_not_cover(sets):
    real = sets[0]
    collapsed = real[:1] + 1e-3 * np.random.default_rng(0).standard_normal((60, 6))
    scores = neighbour_scores(real, collapsed)
    assert scores.precision == 1 and scores.recall < 0.1 and scores.coverage < 0.3


def test_compare_names_the_encoder_and_knows_its_floor():
    rng = np.random.default_rng(2)
    real = rng.standard_normal((120, 40))
    same = compare_features(real, rng.standard_normal((100, 40)), encoder="vit-0abc", draws=20)
    moved = compare_features(real, rng.standard_normal((100, 40)) + 1.0, encoder="vit-0abc", draws=20)
    assert set(same) == {
        f"{name}_vit-0abc" for name in ("fd", "kid", "mmd", "mmd_p", "precision", "recall", "density", "coverage")
    }
    for name in ("fd", "kid", "mmd"):
        one, two = same[f"{name}_vit-0abc"], moved[f"{name}_vit-0abc"]
        assert one.low <= one.value <= one.high
        assert two.value > two.floor and two.value > one.high
    assert same["mmd_p_vit-0abc"].value > 0.02 and moved["mmd_p_vit-0abc"].value < 0.01
    assert compare_features(real, real, encoder="e", draws=5) == compare_features(real, real, encoder="e", draws=5)


@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "n >= 2"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "n >= 2"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "not finite"),
    ],
)
def test_unusable_sets_are_refused(a, b, message):
    for measure in (frechet_distance, kernel_inception_distance, mmd_rbf, neighbour_scores):
        with pytest.raises(ValueError, match=message):
            measure(a, b)


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="at least 20"):
        compare_features(np.zeros((30, 3)), np.zeros((12, 3)), encoder="e")
    with pytest.raises(ValueError, match="larger than k"):
        neighbour_scores(np.zeros((5, 3)), np.zeros((5, 3)), k=5)
