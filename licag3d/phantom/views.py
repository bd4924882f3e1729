# SPDX-License-Identifier: Apache-2.0
"""Which views a phantom patient gets: working angles, distances, table offset and reading error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera, view_angle_deg

#: Working views (primary, secondary) in degrees, LAO and cranial positive, from the usual tables of coronary
#: projections (Di Mario and Sutaria, Heart 2005;91:968) and the seven-view sets of published two-view reconstruction
#: work.
WORKING_VIEWS: dict[str, tuple[tuple[float, float], ...]] = {
    "rca": ((40, 10), (50, 0), (-30, 0), (0, 25), (35, 28), (-20, 20), (-40, 0), (60, 0)),
    "lca": ((45, -30), (-10, -30), (-30, -30), (50, 0), (-8, 38), (35, 28), (-40, 25), (5, 35), (-25, -10)),
}
#: Reachable angles of a C-arm over a patient, degrees.
PRIMARY_LIMIT_DEG, SECONDARY_LIMIT_DEG = 70.0, 45.0
#: Share of the image kept free of vessels at each side.
MARGIN = 0.05


@dataclass(frozen=True)
class Geometry:
    """Distances of one acquisition, mm."""

    sid_mm: float
    sod_mm: float
    spacing_mm: float


def choose_angles(
    rng: np.random.Generator, artery: str, views: int, separation_deg: float, *, free: bool = False
) -> list[tuple[float, float]]:
    """Angles ``(primary, secondary)`` in degrees: the first a working view, each next ``separation_deg`` from the
    first.

    The next views are, among the reachable directions at that separation, close to working views. From the third view
    on they also keep at least half the separation from one another. With ``free`` any direction within reach may be
    drawn, whether operators use it or not.

    Raises:
        InputError: the separation cannot be reached.
    """
    for _ in range(200):
        table = _free_views(rng) if free else WORKING_VIEWS[artery]
        first = np.asarray(table[rng.integers(len(table))]) + (0.0 if free else rng.uniform(-5, 5, 2))
        chosen = [(float(first[0]), float(first[1]))]
        while len(chosen) < views:
            turns = rng.uniform(0, 2 * np.pi, 96)
            candidates = [
                angles
                for angles in _around(chosen[0], separation_deg, turns)
                if abs(angles[0]) <= PRIMARY_LIMIT_DEG
                and abs(angles[1]) <= SECONDARY_LIMIT_DEG
                and all(angle_between_deg(angles, other) >= 0.5 * separation_deg for other in chosen[1:])
            ]
            if not candidates:
                break
            # Jitter, so that the closest candidate is not always the same pair of working views.
            scores = [
                min(angle_between_deg(angles, view) for view in table) + rng.uniform(0, 15) for angles in candidates
            ]
            chosen.append(candidates[int(np.argmin(scores))])
        if len(chosen) == views:
            return chosen
    raise InputError(
        f"no {views} views {separation_deg:g} degrees from the first within reach of a C-arm; use a separation "
        "from 20 to 110 degrees and at most 4 views"
    )


def _free_views(rng: np.random.Generator) -> list[tuple[float, float]]:
    primary = rng.uniform(-PRIMARY_LIMIT_DEG, PRIMARY_LIMIT_DEG, 32)
    secondary = rng.uniform(-SECONDARY_LIMIT_DEG, SECONDARY_LIMIT_DEG, 32)
    return [(float(a), float(b)) for a, b in zip(primary, secondary, strict=True)]


def choose_geometry(rng: np.random.Generator) -> Geometry:
    """SID and SOD of one acquisition; the spacing is set by :func:`fit_spacing`."""
    return Geometry(
        sid_mm=float(np.round(rng.uniform(1000, 1100), 1)),
        sod_mm=float(np.round(rng.uniform(735, 765), 1)),
        spacing_mm=0.3,
    )


def make_camera(
    angles_deg: tuple[float, float],
    geometry: Geometry,
    rows: int,
    cols: int,
    offset_lps_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> Camera:
    """A camera with square pixels."""
    return Camera(
        float(angles_deg[0]),
        float(angles_deg[1]),
        geometry.sid_mm,
        geometry.sod_mm,
        geometry.spacing_mm,
        geometry.spacing_mm,
        rows,
        cols,
        tuple(float(x) for x in offset_lps_mm),
    )


def fit_spacing(cameras: Sequence[Camera], points_lps_mm: np.ndarray) -> float:
    """Detector pixel spacing, mm, at which the points fill the view but keep the margin: at least 0.28 mm at 512
    pixels.
    """
    needed = 0.28 * 512 / max(cameras[0].rows, cameras[0].cols)
    for camera in cameras:
        pixels, _ = camera.project(points_lps_mm)
        col = np.abs(pixels[:, 0] - camera.principal_col).max() / (camera.cols * (0.5 - MARGIN))
        row = np.abs(pixels[:, 1] - camera.principal_row).max() / (camera.rows * (0.5 - MARGIN))
        needed = max(needed, camera.spacing_col_mm * col, camera.spacing_row_mm * row)
    return float(np.ceil(needed * 1000) / 1000)


def with_spacing(camera: Camera, spacing_mm: float) -> Camera:
    """The same view on a detector of another pixel spacing."""
    return replace(camera, spacing_row_mm=spacing_mm, spacing_col_mm=spacing_mm)


def as_read(camera: Camera, rng: np.random.Generator, angle_error_deg: float) -> Camera:
    """The camera as a user has it: no offset known, and angles wrong by ``angle_error_deg`` in a random direction.

    The two errors (primary, secondary) have the Euclidean norm ``angle_error_deg``.
    """
    turn = rng.uniform(0, 2 * np.pi)
    return replace(
        camera,
        primary_deg=camera.primary_deg + angle_error_deg * np.cos(turn),
        secondary_deg=camera.secondary_deg + angle_error_deg * np.sin(turn),
        offset_lps_mm=(0.0, 0.0, 0.0),
    )


def with_other_distances(camera: Camera, rng: np.random.Generator, size_mm: float) -> Camera:
    """The same view with SID and SOD changed in a random direction by ``size_mm`` (norm over both).

    Raises:
        InputError: the detector would not lie behind the isocentre.
    """
    turn = rng.uniform(0, 2 * np.pi)
    sid_mm, sod_mm = camera.sid_mm + size_mm * np.cos(turn), camera.sod_mm + size_mm * np.sin(turn)
    if sid_mm <= sod_mm + 20 or sod_mm < 200:
        raise InputError(
            f"distances changed by {size_mm:g} mm give SID {sid_mm:.0f} mm and SOD {sod_mm:.0f} mm; change them by less"
        )
    return replace(camera, sid_mm=float(sid_mm), sod_mm=float(sod_mm))


def random_direction(rng: np.random.Generator) -> np.ndarray:
    """Unit vector ``(3,)``, uniform on the sphere."""
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def angle_between_deg(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Angle between two view directions given as (primary, secondary) degrees."""
    probe = Camera(first[0], first[1], 1000, 750, 0.3, 0.3, 8, 8)
    return view_angle_deg(probe, replace(probe, primary_deg=second[0], secondary_deg=second[1]))


def _around(angles: tuple[float, float], separation_deg: float, turns: np.ndarray) -> list[tuple[float, float]]:
    """Angles of the directions ``separation_deg`` from the given one, at the given turns about it."""
    frame = Camera(angles[0], angles[1], 1000, 750, 0.3, 0.3, 8, 8).frame
    separation = np.deg2rad(separation_deg)
    beams = np.cos(separation) * frame.beam + np.sin(separation) * (
        np.cos(turns)[:, None] * frame.column + np.sin(turns)[:, None] * frame.row
    )
    # beam = (sin a cos b, -cos a cos b, sin b), docs/geometry.md
    return [
        (float(np.rad2deg(np.arctan2(x, -y))), float(np.rad2deg(np.arcsin(np.clip(z, -1, 1))))) for x, y, z in beams
    ]
