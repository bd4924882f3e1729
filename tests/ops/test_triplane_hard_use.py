# SPDX-License-Identifier: Apache-2.0
"""Tri-plane operators under hard use: bfloat16 products, many threads, forks, odd rays and tensors that do not fit."""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import replace

import pytest
import torch
from triplane_cases import BOX, ISAS, problem, rays, relative_error, use_isa, views

from licag3d.ops import TriplaneDecoder, native, query_triplane, render_triplane, triplane_native
from licag3d.ops import reference as twin

isa = pytest.fixture(params=ISAS)(use_isa)
needs_native = pytest.mark.skipif(native.cpu_library() is None, reason="no native library")


def everything(render, planes, decoder, cameras, **options) -> list[torch.Tensor]:
    """Image and the gradients of planes, decoder and cameras, for fixed weights of the pixels."""
    planes, decoder = planes.clone().requires_grad_(), decoder.to(planes.dtype, copy=True).requires_grad_()
    cameras = cameras.replace(offset_lps_mm=cameras.offset_lps_mm.detach().clone().requires_grad_())
    image = render(planes, decoder, cameras, **options, **BOX)
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(3)).to(image.dtype)
    (image * weights).sum().backward()
    inner = [tensor.grad for name, tensor in decoder.tensors().items() if name not in ("mu_scale", "bias")]
    return [image.detach(), planes.grad, *inner, cameras.offset_lps_mm.grad]


@pytest.mark.parametrize(
    ("resolution", "channels", "hidden", "samples", "batch"),
    [(32, 32, 64, 21, 1), (9, 64, 96, 8, 2), (24, 20, 30, 9, 1), (16, 48, 64, 5, 1)],
)
def test_bfloat16_agrees_with_the_twin(isa, resolution, channels, hidden, samples, batch):
    planes, decoder = problem(resolution, channels, hidden, batch)
    cameras = views(15)
    found = everything(render_triplane, planes, decoder, cameras, samples=samples, precision="bfloat16")
    expected = everything(twin.render_triplane, planes.double(), decoder, cameras, samples=samples)
    for name, tolerance, a, b in zip(
        ("image", "planes", "weight_1", "bias_1", "weight_2", "bias_2", "cameras"),
        (2e-3, *[1e-2] * 6),
        found,
        expected,
        strict=True,
    ):
        assert relative_error(a, b) < tolerance, name
    # 48 channels are no whole tiles; those, and other instruction sets, compute in float32.
    if channels == 48 or isa != "avx512":
        exact = everything(render_triplane, planes, decoder, cameras, samples=samples)
        assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


def test_bfloat16_of_points_and_of_empty_space(isa):
    planes, decoder = problem(20, 32, 32)
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(1)) * 120 - 60
    cells = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.3
    found = query_triplane(planes, decoder, points, occupancy=cells, precision="bfloat16", **BOX)
    expected = twin.query_triplane(planes.double(), decoder.to(torch.float64), points.double(), occupancy=cells, **BOX)
    assert relative_error(found, expected) < 5e-3
    assert torch.equal(found == 0, expected == 0)


def test_what_is_not_a_number_stays_one_in_bfloat16(isa):
    planes, decoder = problem(8, 32, 32)
    planes[..., 3, 3] = float("nan")
    with pytest.raises(ValueError, match="planes holds NaN"):
        render_triplane(planes, decoder, views(9), samples=5, precision="bfloat16", **BOX)


def test_precision_must_be_known():
    planes, decoder = problem(8, 4, 6)
    with pytest.raises(ValueError, match="precision is 'half'; expected 'float32' or 'bfloat16'"):
        render_triplane(planes, decoder, views(4), samples=3, precision="half", **BOX)
    with pytest.raises(ValueError, match="precision is 16"):
        query_triplane(planes, decoder, torch.zeros(1, 3), precision=16, **BOX)


