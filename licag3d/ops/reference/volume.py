# SPDX-License-Identifier: Apache-2.0
"""Plain-torch twins of ``project_volume`` and ``backproject``; the quadratures are those of csrc/core/volume.h.

Samples are computed in the dtype of the rays and summed in the dtype of the volume, so float64 inputs give a float64
reference. Autograd runs through every line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from licag3d.geometry import Cameras, Rays

# Samples taken at a time: some 20 temporaries of this many numbers are alive at once.
_CHUNK_SAMPLES = 1 << 21


def project_volume(volume: torch.Tensor, cameras: Cameras | Rays, *, voxel_size_mm: float | Sequence[float],
                   origin_mm: Sequence[float], step_mm: float | None = None) -> torch.Tensor:
    """Twin of :func:`licag3d.ops.project_volume`, for any float dtype.

    Args and returns as there; raises ValueError for a volume that is not 3-D or 4-D.
    """
    if volume.dim() not in (3, 4):
        raise ValueError(f"volume has shape {tuple(volume.shape)}; expected (D, H, W) or (B, D, H, W)")
    batch = volume if volume.dim() == 4 else volume[None]
    out = _project(batch, *cameras.rays(), *_spec(voxel_size_mm, origin_mm, step_mm))
    return out if volume.dim() == 4 else out[0]


def backproject(projections: torch.Tensor, cameras: Cameras | Rays, *, shape: Sequence[int],
                voxel_size_mm: float | Sequence[float], origin_mm: Sequence[float],
                step_mm: float | None = None) -> torch.Tensor:
    """Twin of :func:`licag3d.ops.backproject`, for any float dtype.

    Where a gradient is wanted it is the transpose as autograd derives it from the twin projection (memory grows with
    the number of samples), else the samples are spread one part of the rays after another.
    """
    spec = _spec(voxel_size_mm, origin_mm, step_mm)
    origin, direction = cameras.rays()
    batched = projections.dim() == direction.dim()
    batch = projections if batched else projections[None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (batch, origin, direction)):
        zero = batch.new_zeros((batch.shape[0], *shape), requires_grad=True)
        image = _project(zero, origin, direction, *spec)
        (out,) = torch.autograd.grad(image, zero, batch, create_graph=True, allow_unused=True)
        out = torch.zeros_like(zero) if out is None else out
    else:
        out = backproject_rays(batch, origin, direction, shape, *spec)
    return out if batched else out[0]


def project_rays(volume, origin, direction, voxel_size_mm, origin_mm, step_mm) -> torch.Tensor:
    """The fallback of the native operator: the same values, float32, no graph."""
    with torch.no_grad():
        return _project(volume, origin.detach(), direction.detach(), voxel_size_mm, origin_mm, step_mm)


@torch.no_grad()
def backproject_rays(projections, origin, direction, size, voxel_size_mm, origin_mm, step_mm) -> torch.Tensor:
    """The fallback of the native transpose: every sample gives its share to its eight voxels, a part of the rays at a
    time, so that memory does not grow with their number."""
    flat = projections.reshape(projections.shape[0], -1)
    out = flat.new_zeros((flat.shape[0], *size))
    voxels = out.reshape(flat.shape[0], -1)
    spec = voxel_size_mm, origin_mm, step_mm
    for rays, axis in _parts(out, origin, direction, *spec):
        points, weights = _samples(out, origin.reshape(-1, 3)[rays], direction.reshape(-1, 3)[rays], axis, *spec)
        share = flat[:, rays, None] * weights.to(flat.dtype)
        for index, weight in _corners(out, *points):
            # Outside the grid the weight is 0, but 0 * NaN is not.
            share_here = torch.where(weight != 0, share * weight.to(flat.dtype), 0.0)
            voxels.index_add_(1, index.reshape(-1), share_here.reshape(flat.shape[0], -1))
    return out


def grad_rays(volume, origin, direction, weights, voxel_size_mm, origin_mm,
              step_mm) -> tuple[torch.Tensor, torch.Tensor]:
    """The fallback of the native gradient by the rays, also a part of the rays at a time."""
    by_origin, by_direction = torch.zeros_like(direction), torch.zeros_like(direction)
    flat_origin, flat_direction = by_origin.view(-1, 3), by_direction.view(-1, 3)
    flat_weights = weights.detach().reshape(weights.shape[0], -1)
    finite = torch.isfinite(origin).all(-1) & torch.isfinite(direction).all(-1)
    by_origin[~finite] = by_direction[~finite] = torch.nan
    spec = voxel_size_mm, origin_mm, step_mm
    # Inside a custom operator autograd is off; detached leaves and a graph of their own still work.
    with torch.inference_mode(False), torch.enable_grad():
        for rays, axis in _parts(volume, origin, direction, *spec):
            start, way = (x.detach().reshape(-1, 3)[rays].clone().requires_grad_() for x in (origin, direction))
            image = _integrate(volume.detach(), start, way, axis, *spec)
            found = torch.autograd.grad(image, (start, way), flat_weights[:, rays], allow_unused=True)
            for target, value in zip((flat_origin, flat_direction), found, strict=True):
                if value is not None:
                    target[rays] = value
    return by_origin, by_direction


def _spec(voxel_size_mm, origin_mm, step_mm) -> tuple[list[float], list[float], float]:
    size = [float(voxel_size_mm)] * 3 if isinstance(voxel_size_mm, Real) else [float(x) for x in voxel_size_mm]
    return size, [float(x) for x in origin_mm], float(step_mm or 0.0)


def _project(volume: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor, *spec) -> torch.Tensor:
    """``(B, D, H, W)`` and rays ``(..., 3)`` to ``(B, ...)``."""
    start, way = origin.reshape(-1, 3), direction.reshape(-1, 3)
    finite = torch.isfinite(start).all(-1) & torch.isfinite(way).all(-1)
    # A ray without length or without samples stays 0, one that is not finite is NaN.
    out = torch.where(finite, 0.0, float("nan")).to(volume.dtype).repeat(volume.shape[0], 1)
    parts = list(_parts(volume, origin, direction, *spec))
    if parts:
        pieces = [_integrate(volume, start[rays], way[rays], axis, *spec) for rays, axis in parts]
        out = out.index_copy(1, torch.cat([rays for rays, _ in parts]), torch.cat(pieces, 1))
    return out.reshape(volume.shape[0], *direction.shape[:-1])


@torch.no_grad()
def _parts(volume, origin, direction, voxel_size_mm, origin_mm, step_mm) -> Iterator[tuple[torch.Tensor, int]]:
    """The usable rays in parts of bounded work: indices ``(R,)`` and the main axis they share (-1 for the march)."""
    start, way = origin.reshape(-1, 3), direction.reshape(-1, 3)
    usable = torch.isfinite(start).all(-1) & torch.isfinite(way).all(-1) & (way != 0).any(-1)
    main = (way / way.new_tensor(voxel_size_mm)).abs().argmax(-1)
    for axis in range(3) if step_mm == 0 else (-1,):
        rays = (usable & (main == axis) if axis >= 0 else usable).nonzero()[:, 0]
        if rays.numel() == 0:
            continue
        samples = volume.shape[3 - axis] if axis >= 0 else _march_span(volume, start[rays], way[rays], voxel_size_mm,
                                                                        origin_mm, step_mm)[1]
        for part in rays.split(max(1, _CHUNK_SAMPLES // max(1, samples))):
            yield part, axis


def _integrate(volume, start, way, axis, *spec) -> torch.Tensor:
    """Line integrals ``(B, R)`` along usable rays ``(R, 3)`` of one main axis."""
    points, weights = _samples(volume, start, way, axis, *spec)
    return (_trilinear(volume, *points) * weights.to(volume.dtype)).sum(-1)


def _samples(volume, start, way, axis, voxel_size_mm, origin_mm, step_mm) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Index positions x, y, z and weights in mm of all samples, each ``(R, S)``."""
    size = start.new_tensor(voxel_size_mm)
    index_start, index_way = (start - start.new_tensor(origin_mm)) / size, way / size
    length = _length(way)
    if axis >= 0:
        return _planes(volume, index_start, index_way, length, axis)
    first, count = _march_span(volume, start, way, voxel_size_mm, origin_mm, step_mm)
    return _march(index_start, index_way, length, step_mm, first, count)


