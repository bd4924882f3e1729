# SPDX-License-Identifier: Apache-2.0
"""One C-arm view: the camera in mm, with exact cropping and resizing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from licag3d.geometry import equations


@dataclass(frozen=True)
class Camera:
    """A C-arm view as DICOM describes it, plus the per-view offset.

    The view shows a point X of the world (LPS mm, origin at the isocentre of the reference
    view) at the pixel of ``X + offset_lps_mm``. ``principal_row``/``principal_col`` is the pixel
    hit by the central beam, the image centre unless the image was cropped.

    Raises:
        ValueError: absurd geometry; the message names the field, the value and the remedy.

    Example:
        >>> camera = Camera(30.0, 0.0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.3, spacing_col_mm=0.3, rows=512,
        ...                 cols=512)
        >>> pixels, depth_mm = camera.project([[0.0, 0.0, 0.0]])
        >>> pixels.tolist(), depth_mm.tolist()
        ([[255.5, 255.5]], [750.0])
    """

    primary_deg: float
    secondary_deg: float
    sid_mm: float
    sod_mm: float
    spacing_row_mm: float
    spacing_col_mm: float
    rows: int
    cols: int
    offset_lps_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    principal_row: float | None = None
    principal_col: float | None = None

    def __post_init__(self) -> None:
        for name in ("primary_deg", "secondary_deg", "sid_mm", "sod_mm", "spacing_row_mm", "spacing_col_mm"):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
        offset = tuple(_finite("offset_lps_mm", x) for x in self.offset_lps_mm)
        if len(offset) != 3:
            raise ValueError(f"offset_lps_mm has {len(offset)} numbers; give x, y, z in mm")
        object.__setattr__(self, "offset_lps_mm", offset)
        for name, count in (("rows", self.rows), ("cols", self.cols)):
            if int(count) != count or not 1 <= count <= 16384:
                raise ValueError(f"{name} is {count}; expected a whole number from 1 to 16384")
            object.__setattr__(self, name, int(count))
        if abs(self.primary_deg) > 180 or abs(self.secondary_deg) > 90:
            raise ValueError(
                f"angles {self.primary_deg}, {self.secondary_deg} are outside -180..180 (primary) and "
                "-90..90 (secondary) degrees"
            )
        if not 1e-3 <= self.spacing_row_mm <= 10 or not 1e-3 <= self.spacing_col_mm <= 10:
            raise ValueError(
                f"pixel spacing {self.spacing_row_mm}, {self.spacing_col_mm} mm is outside 0.001..10 mm; "
                "give the detector pixel spacing in mm"
            )
        if not 50 <= self.sod_mm <= 5000 or not 50 <= self.sid_mm <= 5000:
            raise ValueError(f"SID {self.sid_mm} mm, SOD {self.sod_mm} mm: both must be within 50..5000 mm")
        if self.sid_mm <= self.sod_mm:
            raise ValueError(
                f"SID {self.sid_mm} mm is not larger than SOD {self.sod_mm} mm: the detector must lie behind "
                "the isocentre; check that the two were not swapped"
            )
        for name, centre in (("principal_row", (self.rows - 1) / 2), ("principal_col", (self.cols - 1) / 2)):
            value = getattr(self, name)
            object.__setattr__(self, name, centre if value is None else _finite(name, value))

    @cached_property
    def frame(self) -> equations.Frame:
        """Unit vectors (beam, column, row), each ``(3,)``."""
        return equations.view_frame(np, np.float64(self.primary_deg), np.float64(self.secondary_deg))

    @property
    def source_lps_mm(self) -> np.ndarray:
        """X-ray source ``(3,)`` in world LPS mm: where the rays start for points of the world."""
        return -self.sod_mm * self.frame.beam - np.asarray(self.offset_lps_mm)

    @property
    def magnification(self) -> float:
        """Size on the detector over size at the isocentre, no unit."""
        return self.sid_mm / self.sod_mm

    @property
    def mm_per_pixel(self) -> float:
        """Pixel size scaled to the isocentre, mm (geometric mean of both spacings)."""
        return math.sqrt(self.spacing_row_mm * self.spacing_col_mm) / self.magnification

    def _intrinsics(self) -> dict[str, float]:
        return {
            name: getattr(self, name)
            for name in ("sid_mm", "sod_mm", "spacing_row_mm", "spacing_col_mm", "principal_row", "principal_col")
        }

    def project(self, points_lps_mm) -> tuple[np.ndarray, np.ndarray]:
        """Pixels ``(..., 2)`` as (col, row) and depth ``(...)`` in mm from the source, of points ``(..., 3)``."""
        points = np.asarray(points_lps_mm, np.float64) + np.asarray(self.offset_lps_mm)
        return equations.project(np, self.frame, points, **self._intrinsics())

    def rays(self, col, row) -> tuple[np.ndarray, np.ndarray]:
        """Source ``(3,)`` and vectors source -> detector pixel ``(..., 3)``, world LPS mm."""
        source, to_pixel = equations.pixel_rays(
            np, self.frame, np.asarray(col, np.float64), np.asarray(row, np.float64), **self._intrinsics()
        )
        return source - np.asarray(self.offset_lps_mm), to_pixel

    def cropped(self, top: int, left: int, rows: int, cols: int) -> Camera:
        """The camera of ``image[top:top + rows, left:left + cols]``: the principal point moves, nothing else."""
        return replace(
            self, rows=rows, cols=cols, principal_row=self.principal_row - top, principal_col=self.principal_col - left
        )

    def resized(self, rows: int, cols: int) -> Camera:
        """The camera of the same field of view sampled by ``rows x cols`` pixels.

        Pixel centres follow ``new = (old + 0.5) * scale - 0.5`` (torch ``align_corners=False``, skimage ``resize``).
        """
        scale_row, scale_col = rows / self.rows, cols / self.cols
        return replace(
            self,
            rows=rows,
            cols=cols,
            spacing_row_mm=self.spacing_row_mm / scale_row,
            spacing_col_mm=self.spacing_col_mm / scale_col,
            principal_row=(self.principal_row + 0.5) * scale_row - 0.5,
            principal_col=(self.principal_col + 0.5) * scale_col - 0.5,
        )

    def with_offset(self, offset_lps_mm) -> Camera:
        """The same view with another offset (mm, LPS)."""
        return replace(self, offset_lps_mm=tuple(float(x) for x in offset_lps_mm))


def view_angle_deg(first: Camera, second: Camera) -> float:
    """Angle between the central beams of two views, degrees."""
    return math.degrees(math.acos(float(np.clip(first.frame.beam @ second.frame.beam, -1.0, 1.0))))


def scale_gauge(first: Camera, second: Camera, scale: float) -> tuple[np.ndarray, Camera]:
    """The exact ambiguity of two views with an unknown offset (docs/geometry.md).

    Scaling the object by ``scale`` about the first source, together with the returned second camera, leaves both images
    unchanged.

    Returns:
        Centre of the scaling ``(3,)`` (the first source, LPS mm) and the second camera with its new offset.
    """
    source_1, source_2 = first.source_lps_mm, second.source_lps_mm
    # Rays to the second image keep their directions: its source moves with the object.
    moved = source_1 + scale * (source_2 - source_1)
    offset = np.asarray(second.offset_lps_mm) - (moved - source_2)
    return source_1, second.with_offset(offset)


def _finite(name: str, value) -> float:
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; expected a finite number")
    return value