@needs_native
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_1_to_64_threads_give_the_same_bits(precision):
    planes, decoder = problem(40, 32, 64)
    cells = torch.rand(10, 10, 10, generator=torch.Generator().manual_seed(2)) < 0.4
    before, cameras = torch.get_num_threads(), views(40)
    try:
        for occupancy in (None, cells):
            first = None
            for threads in (1, 2, 3, 7, 64):
                torch.set_num_threads(threads)
                got = everything(
                    render_triplane, planes[0], decoder, cameras, samples=17, occupancy=occupancy, precision=precision
                )
                first = first or got
                # The gradient of the cameras ends in a sum by torch, whose order depends on its threads.
                assert all(torch.equal(a, b) for a, b in zip(got[:-1], first[:-1], strict=True)), threads
                assert relative_error(got[-1], first[-1]) < 1e-5
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_threads_calling_at_once_and_a_fork_after_use(precision):
    planes, decoder = problem(16, 32, 32)
    cameras = views(12)
    expected = everything(render_triplane, planes, decoder, cameras, samples=9, precision=precision)
    answers = []
    workers = [
        threading.Thread(
            target=lambda: answers.append(
                everything(render_triplane, planes, decoder, cameras, samples=9, precision=precision)
            )
        )
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(answers) == 4
    assert all(torch.equal(a, b) for answer in answers for a, b in zip(answer, expected, strict=True))
    # The child calls the library alone: torch's own threads do not survive a fork.
    weights = (decoder.weight_1, decoder.bias_1, decoder.weight_2, decoder.output_bias())
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(4)) * 100 - 50
    box = (list(BOX["box_center_mm"]), BOX["box_size_mm"])
    number = ["float32", "bfloat16"].index(precision)
    mu = triplane_native.query(planes, *weights, points, *box, None, number)
    out = torch.empty_like(mu)
    packed, alive = triplane_native._pack_field(planes, *weights, *box, None, number)
    child = os.fork()
    if child == 0:
        native.call("query_triplane_with", planes.device, *packed, points, ctypes.c_int32(0), ctypes.c_int64(500), out)
        os._exit(0 if (out.numpy() == mu.numpy()).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del alive


def test_many_samples_and_rays_in_any_order(isa):
    """Lists that are cut within a ray's tile, slabs of one sample, rays of zero length and none that is finite."""
    planes, decoder = problem(128, 3, 5)
    origin = torch.rand(300, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 160 - 80
    way = torch.rand(300, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 300 - 150
    way[5] = 0.0
    way[6, 0], origin[7, 1] = float("nan"), float("inf")
    bundle = rays(origin.tolist(), way.tolist())
    for samples in (1, 40, 4096):
        some = bundle if samples < 100 else rays(origin[:20].tolist(), way[:20].tolist())
        found = render_triplane(planes[0], decoder, some, samples=samples, **BOX)
        expected = twin.render_triplane(planes[0].double(), decoder.to(torch.float64), some, samples=samples, **BOX)
        assert found[5] == 0 and torch.isnan(found[[6, 7]]).all()
        good = torch.isfinite(expected)
        assert torch.equal(good, torch.isfinite(found))
        assert relative_error(found[good], expected[good]) < 1e-5


def test_tensors_that_do_not_fit_are_named():
    decoder, cameras = TriplaneDecoder.random(16, 16), views(4)
    planes = torch.zeros(3, 16, 8, 8)
    for wrong, error, message in (
        (torch.zeros(3, 16, 8, 8, device="meta"), TypeError, "the planes on meta"),
        (torch.zeros(1).expand(3, 16, 16384, 16384), ValueError, "2\\^31 values per plane"),
        (torch.zeros(3, 16, 0, 0), ValueError, "planes have shape \\(3, 16, 0, 0\\)"),
        (torch.zeros(0, 3, 16, 8, 8), ValueError, "planes have shape \\(0, 3"),
        (planes.int(), TypeError, "planes are torch.int32"),
        (planes.to_sparse(), TypeError, "planes are torch.sparse_coo"),
    ):
        with pytest.raises(error, match=message):
            render_triplane(wrong, decoder, cameras, samples=4, **BOX)
    with pytest.raises(TypeError, match="points_mm lies on meta"):
        query_triplane(planes, decoder, torch.zeros(5, 3, device="meta"), **BOX)
    # What is only laid out in another way is read.
    turned = torch.randn(3, 8, 8, 16).permute(0, 3, 2, 1)
    assert torch.equal(
        render_triplane(turned, decoder, cameras, samples=4, **BOX),
        render_triplane(turned.contiguous(), decoder, cameras, samples=4, **BOX),
    )
    split = replace(decoder, weight_1=decoder.weight_1.t().contiguous().t())
    assert torch.equal(
        render_triplane(turned, split, cameras, samples=4, **BOX),
        render_triplane(turned, decoder, cameras, samples=4, **BOX),
    )


@needs_native
def test_no_memory_is_an_exception(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2**31 - 1)  # scratch for each: more than there is
    with pytest.raises(MemoryError, match="query_triplane"):
        query_triplane(torch.zeros(3, 512, 2, 2), TriplaneDecoder.random(512, 4096), torch.zeros(1, 3), **BOX)
