# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from licag3d.geometry import Camera
from licag3d.inversion.branch_contrast import ContrastSettings, borne_out
from licag3d.inversion.branch_search import search_branches
from licag3d.inversion.branch_shapes import Population, own_columns
from licag3d.inversion.branch_sights import BranchSearchSettings
from licag3d.inversion.branch_work import Work
from licag3d.inversion.prior_evidence import curve_of
from licag3d.inversion.prior_fit import PriorFit, with_tree
from licag3d.inversion.prior_tree import Codes, TreeWriter, named_tree
from licag3d.metrics.images import path_mm as exact_path_mm
from licag3d.models.generator import labels_of, load_generator
from licag3d.structures import VesselEvidence, VesselTree


@pytest.fixture(scope="module")
def generator():
    return load_generator()[0]


@pytest.fixture(scope="module")
def scene(generator):
    """A left tree of the generator's space, two cameras, and its centrelines as both see them."""
    label = labels_of(["lca"])
    codes = Codes.start(generator, label, np.array([3.0, -8.0, 5.0]))
    codes.z = 0.7 * torch.randn(codes.z.shape, generator=torch.Generator().manual_seed(4))
    tree = named_tree(generator, codes)
    size = {"sid_mm": 1050, "sod_mm": 750, "spacing_row_mm": 0.5, "spacing_col_mm": 0.5, "rows": 512, "cols": 512}
    cameras = (Camera(-30, 20, **size), Camera(30, 15, **size))
    views = tuple(_centrelines(tree, camera) for camera in cameras)
    fit = PriorFit("lca", label[0].numpy(), 1.0, np.zeros((1, 1)), codes, tree, (), np.zeros(3), np.zeros(3), 1.0,
                   (), (), 1.0, 0.0, cameras)  # fmt: skip
    sizes = [(camera.cols * camera.mm_per_pixel, camera.rows * camera.mm_per_pixel) for camera in cameras]
    return fit, tree, views, sizes


def _centrelines(tree: VesselTree, camera: Camera):
    parts = []
    for branch in tree.branches:
        flat = camera.project(branch.points_lps_mm)[0] * camera.mm_per_pixel
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(flat, axis=0), axis=1))])
        at = np.linspace(0, along[-1], max(4, int(along[-1] / 0.8)))
        line = np.stack([np.interp(at, along, axis) for axis in flat.T], 1)
        weight = np.full(len(at), along[-1] / len(at))
        parts.append((line, np.gradient(line, axis=0), np.log(np.interp(at, along, branch.radius_mm)), weight))
    return curve_of(parts, 2)


def _terminal(tree: VesselTree, least_mm: float):
    parents = {branch.parent for branch in tree.branches}
    lengths = {b.name: np.linalg.norm(np.diff(b.points_lps_mm, axis=0), axis=1).sum() for b in tree.branches}
    return next(b for b in tree.branches if b.id not in parents and b.parent and lengths[b.name] > least_mm
                and b.name not in ("LAD", "LCx"))  # fmt: skip


def test_a_missing_branch_is_put_where_both_views_show_it_and_the_rest_stays(generator, scene):
    fit, tree, views, sizes = scene
    lost = _terminal(tree, 30.0)
    rest = VesselTree(tuple(branch for branch in tree.branches if branch is not lost))
    found, changes = search_branches(fit, rest, views, sizes, generator=generator)
    change = next(item for item in changes if item.name == lost.name)
    assert not change.there and change.after < change.before - 4.0
    back = next(branch for branch in found.branches if branch.name == lost.name)
    off_mm = cKDTree(back.points_lps_mm).query(lost.points_lps_mm)[0]
    assert np.median(off_mm) < 1.2
    by_name = {branch.name: branch for branch in found.branches}
    assert by_name[back.name].parent == by_name[tree.branches[lost.parent].name].id
    changed = {item.name for item in changes}
    for branch in rest.branches:
        if branch.name not in changed and not any(branch.name.startswith(name + ".") for name in changed):
            np.testing.assert_array_equal(by_name[branch.name].points_lps_mm, branch.points_lps_mm)


def test_a_tree_that_explains_the_views_is_left_alone(generator, scene):
    fit, tree, views, sizes = scene
    found, changes = search_branches(fit, tree, views, sizes, generator=generator)
    assert changes == ()
    assert [branch.name for branch in found.branches] == [branch.name for branch in tree.branches]


def test_nothing_is_grown_where_no_view_shows_a_vessel(generator, scene):
    fit, tree, _, sizes = scene
    empty = tuple(curve_of([], 2) for _ in sizes)
    assert search_branches(fit, tree, empty, sizes, generator=generator)[1] == ()


def test_shapes_are_those_of_the_population_given_the_ancestors(generator, scene):
    fit, _, _, _ = scene
    writer = TreeWriter(generator, "lca")
    population = Population(writer, fit.label, count=600)
    slot = next(k for k, item in enumerate(writer.table.slots) if item.name == "D1")
    with torch.no_grad():
        fitted = writer.vectors(fit.codes)[0].double().numpy()
    shapes = population.shapes(slot, fitted)
    columns = own_columns(writer.table, slot)
    mine = fitted[columns]
    # What the ancestors say must bring the expected course nearer than the mean of the population does.
    known = np.linalg.norm(shapes.mean[1:-20] - mine[1:-20])
    assert known < np.linalg.norm(population.vectors[:, columns].mean(0)[1:-20] - mine[1:-20])
    u = shapes.nearest(mine)
    assert u @ u < 3 * len(u)
    np.testing.assert_allclose(shapes.nearest(shapes.numbers(u[None])[0]), u, atol=1e-6)
    assert 0.02 <= shapes.rate <= 0.98


