# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels for whole views: empty bricks, the gather transpose, many candidates; skipped without a device."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from ray_cases import random_rays, views

from licag3d.geometry import Camera, Cameras, Rays
from licag3d.ops import backproject, native, project_volume, reference, volume_views

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(native.cuda_library() is None, reason="no CUDA device or kernels")]

GRID = {"voxel_size_mm": (2.0, 2.5, 1.5), "origin_mm": (-20.0, -18.0, -9.0)}
SHAPE = (13, 17, 22)


def to_device(cameras: Cameras) -> Cameras:
    tensors = {field.name: getattr(cameras, field.name) for field in fields(cameras)}
    return cameras.replace(**{name: x.cuda() for name, x in tensors.items() if isinstance(x, torch.Tensor)})


def volume(shape=SHAPE, *, sparse: bool) -> torch.Tensor:
    out = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    if sparse:
        out[:, : shape[0] // 2] = 0
        out[:, :, : shape[1] // 2] = 0
    return out.cuda()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("spacing_mm", [0.4, 5.0])
def test_views_equal_the_float64_twin(sparse: bool, spacing_mm: float) -> None:
    cameras = to_device(views(rows=37, cols=45, spacing_mm=spacing_mm))
    cameras = cameras.replace(offset_lps_mm=cameras.offset_lps_mm.requires_grad_())
    values = volume(sparse=sparse).requires_grad_()
    wide = values.detach().double().requires_grad_()
    expected = reference.project_volume(wide, cameras, **GRID)
    weights = torch.rand(expected.shape, device="cuda")
    wanted = torch.autograd.grad((expected * weights).sum(), (wide, cameras.offset_lps_mm))
    found = project_volume(values, cameras, **GRID)
    got = torch.autograd.grad((found * weights).sum(), (values, cameras.offset_lps_mm))
    assert float((found - expected).abs().max()) < 3e-6 * float(expected.abs().max())
    assert float((got[0] - wanted[0]).abs().max()) < 1e-5 * float(wanted[0].abs().max())
    assert float((got[1] - wanted[1]).abs().max()) < 0.02 * float(wanted[1].abs().max())


def test_empty_bricks_and_half_volumes_change_no_bit() -> None:
    cameras = to_device(views(rows=64, cols=50, spacing_mm=1.0))
    frames = volume_views.frames_of(cameras)
    values = (volume((40, 44, 52), sparse=True)[:1] > 0.5).float().contiguous()
    size, start = [1.0, 1.1, 0.9], [-25.0, -20.0, -18.0]
    image = volume_views.project_views(values, frames, 64, 50, size, start)
    assert float(image.abs().max()) > 1
    kept = torch.empty_like(image)
    grid = volume_views.make_grid(values.shape, size, start, flags=volume_views.KEEP_EMPTY)
    native.call("project_views", values.device, grid, volume_views._views(frames, 64, 50), values, kept)
    assert torch.equal(image, kept)
    assert torch.equal(volume_views.project_views(values.half(), frames, 64, 50, size, start), image)


def test_gather_repeats_and_equals_the_atomic_transpose() -> None:
    cameras = to_device(views(rows=60, cols=51, spacing_mm=1.0))
    images = torch.rand(2, len(cameras), 60, 51, device="cuda") - 0.5
    first = backproject(images, cameras, shape=SHAPE, **GRID)
    assert torch.equal(first, backproject(images, cameras, shape=SHAPE, **GRID))
    frames = volume_views.frames_of(cameras).contiguous()
    atomic = torch.zeros_like(first)
    grid = volume_views.make_grid(first.shape, GRID["voxel_size_mm"], GRID["origin_mm"], flags=volume_views.ATOMIC)
    native.call("backproject_views", first.device, grid, volume_views._views(frames, 60, 51), images, atomic)
    assert float((first - atomic).abs().max()) < 1e-5 * float(first.abs().max())
    values = volume(sparse=False) - 0.5
    image = project_volume(values, cameras, **GRID)
    left, right = (image.double() * images).sum(), (values.double() * first).sum()
    assert abs(left - right) < 1e-5 * (image.double().norm() * images.double().norm())


def test_a_source_in_the_grid_goes_ray_by_ray() -> None:
    near = Camera(30, 10, sid_mm=60, sod_mm=12, spacing_row_mm=1, spacing_col_mm=1, rows=21, cols=17)
    cameras = to_device(Cameras.stack([near]))
    images = torch.rand(1, 21, 17, device="cuda")
    found = backproject(images, cameras, shape=SHAPE, **GRID)
    expected = reference.backproject(images.double(), cameras, shape=SHAPE, **GRID)
    assert float(expected.abs().max()) > 0
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_many_candidates_are_one_call() -> None:
    stack = [
        Camera(
            -60 + 0.03 * k, k % 31 - 15, sid_mm=1000, sod_mm=750, spacing_row_mm=4, spacing_col_mm=4, rows=16, cols=16
        )
        for k in range(4096)
    ]
    values = volume((24, 24, 24), sparse=True)[:1]
    grid = {"voxel_size_mm": 2.0, "origin_mm": (-23.0, -23.0, -23.0)}
    found = project_volume(values, to_device(Cameras.stack(stack)), **grid)
    some = [0, 1, 2047, 4095]
    expected = project_volume(values, to_device(Cameras.stack([stack[k] for k in some])), **grid)
    assert torch.equal(found[:, some], expected) and float(expected.max()) > 0


def test_a_captured_graph_repeats_the_call() -> None:
    cameras = to_device(views(rows=40, cols=41, spacing_mm=1.0))
    frames = volume_views.frames_of(cameras).contiguous()
    values = volume(sparse=True)
    size, start = list(GRID["voxel_size_mm"]), list(GRID["origin_mm"])

    def step() -> tuple[torch.Tensor, ...]:
        image = volume_views.project_views(values, frames, 40, 41, size, start)
        back = volume_views.backproject_views(image, frames, list(SHAPE), size, start)
        return image, back, volume_views.grad_frames(values, frames, image, size, start)

    expected = [x.clone() for x in step()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    values.mul_(2.0)
    graph.replay()
    torch.cuda.synchronize()
    for found, before, factor in zip(captured, expected, (2, 2, 4), strict=True):
        assert torch.equal(found, before * factor)  # powers of two are exact


def test_cameras_and_rays_agree() -> None:
    cameras = to_device(views(rows=20, cols=22, spacing_mm=2.0))
    values = volume(sparse=False)
    found = project_volume(values, cameras, **GRID)
    assert torch.allclose(found, project_volume(values, Rays(*cameras.rays()), **GRID), atol=2e-5)
    rays = random_rays(100, 3)
    on_device = Rays(*(x.cuda() for x in rays.rays()))
    assert project_volume(values, on_device, **GRID).shape == (2, 100)
