# SPDX-License-Identifier: Apache-2.0
"""What the prior's fit minimises (:mod:`licag3d.inversion.prior_fit`).

Minimised over code z, deltas of the structure styles, placement and, by trying each, the label:

    sum over matched points      w (1 - g (1 - rho(distance in space to the tree)))
  + sum over centreline points   w (1 - g (1 - rho(distance in the image to the projected tree)))       per view
  + sum over the tree            w g rho(distance in the image of the projected tree to the centrelines)  per view
  + |z|^2 / 2 + |delta|^2 / (2 sigma^2) + placement terms               (sigma 1 where their spread is known)

with w the length that a point stands for, g the gate of the branch that it is compared with and
rho(d) = d^2 / (d^2 + s^2) (Geman and McClure 1985), s falling from centimetres to a millimetre: vessels that the image
or the prior has not got cost a constant and do not pull. Comparison is by the nearest segment in place, direction and
calibre, chosen anew every other step (iterated closest points, Besl and McKay 1992); distances are to the segment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from licag3d.inversion.prior_evidence import Curve, Evidence
from licag3d.inversion.prior_tree import ALIKE, Codes, Segments, project_mm

if TYPE_CHECKING:
    from licag3d.inversion.prior_fit import PriorSettings


def schedule(settings: PriorSettings, step: int) -> tuple[float, float]:
    """Scale of rho in mm and softness of the gates at a step."""
    fall = min(step / settings.steps / settings.settle, 1.0)
    return settings.sigma_mm[0] ** (1 - fall) * settings.sigma_mm[1] ** fall, 4.0 - 3.0 * fall


def code_cost(codes: Codes, home: torch.Tensor, settings: PriorSettings) -> torch.Tensor:
    """Cost ``(B,)`` of codes and placement; ``home`` ``(B, 3)`` is where the centres began."""
    sigma = torch.where(codes.spread == ALIKE, settings.delta_sigma, 1.0)
    total = 0.5 * codes.z.square().sum(1) + 0.5 * codes.delta.square().sum((1, 2)) / sigma**2
    total = total + 0.5 * ((codes.center_mm - home) / settings.shift_sigma_mm).square().sum(1)
    total = total + 0.5 * (codes.turn / np.deg2rad(settings.turn_sigma_deg)).square().sum(1)
    total = total + 0.5 * (codes.log_scale / settings.scale_sigma).square()
    if codes.view_shift_mm.shape[1] > 1:
        # Along the baseline lies the scale gauge: it stays. The reference view does not move at all (_descend).
        sigma = codes.view_shift_mm.new_tensor([*settings.view_shift_sigma_mm, 1e-3])
        total = total + 0.5 * (codes.view_shift_mm / sigma).square().sum((1, 2))
        total = total + 0.5 * (codes.view_turn_deg / settings.view_turn_sigma_deg).square().sum((1, 2))
    return total


def _sides(pieces: Segments, codes: Codes, evidence: Evidence):
    """Space, then each view: its curve, and both ends of the segments there."""
    if len(evidence.matched.points):
        yield evidence.matched, pieces.start, pieces.end
    for k, (curve, camera) in enumerate(zip(evidence.views, evidence.cameras, strict=True)):
        matrix = camera.matrix(codes.view_shift_mm[:, k], codes.view_turn_deg[:, k])
        yield curve, project_mm(matrix, pieces.start), project_mm(matrix, pieces.end)


@torch.no_grad()
def nearest_segments(pieces: Segments, codes: Codes, evidence: Evidence, settings: PriorSettings, sigma: float, named):
    """For space and every view: the segment ``(B, N)`` of each point, and the point ``(B, M)`` of each segment.
    ``named`` ``(B,)`` 1: this start keeps to the encoder's names."""
    out = []
    log_radius = pieces.radius_mm.clamp_min(0.05).log()
    # An absent branch is as far as one that lies two sigmas away.
    absent = (1 - pieces.gate) * (2.0 * sigma) ** 2
    for curve, start, end in _sides(pieces, codes, evidence):
        if not len(curve.points):
            out.append((torch.zeros(len(start), 0, dtype=torch.long), None))
            continue
        distance = _compare(curve, start, end, log_radius, settings)
        if curve.unlike is not None and sigma > settings.named_until_mm and named.any():
            distance += settings.named_mm**2 * named[:, None, None] * curve.unlike[:, pieces.branch]
        drawn = distance.argmin(1) if curve is not evidence.matched else None
        out.append(((distance + absent[:, None]).argmin(2), drawn))
    return out


