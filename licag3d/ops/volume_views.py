# SPDX-License-Identifier: Apache-2.0
"""The compiled operators behind ``project_volume`` for whole views, on the CPU and on CUDA.

A view is given by twelve numbers instead of a ray per pixel: the source, the way from it to pixel (0, 0), and the steps
of that way per column and per row, world mm. The kernels build the rays of a small tile of pixels at a time, so that no
ray is ever stored; the gradient comes back as twelve numbers per view, which autograd carries on to the parameters of
the camera. Frames are ``(V, 4, 3)`` float64, volumes ``(B, D, H, W)`` float32 or float16, images ``(B, V, rows, cols)``
float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from licag3d.ops import native
from licag3d.ops.custom import custom_op
from licag3d.ops.reference import volume as reference

if TYPE_CHECKING:
    from licag3d.geometry import Cameras

KEEP_EMPTY, HALF, ATOMIC = 1, 2, 4  # licag3d_grid_flags


class Grid(ctypes.Structure):
    """``licag3d_grid`` of csrc/include/licag3d_volume.h; triples are x, y, z."""

    _fields_ = [("batch", ctypes.c_int64), ("stride_batch", ctypes.c_int64), ("stride", ctypes.c_int64 * 3),
                ("size", ctypes.c_int32 * 3), ("flags", ctypes.c_int32), ("voxel_size_mm", ctypes.c_double * 3),
                ("origin_mm", ctypes.c_double * 3), ("step_mm", ctypes.c_double)]


class Views(ctypes.Structure):
    """``licag3d_views`` of csrc/include/licag3d_volume.h."""

    _fields_ = [("frames", ctypes.c_void_p), ("count", ctypes.c_int64), ("rows", ctypes.c_int32),
                ("cols", ctypes.c_int32)]


def make_grid(shape: Sequence[int], voxel_size_mm: Sequence[float], origin_mm: Sequence[float], step_mm: float = 0.0,
              flags: int = 0) -> Grid:
    """The C view of a contiguous volume ``(B, D, H, W)``."""
    batch, depth, height, width = shape
    return Grid(batch, depth * height * width, (ctypes.c_int64 * 3)(1, width, height * width),
                (ctypes.c_int32 * 3)(width, height, depth), flags, (ctypes.c_double * 3)(*voxel_size_mm),
                (ctypes.c_double * 3)(*origin_mm), step_mm)


def frames_of(cameras: Cameras) -> torch.Tensor:
    """Source, way to pixel (0, 0), step per column and per row of every view: ``(V, 4, 3)`` float64, differentiable."""
    names = ("primary_deg", "secondary_deg", "sid_mm", "sod_mm", "spacing_row_mm", "spacing_col_mm", "principal_row",
             "principal_col", "offset_lps_mm")
    wide = cameras.replace(**{name: getattr(cameras, name).double() for name in names})
    # Made on the device: a copy from the host would wait, and could not be captured into a CUDA graph.
    number = torch.arange(3, device=wide.offset_lps_mm.device)
    corners = torch.stack([number == 1, number == 2], 1).double()
    source, way = wide.rays(corners.expand(len(cameras), 3, 2))
    first = way[:, 0]
    return torch.stack([source[:, 0], first, way[:, 1] - first, way[:, 2] - first], 1)


@custom_op("licag3d::project_views")
def project_views(volume: torch.Tensor, frames: torch.Tensor, rows: int, cols: int, voxel_size_mm: list[float],
                  origin_mm: list[float]) -> torch.Tensor:
    """Line integrals ``(B, V, rows, cols)``."""
    volume, frames = volume.detach().contiguous(), frames.detach().contiguous()
    if not native.available(volume.device):
        return reference.project_rays(volume.float(), *_rays(frames, rows, cols), voxel_size_mm, origin_mm, 0.0)
    out = volume.new_empty((volume.shape[0], frames.shape[0], rows, cols), dtype=torch.float32)
    grid = make_grid(volume.shape, voxel_size_mm, origin_mm, flags=_flags(volume))
    native.call("project_views", volume.device, grid, _views(frames, rows, cols), volume, out)
    return out


@custom_op("licag3d::backproject_views")
def backproject_views(images: torch.Tensor, frames: torch.Tensor, size: list[int], voxel_size_mm: list[float],
                      origin_mm: list[float]) -> torch.Tensor:
    """The exact transpose: ``(B, D, H, W)`` float32 with ``size`` (D, H, W)."""
    images, frames = images.detach().contiguous(), frames.detach().contiguous()
    if not native.available(images.device):
        rays = _rays(frames, *images.shape[2:])
        return reference.backproject_rays(images, *rays, size, voxel_size_mm, origin_mm, 0.0)
    out = images.new_zeros((images.shape[0], *size))
    native.call("backproject_views", images.device, make_grid(out.shape, voxel_size_mm, origin_mm),
                _views(frames, *images.shape[2:]), images, out)
    return out


@custom_op("licag3d::project_views_grad_frames")
def grad_frames(volume: torch.Tensor, frames: torch.Tensor, weights: torch.Tensor, voxel_size_mm: list[float],
                origin_mm: list[float]) -> torch.Tensor:
    """Gradient ``(V, 4, 3)`` of ``(weights * project_views(volume)).sum()`` by the frames."""
    volume, frames, weights = (x.detach().contiguous() for x in (volume, frames, weights))
    if not native.available(volume.device):
        rows, cols = weights.shape[2:]
        by_source, by_way = reference.grad_rays(volume.float(), *_rays(frames, rows, cols), weights, voxel_size_mm,
                                                origin_mm, 0.0)
        like = {"dtype": by_way.dtype, "device": by_way.device}
        row, col = torch.arange(rows, **like)[:, None, None], torch.arange(cols, **like)[:, None]
        return torch.stack([x.sum((1, 2)) for x in (by_source, by_way, col * by_way, row * by_way)], 1)
    out = torch.empty_like(frames)
    grid = make_grid(volume.shape, voxel_size_mm, origin_mm, flags=_flags(volume))
    native.call("project_views_grad_frames", volume.device, grid, _views(frames, *weights.shape[2:]), volume, weights,
                out)
    return out


def _flags(volume: torch.Tensor) -> int:
    return HALF if volume.dtype == torch.float16 else 0


def _views(frames: torch.Tensor, rows: int, cols: int) -> Views:
    return Views(frames.data_ptr(), frames.shape[0], rows, cols)


def _rays(frames: torch.Tensor, rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rays ``(V, rows, cols, 3)`` of views, for the plain twins."""
    source, first, per_col, per_row = (x[:, None, None] for x in frames.unbind(1))
    like = {"dtype": frames.dtype, "device": frames.device}
    row, col = torch.arange(rows, **like)[:, None, None], torch.arange(cols, **like)[:, None]
    way = first + col * per_col + row * per_row
    return source.expand_as(way), way


