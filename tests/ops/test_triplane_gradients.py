# SPDX-License-Identifier: Apache-2.0
"""Gradients of the tri-plane operators: twin against finite differences, native against twin, torch's own checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triplane_cases import BOX, ISAS, SIZES, problem, rays, relative_error, use_isa, views

from licag3d.geometry import Rays
from licag3d.ops import TriplaneDecoder, native, query_triplane, render_triplane
from licag3d.ops import reference as twin

isa = pytest.fixture(params=ISAS)(use_isa)
WEIGHTS = ("weight_1", "bias_1", "weight_2", "bias_2")


def leaves(planes, decoder, dtype) -> tuple[torch.Tensor, TriplaneDecoder]:
    decoder = replace(decoder, mu_scale=torch.tensor(0.02), bias=torch.tensor(-0.3))
    return planes.to(dtype, copy=True).requires_grad_(), decoder.to(dtype, copy=True).requires_grad_()


def test_gradcheck_of_the_twin():
    planes, decoder = problem(4, 2, 3)
    planes, decoder = leaves(planes, decoder, torch.float64)
    bundle = rays(
        [[3.0 - 90, -5 - 30, 8 - 20], [3.0, -5, 8], [3 + 20.0, -5 - 400, 8 + 10], [600.0, 0, 0], [3 - 200.0, -5, 8]],
        [[150.0, 70, 55], [33, 71, 12], [3, 800, 7], [1, 1, 1], [190, 3, 9]],
    )

    def render(planes, origin, to_pixel, *values):
        weights = replace(decoder, **dict(zip(decoder.tensors(), values, strict=True)))
        return twin.render_triplane(planes, weights, Rays(origin, to_pixel), samples=5, **BOX)

    inputs = (
        planes,
        bundle.origin_mm.requires_grad_(),
        bundle.to_pixel_mm.requires_grad_(),
        *decoder.tensors().values(),
    )
    assert torch.autograd.gradcheck(render, inputs, eps=1e-5, atol=1e-6, rtol=1e-5)

    def query(planes, points, *values):
        weights = replace(decoder, **dict(zip(decoder.tensors(), values, strict=True)))
        return twin.query_triplane(planes, weights, points, **BOX)

    points = (
        torch.rand(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 120 - 60
    ).requires_grad_()
    assert torch.autograd.gradcheck(
        query, (planes, points, *decoder.tensors().values()), eps=1e-5, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("size", SIZES)
def test_native_gradients_agree_with_twin(isa, size):
    resolution, channels, hidden, samples, pixels, batch = size
    found, expected = [], []
    for results, render, query, dtype in (
        (found, render_triplane, query_triplane, torch.float32),
        (expected, twin.render_triplane, twin.query_triplane, torch.float64),
    ):
        planes, decoder = leaves(*problem(resolution, channels, hidden, batch), dtype)
        cameras = views(pixels)
        cameras = cameras.replace(
            **{
                name: getattr(cameras, name).requires_grad_()
                for name in ("offset_lps_mm", "primary_deg", "sod_mm", "principal_col")
            }
        )
        image = render(planes, decoder, cameras, samples=samples, **BOX)
        weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(3))
        inputs = [
            planes,
            *decoder.tensors().values(),
            cameras.offset_lps_mm,
            cameras.primary_deg,
            cameras.sod_mm,
            cameras.principal_col,
        ]
        results += torch.autograd.grad((image * weight).sum(), inputs)
        points = torch.rand(111, 3, generator=torch.Generator().manual_seed(4)) * 130 - 65
        points.requires_grad_()
        mu = query(planes, decoder, points, **BOX)
        results += torch.autograd.grad(
            (mu * weight.reshape(batch, -1)[:, :1]).sum(), [planes, *decoder.tensors().values(), points]
        )
    for k, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(value, reference) < 1e-5, (k, relative_error(value, reference))


def test_gradients_through_both_ends_of_the_clip():
    """A constant field: the projection is mu times the chord, whose gradients are known."""
    decoder = TriplaneDecoder.random(2, 3)
    planes = torch.zeros(3, 2, 4, 4)
    x, y, z = BOX["box_center_mm"]
    bundle = rays(
        [[x - 80.0, y - 50.0, z + 20.0], [x - 500.0, y, z], [x - 100.0, y, z]],
        [[500.0, 500.0, 0.0], [1000.0, 0.0, 0.0], [90.0, 30.0, 0.0]],
    )
    origin, to_pixel = bundle.origin_mm.requires_grad_(), bundle.to_pixel_mm.requires_grad_()
    value = render_triplane(planes, decoder, Rays(origin, to_pixel), samples=6, **BOX)
    mu = float(value[1].detach()) / 100
    grad_origin, grad_direction = (g / mu for g in torch.autograd.grad(value.sum(), [origin, to_pixel]))
    # Enters through x = -50, leaves through y = +50, 45 degrees: a shift in x moves the entry, one in y the exit.
    torch.testing.assert_close(
        grad_origin[0], torch.tensor([2**0.5, -(2**0.5), 0.0], dtype=torch.float64), rtol=1e-5, atol=1e-5
    )
    # Face to opposite face along an axis: no shift changes the chord, nor does the length of the vector.
    torch.testing.assert_close(grad_origin[1], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(grad_direction[1], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)
    # Ends inside: the chord is |to_pixel| (1 - entry), with entry = 50 / 90.
    norm = (90.0**2 + 30.0**2) ** 0.5
    entry = 50 / 90
    expected = torch.tensor(
        [90 / norm * (1 - entry) + norm * entry / 90, 30 / norm * (1 - entry), 0.0], dtype=torch.float64
    )
    torch.testing.assert_close(grad_direction[2], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        grad_origin[2], torch.tensor([norm / 90, 0.0, 0.0], dtype=torch.float64), rtol=1e-5, atol=1e-5
    )


def test_no_gradient_from_misses_and_bad_rays():
    planes, decoder = problem(4, 2, 3)
    planes, decoder = planes[0].requires_grad_(), decoder.requires_grad_()
    nan = float("nan")
    bundle = rays([[500.0, 500, 500], [nan, 0, 0], [3.0, -5, 8]], [[1.0, 0, 0], [1, 0, 0], [0, 0, 0]], torch.float32)
    origin, to_pixel = bundle.origin_mm.requires_grad_(), bundle.to_pixel_mm.requires_grad_()
    value = render_triplane(planes, decoder, Rays(origin, to_pixel), samples=4, **BOX)
    for gradient in torch.autograd.grad(value[[0, 2]].sum(), [planes, *decoder.tensors().values(), origin, to_pixel]):
        assert bool((gradient == 0).all())


@pytest.mark.parametrize("wanted", [("planes",), ("decoder",), ("rays",), ("planes", "rays"), ("origin",), ("bias_2",)])
def test_gradients_asked_for_alone_are_the_same(wanted):
    def gradients(names):
        planes, decoder = problem(9, 20, 24)
        bundle = Rays(*views(7).rays())
        tensors = {
            "planes": planes,
            "origin": bundle.origin_mm,
            "to_pixel": bundle.to_pixel_mm,
            **{name: getattr(decoder, name) for name in WEIGHTS},
        }
        tensors = {name: tensor.clone().requires_grad_(name in names) for name, tensor in tensors.items()}
        decoder = replace(decoder, **{name: tensors[name] for name in WEIGHTS})
        value = render_triplane(
            tensors["planes"], decoder, Rays(tensors["origin"], tensors["to_pixel"]), samples=8, **BOX
        )
        value.square().sum().backward()
        return {name: tensors[name].grad for name in names}

    groups = {"decoder": WEIGHTS, "rays": ("origin", "to_pixel")}
    names = [name for group in wanted for name in groups.get(group, (group,))]
    everything = gradients(("planes", "origin", "to_pixel", *WEIGHTS))
    for name, gradient in gradients(names).items():  # the gather adds in another order where slopes are wanted too
        assert relative_error(gradient, everything[name]) < 2e-6, name


def test_results_do_not_depend_on_threads():
    def run(threads):
        torch.set_num_threads(threads)
        planes, decoder = leaves(*problem(24, 20, 30, batch=2), torch.float32)
        image = render_triplane(planes, decoder, views(33), samples=19, **BOX)
        mu = query_triplane(
            planes, decoder, torch.rand(9000, 3, generator=torch.Generator().manual_seed(5)) * 120 - 60, **BOX
        )
        loss = image.square().sum() + mu.square().sum()
        return [image.detach(), mu.detach(), *torch.autograd.grad(loss, [planes, *decoder.tensors().values()])]

    before = torch.get_num_threads()
    try:
        first = run(1)
        for threads in (1, 2, 5):
            for value, reference in zip(run(threads), first, strict=True):
                assert torch.equal(value, reference)
    finally:
        torch.set_num_threads(before)


def test_half_planes_get_half_gradients():
    planes, decoder = problem(8, 16, 16)
    half = planes.half().requires_grad_()
    full = half.detach().float().requires_grad_()
    for leaf in (half, full):
        render_triplane(leaf, decoder, views(6), samples=6, **BOX).mean().backward()
    assert half.grad.dtype == torch.float16
    torch.testing.assert_close(half.grad, full.grad.half())


def test_without_native_library_the_twin_answers(monkeypatch):
    planes, decoder = leaves(*problem(6, 4, 8), torch.float32)
    points = torch.rand(20, 3) * 120 - 60
    cameras = views(6)
    cameras = cameras.replace(offset_lps_mm=cameras.offset_lps_mm.requires_grad_())

    def run():
        image = render_triplane(planes, decoder, cameras, samples=6, **BOX)
        mu = query_triplane(planes, decoder, points, **BOX)
        inputs = [planes, *decoder.tensors().values(), cameras.offset_lps_mm]
        return [image, mu, *torch.autograd.grad(image.sum() + mu.sum(), inputs)]

    with_native = run()
    monkeypatch.setattr(native, "available", lambda device: False)
    for value, reference in zip(run(), with_native, strict=True):
        assert value.dtype == reference.dtype and relative_error(value, reference) < 1e-4


def test_opcheck():
    planes, decoder = leaves(*problem(6, 4, 8, batch=2), torch.float32)
    weights = [getattr(decoder, name) for name in WEIGHTS]
    origin, to_pixel = (tensor[None].float().requires_grad_() for tensor in views(5).rays())
    box = (list(BOX["box_center_mm"]), BOX["box_size_mm"])
    torch.library.opcheck(
        torch.ops.licag3d.render_triplane.default, (planes, *weights, origin.detach(), to_pixel.detach(), *box, 4)
    )
    torch.library.opcheck(
        torch.ops.licag3d.render_triplane.default,
        (planes.detach(), *[w.detach() for w in weights], origin, to_pixel, *box, 4),
    )
    points = (torch.rand(30, 3) * 120 - 60).requires_grad_()
    torch.library.opcheck(torch.ops.licag3d.query_triplane.default, (planes, *weights, points, *box))


def test_compiles_as_one_graph():
    planes, decoder = leaves(*problem(6, 4, 8), torch.float32)
    cameras = views(5)

    def loss(planes, decoder):
        image = render_triplane(planes, decoder, cameras, samples=4, **BOX)
        return (image - 0.5).square().mean() + query_triplane(planes, decoder, torch.zeros(3, 3), **BOX).sum()

    inputs = [planes, *decoder.tensors().values()]
    eager = torch.autograd.grad(loss(planes, decoder), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(planes, decoder), inputs)
    for value, reference in zip(compiled, eager, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-8)
