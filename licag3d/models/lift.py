# SPDX-License-Identifier: Apache-2.0
"""A tri-plane residual lifted from the dense maps of the views along their rays, for what no code holds.

A coarse grid of voxels in the box looks at every view where its rays pass. Features are averaged over the views, and
what all views take for a vessel there (the geometric mean of their evidence: a soft visual hull) stands beside them.
Each plane sees the means along its axis, weighted by that agreement, so that a thin vessel that only few voxels hold is
not drowned by the empty ones in front of and behind it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from licag3d.models.named_update import project


class Lift(nn.Module):
    """Residual of the planes. Starts at zero: without training it changes nothing.

    Args:
        dense: channels of the maps. channels: of the lifted features. planes: channels of the generator's planes.
        voxels: N of the grid. resolution: of the residual before it is enlarged.
    """

    def __init__(self, dense: int, channels: int, planes: int, *, voxels: int = 48, resolution: int = 96):
        super().__init__()
        self.voxels, self.resolution, self.planes = voxels, resolution, planes
        self.reduce = nn.Conv2d(dense, channels, 1)
        self.first = nn.Conv2d(2 * (channels + 1), 2 * channels, 3, padding=1)
        self.last = nn.Conv2d(2 * channels, planes, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, seen, place_mm: torch.Tensor, log_scale: torch.Tensor, *, window_mm: float, box_size_mm: float
    ) -> torch.Tensor:
        """``(B, 3, planes, resolution, resolution)``, order XY, XZ, YZ as the generator's planes.

        Args:
            seen: ``ViewFeatures``. place_mm ``(B, V, 2)``, log_scale ``(B, V)``: where the box is in each view.
        """
        b, v = place_mm.shape[:2]
        n, side = self.voxels, seen.maps.shape[-1]
        at = ((torch.arange(n, device=place_mm.device) + 0.5) / n - 0.5) * box_size_mm
        z, y, x = torch.meshgrid(at, at, at, indexing="ij")
        points = torch.stack([x, y, z], -1).reshape(1, -1, 3).expand(b, -1, -1)
        spots, _ = project(points, seen.cameras, place_mm, log_scale)
        grid = (2 * spots / window_mm).flatten(0, 1)[:, None]
        chance = seen.chance.unflatten(2, (side, side)).flatten(0, 1)[:, None]
        maps = torch.cat([self.reduce(seen.maps.flatten(0, 1).float()), chance], 1)
        found = F.grid_sample(maps, grid, align_corners=False)[:, :, 0].unflatten(0, (b, v))
        agreed = (found[:, :, -1].clamp_min(0) + 1e-3).log().mean(1).exp()
        volume = torch.cat([found[:, :, :-1].mean(1), agreed[:, None]], 1).unflatten(2, (n, n, n))
        weight = volume[:, -1:]
        out = []
        for axis in (2, 3, 4):  # along z: XY, along y: XZ, along x: YZ
            seen_along = (volume * weight).sum(axis) / weight.sum(axis)
            plane = torch.cat([seen_along, volume.mean(axis)], 1)
            plane = F.interpolate(plane, size=self.resolution, mode="bilinear", align_corners=False)
            out.append(self.last(F.silu(self.first(plane))))
        return torch.stack(out, 1)


def with_residual(planes: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Planes ``(B, 3, C, R, R)`` with a residual of lower resolution added."""
    b, three, c = residual.shape[:3]
    large = F.interpolate(residual.flatten(0, 1), size=planes.shape[-1], mode="bilinear", align_corners=False)
    return planes + large.view(b, three, c, *planes.shape[-2:])
