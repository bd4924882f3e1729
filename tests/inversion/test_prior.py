# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from licag3d.geometry import Camera, Cameras
from licag3d.inversion.assembly import AssemblySettings, Curve, assemble_tree
from licag3d.inversion.chains import Chains
from licag3d.inversion.completion import completed_curves, name_branches
from licag3d.inversion.prior_cost import PriorCostSettings, prior_cost
from licag3d.inversion.prior_fit import PriorSettings, fit_prior
from licag3d.inversion.prior_stage import _warnings
from licag3d.inversion.prior_tree import (
    ALIKE,
    PATIENTS,
    WIDE,
    Codes,
    TreeWriter,
    moving_cameras,
    named_tree,
    project_mm,
)
from licag3d.inversion.snapping import snap_tree
from licag3d.models.generator import labels_of, load_generator
from licag3d.structures import VesselTree


@pytest.fixture(scope="module")
def generator():
    return load_generator()[0]


def two_cameras() -> tuple[Camera, Camera]:
    size = {"sid_mm": 1050, "sod_mm": 750, "spacing_row_mm": 0.4, "spacing_col_mm": 0.4, "rows": 512, "cols": 512}
    return Camera(-30, 10, **size), Camera(30, 20, **size, offset_lps_mm=(4.0, -3.0, 6.0))


def drawn_chains(tree: VesselTree, camera: Camera) -> Chains:
    """Each branch as one piece, as if the image had been traced without error."""
    pixels, start, step, radius, nodes = [], [0], [], [], []
    for k, branch in enumerate(tree.branches):
        flat = camera.project(branch.points_lps_mm)[0]
        length = np.concatenate([[0.0], np.linalg.norm(np.diff(flat, axis=0), axis=1)]) * camera.mm_per_pixel
        at = np.linspace(0, length.sum(), max(4, int(length.sum() / 0.5)))
        pixels.append(np.stack([np.interp(at, length.cumsum(), column) for column in flat.T], 1))
        step.append(np.concatenate([[0.0], np.diff(at)]))
        radius.append(np.interp(at, length.cumsum(), branch.radius_mm))
        start.append(start[-1] + len(at))
        nodes.append((2 * k, 2 * k + 1))
    step, count = np.concatenate(step), len(nodes)
    weight = 0.5 * step
    weight[:-1] += 0.5 * step[1:]
    return Chains(np.concatenate(pixels), np.array(start), step, weight, np.concatenate(radius), 0.0 * step,
                  np.array(nodes), np.zeros((2 * count, 2)), np.full((count, count, 2, 2), np.nan),
                  np.zeros(2 * count, bool), np.ones(2 * count, int), camera.mm_per_pixel)  # fmt: skip


def distance_mm(tree: VesselTree, other: VesselTree) -> np.ndarray:
    from licag3d.inversion.completion import _tree

    points = [np.concatenate([b.points_lps_mm for b in t.branches]) for t in (tree, other)]
    return _tree(points[1]).query(points[0])[0]


@pytest.fixture(scope="module")
def scene(generator):
    """A tree of the generator's own space, seen by two cameras; every third point of view 1 is matched."""
    codes = Codes.start(generator, labels_of(["rca"]), np.array([5.0, -10.0, 8.0]))
    codes.z = 0.7 * torch.randn(codes.z.shape, generator=torch.Generator().manual_seed(3))
    tree = named_tree(generator, codes)
    cameras = two_cameras()
    chains = [drawn_chains(tree, camera) for camera in cameras]
    source, rays = cameras[0].rays(*chains[0].pixels.T)
    points = [np.full((len(chain.pixels), 3), np.nan) for chain in chains]
    truth = np.concatenate([b.points_lps_mm for b in tree.branches])
    from scipy.spatial import cKDTree

    near = cKDTree(cameras[0].project(truth)[0]).query(chains[0].pixels)[1]
    points[0][::3] = truth[near[::3]]
    return tree, cameras, chains, points, [np.ones(len(p)) for p in points]


@pytest.mark.parametrize("artery", ["rca", "lca"])
def test_writer_writes_what_the_structure_stage_writes(generator, artery):
    source = torch.Generator().manual_seed(1)
    codes = Codes.start(generator, labels_of([artery, artery]), np.zeros(3))
    codes.z = torch.randn(codes.z.shape, generator=source)
    codes.delta = 0.2 * torch.randn(codes.delta.shape, generator=source)
    writer = TreeWriter(generator, artery)
    vectors = generator.structure.vectors(codes.styles(generator), artery)
    torch.testing.assert_close(writer.vectors(codes), vectors)
    courses = generator.structure.courses(vectors, artery)
    middle = torch.cat([0.5 * (points[:, 1:] + points[:, :-1]) for points, _, _ in courses], 1)
    torch.testing.assert_close(writer.segments(codes).middle, middle, atol=1e-4, rtol=0)


