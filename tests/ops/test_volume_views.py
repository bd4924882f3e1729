# SPDX-License-Identifier: Apache-2.0
"""project_volume and backproject for whole views: values, gradients, empty bricks, float16, batches, threads, vmap."""

from __future__ import annotations

import math
import os
import threading

import pytest
import torch
from ray_cases import views

from licag3d.geometry import Rays
from licag3d.ops import backproject, native, project_volume, reference, volume_views

SPEC = ([1.0, 1.2, 0.9], [-20.0, -18.0, -9.0])
GRID = {"voxel_size_mm": SPEC[0], "origin_mm": SPEC[1]}
SHAPE = (21, 31, 44)
# Coarse, fine and very fine pixels: windows of 8 x 8, of 8 x 4, and gathers; 33 x 21 fills no tile exactly.
SPACINGS_MM = (4.0, 1.1, 0.3)
needs_native = pytest.mark.skipif(native.cpu_library() is None, reason="no native library")


@pytest.fixture(params=["plain", "avx2", "avx512"])
def isa(request):
    try:
        native.set_isa(request.param)
    except (ValueError, RuntimeError):
        pytest.skip(f"{request.param} is not available here")
    yield request.param
    native.set_isa(None)


def noise(shape, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def vessel(shape=(40, 48, 56)) -> torch.Tensor:
    """A bent thin tube: almost every brick is empty."""
    out = torch.zeros(shape)
    for t in torch.linspace(0, 1, 400):
        z, y, x = 4 + 30 * t, 24 + 14 * torch.sin(5 * t), 10 + 36 * t
        out[int(z) : int(z) + 2, int(y) : int(y) + 2, int(x) : int(x) + 2] = 0.2
    return out


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.detach() - expected.detach()).abs().max() / expected.detach().abs().max())


