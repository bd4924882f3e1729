# SPDX-License-Identifier: Apache-2.0
"""Line integrals of a voxel volume along the rays of a view, and the exact transpose.

The field is the trilinear interpolant of the voxel values with zeros outside the grid: it falls to zero over one voxel
beyond the outermost voxel centres. Two quadratures, identical on every device (csrc/core/volume.h):

- planes (``step_mm=None``): the ray is sampled where it crosses the voxel planes of its main axis (the axis along which
  it passes the most voxels); there the field is bilinear. Each sample counts for the ray length between two planes; at
  a ray that starts or ends inside the grid the outermost plane counts for the part of its cell the ray covers
  (P. M. Joseph, IEEE Trans. Med. Imaging 1 (1982) 192-196). Fastest, and exact where the field is linear along the ray.
- march (``step_mm=h``): midpoints of steps of length ``h`` counted from the source; the last step may be a fraction.

The native kernels compute in float32. Gradients exist for the volume and for both ray tensors, and through these for
every camera parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import torch

from licag3d.ops import native, volume_views
from licag3d.ops.custom import custom_op
from licag3d.ops.reference import volume as reference
from licag3d.ops.volume_views import make_grid

if TYPE_CHECKING:
    from licag3d.geometry import Cameras, Rays


def project_volume(volume: torch.Tensor, cameras: Cameras | Rays, *, voxel_size_mm: float | Sequence[float],
                   origin_mm: Sequence[float], step_mm: float | None = None) -> torch.Tensor:
    """Line integrals of a volume.

    Args:
        volume: ``(D, H, W)`` or ``(B, D, H, W)`` float32, index order z, y, x; in 1/mm for a result without unit.
            float16 halves the memory it takes (rounding it to 11 bits); all arithmetic is in float32 all the same.
        cameras: a batch of V views, or any rays. Hundreds of views in one call share what is done per volume.
        voxel_size_mm: edge of a voxel, one number or (x, y, z), mm.
        origin_mm: centre of voxel (0, 0, 0) in world LPS mm, as (x, y, z).
        step_mm: None for the planes rule, else the step of the march, mm.

    Returns:
        ``(V, rows, cols)`` float32, or ``(B, V, rows, cols)``; for ``Rays`` of shape ``(..., 3)``: ``(...)`` or
        ``(B, ...)``. A ray with a NaN or infinite coordinate gives NaN, a ray that misses the grid 0.

    Raises:
        TypeError: a tensor has the wrong dtype or is no tensor.
        ValueError: wrong shape, mixed devices, or a voxel size or step that is not positive and finite.

    Example:
        >>> import torch
        >>> from licag3d.geometry import Camera, Cameras
        >>> from licag3d.ops import project_volume
        >>> view = Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=1, spacing_col_mm=1, rows=65, cols=65)
        >>> cube = torch.ones(20, 20, 20)
        >>> image = project_volume(cube, Cameras.stack([view]), voxel_size_mm=1.0, origin_mm=(-9.5, -9.5, -9.5))
        >>> round(float(image[0, 32, 32]), 3)
        20.0
    """
    spec = _spec(voxel_size_mm, origin_mm, step_mm)
    _check_volume(volume)
    batch = volume if volume.dim() == 4 else volume[None]
    if _whole_views(cameras, volume, step_mm):
        frames = volume_views.frames_of(cameras)
        out = torch.ops.licag3d.project_views(batch, frames, cameras.rows, cameras.cols, *spec[:2])
    else:
        origin, direction = _check_rays(cameras)
        _same_device("volume", volume, direction)
        out = torch.ops.licag3d.project_volume(batch.float(), origin, direction, *spec)
    return out[0] if volume.dim() == 3 else out


def backproject(projections: torch.Tensor, cameras: Cameras | Rays, *, shape: Sequence[int],
                voxel_size_mm: float | Sequence[float], origin_mm: Sequence[float],
                step_mm: float | None = None) -> torch.Tensor:
    """The exact transpose of :func:`project_volume`: ``<project(x), y> == <x, backproject(y)>``.

    Args:
        projections: ``(V, rows, cols)`` or ``(B, V, rows, cols)`` float32 (for ``Rays``: ``(...)`` or ``(B, ...)``).
        cameras: as for :func:`project_volume`.
        shape: ``(D, H, W)`` of the volume.
        voxel_size_mm, origin_mm, step_mm: as for :func:`project_volume`.

    Returns:
        ``(D, H, W)`` or ``(B, D, H, W)`` float32. The result does not depend on the number of CPU threads. On CUDA it
        repeats bit for bit for cameras and the planes rule, where voxels gather; with ``Rays`` or a step it is summed
        by atomics in varying order.

    Raises:
        TypeError, ValueError: as for :func:`project_volume`.
    """
    spec = _spec(voxel_size_mm, origin_mm, step_mm)
    size = _check_shape(shape)
    _check_dtype("projections", projections, (torch.float32,))
    if _whole_views(cameras, projections, step_mm):
        batched = _check_projections(projections, (len(cameras), cameras.rows, cameras.cols))
        batch = projections if batched else projections[None]
        out = torch.ops.licag3d.backproject_views(batch, volume_views.frames_of(cameras), size, *spec[:2])
    else:
        origin, direction = _check_rays(cameras)
        _same_device("projections", projections, direction)
        batched = _check_projections(projections, direction.shape[:-1])
        batch = projections if batched else projections[None]
        out = torch.ops.licag3d.backproject(batch, origin, direction, size, *spec)
    return out if batched else out[0]


def _whole_views(cameras: Cameras | Rays, tensor: torch.Tensor, step_mm: float | None) -> bool:
    """Whether the operators for whole views serve: the planes rule, and cameras that are views on the same device."""
    from licag3d.geometry import Cameras

    if step_mm is not None or not isinstance(cameras, Cameras):
        return False
    return tensor.device.type in ("cpu", "cuda") and cameras.offset_lps_mm.device == tensor.device


def _spec(voxel_size_mm, origin_mm, step_mm) -> tuple[list[float], list[float], float]:
    """Voxel size (x, y, z), origin (x, y, z) and step (0 for the planes rule) as plain numbers."""
    size = [voxel_size_mm] * 3 if isinstance(voxel_size_mm, Real) else list(voxel_size_mm)
    size, start = [float(x) for x in size], [float(x) for x in origin_mm]
    if len(size) != 3 or not all(0 < x < float("inf") for x in size):
        raise ValueError(f"voxel_size_mm is {voxel_size_mm}; give one positive number or (x, y, z) in mm")
    if len(start) != 3 or not all(abs(x) < float("inf") for x in start):
        raise ValueError(f"origin_mm is {origin_mm}; give the centre of voxel (0, 0, 0) as (x, y, z) in mm")
    step = 0.0 if step_mm is None else float(step_mm)
    if step_mm is not None and not 1e-3 * min(size) <= step < float("inf"):
        raise ValueError(f"step_mm is {step_mm}; give a length in mm of at least 1/1000 of a voxel, or None for the "
                         "planes rule")
    return size, start, step


def _check_rays(cameras) -> tuple[torch.Tensor, torch.Tensor]:
    origin, direction = cameras.rays()
    for name, rays in (("ray origins", origin), ("ray directions", direction)):
        if rays.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} are {rays.dtype}; give float32 or float64")
        if rays.dim() < 2 or rays.shape[-1] != 3:
            raise ValueError(f"{name} have shape {tuple(rays.shape)}; expected (..., 3) with at least two dimensions")
    if origin.shape != direction.shape or origin.dtype != direction.dtype or origin.device != direction.device:
        raise ValueError(f"ray origins {tuple(origin.shape)} {origin.dtype} {origin.device} and directions "
                         f"{tuple(direction.shape)} {direction.dtype} {direction.device} differ")
    return origin, direction


def _check_dtype(name: str, tensor: torch.Tensor, dtypes: Sequence[torch.dtype]) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; give a torch tensor")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} is {tensor.layout}; give an ordinary (dense, strided) tensor")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} is {tensor.dtype}; the native operator computes in float32 (for float64 call the twin "
                        "in licag3d.ops.reference)")


def _same_device(name: str, tensor: torch.Tensor, direction: torch.Tensor) -> None:
    if tensor.device != direction.device:
        raise ValueError(f"{name} is on {tensor.device} and the rays on {direction.device}; move one of them")


def _check_volume(volume: torch.Tensor) -> None:
    _check_dtype("volume", volume, (torch.float32, torch.float16))
    if volume.dim() not in (3, 4):
        raise ValueError(f"volume has shape {tuple(volume.shape)}; expected (D, H, W) or (B, D, H, W)")
    _check_shape(volume.shape[-3:])


def _check_shape(shape) -> list[int]:
    size = [int(n) for n in shape]
    if len(size) != 3 or not all(1 <= n <= 16384 for n in size):
        raise ValueError(f"volume size is {tuple(size)}; expected (D, H, W), each from 1 to 16384")
    if size[0] * size[1] * size[2] >= 2**31:
        # Kernels index voxels with 32-bit numbers.
        raise ValueError(f"volume size {tuple(size)} has 2**31 voxels or more; use a coarser grid")
    return size


def _check_projections(projections: torch.Tensor, rays: Sequence[int]) -> bool:
    if projections.shape == torch.Size(rays):
        return False
    if projections.shape[1:] == torch.Size(rays):
        return True
    raise ValueError(f"projections have shape {tuple(projections.shape)}; the rays ask for {tuple(rays)} or "
                     f"(B, {', '.join(map(str, rays))})")


@custom_op("licag3d::project_volume")
def _project(volume: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor, voxel_size_mm: list[float],
             origin_mm: list[float], step_mm: float) -> torch.Tensor:
    volume = volume.detach().contiguous()
    if not native.available(volume.device):
        return reference.project_rays(volume, origin, direction, voxel_size_mm, origin_mm, step_mm)
    out = volume.new_empty((volume.shape[0], *direction.shape[:-1]))
    rays, alive = native.pack_rays(origin, direction)
    grid = make_grid(volume.shape, voxel_size_mm, origin_mm, step_mm)
    native.call("project_volume", volume.device, grid, rays, volume, out)
    del alive
    return out


@custom_op("licag3d::backproject")
def _backproject(projections: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor, size: list[int],
                 voxel_size_mm: list[float], origin_mm: list[float], step_mm: float) -> torch.Tensor:
    projections = projections.detach().contiguous()
    shape = (projections.shape[0], *size)
    if not native.available(projections.device):
        return reference.backproject_rays(projections, origin, direction, size, voxel_size_mm, origin_mm, step_mm)
    out = projections.new_zeros(shape)
    rays, alive = native.pack_rays(origin, direction)
    native.call("backproject", out.device, make_grid(shape, voxel_size_mm, origin_mm, step_mm), rays, projections, out)
    del alive
    return out


@custom_op("licag3d::project_volume_grad_rays")
def _grad_rays(volume: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor, weights: torch.Tensor,
               voxel_size_mm: list[float], origin_mm: list[float],
               step_mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of ``(weights * project(volume)).sum()`` by ray origins and directions."""
    volume, weights = volume.detach().contiguous(), weights.detach().contiguous()
    if not native.available(volume.device):
        return reference.grad_rays(volume, origin, direction, weights, voxel_size_mm, origin_mm, step_mm)
    by_origin, by_direction = volume.new_empty(direction.shape), volume.new_empty(direction.shape)
    rays, alive = native.pack_rays(origin, direction)
    grid = make_grid(volume.shape, voxel_size_mm, origin_mm, step_mm)
    native.call("project_volume_grad_rays", volume.device, grid, rays, volume, weights, by_origin, by_direction)
    del alive
    return by_origin.to(origin.dtype), by_direction.to(origin.dtype)


