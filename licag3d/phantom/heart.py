# SPDX-License-Identifier: Apache-2.0
"""The heart surface that carries the coronary arteries: an ellipsoid of eight octants in LPS, oriented like a heart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Heart:
    """Epicardial surface around the origin (the centre of the atrioventricular ring), LPS mm.

    A direction on the surface is given by ``theta_deg``, the angle from the apex (0 apex, 90 atrioventricular groove,
    above 90 atria), and ``phi_deg``, the angle around the long axis (0 superior-left: anterior interventricular groove
    nearby; 90 right-anterior: acute margin; 180 inferior: crux and posterior interventricular groove; -90
    left-posterior: obtuse margin). ``level`` scales a surface point towards the centre (1 is the epicardium).

    Args:
        apex, up, right: orthonormal axes ``(3,)``, LPS: to the apex (left, anterior, down), to ``phi`` 0 and ``phi``
        90.
        apical_mm, basal_mm: half axes towards the apex and towards the atria.
        up_mm, down_mm, right_mm, left_mm: half axes at ``phi`` 0, 180, 90 and -90.
    """

    apex: np.ndarray
    up: np.ndarray
    right: np.ndarray
    apical_mm: float
    basal_mm: float
    up_mm: float
    down_mm: float
    right_mm: float
    left_mm: float

    def point(self, theta_deg: float, phi_deg: float, level: float = 1.0) -> np.ndarray:
        """Point ``(3,)`` LPS mm."""
        theta, phi = np.deg2rad(theta_deg), np.deg2rad(phi_deg)
        direction = np.cos(theta) * self.apex + np.sin(theta) * (np.cos(phi) * self.up + np.sin(phi) * self.right)
        # The angles are those of the ellipsoid stretched to a sphere: even steps on a long heart stay even in angle.
        coordinates = self._coordinates(direction)
        half_axes = self._half_axes(coordinates)
        stretched = coordinates * half_axes
        return level * (stretched @ np.stack((self.apex, self.up, self.right)))

    def level(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """Level ``(...)`` of points ``(..., 3)``: 1 on the surface, less inside."""
        coordinates = self._coordinates(points_lps_mm)
        return np.linalg.norm(coordinates / self._half_axes(coordinates), axis=-1)

    def normal(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """Outward unit normal ``(..., 3)`` of the level surface through each point."""
        coordinates = self._coordinates(points_lps_mm)
        gradient = (coordinates / self._half_axes(coordinates) ** 2) @ np.stack((self.apex, self.up, self.right))
        return gradient / np.linalg.norm(gradient, axis=-1, keepdims=True)

    def onto(self, points_lps_mm: np.ndarray, level: np.ndarray | float = 1.0) -> np.ndarray:
        """Points ``(n, 3)`` moved along the line through the centre onto the given level."""
        return points_lps_mm * (np.asarray(level) / self.level(points_lps_mm))[..., None]

    def _coordinates(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(points, np.float64) @ np.stack((self.apex, self.up, self.right), axis=-1)

    def _half_axes(self, coordinates: np.ndarray) -> np.ndarray:
        positive = np.array((self.apical_mm, self.up_mm, self.right_mm))
        negative = np.array((self.basal_mm, self.down_mm, self.left_mm))
        return np.where(coordinates >= 0, positive, negative)


def sample_heart(rng: np.random.Generator, size: float) -> Heart:
    """A heart of relative ``size`` (1 is the mean adult) with random axis and proportions.

    The long axis points left, anterior and down (about 45 degrees each, standard deviation 6 degrees); in LAO 45 one
    looks along it, so that the right coronary artery draws its C and the left ventricle lies to the image right.
    """
    apex = np.array((0.62, -0.56, -0.55)) + rng.normal(0.0, 0.07, 3)
    apex /= np.linalg.norm(apex)
    head = np.array((0.0, 0.0, 1.0))
    up = head - (head @ apex) * apex
    up /= np.linalg.norm(up)
    right = np.cross(apex, up)  # right-anterior: x to the left, y to the back
    # The heart also rolls about its long axis from patient to patient.
    roll = np.deg2rad(np.clip(rng.normal(0.0, 6.0), -12, 12))
    up, right = np.cos(roll) * up + np.sin(roll) * right, np.cos(roll) * right - np.sin(roll) * up

    def half_axis(mean_mm: float) -> float:
        return float(mean_mm * size * np.clip(rng.normal(1.0, 0.04), 0.92, 1.08))

    return Heart(
        apex=apex,
        up=up,
        right=right,
        apical_mm=half_axis(84.0),
        basal_mm=half_axis(52.0),
        up_mm=half_axis(43.5),
        down_mm=half_axis(42.5),
        right_mm=half_axis(52.0),
        left_mm=half_axis(47.0),
    )
