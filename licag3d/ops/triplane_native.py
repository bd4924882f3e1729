# SPDX-License-Identifier: Apache-2.0
"""The tri-plane operators as ``torch.library`` custom ops: native kernels, fakes and gradients.

Both ops return the field without ``mu_scale``: it is linear, so the public functions multiply by it in torch. The
backward passes recompute everything from the inputs; nothing per sample is kept between the two.
"""

from __future__ import annotations

import ctypes

import torch

from licag3d.ops import native
from licag3d.ops.custom import custom_op

_CUDA_CHANNELS, _CUDA_WEIGHTS = 64, 10000  # kMaxChannels and kSharedWeights of csrc/cuda/triplane.cu


def ready(device_type: str, channels: int, hidden: int) -> bool:
    """Whether native kernels exist for a field on a device; a compiled graph keeps the answer it was built with."""
    if device_type == "cuda":
        padded = 16 if channels <= 16 else 32 if channels <= 32 else 64
        if channels > _CUDA_CHANNELS or -(-hidden // 16) * 16 * (padded + 2) > _CUDA_WEIGHTS:
            return False
    return native.available(torch.device(device_type))


# What torch.compiler.assume_constant_result sets; calling that would load the compiler, a second, in every command.
ready._dynamo_marked_constant = True


class FieldArrays(ctypes.Structure):
    """``licag3d_triplane`` of csrc/include/licag3d_triplane.h."""

    _fields_ = [("planes", ctypes.c_void_p), ("weight_1", ctypes.c_void_p), ("bias_1", ctypes.c_void_p),
                ("weight_2", ctypes.c_void_p), ("bias_2", ctypes.c_void_p), ("batch", ctypes.c_int64),
                ("channels", ctypes.c_int32), ("resolution", ctypes.c_int32), ("hidden", ctypes.c_int32),
                ("planes_are_half", ctypes.c_int32), ("box_center_mm", ctypes.c_double * 3),
                ("box_size_mm", ctypes.c_double)]


class OptionArrays(ctypes.Structure):
    """``licag3d_triplane_options`` of csrc/include/licag3d_triplane.h."""

    _fields_ = [("occupancy", ctypes.c_void_p), ("cells", ctypes.c_int32), ("occupancy_per_item", ctypes.c_int32),
                ("precision", ctypes.c_int32), ("batch_stride", ctypes.c_int64), ("plane_stride", ctypes.c_int64),
                ("texel_stride", ctypes.c_int64), ("deterministic", ctypes.c_int32)]


class GradientArrays(ctypes.Structure):
    """``licag3d_triplane_gradients`` of csrc/include/licag3d_triplane.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("planes", "weight_1", "bias_1", "weight_2", "bias_2", "origin",
                                                     "direction")]


@custom_op("licag3d::render_triplane")
def render(planes: torch.Tensor, weight_1: torch.Tensor, bias_1: torch.Tensor, weight_2: torch.Tensor,
           bias_2: torch.Tensor, origin_mm: torch.Tensor, to_pixel_mm: torch.Tensor, box_center_mm: list[float],
           box_size_mm: float, samples: int, occupancy: torch.Tensor | None = None,
           precision: int = 0) -> torch.Tensor:
    """``planes`` (B, 3, C, R, R), rays (1 or B, ..., 3), occupancy (1 or B, D, D, D); returns (B, ...)."""
    out = _render_output(planes, to_pixel_mm)
    field, alive = _pack_field(planes, weight_1, bias_1, weight_2, bias_2, box_center_mm, box_size_mm, occupancy,
                               precision)
    rays, rays_alive = native.pack_rays(origin_mm, to_pixel_mm)
    native.call("render_triplane_with", planes.device, *field, rays, ctypes.c_int32(origin_mm.shape[0] > 1),
                ctypes.c_int32(samples), out)
    del alive, rays_alive
    _check_finite(out, planes, weight_1, bias_1, weight_2, bias_2)
    return out


@render.register_fake
def _(planes, weight_1, bias_1, weight_2, bias_2, origin_mm, to_pixel_mm, box_center_mm, box_size_mm, samples,
      occupancy=None, precision=0):
    return _render_output(planes, to_pixel_mm)


@custom_op("licag3d::render_triplane_backward")
def render_backward(planes: torch.Tensor, weight_1: torch.Tensor, bias_1: torch.Tensor, weight_2: torch.Tensor,
                    bias_2: torch.Tensor, origin_mm: torch.Tensor, to_pixel_mm: torch.Tensor,
                    box_center_mm: list[float], box_size_mm: float, samples: int, occupancy: torch.Tensor | None,
                    precision: int, grad: torch.Tensor, wanted: list[bool]) -> list[torch.Tensor]:
    """Gradients of the seven tensors; an unwanted one is empty."""
    inputs = (planes, weight_1, bias_1, weight_2, bias_2, origin_mm, to_pixel_mm)
    field, alive = _pack_field(planes, weight_1, bias_1, weight_2, bias_2, box_center_mm, box_size_mm, occupancy,
                               precision)
    rays, rays_alive = native.pack_rays(origin_mm, to_pixel_mm)
    arrays, gradients = _gradient_arrays(inputs, wanted)
    grad = grad.detach().to(torch.float32).contiguous()
    native.call("render_triplane_backward_with", planes.device, *field, rays, ctypes.c_int32(origin_mm.shape[0] > 1),
                ctypes.c_int32(samples), grad, arrays)
    del alive, rays_alive
    return _finish_gradients(inputs, gradients, wanted)


@render_backward.register_fake
def _(planes, weight_1, bias_1, weight_2, bias_2, origin_mm, to_pixel_mm, box_center_mm, box_size_mm, samples,
      occupancy, precision, grad, wanted):
    return _fake_gradients((planes, weight_1, bias_1, weight_2, bias_2, origin_mm, to_pixel_mm), wanted)


@custom_op("licag3d::query_triplane")
def query(planes: torch.Tensor, weight_1: torch.Tensor, bias_1: torch.Tensor, weight_2: torch.Tensor,
          bias_2: torch.Tensor, points_mm: torch.Tensor, box_center_mm: list[float], box_size_mm: float,
          occupancy: torch.Tensor | None = None, precision: int = 0) -> torch.Tensor:
    """``planes`` (B, 3, C, R, R), ``points_mm`` (..., 3), occupancy (1 or B, D, D, D); returns (B, ...)."""
    out = _query_output(planes, points_mm)
    field, alive = _pack_field(planes, weight_1, bias_1, weight_2, bias_2, box_center_mm, box_size_mm, occupancy,
                               precision)
    points = points_mm.detach().contiguous()
    native.call("query_triplane_with", planes.device, *field, points, ctypes.c_int32(points.dtype == torch.float64),
                ctypes.c_int64(points.numel() // 3), out)
    del alive
    _check_finite(out, planes, weight_1, bias_1, weight_2, bias_2)
    return out


@query.register_fake
def _(planes, weight_1, bias_1, weight_2, bias_2, points_mm, box_center_mm, box_size_mm, occupancy=None, precision=0):
    return _query_output(planes, points_mm)


@custom_op("licag3d::query_triplane_backward")
def query_backward(planes: torch.Tensor, weight_1: torch.Tensor, bias_1: torch.Tensor, weight_2: torch.Tensor,
                   bias_2: torch.Tensor, points_mm: torch.Tensor, box_center_mm: list[float], box_size_mm: float,
                   occupancy: torch.Tensor | None, precision: int, grad: torch.Tensor,
                   wanted: list[bool]) -> list[torch.Tensor]:
    """Gradients of the six tensors; an unwanted one is empty."""
    inputs = (planes, weight_1, bias_1, weight_2, bias_2, points_mm)
    field, alive = _pack_field(planes, weight_1, bias_1, weight_2, bias_2, box_center_mm, box_size_mm, occupancy,
                               precision)
    points = points_mm.detach().contiguous()
    arrays, gradients = _gradient_arrays(inputs, wanted)
    grad = grad.detach().to(torch.float32).contiguous()
    native.call("query_triplane_backward_with", planes.device, *field, points,
                ctypes.c_int32(points.dtype == torch.float64), ctypes.c_int64(points.numel() // 3), grad, arrays)
    del alive
    return _finish_gradients(inputs, gradients, wanted)


@query_backward.register_fake
def _(planes, weight_1, bias_1, weight_2, bias_2, points_mm, box_center_mm, box_size_mm, occupancy, precision, grad,
      wanted):
    return _fake_gradients((planes, weight_1, bias_1, weight_2, bias_2, points_mm), wanted)


def _keep(tensors: int):
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.rest = inputs[tensors:]

    return setup_context


def _backward_of(operator, tensors: int):
    def backward(ctx, grad):
        wanted = list(ctx.needs_input_grad[:tensors])
        gradients = operator(*ctx.saved_tensors, *ctx.rest, grad, wanted)
        return (*(g if want else None for g, want in zip(gradients, wanted, strict=True)), *(None for _ in ctx.rest))

    return backward


render.register_autograd(_backward_of(render_backward, 7), setup_context=_keep(7))
query.register_autograd(_backward_of(query_backward, 6), setup_context=_keep(6))


# --- second derivatives and vmap -------------------------------------------------------------------------------------


def _no_second_order(ctx, *grads):
    raise RuntimeError("second derivatives of the tri-plane operators are not implemented; for a loss on gradients use "
                       "licag3d.ops.reference.render_triplane or query_triplane")


render_backward.register_autograd(_no_second_order)
query_backward.register_autograd(_no_second_order)


def _entry(argument, axis, number: int):
    return argument.select(axis, number) if isinstance(argument, torch.Tensor) and axis is not None else argument


def _one_by_one(operator, tensors: int):
    """A vmap rule that calls the operator once for each entry; right for whatever is mapped."""

    def rule(info, in_dims, *arguments):
        results = [operator(*(_entry(x, axis, n) for x, axis in zip(arguments, in_dims, strict=True)))
                   for n in range(info.batch_size)]
        if tensors == 1:
            return torch.stack(results), 0
        return [torch.stack(parts) for parts in zip(*results, strict=True)], [0] * tensors

    return rule


@render.register_vmap
def _(info, in_dims, planes, *rest):
    *weights, origin_mm, to_pixel_mm = rest[:6]
    if any(axis is not None for axis in (*in_dims[:5], *in_dims[10:11])):  # what has its default is left out
        return _one_by_one(render, 1)(info, in_dims, planes, *rest)
    # Only rays are mapped, as by candidate cameras: one call for all of them.
    origin_mm, to_pixel_mm = (
        rays.unsqueeze(1).expand(-1, info.batch_size, *rays.shape[1:]) if axis is None else rays.movedim(axis, 1)
        for rays, axis in ((origin_mm, in_dims[5]), (to_pixel_mm, in_dims[6])))
    return render(planes, *weights, origin_mm, to_pixel_mm, *rest[6:]), 1


@query.register_vmap
def _(info, in_dims, planes, *rest):
    if any(axis is not None for axis in (*in_dims[:5], *in_dims[8:9])):
        return _one_by_one(query, 1)(info, in_dims, planes, *rest)
    *weights, points_mm = rest[:5]
    return query(planes, *weights, points_mm.movedim(in_dims[5], 0), *rest[5:]), 1


render_backward.register_vmap(_one_by_one(render_backward, 7))
query_backward.register_vmap(_one_by_one(query_backward, 6))


def _render_output(planes: torch.Tensor, to_pixel_mm: torch.Tensor) -> torch.Tensor:
    return planes.new_empty((planes.shape[0], *to_pixel_mm.shape[1:-1]), dtype=torch.float32)


def _query_output(planes: torch.Tensor, points_mm: torch.Tensor) -> torch.Tensor:
    return planes.new_empty((planes.shape[0], *points_mm.shape[:-1]), dtype=torch.float32)


def _channels_side_by_side(planes: torch.Tensor) -> bool:
    """Whether the CPU kernels can read planes where they lie: memory order (B, R, R, 3, C), as a network in
    channels_last leaves them, or (B, 3, R, R, C)."""
    batch, _, channels, edge, _ = planes.shape
    if planes.device.type != "cpu" or planes.dtype != torch.float32 or channels % 16 or edge == 1:
        return False
    texel_mixed, plane_alone = 3 * channels, edge * edge * channels
    strides = (planes.stride() if batch > 1 else (3 * plane_alone, *planes.stride()[1:]))
    return strides in ((3 * plane_alone, channels, 1, edge * texel_mixed, texel_mixed),
                       (3 * plane_alone, plane_alone, 1, edge * channels, channels))


def _pack_field(planes, weight_1, bias_1, weight_2, bias_2, box_center_mm, box_size_mm, occupancy,
                precision) -> tuple[tuple[FieldArrays, OptionArrays], list[torch.Tensor]]:
    """The C view of the field and of how to compute it, and the tensors that must stay alive during the call."""
    in_place = _channels_side_by_side(planes)
    alive = [planes.detach() if in_place else planes.detach().contiguous(),
             *(tensor.detach().contiguous() for tensor in (weight_1, bias_1, weight_2, bias_2))]
    hidden, channels = weight_1.shape
    options = OptionArrays(precision=precision, deterministic=int(torch.are_deterministic_algorithms_enabled()))
    if in_place:
        options.batch_stride, options.plane_stride = planes.stride()[:2]
        options.texel_stride = planes.stride(4)
    field = FieldArrays(*(tensor.data_ptr() for tensor in alive), planes.shape[0], channels, planes.shape[-1], hidden,
                        int(planes.dtype == torch.float16), (ctypes.c_double * 3)(*box_center_mm), box_size_mm)
    if occupancy is not None:
        alive.append(occupancy.contiguous())
        options.occupancy, options.cells = alive[-1].data_ptr(), occupancy.shape[-1]
        options.occupancy_per_item = int(occupancy.shape[0] > 1)
    return (field, options), alive


def _check_finite(out: torch.Tensor, *given: torch.Tensor) -> None:
    """Raises ValueError where a result that is not finite comes from the field, not from a ray that is not finite.

    Only results are looked at when all is well, and on CUDA nothing is: that would wait for the device.
    """
    if out.device.type != "cpu" or bool(out.isfinite().all()):
        return
    for name, tensor in zip(("planes", "decoder.weight_1", "decoder.bias_1", "decoder.weight_2",
                             "decoder.bias_2 + decoder.bias"), given, strict=True):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinite values; expected finite numbers")


def _gradient_arrays(inputs: tuple[torch.Tensor, ...],
                     wanted: list[bool]) -> tuple[GradientArrays, list[torch.Tensor | None]]:
    # The four weights are computed together, and so are origin and direction.
    compute = [wanted[0], *[any(wanted[1:5])] * 4, *[any(wanted[5:])] * len(wanted[5:])]
    gradients = [_gradient_like(tensor, torch.float32) if flag else None
                 for tensor, flag in zip(inputs, compute, strict=True)]
    return GradientArrays(*(None if g is None else g.data_ptr() for g in gradients)), gradients


def _gradient_like(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Memory for a gradient, contiguous, or as the planes lie where the kernels read those in place."""
    if tensor.dim() == 5 and tensor.shape[1] == 3 and _channels_side_by_side(tensor):
        return torch.empty_like(tensor, dtype=dtype)
    return tensor.new_empty(tensor.shape, dtype=dtype)


def _finish_gradients(inputs, gradients, wanted) -> list[torch.Tensor]:
    return [g.to(tensor.dtype) if want else tensor.new_empty(0)
            for tensor, g, want in zip(inputs, gradients, wanted, strict=True)]


def _fake_gradients(inputs, wanted) -> list[torch.Tensor]:
    return [_gradient_like(tensor, tensor.dtype) if want else tensor.new_empty(0)
            for tensor, want in zip(inputs, wanted, strict=True)]
