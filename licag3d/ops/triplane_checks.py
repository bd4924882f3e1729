# SPDX-License-Identifier: Apache-2.0
"""Checks shared by the tri-plane operators and their twins: a wrong argument is a Python exception, never a crash."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from licag3d.geometry.batch import Cameras, Rays
from licag3d.ops.triplane_decoder import TriplaneDecoder

AnyRays = Cameras | Rays | Sequence[Cameras | Rays]

PRECISIONS = ("float32", "bfloat16")  # in the order of licag3d_triplane_options.precision

_MAX_SAMPLES = 4096
_MAX_CHANNELS = 512
_MAX_HIDDEN = 4096
_MAX_CELLS = 1024


def check_field(planes: torch.Tensor, decoder: TriplaneDecoder, box_center_mm,
                box_size_mm: float) -> tuple[tuple[float, float, float], float]:
    """Checks shapes, types, devices and the box; returns the box as numbers.

    Raises:
        ValueError: shapes that do not fit, an absurd box.
        TypeError: a type or device that does not fit.
    """
    if not isinstance(planes, torch.Tensor) or not isinstance(decoder, TriplaneDecoder):
        raise TypeError(f"planes are {type(planes).__name__}, the decoder {type(decoder).__name__}; give a torch "
                        "tensor and a TriplaneDecoder")
    if planes.layout != torch.strided:
        raise TypeError(f"planes are {planes.layout}; give an ordinary (dense, strided) tensor")
    shape = tuple(planes.shape)
    if planes.ndim not in (4, 5) or shape[-4] != 3 or shape[-1] != shape[-2] or 0 in shape:
        raise ValueError(f"planes have shape {shape}; expected (3, C, R, R) or (B, 3, C, R, R), order XY, XZ, YZ")
    if shape[-3] != decoder.channels:
        raise ValueError(f"planes have {shape[-3]} channels, the decoder takes {decoder.channels}; they must be equal")
    if decoder.channels > _MAX_CHANNELS or decoder.hidden > _MAX_HIDDEN or shape[-1] ** 2 * (shape[-3] + 15) >= 2**31:
        raise ValueError(f"planes {shape} with {decoder.hidden} hidden units are too large; at most "
                         f"{_MAX_CHANNELS} channels, {_MAX_HIDDEN} hidden units and 2^31 values per plane")
    weights = decoder.weight_1.dtype
    if not (planes.dtype == weights or (planes.dtype == torch.float16 and weights == torch.float32)):
        raise TypeError(f"planes are {planes.dtype}, the decoder {weights}; give both in one type, or float16 planes "
                        "with a float32 decoder")
    if weights not in (torch.float32, torch.float64):
        raise TypeError(f"the decoder is {weights}; expected float32 (native) or float64 (twin)")
    for name, tensor in decoder.tensors().items():
        if name not in ("mu_scale", "bias") and tensor.dtype != weights:
            raise TypeError(f"decoder.{name} is {tensor.dtype} beside weight_1 in {weights}; give all in one type")
        if tensor.device != planes.device and tensor.ndim > 0:
            raise TypeError(f"decoder.{name} lies on {tensor.device}, the planes on {planes.device}; move one of them")
    center_mm = _three_numbers(box_center_mm)
    size_mm = float(box_size_mm)
    if not (math.isfinite(size_mm) and size_mm > 0):
        raise ValueError(f"box_size_mm is {size_mm}; expected the edge of the cube in mm, above 0")
    return center_mm, size_mm


def check_native(planes: torch.Tensor) -> None:
    """Raises TypeError for float64: the native kernels would silently lose the precision that was asked for."""
    if planes.dtype == torch.float64:
        raise TypeError("planes are torch.float64; the native operator computes in float32 (for float64 call the twin "
                        "in licag3d.ops.reference)")


def check_points(points_mm: torch.Tensor, planes: torch.Tensor) -> None:
    """Raises ValueError or TypeError unless ``points_mm`` is ``(..., 3)`` of a floating type beside the planes."""
    if not isinstance(points_mm, torch.Tensor) or points_mm.dtype not in (torch.float32, torch.float64):
        kind = points_mm.dtype if isinstance(points_mm, torch.Tensor) else type(points_mm).__name__
        raise TypeError(f"points_mm is {kind}; give a float32 or float64 tensor")
    if points_mm.ndim < 1 or points_mm.shape[-1] != 3:
        raise ValueError(f"points_mm has shape {tuple(points_mm.shape)}; expected (..., 3)")
    if points_mm.device != planes.device:
        raise TypeError(f"points_mm lies on {points_mm.device}, the planes on {planes.device}; move one of them")


def check_precision(precision: str) -> int:
    """``precision`` as the number of the C interface; raises ValueError unless it is one of the two."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected {' or '.join(map(repr, PRECISIONS))}")
    return PRECISIONS.index(precision)


