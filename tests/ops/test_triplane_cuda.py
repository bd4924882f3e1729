# SPDX-License-Identifier: Apache-2.0
"""Tri-plane kernels on a CUDA device against the float64 twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triplane_cases import BOX, SIZES, problem, relative_error, views

from licag3d.geometry import Cameras, Rays
from licag3d.ops import native, query_triplane, render_triplane
from licag3d.ops import reference as twin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _library():
    if native.cuda_library() is None:
        pytest.skip("the CUDA half of the native library was not built")


def everything(
    planes, decoder, cameras: Cameras, samples: int, device: str, dtype: torch.dtype, occupancy=None, **more
) -> list[torch.Tensor]:
    """Image, baked values and all their gradients, on the CPU; ``more`` goes to the native operators."""
    operators = (render_triplane, query_triplane) if device == "cuda" else (twin.render_triplane, twin.query_triplane)
    render, query = operators
    more = {**BOX, **(more if device == "cuda" else {})}
    more["occupancy"] = None if occupancy is None else occupancy.to(device)
    planes = planes.to(device, dtype, copy=True).requires_grad_()
    decoder = replace(decoder, bias=torch.tensor(-0.3)).to(device, dtype, copy=True).requires_grad_()
    origin, to_pixel = (tensor.to(device, copy=True).requires_grad_() for tensor in cameras.rays())
    image = render(planes, decoder, Rays(origin, to_pixel), samples=samples, **more)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(3)).to(device)
    inputs = [planes, *decoder.tensors().values()]
    results = [image, *torch.autograd.grad((image * weight).sum(), [*inputs, origin, to_pixel])]
    points = (torch.rand(333, 3, generator=torch.Generator().manual_seed(4)) * 130 - 65).to(device).requires_grad_()
    mu = query(planes, decoder, points, **more)
    results += [mu, *torch.autograd.grad((mu * mu).sum(), [*inputs, points])]
    return [result.detach().cpu() for result in results]


@pytest.mark.parametrize("size", [*SIZES, (64, 32, 64, 96, 33, 2)])
def test_kernels_agree_with_twin(size):
    resolution, channels, hidden, samples, pixels, batch = size
    planes, decoder = problem(resolution, channels, hidden, batch)
    found = everything(planes, decoder, views(pixels), samples, "cuda", torch.float32)
    expected = everything(planes, decoder, views(pixels), samples, "cpu", torch.float64)
    for k, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(value, reference) < 1e-5, (k, relative_error(value, reference))


def test_many_channels_take_the_twin():
    planes, decoder = problem(8, 80, 16)
    found = everything(planes, decoder, views(5), 6, "cuda", torch.float32)
    expected = everything(planes, decoder, views(5), 6, "cpu", torch.float64)
    for value, reference in zip(found, expected, strict=True):
        assert relative_error(value, reference) < 1e-4


def test_half_planes_are_read_exactly():
    planes, decoder = problem(9, 5, 9)
    half, decoder = planes[0].half().cuda(), decoder.to("cuda")
    points = torch.rand(70, 3, device="cuda") * 120 - 60
    expected = query_triplane(half.float(), decoder, points, **BOX)
    assert torch.equal(query_triplane(half, decoder, points, **BOX), expected)


@pytest.mark.parametrize("per_item", [False, True])
@pytest.mark.parametrize("cells", [1, 7, 24])
def test_empty_cells_agree_with_twin(cells, per_item):
    planes, decoder = problem(24, 20, 30, batch=2)
    shape = (2, cells, cells, cells) if per_item else (cells, cells, cells)
    occupancy = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < (0.1 if cells > 1 else 2.0)
    found = everything(planes, decoder, views(33), 41, "cuda", torch.float32, occupancy)
    expected = everything(planes, decoder, views(33), 41, "cpu", torch.float64, occupancy)
    assert float(expected[0].abs().max()) > 0
    for k, (value, reference) in enumerate(zip(found, expected, strict=True)):
        # A sample that rounding puts on the other side of a border counts or does not.
        error = (value.double() - reference).abs() / reference.abs().max().clamp(min=1e-30)
        assert float((error > 1e-5).double().mean()) < 0.01, k


@pytest.mark.parametrize("size", [(32, 32, 64, 40, 33, 2), (9, 20, 33, 7, 12, 1), (1, 32, 64, 5, 8, 1)])
@pytest.mark.parametrize("empty", [False, True])
def test_bfloat16_stays_near_the_twin(size, empty):
    resolution, channels, hidden, samples, pixels, batch = size
    planes, decoder = problem(resolution, channels, hidden, batch)
    occupancy = torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(2)) < 0.3 if empty else None
    found = everything(planes, decoder, views(pixels), samples, "cuda", torch.float32, occupancy, precision="bfloat16")
    plain = everything(planes, decoder, views(pixels), samples, "cuda", torch.float32, occupancy)
    assert not torch.equal(found[0], plain[0])  # the other kernels ran
    for k, (value, reference) in enumerate(zip(found, plain, strict=True)):
        assert relative_error(value, reference) < (5e-3 if reference.shape == found[0].shape else 2e-2), k


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_but_the_plane_gradient_repeats_exactly(precision):
    planes, decoder = problem(24, 20, 30, batch=2)
    first, second = (
        everything(planes, decoder, views(33), 19, "cuda", torch.float32, precision=precision) for _ in range(2)
    )
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.shape == planes.shape:
            assert relative_error(a, b) < 1e-5
        else:
            assert torch.equal(a, b), k


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_everything_repeats_exactly_when_asked_for(precision, deterministic):
    planes, decoder = problem(24, 20, 30, batch=2)
    rays = Rays(*(tensor.cuda() for tensor in views(33).rays()))
    weights = decoder.to("cuda")

    def gradient(scale: float) -> torch.Tensor:
        leaf = planes.cuda().requires_grad_()
        image = render_triplane(leaf, weights, rays, samples=19, precision=precision, **BOX)
        (found,) = torch.autograd.grad(image.sum() * scale, leaf)
        return found

    first = gradient(1.0)
    assert torch.equal(first, gradient(1.0))
    assert relative_error(gradient(1e-20) * 1e20, first) < 1e-5  # the unit follows the size of the gradient
    assert gradient(float("nan")).isnan().all()
    torch.use_deterministic_algorithms(False)
    assert relative_error(first, gradient(1.0)) < 1e-5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_few_rays_with_many_samples(precision):
    planes, decoder = problem(24, 32, 64)
    rays = Rays(*(tensor.cuda().flatten(0, -2)[:77] for tensor in views(13).rays()))
    image = render_triplane(planes[0].cuda(), decoder.to("cuda"), rays, samples=999, precision=precision, **BOX)
    on_host = Rays(*(tensor.cpu() for tensor in rays.rays()))
    expected = twin.render_triplane(planes[0].double(), decoder.to(torch.float64), on_host, samples=999, **BOX)
    assert relative_error(image.cpu(), expected) < (1e-5 if precision == "float32" else 5e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_captured_graph_repeats_the_call(precision, deterministic):
    planes, decoder = problem(16, 32, 64)
    leaf, weights = planes[0].cuda().requires_grad_(), decoder.to("cuda")
    rays = Rays(*(tensor.cuda() for tensor in views(20).rays()))
    cells = (torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.5).cuda()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        image = render_triplane(leaf, weights, rays, samples=24, occupancy=cells, precision=precision, **BOX)
        return image, torch.autograd.grad(image.sum(), leaf)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaf.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    for found, expected in zip(captured, step(), strict=True):
        assert torch.equal(found, expected)


def test_a_large_decoder_takes_the_twin():
    planes, decoder = problem(8, 16, 700)
    found = everything(planes, decoder, views(5), 6, "cuda", torch.float32)
    expected = everything(planes, decoder, views(5), 6, "cpu", torch.float64)
    for value, reference in zip(found, expected, strict=True):
        assert relative_error(value, reference) < 1e-4


def test_runs_on_the_current_stream():
    planes, decoder = problem(16, 8, 16)
    decoder = decoder.to("cuda")
    cameras = Rays(*(tensor.cuda() for tensor in views(9).rays()))
    expected = render_triplane(planes[0].cuda(), decoder, cameras, samples=8, **BOX)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        busy = torch.zeros(1 << 26, device="cuda")
        for _ in range(20):
            busy += 1  # the planes below are ready only after this
        on_stream = planes[0].cuda() + (busy[0] - 20)
        found = render_triplane(on_stream, decoder, cameras, samples=8, **BOX)
    stream.synchronize()
    assert torch.equal(found, expected)


def test_mixed_devices_are_refused():
    planes, decoder = problem(8, 4, 6)
    with pytest.raises(TypeError, match="cuda"):
        query_triplane(planes.cuda(), decoder, torch.zeros(2, 3), **BOX)
