# SPDX-License-Identifier: Apache-2.0
"""The rivals of tools/benchmark_kernels.py, each set up once and returned as a function that runs it again.

All get the ball of that program and the same geometry. Each raises ImportError where its package is missing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BOX_MM, SID_MM, SOD_MM, ANGLE_DEG = 140.0, 1000.0, 750.0, 30.0


def rtk(
    ball: np.ndarray, chord: np.ndarray, edge_mm: float, spacing_mm: float, threads: int
) -> tuple[Callable, Callable]:
    """Joseph projector and its transpose of itk-rtk, as pipelines that run again at each call."""
    import itk
    from itk import RTK as rtk

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
    image_type = itk.Image[itk.F, 3]
    voxels, pixels = ball.shape[0], chord.shape[0]
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    geometry.AddProjection(SOD_MM, SID_MM, ANGLE_DEG)

    def blank(size: list[int], spacing: list[float]):
        source = rtk.ConstantImageSource[image_type].New(
            Origin=[-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)],
            Spacing=spacing,
            Size=size,
            Constant=0.0,
        )
        source.Update()
        image = source.GetOutput()
        image.DisconnectPipeline()
        return image

    def filled(like, values: np.ndarray):
        image = itk.image_from_array(np.ascontiguousarray(values, np.float32))
        image.SetOrigin(like.GetOrigin())
        image.SetSpacing(like.GetSpacing())
        return image

    screen = blank([pixels, pixels, 1], [spacing_mm, spacing_mm, 1.0])
    grid = blank([voxels] * 3, [edge_mm] * 3)
    forward = rtk.JosephForwardProjectionImageFilter[image_type, image_type].New()
    back = rtk.JosephBackProjectionImageFilter[image_type, image_type].New()
    for pipeline, target, values in ((forward, screen, filled(grid, ball)), (back, grid, filled(screen, chord[None]))):
        pipeline.SetGeometry(geometry)
        pipeline.InPlaceOff()  # working in place would use up the blank target
        pipeline.SetInput(0, target)
        pipeline.SetInput(1, values)

    def call(pipeline) -> np.ndarray:
        pipeline.Modified()
        pipeline.Update()
        return itk.array_view_from_image(pipeline.GetOutput())

    return lambda: call(forward), lambda: call(back)


def diffdrr(ball: np.ndarray, edge_mm: float, spacing_mm: float, pixels: int, points: int, weights=None) -> Callable:
    """The trilinear renderer of DiffDRR on the ball; with weights also its gradients by density and pose."""
    import torch
    import torchio
    from diffdrr.data import read
    from diffdrr.drr import DRR

    density = torch.from_numpy(ball).permute(2, 1, 0).contiguous()
    subject = read(
        torchio.ScalarImage(tensor=density[None], affine=np.diag([edge_mm, edge_mm, edge_mm, 1.0])), orientation="AP"
    )
    renderer = DRR(subject, sdd=SID_MM, height=pixels, delx=spacing_mm, renderer="trilinear")
    renderer.density.copy_(density)  # not what its conversion from Hounsfield units makes of the ball
    rotation, translation = torch.tensor([[ANGLE_DEG, 0.0, 0.0]]), torch.tensor([[0.0, SOD_MM, 0.0]])

    def call() -> np.ndarray:
        if weights is not None:
            renderer.density = density.clone().requires_grad_()
            turn, shift = rotation.clone().requires_grad_(), translation.clone().requires_grad_()
            out = renderer(
                turn, shift, parameterization="euler_angles", convention="ZXY", degrees=True, n_points=points
            )
            out.backward(weights.reshape(out.shape))
            return out.detach().numpy()
        with torch.no_grad():
            return renderer(
                rotation, translation, parameterization="euler_angles", convention="ZXY", degrees=True, n_points=points
            ).numpy()

    return call


def nanodrr(ball, edge_mm: float, cameras, points: int, weights=None, backend: str = "torch") -> Callable:
    """nanodrr on the ball (an array, or a tensor on its device); with weights also its gradients by density and pose.

    It is given the very rays of ``cameras`` and the pose as a matrix on top of them, so that no convention of angles
    comes between.
    """
    import torch
    from nanodrr.data import Subject
    from nanodrr.drr import render

    voxels, pixels = ball.shape[0], cameras.rows
    density = torch.as_tensor(ball)[None, None]
    on = density.device
    to_world, to_grid = torch.eye(4, device=on), torch.eye(4, device=on)
    to_world[:3, :3] *= edge_mm
    to_world[:3, 3] = -(BOX_MM - edge_mm) / 2
    to_grid[:3, :3] *= 2 / voxels
    to_grid[:3, 3] = 1 / voxels - 1
    subject = Subject(
        density,
        torch.zeros_like(density),
        to_world,
        torch.linalg.inv(to_world),
        to_grid,
        torch.zeros(3, device=on),
        max_label=0,
        convert_to_mu=False,
    )
    origin, way = (x.float().reshape(1, -1, 3) for x in cameras.rays())
    rays = {"src": origin[:, :1], "tgt": origin + way}
    unused = torch.eye(3, device=on)[None], torch.tensor([SID_MM], device=on)

    def call() -> np.ndarray:
        pose = torch.eye(4, device=on)[None]
        if weights is None:
            with torch.no_grad():
                out = render(subject, unused[0], pose, unused[1], pixels, pixels, points, backend=backend, **rays)
            return out if out.is_cuda else out.numpy()  # no copy on a device: it would be timed
        subject._image_hu = density.clone().requires_grad_()
        out = render(
            subject, unused[0], pose.requires_grad_(), unused[1], pixels, pixels, points, backend=backend, **rays
        )
        out.backward(weights.reshape(out.shape))
        return out.detach().numpy()

    return call
