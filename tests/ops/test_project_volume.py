# SPDX-License-Identifier: Apache-2.0
"""project_volume and backproject against closed forms, their float64 twin, and each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray_cases import random_rays, single_ray, views

from licag3d.geometry import Rays
from licag3d.ops import backproject, native, project_volume, reference

GRID = {"voxel_size_mm": (2.0, 2.5, 1.5), "origin_mm": (-20.0, -18.0, -9.0)}
SHAPE = (13, 17, 22)
STEPS = (None, 0.7)


def random_volume(shape=SHAPE, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def available_isas() -> list[str]:
    found = []
    for name in ("plain", "avx2", "avx512"):
        try:
            native.set_isa(name)
            found.append(name)
        except (ValueError, RuntimeError):
            pass
    if found:
        native.set_isa(None)
    return found


@pytest.fixture(params=available_isas() or ["twin"])
def isa(request):
    if request.param != "twin":
        native.set_isa(request.param)
    yield request.param
    if request.param != "twin":
        native.set_isa(None)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.detach() - expected.detach()).abs().max() / expected.detach().abs().max())


def assert_gradient(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal but for rare samples that rounding to float32 puts into the next voxel, where the slope is another one."""
    assert got.shape == wanted.shape and got.dtype in (torch.float32, wanted.dtype)
    error = (got.double() - wanted.double()).abs() / wanted.abs().max()
    assert (error > 2e-5).double().mean() < 0.01
    assert error.max() < 0.1


@pytest.mark.parametrize("step_mm", STEPS)
@pytest.mark.parametrize("make", [views, lambda: random_rays(300, 5)], ids=["views", "rays ending inside"])
def test_values_and_gradients_equal_the_float64_twin(isa, make, step_mm) -> None:
    origin, direction = (x.detach().clone().requires_grad_() for x in make().rays())
    rays = Rays(origin, direction)
    volume = random_volume((2, *SHAPE)).requires_grad_()
    volume64 = volume.detach().double().requires_grad_()
    expected = reference.project_volume(volume64, rays, **GRID, step_mm=step_mm)
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1))
    expected_grads = torch.autograd.grad((expected * weights).sum(), (volume64, origin, direction))
    value = project_volume(volume, rays, **GRID, step_mm=step_mm)
    grads = torch.autograd.grad((value * weights).sum(), (volume, origin, direction))
    assert expected.abs().max() > 5
    assert relative(value, expected) < 3e-6
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert_gradient(got, wanted)


@pytest.mark.parametrize("step_mm", STEPS)
def test_transpose_is_exact(isa, step_mm) -> None:
    cameras = views()
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) - 0.5
    y = torch.rand((len(cameras), cameras.rows, cameras.cols), generator=torch.Generator().manual_seed(3)) - 0.5
    left = (project_volume(x, cameras, **GRID, step_mm=step_mm).double() * y.double()).sum()
    right = (x.double() * backproject(y, cameras, shape=SHAPE, **GRID, step_mm=step_mm).double()).sum()
    scale = project_volume(x.abs(), cameras, **GRID, step_mm=step_mm).norm().double() * y.norm().double()
    assert abs(left - right) < 1e-5 * max(abs(left), 1e-2 * scale)


@pytest.mark.parametrize("step_mm", STEPS)
def test_transpose_is_differentiable(step_mm) -> None:
    cameras = views(rows=5, cols=4)
    y = torch.rand((2, len(cameras), 5, 4), generator=torch.Generator().manual_seed(3), requires_grad=True)
    origin, direction = (x.detach().clone().requires_grad_() for x in cameras.rays())
    rays = Rays(origin, direction)
    weights = random_volume((2, *SHAPE), 4)
    grads = torch.autograd.grad((backproject(y, rays, shape=SHAPE, **GRID, step_mm=step_mm) * weights).sum(),
                                (y, origin, direction))
    y64 = y.detach().double().requires_grad_()
    # <w, A' y> = <A w, y>, through the twin projection
    image = reference.project_volume(weights.double(), rays, **GRID, step_mm=step_mm)
    expected = torch.autograd.grad((image * y64).sum(), (y64, origin, direction))
    for got, wanted in zip(grads, expected, strict=True):
        assert_gradient(got, wanted)


