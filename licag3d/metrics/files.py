# SPDX-License-Identifier: Apache-2.0
"""Reading predictions and truth for scoring; the files may come from anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.io.cameras import read_cameras_json
from licag3d.io.write_centerlines import read_centerlines_json
from licag3d.structures import VesselTree

#: No coronary tree goes beyond these; what does would only exhaust the memory of a grid.
MAX_COORDINATE_MM, MAX_RADIUS_MM = 5000.0, 25.0


def read_tree(path: str | Path) -> VesselTree:
    """A tree from centerlines.json, within bounds that can be scored.

    Raises:
        InputError: missing or wrong, a coordinate beyond 5 m or a radius beyond 25 mm.
    """
    tree = read_centerlines_json(path)
    for branch in tree.branches:
        if np.abs(branch.points_lps_mm).max() > MAX_COORDINATE_MM or branch.radius_mm.max() > MAX_RADIUS_MM:
            raise InputError(
                f"{Path(path).name}, branch {branch.id}: coordinates must lie within {MAX_COORDINATE_MM:g} mm "
                f"and radii within {MAX_RADIUS_MM:g} mm: check the unit (mm)"
            )
    return tree


def read_cameras(path: str | Path) -> list[Camera]:
    """Complete cameras from cameras.json.

    Raises:
        InputError: the file is wrong, or a camera is incomplete.
    """
    cameras = []
    for number, (partial, _, _) in enumerate(read_cameras_json(path)):
        values = {
            name: getattr(partial, name)
            for name in (
                "primary_deg",
                "secondary_deg",
                "sid_mm",
                "sod_mm",
                "spacing_row_mm",
                "spacing_col_mm",
                "rows",
                "cols",
            )
        }
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise InputError(
                f"{Path(path).name}, view {number + 1}: {', '.join(missing)} missing: give complete cameras"
            )
        try:
            cameras.append(
                Camera(
                    **values,
                    offset_lps_mm=partial.offset_lps_mm or (0.0, 0.0, 0.0),
                    principal_row=partial.principal_row,
                    principal_col=partial.principal_col,
                )
            )
        except ValueError as error:
            raise InputError(f"{Path(path).name}, view {number + 1}: {error}") from None
    return cameras
