# SPDX-License-Identifier: Apache-2.0
"""Reading centerlines.json, a file that may come from anywhere, for scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.io.cameras import read_cameras_json
from licag3d.io.files import check_file
from licag3d.structures import Branch, VesselTree

MAX_BYTES = 64 * 2**20
MAX_BRANCHES, MAX_POINTS, MAX_COORDINATE_MM, MAX_RADIUS_MM = 10_000, 1_000_000, 5000.0, 25.0


def read_centerlines_json(path: str | Path) -> VesselTree:
    """A tree from centerlines.json (INTERFACES of the project: frame LPS, unit mm).

    Raises:
        InputError: missing, too large, not JSON, another frame or unit, or wrong values; the message names the branch.
    """
    path = Path(path)
    check_file(path, what="centreline file", limit=MAX_BYTES)
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not valid JSON ({str(error)[:80]}): give a centerlines.json") from None
    if not isinstance(data, dict) or not isinstance(data.get("branches"), list):
        raise InputError(f"{path.name}: the key 'branches' must be a list: give a centerlines.json")
    if data.get("frame") != "LPS" or data.get("unit") != "mm":
        raise InputError(f"{path.name}: frame {str(data.get('frame'))[:20]!r} and unit {str(data.get('unit'))[:20]!r}; "
                         "prediction and truth must both be in frame 'LPS', unit 'mm': convert the file")
    if len(data["branches"]) > MAX_BRANCHES:
        raise InputError(f"{path.name} has {len(data['branches'])} branches; at most {MAX_BRANCHES} are read")
    branches, count = [], 0
    for number, item in enumerate(data["branches"]):
        branch = _branch(item, f"{path.name}, branch {number + 1}")
        count += len(branch.points_lps_mm)
        if count > MAX_POINTS:
            raise InputError(f"{path.name} has more than {MAX_POINTS} points: resample it")
        branches.append(branch)
    return VesselTree(tuple(branches))


def read_cameras(path: str | Path) -> list[Camera]:
    """Complete cameras from cameras.json.

    Raises:
        InputError: the file is wrong, or a camera is incomplete.
    """
    cameras = []
    for number, (partial, _, _) in enumerate(read_cameras_json(path)):
        values = {name: getattr(partial, name) for name in ("primary_deg", "secondary_deg", "sid_mm", "sod_mm",
                  "spacing_row_mm", "spacing_col_mm", "rows", "cols")}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise InputError(f"{Path(path).name}, view {number + 1}: {', '.join(missing)} missing: give complete cameras")
        try:
            cameras.append(Camera(**values, offset_lps_mm=partial.offset_lps_mm or (0.0, 0.0, 0.0),
                                  principal_row=partial.principal_row, principal_col=partial.principal_col))
        except ValueError as error:
            raise InputError(f"{Path(path).name}, view {number + 1}: {error}") from None
    return cameras


def _branch(item: Any, where: str) -> Branch:
    if not isinstance(item, dict):
        raise InputError(f"{where}: must be an object with points_lps_mm and radius_mm")
    try:
        points = np.asarray(item.get("points_lps_mm"), np.float64)
        radius = np.asarray(item.get("radius_mm"), np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{where}: points_lps_mm and radius_mm must hold numbers only") from None
    if points.ndim != 2 or points.shape[1:] != (3,) or radius.shape != points.shape[:1]:
        raise InputError(f"{where}: points_lps_mm has shape {points.shape}, radius_mm {radius.shape}; give n points of three "
                         "numbers and n radii")
    if not np.all(np.abs(points) <= MAX_COORDINATE_MM) or not np.all((radius >= 0) & (radius <= MAX_RADIUS_MM)):
        raise InputError(f"{where}: coordinates must lie within {MAX_COORDINATE_MM:g} mm and radii within 0 to "
                         f"{MAX_RADIUS_MM:g} mm")
    identity, parent, name = item.get("id", 0), item.get("parent"), item.get("name", "")
    if not _is_whole(identity) or not (parent is None or _is_whole(parent)) or not isinstance(name or "", str):
        raise InputError(f"{where}: id and parent must be whole numbers (parent may be null), name a text")
    return Branch(identity, parent, points, radius, name or "")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
