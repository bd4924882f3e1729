# SPDX-License-Identifier: Apache-2.0
"""Attenuation of a tri-plane field at points, for example to bake a voxel grid."""

from __future__ import annotations

import torch

from licag3d.ops import triplane_native
from licag3d.ops.reference import triplane as twin
from licag3d.ops.triplane_checks import check_field, check_native, check_occupancy, check_points, check_precision
from licag3d.ops.triplane_decoder import TriplaneDecoder


def query_triplane(planes: torch.Tensor, decoder: TriplaneDecoder, points_mm: torch.Tensor, *, box_center_mm,
                   box_size_mm: float, occupancy: torch.Tensor | None = None,
                   precision: str = "float32") -> torch.Tensor:
    """Attenuation at points, exactly zero outside the box; differentiable in planes, decoder and points.

    The field is the one of :func:`licag3d.ops.render_triplane`. The faces of the box belong to it. A point with a NaN
    coordinate lies outside.

    Args:
        planes: ``(3, C, R, R)`` or ``(B, 3, C, R, R)``, order XY, XZ, YZ; float32 or float16.
        decoder: weights for C channels, float32, on the device of the planes.
        points_mm: ``(..., 3)`` world LPS mm, float32 or float64.
        box_center_mm: centre of the box, three numbers, world LPS mm.
        box_size_mm: edge of the box in mm.
        occupancy: as in :func:`licag3d.ops.render_triplane`; points in empty cells are 0 and cost nothing.
        precision: as in :func:`licag3d.ops.render_triplane`.

    Returns:
        ``(...)`` float32 in 1/mm, with B in front for a batch.

    Raises:
        ValueError: shapes that do not fit together, an absurd box, or (on the CPU) planes or decoder weights that are
            not finite.
        TypeError: types or devices that do not fit together.

    Example:
        >>> decoder = TriplaneDecoder.random(channels=8, hidden=16, mu_scale=0.01)
        >>> points = torch.tensor([[0.0, 0.0, 0.0], [200.0, 0.0, 0.0]])
        >>> mu = query_triplane(torch.zeros(3, 8, 32, 32), decoder, points, box_center_mm=(0, 0, 0), box_size_mm=140.0)
        >>> bool(mu[0] > 0), float(mu[1])
        (True, 0.0)
    """
    center_mm, size_mm = check_field(planes, decoder, box_center_mm, box_size_mm)
    check_native(planes)
    number = check_precision(precision)
    check_points(points_mm, planes)
    cells = check_occupancy(occupancy, planes)
    if not triplane_native.ready(planes.device.type, decoder.channels, decoder.hidden):
        return twin.query_triplane(planes, decoder, points_mm, box_center_mm=center_mm, box_size_mm=size_mm,
                                   occupancy=occupancy)
    batch = planes if planes.ndim == 5 else planes[None]
    value = triplane_native.query(batch, decoder.weight_1, decoder.bias_1, decoder.weight_2, decoder.output_bias(),
                                  points_mm, list(center_mm), size_mm, cells, number)
    value = decoder.scaled(value)
    return value if planes.ndim == 5 else value[0]
