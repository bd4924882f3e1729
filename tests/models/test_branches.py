# SPDX-License-Identifier: Apache-2.0
"""Trees as vectors, and their drawing into planes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from licag3d.models.branch_stage import FLOOR, BranchStage, draw_tubes
from licag3d.models.branch_table import ARTERIES, table_of, tree_of, vector_of
from licag3d.phantom.anatomy import sample_tree
from licag3d.vessels.tree import component_count, validate_tree


@pytest.mark.parametrize("artery", ARTERIES)
def test_a_tree_comes_back_from_its_vector(artery):
    table = table_of(artery)
    for seed in range(6):
        tree = sample_tree(seed, artery, disease="random")
        vector, known = vector_of(tree, table, (3.0, -2.0, 5.0))
        again = tree_of(vector, table, (3.0, -2.0, 5.0), samples=120)
        assert [b.name for b in again.branches] == [b.name for b in tree.branches]
        assert (vector[~known] == 0).all()
        assert component_count(again) == 1 and not validate_tree(again)
        for mine, right in zip(again.branches, tree.branches, strict=True):
            away, nearest = cKDTree(mine.points_lps_mm).query(right.points_lps_mm)
            assert away.mean() < 0.5 and away.max() < 1.5
            assert np.abs(mine.radius_mm[nearest] - right.radius_mm).mean() < 0.06


def test_branches_of_absent_parents_are_absent():
    table = table_of("lca")
    vector, _ = vector_of(sample_tree(0, "lca"), table, (0, 0, 0))
    names = [slot.name for slot in table.slots]
    vector[table.offsets[names.index("LAD")]] = 0.0
    left = {branch.name for branch in tree_of(vector, table, (0, 0, 0)).branches}
    assert "LCx" in left and not {"LAD", "S1", "D1", "D1.a"} & left


def test_every_name_of_the_plans_has_a_place():
    from licag3d.phantom import plans

    for artery, plan in (("rca", plans.right_plan), ("lca", plans.left_plan)):
        table = table_of(artery)
        places = {(s.name, table.slots[s.parent].name if s.parent >= 0 else None) for s in table.slots}
        for dominance in plans.DOMINANCE_SHARES:
            assert {(p.name, p.parent) for p in plan(dominance)} <= places
        assert all(slot.parent < k for k, slot in enumerate(table.slots))


def sampled(planes, points, size):
    """Sum over the planes at points (N, 3)."""
    x, y, z = (points * (2 / size)).unbind(-1)
    grid = torch.stack([torch.stack(pair, -1) for pair in ((x, y), (x, z), (y, z))])
    return torch.nn.functional.grid_sample(planes, grid[:, :, None], align_corners=False)[:, 0, :, 0].sum(0)


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 0, 1), (1, 1, 0), (1, -0.6, 0.4), (0.2, 0.3, 1)])
def test_the_sum_of_the_planes_is_the_distance_from_the_axis(direction):
    """Lagrange's identity: r^2 - d^2 for a straight tube in any direction, with no wall off its place."""
    size, resolution, radius = 40.0, 400, 1.2
    along = torch.tensor(direction, dtype=torch.float32)
    along = along / along.norm()
    cuts = torch.linspace(-8, 8, 9)[:, None] * along
    start, end = cuts[None, :-1], cuts[None, 1:]
    width = torch.full((1, 8), radius)
    channel = torch.zeros(8, dtype=torch.long)
    planes = draw_tubes(start, end, width, width, channel, channels=1, resolution=resolution, box_size_mm=size)[0]
    random = torch.Generator().manual_seed(0)
    aside = torch.randn(3000, 3, generator=random)
    aside -= (aside @ along)[:, None] * along
    aside /= aside.norm(dim=1, keepdim=True)
    d = 2 * radius * torch.rand(3000, 1, generator=random)
    points = (torch.rand(3000, 1, generator=random) * 8 - 4) * along + d * aside
    found, d = sampled(planes, points, size), d[:, 0]
    sure = (d - radius).abs() > 0.1
    assert ((found > 0) == (d < radius))[sure].all()
    inner = d < radius
    torch.testing.assert_close(found[inner], ((radius**2 - d**2) / (2 * radius))[inner], atol=0.06, rtol=0)


def test_nothing_is_drawn_for_tubes_without_width_and_elsewhere():
    start, end = torch.zeros(1, 1, 3), torch.tensor([[[5.0, 0, 0]]])
    args = {"channels": 2, "resolution": 64, "box_size_mm": 40.0}
    none = draw_tubes(start, end, torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0]), **args)
    assert none.max() < -0.5
    one = draw_tubes(start, end, torch.ones(1, 1), torch.ones(1, 1), torch.tensor([0]), **args)
    assert one[:, :, 0].max() > 0 and (one[:, :, 1] == FLOOR).all()


