# SPDX-License-Identifier: Apache-2.0
"""Exact path length through a tree of tubes: the truth renderer of the phantom."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from licag3d.ops import native
from licag3d.ops.custom import custom_op
from licag3d.ops.project_volume import _check_rays
from licag3d.ops.reference import tubes as reference

if TYPE_CHECKING:
    from licag3d.geometry import Cameras, Rays


def project_tubes(centerline_mm: torch.Tensor, radius_mm: torch.Tensor, segments: torch.Tensor,
                  cameras: Cameras | Rays) -> torch.Tensor:
    """Length of each ray inside the union of round cones.

    A segment is the union of the balls whose centre and radius run linearly from its first point to its second: a
    capsule where both radii are equal. Where segments overlap, the length counts once. The intersection is exact (in
    float64 on every device), no sampling is involved; multiply by mu in 1/mm for the line integral.

    There is no gradient: this renders truth. Reconstruct with :func:`licag3d.ops.project_volume` or
    ``render_triplane``.

    Args:
        centerline_mm: ``(N, 3)`` float32 or float64, points in world LPS mm.
        radius_mm: ``(N,)`` same dtype, mm, not negative.
        segments: ``(M, 2)`` int64, indices of the two ends; M may be 0.
        cameras: a batch of V views, or any rays. Fast for views and other image-ordered rays.

    Returns:
        ``(V, rows, cols)`` float32 path length in mm (for ``Rays`` of shape ``(..., 3)``: ``(...)``). A ray with a NaN
        or infinite coordinate gives NaN. Only the part between source and pixel counts.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, device or index, or a radius that is negative or not finite.
        RuntimeError: an argument requires a gradient (and gradients are recorded).

    Example:
        >>> import torch
        >>> from licag3d.geometry import Camera, Cameras
        >>> from licag3d.ops import project_tubes
        >>> view = Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=1, spacing_col_mm=1, rows=65, cols=65)
        >>> points = torch.tensor([[0.0, 0.0, -10.0], [0.0, 0.0, 10.0]])
        >>> path = project_tubes(points, torch.tensor([2.0, 2.0]), torch.tensor([[0, 1]]), Cameras.stack([view]))
        >>> round(float(path[0, 32, 32]), 4)
        4.0
    """
    origin, direction = _check_rays(cameras)
    for name, tensor, dims in (("centerline_mm", centerline_mm, 2), ("radius_mm", radius_mm, 1),
                               ("segments", segments, 2)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; give a torch tensor")
        if tensor.dim() != dims:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {dims} dimensions")
        if tensor.device != direction.device:
            raise ValueError(f"{name} is on {tensor.device} and the rays on {direction.device}; move one of them")
    if centerline_mm.dtype not in (torch.float32, torch.float64) or radius_mm.dtype != centerline_mm.dtype:
        raise TypeError(f"centerline_mm is {centerline_mm.dtype} and radius_mm {radius_mm.dtype}; give both as float32 "
                        "or both as float64")
    if segments.dtype != torch.int64:
        raise TypeError(f"segments is {segments.dtype}; give int64 indices")
    if centerline_mm.shape[1] != 3 or radius_mm.shape[0] != centerline_mm.shape[0] or segments.shape[1] != 2:
        raise ValueError(f"shapes centerline_mm {tuple(centerline_mm.shape)}, radius_mm {tuple(radius_mm.shape)}, "
                         f"segments {tuple(segments.shape)}; expected (N, 3), (N,), (M, 2)")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (centerline_mm, radius_mm, origin, direction)):
        raise RuntimeError("project_tubes has no gradient; detach its arguments, or reconstruct with project_volume")
    return torch.ops.licag3d.project_tubes(centerline_mm, radius_mm, segments, origin, direction)


@custom_op("licag3d::project_tubes")
def _project_tubes(centerline_mm: torch.Tensor, radius_mm: torch.Tensor, segments: torch.Tensor, origin: torch.Tensor,
                   direction: torch.Tensor) -> torch.Tensor:
    # Values are checked here and not in the public function, which torch.compile traces without values.
    if segments.numel():
        low, high = int(segments.min()), int(segments.max())
        if low < 0 or high >= centerline_mm.shape[0]:
            raise ValueError(f"segments hold indices {low}..{high}; centerline_mm has points "
                             f"0..{centerline_mm.shape[0] - 1}")
    if not bool(torch.isfinite(centerline_mm).all()):
        raise ValueError("centerline_mm holds NaN or infinity; remove those points")
    if not bool(((radius_mm >= 0) & torch.isfinite(radius_mm)).all()):
        raise ValueError("radius_mm holds a negative or non-finite radius; give radii of 0 mm or more")
    points = torch.cat([centerline_mm.detach(), radius_mm.detach()[:, None]], 1).double()
    ends = points[segments].reshape(-1, 8).contiguous()
    if not native.available(direction.device):
        return reference.path_length(ends, origin.detach(), direction.detach()).float()
    out = torch.empty(direction.shape[:-1], dtype=torch.float32, device=direction.device)
    rays, alive = native.pack_rays(origin, direction)
    native.call("project_tubes", direction.device, rays, ends, ctypes.c_int64(ends.shape[0]), out)
    del alive
    return out


@_project_tubes.register_fake
def _(centerline_mm, radius_mm, segments, origin, direction):
    return direction.new_empty(direction.shape[:-1], dtype=torch.float32)