def test_deltas_spread_as_the_generator_knows(generator):
    """Deviates of patients and wide ones move the tree by what the roots say; alike ones are added as they are."""
    source = torch.Generator().manual_seed(2)
    codes = Codes.start(generator, labels_of(["rca", "lca"]), np.zeros(3))
    assert (codes.spread == WIDE).all()
    codes.delta = torch.randn(codes.delta.shape, generator=source)
    w = generator.map(codes.z, codes.label)[:, None]
    for spread, root in ((PATIENTS, generator.delta_root[:2]), (WIDE, generator.delta_root[2:])):
        codes.spread[:] = spread
        wanted = torch.stack([root[a] @ codes.delta[a, ..., None] for a in (0, 1)])[..., 0] + generator.delta_mean
        torch.testing.assert_close(codes.styles(generator) - w, wanted, atol=1e-4, rtol=1e-4)
    codes.spread[:] = ALIKE
    torch.testing.assert_close(codes.styles(generator) - w, codes.delta)
    # The wide spread adds the same in every direction.
    patients, wide = (root @ root.mT for root in (generator.delta_root[:2], generator.delta_root[2:]))
    torch.testing.assert_close(wide - patients, torch.eye(256).expand_as(wide) * 0.25, atol=0.03, rtol=0)


def test_a_code_with_the_spread_of_patients_is_taken_as_long_as_it_costs_little_more(generator, scene):
    _, cameras, chains, points, sure = scene
    found = {}
    for gain in (-1e6, 1e6):
        settings = PriorSettings(steps=40, trial_steps=20, patient_gain=gain)
        found[gain] = fit_prior(cameras, chains, points, sure, generator=generator, settings=settings)
    assert int(found[-1e6].codes.spread) == WIDE and int(found[1e6].codes.spread) == PATIENTS
    said = {gain: " ".join(_warnings(fit, 2, False)) for gain, fit in found.items()}
    assert "seems to bend in ways" in said[-1e6] and "seems to bend in ways" not in said[1e6]
    # A fit that goes on keeps its spread.
    on = fit_prior(cameras, chains, points, sure, generator=generator, start=found[1e6],
                   settings=PriorSettings(steps=8, patient_gain=-1e6))  # fmt: skip
    assert int(on.codes.spread) == PATIENTS


def test_moving_camera_projects_like_the_camera_it_becomes():
    cameras = two_cameras()
    moving = moving_cameras(cameras)[1]
    shift, turn = np.array([1.0, -2.0, 0.5]), np.array([0.7, -0.4])
    points = np.random.default_rng(0).normal(0, 30, (20, 3))
    matrix = moving.matrix(torch.tensor(shift)[None].float(), torch.tensor(turn)[None].float())
    moved = moving.moved(shift, turn)
    expected = moved.project(points)[0] * moved.mm_per_pixel
    np.testing.assert_allclose(project_mm(matrix, torch.tensor(points)[None].float())[0], expected, atol=1e-3)
    assert moving.moved(np.zeros(3), np.zeros(2)) is cameras[1]


def test_fit_finds_a_tree_of_its_own_space_its_artery_and_its_camera(generator, scene):
    tree, cameras, chains, points, sure = scene
    wrong = (cameras[0], cameras[1].with_offset(np.add(cameras[1].offset_lps_mm, (0.0, 0.0, 0.8))))
    settings = PriorSettings(steps=120, trial_steps=30)
    fit = fit_prior(wrong, chains, points, sure, generator=generator, settings=settings)
    assert fit.artery == "rca" and fit.margin > 0.2
    assert np.median(distance_mm(tree, fit.tree)) < 0.8
    assert min(fit.explained) > 0.9 and fit.overall > 0.9
    assert {"RCA"} <= {branch.name for branch in fit.tree.branches}
    assert fit.cameras[0] == wrong[0] and fit.w_plus.shape == (generator.layers, 256)
    # The camera came back part of the way.
    assert abs(fit.cameras[1].offset_lps_mm[2] - cameras[1].offset_lps_mm[2]) < 0.6
    still = fit_prior(wrong, chains, points, sure, generator=generator, start=fit,
                      settings=PriorSettings(steps=8, move_cameras=False))  # fmt: skip
    assert still.cameras[1].offset_lps_mm == pytest.approx(fit.cameras[1].offset_lps_mm, abs=1.0)

    snapped = snap_tree(fit.tree, fit.cameras, chains)
    assert np.median(distance_mm(tree, snapped.tree)) <= np.median(distance_mm(tree, fit.tree)) + 0.05
    named = name_branches(assemble_tree(completed_curves(snapped, 1.0, []), AssemblySettings()).tree, fit)
    assert "RCA" in {branch.name for branch in named.branches}


