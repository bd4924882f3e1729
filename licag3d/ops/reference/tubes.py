# SPDX-License-Identifier: Apache-2.0
"""Plain-torch twin of ``project_tubes``: every ray against every segment, by another method than the native code.

The native kernel intersects end balls and tangent cone. Here a round cone is what it is by definition, a union of balls
along the segment: the interval begins at the earliest entry into any of the balls and ends at the latest exit, both
found in closed form over the position along the segment. Two derivations that agree check each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from licag3d.geometry import Cameras, Rays

_CHUNK_PAIRS = 1 << 20


def project_tubes(centerline_mm: torch.Tensor, radius_mm: torch.Tensor, segments: torch.Tensor,
                  cameras: Cameras | Rays) -> torch.Tensor:
    """Twin of :func:`licag3d.ops.project_tubes`; computes and returns the dtype of the rays, any size, no gradient."""
    origin, direction = cameras.rays()
    points = torch.cat([centerline_mm, radius_mm[:, None]], 1).to(direction.dtype)
    return path_length(points[segments].reshape(-1, 8), origin, direction)


@torch.no_grad()
def path_length(ends: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Segments ``(M, 8)`` (ax ay az ra bx by bz rb, mm) and rays ``(..., 3)`` to ``(...)`` mm."""
    ends = ends.to(direction.dtype)
    flat_origin, flat = origin.reshape(-1, 3), direction.reshape(-1, 3)
    out = torch.zeros(flat.shape[0], dtype=direction.dtype, device=direction.device)
    if ends.shape[0]:
        for rays in torch.arange(flat.shape[0], device=flat.device).split(max(1, _CHUNK_PAIRS // ends.shape[0])):
            out[rays] = _union_length(*_intervals(ends, flat_origin[rays], flat[rays]))
    finite = torch.isfinite(flat_origin).all(-1) & torch.isfinite(flat).all(-1)
    return torch.where(finite, out, torch.nan).reshape(direction.shape[:-1])


def _intervals(ends, origin, direction) -> tuple[torch.Tensor, torch.Tensor]:
    """Entry and exit ``(R, M)`` in mm along each ray, entry >= exit where they do not meet.

    A ball at position s along the segment has its centre at distance sqrt(A s^2 + 2 B s + C) from the line and at place
    p + q s along it; its radius is ra + k s. Entry is the least of p + q s - sqrt((ra + k s)^2 - distance^2) over s in
    0..1: the root is of a quadratic G(s) = g2 s^2 + 2 g1 s + g0, and the least of p + q s - sqrt(G) lies at an end or
    where its derivative vanishes: q sqrt(G) = g2 s + g1, so s = (-g1 +- q sqrt((g1^2 - g2 g0) / (q^2 - g2))) / g2.
    """
    length = direction.norm(dim=-1)
    unit = direction / torch.where(length > 0, length, 1.0)[:, None]
    a, ra, b, rb = ends[:, 0:3], ends[:, 3], ends[:, 4:7], ends[:, 7]
    axis, growth = b - a, rb - ra
    # Places along the ray are counted from its point nearest to a, to keep numbers small.
    base = ((a - origin[:, None]) * unit[:, None]).sum(-1)
    away = a - (origin[:, None] + base[..., None] * unit[:, None])
    q = (axis * unit[:, None]).sum(-1)
    across = axis - q[..., None] * unit[:, None]
    g2 = growth**2 - (across**2).sum(-1)
    g1 = ra * growth - (away * across).sum(-1)
    g0 = ra**2 - (away**2).sum(-1)
    spread = (g1**2 - g2 * g0) / (q**2 - g2)
    root = q * spread.clamp(min=0).sqrt()
    candidates = [torch.zeros_like(q), torch.ones_like(q), (-g1 + root) / g2, (-g1 - root) / g2]
    entry, exit_ = torch.full_like(q, torch.inf), torch.full_like(q, -torch.inf)
    for s in candidates:
        s = torch.nan_to_num(s, nan=0.0).clamp(0, 1)
        inside = g2 * s**2 + 2 * g1 * s + g0
        half = inside.clamp(min=0).sqrt()
        entry = torch.where(inside > 0, torch.minimum(entry, q * s - half), entry)
        exit_ = torch.where(inside > 0, torch.maximum(exit_, q * s + half), exit_)
    hit = exit_ > entry
    entry = torch.where(hit, (entry + base).clamp(min=0), 0.0)
    return entry, torch.where(hit, torch.minimum(exit_ + base, length[:, None]), 0.0)


def _union_length(entry: torch.Tensor, exit_: torch.Tensor) -> torch.Tensor:
    """Length of the union of the intervals of each row."""
    order = entry.argsort(dim=1)
    entry, exit_ = entry.gather(1, order), exit_.gather(1, order)
    covered = torch.cat([torch.full_like(exit_[:, :1], -torch.inf), exit_.cummax(1).values[:, :-1]], 1)
    return (exit_ - torch.maximum(entry, covered)).clamp(min=0).sum(1)
