# SPDX-License-Identifier: Apache-2.0
"""Projections of a tri-plane field: ray, tri-plane sample, decoder and line integral in one native operator."""

from __future__ import annotations

import torch

from licag3d.ops import triplane_native
from licag3d.ops.reference import triplane as twin
from licag3d.ops.triplane_checks import (
    AnyRays,
    check_field,
    check_native,
    check_occupancy,
    check_precision,
    check_samples,
    rays_of,
)
from licag3d.ops.triplane_decoder import TriplaneDecoder


def render_triplane(planes: torch.Tensor, decoder: TriplaneDecoder, cameras: AnyRays, *, box_center_mm,
                    box_size_mm: float, samples: int, occupancy: torch.Tensor | None = None,
                    precision: str = "float32") -> torch.Tensor:
    """Line integrals of the attenuation of a tri-plane field, differentiable in planes, decoder and cameras.

    The box is a cube; outside it the field is exactly zero. Inside, texel i of an axis has its centre at (i + 0.5) / R
    of the edge, planes are sampled bilinearly and clamped at the border. Plane XY is indexed [row = y, column = x], XZ
    [row = z, column = x], YZ [row = z, column = y]. The decoder is described at :class:`TriplaneDecoder`.

    A ray counts from its origin to its pixel. The part of it inside the box (slab test of Kay and Kajiya, SIGGRAPH
    1986) is cut into ``samples`` equal pieces, and the projection is the sum of mu at their middles times their length
    in mm. A ray that misses gives 0, one with a NaN or infinite coordinate NaN; neither has a gradient.

    With ``occupancy`` the field counts as exactly zero in the cells that are False, in the projection and in every
    gradient, and costs nothing there: rays jump from the border of one occupied region to the next. The grid itself has
    no gradient. :func:`licag3d.ops.occupancy_of` makes one that leaves out only what is below a bound.

    float32 throughout, planes also as float16 (the arithmetic stays float32); rays may be float64. The backward pass
    recomputes the samples: memory is O(rays) plus the planes and their gradient once more, multiplied by the decoder's
    first layer where samples are many. Planes that are a view of a ``channels_last`` tensor (``(B, 3 C, R, R)`` viewed
    as ``(B, 3, C, R, R)``, C a multiple of 16) are read in place, and their gradient is laid out alike. On the CPU the
    result does not depend on the number of threads, bit for bit. On CUDA the gradient of the planes is summed by
    atomics in varying order, unless ``torch.use_deterministic_algorithms(True)`` is set: then it is summed in whole
    numbers of 64 bits and repeats bit for bit, as all else does anyway. Planes of more than 64 channels there, or a
    decoder of more than some 10000 weights, take the slower twin.

    Args:
        planes: ``(3, C, R, R)`` or ``(B, 3, C, R, R)``, order XY, XZ, YZ; float32 or float16.
        decoder: weights for C channels, float32, on the device of the planes.
        cameras: V views or any rays, shared by the batch; or a list of B of them of equal size, one for each item.
        box_center_mm: centre of the box, world LPS mm, three numbers (no gradient: to move the box, move the rays).
        box_size_mm: edge of the box in mm.
        samples: samples per ray, 1 to 4096.
        occupancy: bool ``(D, D, D)``, or ``(B, D, D, D)`` one for each item, order [z, y, x]: D equal cells along each
            edge of the box; False where the field counts as zero.
        precision: "bfloat16" lets the products of the decoder, forward and backward, round their inputs to bfloat16
            (sums stay float32), where the processor has AMX and C and the hidden units, rounded up to 16, are
            multiples of 32, or on CUDA where C is at most 32 and hidden units at most 64 (texels are then read as
            float16, values beyond 65504 held there); everywhere else it is the same as "float32". Projections then
            differ by about 1e-3 of the largest, gradients by 1e-2 at most.

    Returns:
        ``(V, rows, cols)``, or the leading shape of the rays, with B in front for a batch; float32, no unit.

    Raises:
        ValueError: shapes that do not fit together, an absurd box, or (on the CPU) planes or decoder weights that are
            not finite.
        TypeError: types or devices that do not fit together.

    Example:
        >>> from licag3d.geometry import Camera, Cameras
        >>> view = Camera(30, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=4, spacing_col_mm=4, rows=48, cols=48)
        >>> decoder = TriplaneDecoder.random(channels=8, hidden=16, mu_scale=0.01)
        >>> planes = torch.zeros(3, 8, 32, 32)
        >>> image = render_triplane(planes, decoder, Cameras.stack([view]), box_center_mm=(0, 0, 0), box_size_mm=140.0,
        ...                         samples=64)
        >>> tuple(image.shape)
        (1, 48, 48)
    """
    center_mm, size_mm = check_field(planes, decoder, box_center_mm, box_size_mm)
    check_native(planes)
    number = check_precision(precision)
    check_samples(samples)
    origin_mm, to_pixel_mm = rays_of(cameras, planes)
    cells = check_occupancy(occupancy, planes)
    if not triplane_native.ready(planes.device.type, decoder.channels, decoder.hidden):
        return twin.render_triplane(planes, decoder, cameras, box_center_mm=center_mm, box_size_mm=size_mm,
                                    samples=samples, occupancy=occupancy)
    batch = planes if planes.ndim == 5 else planes[None]
    value = triplane_native.render(batch, decoder.weight_1, decoder.bias_1, decoder.weight_2, decoder.output_bias(),
                                   origin_mm, to_pixel_mm, list(center_mm), size_mm, int(samples), cells, number)
    value = decoder.scaled(value)
    return value if planes.ndim == 5 else value[0]
