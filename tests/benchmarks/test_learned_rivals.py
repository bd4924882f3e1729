# SPDX-License-Identifier: Apache-2.0
"""The two neural rivals: back-projection, network, training that resumes; the fitted field."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.baselines import Inputs, deepca_style, deepca_training, neca_style
from benchmarks.volumes import make_system
from licag3d.errors import InputError
from licag3d.geometry import Camera, Cameras
from licag3d.ops import backproject
from licag3d.phantom import splits
from licag3d.phantom.tubes import path_length_mm, tree_lines
from licag3d.structures import Branch, VesselTree

MU_PER_MM = 0.15


def tube_tree() -> VesselTree:
    """A bent tube and a side branch, about 50 mm long."""
    t = np.linspace(-1, 1, 41)[:, None]
    main = np.concatenate([18 * t, 6 * t**2, 20 * t], 1)
    side = main[20] + np.linspace(0, 1, 21)[:, None] * [4.0, 18.0, -6.0]
    return VesselTree((Branch(0, None, main, np.full(41, 1.8)), Branch(1, 0, side, np.full(21, 1.3))))


def tube_inputs(rows: int = 160) -> Inputs:
    """Two exact views of it, 90 degrees apart."""
    cameras = tuple(Camera(a, 0, 1000, 750, 0.5, 0.5, rows, rows) for a in (-40.0, 50.0))
    paths = [path_length_mm(tree_lines(tube_tree()), camera) for camera in cameras]
    blank = tuple(np.zeros((rows, rows), np.float32) for _ in cameras)
    masks = tuple(path > 0 for path in paths)
    return Inputs(
        images=blank, valid=tuple(np.ones((rows, rows), bool) for _ in cameras), masks=masks,
        line_integrals=tuple(MU_PER_MM * path for path in paths),
        probabilities=tuple(mask.astype(np.float32) for mask in masks), radius_px=blank,
        confidences=tuple(mask.astype(np.float32) for mask in masks), cameras=cameras,
    )  # fmt: skip


def gap_mm(tree: VesselTree, truth: VesselTree) -> tuple[float, float]:
    """Mean distance of found points to the true centreline, and of true ones to the found."""
    found = np.concatenate([b.points_lps_mm for b in tree.branches])
    true = np.concatenate([b.points_lps_mm for b in truth.branches])
    gap = np.linalg.norm(found[:, None] - true[None], axis=2)
    return float(gap.min(1).mean()), float(gap.min(0).mean())


# back-projection and target


def test_back_projection_is_the_normalised_transpose_of_the_projector():
    inputs = tube_inputs()
    center = np.array([2.0, 3.0, -1.0])
    masks = [torch.from_numpy(mask.astype(np.float32)) for mask in inputs.masks]
    got = deepca_style.back_projection(masks, list(inputs.cameras), center, grid=32)
    spec = {"shape": (32, 32, 32), "voxel_size_mm": deepca_style.VOXEL_MM,
            "origin_mm": deepca_style.origin_of(center, 32)}  # fmt: skip
    for mask, camera, volume in zip(masks, inputs.cameras, got, strict=True):
        view = Cameras.stack([camera], dtype=torch.float32)
        share = backproject(mask[None], view, **spec) / backproject(torch.ones_like(mask)[None], view, **spec)
        assert np.corrcoef(share.flatten(), volume.flatten())[0, 1] > 0.99
        assert float((share - volume).abs().mean()) < 0.01


def test_an_offset_moves_the_back_projection_as_it_moves_the_image():
    inputs = tube_inputs()
    mask = torch.from_numpy(inputs.masks[0].astype(np.float32))
    still = deepca_style.back_projection([mask], [inputs.cameras[0]], np.zeros(3), 16)
    shift = np.array([3.0, -2.0, 4.0])
    moved = deepca_style.back_projection([mask], [inputs.cameras[0].with_offset(shift)], -shift, 16)
    assert torch.allclose(still, moved, atol=1e-4) and still.max() > 0.5


def test_the_target_lies_where_both_back_projections_agree():
    inputs, tree = tube_inputs(), tube_tree()
    target = deepca_training.target_volume(tree, np.zeros(3), 48)
    masks = [torch.from_numpy(mask.astype(np.float32)) for mask in inputs.masks]
    given = deepca_style.back_projection(masks, list(inputs.cameras), np.zeros(3), 48)
    assert (given[:, target > 0.7] > 0.5).all()
    # 0.5 at the wall: the volume above is that of the tubes.
    volume_mm3 = float((target > 0.5).sum()) * deepca_style.VOXEL_MM**3
    expected = np.pi * (1.8**2 * 55.5 + 1.3**2 * (19.4 - 1.8))
    assert volume_mm3 == pytest.approx(expected, rel=0.12)


def test_imperfect_masks_stay_masks_and_repeat():
    mask = torch.from_numpy(np.stack(tube_inputs().masks).astype(np.float32))
    first, again = (deepca_training.imperfect_masks(mask, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and set(first.unique().tolist()) <= {0.0, 1.0} and not torch.equal(first, mask)
    empty = deepca_training.imperfect_masks(torch.zeros(2, 32, 32), torch.Generator().manual_seed(1))
    assert empty.shape == (2, 32, 32)


# training


def flags(out, **changes) -> argparse.Namespace:
    from licag3d.train.loop import add_loop_flags

    parser = argparse.ArgumentParser()
    add_loop_flags(parser, batch=1, precision="fp32", warmup=1, validate_every=2, save_every=2, record_every=1)
    arguments = parser.parse_args(["--out", str(out), "--steps", "4", "--device", "cpu", "--threads", "1"])
    for name, value in changes.items():
        setattr(arguments, name, value)
    return arguments


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_resumed_training_has_the_losses_of_an_uninterrupted_one(tmp_path):
    small = {"grid": 16, "channels": (4, 8), "validation": 1}
    whole = deepca_training.train(flags(tmp_path / "whole"), **small)
    assert whole.finished and whole.steps == 4
    cut = deepca_training.train(flags(tmp_path / "cut", minutes=1e-9), **small)
    assert not cut.finished and cut.steps == 1
    deepca_training.train(flags(tmp_path / "cut", resume=True), **small)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    with pytest.raises(InputError, match="another channels"):
        deepca_training.train(flags(tmp_path / "cut", resume=True), **(small | {"channels": (4, 4)}))


def test_a_small_network_learns_one_case():
    torch.manual_seed(0)
    inputs = tube_inputs()
    masks = [torch.from_numpy(mask.astype(np.float32)) for mask in inputs.masks]
    given = deepca_style.back_projection(masks, list(inputs.cameras), np.zeros(3), 16)
    target = deepca_training.target_volume(tube_tree(), np.zeros(3), 16)
    model = deepca_style.UNet((8, 16), 16)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    first = None
    for _ in range(60):
        loss, numbers = deepca_training.volume_loss(model(given[None]), target[None])
        first = first if first is not None else float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first and float(numbers["dice"]) > 0.5


def test_every_training_patient_comes_from_the_training_range_twice():
    numbers = [deepca_training.patient_of(k) for k in range(400)]
    counts = np.bincount(numbers)
    assert (counts[1 : 200 - deepca_training.AGAIN] == 2).all()
    assert all(splits.training_seed(number) in splits.TRAINING for number in numbers)
    gaps = [b - a for n in range(20, 40) for a, b in [np.flatnonzero(np.array(numbers) == n)]]
    assert min(gaps) > deepca_training.AGAIN, "the two uses of a patient must lie apart"


def test_the_folded_network_keeps_every_voxel_in_its_place():
    """With all learnt parts but a delta kernel silenced, what enters is what leaves."""
    model = deepca_style.UNet((8, 8), 16)
    seen = []
    model.enter.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    x = torch.rand(1, 2, 16, 16, 16)
    model(x)
    model.leave = torch.nn.Identity()
    model.norm = torch.nn.Identity()
    folded = seen[0][:, :8]
    back = folded.reshape(1, 2, 2, 2, 8, 8, 8).permute(0, 4, 1, 5, 2, 6, 3).reshape(1, 16, 16, 16)
    assert torch.equal(back, x[:, 0])


# reconstruction


def test_only_two_views_are_taken():
    inputs = tube_inputs()
    with pytest.raises(InputError, match="1 views"):
        deepca_style.occupancy(torch.nn.Identity(), inputs.masks[:1], inputs.cameras[:1])


# NeCA-style


def test_the_field_is_the_trilinear_interpolant_of_its_grids():
    torch.manual_seed(0)
    points = np.random.default_rng(0).uniform(-10, 10, (40, 3))
    field = neca_style.Field(points, 1.0, 0.1)
    matrix, transposed = field.lookups[3]
    assert np.allclose(matrix.sum(1), 1, atol=1e-5) and (transposed != matrix.T).nnz == 0
    grid = field.tables[3]
    loss = (neca_style._Gather.apply(grid, matrix, transposed) ** 2).sum()
    loss.backward()
    dense = torch.from_numpy(matrix.toarray())
    free = grid.detach().clone().requires_grad_(True)
    ((dense @ free) ** 2).sum().backward()
    assert torch.allclose(grid.grad, free.grad, atol=1e-6)
    assert float(field().mean().detach()) == pytest.approx(0.1, rel=0.3)


def test_the_fit_lowers_the_misfit_and_finds_the_tube():
    inputs = tube_inputs()
    system = make_system(inputs, spacing_mm=neca_style.SPACING_MM)
    allowed = neca_style.allowed_voxels(inputs, system)
    index = np.rint((np.concatenate([b.points_lps_mm for b in tube_tree().branches]) - system.origin_mm)
                    / system.spacing_mm).astype(int)  # fmt: skip
    assert allowed[index[:, 2], index[:, 1], index[:, 0]].all() and allowed.mean() < 0.2
    result = neca_style.reconstruct(inputs, steps=40)
    assert result.facts["misfit"] < 0.5
    near, covered = gap_mm(result.tree, tube_tree())
    assert near < 1.5 and covered < 1.5
    first, again = (neca_style.reconstruct(inputs, steps=2) for _ in range(2))
    assert first.facts == again.facts


def test_views_without_a_common_place_give_an_empty_tree():
    inputs = tube_inputs()
    system = make_system(inputs, spacing_mm=2.0)
    nothing = replace(inputs, masks=(inputs.masks[0], np.zeros_like(inputs.masks[1])))
    assert not neca_style.allowed_voxels(nothing, system).any()
