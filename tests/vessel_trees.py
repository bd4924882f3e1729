# SPDX-License-Identifier: Apache-2.0
"""Small synthetic trees with known answers."""

from __future__ import annotations

import numpy as np

from licag3d.structures import Branch, VesselTree


def tube(length_mm=30.0, radius_mm=1.5, direction=(0.3, 0.5, 1.0), start=(5.0, -12.0, 40.0), step_mm=0.5,
         end_radius_mm=None):
    """One straight tube, tapering to ``end_radius_mm`` when given."""
    direction = np.asarray(direction) / np.linalg.norm(direction)
    s = np.linspace(0, length_mm, round(length_mm / step_mm) + 1)
    radius = np.interp(s, [0, length_mm], [radius_mm, radius_mm if end_radius_mm is None else end_radius_mm])
    return VesselTree((Branch(0, None, np.asarray(start) + s[:, None] * direction, radius, "tube"),))


def coronary():
    """A bent main vessel of 95 mm, two side branches and a branch of a branch, each starting on its parent."""
    s = np.linspace(0, 1, 181)
    main = np.stack([60 * np.sin(1.3 * s) - 20, 20 * np.cos(2.2 * s) - 35, 40 - 65 * s], -1)
    main_radius = 1.8 - 1.1 * s

    def side(parent, parent_radius, at, direction, length, bend):
        t = np.linspace(0, 1, round(length / 0.5) + 1)[:, None]
        direction = np.asarray(direction, float) / np.linalg.norm(direction)
        points = parent[at] + length * t * direction + np.asarray(bend) * t**2
        return points, np.linspace(0.75 * parent_radius[at], 0.45, len(points))

    first, first_radius = side(main, main_radius, 50, (0.2, 1, -0.4), 35, (6, 0, -4))
    second, second_radius = side(main, main_radius, 110, (-1, 0.3, -0.6), 28, (0, 7, 0))
    third, third_radius = side(first, first_radius, 35, (1, 0.4, 0.2), 18, (0, 3, -3))
    return VesselTree((
        Branch(0, None, main, main_radius, "main", np.linspace(1, 0.6, len(main))),
        Branch(1, 0, first, first_radius, "side 1", np.full(len(first), 0.8)),
        Branch(2, 0, second, second_radius, "side 2", np.full(len(second), 0.5)),
        Branch(3, 1, third, third_radius, "", np.full(len(third), 0.3)),
    ))
