# SPDX-License-Identifier: Apache-2.0
"""Centreline trees: ``centerlines.json`` (written and read) and ``centerlines.vtp``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from licag3d.errors import InputError
from licag3d.io.atomic import write_text
from licag3d.structures import Branch, VesselTree

MAX_JSON_BYTES = 200_000_000
MAX_POINTS = 5_000_000


def centerlines_dict(tree: VesselTree) -> dict[str, Any]:
    """The content of ``centerlines.json``, to 1e-4 mm; ``confidence``, ``error_mm`` and ``radius_sigma_mm`` are added
    to branches that have them."""
    branches = []
    for branch in tree.branches:
        entry: dict[str, Any] = {
            "id": int(branch.id), "parent": None if branch.parent is None else int(branch.parent), "name": branch.name,
            "points_lps_mm": np.round(np.asarray(branch.points_lps_mm, np.float64), 4).tolist(),
            "radius_mm": np.round(np.asarray(branch.radius_mm, np.float64), 4).tolist()}
        if branch.confidence is not None:
            entry["confidence"] = np.round(np.asarray(branch.confidence, np.float64), 4).tolist()
        for key in ("error_mm", "radius_sigma_mm"):
            if getattr(branch, key) is not None:
                entry[key] = np.round(np.asarray(getattr(branch, key), np.float64), 4).tolist()
        branches.append(entry)
    return {"frame": "LPS", "unit": "mm", "branches": branches}


def write_centerlines_json(path: str | Path, tree: VesselTree) -> None:
    """Write ``centerlines.json``, one branch per line."""
    content = centerlines_dict(tree)
    branches = content.pop("branches")
    head = json.dumps(content)[:-1]
    body = ",\n".join(json.dumps(branch, allow_nan=False, ensure_ascii=False) for branch in branches)
    write_text(path, f'{head}, "branches": [\n{body}\n]}}\n')


def read_centerlines_json(path: str | Path) -> VesselTree:
    """Read ``centerlines.json``; extra keys are ignored.

    Raises:
        InputError: naming the branch and the key that is wrong.
    """
    name = Path(path).name
    try:
        if Path(path).stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{name} is larger than {MAX_JSON_BYTES // 1_000_000} MB; that is no centreline file")
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); give a centerlines.json") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not a JSON file ({error}); give a centerlines.json") from None
    if not isinstance(content, dict) or not isinstance(content.get("branches"), list):
        raise InputError(f"{name} has no list 'branches'; give a centerlines.json")
    for key, wanted in (("frame", "LPS"), ("unit", "mm")):
        if content.get(key, wanted) != wanted:
            raise InputError(f"{name}: {key} is {content[key]!r}; only {wanted!r} is understood")
    branches, total, ids = [], 0, set()
    for k, entry in enumerate(content["branches"]):
        branch = _branch(entry, f"{name}: branches[{k}]")
        total += len(branch.radius_mm)
        if total > MAX_POINTS:
            raise InputError(f"{name} holds more than {MAX_POINTS} points; resample it")
        if branch.id in ids:
            raise InputError(f"{name}: branches[{k}]: id {branch.id} is used twice")
        if branch.parent is not None and branch.parent not in ids:
            raise InputError(f"{name}: branches[{k}]: parent {branch.parent} does not come before it")
        ids.add(branch.id)
        branches.append(branch)
    return VesselTree(tuple(branches))


def _branch(entry: Any, where: str) -> Branch:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not an object; expected id, parent, points_lps_mm and radius_mm")

    def whole(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{where}: {key} is {_short(value)}; expected a whole number")
        return value

    def numbers(key: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = np.asarray(entry[key], dtype=object)
            if any(isinstance(x, (bool, str)) for x in array.ravel().tolist()):
                raise ValueError
            array = array.astype(np.float64)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{where}: {key} is {_short(entry.get(key))}; expected numbers") from None
        if array.ndim != len(shape) or any(n not in (0, m) for n, m in zip(shape, array.shape, strict=True)):
            wanted = "[[x, y, z], ...]" if len(shape) == 2 else "one number per point"
            raise InputError(f"{where}: {key} has the shape {array.shape}; expected {wanted}")
        if not np.isfinite(array).all():
            raise InputError(f"{where}: {key} holds a value that is not finite")
        return array

    for key in ("id", "points_lps_mm", "radius_mm"):
        if key not in entry:
            raise InputError(f"{where} has no {key!r}")
    points = numbers("points_lps_mm", (0, 3))
    if len(points) == 0:
        raise InputError(f"{where}: points_lps_mm is empty; a branch has at least one point")
    radius = numbers("radius_mm", (len(points),))
    if (radius <= 0).any():
        raise InputError(f"{where}: a radius is {radius.min():g} mm; every radius must be positive")
    parent = entry.get("parent")
    name = entry.get("name") or ""
    errors = {}
    for key in ("error_mm", "radius_sigma_mm"):
        errors[key] = numbers(key, (len(points),)) if entry.get(key) is not None else None
        if errors[key] is not None and (errors[key] < 0).any():
            raise InputError(f"{where}: an {key} is {errors[key].min():g}; no error is negative")
    return Branch(whole("id", entry["id"]), None if parent is None else whole("parent", parent), points, radius,
                  name if isinstance(name, str) else str(name),
                  numbers("confidence", (len(points),)) if entry.get("confidence") is not None else None, **errors)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def write_centerlines_vtp(path: str | Path, tree: VesselTree) -> None:
    """VTK XML PolyData (ASCII): one polyline per branch, point data Radius, BranchId, and where known Confidence and
    ErrorMm (radius of the ball that holds the true centreline with 90 %).

    The field array SPACE says LPS, which 3D Slicer reads. File format: VTK File Formats, "XML File Formats".
    """
    branches = [b for b in tree.branches if len(b.points_lps_mm)]
    counts = [len(b.points_lps_mm) for b in branches]
    points = np.concatenate([np.zeros((0, 3)), *(np.asarray(b.points_lps_mm, np.float64) for b in branches)])
    radius = np.concatenate([np.zeros(0), *(np.asarray(b.radius_mm, np.float64) for b in branches)])
    branch_ids = [str(int(b.id)) for b in branches]
    scalars = [_array("Float32", "Radius", [f"{r:.6g}" for r in radius]),
               _array("Int32", "BranchId", np.repeat(branch_ids, counts).tolist())]
    for title, key in (("Confidence", "confidence"), ("ErrorMm", "error_mm")):
        if any(getattr(b, key) is not None for b in branches):
            # -1 stands for unknown: the ASCII encoding has no portable NaN.
            values = [np.full(len(b.radius_mm), -1.0) if getattr(b, key) is None else getattr(b, key) for b in branches]
            scalars.append(_array("Float32", title, [f"{v:.4g}" for v in np.concatenate(values)]))
    cells = [_array("Int32", "BranchId", branch_ids),
             _array("Int32", "ParentId", [str(-1 if b.parent is None else int(b.parent)) for b in branches])]
    # VTK stores strings as character codes ended by 0.
    space = _array("String", "SPACE", [str(c) for c in b"LPS\0"], ' NumberOfTuples="1"')
    lines = ('<?xml version="1.0"?>\n'
             '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
             f"<PolyData>\n<FieldData>\n{space}</FieldData>\n"
             f'<Piece NumberOfPoints="{len(points)}" NumberOfVerts="0" NumberOfLines="{len(branches)}" '
             'NumberOfStrips="0" NumberOfPolys="0">\n')
    lines += f'<PointData Scalars="Radius">\n{"".join(scalars)}</PointData>\n<CellData>\n{"".join(cells)}</CellData>\n'
    coordinates = [f"{x:.9g} {y:.9g} {z:.9g}" for x, y, z in points]
    lines += f'<Points>\n{_array("Float64", "Points", coordinates, components=3)}</Points>\n'
    lines += "<Lines>\n" + _array("Int64", "connectivity", [str(i) for i in range(len(points))])
    lines += _array("Int64", "offsets", [str(int(n)) for n in np.cumsum(counts)]) + "</Lines>\n"
    write_text(path, lines + "</Piece>\n</PolyData>\n</VTKFile>\n")


def _array(kind: str, name: str, values: list[str], extra: str = "", *, components: int = 1) -> str:
    components_text = f' NumberOfComponents="{components}"' if components > 1 else ""
    return (f'<DataArray type="{kind}" Name="{name}"{components_text}{extra} format="ascii">\n' + "\n".join(values)
            + "\n</DataArray>\n")
