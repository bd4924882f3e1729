# SPDX-License-Identifier: Apache-2.0
"""A batch of C-arm views as torch tensors, differentiable in every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from licag3d.geometry import equations
from licag3d.geometry.camera import Camera

_PER_VIEW = ("primary_deg", "secondary_deg", "sid_mm", "sod_mm", "spacing_row_mm", "spacing_col_mm", "principal_row",
             "principal_col")


@dataclass(frozen=True)
class Rays:
    """Any set of rays, for example a random subset of pixels.

    ``origin_mm`` and ``to_pixel_mm`` are ``(..., 3)``, world LPS mm; a ray runs from ``origin_mm`` to
    ``origin_mm + to_pixel_mm``. Operators accept it wherever they accept ``Cameras``.
    """

    origin_mm: torch.Tensor
    to_pixel_mm: torch.Tensor

    def rays(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both tensors."""
        return self.origin_mm, self.to_pixel_mm


@dataclass(frozen=True)
class Cameras:
    """V views of equal image size; all tensors ``(V,)`` except ``offset_lps_mm`` ``(V, 3)``.

    Fields have the meaning and units of :class:`licag3d.geometry.Camera`. Use :meth:`stack` to build one.
    """

    primary_deg: torch.Tensor
    secondary_deg: torch.Tensor
    sid_mm: torch.Tensor
    sod_mm: torch.Tensor
    spacing_row_mm: torch.Tensor
    spacing_col_mm: torch.Tensor
    principal_row: torch.Tensor
    principal_col: torch.Tensor
    offset_lps_mm: torch.Tensor
    rows: int
    cols: int

    @classmethod
    def stack(cls, cameras: Sequence[Camera], *, dtype: torch.dtype = torch.float64,
              device: torch.device | str = "cpu") -> Cameras:
        """Batch single cameras.

        Raises:
            ValueError: no camera, or different image sizes.
        """
        if not cameras:
            raise ValueError("no camera given")
        sizes = {(camera.rows, camera.cols) for camera in cameras}
        if len(sizes) > 1:
            raise ValueError(f"views of different sizes {sorted(sizes)} cannot be batched; batch each size apart")
        values = {name: torch.tensor([getattr(camera, name) for camera in cameras], dtype=dtype, device=device)
                  for name in _PER_VIEW}
        offset = torch.tensor([camera.offset_lps_mm for camera in cameras], dtype=dtype, device=device)
        return cls(**values, offset_lps_mm=offset, rows=cameras[0].rows, cols=cameras[0].cols)

    def __len__(self) -> int:
        return self.offset_lps_mm.shape[0]

    def replace(self, **changes) -> Cameras:
        """A copy with some tensors exchanged."""
        return replace(self, **changes)

    def frame(self) -> equations.Frame:
        """Unit vectors (beam, column, row), each ``(V, 3)``."""
        return equations.view_frame(torch, self.primary_deg, self.secondary_deg)

    def project(self, points_lps_mm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels ``(V, N, 2)`` as (col, row) and depths ``(V, N)`` in mm, of points ``(N, 3)`` or ``(V, N, 3)``."""
        points = points_lps_mm + self.offset_lps_mm[:, None, :]
        frame = equations.Frame(*(axis[:, None, :] for axis in self.frame()))
        return equations.project(torch, frame, points, **self._intrinsics(1))

    def rays(self, pixels: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Source and vector to the detector pixel of every pixel, world LPS mm.

        Args:
            pixels: ``(V, N, 2)`` (col, row), sub-pixel allowed; default every pixel of the image.

        Returns:
            Two tensors ``(V, rows, cols, 3)``, or ``(V, N, 3)`` with ``pixels``.
        """
        like = {"dtype": self.offset_lps_mm.dtype, "device": self.offset_lps_mm.device}
        if pixels is None:
            trailing = 2
            # Rows and columns stay apart until the last sum: one operation of full size instead of ten.
            row, col = torch.arange(self.rows, **like)[:, None], torch.arange(self.cols, **like)
        else:
            trailing = 1
            col, row = pixels[..., 0], pixels[..., 1]
        expand = (slice(None),) + (None,) * trailing
        frame = equations.Frame(*(axis[expand] for axis in self.frame()))
        source, to_pixel = equations.pixel_rays(torch, frame, col, row, **self._intrinsics(trailing))
        return (source - self.offset_lps_mm[expand]).expand(to_pixel.shape), to_pixel

    def pixel_subset(self, pixels: torch.Tensor) -> Rays:
        """The rays ``(V, N, 3)`` of chosen pixels ``(V, N, 2)`` as (col, row)."""
        return Rays(*self.rays(pixels))

    def unstack(self) -> list[Camera]:
        """The views as single cameras (gradients are dropped)."""
        return [Camera(**{name: float(getattr(self, name)[k]) for name in _PER_VIEW}, rows=self.rows, cols=self.cols,
                       offset_lps_mm=tuple(float(x) for x in self.offset_lps_mm[k])) for k in range(len(self))]

    def _intrinsics(self, trailing: int) -> dict[str, torch.Tensor]:
        expand = (slice(None),) + (None,) * trailing
        return {name: getattr(self, name)[expand] for name in _PER_VIEW[2:]}