@pytest.mark.parametrize("step_mm", STEPS)
def test_twin_passes_gradcheck(step_mm) -> None:
    rays = views(angles=((30, 10), (-80, 20)), rows=2, cols=2)
    origin, direction = (x.detach().clone().requires_grad_() for x in rays.rays())
    volume = random_volume((4, 5, 3)).double().requires_grad_()
    grid = {"voxel_size_mm": 7.0, "origin_mm": (-8.0, -13.0, -11.0)}
    torch.autograd.gradcheck(
        lambda v, o, d: reference.project_volume(v, Rays(o, d), **grid, step_mm=step_mm), (volume, origin, direction),
        eps=1e-6, atol=1e-4)


def test_camera_parameters_receive_gradients() -> None:
    cameras = views(angles=((30, 10), (-40, 5)))
    names = ("primary_deg", "secondary_deg", "sid_mm", "sod_mm", "offset_lps_mm")
    parameters = [getattr(cameras, name).clone().requires_grad_() for name in names]
    # A smooth blob: finite differences of the float32 operator then agree with its gradient.
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (24, 26, 22)), indexing="ij")
    blob = torch.exp(-6 * (x**2 + 1.3 * (y - 0.1) ** 2 + (z + 0.1) ** 2 + 0.5 * x * z))
    grid = {"voxel_size_mm": 2.0, "origin_mm": (-21.0, -25.0, -23.0)}
    weights = torch.rand((2, cameras.rows, cameras.cols), generator=torch.Generator().manual_seed(8)).double()

    def loss(project, volume, values):
        return (project(volume, cameras.replace(**dict(zip(names, values, strict=True))), **grid) * weights).sum()

    got = torch.autograd.grad(loss(project_volume, blob, parameters), parameters)
    expected = torch.autograd.grad(loss(reference.project_volume, blob.double(), parameters), parameters)
    for name, value, wanted in zip(names, got, expected, strict=True):
        assert wanted.abs().max() > 1e-4, name
        assert relative(value, wanted) < 1e-4, name


def sphere(n: int, radius_mm: float) -> tuple[torch.Tensor, float]:
    """A ball of attenuation 1 on an n^3 grid over 40 mm, anti-aliased by 4^3 sub-samples."""
    voxel = 40.0 / n
    fine = (torch.arange(4 * n) + 0.5) * voxel / 4 - 20
    inside = (fine[:, None, None] ** 2 + fine[None, :, None] ** 2 + fine[None, None, :] ** 2 < radius_mm**2).float()
    return torch.nn.functional.avg_pool3d(inside[None], 4)[0], voxel


@pytest.mark.parametrize("step_mm", (None, 0.25))
@pytest.mark.parametrize("angles", [(0, 0), (37, -21), (90, 0), (60, 25)])
def test_chord_of_a_sphere(isa, angles, step_mm) -> None:
    radius = 13.0
    volume, voxel = sphere(80, radius)
    cameras = views(angles=(angles,), rows=15, cols=15, spacing_mm=2.5, offset_lps_mm=(0, 0, 0))
    got = project_volume(volume, cameras, voxel_size_mm=voxel, origin_mm=(-20 + voxel / 2,) * 3, step_mm=step_mm)
    origin, direction = cameras.rays()
    unit = direction / direction.norm(dim=-1, keepdim=True)
    distance = (origin - (origin * unit).sum(-1, keepdim=True) * unit).norm(dim=-1)
    chord = 2 * (radius**2 - distance**2).clamp(min=0).sqrt()
    away = distance < 0.85 * radius  # the blurred rim is not a sphere any more
    assert away.sum() > 50
    assert ((got - chord).abs()[away] < 0.02 * 2 * radius).all()
    assert (got[distance > radius + 2 * voxel] == 0).all()
    assert abs(float((got - chord)[away].mean())) < 0.02


