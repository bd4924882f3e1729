# SPDX-License-Identifier: Apache-2.0
"""Epipolar coordinates of two C-arm views: which pixels can show the same point.

Every plane through both X-ray sources cuts each image in one epipolar line. A pixel is described by the angle
``theta`` of its plane about the baseline and the angle ``phi`` of its ray within the plane, so that pixels of
both views can show one point exactly if their ``theta`` agree, and the two ``phi`` give the point.
Hartley and Zisserman, Multiple View Geometry, 2nd ed., chapter 9.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera


@dataclass(frozen=True)
class EpipolarPair:
    """Baseline frame of an ordered pair of views.

    ``source_a``, ``source_b`` ``(3,)`` world LPS mm; ``along`` ``(3,)`` unit vector from source a to source b;
    ``toward`` ``(3,)`` unit vector from the baseline to the scene; ``across`` ``(3,)`` normal of the middle plane.
    """

    source_a: np.ndarray
    source_b: np.ndarray
    along: np.ndarray
    toward: np.ndarray
    across: np.ndarray

    @property
    def baseline_mm(self) -> float:
        """Distance of the two sources, mm."""
        return float(np.linalg.norm(self.source_b - self.source_a))


def epipolar_pair(camera_a: Camera, camera_b: Camera) -> EpipolarPair:
    """Baseline frame of two views (their sources must not coincide)."""
    source_a, source_b = camera_a.source_lps_mm, camera_b.source_lps_mm
    along = source_b - source_a
    along = along / max(np.linalg.norm(along), 1e-9)
    middle = camera_a.frame.beam + camera_b.frame.beam
    toward = middle - (middle @ along) * along
    toward /= max(np.linalg.norm(toward), 1e-9)
    return EpipolarPair(source_a, source_b, along, toward, np.cross(along, toward))


def epipolar_angles(pair: EpipolarPair, camera: Camera, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plane angle ``theta`` and ray angle ``phi`` of pixels ``(N, 2)`` (col, row), radians, each ``(N,)``.

    ``phi`` is measured from the baseline direction (source a to source b), for both views.
    """
    _, rays = camera.rays(pixels[:, 0], pixels[:, 1])
    x, y, z = rays @ pair.along, rays @ pair.toward, rays @ pair.across
    return np.arctan2(z, y), np.arctan2(np.hypot(y, z), x)


def triangulate(pair: EpipolarPair, theta: np.ndarray, phi_a: np.ndarray, phi_b: np.ndarray) -> np.ndarray:
    """The point in plane ``theta`` seen under ``phi_a`` from source a and ``phi_b`` from source b; LPS mm.

    Arguments broadcast; returns ``(..., 3)``. Rays that do not meet in front of both sources give points far away
    (at most 10 baselines), never NaN.
    """
    # Law of sines in the triangle source a, source b, point: the angle at the point is phi_b - phi_a.
    apex = np.sin(phi_b - phi_a)
    apex = np.where(np.abs(apex) < 1e-6, 1e-6, apex)
    distance = np.clip(pair.baseline_mm * np.sin(phi_b) / apex, -10 * pair.baseline_mm, 10 * pair.baseline_mm)
    along = distance * np.cos(phi_a)
    height = distance * np.sin(phi_a)
    return (pair.source_a + along[..., None] * pair.along
            + (height * np.cos(theta))[..., None] * pair.toward + (height * np.sin(theta))[..., None] * pair.across)
