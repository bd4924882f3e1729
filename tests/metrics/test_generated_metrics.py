# SPDX-License-Identifier: Apache-2.0
"""Facts of generated trees: exact on shapes that can be counted, and noticing what was spoiled on purpose."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.metrics import generated as judge
from licag3d.models.samples import cameras_at, line_integrals
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.rasterize import tree_occupancy
from licag3d.vessels.volume import Volume

MU = 0.15


def branching(seed: int = 0, radius: float = 1.5, arms: int = 2) -> VesselTree:
    """A trunk of about 30 mm that divides into arms of about 25 mm, all bent: real vessels do not lie along voxels."""
    rng = np.random.default_rng(seed)
    along = np.linspace(0, 1, 61)[:, None]
    trunk = np.array([0.3, 0.2, -30]) * (1 - along) + 3 * np.sin(np.pi * along) * [1, 0.5, 0]
    branches = [Branch(0, None, trunk, np.full(61, radius))]
    for arm in range(arms):
        angle = 2 * np.pi * arm / arms + rng.uniform(-0.2, 0.2) + 0.4
        end = 25 * np.array([0.8 * np.cos(angle), 0.8 * np.sin(angle), 0.6])
        line = end * along + 2 * np.sin(np.pi * along) * [0, 0.3, 1]
        branches.append(Branch(arm + 1, 0, line, np.full(61, 0.8 * radius)))
    return VesselTree(tuple(branches))


def field(tree: VesselTree, spacing: float = 0.75) -> Volume:
    count = round(66 / spacing)
    corner = -0.5 * spacing * (count - 1)
    grid = Volume(np.zeros((count,) * 3, np.uint8), (corner,) * 3, spacing)
    return Volume(tree_occupancy(tree, grid).values * MU, grid.origin_mm, spacing)


@pytest.fixture(scope="module")
def fork() -> Volume:
    return field(branching())


def test_facts_of_a_known_fork(fork):
    facts, found = judge.facts_of(fork, MU / 2, mesh=True)
    assert facts.one_tree and facts.largest_share == 1.0
    assert facts.length_mm == pytest.approx(branching().length_mm, rel=0.06)
    assert facts.bifurcations == 1 and facts.branches in (2, 3)  # an arm may continue the trunk
    assert np.quantile(facts.radii_mm, (0.1, 0.9)) == pytest.approx([1.2, 1.5], abs=0.15)
    assert facts.volume_ml == pytest.approx(np.pi * (1.5**2 * 31 + 1.2**2 * 51) / 1000, rel=0.1)
    assert found.surface.open_edges() == 0


def test_an_empty_field_has_empty_facts(fork):
    facts, found = judge.facts_of(Volume(np.zeros_like(fork.values), fork.origin_mm, fork.spacing_mm), MU / 2)
    assert not facts.one_tree and facts.pieces == 0 and facts.length_mm == 0 and facts.radii_mm == ()
    assert found.surface is None


def test_spoiled_fields_are_noticed(fork):
    sound, _ = judge.facts_of(fork, MU / 2)
    rng = np.random.default_rng(0)
    cut, _ = judge.facts_of(judge.spoiled(fork, "cut", rng), MU / 2)
    shuffled, _ = judge.facts_of(judge.spoiled(fork, "shuffled", rng), MU / 2)
    blurred, _ = judge.facts_of(judge.spoiled(fork, "blurred", rng), MU / 2)
    mirrored, _ = judge.facts_of(judge.spoiled(fork, "mirrored", rng), MU / 2)
    assert cut.pieces > 1 and cut.volume_ml < 0.95 * sound.volume_ml
    assert shuffled.pieces > 1
    assert np.mean(blurred.radii_mm) < 0.95 * np.mean(sound.radii_mm)
    assert mirrored.length_mm == pytest.approx(sound.length_mm, rel=0.02)  # shape alone does not tell the side
    with pytest.raises(ValueError, match="melted"):
        judge.spoiled(fork, "melted", rng)


def test_ks_distance_by_hand():
    assert judge.ks_distance(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 4])) == 0
    assert judge.ks_distance(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])) == pytest.approx(0.5)
    assert judge.ks_distance(np.zeros(3), np.ones(7)) == 1


def test_sets_of_one_source_are_near_and_others_are_not():
    rng = np.random.default_rng(1)

    def trees(shift: float) -> list[np.ndarray]:
        return [np.array([x]) for x in rng.normal(shift, 1, 60)]

    same, far = judge.compare_sets(trees(0), trees(0), draws=200), judge.compare_sets(trees(0), trees(1.5), draws=200)
    assert same.value <= same.chance * 1.2 and same.p > 0.02
    assert far.value > far.chance and far.p < 0.01 and far.low < far.value < far.high + 1e-9
    with pytest.raises(ValueError, match="at least two"):
        judge.compare_sets(trees(0)[:1], trees(0))


def test_trees_count_as_a_whole():
    """A hundred equal values of one tree are one observation: the interval must not shrink with their number."""
    rng = np.random.default_rng(2)
    few = [rng.normal(0, 1, 1) for _ in range(30)], [rng.normal(0, 1, 1) for _ in range(30)]
    many = tuple([np.repeat(x, 100) for x in group] for group in few)
    a, b = (judge.compare_sets(*sets, draws=200) for sets in (few, many))
    assert a.value == pytest.approx(b.value) and a.chance == pytest.approx(b.chance, abs=0.02)


def test_thicker_trees_differ_in_radius_alone():
    thin, thick = ([judge.facts_of(field(branching(k, r), 1.0), MU / 2)[0] for k in range(4)] for r in (1.5, 2.4))
    found = judge.compare_trees(thick, thin, draws=50)
    assert found["radius_mm"].value == 1 and found["volume_ml"].value == 1
    assert found["bifurcations"].value <= 0.5


def test_connected_share_has_an_honest_interval():
    fact = judge.TreeFacts(1, 1.0, 1.0, 1, 0, 1.0, 1.0, (1.0,))
    broken = judge.TreeFacts(2, 0.9, 1.0, 1, 0, 1.0, 1.0, (1.0,))
    share, low, high = judge.connected_share([fact] * 19 + [broken])
    assert share == 0.95 and 0.7 < low < 0.95 < high < 1
    assert judge.connected_share([fact] * 20)[1] < 0.9  # twenty of twenty do not prove 95 %
    with pytest.raises(ValueError, match="no tree"):
        judge.connected_share([])


def test_views_of_one_field_agree_and_moved_ones_do_not(fork):
    cameras = cameras_at([(30 * k - 165, 10 * (-1) ** k) for k in range(12)], 48, field_mm=80)
    coarse = field(branching(), 1.5)
    found = judge.view_consistency(lambda some: line_integrals(coarse, some), coarse, cameras, iterations=30)
    assert found.same_field == 0
    assert found.held_out < 0.3 and found.shifted > 3 * found.held_out
    other = judge.view_consistency(lambda some: line_integrals(fork, some), coarse, cameras, iterations=30)
    assert 0 < other.same_field < 0.3