def keep_empty(volume: torch.Tensor, frames: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """The projection without looking for empty bricks."""
    out = torch.empty(volume.shape[0], frames.shape[0], rows, cols)
    grid = volume_views.make_grid(volume.shape, *SPEC, flags=volume_views.KEEP_EMPTY)
    native.call("project_views", volume.device, grid, volume_views._views(frames, rows, cols), volume, out)
    return out


@needs_native
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_projection_and_transpose_equal_the_float64_twin(isa, spacing_mm) -> None:
    cameras = views(rows=21, cols=33, spacing_mm=spacing_mm)
    volume, y = noise((2, *SHAPE)), noise((2, len(cameras), 21, 33), 1) - 0.3
    expected = reference.project_volume(volume.double(), cameras, **GRID)
    assert expected.abs().max() > 5
    assert relative(project_volume(volume, cameras, **GRID), expected) < 3e-6
    back = backproject(y, cameras, shape=SHAPE, **GRID)
    assert relative(back, reference.backproject(y.double(), cameras, shape=SHAPE, **GRID)) < 1e-5
    image = project_volume(volume, cameras, **GRID).double()
    left, right = (image * y.double()).sum(), (volume.double() * back.double()).sum()
    assert abs(left - right) < 1e-6 * float(image.norm() * y.double().norm())


@needs_native
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_gradient_by_the_frames_equals_the_twin(isa, spacing_mm) -> None:
    # A smooth field and no ray along a voxel plane: the slope is then the same on both sides of every voxel.
    cameras = views(angles=((31, 11), (-81, 21), (3, 77)), rows=21, cols=33, spacing_mm=spacing_mm)
    volume = noise((1, *SHAPE))
    frames = volume_views.frames_of(cameras)
    weights = noise((1, 3, 21, 33), 2) - 0.5
    got = volume_views.grad_frames(volume, frames, weights, *SPEC)
    leaf = frames.clone().requires_grad_()
    image = reference.project_volume(volume.double(), Rays(*volume_views._rays(leaf, 21, 33)), **GRID)
    (expected,) = torch.autograd.grad((image * weights).sum(), leaf)
    for part in range(4):
        assert relative(got[:, part], expected[:, part]) < 2e-3, part


@needs_native
def test_empty_bricks_change_no_bit(isa) -> None:
    cameras = views(rows=37, cols=50, spacing_mm=1.4)
    frames, volume = volume_views.frames_of(cameras), vessel()[None]
    sparse = volume_views.project_views(volume, frames, 37, 50, *SPEC)
    assert sparse.max() > 0.1 and (sparse == 0).any()
    assert torch.equal(sparse, keep_empty(volume, frames, 37, 50))
    volume[0, 20, 20, 20] = math.nan  # no brick with a NaN counts as empty
    sparse = volume_views.project_views(volume, frames, 37, 50, *SPEC)
    dense = keep_empty(volume, frames, 37, 50)
    assert torch.isnan(sparse).any() and torch.equal(torch.isnan(sparse), torch.isnan(dense))
    assert torch.equal(sparse.nan_to_num(-1), dense.nan_to_num(-1))


@needs_native
def test_half_storage_only_rounds_the_voxels(isa) -> None:
    cameras = views(rows=21, cols=33, spacing_mm=1.1)
    volume = noise((2, *SHAPE)).half()
    wide = project_volume(volume.float(), cameras, **GRID)
    assert relative(project_volume(volume, cameras, **GRID), wide) < 1e-6
    origin, way = cameras.rays()
    assert relative(project_volume(volume, Rays(origin, way), **GRID), wide) < 1e-5
    leaf = volume.clone().requires_grad_()
    (grad,) = torch.autograd.grad(project_volume(leaf, cameras, **GRID).sum(), leaf)
    assert grad.dtype == torch.float16
    ones = torch.ones(2, len(cameras), 21, 33)
    assert relative(grad.float(), backproject(ones, cameras, shape=SHAPE, **GRID)) < 1e-3
    odd = torch.tensor([0.0, -0.0, 6e-8, -3e-5, 65504.0, math.inf]).half().reshape(1, 1, 1, -1)
    one = Rays(torch.tensor([[-1.0, -50.0, 0.0]]), torch.tensor([[0.0, 100.0, 0.0]]))
    for x in range(5):  # each voxel alone, by a ray through its centre
        ray = Rays(one.origin_mm + torch.tensor([1.0 + x, 0.0, 0.0]), one.to_pixel_mm)
        got = project_volume(odd[0], ray, voxel_size_mm=1.0, origin_mm=(0, 0, 0))
        assert float(got) == pytest.approx(float(odd.flatten()[x]), rel=1e-6)


@needs_native
def test_many_views_in_one_call_equal_one_after_another() -> None:
    angles = [(7.0 * k - 90, 3.0 * k - 40) for k in range(27)]
    cameras = views(angles=angles, rows=16, cols=24, spacing_mm=2.2)
    volume = vessel()
    together = project_volume(volume, cameras, **GRID)
    for k in (0, 13, 26):
        alone = project_volume(volume, views(angles=angles[k : k + 1], rows=16, cols=24, spacing_mm=2.2), **GRID)
        assert relative(together[k], alone[0]) < 2e-6
    assert relative(together, reference.project_volume(volume.double(), cameras, **GRID)) < 3e-6


@needs_native
def test_any_number_of_threads_gives_the_same_bits() -> None:
    cameras, before = views(rows=40, cols=70, spacing_mm=0.9), torch.get_num_threads()
    frames, volume = volume_views.frames_of(cameras), noise((1, *SHAPE))
    y = noise((1, len(cameras), 40, 70), 3) - 0.5
    results = []
    try:
        for threads in range(1, 9):
            torch.set_num_threads(threads)
            results.append((volume_views.project_views(volume, frames, 40, 70, *SPEC),
                            volume_views.backproject_views(y, frames, list(SHAPE), *SPEC),
                            volume_views.grad_frames(volume, frames, y, *SPEC)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@needs_native
def test_threads_calling_at_once_and_a_fork_after_use() -> None:
    cameras, volume = views(rows=20, cols=20, spacing_mm=2.0), noise(SHAPE)
    expected, answers = project_volume(volume, cameras, **GRID), []
    workers = [threading.Thread(target=lambda: answers.append(project_volume(volume, cameras, **GRID)))
               for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(answers) == 4 and all(torch.equal(answer, expected) for answer in answers)
    # The child calls the library alone: torch's own threads do not survive a fork.
    frames, out = volume_views.frames_of(cameras), torch.empty(1, len(cameras), 20, 20)
    grid = volume_views.make_grid((1, *SHAPE), *SPEC)
    packed = volume_views._views(frames, 20, 20)
    child = os.fork()
    if child == 0:
        native.call("project_views", volume.device, grid, packed, volume, out)
        os._exit(0 if (out[0].numpy() == expected.numpy()).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_native
def test_odd_cameras_do_no_harm(isa) -> None:
    volume = noise(SHAPE)
    frames = volume_views.frames_of(views(angles=((30, 10),) * 5, rows=9, cols=9, spacing_mm=3.0)).clone()
    frames[1, 1, 0] = math.nan
    frames[2, 1:] = 0.0  # rays of zero length
    frames[3, 0] = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)  # a source inside the volume
    frames[4, 0] += 1e7  # far away
    got = volume_views.project_views(volume[None], frames, 9, 9, *SPEC)[0]
    assert torch.isnan(got[1]).all() and not got[2].any() and not got[4].any()
    rays = Rays(*volume_views._rays(frames, 9, 9))
    for view in (0, 3):
        expected = reference.project_volume(volume.double(), rays, **GRID)[view]
        assert relative(got[view], expected) < 3e-6
    back = volume_views.backproject_views(torch.ones(1, 5, 9, 9), frames, list(SHAPE), *SPEC)
    assert torch.isfinite(back).all()
    grads = volume_views.grad_frames(volume[None], frames, torch.ones(1, 5, 9, 9), *SPEC)
    assert torch.isnan(grads[1]).all() and torch.isfinite(grads[[0, 3]]).all() and not grads[2].any()


@needs_native
def test_a_nan_projection_reaches_only_voxels_of_its_ray(isa) -> None:
    cameras = views(angles=((20, 5),), rows=16, cols=32, spacing_mm=1.1)
    y = torch.zeros(1, 16, 32)
    y[0, 7, 15] = 1.0
    touched = backproject(y, cameras, shape=SHAPE, **GRID) != 0
    y[0, 7, 15] = math.nan
    spoilt = torch.isnan(backproject(y, cameras, shape=SHAPE, **GRID))
    assert touched.any() and spoilt.any() and not (spoilt & ~torch.nn.functional.max_pool3d(
        touched[None].float(), 3, 1, 1)[0].bool()).any()


@needs_native
def test_empty_images_and_single_voxels() -> None:
    for rows, cols in ((0, 5), (5, 0)):
        frames = volume_views.frames_of(views(rows=1, cols=1))
        assert volume_views.project_views(noise((1, *SHAPE)), frames, rows, cols, *SPEC).numel() == 0
        zero = volume_views.backproject_views(torch.zeros(1, len(frames), rows, cols), frames, list(SHAPE), *SPEC)
        assert not zero.any()
    for shape in ((1, 1, 1), (1, 9, 3), (9, 1, 40), (3, 40, 1)):
        cameras, volume = views(rows=9, cols=10, spacing_mm=1.0), noise(shape)
        grid = {"voxel_size_mm": 2.0, "origin_mm": [-(n - 1.0) - 1 for n in shape[::-1]]}
        expected = reference.project_volume(volume.double(), cameras, **grid)
        assert float((project_volume(volume, cameras, **grid) - expected).abs().max()) < 1e-5


def test_vmap_over_cameras_and_volumes() -> None:
    cameras, volume = views(angles=((30, 10), (-40, 5)), rows=5, cols=6), noise((9, 10, 11))
    shifts = noise((3, 2, 3), 5).double()
    grid = {"voxel_size_mm": 4.0, "origin_mm": (-20.0, -18.0, -16.0)}

    def image(shift, values=volume):
        return project_volume(values, cameras.replace(offset_lps_mm=shift), **grid)

    expected = torch.stack([image(shift) for shift in shifts])
    torch.testing.assert_close(torch.func.vmap(image)(shifts), expected, rtol=1e-5, atol=1e-5)
    volumes = noise((3, 9, 10, 11), 6)
    expected = torch.stack([image(s, v) for s, v in zip(shifts, volumes, strict=True)])
    torch.testing.assert_close(torch.func.vmap(image)(shifts, volumes), expected, rtol=1e-5, atol=1e-5)
    # Derivatives of a mapped call; torch.func.grad inside vmap is not open to compiled operators.
    leaf = shifts.clone().requires_grad_()
    (together,) = torch.autograd.grad(torch.func.vmap(image)(leaf).square().sum(), leaf)
    (apart,) = torch.autograd.grad(sum(image(shift).square().sum() for shift in leaf), leaf)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-3)


def test_opcheck_of_the_view_operators() -> None:
    frames = volume_views.frames_of(views(rows=3, cols=2)).requires_grad_()
    volume, y = noise((1, 4, 5, 6)).requires_grad_(), noise((1, 6, 3, 2)).requires_grad_()
    spec = ([6.0, 6.0, 6.0], [-15.0, -13.0, -10.0])
    torch.library.opcheck(torch.ops.licag3d.project_views.default, (volume, frames, 3, 2, *spec))
    torch.library.opcheck(torch.ops.licag3d.backproject_views.default, (y, frames, [4, 5, 6], *spec))
    torch.library.opcheck(torch.ops.licag3d.project_views_grad_frames.default,
                          (volume.detach(), frames.detach(), y.detach(), *spec))


def test_float32_cameras_lose_nothing() -> None:
    cameras = views(rows=21, cols=33, spacing_mm=1.1)
    names = [field for field in cameras.__dataclass_fields__ if field not in ("rows", "cols")]
    narrow = cameras.replace(**{name: getattr(cameras, name).float() for name in names})
    volume = noise(SHAPE)
    assert relative(project_volume(volume, narrow, **GRID), project_volume(volume, cameras, **GRID)) < 1e-3
