# SPDX-License-Identifier: Apache-2.0
"""The one initialisation of the unknown offset that every rival gets in its second row.

Sources of rivals mostly assume calibrated views. So that they are not judged by a shift they never meant to handle, the
second view is first moved to where both views agree on how much contrast lies between neighbouring epipolar planes.
That is the zeroth-order form of epipolar consistency (Debbeler et al., Fully3D 2013; Aichert et al., IEEE TMI
2015;34:2205): the mass between two planes through both sources is the sum of p times pixel area in either view.
Only the shift across the epipolar planes is found: of the other two directions one is the scale gauge and one is next
to flat (docs/geometry.md). The angles stay as read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.baselines import Inputs
from licag3d.geometry import Camera
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair

#: Shifts tried, mm either way.
REACH_MM = 15.0
_STEP_MM = 0.25
_BIN_MM = 0.5
_SMOOTH_BINS = 2.0


@dataclass(frozen=True)
class OffsetGuess:
    """Cameras after the initialisation, the shift in mm, and the share of the mass on which the views disagree before
    and after (0: equal profiles, 1: nothing in common)."""

    cameras: tuple[Camera, ...]
    shift_mm: tuple[float, ...]
    disagreement_before: float
    disagreement: float


def initial_offset(inputs: Inputs) -> OffsetGuess:
    """Shift every view but the first across the epipolar planes it forms with the first.

    A view without any line integral stays where it is.
    """
    first = inputs.cameras[0]
    cameras, shifts, before, after = [first], [], [], []
    for image, camera in zip(inputs.line_integrals[1:], inputs.cameras[1:], strict=True):
        reference = _mass(inputs.line_integrals[0], first)
        other = _mass(image, camera)
        if len(reference[1]) == 0 or len(other[1]) == 0:
            cameras.append(camera)
            shifts.append(0.0)
            continue
        across = epipolar_pair(first, camera).across
        steps = np.arange(-REACH_MM, REACH_MM + _STEP_MM / 2, _STEP_MM)
        costs = np.array([_disagreement(first, _moved(camera, s * across), reference, other) for s in steps])
        best = int(np.argmin(costs))
        cameras.append(_moved(camera, steps[best] * across))
        shifts.append(float(steps[best]))
        before.append(float(costs[len(steps) // 2]))
        after.append(float(costs[best]))
    mean = [float(np.mean(values)) if values else float("nan") for values in (before, after)]
    return OffsetGuess(tuple(cameras), tuple(shifts), *mean)


def _moved(camera: Camera, move_mm: np.ndarray) -> Camera:
    return camera.with_offset(np.asarray(camera.offset_lps_mm) + move_mm)


def _mass(image: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(N, 2)`` (col, row) with contrast, and their mass."""
    rows, cols = np.nonzero(image > 0)
    return np.stack([cols, rows], 1).astype(np.float64), image[rows, cols].astype(np.float64)


def _disagreement(first: Camera, second: Camera, reference, other) -> float:
    """Half the summed absolute difference of both mass profiles over the epipolar planes, each scaled to one."""
    from scipy.ndimage import gaussian_filter1d

    pair = epipolar_pair(first, second)
    angle = [epipolar_angles(pair, camera, mass[0])[0] for camera, mass in ((first, reference), (second, other))]
    width = _BIN_MM / (0.5 * (first.sod_mm + second.sod_mm))
    low = min(a.min() for a in angle) - 10 * width
    count = int((max(a.max() for a in angle) + 10 * width - low) / width) + 1
    profiles = []
    for a, (_, mass) in zip(angle, (reference, other), strict=True):
        histogram = np.bincount(((a - low) / width).astype(int), mass, count)
        profiles.append(gaussian_filter1d(histogram / histogram.sum(), _SMOOTH_BINS))
    return float(0.5 * np.abs(profiles[0] - profiles[1]).sum())