def test_prior_yields_to_what_is_no_coronary_tree(generator):
    cameras = two_cameras()
    rng = np.random.default_rng(5)
    from licag3d.structures import Branch

    # A bundle of straight parallel tubes, as no heart has them.
    tubes = tuple(
        Branch(k, None, np.linspace([x, y, -70], [x, y, 70], 60), np.full(60, 1.0))
        for k, (x, y) in enumerate(rng.uniform(-50, 50, (9, 2)))
    )
    tree = VesselTree(tubes)
    chains = [drawn_chains(tree, camera) for camera in cameras]
    points = [np.full((len(chain.pixels), 3), np.nan) for chain in chains]
    points[0][:] = np.concatenate([np.zeros((len(chains[0].pixels), 2)), rng.uniform(-70, 70, (len(points[0]), 1))], 1)
    fit = fit_prior(cameras, chains, points, [np.ones(len(p)) for p in points], generator=generator,
                    settings=PriorSettings(steps=60, trial_steps=20))  # fmt: skip
    assert fit.overall < 0.5
    cost = prior_cost(fit, PriorCostSettings(price=0.8))
    assert cost(np.zeros((4, 3))).max() <= 0.8 * fit.overall * 3.0 + 1e-9


def test_cost_rises_with_the_distance_to_the_tree_up_to_its_cap(generator, scene):
    tree, cameras, chains, points, sure = scene
    fit = fit_prior(
        cameras, chains, points, sure, generator=generator, settings=PriorSettings(steps=60, trial_steps=20)
    )
    at = fit.tree.branches[0].points_lps_mm[10]
    away = np.stack([at, at + [0.0, 0.0, 300.0]])
    settings = PriorCostSettings(price=0.8, tolerance_mm=0.5, cap_mm=3.0)
    low, high = prior_cost(fit, settings)(away)
    assert low == pytest.approx(0.0) and high == pytest.approx(fit.overall * 0.8 * 3.0)


def test_completion_adds_what_the_prior_has_not_and_leaves_out_what_no_view_shows(generator, scene):
    tree, cameras, chains, *_ = scene
    snapped = snap_tree(tree, cameras, chains)
    far = Curve(np.linspace([200.0, 0, 0], [200.0, 0, 30.0], 40), np.full(40, 1.0), np.ones(40), (None, None))
    near = tree.branches[0]
    same = Curve(near.points_lps_mm, near.radius_mm, np.ones(len(near.radius_mm)), (None, None))
    curves = completed_curves(snapped, 1.0, [far, same])
    total = sum(np.linalg.norm(np.diff(c.points_mm, axis=0), axis=1).sum() for c in curves)
    assert total == pytest.approx(tree.length_mm + 30.0, rel=0.03)
    assert max(c.confidence.max() for c in curves) == pytest.approx(1.0)
    blind = type(snapped)(snapped.tree, tuple(tuple(0.0 * shown for shown in view) for view in snapped.shown))
    assert len(completed_curves(blind, 1.0, [])) == 0
    # A prior that is not believed comes second.
    second = completed_curves(snapped, 0.0, [same])
    assert second[0] is same


def test_evolution_brings_a_moved_view_back(scene):
    from licag3d.inversion.camera_evolution import EvolutionSettings, evolve_camera
    from licag3d.ops import project_volume
    from licag3d.structures import VesselEvidence
    from licag3d.vessels.rasterize import tree_grid, tree_occupancy

    tree, cameras, *_ = scene
    small = [camera.resized(96, 160) for camera in cameras]  # a view need not be square
    grid = tree_grid(tree, 1.0)
    volume = torch.from_numpy(tree_occupancy(tree, grid).values)
    paths = project_volume(volume, Cameras.stack([small[1]]), voxel_size_mm=1.0, origin_mm=grid.origin_mm)[0].numpy()
    zero = np.zeros_like(paths)
    evidence = VesselEvidence((paths > 0.2).astype(np.float32), paths, zero, zero, paths > 0.2)
    frame = small[1].frame
    moved = small[1].with_offset(np.asarray(small[1].offset_lps_mm) + 12.0 * frame.column - 8.0 * frame.row)
    settings = EvolutionSettings(size=64, spacing_mm=1.0, starts=1, coarse=(24, 10), generations=15)
    found = evolve_camera(tree, small[0], moved, evidence, settings, seed=1)
    error = np.subtract(found.camera.offset_lps_mm, small[1].offset_lps_mm)
    in_plane = np.hypot(error @ frame.column, error @ frame.row)
    assert found.loss < 0.5 * found.loss_before and in_plane < 4.0
    assert found.evaluations >= 24 * 10


def test_the_encoders_code_is_a_start_that_maps_to_it(generator):
    from types import SimpleNamespace

    from licag3d.inversion.encoder_start import encoder_start
    from licag3d.models.generator import labels_of

    label = labels_of(["lca"], [False], len(generator.config.labels))
    torch.manual_seed(3)
    with torch.no_grad():
        w = generator.map(0.6 * torch.randn(1, generator.config.z_dim), label)
    wanted = generator.spread(w)[0].numpy()
    made = SimpleNamespace(artery="lca", label_probability=np.array([0.0, 1.0, 0.1]), w_plus=wanted)
    start = encoder_start(made, generator, views=2)
    with torch.no_grad():
        found = generator.map(start.z, start.label)
    far = torch.linalg.norm(generator.average(label) - w)
    assert torch.linalg.norm(found - w) < 0.1 * far
    both = start.and_also(start)
    assert len(both.z) == 2 and both.view_shift_mm.shape[1] == 2
