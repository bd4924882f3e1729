# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from licag3d.geometry import Camera
from licag3d.inversion.assembly import Curve
from licag3d.inversion.chains import Chains
from licag3d.inversion.lifting import lifted_curves

CAMERA = Camera(
    primary_deg=0.0, secondary_deg=0.0, sid_mm=1000.0, sod_mm=750.0, spacing_row_mm=0.4, spacing_col_mm=0.4, rows=256,
    cols=256,
)  # fmt: skip


def curve(*corners):
    """A curve through places given as (across, depth toward the detector, up), mm."""
    corners = np.asarray(corners, float)
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    along = np.linspace(0, at[-1], round(at[-1]) + 1)
    frame = CAMERA.frame
    axes = np.stack([frame.column, frame.beam, frame.row])
    points = np.stack([np.interp(along, at, corners[:, k]) for k in range(3)], 1) @ axes
    return Curve(points, np.full(len(points), 1.2), np.ones(len(points)), (None, None))


def chains(curves, joints=()):
    """What the camera sees of curves; joints are (piece, its end, other piece, its end) that meet at a node."""
    pixels, step, start = [], [], [0]
    for item in curves:
        flat = CAMERA.project(item.points_mm)[0]
        pixels.append(flat)
        step.append(np.concatenate([[0.0], np.linalg.norm(np.diff(flat, axis=0), axis=1) * CAMERA.mm_per_pixel]))
        start.append(start[-1] + len(flat))
    count = len(curves)
    turn = np.full((count, count, 2, 2), np.nan)
    for p, end_p, q, end_q in joints:
        turn[p, q, end_p, end_q] = turn[q, p, end_q, end_p] = 10.0
    step = np.concatenate(step)
    ones = np.ones(len(step))
    return Chains(
        np.concatenate(pixels), np.array(start), step, step, 1.2 * ones, ones, np.arange(2 * count).reshape(-1, 2),
        np.zeros((2 * count, 2)), turn, np.zeros(2 * count, bool), np.ones(2 * count, int), CAMERA.mm_per_pixel,
    )  # fmt: skip


def depth(points):
    return points @ CAMERA.frame.beam


LOW, HIGH = curve((-20, 4, 0), (0, 4, 0)), curve((20, 10, 0), (40, 10, 0))
BETWEEN = curve((0, 0, 0), (10, 0, 8), (20, 0, 0))


def test_depth_runs_evenly_between_two_known_vessels_along_the_course_seen():
    seen = chains([LOW, BETWEEN, HIGH], [(0, 1, 1, 0), (1, 1, 2, 0)])
    (found,) = lifted_curves(seen, CAMERA, [LOW, HIGH])
    flat = CAMERA.project(found.points_mm)[0]
    course = CAMERA.project(BETWEEN.points_mm)[0]
    gap = np.linalg.norm(flat[:, None] - course[None], axis=2).min(1)
    assert gap.max() < 1.5 / CAMERA.mm_per_pixel
    height = depth(found.points_mm)
    assert height[0] == pytest.approx(4.0, abs=0.3) and height[-1] == pytest.approx(10.0, abs=0.3)
    assert np.all(np.diff(height) > -1e-6) and height[len(height) // 2] == pytest.approx(7.0, abs=0.6)
    assert found.confidence.max() < 0.2


def test_what_hangs_on_by_one_end_keeps_its_depth_and_ends_within_reach():
    seen = chains([LOW, curve((0, 0, 0), (0, 0, 45))], [(0, 1, 1, 0)])
    (found,) = lifted_curves(seen, CAMERA, [LOW])
    assert depth(found.points_mm) == pytest.approx(4.0, abs=0.1)
    length = np.linalg.norm(np.diff(found.points_mm, axis=0), axis=1).sum()
    assert length == pytest.approx(25.0, abs=2.0)


def test_free_pieces_explained_ones_and_steep_ones_add_nothing():
    free = curve((-20, 0, 20), (0, 0, 20))
    assert lifted_curves(chains([LOW, free]), CAMERA, [LOW]) == []
    # Two vessels that are 30 mm apart in depth and 6 mm in the image are not joined.
    deep = curve((6, 34, 0), (26, 34, 0))
    seen = chains([LOW, curve((0, 0, 0), (6, 0, 0)), deep], [(0, 1, 1, 0), (1, 1, 2, 0)])
    assert lifted_curves(seen, CAMERA, [LOW, deep]) == []
    assert lifted_curves(seen, CAMERA, []) == []
