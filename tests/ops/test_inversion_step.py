# SPDX-License-Identifier: Apache-2.0
"""One step of an inversion, cameras and field together, as one compiled graph, exported, and mapped over cameras."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from triplane_cases import BOX, problem, views

from licag3d.geometry import Rays
from licag3d.ops import backproject, native, project_volume, query_triplane, render_triplane, volume_views
from licag3d.ops import reference as twin

needs_native = pytest.mark.skipif(native.cpu_library() is None, reason="no native library")
GRID = {"voxel_size_mm": 5.0, "origin_mm": (-35.0, -40.0, -30.0)}


class Step(torch.nn.Module):
    """Projections of a field in views that may move; the loss is the distance from given images."""

    def __init__(self) -> None:
        super().__init__()
        planes, decoder = problem(6, 4, 8)
        self.planes = torch.nn.Parameter(planes[0])
        self.shift_mm = torch.nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 2.0]], dtype=torch.float64))
        self.turn_deg = torch.nn.Parameter(torch.tensor([0.5, -0.3], dtype=torch.float64))
        self.decoder, self.cameras = decoder, views(5)

    def forward(self, images: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
        cameras = self.cameras.replace(
            offset_lps_mm=self.cameras.offset_lps_mm + self.shift_mm,
            primary_deg=self.cameras.primary_deg + self.turn_deg,
        )
        found = render_triplane(self.planes, self.decoder, cameras, samples=6, **BOX)
        checked = project_volume(volume, cameras, **GRID)
        return (found - images).square().mean() + (checked - images).square().mean()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 5, 6, generator=generator), torch.rand(9, 10, 11, generator=generator) * 0.01


def test_the_step_compiles_as_one_graph() -> None:
    step, given = Step(), inputs()
    expected = torch.autograd.grad(step(*given), list(step.parameters()))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    value = compiled(*given)
    torch.testing.assert_close(value, step(*given))
    found = torch.autograd.grad(value, list(step.parameters()))
    assert all(float(x.abs().max()) > 0 for x in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_step_exports_and_runs_elsewhere(tmp_path) -> None:
    step, given = Step(), inputs()
    program = torch.export.export(step, given)
    names = {str(node.target) for node in program.graph.nodes}
    assert "licag3d.render_triplane.default" in names and "licag3d.project_views.default" in names
    torch.export.save(program, tmp_path / "step.pt2")
    again = torch.export.load(tmp_path / "step.pt2").module()
    torch.testing.assert_close(again(*given), step(*given))
    others = given[0] + 0.1, given[1] * 2
    torch.testing.assert_close(again(*others), step(*others))


def test_vmap_over_cameras_planes_and_points() -> None:
    planes, decoder = problem(6, 4, 8, batch=3)
    cameras = views(5)
    shifts = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 5

    def image(shift, field=planes[0]):
        moved = cameras.replace(offset_lps_mm=shift)
        return render_triplane(field, decoder, moved, samples=6, **BOX)

    expected = torch.stack([image(shift) for shift in shifts])
    torch.testing.assert_close(torch.func.vmap(image)(shifts), expected)
    expected = torch.stack([image(shift, field) for shift, field in zip(shifts, planes, strict=True)])
    torch.testing.assert_close(torch.func.vmap(image)(shifts, planes), expected)
    points = torch.rand(4, 7, 3, generator=torch.Generator().manual_seed(3)) * 100 - 50

    def values(some, field=planes[1]):
        return query_triplane(field, decoder, some, **BOX)

    torch.testing.assert_close(torch.func.vmap(values)(points), torch.stack([values(some) for some in points]))
    both = torch.func.vmap(values)(points[:3], planes)
    torch.testing.assert_close(both, torch.stack([values(p, f) for p, f in zip(points[:3], planes, strict=True)]))
    leaf, field = shifts.clone().requires_grad_(), planes[0].clone().requires_grad_()
    together = torch.autograd.grad(torch.func.vmap(lambda s: image(s, field))(leaf).square().sum(), (leaf, field))
    apart = torch.autograd.grad(sum(image(shift, field).square().sum() for shift in leaf), (leaf, field))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_second_derivatives_are_refused_and_the_twin_has_them() -> None:
    planes, decoder = problem(5, 4, 6)
    field, cameras = planes[0].requires_grad_(), views(3)
    for call in (
        lambda: render_triplane(field, decoder, cameras, samples=4, **BOX),
        lambda: query_triplane(field, decoder, torch.zeros(2, 3), **BOX),
    ):
        (first,) = torch.autograd.grad(call().sum(), field, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives of the tri-plane operators"):
            first.square().sum().backward()
    image = twin.render_triplane(field, decoder, cameras, samples=4, **BOX)
    (first,) = torch.autograd.grad(image.sum(), field, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), field)
    assert float(second.abs().max()) > 0


@needs_native
def test_rays_by_threads_calling_at_once_on_1_to_64_threads_and_after_a_fork() -> None:
    """The operators for any rays, as test_volume_views has it for whole views."""
    rays = Rays(*(x.detach() for x in views(7).rays()))
    volume = inputs()[1]

    def everything() -> list[torch.Tensor]:
        image = project_volume(volume, rays, **GRID)
        return [image, backproject(image, rays, shape=volume.shape, **GRID)]

    expected, before, answers = everything(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 64):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(everything(), expected, strict=True)), threads
    finally:
        torch.set_num_threads(before)
    workers = [threading.Thread(target=lambda: answers.append(everything())) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(answers) == 4
    assert all(torch.equal(a, b) for answer in answers for a, b in zip(answer, expected, strict=True))
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    out, (packed, alive) = torch.empty_like(expected[0])[None], native.pack_rays(*rays.rays())
    grid = volume_views.make_grid((1, *volume.shape), [5.0] * 3, list(GRID["origin_mm"]))
    child = os.fork()
    if child == 0:
        native.call("project_volume", volume.device, grid, packed, volume, out)
        os._exit(0 if (out[0].numpy() == expected[0].numpy()).all() else 1)
    torch.set_num_threads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del alive