def check_samples(samples: int) -> None:
    """Raises ValueError unless ``samples`` is a sensible whole number."""
    if int(samples) != samples or not 1 <= samples <= _MAX_SAMPLES:
        raise ValueError(f"samples is {samples}; expected a whole number from 1 to {_MAX_SAMPLES} per ray")


def check_occupancy(occupancy: torch.Tensor | None, planes: torch.Tensor) -> torch.Tensor | None:
    """``occupancy`` as ``(1 or B, D, D, D)``: shared by the batch, or one grid for each item.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: not bool, or on another device than the planes.
    """
    if occupancy is None:
        return None
    if not isinstance(occupancy, torch.Tensor) or occupancy.dtype != torch.bool:
        kind = occupancy.dtype if isinstance(occupancy, torch.Tensor) else type(occupancy).__name__
        raise TypeError(f"occupancy is {kind}; give a torch.bool tensor, True where the field may be above zero")
    shape = tuple(occupancy.shape)
    batch = planes.shape[0] if planes.ndim == 5 else 1
    if len(shape) == 3:
        occupancy = occupancy[None]
    if (occupancy.ndim != 4 or len(set(occupancy.shape[1:])) != 1 or not 1 <= shape[-1] <= _MAX_CELLS
            or (len(shape) == 4 and (planes.ndim != 5 or shape[0] != batch))):
        raise ValueError(f"occupancy has shape {shape} for planes {tuple(planes.shape)}; expected (D, D, D), or (B, D, "
                         f"D, D) for a batch of B, order [z, y, x], D from 1 to {_MAX_CELLS}")
    if occupancy.device != planes.device:
        raise TypeError(f"occupancy lies on {occupancy.device}, the planes on {planes.device}; move one of them")
    return occupancy


def rays_of(cameras: AnyRays, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins and vectors to the pixel as ``(1 or B, ..., 3)``: shared by the batch, or one set for each item.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: rays on another device than the planes.
    """
    if isinstance(cameras, (list, tuple)):
        if planes.ndim != 5 or len(cameras) != planes.shape[0]:
            raise ValueError(f"{len(cameras)} sets of cameras for planes of shape {tuple(planes.shape)}; give one set, "
                             "or one for each of B items of planes (B, 3, C, R, R)")
        pairs = [one.rays() for one in cameras]
        if len({tuple(tensor.shape) for pair in pairs for tensor in pair}) > 1:
            raise ValueError("the sets of cameras have different sizes; every item of the batch needs as many rays")
        origin_mm, to_pixel_mm = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    else:
        origin_mm, to_pixel_mm = (tensor[None] for tensor in cameras.rays())
    for name, tensor in (("origin_mm", origin_mm), ("to_pixel_mm", to_pixel_mm)):
        if tensor.ndim < 2 or tensor.shape[-1] != 3 or tensor.shape != to_pixel_mm.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape[1:])}; expected (..., 3), the same for both")
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != to_pixel_mm.dtype:
            raise TypeError(f"{name} is {tensor.dtype}; give float32 or float64, the same for origin and to_pixel")
        if tensor.device != planes.device:
            raise TypeError(f"{name} lies on {tensor.device}, the planes on {planes.device}; move one of them")
    return origin_mm, to_pixel_mm


def _three_numbers(box_center_mm) -> tuple[float, float, float]:
    values = box_center_mm.detach().tolist() if isinstance(box_center_mm, torch.Tensor) else list(box_center_mm)
    if len(values) != 3 or not all(math.isfinite(float(value)) for value in values):
        raise ValueError(f"box_center_mm is {values}; expected three finite numbers, LPS mm")
    x, y, z = (float(value) for value in values)
    return x, y, z
