# SPDX-License-Identifier: Apache-2.0
"""Disease of the phantom: truth of every lesion, population shares, what an occlusion takes away."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.phantom import disease, plans
from licag3d.phantom.anatomy import SAMPLE_MM, overlapping_branches, sample_patient, sample_tree
from licag3d.phantom.disease import Lesion, sample_disease
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.stenosis import find_stenoses
from licag3d.vessels.tree import arc_length_mm, validate_tree

SEEDS = range(16)


@cache
def healthy(seed: int, artery: str) -> VesselTree:
    return sample_tree(seed, artery)


@cache
def sick_cases() -> tuple[tuple[int, str, VesselTree, VesselTree, tuple[Lesion, ...]], ...]:
    found = []
    for seed in SEEDS:
        for artery in ("rca", "lca"):
            tree, lesions = sample_disease(seed, artery, healthy(seed, artery), extent="obstructive")
            found.append((seed, artery, healthy(seed, artery), tree, lesions))
    return tuple(found)


def lesions_of(*kinds: str):
    for case in sick_cases():
        for lesion in case[4]:
            if lesion.kind in kinds:
                yield (*case[:4], lesion)


def test_the_truth_of_a_stenosis_is_what_the_lumen_and_the_healthy_tree_measure():
    count = 0
    for _, _, before, after, lesion in lesions_of("stenosis", "diffuse"):
        lumen = next(branch for branch in after.branches if branch.id == lesion.branch_id)
        vessel = next(branch for branch in before.branches if branch.id == lesion.branch_id)
        assert lumen.name == lesion.branch
        arc = arc_length_mm(lumen.points_lps_mm)
        inside = np.flatnonzero((arc >= lesion.start_mm - 1e-9) & (arc <= lesion.start_mm + lesion.length_mm + 1e-9))
        percent = 100 * (1 - lumen.radius_mm[inside] / vessel.radius_mm[inside])
        worst = int(np.argmin(np.abs(arc - lesion.at_mm)))
        assert percent.max() == pytest.approx(lesion.percent_diameter, abs=1e-6)
        assert arc[worst] == pytest.approx(lesion.at_mm)
        assert percent[worst - inside[0]] == pytest.approx(percent.max(), abs=1e-6)
        assert 2 * lumen.radius_mm[worst] == pytest.approx(lesion.minimal_diameter_mm)
        assert 2 * vessel.radius_mm[worst] == pytest.approx(lesion.reference_diameter_mm)
        if lesion.kind == "stenosis":
            assert 29 <= lesion.percent_diameter <= 94 and 4 <= lesion.length_mm <= 27
        count += 1
    assert count > 25


def test_calibre_changes_smoothly_and_only_inside_lesions():
    for _, _, before, after, lesions in sick_cases():
        old = {branch.id: branch for branch in before.branches}
        for branch in after.branches:
            share = branch.radius_mm / old[branch.id].radius_mm[: len(branch.radius_mm)]
            arc = arc_length_mm(branch.points_lps_mm)
            touched = np.zeros(len(arc), bool)
            for lesion in lesions:
                if lesion.branch_id == branch.id:
                    margin = 5.0 if lesion.kind == "occlusion" else 1e-6
                    touched |= (arc >= lesion.start_mm - margin) & (arc <= lesion.start_mm + lesion.length_mm + margin)
            assert np.all(share[~touched] == 1)
            assert np.abs(np.diff(share)).max(initial=0) < 0.4  # no step: over 0.5 mm
            assert branch.radius_mm.min() >= 0.12


def test_an_eccentric_lumen_stays_in_its_vessel_and_touches_one_wall():
    most = 0.0
    for _, _, before, after, lesion in lesions_of("stenosis"):
        lumen = next(branch for branch in after.branches if branch.id == lesion.branch_id)
        vessel = next(branch for branch in before.branches if branch.id == lesion.branch_id)
        n = len(lumen.points_lps_mm)
        shift = np.linalg.norm(lumen.points_lps_mm - vessel.points_lps_mm[:n], axis=1)
        arc = arc_length_mm(lumen.points_lps_mm)
        clear = arc > 4.5  # the first millimetres may follow a shifted parent
        clear &= (arc >= lesion.start_mm) & (arc <= lesion.start_mm + lesion.length_mm)
        assert np.all((shift + lumen.radius_mm <= vessel.radius_mm[:n] + 1e-6) | ~clear)
        at = int(np.argmin(np.abs(arc - lesion.at_mm)))
        if clear[at]:
            room = vessel.radius_mm[at] - lumen.radius_mm[at]
            others = [o for o in lesions_of("diffuse") if o[3] is after and o[4].branch_id == lesion.branch_id]
            if not others:
                assert shift[at] == pytest.approx(lesion.eccentricity * room, rel=0.05, abs=0.02)
            most = max(most, shift[at] / vessel.radius_mm[at])
    assert most > 0.4
    eccentric = [case[-1].eccentricity > 0.3 for case in lesions_of("stenosis")]
    assert abs(np.mean(eccentric) - disease.ECCENTRIC_SHARE) < 4 * np.sqrt(0.25 / len(eccentric))


def test_sick_trees_are_sound_and_touch_nowhere():
    for seed, artery, _, tree, _ in sick_cases():
        assert validate_tree(tree, tolerance_mm=1e-6) == []
        assert overlapping_branches(tree) is None, (seed, artery)
        for branch in tree.branches:
            steps = np.linalg.norm(np.diff(branch.points_lps_mm, axis=0), axis=1)
            assert 0.5 * SAMPLE_MM < steps.min() and steps.max() < 1.8 * SAMPLE_MM
    assert sum(len(case[4]) for case in sick_cases()) > 25


def test_behind_an_occlusion_nothing_is_left_and_before_it_everything():
    count = 0
    for seed in range(300):
        planned = [item for item in disease._patient_lesions(seed, "obstructive") if item.kind == "occlusion"]
        if not planned:
            continue
        artery = "rca" if planned[0].group == "RCA" else "lca"
        before = healthy(seed, artery)
        after, lesions = sample_disease(seed, artery, before, extent="obstructive")
        lesion = next(lesion for lesion in lesions if lesion.kind == "occlusion")
        kept = {branch.id: branch for branch in after.branches}
        stump = kept[lesion.branch_id]
        whole = next(branch for branch in before.branches if branch.id == lesion.branch_id)
        assert lesion.percent_diameter == 100 and lesion.minimal_diameter_mm == 0 and lesion.reference_diameter_mm > 1
        left = arc_length_mm(whole.points_lps_mm)[-1] - arc_length_mm(stump.points_lps_mm)[-1]
        assert left == pytest.approx(lesion.length_mm, abs=1.0) and left > 1
        end = len(stump.points_lps_mm)
        for branch in before.branches:
            if branch.parent == lesion.branch_id:
                joint = int(np.argmin(np.linalg.norm(whole.points_lps_mm - branch.points_lps_mm[0], axis=1)))
                assert (branch.id in kept) == (joint < end)
        assert validate_tree(after) == [] and end >= 8
        assert all(
            other.start_mm < lesion.start_mm
            for other in lesions
            if other.branch_id == lesion.branch_id and other is not lesion
        )
        count += 1
        if count == 6:
            return
    raise AssertionError(f"only {count} occlusions in 300 patients; about 55 are expected")


def test_dilatations_are_at_least_half_wider_and_named_by_their_length():
    count = 0
    for seed in range(400):
        planned = disease._patient_lesions(seed, "obstructive")
        for artery, groups in (("rca", ("RCA",)), ("lca", ("LAD", "LCx"))):
            if not any(item.kind == "dilatation" and item.group in groups for item in planned):
                continue
            tree, lesions = sample_disease(seed, artery, healthy(seed, artery), extent="obstructive")
            for lesion in lesions:
                if lesion.kind not in ("ectasia", "aneurysm"):
                    continue
                assert lesion.percent_diameter <= -45 and lesion.minimal_diameter_mm > lesion.reference_diameter_mm
                whole = arc_length_mm(next(b for b in tree.branches if b.id == lesion.branch_id).points_lps_mm)[-1]
                assert (lesion.length_mm > 0.3 * whole) == (lesion.kind == "ectasia")
                count += 1
        if count >= 3:
            return
    raise AssertionError(f"only {count} dilatations in 400 patients; about 16 are expected")


def test_the_population_has_the_shares_of_the_sources():
    seeds = range(2000)
    plan = {seed: disease._patient_lesions(seed, None) for seed in seeds}
    men = [seed for seed in seeds if sample_patient(seed).sex == "male"]
    women = sorted(set(seeds) - set(men))

    def share(group, test) -> float:
        return float(np.mean([test(plan[seed]) for seed in group]))

    def obstructive(items) -> bool:
        return any(item.severe or item.kind == "occlusion" for item in items)

    # Patel 2010: 37.6 % obstructive, 39.2 % none, odds of men 2.7 times those of women.
    p, q = share(men, obstructive), share(women, obstructive)
    assert abs(0.5 * (p + q) - 0.376) < 0.035
    assert 2.1 < p / (1 - p) / (q / (1 - q)) < 3.4
    assert abs(share(seeds, lambda items: not items) - 0.392) < 0.04
    sick = [seed for seed in seeds if obstructive(plan[seed])]
    occluded = share(sick, lambda items: any(item.kind == "occlusion" for item in items))
    assert abs(occluded - 0.184) < 0.04  # Fefer 2012
    vessels = Counter(item.group for items in plan.values() for item in items if item.kind == "occlusion")
    assert abs(vessels["RCA"] / sum(vessels.values()) - 0.49) < 0.13
    stenoses = Counter(item.group for items in plan.values() for item in items if item.kind == "stenosis")
    assert stenoses["LAD"] > stenoses["RCA"] > stenoses["LCx"] > stenoses["LM"] > 0


def test_lesions_cluster_proximally_and_never_exceed_three():
    thirds = Counter()
    for _, _, before, _, lesion in lesions_of("stenosis"):
        if lesion.branch in ("RCA", "LAD", "LCx"):
            whole = arc_length_mm(next(b for b in before.branches if b.id == lesion.branch_id).points_lps_mm)[-1]
            thirds[int(3 * lesion.at_mm / (whole + 1e-9))] += 1
    assert thirds[0] > thirds[1] > thirds[2]
    for *_, lesions in sick_cases():
        assert sum(lesion.kind == "stenosis" for lesion in lesions) <= 3
        assert all(lesion.reference_diameter_mm > 1.0 for lesion in lesions)


def test_the_stenosis_finder_sees_severe_lesions_of_the_main_vessels():
    hits, count = 0, 0
    for _, _, _, after, lesion in lesions_of("stenosis"):
        if lesion.percent_diameter < 70 or lesion.branch not in ("RCA", "LAD", "LCx"):
            continue
        found = find_stenoses(after, min_percent=40)
        count += 1
        hits += any(f.branch_id == lesion.branch_id and abs(f.at_mm - lesion.at_mm) < 3 for f in found)
    assert count >= 5 and hits >= 0.85 * count


def test_without_disease_nothing_changes_and_the_seed_decides():
    tree = healthy(2, "lca")
    same, lesions = sample_disease(2, "lca", tree, extent="none")
    assert lesions == ()
    for one, two in zip(tree.branches, same.branches, strict=True):
        assert np.array_equal(one.points_lps_mm, two.points_lps_mm) and np.array_equal(one.radius_mm, two.radius_mm)
    first, second = (sample_disease(7, "rca", healthy(7, "rca"), extent="obstructive") for _ in range(2))
    assert first[1] == second[1]
    direct = sample_tree(7, "rca", disease="random")
    drawn, _ = sample_disease(7, "rca", healthy(7, "rca"))
    for one, two in zip(direct.branches, drawn.branches, strict=True):
        assert np.array_equal(one.points_lps_mm, two.points_lps_mm) and np.array_equal(one.radius_mm, two.radius_mm)


def test_a_moved_tree_gets_the_same_lesions_and_an_unnamed_one_gets_some():
    tree = healthy(4, "lca")
    moved = VesselTree(
        tuple(Branch(b.id, b.parent, b.points_lps_mm + [10, -20, 30], b.radius_mm, b.name) for b in tree.branches)
    )
    one, two = (sample_disease(4, "lca", t, extent="obstructive")[1] for t in (tree, moved))
    assert [(a.branch, a.kind) for a in one] == [(b.branch, b.kind) for b in two] and one
    for a, b in zip(one, two, strict=True):
        assert a.at_mm == pytest.approx(b.at_mm) and a.percent_diameter == pytest.approx(b.percent_diameter)
    unnamed = VesselTree(tuple(Branch(b.id, b.parent, b.points_lps_mm, b.radius_mm, f"B{b.id}") for b in tree.branches))
    assert sample_disease(4, "lca", unnamed, extent="obstructive")[1]


@pytest.mark.parametrize(
    ("seed", "artery", "extent"), [(0, "left", None), (-1, "rca", None), (0, "rca", "severe"), (0.5, "rca", None)]
)
def test_bad_arguments_are_refused(seed, artery, extent):
    with pytest.raises(InputError):
        sample_disease(seed, artery, healthy(0, "rca"), extent=extent)


def test_an_empty_tree_and_an_unknown_disease_are_refused():
    with pytest.raises(InputError, match="no branches"):
        sample_disease(0, "rca", VesselTree())
    with pytest.raises(InputError, match="none or random"):
        sample_tree(0, "rca", disease="some")


def test_the_branching_rule_holds_for_the_reference_diameters_of_a_sick_tree():
    """Where a bifurcation is free of disease its lumen obeys the rule; where it is not, the healthy tree does."""
    e, count = plans.BRANCHING_EXPONENT, 0
    for _, _, before, after, lesions in sick_cases():
        ill = {lesion.branch_id for lesion in lesions}
        old = {branch.id: branch for branch in before.branches}
        for parent in after.branches:
            ends = [
                b
                for b in after.branches
                if b.parent == parent.id and np.array_equal(b.points_lps_mm[0], parent.points_lps_mm[-1])
            ]
            if len(ends) < 2:
                continue
            whole = (2 * old[parent.id].radius_mm[-1]) ** e
            assert sum((2 * old[b.id].radius_mm[0]) ** e for b in ends) == pytest.approx(whole, rel=1e-6)
            if not ill & {parent.id, *(b.id for b in ends)}:
                assert sum((2 * b.radius_mm[0]) ** e for b in ends) == pytest.approx(whole, rel=1e-6)
            count += 1
    assert count > 12