@project_views.register_fake
def _(volume, frames, rows, cols, voxel_size_mm, origin_mm):
    return volume.new_empty((volume.shape[0], frames.shape[0], rows, cols), dtype=torch.float32)


@backproject_views.register_fake
def _(images, frames, size, voxel_size_mm, origin_mm):
    return images.new_empty((images.shape[0], *size))


@grad_frames.register_fake
def _(volume, frames, weights, voxel_size_mm, origin_mm):
    return torch.empty_like(frames)


def _keep_project(ctx, inputs, output):
    volume, frames, _, _, *ctx.spec = inputs
    ctx.size, ctx.dtype = list(volume.shape[1:]), volume.dtype
    # Only the gradient by the frames needs the volume; not keeping it halves the memory of a plain reconstruction.
    ctx.save_for_backward(volume if ctx.needs_input_grad[1] else None, frames)


def _project_backward(ctx, grad):
    volume, frames = ctx.saved_tensors
    by_volume = backproject_views(grad, frames, ctx.size, *ctx.spec).to(ctx.dtype) if ctx.needs_input_grad[0] else None
    by_frames = grad_frames(volume, frames, grad, *ctx.spec) if ctx.needs_input_grad[1] else None
    return by_volume, by_frames, None, None, None, None


def _keep_backproject(ctx, inputs, output):
    images, frames, _, *ctx.spec = inputs
    ctx.image = tuple(images.shape[2:])
    ctx.save_for_backward(images if ctx.needs_input_grad[1] else None, frames)