@pytest.mark.parametrize("direction", [(0, 1, 0), (1, 0, 0), (0, 0, 1), (0.3, 1, 0), (1, 0.5, -0.4), (-0.2, 0.3, -1)])
@pytest.mark.parametrize("step_mm", (None, 0.01))
def test_length_through_a_box_at_oblique_angles(isa, direction, step_mm) -> None:
    # Trapezoid profile: a field of 1 between the outermost centres, falling to 0 over one voxel beyond. Along a ray
    # through the middle that leaves by the faces of its main axis, its integral is (n - 1 + 1) voxels along that axis.
    n = 20
    unit = torch.tensor(direction, dtype=torch.float64)
    main = int(unit.abs().argmax())
    rays = single_ray((-500 * unit / unit.norm()).tolist(), (1000 * unit / unit.norm()).tolist())
    shape = [60, 60, 60]
    shape[2 - main] = n
    origin = [-59.0 / 2 * 1.5] * 3
    origin[main] = -19.0 / 2 * 1.5
    got = project_volume(torch.ones(shape), rays, voxel_size_mm=1.5, origin_mm=origin, step_mm=step_mm)
    expected = n * 1.5 * float(unit.norm() / unit[main].abs())
    assert float(got[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("step_mm", STEPS)
def test_moving_everything_changes_nothing(step_mm) -> None:
    volume, rays = random_volume(), random_rays(200, 11)
    shift = torch.tensor([311.0, -87.0, 45.5], dtype=torch.float64)
    here = project_volume(volume, rays, **GRID, step_mm=step_mm)
    there = project_volume(volume, Rays(rays.origin_mm + shift, rays.to_pixel_mm), voxel_size_mm=GRID["voxel_size_mm"],
                           origin_mm=[a + float(b) for a, b in zip(GRID["origin_mm"], shift, strict=True)],
                           step_mm=step_mm)
    assert relative(there, here) < 1e-6


def test_is_linear_and_zero_outside() -> None:
    cameras = views()
    a, b = random_volume(seed=1), random_volume(seed=2)
    whole = project_volume(2 * a - 3 * b, cameras, **GRID)
    parts = 2 * project_volume(a, cameras, **GRID) - 3 * project_volume(b, cameras, **GRID)
    assert float((whole - parts).abs().max()) < 1e-4
    far = Rays(cameras.rays()[0] + 500, cameras.rays()[1])
    assert not project_volume(a, far, **GRID).any()
    assert not backproject(torch.ones(far.rays()[0].shape[:-1]), far, shape=SHAPE, **GRID).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 40), st.integers(0, 10**6),
       st.sampled_from((None, 0.3)))
