# SPDX-License-Identifier: Apache-2.0
"""Trees of the phantom: statistics against the tables, the branching rule, clear courses, reproducibility."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
import pytest
from scipy.spatial import cKDTree

from licag3d.errors import InputError
from licag3d.phantom import plans
from licag3d.phantom.anatomy import SAMPLE_MM, junction_mm, sample_patient, sample_tree
from licag3d.structures import VesselTree

SEEDS = range(40)


@cache
def tree_of(seed: int, artery: str) -> VesselTree:
    return sample_tree(seed, artery)


def all_trees() -> list[tuple[int, str, VesselTree]]:
    return [(seed, artery, tree_of(seed, artery)) for seed in SEEDS for artery in ("rca", "lca")]


def arc(points: np.ndarray) -> np.ndarray:
    return np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))))


@cache
def measured() -> dict[str, dict[str, list[float]]]:
    """Length and proximal diameter (scaled to men) by branch, right-dominant patients."""
    result: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed, _, tree in all_trees():
        patient = sample_patient(seed)
        if patient.dominance != "right":
            continue
        factor = plans.WOMEN_DIAMETER_FACTOR if patient.sex == "female" else 1.0
        for branch in tree.branches:
            result[branch.name]["length"].append(arc(branch.points_lps_mm)[-1])
            result[branch.name]["diameter"].append(2 * branch.radius_mm[0] / factor)
            result[branch.name]["distal"].append(2 * branch.radius_mm[int(0.75 * len(branch.radius_mm))] / factor)
    return result


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("RCA", 118, 142),
        ("LM", 5, 20),
        ("LAD", 100, 130),
        ("LCx", 60, 90),
        ("D1", 50, 70),
        ("OM1", 50, 70),
        ("R-PDA", 40, 55),
    ],
)
def test_lengths_lie_in_the_tables(name, low, high):
    lengths = measured()[name]["length"]
    assert min(lengths) >= low - 1.5 and max(lengths) <= high + 1.5
    assert np.std(lengths) > 0.1 * (high - low)  # patients differ


@pytest.mark.parametrize(
    ("name", "mean", "sd"), [("LM", 4.5, 0.5), ("LAD", 3.7, 0.4), ("LCx", 3.4, 0.5), ("RCA", 3.9, 0.6)]
)
def test_proximal_diameters_agree_with_dodge_1992(name, mean, sd):
    diameters = np.array(measured()[name]["diameter"])
    assert abs(diameters.mean() - mean) < sd
    assert 0.3 * sd < diameters.std() < 1.3 * sd
    assert np.all(np.abs(diameters - mean) < 3 * sd)


def test_distal_lad_agrees_with_dodge_1992():
    assert abs(np.mean(measured()["LAD"]["distal"]) - 1.9) < 0.4


def test_dominance_and_sex_follow_the_population():
    patients = [sample_patient(seed) for seed in range(600)]
    for name, share in plans.DOMINANCE_SHARES.items():
        found = np.mean([patient.dominance == name for patient in patients])
        assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / 600)
    assert 0.42 < np.mean([patient.sex == "female" for patient in patients]) < 0.58


def test_the_posterior_descending_artery_comes_from_the_dominant_side():
    for seed in SEEDS:
        right = {branch.name for branch in tree_of(seed, "rca").branches}
        left = {branch.name for branch in tree_of(seed, "lca").branches}
        dominance = sample_patient(seed).dominance
        assert ("R-PDA" in right) == (dominance != "left")
        assert ("L-PDA" in left) == (dominance == "left")
        assert {"LM", "LAD", "LCx", "D1", "OM1"} <= left and {"RCA", "AM1"} <= right


def test_the_branching_rule_holds_at_every_junction():
    e, junctions = plans.BRANCHING_EXPONENT, 0
    for _, _, tree in all_trees():
        by_id = {branch.id: branch for branch in tree.branches}
        at_end = defaultdict(list)
        for branch in tree.branches:
            if branch.parent is None:
                continue
            parent = by_id[branch.parent]
            index = int(np.argmin(np.linalg.norm(parent.points_lps_mm - branch.points_lps_mm[0], axis=1)))
            if index == len(parent.points_lps_mm) - 1:
                at_end[branch.parent].append(branch)
                continue
            after = index + round(plans.NARROWING_MM / SAMPLE_MM)
            before_d, after_d, side_d = (
                2 * parent.radius_mm[index],
                2 * parent.radius_mm[after],
                2 * branch.radius_mm[0],
            )
            fades = after > (1 - plans.END_SHARE) * (len(parent.points_lps_mm) - 1)
            if fades or after_d < 0.55 or _another_starts(tree, parent, index, after):
                continue
            expected = (before_d**e - side_d**e) ** (1 / e)
            # The rest is the parent's own taper over those 3 mm, at most 1 % per mm.
            assert 0.97 * expected <= after_d <= 1.001 * expected, (branch.name, before_d, after_d, side_d)
            junctions += 1
        for parent, children in at_end.items():
            whole = 2 * by_id[parent].radius_mm[-1]
            assert sum((2 * child.radius_mm[0]) ** e for child in children) == pytest.approx(whole**e, rel=1e-6)
            junctions += 1
    assert junctions > 300


def _another_starts(tree: VesselTree, parent, first: int, last: int) -> bool:
    window = parent.points_lps_mm[first + 1 : last + 1]
    return any(
        np.linalg.norm(window - other.points_lps_mm[0], axis=1).min() < 1e-6
        for other in tree.branches
        if other.parent == parent.id
    )


def test_branches_start_on_a_sample_of_their_parent_which_comes_first():
    for _, _, tree in all_trees():
        seen = {}
        for branch in tree.branches:
            assert branch.id not in seen
            if branch.parent is not None:
                distance = np.linalg.norm(seen[branch.parent].points_lps_mm - branch.points_lps_mm[0], axis=1)
                assert distance.min() == 0
            seen[branch.id] = branch
        assert sum(branch.parent is None for branch in tree.branches) == 1


def test_samples_are_half_a_millimetre_apart_and_calibres_plausible():
    for _, _, tree in all_trees():
        for branch in tree.branches:
            steps = np.linalg.norm(np.diff(branch.points_lps_mm, axis=0), axis=1)
            assert 0.3 < steps.min() and steps.max() < 0.7
            assert 0.2499 <= branch.radius_mm.min() and branch.radius_mm.max() < 3.3
            assert np.all(np.diff(branch.radius_mm) <= 1e-9)  # vessels never widen away from the heart


def test_no_vessel_runs_inside_another_or_crosses_it():
    for seed, artery, tree in all_trees():
        by_id = {branch.id: branch for branch in tree.branches}
        for branch in tree.branches:
            if branch.parent is None:
                continue
            parent = by_id[branch.parent]
            skip = round(junction_mm(parent.radius_mm[0]) / SAMPLE_MM)
            own, radius = branch.points_lps_mm[skip:], branch.radius_mm[skip:]
            for other in tree.branches:
                if other.id == branch.id or other.parent == branch.id or not len(own):
                    continue
                points, other_radius = other.points_lps_mm, other.radius_mm
                if other.parent == branch.parent:  # siblings may leave from one point
                    points, other_radius = points[skip:], other_radius[skip:]
                if not len(points):
                    continue
                distance, index = cKDTree(points).query(own)
                gap = (distance - radius - other_radius[index]).min()
                assert gap > 0, (seed, artery, branch.name, other.name, gap)


def test_no_vessel_crosses_itself():
    lag = round(15 / SAMPLE_MM)
    for _, _, tree in all_trees():
        for branch in tree.branches:
            points = branch.points_lps_mm
            for i in range(0, len(points) - lag, 3):
                distance = np.linalg.norm(points[i + lag :] - points[i], axis=1)
                assert np.all(distance > branch.radius_mm[i] + branch.radius_mm[i + lag :])


def test_the_tree_lies_like_a_heart_in_lps():
    for seed in SEEDS:
        left = {branch.name: branch for branch in tree_of(seed, "lca").branches}
        right = {branch.name: branch for branch in tree_of(seed, "rca").branches}
        lad, lcx, rca = (
            tree["points"]
            for tree in (
                {"points": left["LAD"].points_lps_mm},
                {"points": left["LCx"].points_lps_mm},
                {"points": right["RCA"].points_lps_mm},
            )
        )
        start = lad[0]
        tip = lad[round(80 / SAMPLE_MM)]
        assert tip[0] > start[0] and tip[1] < start[1] and tip[2] < start[2]  # to the left, to the front, down
        assert lcx[:, 1].mean() > lad[:, 1].mean() + 15  # the circumflex lies behind
        assert (
            rca[:, 0].min() < lad[:, 0].min() - 15 and rca[:, 0].mean() < lcx[:, 0].mean() - 15
        )  # the right artery right
        assert rca[-1, 2] < rca[0, 2] - 20 and rca[-1, 1] > rca[:, 1].min() + 20  # and ends below, at the back


def test_the_same_seed_gives_the_same_tree_bit_for_bit_and_others_differ():
    again = sample_tree(3, "lca")
    for one, two in zip(tree_of(3, "lca").branches, again.branches, strict=True):
        assert one.name == two.name and np.array_equal(one.points_lps_mm, two.points_lps_mm)
        assert np.array_equal(one.radius_mm, two.radius_mm)
    assert not np.array_equal(tree_of(4, "lca").branches[0].points_lps_mm, again.branches[0].points_lps_mm)


@pytest.mark.parametrize(("seed", "artery"), [(-1, "rca"), (1.5, "rca"), (0, "left"), (0, "")])
def test_bad_arguments_are_refused(seed, artery):
    with pytest.raises(InputError):
        sample_tree(seed, artery)
