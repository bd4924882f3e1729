# SPDX-License-Identifier: Apache-2.0
"""Statistics of the phantom's trees against published tables, and properties over many seeds, twigs included."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.spatial import cKDTree

from licag3d.phantom import plans
from licag3d.phantom.anatomy import SAMPLE_MM, junction_mm, sample_patient, sample_tree
from licag3d.phantom.splits import DEVELOPMENT
from licag3d.phantom.twigs import DIAMETER_MM, is_twig, without_twigs
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.tree import validate_tree

SEEDS = range(60, 100)


@cache
def tree_of(seed: int, artery: str) -> VesselTree:
    return sample_tree(seed, artery)


@cache
def twiggy(seed: int, artery: str) -> VesselTree:
    return sample_tree(seed, artery, twigs=True)


def names_of(seed: int, artery: str) -> set[str]:
    return {branch.name for branch in tree_of(seed, artery).branches}


def tolerance(share: float, count: int) -> float:
    return 3.5 * np.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize(
    ("name", "artery", "share"),
    # Radiol Med 2011 (3236 patients): ramus 21.3 %; Diagn Interv Radiol 2009 (700): conus branch from the aorta 22 %.
    [("RI", "lca", 0.213), ("CB", "rca", 0.78), ("SN", "rca", 0.65)],
)
def test_optional_branches_have_the_share_of_the_tables(name, artery, share):
    found = np.mean([name in names_of(seed, artery) for seed in SEEDS])
    assert abs(found - share) < tolerance(share, len(SEEDS))


@pytest.mark.parametrize("family", ["D", "OM"])
def test_one_or_two_diagonals_and_marginals_in_nine_of_ten(family):
    counts = Counter(sum(f"{family}{k}" in names_of(seed, "lca") for k in (1, 2, 3)) for seed in SEEDS)
    few = (counts[1] + counts[2]) / len(SEEDS)
    assert counts[0] == 0 and few > 0.9 - tolerance(0.9, len(SEEDS))  # Radiol Med 2011: over 90 %
    assert counts[1] >= 5 and counts[2] >= 15  # and they differ
    assert all(f"{family}3" not in names_of(seed, "lca") or f"{family}2" in names_of(seed, "lca") for seed in SEEDS)


def test_dominance_decides_who_feeds_the_posterior_wall():
    seen = Counter()
    for seed in range(200):
        dominance = sample_patient(seed).dominance
        if seen[dominance] >= 5:
            continue
        seen[dominance] += 1
        right, left = names_of(seed, "rca"), names_of(seed, "lca")
        assert ("R-PDA" in right) == (dominance != "left") and ("L-PDA" in left) == (dominance == "left")
        assert ("R-PLB" in right) == (dominance == "right") and ("L-PLB" in left) == (dominance != "right")
        length = {b.name: len(b.points_lps_mm) * SAMPLE_MM for b in tree_of(seed, "lca").branches}["LCx"]
        assert length < 92 if dominance == "right" else 93 < length < 142
    assert min(seen.values()) == 5 and len(seen) == 3


def test_women_have_nine_percent_narrower_vessels():
    ratios = []
    for name, artery in (("RCA", "rca"), ("LAD", "lca"), ("LCx", "lca"), ("D1", "lca"), ("OM1", "lca")):
        by_sex = defaultdict(list)
        for seed in range(60, 110):
            patient = sample_patient(seed)
            if patient.dominance == "right":
                first = next(branch for branch in tree_of(seed, artery).branches if branch.name == name)
                by_sex[patient.sex].append(first.radius_mm[0])
        ratios.append(np.mean(by_sex["female"]) / np.mean(by_sex["male"]))
    assert abs(np.mean(ratios) - 0.91) < 0.05  # Dodge 1992; equal vessels would give 1.0


def junctions() -> np.ndarray:
    """Diameters of parent before, parent behind and daughter at the single side branches ``(n, 3)``, mm."""
    found = []
    for seed in SEEDS:
        for artery in ("rca", "lca"):
            tree = tree_of(seed, artery)
            starts = defaultdict(list)
            for branch in tree.branches:
                if branch.parent is not None:
                    above = tree.branches[branch.parent]
                    index = int(np.argmin(np.linalg.norm(above.points_lps_mm - branch.points_lps_mm[0], axis=1)))
                    starts[branch.parent].append((index, 2 * branch.radius_mm[0]))
            step = round(plans.NARROWING_MM / SAMPLE_MM)
            for parent, children in starts.items():
                radius = tree.branches[parent].radius_mm
                for index, side in children:
                    alone = sum(abs(index - other) <= step for other, _ in children) == 1
                    if alone and index + step < 0.75 * len(radius) and side > 0.6:
                        found.append((2 * radius[index], 2 * radius[index + step], side))
    return np.array(found)


def test_the_exponent_fitted_from_the_trees_is_that_of_human_casts():
    """Huo and Kassab 2009: 7/3; flow simulation of human trees 2.15 to 2.38 (Taylor 2022). Murray's 3 would fail."""
    before, behind, side = junctions().T
    assert len(before) > 120

    def misfit(e: float) -> float:
        return float(np.mean(np.log((behind**e + side**e) / before**e) ** 2))

    fitted = minimize_scalar(misfit, bounds=(1.5, 4), method="bounded").x
    assert 2.15 < fitted < 2.4
    assert misfit(3.0) > 5 * misfit(fitted)
    # Finet's rule of thumb (2007), fitted to coronary bifurcations, agrees within a tenth on average.
    finet = 0.678 * (behind + side)
    assert abs(np.mean(finet / before) - 1) < 0.1


