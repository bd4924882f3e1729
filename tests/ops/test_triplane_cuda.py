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


def everything(planes, decoder, cameras: Cameras, samples: int, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Image, baked values and all their gradients, on the CPU."""
    operators = (render_triplane, query_triplane) if device == "cuda" else (twin.render_triplane, twin.query_triplane)
    render, query = operators
    planes = planes.to(device, dtype, copy=True).requires_grad_()
    decoder = replace(decoder, bias=torch.tensor(-0.3)).to(device, dtype, copy=True).requires_grad_()
    origin, to_pixel = (tensor.to(device, copy=True).requires_grad_() for tensor in cameras.rays())
    image = render(planes, decoder, Rays(origin, to_pixel), samples=samples, **BOX)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(3)).to(device)
    inputs = [planes, *decoder.tensors().values()]
    results = [image, *torch.autograd.grad((image * weight).sum(), [*inputs, origin, to_pixel])]
    points = (torch.rand(333, 3, generator=torch.Generator().manual_seed(4)) * 130 - 65).to(device).requires_grad_()
    mu = query(planes, decoder, points, **BOX)
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


def test_all_but_the_plane_gradient_repeats_exactly():
    planes, decoder = problem(24, 20, 30, batch=2)
    first = everything(planes, decoder, views(33), 19, "cuda", torch.float32)
    second = everything(planes, decoder, views(33), 19, "cuda", torch.float32)
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.shape == planes.shape:
            assert relative_error(a, b) < 1e-5
        else:
            assert torch.equal(a, b), k


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