def _length(way: torch.Tensor) -> torch.Tensor:
    # The gradient of a norm at zero is NaN; rays without length take no part and must not spread it.
    square = (way * way).sum(-1)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)


def _planes(volume, start, way, length, axis: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Planes rule: p = L sum_k w_k f(x(t_k)) (P. M. Joseph, IEEE Trans. Med. Imaging 1 (1982) 192-196)."""
    k = torch.arange(volume.shape[3 - axis], dtype=start.dtype, device=start.device)
    begin, step = start[:, axis, None], way[:, axis, None]
    points = [k.expand(start.shape[0], -1) if a == axis else start[:, a, None] + (k - begin) / step * way[:, a, None]
              for a in range(3)]
    low, high = torch.minimum(begin, begin + step), torch.maximum(begin, begin + step)
    weight = (torch.minimum(k + 0.5, high) - torch.maximum(k - 0.5, low)).clamp(min=0)
    return points, weight * (length / way[:, axis].abs())[:, None]  # w_k times the ray length between two planes


@torch.no_grad()
def _march_span(volume, start, way, voxel_size_mm, origin_mm, step_mm: float) -> tuple[int, int]:
    """First sample and number of samples that cover the grid for all of these rays."""
    size = start.new_tensor(voxel_size_mm)
    index, slope = (start - start.new_tensor(origin_mm)) / size, way / size
    last = start.new_tensor(volume.shape[:0:-1])
    low, high = (-1 - index) / slope, (last - index) / slope
    inside = (index > -1) & (index < last)
    still = slope.abs() < 1e-12 * slope.abs().amax(-1, keepdim=True)
    endless = torch.full_like(low, torch.inf)
    enter = torch.where(still, torch.where(inside, -endless, endless), torch.minimum(low, high)).amax(-1)
    leave = torch.where(still, torch.where(inside, endless, -endless), torch.maximum(low, high)).amin(-1)
    steps = _length(way) / step_mm
    enter, leave = enter.clamp(min=0) * steps, leave.clamp(max=1) * steps
    hit = enter < leave
    if not hit.any():
        return 0, 0
    first = max(int(enter[hit].min()) - 1, 0)
    return first, int(leave[hit].max()) + 2 - first


def _march(start, way, length, step_mm: float, first: int, count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """March rule: p = h sum_i w_i f(o + (i + 1/2) h d/|d|)."""
    i = first + torch.arange(count, dtype=start.dtype, device=start.device)
    unit = way / length[:, None]
    points = [start[:, a, None] + (i + 0.5) * step_mm * unit[:, a, None] for a in range(3)]
    return points, ((length / step_mm)[:, None] - i).clamp(0, 1) * step_mm


def _trilinear(volume: torch.Tensor, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The field at index positions ``(R, S)``: ``(B, R, S)``; zero beyond one voxel outside."""
    flat = volume.reshape(volume.shape[0], -1)
    total = torch.zeros((), dtype=volume.dtype, device=volume.device)
    for index, weight in _corners(volume, x, y, z):
        total = total + flat[:, index] * weight.to(volume.dtype)
    return total


def _corners(volume, x, y, z) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The eight neighbours of each position: flat voxel index and weight, 0 where a neighbour is outside the grid."""
    depth, height, width = volume.shape[1:]
    axes = []
    for position, stride, size in ((x, 1, width), (y, width, height), (z, width * height, depth)):
        below = position.detach().floor()
        fraction = position - below
        index = below.clamp(-2, size).long()
        axes.append([(torch.where((at >= 0) & (at < size), weight, 0.0), at.clamp(0, size - 1) * stride)
                     for at, weight in ((index, 1 - fraction), (index + 1, fraction))])
    for weight_z, at_z in axes[2]:
        for weight_y, at_y in axes[1]:
            weight_zy, at_zy = weight_z * weight_y, at_z + at_y
            for weight_x, at_x in axes[0]:
                yield at_zy + at_x, weight_zy * weight_x
