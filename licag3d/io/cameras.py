# SPDX-License-Identifier: Apache-2.0
"""cameras.json in and out, and the completion of a camera from flags, file and tags."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.io.files import PartialCamera, check_file

MAX_JSON_BYTES = 4 * 2**20
DEFAULT_SOD_MM = 765.0

# Working views of daily practice (angles in degrees, LAO and cranial positive), used only when nothing at all is known
# of the cameras: RAO 30, LAO 40, RAO 30 cranial 25, LAO 45 caudal 25, AP caudal 30, AP cranial 30, lateral, RAO 30
# caudal 25.
STANDARD_ANGLES_DEG = ((-30.0, 0.0), (40.0, 0.0), (-30.0, 25.0), (45.0, -25.0), (0.0, -30.0), (0.0, 30.0), (90.0, 0.0),
                       (-30.0, -25.0))
STANDARD_SID_MM = 1000.0
STANDARD_SOD_MM = DEFAULT_SOD_MM
STANDARD_FIELD_MM = 200.0

_KEYS = ("file", "frame", "primary_deg", "secondary_deg", "sid_mm", "sod_mm", "pixel_spacing_mm", "rows", "cols",
         "offset_lps_mm", "principal_point_px")
_FLAGS = {"primary_deg": ("angles", "--angles A,B per view"), "secondary_deg": ("angles", "--angles A,B per view"),
          "sid_mm": ("SID (source to detector)", "--sid MM"),
          "sod_mm": ("SOD (source to isocentre)", f"--sod MM (or --sod default for {DEFAULT_SOD_MM:g} mm)"),
          "spacing_row_mm": ("detector pixel spacing", "--pixel-spacing MM"),
          "spacing_col_mm": ("detector pixel spacing", "--pixel-spacing MM")}


def cameras_to_dict(cameras: Sequence[Camera], files: Sequence[str], frames: Sequence[int | None]) -> dict[str, Any]:
    """The content of cameras.json for views in order: file names without folders, 0-based frames.

    ``principal_point_px`` is written only where it is not the image centre (a cropped view).

    Example:
        >>> camera = Camera(30, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.3, spacing_col_mm=0.3, rows=512, cols=512)
        >>> cameras_to_dict([camera], ["a.png"], [None])["views"][0]["pixel_spacing_mm"]
        {'row': 0.3, 'col': 0.3}
    """
    views = []
    for camera, file, frame in zip(cameras, files, frames, strict=True):
        view = {
            "file": Path(file).name, "frame": frame,
            "primary_deg": camera.primary_deg, "secondary_deg": camera.secondary_deg,
            "sid_mm": camera.sid_mm, "sod_mm": camera.sod_mm,
            "pixel_spacing_mm": {"row": camera.spacing_row_mm, "col": camera.spacing_col_mm},
            "rows": camera.rows, "cols": camera.cols, "offset_lps_mm": list(camera.offset_lps_mm),
        }
        if (camera.principal_row, camera.principal_col) != ((camera.rows - 1) / 2, (camera.cols - 1) / 2):
            view["principal_point_px"] = {"row": camera.principal_row, "col": camera.principal_col}
        views.append(view)
    return {"views": views}


def write_cameras_json(cameras: Sequence[Camera], files: Sequence[str], frames: Sequence[int | None]) -> str:
    """The text of cameras.json; every number survives the way there and back exactly."""
    return json.dumps(cameras_to_dict(cameras, files, frames), indent=1, allow_nan=False) + "\n"


def read_cameras_json(path: str | Path) -> list[tuple[PartialCamera, str | None, int | None]]:
    """Read cameras.json: per view what it says of the camera, the file name and the frame.

    Keys may be missing (flags or tags complete them); values that are there must be right.

    Raises:
        InputError: not JSON, or a wrong value: the message names the key, the view and the line.
    """
    path = Path(path)
    check_file(path, what="cameras file", limit=MAX_JSON_BYTES)
    name = path.name
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{name} is not a text file in UTF-8: --cameras takes a cameras.json") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): check its permissions") from None

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"{name}: the key {key[:60]!r} is given twice in one object: keep one")
        return dict(items)

    def constant(value: str) -> float:
        line = next((k for k, row in enumerate(text.splitlines(), 1) if re.search(rf"(?<![\w\"]){value}\b", row)), 0)
        raise InputError(f"{name}, line {line}: {value} is not a number JSON allows: give a finite number")

    try:
        data = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise InputError(f"{name} is nested too deeply to be a cameras.json: write it as docs/formats.md "
                         f"says") from None
    except ValueError as error:
        raise InputError(f"{name} is not valid JSON ({str(error)[:80]}): write it as docs/formats.md says") from None
    lines = _key_lines(text)
    views = data.get("views") if isinstance(data, dict) else data
    if not isinstance(views, list) or not views:
        raise InputError(f"{name}: the key 'views' must be a list with one object per view: see docs/formats.md")
    return [_read_view(view, k, name, lines) for k, view in enumerate(views)]


def _key_lines(text: str) -> dict[tuple, int]:
    """Line of every key of a valid JSON text, by path (list positions are numbers): for messages that help."""
    lines: dict[tuple, int] = {}
    stack: list[list] = []  # per open container: [kind, current key or position]
    line, expect_key = 1, False
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[{}\[\],:\n]', text):
        mark = token.group()
        if mark == "\n":
            line += 1
        elif mark in "{[":
            if stack and stack[-1][0] == "[":
                lines.setdefault(tuple(part for _, part in stack), line)
            stack.append([mark, 0 if mark == "[" else None])
            expect_key = mark == "{"
        elif mark in "}]":
            if stack:
                stack.pop()
            expect_key = False
        elif mark == "," and stack:
            if stack[-1][0] == "[":
                stack[-1][1] += 1
            expect_key = stack[-1][0] == "{"
        elif mark[0] == '"' and expect_key and stack:
            stack[-1][1] = json.loads(mark, strict=False)
            lines[tuple(part for _, part in stack)] = line
            expect_key = False
    return lines


def _read_view(view: Any, k: int, name: str, lines: dict[tuple, int]) -> tuple[PartialCamera, str | None, int | None]:
    def where(*path: str) -> str:
        for prefix in (("views", k), (k,)):
            for cut in range(len(path), -1, -1):
                if (line := lines.get((*prefix, *path[:cut]))) is not None:
                    return f"{name}, line {line}, view {k + 1}"
        return f"{name}, view {k + 1}"

    def number(holder: dict, *path: str, low: float, high: float, whole: bool = False) -> Any:
        value = holder.get(path[-1])
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{where(*path)}: {'.'.join(path)} is {json.dumps(value)[:60]}: give a number")
        # A huge whole number does not fit a float; comparing it as it is does not overflow.
        if not low <= value <= high or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            shown = f"{value:g}" if isinstance(value, float) else str(value)[:24]
            raise InputError(f"{where(*path)}: {'.'.join(path)} is {shown}: give {kind} from {low:g} to {high:g}")
        return int(value) if whole else float(value)

    if not isinstance(view, dict):
        raise InputError(f"{where()}: a view must be an object with primary_deg, secondary_deg, sid_mm, ...: see "
                         f"docs/formats.md")
    notes = []
    for key in view:
        if key not in _KEYS:
            notes.append(f"{name}: key {key[:40]!r} of view {k + 1} is not known and was ignored.")
    spacing = view.get("pixel_spacing_mm")
    if isinstance(spacing, dict):
        row = number(spacing, "pixel_spacing_mm", "row", low=1e-3, high=10)
        col = number(spacing, "pixel_spacing_mm", "col", low=1e-3, high=10)
        if row is None or col is None:
            raise InputError(f"{where('pixel_spacing_mm')}: pixel_spacing_mm needs 'row' and 'col' in mm")
    else:
        row = col = number(view, "pixel_spacing_mm", low=1e-3, high=10)
    offset = view.get("offset_lps_mm")
    if offset is not None:
        if (not isinstance(offset, list) or len(offset) != 3
                or any(isinstance(x, bool) or not isinstance(x, (int, float)) or not abs(x) <= 5000 for x in offset)):
            raise InputError(f"{where('offset_lps_mm')}: offset_lps_mm is {json.dumps(offset)[:60]}: give [x, y, z] in "
                             f"mm, each within 5000")
        offset = tuple(float(x) for x in offset)
    point = view.get("principal_point_px")
    centre = (None, None)
    if point is not None:
        if not isinstance(point, dict):
            raise InputError(f"{where('principal_point_px')}: principal_point_px must be "
                             f"{{\"row\": pixels, \"col\": pixels}}")
        centre = tuple(number(point, "principal_point_px", axis, low=-65536, high=65536) for axis in ("row", "col"))
        if None in centre:
            raise InputError(f"{where('principal_point_px')}: principal_point_px needs 'row' and 'col' in pixels")
    file = view.get("file")
    if file is not None and not isinstance(file, str):
        raise InputError(f"{where('file')}: file is {json.dumps(file)[:60]}: give a file name")
    partial = PartialCamera(
        primary_deg=number(view, "primary_deg", low=-180, high=180),
        secondary_deg=number(view, "secondary_deg", low=-90, high=90),
        sid_mm=number(view, "sid_mm", low=50, high=5000), sod_mm=number(view, "sod_mm", low=50, high=5000),
        spacing_row_mm=row, spacing_col_mm=col, rows=number(view, "rows", low=1, high=16384, whole=True),
        cols=number(view, "cols", low=1, high=16384, whole=True), offset_lps_mm=offset, principal_row=centre[0],
        principal_col=centre[1], notes=tuple(notes))
    if partial.sid_mm and partial.sod_mm and partial.sid_mm <= partial.sod_mm:
        raise InputError(f"{where('sid_mm')}: sid_mm {partial.sid_mm:g} is not larger than sod_mm {partial.sod_mm:g}: "
                         f"check that the two were not swapped")
    return partial, file, number(view, "frame", low=0, high=10**6, whole=True)


_GEOMETRY = ("primary_deg", "secondary_deg", "sid_mm", "sod_mm", "spacing_row_mm", "spacing_col_mm", "rows", "cols",
             "offset_lps_mm", "principal_row", "principal_col")


def overlay(base: PartialCamera, top: PartialCamera, source: str) -> PartialCamera:
    """``top`` where it says something, else ``base``; a note for every value that was exchanged for another one."""
    notes = list(base.notes) + list(top.notes)
    changes: dict[str, Any] = {}
    for name in _GEOMETRY:
        new, old = getattr(top, name), getattr(base, name)
        if new is None:
            continue
        changes[name] = new
        if old is not None and old != new and name not in ("rows", "cols"):
            notes.append(f"{name} {_show(old)} of the file was overridden by {source}: {_show(new)}.")
    # Whoever states both angles takes over the meaning of the axes, so a patient position in the tags no longer
    # matters.
    if base.refused and top.primary_deg is not None and top.secondary_deg is not None:
        notes.append(f"{base.refused}; the angles of {source} are taken to be as in docs/geometry.md.")
        changes["refused"] = ""
    return replace(base, **changes, notes=tuple(dict.fromkeys(notes)))


def _show(value: Any) -> str:
    return "(" + ", ".join(f"{x:g}" for x in value) + ")" if isinstance(value, tuple) else f"{value:g}"


def says_nothing(partial: PartialCamera) -> bool:
    """True when not one number of the geometry is known."""
    return all(getattr(partial, name) is None for name in _FLAGS)


def complete(partial: PartialCamera, rows: int, cols: int, label: str) -> Camera:
    """The camera of an image of ``rows`` x ``cols``, with nothing assumed.

    Raises:
        InputError: something is missing (the flag is named), absurd, or made for an image of another size.
    """
    if partial.refused:
        raise InputError(f"{label}: {partial.refused}: give the angles for HFS with --angles or --cameras")
    missing = {_FLAGS[name]: None for name in _FLAGS if getattr(partial, name) is None}
    if missing:
        what = ", ".join(text for text, _ in missing)
        flags = ", ".join(flag for _, flag in missing)
        raise InputError(f"{label}: no {what} known for this view: give {flags}, or --cameras cameras.json")
    for name, size in (("rows", rows), ("cols", cols)):
        stated = getattr(partial, name)
        if stated is not None and stated != size:
            raise InputError(f"{label}: the image has {rows} x {cols} pixels (rows x columns) but its camera is made "
                             f"for {name} {stated}: cropping and resizing change the camera; give the camera of this "
                             f"very image")
    for name in ("primary_deg", "secondary_deg", "sid_mm", "sod_mm", "spacing_row_mm", "spacing_col_mm"):
        value = getattr(partial, name)
        if not math.isfinite(value):
            raise InputError(f"{label}: {name} is {value}: give a finite number with {_FLAGS[name][1]}")
    try:
        return Camera(partial.primary_deg, partial.secondary_deg, partial.sid_mm, partial.sod_mm,
                      partial.spacing_row_mm, partial.spacing_col_mm, rows, cols,
                      partial.offset_lps_mm or (0.0, 0.0, 0.0), partial.principal_row, partial.principal_col)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{label}: {error}") from None


def standard_camera(k: int, rows: int, cols: int) -> Camera:
    """The documented assumption for view ``k`` (0-based) when nothing is known: see ``STANDARD_ANGLES_DEG``."""
    primary, secondary = STANDARD_ANGLES_DEG[k % len(STANDARD_ANGLES_DEG)]
    spacing = STANDARD_FIELD_MM / max(rows, cols)
    return Camera(primary, secondary, STANDARD_SID_MM, STANDARD_SOD_MM, spacing, spacing, rows, cols)
