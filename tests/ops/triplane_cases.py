# SPDX-License-Identifier: Apache-2.0
"""Problems shared by the tri-plane tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from licag3d.geometry import Camera, Cameras, Rays
from licag3d.ops import TriplaneDecoder, native

BOX = {"box_center_mm": (3.0, -5.0, 8.0), "box_size_mm": 100.0}
ISAS = ["plain", "avx2", "avx512"]
# resolution, channels, hidden, samples, pixels a side, batch
SIZES = [
    (7, 5, 9, 11, 9, 1),
    (32, 32, 64, 24, 20, 2),
    (1, 16, 16, 5, 8, 1),
    (2, 1, 1, 1, 3, 1),
    (20, 48, 33, 10, 13, 1),
    (16, 64, 128, 7, 5, 1),
]


def use_isa(request):
    """The body of a fixture over instruction sets."""
    try:
        native.set_isa(request.param)
    except (ValueError, RuntimeError) as error:
        pytest.skip(str(error))
    yield request.param
    native.set_isa(None)


def views(pixels: int, *, angles=((30.0, 10.0), (-20.0, 0.0))) -> Cameras:
    spacing = min(10.0, 180 / pixels)  # from 13 pixels on, some rays miss the box
    return Cameras.stack(
        [
            Camera(
                a,
                b,
                sid_mm=1000,
                sod_mm=750,
                spacing_row_mm=spacing,
                spacing_col_mm=spacing,
                rows=pixels,
                cols=pixels + 1,
            )
            for a, b in angles
        ]
    )


def rays(origin, to_pixel, dtype=torch.float64) -> Rays:
    return Rays(torch.tensor(origin, dtype=dtype), torch.tensor(to_pixel, dtype=dtype))


def problem(resolution: int, channels: int, hidden: int, batch: int = 1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    planes = torch.randn(batch, 3, channels, resolution, resolution, generator=generator)
    decoder = replace(
        TriplaneDecoder.random(channels, hidden, mu_scale=0.02, bias=-0.3, seed=seed + 1),
        bias_1=0.3 * torch.randn(hidden, generator=generator),
    )
    return planes, decoder


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1e-30))