def test_curvature_of_the_anterior_descending_artery_is_highest_distally():
    """Zhu et al. 2009, over thirds of the artery."""
    thirds = defaultdict(list)
    for seed in SEEDS:
        points = next(b for b in tree_of(seed, "lca").branches if b.name == "LAD").points_lps_mm[::4]
        a, b, c = points[:-2], points[1:-1], points[2:]
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        sides = [np.linalg.norm(x, axis=1) for x in (b - a, c - b, c - a)]
        curvature = 2 * area / (sides[0] * sides[1] * sides[2])
        for k, part in enumerate(np.array_split(curvature, 3)):
            thirds[k].append(part.mean())
    proximal, middle, distal = (np.mean(thirds[k]) for k in range(3))
    assert distal > 1.05 * middle and distal > 1.05 * proximal


def test_twigs_are_thin_many_and_leave_the_named_tree_alone():
    counts = []
    for seed in (60, 61):
        for artery in ("rca", "lca"):
            plain, full = tree_of(seed, artery), twiggy(seed, artery)
            scored = without_twigs(full)
            assert [b.name for b in scored.branches] == [b.name for b in plain.branches]
            for one, two in zip(plain.branches, scored.branches, strict=True):
                assert np.array_equal(one.points_lps_mm, two.points_lps_mm)
                assert np.array_equal(one.radius_mm, two.radius_mm) and one.id == two.id
            twigs = [branch for branch in full.branches if is_twig(branch.name)]
            counts.append(len(twigs))
            assert len({b.name for b in full.branches}) == len(full.branches)
            assert validate_tree(full, tolerance_mm=1e-6) == []
            for twig in twigs:
                assert 2 * twig.radius_mm.max() <= DIAMETER_MM[1] + 1e-9 and 2 * twig.radius_mm.min() > 0.1
                assert np.all(np.diff(twig.radius_mm) <= 1e-12)
            again = sample_tree(seed, artery, twigs=True)
            assert all(
                np.array_equal(a.points_lps_mm, b.points_lps_mm)
                for a, b in zip(full.branches, again.branches, strict=True)
            )
    assert 40 < np.mean(counts) < 160 and min(counts) > 15


def test_twigs_take_no_more_than_the_taper_of_their_parent_by_the_branching_rule():
    """Between named daughters ``D^e`` of the parent falls by at least what its twigs take; forks keep it exactly."""
    e, share = plans.BRANCHING_EXPONENT, []
    for seed in (60, 61):
        for artery in ("rca", "lca"):
            tree = twiggy(seed, artery)
            by_id = {branch.id: branch for branch in tree.branches}
            taken: dict[int, float] = defaultdict(float)
            for twig in tree.branches:
                if not is_twig(twig.name):
                    continue
                parent = by_id[twig.parent]
                if is_twig(parent.name):
                    pair = [b for b in tree.branches if b.parent == parent.id]
                    assert len(pair) == 2
                    whole = (2 * parent.radius_mm[-1]) ** e
                    assert sum((2 * b.radius_mm[0]) ** e for b in pair) == pytest.approx(whole)
                else:
                    taken[parent.id] += (2 * twig.radius_mm[0]) ** e
            for branch in without_twigs(tree).branches:
                inner = [
                    b
                    for b in without_twigs(tree).branches
                    if b.parent == branch.id and not np.array_equal(b.points_lps_mm[0], branch.points_lps_mm[-1])
                ]
                loss = (2 * branch.radius_mm[0]) ** e - (2 * branch.radius_mm[-1]) ** e
                loss -= sum((2 * b.radius_mm[0]) ** e for b in inner)
                assert taken[branch.id] <= loss + 1e-6 or loss < 0.05, (branch.name, taken[branch.id], loss)
                if loss > 1:
                    share.append(taken[branch.id] / loss)
    assert np.mean(share) > 0.4  # most of the taper is explained by vessels one can see