def test_any_small_shape(depth, height, width, count, seed, step_mm) -> None:
    volume = random_volume((depth, height, width), seed)
    rays = random_rays(count, seed, spread_mm=4.0)
    grid = {"voxel_size_mm": 1.7, "origin_mm": (-1.0, -2.0, 0.5)}
    got = project_volume(volume, rays, **grid, step_mm=step_mm)
    expected = reference.project_volume(volume.double(), rays, **grid, step_mm=step_mm)
    assert got.shape == (count,)
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=1e-5)
    y = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    back = backproject(y, rays, shape=volume.shape, **grid, step_mm=step_mm)
    assert float((back.double() * volume).sum()) == pytest.approx(float((expected * y).sum()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("step_mm", STEPS)
def test_odd_rays_do_no_harm(isa, step_mm) -> None:
    nan, inf = math.nan, math.inf
    origin = torch.tensor([[0, -50, 0], [nan, -50, 0], [0, -50, 0], [0, 0, 0], [0, -50, 0], [inf, 0, 0], [1e30, 0, 0],
                           [0, -50, 0]], dtype=torch.float64)
    way = torch.tensor([[0, 100, 0], [0, 100, 0], [0, inf, 0], [0, 0, 0], [0, 100, 0], [0, 1, 0], [1, 1, 1],
                        [1e-300, 100, -1e-300]], dtype=torch.float64)
    volume = random_volume()
    got = project_volume(volume, Rays(origin, way), **GRID, step_mm=step_mm)
    assert torch.isnan(got[[1, 2, 5]]).all()
    assert got[3] == 0 and got[6] == 0
    assert got[0] == got[4] > 0 and float(got[7]) == pytest.approx(float(got[0]), rel=1e-6)
    back = backproject(torch.ones(8), Rays(origin, way), shape=SHAPE, **GRID, step_mm=step_mm)
    assert torch.isfinite(back).all()


def test_nan_voxel_reaches_only_its_neighbours() -> None:
    volume = torch.zeros(9, 9, 9)
    volume[0, 0, 0] = math.nan
    # Ray 0 passes beside the grid at the corner opposite to the voxel, ray 1 through the middle, ray 2 over the voxel.
    rays = Rays(torch.tensor([[8.5, -50.0, 8.5], [4.0, -50.0, 4.0], [0.2, -50.0, 0.1]]),
                torch.tensor([[0.0, 100.0, 0.0]] * 3))
    for step in (None, 0.5):
        got = project_volume(volume, rays, voxel_size_mm=1.0, origin_mm=(0, 0, 0), step_mm=step)
        assert got[0] == 0 and got[1] == 0 and torch.isnan(got[2])


@pytest.mark.parametrize("step_mm", STEPS)
def test_result_does_not_depend_on_the_number_of_threads(step_mm) -> None:
    cameras, before = views(rows=40, cols=33, spacing_mm=1.5), torch.get_num_threads()
    volume, y = random_volume(), torch.rand(len(cameras), 40, 33)
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append((project_volume(volume, cameras, **GRID, step_mm=step_mm),
                            backproject(y, cameras, shape=SHAPE, **GRID, step_mm=step_mm)))
    finally:
        torch.set_num_threads(before)
    for image, back in results[1:]:
        assert torch.equal(image, results[0][0]) and torch.equal(back, results[0][1])


def test_layouts_and_dtypes_of_rays() -> None:
    cameras, volume = views(), random_volume()
    base = project_volume(volume, cameras, **GRID)
    origin, way = cameras.rays()
    narrow = project_volume(volume, Rays(origin.float(), way.float()), **GRID)
    assert relative(narrow, base) < 1e-3
    turned = Rays(origin.contiguous().transpose(1, 2), way.transpose(1, 2))
    # Which rays share a packet differs, and with it the last bit.
    assert relative(project_volume(volume, turned, **GRID).transpose(1, 2), base) < 1e-6
    strided = volume.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert torch.equal(project_volume(strided, cameras, **GRID), base)
    assert relative(project_volume(volume, Rays(origin[:, :, ::2], way[:, :, ::2]), **GRID), base[:, :, ::2]) < 1e-6
    batch = project_volume(torch.stack([volume, 2 * volume]), cameras, **GRID)
    assert batch.shape == (2, *base.shape) and torch.allclose(batch[1], 2 * base)


def test_long_rows_along_x_take_the_turned_volume() -> None:
    # Enough rays along x for the operator to work on a copy with x and y exchanged; the values stay the same.
    cameras = views(angles=((90, 0),), rows=70, cols=70, spacing_mm=0.6)
    volume = random_volume((9, 21, 12))
    grid = {"voxel_size_mm": 1.5, "origin_mm": (-8.0, -15.0, -6.0)}
    got = project_volume(volume, cameras, **grid)
    rows = [Rays(*(x[:, row] for x in cameras.rays())) for row in range(70)]
    few = torch.stack([project_volume(volume, row, **grid)[0] for row in rows])
    assert relative(got[0], few) < 1e-6


@pytest.mark.parametrize("step_mm", STEPS)
def test_opcheck(step_mm) -> None:
    origin, way = (x.detach().clone().requires_grad_() for x in views(rows=3, cols=2).rays())
    volume = random_volume((1, 4, 5, 6)).requires_grad_()
    spec = ([6.0, 6.0, 6.0], [-15.0, -13.0, -10.0], step_mm or 0.0)
    torch.library.opcheck(torch.ops.licag3d.project_volume.default, (volume, origin, way, *spec))
    y = torch.rand(1, *origin.shape[:-1], requires_grad=True)
    torch.library.opcheck(torch.ops.licag3d.backproject.default, (y, origin, way, [4, 5, 6], *spec))
    torch.library.opcheck(torch.ops.licag3d.project_volume_grad_rays.default,
                          (volume.detach(), origin.detach(), way.detach(), y.detach(), *spec))


def test_compiles_without_a_graph_break() -> None:
    cameras = views(rows=3, cols=2)
    volume = random_volume().requires_grad_()
    offset = cameras.offset_lps_mm.clone().requires_grad_()

    def loss(values, shift):
        image = project_volume(values, cameras.replace(offset_lps_mm=shift), **GRID)
        return (image * image).sum() + backproject(image, cameras, shape=SHAPE, **GRID).sum()

    expected = torch.autograd.grad(loss(volume, offset), (volume, offset))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(volume, offset), (volume, offset))
    for value, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)


