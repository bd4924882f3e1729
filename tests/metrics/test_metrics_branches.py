# SPDX-License-Identifier: Apache-2.0
"""Schaap's overlap, branch recall and bifurcations: brute force, analytic cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licag3d.metrics.bifurcations import bifurcation_metrics, bifurcations
from licag3d.metrics.branches import (
    branch_overlaps,
    branch_recall,
    correspondence,
    forest,
    schaap_metrics,
    schaap_overlap,
)
from licag3d.metrics.centerline import tree_points
from licag3d.structures import Branch, VesselTree


def straight(ident, parent, start, end, radius_mm=1.0, name=""):
    count = max(2, round(np.linalg.norm(np.subtract(end, start)) / 0.5) + 1)
    return Branch(ident, parent, np.linspace(start, end, count), np.full(count, radius_mm), name or f"b{ident}")


def fork(shift=(0.0, 0, 0), radius_mm=1.0):
    """A trunk of 40 mm along x with two side branches along y."""
    branches = (
        straight(0, None, (0, 0, 0), (40, 0, 0), radius_mm),
        straight(1, 0, (15, 0, 0), (15, 20, 0), radius_mm),
        straight(2, 0, (30, 0, 0), (30, 12, 0), radius_mm),
    )
    return VesselTree(tuple(Branch(b.id, b.parent, b.points_lps_mm + shift, b.radius_mm, b.name) for b in branches))


def every_correspondence(n: int, m: int):
    """All monotone connections of n and m points, by recursion."""

    def paths(i, j):
        if (i, j) == (n - 1, m - 1):
            yield [(i, j)]
            return
        for di, dj in ((1, 0), (0, 1), (1, 1)):
            if i + di < n and j + dj < m:
                for rest in paths(i + di, j + dj):
                    yield [(i, j), *rest]

    return paths(0, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_the_correspondence_has_the_least_total_length(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 3, (n, 3)), rng.uniform(0, 3, (m, 3))
    i, j = correspondence(a, b)
    assert set(i) == set(range(n)) and set(j) == set(range(m))  # nobody is left over
    steps = {(int(di), int(dj)) for di, dj in zip(np.diff(i), np.diff(j), strict=True)}
    assert steps <= {(1, 0), (0, 1), (1, 1)}
    least = min(sum(np.linalg.norm(a[x] - b[y]) for x, y in path) for path in every_correspondence(n, m))
    assert np.linalg.norm(a[i] - b[j], axis=1).sum() == pytest.approx(least)


def test_a_line_on_the_reference_is_perfect_and_a_far_one_worthless():
    line, radius = np.linspace((0, 0, 0), (30, 0, 0), 121), np.full(121, 1.0)
    same = schaap_overlap(line, line, radius)
    assert (same.ov, same.of, same.ot, same.ai_mm) == (1, 1, 1, 0)
    inside = schaap_overlap(line + (0, 0.4, 0), line, radius)
    assert (inside.ov, inside.of, inside.ot) == (1, 1, 1) and inside.ai_mm == pytest.approx(0.4)
    outside = schaap_overlap(line + (0, 1.1, 0), line, radius)
    assert (outside.ov, outside.of, outside.ot) == (0, 0, 0) and math.isnan(outside.ai_mm)


def test_of_stops_at_the_first_miss_and_forgives_the_first_5_mm():
    line, radius = np.linspace((0, 0, 0), (40, 0, 0), 161), np.full(161, 1.0)
    late = line.copy()
    late[line[:, 0] < 3, 1] = 8  # begins 3 mm late: forgiven
    assert schaap_overlap(late, line, radius).of == 1
    bump = line.copy()
    bump[(line[:, 0] > 20) & (line[:, 0] < 30), 1] = 6
    found = schaap_overlap(bump, line, radius)
    assert found.of == pytest.approx(0.5, abs=0.03) and found.ov == pytest.approx(0.75, abs=0.03)


def test_ot_looks_at_the_wide_part_only():
    line = np.linspace((0, 0, 0), (40, 0, 0), 161)
    radius = np.where(line[:, 0] <= 20, 1.0, 0.5)
    half = schaap_overlap(line[line[:, 0] <= 20], line, radius)
    assert half.ot == pytest.approx(1, abs=0.01) and half.ov == pytest.approx(2 / 3, abs=0.02)
    assert math.isnan(schaap_overlap(line, line, np.full(161, 0.5)).ot)


def test_branches_of_the_exact_tree_and_of_one_without_a_branch():
    truth = fork()
    assert schaap_metrics(truth, truth) == {"schaap_ov": 1, "schaap_of": 1, "schaap_ot": 1, "schaap_ai_mm": 0}
    cut = VesselTree(truth.branches[:2])
    found = branch_overlaps(cut, truth)
    assert found[0].ov == found[1].ov == 1 and found[2].ov < 0.2
    assert branch_recall(tree_points(cut).points_lps_mm, truth)["branch_recall_1mm"] == pytest.approx(2 / 3)


def test_other_names_ids_and_cuts_of_the_prediction_do_not_matter():
    truth = fork()
    # The first part of the trunk with the first side branch as its continuation; the rest of the trunk hangs on it.
    bend = np.concatenate((np.linspace((0, 0, 0), (15, 0, 0), 31), np.linspace((15, 0.5, 0), (15, 20, 0), 40)))
    pred = VesselTree(
        (
            Branch(7, None, bend, np.full(71, 2.0)),
            straight(3, 7, (15, 0, 0), (40, 0, 0)),
            straight(9, 3, (30, 0, 0), (30, 12, 0)),
        )
    )
    assert schaap_metrics(pred, truth)["schaap_ov"] == pytest.approx(1)
    np.testing.assert_allclose(sorted(bifurcations(pred)[:, 0]), [15, 30], atol=0.3)


def test_a_gap_costs_and_a_detour_is_false():
    truth = VesselTree((straight(0, None, (0, 0, 0), (40, 0, 0)),))
    broken = VesselTree((straight(0, None, (0, 0, 0), (18, 0, 0)), straight(1, None, (22, 0, 0), (40, 0, 0))))
    assert schaap_metrics(broken, truth)["schaap_ov"] == pytest.approx(2 / 3, abs=0.05)  # one piece of two
    corner = np.concatenate(
        [
            np.linspace(a, b, 40)
            for a, b in itertools.pairwise([(0, 0, 0), (10, 0, 0), (10, 15, 0), (30, 15, 0), (30, 0, 0), (40, 0, 0)])
        ]
    )
    detour = VesselTree((Branch(0, None, corner, np.ones(len(corner))),))
    assert schaap_metrics(detour, truth)["schaap_ov"] < 0.45


def test_paths_through_the_prediction_run_over_the_common_ancestor():
    nodes = forest(fork())
    ends = [int(np.argmin(np.linalg.norm(nodes.points_lps_mm - p, axis=1))) for p in ((15, 20, 0), (30, 12, 0))]
    path = nodes.points_lps_mm[nodes.path(*ends)]
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    assert length == pytest.approx(20 + 15 + 12, abs=0.5)


def test_a_branch_hidden_in_the_tolerance_of_its_parent_is_not_counted():
    truth = VesselTree((straight(0, None, (0, 0, 0), (40, 0, 0)), straight(1, 0, (10, 0, 0), (30, 0.9, 0))))
    pred = tree_points(VesselTree(truth.branches[:1])).points_lps_mm
    assert branch_recall(pred, truth)["branch_recall_1mm"] == 1  # only the trunk is judged


def test_bifurcations_of_a_fork_a_trifurcation_and_a_continuation():
    assert len(bifurcations(fork())) == 2
    three = VesselTree(
        (
            straight(0, None, (0, 0, 0), (10, 0, 0)),
            straight(1, 0, (10, 0, 0), (20, 5, 0)),
            straight(2, 0, (10, 0, 0), (20, -5, 0)),
            straight(3, 0, (10, 0, 0), (20, 0, 5)),
        )
    )
    np.testing.assert_allclose(bifurcations(three), [(10, 0, 0)], atol=0.3)
    chain = VesselTree((straight(0, None, (0, 0, 0), (10, 0, 0)), straight(1, 0, (10, 0, 0), (20, 5, 0))))
    assert len(bifurcations(chain)) == 0 and len(bifurcations(VesselTree())) == 0


def brute_pairs(pred, truth, limit):
    """Most pairs within the limit, then the least total, by trying every assignment."""
    best = (0, 0.0)
    small, large = (pred, truth) if len(pred) <= len(truth) else (truth, pred)
    for chosen in itertools.permutations(range(len(large)), len(small)):
        d = [float(np.linalg.norm(small[k] - large[c])) for k, c in enumerate(chosen)]
        kept = [x for x in d if x <= limit]
        best = max(best, (len(kept), -sum(kept)))
    return best[0], -best[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_bifurcation_scores_agree_with_every_assignment_tried(seed, n, m):
    rng = np.random.default_rng(seed)
    pred, truth = rng.uniform(0, 6, (n, 3)), rng.uniform(0, 6, (m, 3))
    scores = bifurcation_metrics(pred, truth)
    hits, _ = brute_pairs(pred, truth, 2.0)
    assert scores["bifurcation_precision_2mm"] == pytest.approx(hits / n)
    assert scores["bifurcation_recall_2mm"] == pytest.approx(hits / m)
    count, total = brute_pairs(pred, truth, 5.0)
    if count:
        assert scores["bifurcation_error_mm"] == pytest.approx(total / count)
    else:
        assert math.isnan(scores["bifurcation_error_mm"])


def test_empty_predictions_and_truths_without_bifurcation():
    none = np.zeros((0, 3))
    assert bifurcation_metrics(none, np.ones((2, 3)))["bifurcation_recall_2mm"] == 0
    assert math.isnan(bifurcation_metrics(np.ones((2, 3)), none)["bifurcation_f1_2mm"])
    assert schaap_metrics(VesselTree(), fork())["schaap_ov"] == 0
    assert branch_recall(np.zeros((0, 3)), fork())["branch_recall_2mm"] == 0