def test_drawing_has_the_gradient_of_its_values():
    stage = BranchStage(16, groups=2, hidden=8, resolution=96, box_size_mm=120.0)
    tree = sample_tree(1, "rca")
    every = np.concatenate([b.points_lps_mm for b in tree.branches])
    vector = vector_of(tree, stage.tables["rca"], every.mean(0))[0]
    places = list(stage.tables["rca"].offsets[:-1])
    vector[places] = 8 * vector[places] - 4
    vector = torch.tensor(vector)[None].requires_grad_()
    weight = torch.randn(1, 3, stage.channels, 96, 96, generator=torch.Generator().manual_seed(0))
    # Where the floor begins and at the border of a segment's window values jump, by design.
    weight = weight * (stage.draw(vector.detach(), "rca") > -0.7)
    (stage.draw(vector, "rca") * weight).sum().backward()
    direction = torch.zeros_like(vector)
    direction[:, 1:4] = torch.tensor([0.6, -0.5, 0.4])  # the place of the trunk: all moves
    ahead, behind = ((stage.draw((vector + h * direction).detach(), "rca") * weight).sum() for h in (0.01, -0.01))
    expected = float(ahead - behind) / 0.02
    assert float((vector.grad * direction).sum()) == pytest.approx(expected, rel=0.05)


def test_wrong_artery_rows_do_not_mix():
    torch.manual_seed(0)
    stage = BranchStage(16, groups=3, hidden=8, resolution=64, box_size_mm=120.0)
    w = torch.randn(2, 3, 16)
    for artery in ARTERIES:
        assert stage.vectors(w, artery).shape == (2, stage.tables[artery].size)
    both = stage.draw_all([(a, torch.tensor([k]), stage.vectors(w[k : k + 1], a)) for k, a in ((1, "rca"), (0, "lca"))])
    assert torch.equal(both[0], stage.draw(stage.vectors(w[:1], "lca"), "lca")[0])
    assert torch.equal(both[1], stage.draw(stage.vectors(w[1:], "rca"), "rca")[0])


@pytest.mark.parametrize("artery", ARTERIES)
def test_side_branches_leave_their_parent_at_full_calibre(artery):
    """No neck between the wall of the parent and the first knot: all of the axis beyond that wall lies deep inside."""
    stage = BranchStage(16, groups=2, hidden=8, resolution=256, box_size_mm=120.0)
    table = stage.tables[artery]
    tree = sample_tree(4, artery)
    every = np.concatenate([b.points_lps_mm for b in tree.branches])
    vector = torch.tensor(vector_of(tree, table, 0.5 * (every.min(0) + every.max(0)))[0])[None]
    places = list(table.offsets[:-1])
    vector[:, places] = 8 * vector[:, places] - 4
    radius_mm = 0.5
    for k in range(len(table.slots)):
        vector[:, table.parts(k)[3]] = np.log(radius_mm)
    planes = stage.draw(vector, artery)[0]
    seen = 0
    for k, (points, _, gate) in enumerate(stage.courses(vector, artery)):
        if table.slots[k].parent < 0 or gate[0, 0] < 0.5:
            continue
        stretch = points[0, 1] - points[0, 0]
        along = torch.linspace(float(radius_mm / stretch.norm()), 1.0, 12)[:, None]
        found = sampled(planes[:, k : k + 1], points[0, :1] + along * stretch, 120.0)
        assert found.min() > 0.3 * radius_mm, table.slots[k].name
        seen += 1
    assert seen >= 5


def test_a_least_radius_widens_thin_vessels_alone():
    stage = BranchStage(16, groups=2, hidden=8, resolution=128, box_size_mm=120.0)
    table = stage.tables["rca"]
    tree = sample_tree(2, "rca")
    every = np.concatenate([b.points_lps_mm for b in tree.branches])
    vector = torch.tensor(vector_of(tree, table, 0.5 * (every.min(0) + every.max(0)))[0])[None]
    places = list(table.offsets[:-1])
    vector[:, places] = 8 * vector[:, places] - 4
    trunk, side = table.parts(0)[3], next(k for k, s in enumerate(table.slots) if s.name == "AM1")
    vector[:, trunk] = np.log(1.5)
    vector[:, table.parts(side)[3]] = np.log(0.2)
    thin, wide = stage.draw(vector, "rca"), stage.draw(vector, "rca", least_radius_mm=0.6)
    assert torch.equal(thin[:, :, 0], wide[:, :, 0])
    assert wide[:, :, side].max() > thin[:, :, side].max() + 0.1
