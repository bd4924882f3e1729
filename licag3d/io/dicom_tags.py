# SPDX-License-Identifier: Apache-2.0
"""What DICOM tags say of the C-arm and of the shutters (PS3.3 C.8.7.5 XA Positioner, C.8.19 Enhanced XA)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import equations
from licag3d.io.files import PartialCamera


def item_of_frame(ds: Any, keyword: str, frame: int) -> Any:
    """The functional group item of a frame (per-frame before shared), or an empty data set."""
    from pydicom.dataset import Dataset

    groups = []
    per_frame = ds.get("PerFrameFunctionalGroupsSequence")
    if per_frame and frame < len(per_frame):
        groups.append(per_frame[frame])
    shared = ds.get("SharedFunctionalGroupsSequence")
    if shared:
        groups.append(shared[0])
    for group in groups:
        items = group.get(keyword)
        if items:
            return items[0]
    return Dataset()


def _numbers(ds: Any, keyword: str) -> tuple[float, ...]:
    """Values of a numeric tag; () when absent or empty.

    Raises:
        InputError: not numbers; the message names the tag.
    """
    try:
        value = ds.get(keyword)
        if value is None or value == "":
            return ()
        many = hasattr(value, "__iter__") and not isinstance(value, str)
        return tuple(float(x) for x in (value if many else [value]))
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"DICOM tag {keyword} does not hold numbers: correct it, or give the value on the command "
                         f"line") from None


def _one(ds: Any, keyword: str) -> float | None:
    values = _numbers(ds, keyword)
    return values[0] if values else None


def camera_of_frame(ds: Any, frame: int, frames: int, rows: int, cols: int) -> PartialCamera:
    """Angles, distances and spacing of one frame from the tags of XA or Enhanced XA; None where the file is silent.

    Per-frame functional groups override the static tags; ``PositionerPrimaryAngleIncrement`` holds offsets from the
    static angle, one per frame, or the constant step per frame (PS3.3 C.8.7.5.1.3).
    """
    notes: list[str] = []
    position = item_of_frame(ds, "PositionerPositionSequence", frame)
    angles = []
    for name in ("Primary", "Secondary"):
        angle = _one(position, f"Positioner{name}Angle")
        if angle is None:
            angle = _one(ds, f"Positioner{name}Angle")
            steps = _numbers(ds, f"Positioner{name}AngleIncrement")
            if angle is not None and len(steps) == frames and frames > 1:
                angle += steps[frame]
            elif angle is not None and len(steps) == 1:
                angle += steps[0] * frame
            elif len(steps) > 1 and frames > 1:
                raise InputError(f"DICOM tag Positioner{name}AngleIncrement has {len(steps)} values for {frames} "
                                 f"frames: give --angles")
        angles.append(angle)
    geometry = item_of_frame(ds, "XRayGeometrySequence", frame)
    sid = _one(geometry, "DistanceSourceToDetector") or _one(ds, "DistanceSourceToDetector") or None
    sod = _one(geometry, "DistanceSourceToIsocenter") or _one(ds, "DistanceSourceToPatient") or None
    if sid and not sod:
        magnification = _one(ds, "EstimatedRadiographicMagnificationFactor")
        if magnification and magnification > 1:
            sod = sid / magnification
            notes.append(f"SOD {sod:.1f} mm was derived from EstimatedRadiographicMagnificationFactor "
                         f"{magnification:g}.")
    spacing = (_numbers(item_of_frame(ds, "FramePixelDataPropertiesSequence", frame), "ImagerPixelSpacing")
               or _numbers(ds, "ImagerPixelSpacing"))
    if len(spacing) == 1:
        spacing = spacing * 2
    if not spacing:
        field = item_of_frame(ds, "FieldOfViewSequence", frame)
        dimensions = (_numbers(field, "FieldOfViewDimensionsInFloat") or _numbers(ds, "FieldOfViewDimensionsInFloat")
                      or _numbers(ds, "FieldOfViewDimensions"))
        spacing = _spacing_from_field(dimensions, rows, cols)
        if spacing:
            text = " x ".join(f"{x:g}" for x in dimensions)
            notes.append(f"ImagerPixelSpacing is absent: {spacing[0]:.4g} x {spacing[1]:.4g} mm was derived from "
                         f"FieldOfViewDimensions {text} mm over {cols} x {rows} pixels.")
    return PartialCamera(
        primary_deg=angles[0], secondary_deg=angles[1], sid_mm=sid, sod_mm=sod,
        spacing_row_mm=spacing[0] if spacing else None, spacing_col_mm=spacing[1] if spacing else None,
        rows=rows, cols=cols, notes=tuple(notes), refused=_patient_position(ds))


def _spacing_from_field(dimensions: tuple[float, ...], rows: int, cols: int) -> tuple[float, float] | None:
    """(row, column) spacing from the field of view: one diameter, or the length of a row then that of a column."""
    if not dimensions or not all(math.isfinite(x) and x > 0 for x in dimensions):
        return None
    if len(dimensions) == 1:
        return (dimensions[0] / max(rows, cols),) * 2
    width, height = dimensions[:2]
    # Some systems write the two the other way round: detector pixels are square, so the order that makes them so is
    # right.
    if abs(math.log((width / cols) / (height / rows))) > abs(math.log((height / cols) / (width / rows))):
        width, height = height, width
    return height / rows, width / cols


def _patient_position(ds: Any) -> str:
    """"" for head first supine (or not stated), else why the tags cannot be used."""
    position = str(ds.get("PatientPosition") or "").upper().strip()
    if not position:
        gantry = _meaning(ds, "PatientGantryRelationshipCodeSequence")
        orientation = ds.get("PatientOrientationCodeSequence")
        modifier = _meaning(orientation[0], "PatientOrientationModifierCodeSequence") if orientation else ""
        position = ("FF" if "feet" in gantry else "HF") + ("P" if "prone" in modifier else "S")
    if position == "HFS":
        return ""
    return (f"PatientPosition is {position[:16]}: the sign of the angles and the orientation of the image are only "
            f"defined here for HFS (head first, supine)")


def _meaning(ds: Any, keyword: str) -> str:
    items = ds.get(keyword)
    return str(items[0].get("CodeMeaning") or "").lower() if items else ""


_LETTERS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}


def image_flip(ds: Any, camera: PartialCamera) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Axes to reverse so that columns run along u and rows along v of docs/geometry.md, by PatientOrientation.

    Returns:
        Axes (0: rows, 1: columns) and a note. Empty when the tag is absent or agrees.

    Raises:
        InputError: the image is turned by 90 degrees.
    """
    value = ds.get("PatientOrientation")
    if not value or isinstance(value, str) or len(value) != 2 or camera.primary_deg is None or camera.refused:
        return (), ()
    letters = [str(x)[:1].upper() for x in value]
    if any(letter not in _LETTERS for letter in letters):
        return (), ()
    if not all(map(math.isfinite, (camera.primary_deg, camera.secondary_deg or 0.0))):
        return (), ()
    frame = equations.view_frame(np, np.float64(camera.primary_deg), np.float64(camera.secondary_deg or 0.0))
    along = np.array([_LETTERS[letters[0]], _LETTERS[letters[1]]], float) @ np.stack((frame.column, frame.row)).T
    if min(abs(along[0, 1]), abs(along[1, 0])) > 0.8 and max(abs(along[0, 0]), abs(along[1, 1])) < 0.6:
        raise InputError(f"PatientOrientation {letters[0]}\\{letters[1]} says that the image is turned by 90 degrees: "
                         f"export it upright")
    axes = tuple(axis for axis, cosine in ((0, along[1, 1]), (1, along[0, 0])) if cosine < -0.3)
    if not axes:
        return (), ()
    names = " and ".join({0: "top to bottom", 1: "left to right"}[axis] for axis in axes)
    return axes, (f"PatientOrientation {letters[0]}\\{letters[1]} says that the image is mirrored: it was turned over "
                  f"{names}.",)


