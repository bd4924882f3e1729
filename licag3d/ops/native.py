# SPDX-License-Identifier: Apache-2.0
"""Loads the native library and calls its C functions; knows nothing of any single operator."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from pathlib import Path

import torch

ABI_VERSION = 1
_OUT_OF_MEMORY = 2  # LICAG3D_OUT_OF_MEMORY
# LICAG3D_LIBRARY_FOLDER names another build, for example one with sanitizers.
FOLDER = Path(os.environ.get("LICAG3D_LIBRARY_FOLDER") or Path(__file__).resolve().parent.parent / "_native").resolve()
REMEDY = ("build it with `pip install .` (or `make native` in a source tree); `python -m licag3d.doctor` says what is "
          "missing")


class Run(ctypes.Structure):
    """``licag3d_run`` of csrc/include/licag3d.h."""

    _fields_ = [("threads", ctypes.c_int32), ("device", ctypes.c_int32), ("stream", ctypes.c_void_p)]


class RayArrays(ctypes.Structure):
    """``licag3d_rays`` of csrc/include/licag3d.h."""

    _fields_ = [("origin", ctypes.c_void_p), ("direction", ctypes.c_void_p), ("count", ctypes.c_int64),
                ("origin_group", ctypes.c_int64), ("is_double", ctypes.c_int32), ("image_cols", ctypes.c_int32)]


def library_path(name: str = "licag3d") -> Path:
    """Where the build puts a library (it need not exist)."""
    return FOLDER / f"lib{name}.{'dylib' if sys.platform == 'darwin' else 'so'}"


@functools.cache
def cpu_library() -> ctypes.CDLL | None:
    """The native CPU library, or None with one loud warning: operators then run their slow torch twins."""
    library, reason = load("licag3d")
    if library is None:
        warnings.warn(f"licag3d runs WITHOUT its native core ({reason}); every operator falls back to plain torch and "
                      f"is 10 to 100 times slower: {REMEDY}", RuntimeWarning, stacklevel=3)
        return None
    wanted = os.environ.get("LICAG3D_ISA", "")
    if wanted and library.licag3d_isa().decode() != wanted:
        warnings.warn(f"LICAG3D_ISA={wanted} is not available here (plain, avx2 or avx512); using "
                      f"{library.licag3d_isa().decode()}", RuntimeWarning, stacklevel=3)
    return library


@functools.cache
def cuda_library() -> ctypes.CDLL | None:
    """The native CUDA library, or None (one warning) when it was not built; asked only for CUDA tensors."""
    if not torch.cuda.is_available():
        return None
    library, reason = load("licag3d_cuda")
    if library is None:
        warnings.warn(f"licag3d runs WITHOUT its CUDA kernels ({reason}); operators on CUDA tensors fall back to plain "
                      f"torch: rebuild where nvcc is on PATH, with LICAG3D_CUDA=1", RuntimeWarning, stacklevel=3)
    return library


def load(name: str) -> tuple[ctypes.CDLL | None, str]:
    """Open a library of the package; None and the reason when that fails. Set LICAG3D_NATIVE=0 to do without."""
    if os.environ.get("LICAG3D_NATIVE", "1") == "0":
        return None, "LICAG3D_NATIVE=0 is set"
    path = library_path(name)
    if not path.is_file():
        return None, f"{path.name} was not built"
    try:
        library = ctypes.CDLL(str(path))
        prefix = f"{name}_"
        version = getattr(library, prefix + "abi_version")()
        getattr(library, prefix + "last_error").restype = ctypes.c_char_p
        if name == "licag3d":
            library.licag3d_isa.restype = library.licag3d_version.restype = ctypes.c_char_p
            library.licag3d_set_isa.argtypes = [ctypes.c_char_p]
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be loaded: {error}"
    if version != ABI_VERSION:
        return None, f"{path.name} has ABI {version} and this package needs {ABI_VERSION}"
    return library, ""


def available(device: torch.device) -> bool:
    """Whether native kernels exist for tensors on this device; warns once where they should but do not."""
    if device.type == "cpu":
        return cpu_library() is not None
    if device.type == "cuda":
        return cuda_library() is not None
    return False


def call(function: str, device: torch.device, *arguments) -> None:
    """Run ``licag3d_<function>`` (``licag3d_cuda_<function>``) with a ``Run`` for the device as first argument.

    ``arguments`` are tensors (passed as pointers; None is NULL), ctypes structures (by reference) or ctypes scalars.

    Raises:
        MemoryError: there was not enough memory.
        RuntimeError: the library reported another error.
    """
    if device.type == "cuda":
        library, prefix = cuda_library(), "licag3d_cuda_"
        with torch.cuda.device(device):
            run = Run(0, torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream)
    else:
        library, prefix = cpu_library(), "licag3d_"
        run = Run(torch.get_num_threads(), 0, None)
    converted = [ctypes.byref(run)]
    for argument in arguments:
        if argument is None:
            converted.append(ctypes.c_void_p())
        elif isinstance(argument, torch.Tensor):
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, ctypes.Structure):
            converted.append(ctypes.byref(argument))
        else:
            converted.append(argument)
    status = getattr(library, prefix + function)(*converted)
    if status:
        message = getattr(library, prefix + "last_error")().decode(errors="replace")
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"licag3d native {function}: {message}; use fewer threads or smaller arguments")
        raise RuntimeError(f"licag3d native {function} failed: {message}")


def pack_rays(origin: torch.Tensor, direction: torch.Tensor) -> tuple[RayArrays, tuple[torch.Tensor, ...]]:
    """The C view of rays ``(..., 3)`` and the tensors that must stay alive during the call.

    An origin that is expanded over the pixels of a view (as ``Cameras.rays`` gives it) is passed once per view.
    """
    direction = direction.detach().contiguous()
    origin = origin.detach()
    group = 1
    axis = origin.dim() - 2
    while axis >= 0 and (origin.stride(axis) == 0 or origin.shape[axis] == 1):
        group *= origin.shape[axis]
        axis -= 1
    compact = origin[(...,) + (0,) * (origin.dim() - 2 - axis) + (slice(None),)] if direction.numel() else origin
    compact = compact.contiguous()
    rows = direction.numel() // 3
    cols = direction.shape[-2] if direction.dim() >= 3 else 0
    packed = RayArrays(compact.data_ptr(), direction.data_ptr(), rows, max(group, 1),
                       int(direction.dtype == torch.float64), cols)
    return packed, (compact, direction)


def set_isa(name: str | None) -> str:
    """Choose the CPU instruction set (``plain``, ``avx2``, ``avx512``; None for the best) and return the one in use.

    Raises:
        ValueError: this processor or build lacks it.
        RuntimeError: there is no native library.
    """
    library = cpu_library()
    if library is None:
        raise RuntimeError(f"no native library: {REMEDY}")
    if library.licag3d_set_isa((name or "").encode()):
        raise ValueError(f"instruction set {name!r} is not available here; choose plain, avx2 or avx512 as the "
                         "processor allows")
    return library.licag3d_isa().decode()