def _backproject_backward(ctx, grad):
    # <grad, A' y> = <A grad, y>: the gradient by y is the projection of grad, and by the frames that of the right side.
    images, frames = ctx.saved_tensors
    by_images = project_views(grad, frames, *ctx.image, *ctx.spec) if ctx.needs_input_grad[0] else None
    by_frames = grad_frames(grad, frames, images, *ctx.spec) if ctx.needs_input_grad[1] else None
    return by_images, by_frames, None, None, None


def _no_second_order(ctx, *grads):
    raise RuntimeError("second derivatives by the rays are not implemented; detach the cameras, or use "
                       "licag3d.ops.reference.project_volume in float64")


project_views.register_autograd(_project_backward, setup_context=_keep_project)
backproject_views.register_autograd(_backproject_backward, setup_context=_keep_backproject)
grad_frames.register_autograd(_no_second_order)


# --- vmap: what is mapped joins the views or the batch where it can, else one call per entry -------------------------


def _mapped(*pairs) -> list[torch.Tensor]:
    """Tensors with the mapped axis in front; the others as they are."""
    return [x if axis is None else x.movedim(axis, 0) for x, axis in pairs]


def _one_by_one(count: int, call: Callable, *pairs) -> tuple[torch.Tensor, int]:
    results = [call(*(x if axis is None else x.select(axis, n) for x, axis in pairs)) for n in range(count)]
    return torch.stack(results), 0


@project_views.register_vmap
def _(info, in_dims, volume, frames, rows, cols, *spec):
    by_volume, by_frames, *_ = in_dims
    count = info.batch_size
    if by_volume is None:
        (many,) = _mapped((frames, by_frames))
        out = project_views(volume, many.flatten(0, 1), rows, cols, *spec)
        return out.unflatten(1, (count, -1)), 1
    if by_frames is None:
        (many,) = _mapped((volume, by_volume))
        return project_views(many.flatten(0, 1), frames, rows, cols, *spec).unflatten(0, (count, -1)), 0
    return _one_by_one(count, lambda v, f: project_views(v, f, rows, cols, *spec), (volume, by_volume),
                       (frames, by_frames))


@backproject_views.register_vmap
def _(info, in_dims, images, frames, size, *spec):
    by_images, by_frames, *_ = in_dims
    if by_frames is None:
        (many,) = _mapped((images, by_images))
        return backproject_views(many.flatten(0, 1), frames, size, *spec).unflatten(0, (info.batch_size, -1)), 0
    return _one_by_one(info.batch_size, lambda y, f: backproject_views(y, f, size, *spec), (images, by_images),
                       (frames, by_frames))


@grad_frames.register_vmap
def _(info, in_dims, volume, frames, weights, *spec):
    by_volume, by_frames, by_weights, *_ = in_dims
    if by_volume is None and by_frames is not None and by_weights is not None:
        many, scale = _mapped((frames, by_frames), (weights, by_weights))
        scale = scale.movedim(0, 1).flatten(1, 2)  # (B, N V, rows, cols)
        return grad_frames(volume, many.flatten(0, 1), scale, *spec).unflatten(0, (info.batch_size, -1)), 0
    return _one_by_one(info.batch_size, lambda v, f, w: grad_frames(v, f, w, *spec), (volume, by_volume),
                       (frames, by_frames), (weights, by_weights))
