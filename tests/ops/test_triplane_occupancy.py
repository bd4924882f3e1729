# SPDX-License-Identifier: Apache-2.0
"""Empty-space skipping, the bound behind it, the two ways to compute, and planes read where they lie."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triplane_cases import BOX, ISAS, problem, relative_error, use_isa, views

from licag3d.ops import TriplaneDecoder, occupancy_of, query_triplane, render_triplane
from licag3d.ops import reference as twin

isa = pytest.fixture(params=ISAS)(use_isa)
WEIGHTS = ("weight_1", "bias_1", "weight_2", "bias_2")


def some_cells(cells: int, share: float, batch: int = 0) -> torch.Tensor:
    shape = (batch, cells, cells, cells) if batch else (cells, cells, cells)
    return torch.rand(shape, generator=torch.Generator().manual_seed(9)) < share


def results(render, query, planes, decoder, occupancy, samples=13, pixels=13):
    """Image, values at points, and every gradient of both."""
    dtype = decoder.weight_1.dtype
    planes = planes.detach().clone(memory_format=torch.preserve_format).to(dtype).requires_grad_()
    decoder = decoder.to(dtype, copy=True).requires_grad_()
    cameras = views(pixels)
    cameras = cameras.replace(offset_lps_mm=cameras.offset_lps_mm.requires_grad_())
    points = (torch.rand(300, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 120 - 60).to(dtype)
    points.requires_grad_()
    image = render(planes, decoder, cameras, samples=samples, occupancy=occupancy, **BOX)
    mu = query(planes, decoder, points, occupancy=occupancy, **BOX)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
    loss = (image * weight).sum() + 10 * (mu * torch.linspace(-1, 1, 300)).sum()
    inputs = [planes, *(getattr(decoder, name) for name in WEIGHTS), cameras.offset_lps_mm, points]
    return [image, mu, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize(("resolution", "channels", "hidden"), [(6, 16, 32), (40, 20, 24)])  # folded, and not
@pytest.mark.parametrize(("cells", "share", "per_item"), [(5, 0.5, False), (13, 0.05, True), (1, 1.0, False)])
def test_agrees_with_the_twin_that_zeroes_empty_cells(isa, resolution, channels, hidden, cells, share, per_item):
    planes, decoder = problem(resolution, channels, hidden, batch=2)
    occupancy = some_cells(cells, share, 2 if per_item else 0)
    found = results(render_triplane, query_triplane, planes, decoder, occupancy)
    expected = results(twin.render_triplane, twin.query_triplane, planes.double(), decoder.to(torch.float64), occupancy)
    for k, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(value, reference) < 2e-5, (k, relative_error(value, reference))


def test_the_twin_zeroes_exactly_the_empty_cells():
    """Against the definition: cell (k, j, i) of [z, y, x] spans an equal part of every edge."""
    planes, decoder = problem(6, 4, 8)
    occupancy = some_cells(4, 0.4)
    low = torch.tensor(BOX["box_center_mm"], dtype=torch.float64) - 50
    k, j, i = (torch.rand(3, 200, generator=torch.Generator().manual_seed(1)) * 4).long()
    inside = torch.stack([i, j, k], -1) + torch.rand(200, 3, generator=torch.Generator().manual_seed(2)) * 0.98 + 0.01
    points = low + inside.double() * 25
    for query in (query_triplane, twin.query_triplane):
        mu = query(planes[0], decoder, points, occupancy=occupancy, **BOX)
        full = query(planes[0], decoder, points, **BOX)
        assert torch.equal(mu != 0, occupancy[k, j, i])
        torch.testing.assert_close(mu[mu != 0], full[mu != 0], rtol=1e-6, atol=0)


def test_all_occupied_is_as_without_and_all_empty_is_zero():
    planes, decoder = problem(12, 16, 16)
    without = results(render_triplane, query_triplane, planes[0], decoder, None)
    for value, reference in zip(
        results(render_triplane, query_triplane, planes[0], decoder, torch.ones(7, 7, 7, dtype=torch.bool)),
        without,
        strict=True,
    ):
        assert relative_error(value, reference) < 1e-6
    for value in results(render_triplane, query_triplane, planes[0], decoder, torch.zeros(7, 7, 7, dtype=torch.bool)):
        assert bool((value == 0).all())


def test_jumps_miss_no_lonely_cell():
    """A single occupied cell in a fine grid, seen by rays from far away in empty space."""
    planes, decoder = problem(8, 4, 8)
    for cell in ((0, 0, 0), (20, 31, 5), (13, 0, 47)):
        occupancy = torch.zeros(48, 48, 48, dtype=torch.bool)
        occupancy[cell] = True
        found = render_triplane(planes[0], decoder, views(19), samples=150, occupancy=occupancy, **BOX)
        expected = twin.render_triplane(
            planes[0].double(), decoder.to(torch.float64), views(19), samples=150, occupancy=occupancy, **BOX
        )
        assert relative_error(found, expected) < 1e-5


def test_results_do_not_depend_on_threads():
    planes, decoder = problem(24, 16, 24, batch=2)
    occupancy = some_cells(9, 0.3, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = results(render_triplane, query_triplane, planes, decoder, occupancy)
        for threads in (2, 7):
            torch.set_num_threads(threads)
            for value, reference in zip(
                results(render_triplane, query_triplane, planes, decoder, occupancy), first, strict=True
            ):
                assert torch.equal(value, reference)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["mixed", "apart"])
@pytest.mark.parametrize("resolution", [6, 40])  # folded, and not
def test_channels_side_by_side_are_read_in_place(isa, layout, resolution):
    planes, decoder = problem(resolution, 32, 16, batch=2)
    if layout == "mixed":
        lying = planes.flatten(1, 2).contiguous(memory_format=torch.channels_last).unflatten(1, (3, 32))
    else:
        lying = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert lying.stride(2) == 1 and torch.equal(lying, planes)
    found = results(render_triplane, query_triplane, lying, decoder, None)
    expected = results(render_triplane, query_triplane, planes, decoder, None)
    assert found[2].stride() == lying.stride()
    for value, reference in zip(found, expected, strict=True):
        assert torch.equal(value, reference)


def test_other_strides_are_copied():
    planes, decoder = problem(8, 16, 16, batch=2)
    wide = torch.zeros(2, 3, 16, 8, 16)
    wide[..., ::2] = planes
    for lying in (
        wide[..., ::2],
        planes.transpose(-1, -2).contiguous().transpose(-1, -2),
        planes[:1].expand(2, -1, -1, -1, -1),
    ):
        image = render_triplane(lying, decoder, views(6), samples=6, **BOX)
        assert torch.equal(image, render_triplane(lying.contiguous(), decoder, views(6), samples=6, **BOX))


def test_opcheck():
    planes, decoder = problem(4, 16, 8, batch=2)
    leaf = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3).requires_grad_()
    weights = [getattr(decoder, name) for name in WEIGHTS]
    box = (list(BOX["box_center_mm"]), BOX["box_size_mm"])
    occupancy = some_cells(4, 0.5)[None]
    origin, to_pixel = (tensor[None].float() for tensor in views(4).rays())
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.licag3d.render_triplane.default,
        (leaf, *weights, origin, to_pixel, *box, 4, occupancy),
        test_utils=checks,
    )
    torch.library.opcheck(
        torch.ops.licag3d.query_triplane.default, (leaf, *weights, torch.rand(30, 3) * 120 - 60, *box, occupancy)
    )


@pytest.mark.parametrize(
    ("occupancy", "error", "message"),
    [
        (torch.ones(4, 4, 4), TypeError, "occupancy is torch.float32"),
        ([True], TypeError, "occupancy is list"),
        (torch.ones(4, 4, 5, dtype=torch.bool), ValueError, "occupancy has shape \\(4, 4, 5\\)"),
        (torch.ones(0, 0, 0, dtype=torch.bool), ValueError, "occupancy has shape"),
        (torch.ones(3, 4, 4, 4, dtype=torch.bool), ValueError, "a batch of B"),
    ],
)
def test_bad_occupancy(occupancy, error, message):
    planes, decoder = problem(8, 4, 6, batch=2)
    with pytest.raises(error, match=message):
        render_triplane(planes, decoder, views(4), samples=3, occupancy=occupancy, **BOX)


def test_what_is_not_finite_is_named():
    planes, decoder = problem(8, 4, 6)
    planes[0, 1, 2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="planes holds? NaN"):
        render_triplane(planes, decoder, views(15), samples=40, **BOX)
    with pytest.raises(ValueError, match="planes holds? NaN"):
        query_triplane(planes, decoder, torch.rand(900, 3) * 90 - 45, **BOX)
    planes = torch.zeros_like(planes)
    with pytest.raises(ValueError, match="decoder.weight_2"):
        render_triplane(planes, replace(decoder, weight_2=decoder.weight_2 * float("inf")), views(4), samples=3, **BOX)


@pytest.mark.parametrize(("resolution", "cells"), [(16, 16), (16, 5), (1, 1), (12, 11)])
@pytest.mark.parametrize("smooth", [False, True])
def test_empty_cells_are_below_the_bound(resolution, cells, smooth):
    planes, decoder = problem(resolution, 8, 24)
    planes = planes[0]
    if smooth and resolution > 4:
        planes = torch.nn.functional.interpolate(planes[..., :4, :4], size=resolution, mode="bicubic")
    points = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(6)) * 100 - 50
    cell = ((points + 50) / 100 * cells).long().clamp(max=cells - 1)
    mu = query_triplane(planes, decoder, points, box_center_mm=(0, 0, 0), box_size_mm=100.0)
    for quantile in (0.2, 0.7):
        below = float(mu.quantile(quantile))
        occupied = occupancy_of(planes, decoder, below_mu_per_mm=below, cells=cells)
        inside = occupied[cell[:, 2], cell[:, 1], cell[:, 0]]
        assert bool((mu[~inside] < below).all())
        # And no looser than it need be: in a smooth field most low places are found.
        if smooth and cells == 16 and quantile == 0.7:
            assert float((~inside)[mu < below].float().mean()) > 0.2


def test_occupancy_of_a_batch_and_bad_numbers():
    planes, decoder = problem(8, 4, 6, batch=2)
    both = occupancy_of(planes, decoder, below_mu_per_mm=0.012, cells=8)
    assert both.shape == (2, 8, 8, 8) and both.dtype == torch.bool
    assert torch.equal(both[1], occupancy_of(planes[1], decoder, below_mu_per_mm=0.012, cells=8))
    high = occupancy_of(planes, decoder, below_mu_per_mm=1e3, cells=4)
    assert not bool(high.any())
    for change in ({"cells": 0}, {"cells": 9}, {"below_mu_per_mm": 0.0}, {"below_mu_per_mm": float("nan")}):
        with pytest.raises(ValueError, match="expected"):
            occupancy_of(planes, decoder, **{"below_mu_per_mm": 0.01, "cells": 4, **change})
    with pytest.raises(TypeError, match="bfloat16"):
        occupancy_of(planes.bfloat16(), TriplaneDecoder.random(4, 6), below_mu_per_mm=0.01, cells=4)
