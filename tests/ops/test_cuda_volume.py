# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of the volume and tube operators; skipped where no device or no CUDA library is there."""

from __future__ import annotations

import math

import pytest
import torch
from ray_cases import random_rays, views

from licag3d.geometry import Rays
from licag3d.ops import backproject, native, project_tubes, project_volume, reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(native.cuda_library() is None, reason="no CUDA device or kernels")]

GRID = {"voxel_size_mm": (2.0, 2.5, 1.5), "origin_mm": (-20.0, -18.0, -9.0)}
SHAPE = (13, 17, 22)


def on_device(rays) -> Rays:
    return Rays(*(x.detach().cuda().requires_grad_() for x in rays.rays()))


@pytest.mark.parametrize("step_mm", [None, 0.7])
@pytest.mark.parametrize("make", [views, lambda: random_rays(3000, 5)], ids=["views", "rays ending inside"])
def test_volume_operators_equal_the_float64_twin(make, step_mm) -> None:
    rays = on_device(make())
    volume = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)).cuda().requires_grad_()
    volume64 = volume.detach().double().requires_grad_()
    expected = reference.project_volume(volume64, rays, **GRID, step_mm=step_mm)
    weights = torch.rand(expected.shape, device="cuda")
    wanted = torch.autograd.grad((expected * weights).sum(), (volume64, rays.origin_mm, rays.to_pixel_mm))
    value = project_volume(volume, rays, **GRID, step_mm=step_mm)
    got = torch.autograd.grad((value * weights).sum(), (volume, rays.origin_mm, rays.to_pixel_mm))
    assert float((value - expected).abs().max()) < 3e-6 * float(expected.abs().max())
    for one, other in zip(got, wanted, strict=True):
        error = (one.double() - other.double()).abs() / other.abs().max()
        # A sample that rounding puts into the next voxel meets another slope there.
        assert (error > 2e-5).double().mean() < 0.01 and error.max() < 0.1


@pytest.mark.parametrize("step_mm", [None, 0.7])
def test_transpose_is_exact_on_a_side_stream(step_mm) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        rays = Rays(*(x.cuda() for x in views(rows=60, cols=51, spacing_mm=1.0).rays()))
        x = torch.rand(SHAPE, device="cuda") - 0.5
        y = torch.rand(rays.origin_mm.shape[:-1], device="cuda") - 0.5
        image = project_volume(x, rays, **GRID, step_mm=step_mm)
        left = (image.double() * y.double()).sum()
        back = backproject(y, rays, shape=SHAPE, **GRID, step_mm=step_mm)
        right = (x.double() * back.double()).sum()
        assert abs(left - right) < 1e-5 * (image.double().norm() * y.double().norm())


def test_odd_rays_do_no_harm() -> None:
    origin = torch.tensor([[0, -50, 0], [math.nan, -50, 0], [0, 0, 0]], dtype=torch.float64, device="cuda")
    way = torch.tensor([[0, 100, 0], [0, 100, 0], [0, 0, 0]], dtype=torch.float64, device="cuda")
    got = project_volume(torch.rand(SHAPE, device="cuda"), Rays(origin, way), **GRID)
    assert got[0] > 0 and torch.isnan(got[1]) and got[2] == 0
    empty = Rays(origin[:0], way[:0])
    assert project_volume(torch.rand(SHAPE, device="cuda"), empty, **GRID).shape == (0,)
    assert not backproject(torch.zeros(0, device="cuda"), empty, shape=SHAPE, **GRID).any()


def test_tubes_equal_the_cpu() -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(200, 3, generator=generator, dtype=torch.float64).cumsum(0) * 3
    radius = torch.rand(200, generator=generator, dtype=torch.float64) * 3
    segments = torch.stack([torch.arange(199), torch.arange(1, 200)], 1)
    cameras = views(rows=75, cols=67, spacing_mm=2.0)
    expected = project_tubes(points, radius, segments, cameras)
    rays = Rays(*(x.cuda() for x in cameras.rays()))
    got = project_tubes(points.cuda(), radius.cuda(), segments.cuda(), rays)
    assert (expected > 0).any()
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=1e-5)
