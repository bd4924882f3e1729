# SPDX-License-Identifier: Apache-2.0
"""Views and rays that the operator tests share."""

from __future__ import annotations

import torch

from licag3d.geometry import Camera, Cameras, Rays

# Every main axis, ties between axes, and a beam along the head-foot axis.
ANGLES = ((0, 0), (30, 10), (90, 0), (-80, 20), (45, 30), (0, 80))


def views(angles=ANGLES, rows: int = 11, cols: int = 9, spacing_mm: float = 5.0, offset_lps_mm=(3, -4, 5)) -> Cameras:
    return Cameras.stack([Camera(primary, secondary, sid_mm=1000, sod_mm=750, spacing_row_mm=spacing_mm,
                                 spacing_col_mm=0.9 * spacing_mm, rows=rows, cols=cols, offset_lps_mm=offset_lps_mm)
                          for primary, secondary in angles])


def single_ray(origin, to_pixel, dtype=torch.float64) -> Rays:
    return Rays(torch.tensor([origin], dtype=dtype), torch.tensor([to_pixel], dtype=dtype))


def random_rays(count: int, seed: int, spread_mm: float = 20.0) -> Rays:
    """Rays between random points, so that many start or end inside a grid of some 40 mm."""
    generator = torch.Generator().manual_seed(seed)
    start, end = (torch.randn(2, count, 3, generator=generator, dtype=torch.float64) * spread_mm).unbind(0)
    return Rays(start, end - start)
