# SPDX-License-Identifier: Apache-2.0
"""Plain-torch twins of ``project_volume`` and ``backproject``; the quadratures are those of csrc/core/volume.h.

Samples are computed in the dtype of the rays and summed in the dtype of the volume, so float64 inputs give a float64
reference. Autograd runs through every line.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    size = [float(voxel_size_mm)] * 3 if isinstance(voxel_size_mm, (int, float)) else [float(x) for x in voxel_size_mm]
    batch = volume if volume.dim() == 4 else volume[None]
    origin, direction = cameras.rays()
    out = _project(batch, origin, direction, size, [float(x) for x in origin_mm], float(step_mm or 0.0))
    return out if volume.dim() == 4 else out[0]


def backproject(projections: torch.Tensor, cameras: Cameras | Rays, *, shape: Sequence[int],
                voxel_size_mm: float | Sequence[float], origin_mm: Sequence[float],
                step_mm: float | None = None) -> torch.Tensor:
    """Twin of :func:`licag3d.ops.backproject`: the transpose as autograd derives it from the twin projection."""
    size = [float(voxel_size_mm)] * 3 if isinstance(voxel_size_mm, (int, float)) else [float(x) for x in voxel_size_mm]
    origin, direction = cameras.rays()
    batched = projections.dim() == direction.dim()
    batch = projections if batched else projections[None]
    with torch.enable_grad():
        zero = batch.new_zeros((batch.shape[0], *shape), requires_grad=True)
        image = _project(zero, origin, direction, size, [float(x) for x in origin_mm], float(step_mm or 0.0))
        keep = torch.is_grad_enabled() and (batch.requires_grad or origin.requires_grad or direction.requires_grad)
        (out,) = torch.autograd.grad(image, zero, batch, create_graph=keep, allow_unused=True)
    out = torch.zeros_like(zero) if out is None else out
    return out if batched else out[0]


def project_rays(volume, origin, direction, voxel_size_mm, origin_mm, step_mm) -> torch.Tensor:
    """The fallback of the native operator: the same values, float32, no graph."""
    with torch.no_grad():
        return _project(volume, origin.detach(), direction.detach(), voxel_size_mm, origin_mm, step_mm)


def backproject_rays(projections, origin, direction, size, voxel_size_mm, origin_mm, step_mm) -> torch.Tensor:
    """The fallback of the native transpose."""
    # Inside a custom operator autograd is off at the dispatcher; detached leaves and an explicit graph still work.
    with torch.inference_mode(False), torch.enable_grad():
        zero = projections.new_zeros((projections.shape[0], *size)).requires_grad_()
        image = _project(zero, origin.detach(), direction.detach(), voxel_size_mm, origin_mm, step_mm)
        (out,) = torch.autograd.grad(image, zero, projections.detach(), allow_unused=True)
    return torch.zeros_like(zero) if out is None else out.detach()


def grad_rays(volume, origin, direction, weights, voxel_size_mm, origin_mm,
              step_mm) -> tuple[torch.Tensor, torch.Tensor]:
    """The fallback of the native gradient by the rays."""
    with torch.inference_mode(False), torch.enable_grad():
        start, way = (x.detach().clone().contiguous().requires_grad_() for x in (origin, direction))
        image = _project(volume.detach(), start, way, voxel_size_mm, origin_mm, step_mm)
        found = torch.autograd.grad(image, (start, way), weights.detach(), allow_unused=True)
    return tuple(torch.zeros_like(start) if g is None else g.detach() for g in found)


def _project(volume: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor, voxel_size_mm: Sequence[float],
             origin_mm: Sequence[float], step_mm: float) -> torch.Tensor:
    """``(B, D, H, W)`` and rays ``(..., 3)`` to ``(B, ...)``."""
    start, way = origin.reshape(-1, 3), direction.reshape(-1, 3)
    size, first = start.new_tensor(voxel_size_mm), start.new_tensor(origin_mm)
    index_start, index_way = (start - first) / size, way / size
    length = _length(way)
    finite = torch.isfinite(start).all(-1) & torch.isfinite(way).all(-1)
    usable = finite & (length > 0)
    count = start.shape[0]
    # A ray without length stays 0, one that is not finite is NaN.
    out = torch.where(finite, 0.0, float("nan")).to(volume.dtype).expand(volume.shape[0], count)
    main = index_way.detach().abs().argmax(-1)
    pieces, places = [], []
    groups = [(usable & (main == axis), axis) for axis in range(3)] if step_mm == 0 else [(usable, -1)]
    for chosen, axis in groups:
        rays = chosen.nonzero()[:, 0]
        if rays.numel() == 0:
            continue
        samples = volume.shape[1 + 2 - axis] if axis >= 0 else _march_samples(
            volume, index_start[rays], index_way[rays], length[rays], step_mm)[1]
        for part in rays.split(max(1, _CHUNK_SAMPLES // max(1, samples))):
            arguments = volume, index_start[part], index_way[part], length[part]
            pieces.append(_planes(*arguments, axis) if axis >= 0 else _march(*arguments, step_mm))
            places.append(part)
    if not pieces:
        return out.clone().reshape(volume.shape[0], *direction.shape[:-1])
    return out.index_copy(1, torch.cat(places), torch.cat(pieces, 1)).reshape(volume.shape[0], *direction.shape[:-1])


def _length(way: torch.Tensor) -> torch.Tensor:
    # The gradient of a norm at zero is NaN; rays without length take no part and must not spread it.
    square = (way * way).sum(-1)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)


def _planes(volume, start, way, length, axis: int) -> torch.Tensor:
    """Planes rule: p = L sum_k w_k f(x(t_k)) (P. M. Joseph, IEEE Trans. Med. Imaging 1 (1982) 192-196)."""
    k = torch.arange(volume.shape[3 - axis], dtype=start.dtype, device=start.device)
    begin, step = start[:, axis, None], way[:, axis, None]
    points = [k.expand(start.shape[0], -1) if a == axis else start[:, a, None] + (k - begin) / step * way[:, a, None]
              for a in range(3)]
    low, high = torch.minimum(begin, begin + step), torch.maximum(begin, begin + step)
    weight = (torch.minimum(k + 0.5, high) - torch.maximum(k - 0.5, low)).clamp(min=0)
    # Sums over planes touch only planes near the ray's own extent; the scale is the ray length between two planes.
    scale = length / way[:, axis].abs()
    return (_trilinear(volume, *points) * (weight * scale[:, None]).to(volume.dtype)).sum(-1)


def _march_samples(volume, start, way, length, step_mm: float) -> tuple[int, int]:
    """First sample and number of samples that cover the grid for all of these rays."""
    with torch.no_grad():
        size = start.new_tensor(volume.shape[:0:-1])
        low, high = (-1 - start) / way, (size - start) / way
        inside = (start > -1) & (start < size)
        still = way.abs() < 1e-12 * way.abs().amax(-1, keepdim=True)
        infinite = torch.full_like(low, torch.inf)
        enter = torch.where(still, torch.where(inside, -infinite, infinite), torch.minimum(low, high)).amax(-1)
        leave = torch.where(still, torch.where(inside, infinite, -infinite), torch.maximum(low, high)).amin(-1)
        enter, leave = enter.clamp(min=0) * length / step_mm, leave.clamp(max=1) * length / step_mm
        hit = enter < leave
        if not hit.any():
            return 0, 0
        first = int(enter[hit].min()) - 1
        return max(first, 0), int(leave[hit].max()) + 2 - max(first, 0)


def _march(volume, start, way, length, step_mm: float) -> torch.Tensor:
    """March rule: p = h sum_i w_i f(o + (i + 1/2) h d/|d|)."""
    first, samples = _march_samples(volume, start, way, length, step_mm)
    i = first + torch.arange(samples, dtype=start.dtype, device=start.device)
    unit = way / length[:, None]
    points = [start[:, a, None] + (i + 0.5) * step_mm * unit[:, a, None] for a in range(3)]
    weight = ((length / step_mm)[:, None] - i).clamp(0, 1)
    return (_trilinear(volume, *points) * (weight * step_mm).to(volume.dtype)).sum(-1)


def _trilinear(volume: torch.Tensor, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The field at index positions ``(R, S)``: ``(B, R, S)``; zero beyond one voxel outside."""
    flat = volume.reshape(volume.shape[0], -1)
    strides, sizes = (1, volume.shape[3], volume.shape[3] * volume.shape[2]), (volume.shape[3], volume.shape[2],
                                                                            volume.shape[1])
    corners = []
    for position, stride, size in zip((x, y, z), strides, sizes, strict=True):
        below = position.detach().floor()
        fraction = position - below
        index = below.clamp(-2, size).long()
        corners.append([(torch.where((at >= 0) & (at < size), weight, torch.zeros_like(weight)),
                         at.clamp(0, size - 1) * stride)
                        for at, weight in ((index, 1 - fraction), (index + 1, fraction))])
    total = torch.zeros((), dtype=volume.dtype, device=volume.device)
    for weight_z, at_z in corners[2]:
        for weight_y, at_y in corners[1]:
            weight_zy, at_zy = weight_z * weight_y, at_z + at_y
            for weight_x, at_x in corners[0]:
                total = total + flat[:, at_zy + at_x] * (weight_zy * weight_x).to(volume.dtype)
    return total