def test_second_order_in_the_volume_works_and_in_the_rays_says_no() -> None:
    cameras = views(rows=3, cols=2)
    volume = random_volume().requires_grad_()
    image = project_volume(volume, cameras, **GRID)
    (first,) = torch.autograd.grad((image**2).sum(), volume, create_graph=True)
    (second,) = torch.autograd.grad((first * random_volume(seed=9)).sum(), volume)
    expected = 2 * backproject(project_volume(random_volume(seed=9), cameras, **GRID), cameras, shape=SHAPE, **GRID)
    assert relative(second, expected) < 1e-5
    origin, way = (x.detach().clone().requires_grad_() for x in cameras.rays())
    (by_origin,) = torch.autograd.grad(project_volume(volume.detach(), Rays(origin, way), **GRID).sum(), origin,
                                       create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        by_origin.sum().backward()


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"volume": torch.zeros(3, 3, 3, dtype=torch.float64)}, TypeError, "float64"),
    ({"volume": torch.zeros(3, 3)}, ValueError, "(3, 3)"),
    ({"volume": torch.zeros(0, 3, 3)}, ValueError, "(0, 3, 3)"),
    ({"volume": torch.zeros(3, 3, 3, device="meta")}, ValueError, "meta"),
    ({"volume": [[1.0]]}, TypeError, "list"),
    ({"voxel_size_mm": 0.0}, ValueError, "voxel_size_mm"),
    ({"voxel_size_mm": (1.0, 2.0)}, ValueError, "voxel_size_mm"),
    ({"voxel_size_mm": math.nan}, ValueError, "voxel_size_mm"),
    ({"origin_mm": (0.0, math.inf, 0.0)}, ValueError, "origin_mm"),
    ({"step_mm": -1.0}, ValueError, "step_mm"),
    ({"step_mm": 1e-12}, ValueError, "step_mm"),
    ({"cameras": Rays(torch.zeros(4, 2), torch.zeros(4, 2))}, ValueError, "(4, 2)"),
    ({"cameras": Rays(torch.zeros(4, 3), torch.zeros(5, 3))}, ValueError, "differ"),
    ({"cameras": Rays(torch.zeros(4, 3, dtype=torch.int32), torch.zeros(4, 3, dtype=torch.int32))}, TypeError, "int32"),
])
def test_wrong_arguments_are_told(change, error, words) -> None:
    arguments = {"volume": torch.zeros(3, 3, 3), "cameras": random_rays(4, 0), **GRID, **change}
    with pytest.raises(error) as caught:
        project_volume(arguments.pop("volume"), arguments.pop("cameras"), **arguments)
    assert words in str(caught.value)


def test_wrong_projections_are_told() -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        backproject(torch.zeros(3), random_rays(4, 0), shape=SHAPE, **GRID)
    with pytest.raises(ValueError, match="volume size"):
        backproject(torch.zeros(4), random_rays(4, 0), shape=(4096, 4096, 4096), **GRID)


@pytest.mark.parametrize("step_mm", STEPS)
def test_twin_transposes_agree(step_mm) -> None:
    # The twin spreads samples when no gradient is wanted and asks autograd when one is.
    rays = random_rays(150, 21)
    y = torch.rand(2, 150, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    spread = reference.backproject(y, rays, shape=SHAPE, **GRID, step_mm=step_mm)
    derived = reference.backproject(y.requires_grad_(), rays, shape=SHAPE, **GRID, step_mm=step_mm)
    assert derived.requires_grad and not spread.requires_grad
    assert relative(spread, derived) < 1e-12
