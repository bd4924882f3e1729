# SPDX-License-Identifier: Apache-2.0
"""Centreline metrics: analytic cases and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licag3d.metrics.centerline import CenterlinePoints, centerline_metrics, tree_points
from licag3d.structures import Branch, VesselTree


def line(length_mm: float, *, shift=(0.0, 0.0, 0.0), radius_mm: float = 1.0, count: int = 41) -> Branch:
    points = np.zeros((count, 3))
    points[:, 0] = np.linspace(0, length_mm, count)
    return Branch(0, None, points + shift, np.full(count, radius_mm))


def points_of(*branches: Branch) -> CenterlinePoints:
    return tree_points(VesselTree(tuple(branches)))


def brute_force(pred: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    distance = np.linalg.norm(pred[:, None] - truth[None], axis=2)
    forward, backward = distance.min(1), distance.min(0)
    result = {}
    for tolerance in (1, 2):
        precision, recall = np.mean(forward <= tolerance), np.mean(backward <= tolerance)
        result[f"centerline_precision_{tolerance}mm"] = precision
        result[f"centerline_recall_{tolerance}mm"] = recall
        result[f"centerline_f1_{tolerance}mm"] = (
            2 * precision * recall / (precision + recall) if precision + recall else 0
        )
    result["chamfer_mm"] = (forward.mean() + backward.mean()) / 2
    result["centerline_hd95_mm"] = np.percentile(np.concatenate((forward, backward)), 95)
    return result


def test_points_stand_for_equal_lengths_whatever_the_sampling():
    uneven = np.array([[0.0, 0, 0], [0.1, 0, 0], [7, 0, 0], [10, 0, 0]])
    points = points_of(Branch(0, None, uneven, np.array([1.0, 1, 2, 2])))
    assert len(points.points_lps_mm) == 40
    np.testing.assert_allclose(np.diff(points.points_lps_mm[:, 0]), 0.25)
    assert points.points_lps_mm[0, 0] == pytest.approx(0.125)


def test_a_perfect_prediction_scores_one_and_zero():
    truth = points_of(line(30))
    scores = centerline_metrics(truth, truth)
    assert scores["centerline_f1_1mm"] == scores["centerline_f1_2mm"] == 1
    assert scores["chamfer_mm"] == scores["centerline_hd95_mm"] == scores["radius_mae_mm"] == 0


@pytest.mark.parametrize(("shift_mm", "f1_1", "f1_2"), [(0.9, 1, 1), (1.1, 0, 1), (2.1, 0, 0)])
def test_a_parallel_line_is_inside_or_outside_the_tolerance(shift_mm, f1_1, f1_2):
    scores = centerline_metrics(points_of(line(40, shift=(0, shift_mm, 0))), points_of(line(40)))
    assert (scores["centerline_f1_1mm"], scores["centerline_f1_2mm"]) == (f1_1, f1_2)
    assert scores["chamfer_mm"] == pytest.approx(shift_mm)


def test_half_of_the_truth_plus_as_much_ghost_has_precision_and_recall_one_half():
    ghost = line(20, shift=(0, 50, 0))
    scores = centerline_metrics(points_of(line(20), ghost), points_of(line(40)))
    assert scores["centerline_precision_1mm"] == pytest.approx(0.5)
    assert scores["centerline_recall_1mm"] == pytest.approx(21 / 40, abs=0.01)  # 1 mm past the end still counts
    precision, recall = scores["centerline_precision_1mm"], scores["centerline_recall_1mm"]
    assert scores["centerline_f1_1mm"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_radius_error_counts_matched_points_only():
    pred = points_of(line(20, radius_mm=1.3), line(20, shift=(0, 30, 0), radius_mm=9.0))
    assert centerline_metrics(pred, points_of(line(20, radius_mm=1.0)))["radius_mae_mm"] == pytest.approx(0.3)


def test_an_empty_prediction_scores_zero_and_has_no_distance():
    scores = centerline_metrics(points_of(), points_of(line(10)))
    assert scores["centerline_f1_1mm"] == scores["centerline_recall_2mm"] == 0
    assert math.isnan(scores["chamfer_mm"]) and math.isnan(scores["radius_mae_mm"])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60))
def test_agrees_with_brute_force(seed, n, m):
    rng = np.random.default_rng(seed)
    pred, truth = rng.uniform(0, 6, (n, 3)), rng.uniform(0, 6, (m, 3))
    scores = centerline_metrics(CenterlinePoints(pred, np.ones(n)), CenterlinePoints(truth, np.ones(m)))
    for name, value in brute_force(pred, truth).items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name