def test_what_hangs_on_a_branch_moves_with_it(scene, generator):
    fit, tree, _, _ = scene
    work = Work(tree, fit, generator, population=50)
    parent = next(k for k in work.points if len(work.subtree(k)) > 1 and work.slots[k].parent > 0)
    child = work.subtree(parent)[1]
    before = work.points[child]
    work.put(parent, work.points[parent] + np.array([5.0, -2.0, 1.0]), work.radius[parent])
    np.testing.assert_allclose(work.points[child] - before, np.tile([5.0, -2.0, 1.0], (len(before), 1)), atol=1e-9)


def test_a_changed_tree_keeps_the_overall_trust_of_the_fit(scene):
    fit, tree, views, _ = scene
    half = VesselTree(tree.branches[:3])
    changed = with_tree(fit, half, views)
    assert changed.overall == fit.overall and changed.tree is half
    assert max(changed.explained) < 0.9 and len(changed.trust) == 3


def test_settings_say_what_they_promise(scene, generator):
    fit, tree, views, sizes = scene
    lost = _terminal(tree, 30.0)
    rest = VesselTree(tuple(branch for branch in tree.branches if branch is not lost))
    strict = BranchSearchSettings(margin=1e6)
    assert search_branches(fit, rest, views, sizes, generator=generator, settings=strict)[1] == ()


#: Centrelines have no say.
UNHEARD = BranchSearchSettings(margin=1e6)


def _contrast(tree: VesselTree, cameras, mu_per_mm: float = 0.12) -> list[VesselEvidence]:
    out = []
    for camera in cameras:
        path = exact_path_mm(tree, camera).astype(np.float32)
        p = mu_per_mm * path + 0.005 * np.random.default_rng(1).standard_normal(path.shape).astype(np.float32)
        one = np.ones_like(p)
        out.append(VesselEvidence(one, p, one, one, path > 0))
    return out


def test_a_missing_branch_is_found_by_its_contrast_alone(generator, scene):
    fit, tree, views, sizes = scene
    lost = _terminal(tree, 30.0)
    rest = VesselTree(tuple(branch for branch in tree.branches if branch is not lost))
    assert not search_branches(fit, rest, views, sizes, generator=generator, settings=UNHEARD)[1]
    found, changes = search_branches(
        fit, rest, views, sizes, generator=generator, settings=UNHEARD, evidence=_contrast(tree, fit.cameras),
        contrast=ContrastSettings(),
    )  # fmt: skip
    change = next(item for item in changes if item.name == lost.name)
    assert change.contrast and not change.there and change.after < change.before - 20.0
    back = next(branch for branch in found.branches if branch.name == lost.name)
    assert np.median(cKDTree(back.points_lps_mm).query(lost.points_lps_mm)[0]) < 0.7


def test_what_has_no_contrast_of_its_own_is_not_drawn(generator, scene):
    """Its line is seen, but the contrast is that of the rest of the tree."""
    fit, tree, views, sizes = scene
    lost = _terminal(tree, 30.0)
    rest = VesselTree(tuple(branch for branch in tree.branches if branch is not lost))
    _, changes = search_branches(
        fit, rest, views, sizes, generator=generator, settings=UNHEARD, evidence=_contrast(rest, fit.cameras),
        contrast=ContrastSettings(),
    )  # fmt: skip
    assert changes == ()


def test_a_view_without_contrast_leaves_the_centrelines_alone(generator, scene):
    fit, tree, views, sizes = scene
    lost = _terminal(tree, 30.0)
    rest = VesselTree(tuple(branch for branch in tree.branches if branch is not lost))
    dark = [VesselEvidence(*(np.zeros((512, 512), np.float32) for _ in range(4)), np.zeros((512, 512), bool))] * 2
    with_it = search_branches(
        fit, rest, views, sizes, generator=generator, evidence=dark, contrast=ContrastSettings()
    )  # fmt: skip
    without = search_branches(fit, rest, views, sizes, generator=generator)
    assert with_it[1] == without[1] and not any(change.contrast for change in with_it[1])


def test_a_further_vessel_is_borne_out_by_contrast_that_nothing_explains(scene):
    fit, tree, _, _ = scene
    lost = _terminal(tree, 30.0)
    rest = VesselTree(tuple(branch for branch in tree.branches if branch is not lost))
    seen = _contrast(tree, fit.cameras)
    asked = borne_out(rest, fit.cameras, seen)
    assert asked(lost.points_lps_mm, lost.radius_mm)
    # Now it is part of the tree: the same contrast does not bear out another one beside it.
    assert not asked(lost.points_lps_mm, lost.radius_mm)
    twin = tree.branches[1].points_lps_mm + np.array([0.0, 2.5, 0.0])
    assert not borne_out(tree, fit.cameras, seen)(twin, tree.branches[1].radius_mm)
    none = [VesselEvidence(*(np.zeros((512, 512), np.float32) for _ in range(4)), np.zeros((512, 512), bool))] * 2
    assert borne_out(rest, fit.cameras, none)(twin, tree.branches[1].radius_mm)