def shutter_mask(ds: Any, rows: int, cols: int) -> np.ndarray | None:
    """``(rows, cols)`` bool, True inside the shutters and collimator of the tags (pixels counted from 1 there), or
    None.

    A shutter that leaves less than a tenth of the image is not believed.
    """
    row, col = np.arange(1, rows + 1)[:, None], np.arange(1, cols + 1)[None, :]
    valid = np.ones((rows, cols), bool)
    for kind in ("Shutter", "Collimator"):
        shapes = ds.get(f"{kind}Shape") or ()
        shapes = [shapes] if isinstance(shapes, str) else list(shapes)
        for shape in (str(x).upper() for x in shapes):
            if shape == "RECTANGULAR":
                edges = [_one(ds, f"{kind}{name}Edge") for name in (
                    "LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")]
                if None not in edges and all(map(math.isfinite, edges)):
                    left, right, upper, lower = edges
                    valid &= (col >= left) & (col <= right) & (row >= upper) & (row <= lower)
            elif shape == "CIRCULAR":
                centre, radius = _numbers(ds, f"CenterOfCircular{kind}"), _one(ds, f"RadiusOfCircular{kind}")
                if len(centre) == 2 and radius and all(map(math.isfinite, (*centre, radius))):
                    valid &= (row - centre[0]) ** 2 + (col - centre[1]) ** 2 <= radius**2
            elif shape == "POLYGONAL":
                points = _numbers(ds, f"VerticesOfThePolygonal{kind}")
                if 6 <= len(points) <= 400 and len(points) % 2 == 0 and all(abs(x) < 1e6 for x in points):
                    from skimage.draw import polygon2mask

                    valid &= polygon2mask((rows, cols), np.reshape(points, (-1, 2)) - 1)
    if valid.all() or valid.mean() < 0.1:
        return None
    return valid