def worst_gap(tree: VesselTree) -> tuple[float, str]:
    """Smallest distance between the walls of two vessels outside their junctions, mm, and who they are."""
    by_id = {branch.id: branch for branch in tree.branches}
    points = np.concatenate([b.points_lps_mm for b in tree.branches])
    radius = np.concatenate([b.radius_mm for b in tree.branches])
    owner = np.concatenate([np.full(len(b.points_lps_mm), b.id) for b in tree.branches])
    at = np.concatenate([np.arange(len(b.points_lps_mm)) for b in tree.branches])
    skip = {
        b.id: 0 if b.parent is None else round(junction_mm(by_id[b.parent].radius_mm[0]) / SAMPLE_MM)
        for b in tree.branches
    }
    free = at >= np.array([skip[k] for k in owner])
    pairs = cKDTree(points).query_pairs(2 * radius.max(), output_type="ndarray")
    gap = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1) - radius[pairs].sum(1)
    pairs, gap = pairs[gap < 0.2], gap[gap < 0.2]
    worst = (np.inf, "")
    for (i, j), distance in zip(pairs, gap, strict=True):
        a, b = by_id[owner[i]], by_id[owner[j]]
        if a.id == b.id:
            continue
        # A child is judged behind its own junction; siblings behind both of theirs.
        if a.parent == b.id:
            counts = free[i]
        elif b.parent == a.id:
            counts = free[j]
        else:
            counts = free[i] and free[j]
        if counts and distance < worst[0]:
            worst = (float(distance), f"{a.name} {b.name}")
    return worst


def crosses_itself(branch: Branch) -> bool:
    points, radius = branch.points_lps_mm, branch.radius_mm
    lag = max(round(15 / SAMPLE_MM), 1) if not is_twig(branch.name) else 8
    if len(points) <= lag:
        return False
    gap = np.linalg.norm(points[:-lag:2, None] - points[None, lag:], axis=-1)
    later = np.arange(lag, len(points))[None] - np.arange(0, len(points) - lag, 2)[:, None] >= lag
    return bool(np.any(later & (gap < radius[:-lag:2, None] + radius[None, lag:])))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(seed=st.integers(DEVELOPMENT.start, DEVELOPMENT.stop - 1), artery=st.sampled_from(["rca", "lca"]))
def test_no_branch_runs_in_another_and_none_crosses_itself_whatever_the_seed(seed, artery):
    tree = sample_tree(seed, artery, twigs=True)
    gap, who = worst_gap(tree)
    assert gap > 0, who
    assert not [branch.name for branch in tree.branches if crosses_itself(branch)]
    assert validate_tree(tree, tolerance_mm=1e-6) == []
    for branch in tree.branches:
        steps = np.linalg.norm(np.diff(branch.points_lps_mm, axis=0), axis=1)
        low, high = (0.1, 0.9) if is_twig(branch.name) else (0.3, 0.7)  # projection on the heart stretches
        assert low < steps.min() and steps.max() < high


def test_the_check_for_crossings_can_fail():
    line = np.stack([np.linspace(0, 30, 61), np.zeros(61), np.zeros(61)], axis=1)
    trunk = Branch(0, None, line, np.full(61, 1.5), "A")
    inside = Branch(1, 0, line[10:] + [0, 0.3, 0], np.full(51, 0.4), "B")
    gap, who = worst_gap(VesselTree((trunk, inside)))
    assert gap < 0 and who == "A B"
    angle = np.linspace(0, 4 * np.pi, 120)
    loop = Branch(0, None, np.stack([5 * np.cos(angle), 5 * np.sin(angle), 0.01 * angle], axis=1), np.ones(120), "L")
    assert crosses_itself(loop) and not crosses_itself(trunk)
