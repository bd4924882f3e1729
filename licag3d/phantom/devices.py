# SPDX-License-Identifier: Apache-2.0
"""Catheter and guide wire: where the operator put them, as tubes."""

from __future__ import annotations

import numpy as np

from licag3d.phantom.tubes import Line
from licag3d.structures import VesselTree


def catheter_line(rng: np.random.Generator, tree: VesselTree) -> Line:
    """A 5 or 6 French catheter (1 French = 1/3 mm outer diameter) whose tip ends at the ostium, LPS mm.

    Judkins way: out of the ostium against the first millimetres of the vessel, across the root to the opposite wall of
    the aorta, up the ascending aorta and out of the field.
    """
    from scipy.interpolate import make_interp_spline

    root = tree.branches[0].points_lps_mm
    ostium, inward = root[0], root[8] - root[0]
    back = -inward / np.linalg.norm(inward)
    up = np.array((0.0, 0.0, 1.0))
    across = back - (back @ up) * up
    across /= max(float(np.linalg.norm(across)), 1e-6)
    lean = np.array((rng.uniform(-0.1, 0.15), rng.uniform(-0.05, 0.2), 0.0))
    width = rng.uniform(20, 28)  # of the aortic root, mm
    controls = np.stack(
        [
            ostium - 1.5 * back,
            ostium,
            ostium + 9 * back + rng.uniform(0, 4) * -up,
            ostium + width * across + rng.uniform(4, 12) * up,
            ostium + (width + 1) * across + 38 * (up + lean),
            ostium + (width - 8) * across + 85 * (up + lean),
            ostium + (width - 6) * across + 150 * (up + lean),
        ]
    )
    knots = np.concatenate(([0.0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(controls, axis=0), axis=1)))))
    points = make_interp_spline(knots, controls, k=3)(np.linspace(0, knots[-1], 140))
    radius = rng.choice((5.0, 6.0)) / 6.0
    return Line(points, np.full(len(points), radius))


def wire_line(rng: np.random.Generator, tree: VesselTree, catheter: Line) -> Line:
    """A 0.014 inch guide wire through the catheter into the longest vessel that continues the first branch, LPS mm."""
    first = tree.branches[0]
    ways = [
        branch
        for branch in tree.branches
        if branch.parent == first.id and np.allclose(branch.points_lps_mm[0], first.points_lps_mm[-1])
    ]
    points = [catheter.points_lps_mm[::-1], first.points_lps_mm]
    if ways:
        way = max(ways, key=lambda branch: len(branch.points_lps_mm))
        points.append(way.points_lps_mm[: int(len(way.points_lps_mm) * rng.uniform(0.5, 0.9))])
    line = np.concatenate([points[0], *(part[1:] for part in points[1:])])  # joints once: no piece of length zero
    return Line(line, np.full(len(line), 0.18))
