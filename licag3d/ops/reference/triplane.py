# SPDX-License-Identifier: Apache-2.0
"""Plain-torch twins of ``render_triplane`` and ``query_triplane``: the readable definition, and the fallback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from licag3d.ops.triplane_checks import AnyRays, check_field, check_occupancy, check_points, check_samples, rays_of
from licag3d.ops.triplane_decoder import TriplaneDecoder


def render_triplane(planes: torch.Tensor, decoder: TriplaneDecoder, cameras: AnyRays, *, box_center_mm,
                    box_size_mm: float, samples: int, occupancy: torch.Tensor | None = None) -> torch.Tensor:
    """Twin of :func:`licag3d.ops.render_triplane`; float32 or float64, memory O(rays x samples x hidden)."""
    center_mm, size_mm = check_field(planes, decoder, box_center_mm, box_size_mm)
    check_samples(samples)
    batch = planes if planes.ndim == 5 else planes[None]
    cells = check_occupancy(occupancy, planes)
    value = decoder.scaled(render_batch(batch, decoder, *rays_of(cameras, planes), center_mm, size_mm, samples, cells))
    return value if planes.ndim == 5 else value[0]


def query_triplane(planes: torch.Tensor, decoder: TriplaneDecoder, points_mm: torch.Tensor, *, box_center_mm,
                   box_size_mm: float, occupancy: torch.Tensor | None = None) -> torch.Tensor:
    """Twin of :func:`licag3d.ops.query_triplane`; float32 or float64."""
    center_mm, size_mm = check_field(planes, decoder, box_center_mm, box_size_mm)
    check_points(points_mm, planes)
    batch = planes if planes.ndim == 5 else planes[None]
    cells = check_occupancy(occupancy, planes)
    value = decoder.scaled(query_batch(batch, decoder, points_mm, center_mm, size_mm, cells))
    return value if planes.ndim == 5 else value[0]


def render_batch(planes: torch.Tensor, decoder: TriplaneDecoder, origin_mm: torch.Tensor, to_pixel_mm: torch.Tensor,
                 center_mm: Sequence[float], size_mm: float, samples: int,
                 occupancy: torch.Tensor | None = None) -> torch.Tensor:
    """Integrals ``(B, ...)`` of planes ``(B, 3, C, R, R)`` along rays ``(1 or B, ..., 3)``, without ``mu_scale``;
    occupancy ``(1 or B, D, D, D)``."""
    dtype = decoder.weight_1.dtype
    origin_mm, to_pixel_mm = (rays.to(dtype).expand(len(planes), *rays.shape[1:]) for rays in (origin_mm, to_pixel_mm))
    per_item = [_render_rays(item, decoder, origin.reshape(-1, 3), to_pixel.reshape(-1, 3), center_mm, size_mm, samples,
                             cells)
                for item, origin, to_pixel, cells in zip(planes, origin_mm, to_pixel_mm, _grids(occupancy, planes),
                                                         strict=True)]
    return torch.stack(per_item).reshape(origin_mm.shape[:-1]) if per_item else origin_mm.sum(-1)


def query_batch(planes: torch.Tensor, decoder: TriplaneDecoder, points_mm: torch.Tensor, center_mm: Sequence[float],
                size_mm: float, occupancy: torch.Tensor | None = None) -> torch.Tensor:
    """The field ``(B, ...)`` of planes ``(B, 3, C, R, R)`` at points ``(..., 3)``, without ``mu_scale``; occupancy
    ``(1 or B, D, D, D)``."""
    points = points_mm.to(decoder.weight_1.dtype).reshape(-1, 3)
    center = torch.tensor(center_mm, dtype=points.dtype, device=points.device)
    normalized = (points - center) * (2.0 / size_mm)
    inside = (normalized.abs() <= 1).all(-1)  # false for NaN too
    # The point is moved to the centre before sampling, so that no index or gradient comes from a useless coordinate.
    normalized = torch.where(inside[:, None], normalized, 0.0)
    per_item = [torch.where(inside & _occupied(cells, normalized), _softplus_field(item, decoder, normalized), 0.0)
                for item, cells in zip(planes, _grids(occupancy, planes), strict=True)]
    return torch.stack(per_item).reshape(len(planes), *points_mm.shape[:-1])


def clip_to_box(origin_mm: torch.Tensor, to_pixel_mm: torch.Tensor, center_mm: Sequence[float],
                size_mm: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The part of each ray inside the box: slab test (Kay and Kajiya, SIGGRAPH 1986).

    Returns:
        Parameters ``(N,)`` of entry and exit, in 0..1 from origin to pixel, and ``(N,)`` bool: the ray meets the box.
        A ray that misses has entry = exit = 0, without gradient.
    """
    center = torch.tensor(center_mm, dtype=origin_mm.dtype, device=origin_mm.device)
    low, high = center - size_mm / 2, center + size_mm / 2
    parallel = to_pixel_mm == 0
    divisor = torch.where(parallel, 1.0, to_pixel_mm)
    at_low, at_high = (low - origin_mm) / divisor, (high - origin_mm) / divisor
    near, far = torch.minimum(at_low, at_high), torch.maximum(at_low, at_high)
    between = (origin_mm >= low) & (origin_mm <= high)
    near = torch.where(parallel, torch.where(between, -torch.inf, torch.inf), near)
    far = torch.where(parallel, torch.where(between, torch.inf, -torch.inf), far)
    # max and min with an index take the gradient of one face where two tie; amax would share it.
    entry = near.max(-1).values.clamp(min=0.0)
    leave = far.min(-1).values.clamp(max=1.0)
    hit = (leave > entry) & ~parallel.all(-1)
    return torch.where(hit, entry, 0.0), torch.where(hit, leave, 0.0), hit