@_project.register_fake
def _(volume, origin, direction, voxel_size_mm, origin_mm, step_mm):
    return volume.new_empty((volume.shape[0], *direction.shape[:-1]))


@_backproject.register_fake
def _(projections, origin, direction, size, voxel_size_mm, origin_mm, step_mm):
    return projections.new_empty((projections.shape[0], *size))


@_grad_rays.register_fake
def _(volume, origin, direction, weights, voxel_size_mm, origin_mm, step_mm):
    return direction.new_empty(direction.shape), direction.new_empty(direction.shape)


def _keep_project(ctx, inputs, output):
    volume, origin, direction, *ctx.spec = inputs
    ctx.size = list(volume.shape[1:])
    # Only the gradient by the rays needs the volume; not keeping it halves the memory of a plain reconstruction.
    ctx.save_for_backward(volume if any(ctx.needs_input_grad[1:3]) else None, origin, direction)


def _project_backward(ctx, grad):
    volume, origin, direction = ctx.saved_tensors
    by_volume = by_origin = by_direction = None
    if ctx.needs_input_grad[0]:
        by_volume = _backproject(grad, origin, direction, ctx.size, *ctx.spec)
    if any(ctx.needs_input_grad[1:3]):
        by_origin, by_direction = _grad_rays(volume, origin, direction, grad, *ctx.spec)
    return by_volume, by_origin, by_direction, None, None, None


def _keep_backproject(ctx, inputs, output):
    projections, origin, direction, _, *ctx.spec = inputs
    ctx.save_for_backward(projections if any(ctx.needs_input_grad[1:3]) else None, origin, direction)


def _backproject_backward(ctx, grad):
    # <grad, A' y> = <A grad, y>: the gradient by y is the projection of grad, and by the rays that of the right side.
    projections, origin, direction = ctx.saved_tensors
    by_projections = by_origin = by_direction = None
    if ctx.needs_input_grad[0]:
        by_projections = _project(grad, origin, direction, *ctx.spec)
    if any(ctx.needs_input_grad[1:3]):
        by_origin, by_direction = _grad_rays(grad, origin, direction, projections, *ctx.spec)
    return by_projections, by_origin, by_direction, None, None, None, None


def _no_second_order(ctx, *grads):
    raise RuntimeError("second derivatives by the rays are not implemented; detach the rays, or use "
                       "licag3d.ops.reference.project_volume in float64")


_project.register_autograd(_project_backward, setup_context=_keep_project)
_backproject.register_autograd(_backproject_backward, setup_context=_keep_backproject)
_grad_rays.register_autograd(_no_second_order)