def _compare(curve: Curve, start, end, log_radius, settings) -> torch.Tensor:
    """Squared distance ``(B, N, M)`` of points and segments in place, direction and calibre: one product, since
    1 - (t.u)^2 is linear in the products of the components of u."""
    middle, along = 0.5 * (start + end), end - start
    unit = along / along.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    center = curve.points.mean(0)
    theirs, mine = middle - center, curve.points - center
    size = mine.shape[1]
    i, j = torch.triu_indices(size, size)
    twice = torch.where(i == j, 1.0, 2.0) * settings.direction_mm**2
    bore = settings.calibre_mm**2
    left = torch.cat([
        -2 * mine, -curve.direction[:, i] * curve.direction[:, j] * twice, -2 * bore * curve.log_radius[:, None],
        torch.ones(len(mine), 1), (mine.square().sum(1) + bore * curve.log_radius.square())[:, None],
    ], 1)  # fmt: skip
    right = torch.cat([
        theirs, unit[..., i] * unit[..., j], log_radius[..., None],
        (theirs.square().sum(-1) + bore * log_radius.square())[..., None], torch.ones_like(log_radius)[..., None],
    ], -1)  # fmt: skip
    return left @ right.mT


def evidence_cost(
    pieces: Segments, codes: Codes, nearest, evidence: Evidence, settings: PriorSettings, sigma: float
) -> torch.Tensor:
    """Cost ``(B,)`` of the evidence for given nearest segments and points."""
    total = pieces.gate.new_zeros(len(pieces.gate))
    log_radius = pieces.radius_mm.clamp_min(0.05).log()
    rows = torch.arange(len(pieces.gate))[:, None]
    sizes = iter(evidence.sizes_mm)
    for (curve, start, end), (segment, point) in zip(_sides(pieces, codes, evidence), nearest, strict=True):
        flat = curve is not evidence.matched
        size = next(sizes) if flat else None
        if not len(curve.points):
            continue
        a, b, gate = start[rows, segment], end[rows, segment], pieces.gate[rows, segment]
        along = b - a
        share = ((curve.points - a) * along).sum(-1) / along.square().sum(-1).clamp_min(1e-6)
        square = (curve.points - a - share.clamp(0, 1)[..., None] * along).square().sum(-1)
        rho = square / (square + sigma**2)
        price = settings.image if flat else settings.space
        total = total + price * (curve.weight * (1 - gate * (1 - rho))).sum(1)
        if not flat:
            ratio = (log_radius[rows, segment] - curve.log_radius).clamp(-1, 1).square()
            total = total + settings.calibre * (curve.weight * (gate * (1 - rho)).detach() * ratio).sum(1)
            continue
        middle = 0.5 * (start + end)
        off, line = middle - curve.points[point], curve.direction[point]
        # Along the vessel the next point is as good: only the distance across it counts.
        slide = (off * line).sum(-1).clamp(-1.0, 1.0)
        square = (off - slide[..., None] * line).square().sum(-1)
        inside = ((middle > 0) & (middle < middle.new_tensor(size))).all(-1)
        drawn = pieces.length_mm.detach() * inside * pieces.gate * square / (square + sigma**2)
        total = total + settings.drawn * drawn.sum(1)
    return total