def _render_rays(planes: torch.Tensor, decoder: TriplaneDecoder, origin_mm: torch.Tensor, to_pixel_mm: torch.Tensor,
                 center_mm: Sequence[float], size_mm: float, samples: int,
                 occupancy: torch.Tensor | None = None) -> torch.Tensor:
    """Midpoint rule over the clipped part of the rays ``(N, 3)``, without ``mu_scale``; ``(N,)``."""
    finite = (origin_mm.isfinite() & to_pixel_mm.isfinite()).all(-1)
    origin_mm, to_pixel_mm = (torch.where(finite[:, None], rays, 0.0) for rays in (origin_mm, to_pixel_mm))
    entry, leave, hit = clip_to_box(origin_mm, to_pixel_mm, center_mm, size_mm)
    center = torch.tensor(center_mm, dtype=origin_mm.dtype, device=origin_mm.device)
    fraction = (torch.arange(samples, dtype=origin_mm.dtype, device=origin_mm.device) + 0.5) / samples
    along = entry[:, None] + fraction * (leave - entry)[:, None]
    points = origin_mm[:, None, :] + along[..., None] * to_pixel_mm[:, None, :]
    normalized = torch.where(hit[:, None, None], (points - center) * (2.0 / size_mm), 0.0)
    flat = normalized.flatten(0, 1)
    field = torch.where(_occupied(occupancy, flat), _softplus_field(planes, decoder, flat), 0.0)
    field = field.unflatten(0, along.shape)
    safe = torch.where(hit[:, None], to_pixel_mm, 1.0)  # the norm has no gradient at a zero vector
    length_mm = (leave - entry) * safe.norm(dim=-1)
    value = torch.where(hit, field.sum(-1) * length_mm / samples, 0.0)
    return torch.where(finite, value, torch.nan)


def _grids(occupancy: torch.Tensor | None, planes: torch.Tensor) -> Sequence[torch.Tensor | None]:
    """The grid of each item of the batch."""
    return [None] * len(planes) if occupancy is None else list(occupancy.expand(len(planes), -1, -1, -1))


def _occupied(occupancy: torch.Tensor | None, normalized: torch.Tensor) -> torch.Tensor:
    """Whether points ``(N, 3)`` in -1..1 lie in a cell of ``(D, D, D)``, order [z, y, x], that is True; ``(N,)``."""
    if occupancy is None:
        return normalized.new_ones(len(normalized), dtype=torch.bool)
    cells = occupancy.shape[-1]
    x, y, z = ((normalized.detach() + 1) * (cells / 2)).long().clamp(0, cells - 1).unbind(-1)
    return occupancy[z, y, x]


def _softplus_field(planes: torch.Tensor, decoder: TriplaneDecoder, normalized: torch.Tensor) -> torch.Tensor:
    """``softplus(weight_2 h + bias_2 + bias)`` at points ``(N, 3)`` in -1..1; ``(N,)``."""
    x, y, z = normalized.unbind(-1)
    grid = torch.stack([torch.stack(pair, -1) for pair in ((x, y), (x, z), (y, z))])  # (column, row) of XY, XZ, YZ
    sampled = F.grid_sample(planes.to(normalized.dtype), grid[:, :, None, :], mode="bilinear", padding_mode="border",
                            align_corners=False)
    features = sampled[..., 0].mean(0)
    hidden = F.softplus(decoder.weight_1 @ features + decoder.bias_1[:, None])
    return F.softplus(decoder.weight_2 @ hidden + decoder.output_bias())[0]
