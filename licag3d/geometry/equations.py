# SPDX-License-Identifier: Apache-2.0
"""The C-arm equations, written once for numpy and torch (``xp`` is either module).

World: DICOM patient LPS in mm. See ``docs/geometry.md``; nothing else in the project
turns a point into a pixel. All leading shapes broadcast.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Frame(NamedTuple):
    """Unit vectors of one or many views, each ``(..., 3)``.

    ``beam`` points from the isocentre to the detector, ``column`` to the right of the
    image, ``row`` down the image; ``column x row = -beam``.
    """

    beam: Any
    column: Any
    row: Any


def view_frame(xp: Any, primary_deg: Any, secondary_deg: Any) -> Frame:
    """Image axes from the positioner angles.

    Args:
        primary_deg: ``(...)`` LAO positive, degrees.
        secondary_deg: ``(...)`` cranial positive, degrees.
    """
    a, b = xp.deg2rad(primary_deg), xp.deg2rad(secondary_deg)
    sin_a, cos_a, sin_b, cos_b = xp.sin(a), xp.cos(a), xp.sin(b), xp.cos(b)
    zero = 0.0 * sin_a
    return Frame(
        beam=xp.stack((sin_a * cos_b, -cos_a * cos_b, sin_b), -1),
        column=xp.stack((cos_a, sin_a, zero), -1),
        row=xp.stack((sin_a * sin_b, -cos_a * sin_b, -cos_b), -1),
    )


def project(
    xp: Any,
    frame: Frame,
    points_mm: Any,
    *,
    sid_mm: Any,
    sod_mm: Any,
    spacing_row_mm: Any,
    spacing_col_mm: Any,
    principal_row: Any,
    principal_col: Any,
) -> tuple[Any, Any]:
    """Pixels of points that are already in the view's own frame (offset added).

    Returns:
        ``(..., 2)`` pixel (col, row), pixel (0, 0) being the centre of the top-left pixel,
        and ``(...)`` depth along the beam in mm, measured from the source.
    """
    # (X - S) . d with S = -SOD d
    depth_mm = (points_mm * frame.beam).sum(-1) + sod_mm
    scale = sid_mm / depth_mm
    col = principal_col + scale * (points_mm * frame.column).sum(-1) / spacing_col_mm
    row = principal_row + scale * (points_mm * frame.row).sum(-1) / spacing_row_mm
    return xp.stack((col, row), -1), depth_mm


def pixel_rays(
    xp: Any,
    frame: Frame,
    col: Any,
    row: Any,
    *,
    sid_mm: Any,
    sod_mm: Any,
    spacing_row_mm: Any,
    spacing_col_mm: Any,
    principal_row: Any,
    principal_col: Any,
) -> tuple[Any, Any]:
    """Source ``(..., 3)`` and vector from the source to the pixel on the detector ``(..., 3)``, in mm."""

    def column(x: Any) -> Any:  # a trailing axis, so that scalars of a view meet its vectors
        # Tensors are taken as they are: older versions of torch cut the gradient in asarray.
        return (x if hasattr(x, "ndim") else xp.asarray(x))[..., None]

    source = -column(sod_mm) * frame.beam
    to_pixel = (
        column(sid_mm) * frame.beam
        + column((col - principal_col) * spacing_col_mm) * frame.column
        + column((row - principal_row) * spacing_row_mm) * frame.row
    )
    return source, to_pixel
