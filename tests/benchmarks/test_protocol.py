# SPDX-License-Identifier: Apache-2.0
"""Splits: the cells asked for, seeds that never meet training or validation, limits that are refused clearly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.protocol import MOST_CASES, all_cells, limited, make_split
from licag3d.errors import InputError
from licag3d.phantom.splits import BENCHMARK, DEVELOPMENT, TRAINING, VALIDATION


def test_there_are_48_cells_of_every_combination():
    cells = all_cells()
    keys = {(c.artery, c.separation_deg, c.offset_mm, c.background) for c in cells}
    assert len(cells) == len(keys) == 48
    assert all(c.angle_error_deg == 1.0 for c in cells)
    assert all(c.track == ("masks" if c.background == "flat" else "images") for c in cells)
    assert len(all_cells("both")) == 96 and {c.track for c in all_cells("images")} == {"images"}


def test_half_of_the_cells_keep_every_level_balanced():
    half = [c for c in all_cells() if c.even]
    assert len(half) == 24
    for factor, each in (("artery", 12), ("separation_deg", 8), ("offset_mm", 6), ("background", 12)):
        assert set(Counter(getattr(c, factor) for c in half).values()) == {each}


@pytest.mark.parametrize("name", ["quick", "leaderboard", "full"])
def test_benchmark_seeds_never_meet_other_seeds(name):
    split = make_split(name)
    seeds = {case.seed for case in split.cases}
    assert seeds <= set(BENCHMARK)
    assert not seeds & (set(VALIDATION) | set(DEVELOPMENT)) and not any(seed in TRAINING for seed in seeds)
    assert not seeds & set(BENCHMARK[:5])  # these were looked at while the method was made


def test_every_cell_has_seeds_of_its_own_and_quick_shares_none():
    most = make_split("leaderboard", cases=MOST_CASES)
    seeds = [case.seed for case in most.cases]
    assert len(set(seeds)) == len(seeds) == 48 * MOST_CASES
    quick = {case.seed for case in make_split("quick", cases=5).cases}
    assert len(quick) == 20 and not quick & set(seeds)
    assert {c.seed for c in make_split("validation").cases} <= set(VALIDATION)


def test_more_cases_begin_with_the_same_and_full_holds_the_leaderboard():
    one, three = make_split("leaderboard"), make_split("leaderboard", cases=3)
    assert three.cases[:48] == one.cases and len(three.cases) == 144
    assert {case.name for case in one.cases} <= {case.name for case in make_split("full").cases}
    assert len({case.name for case in make_split("full").cases}) == 480
    # One patient of every cell alone.
    third = replace(three, skip=2)
    assert third.cases == three.cases[96:] and limited(third, artery=("lca",)).skip == 2


def test_limits_keep_the_seeds_of_the_cells_that_stay():
    whole = make_split("leaderboard")
    part = limited(whole, artery=("lca",), offset_mm=(5.0,))
    assert set(part.cases) <= set(whole.cases) and len(part.cases) == 6
    quick = make_split("quick")
    assert set(limited(quick, artery=("lca",)).cases) <= set(quick.cases)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: make_split("leader"), "choose one of"),
        (lambda: make_split("leaderboard", cases=0), "give 1 to"),
        (lambda: make_split("quick", cases=6), "give 1 to 5"),
        (lambda: make_split("full", cases=10_000), "give 1 to"),
        (lambda: limited(make_split("leaderboard"), separation_deg=(0.0,)), "choose among 40, 60, 90"),
        (lambda: limited(make_split("leaderboard"), offset_mm=(float("nan"),)), "choose among 0, 2, 5, 8"),
        (lambda: limited(make_split("quick"), offset_mm=(2.0,)), "no cell"),
    ],
)
def test_what_is_out_of_range_is_refused(call, said):
    with pytest.raises(InputError, match=said):
        call()
