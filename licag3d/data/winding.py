# SPDX-License-Identifier: Apache-2.0
"""Winding side branches, drawn onto the vessels of a training sample.

Old and hypertensive hearts have corkscrew vessels (Han, Twisted blood vessels, J Vasc Res 2012;49:185), which the
phantom has not got: its branches are nearly straight. A segmentor that never saw one takes it for a coiled wire.
"""

from __future__ import annotations

import numpy as np

from licag3d.data.distractors import distance_to, random_curve

#: Line integral per mm of opacified blood, and how much it differs between the branches drawn.
MU_PER_MM, MU_SPREAD = 0.155, 0.3


def winding_branches(rng: np.random.Generator, vessel: np.ndarray, mm_per_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Line integral ``(s, s)`` float32 and mask ``(s, s)`` bool of one to three winding branches.

    Each begins on a vessel and leaves it as a smooth curve with a wave across it, thinner towards its end: 12 to 45 mm
    long, radius 0.4 to 0.9 mm at the beginning, waves of 3 to 9 mm with an amplitude of 0.4 to 2 mm.

    Args:
        vessel: ``(s, s)`` bool. mm_per_px: at the isocentre.

    Returns:
        Zeros where there is no vessel to hang on.

    Example:
        >>> integral, inside = winding_branches(np.random.default_rng(0), np.eye(64, dtype=bool), 0.25)
        >>> bool((integral[inside] > 0).all()), bool(inside.any())
        (True, True)
    """
    size = len(vessel)
    total, inside = np.zeros((size, size), np.float32), np.zeros((size, size), bool)
    row, col = np.nonzero(vessel)
    for _ in range(int(rng.integers(1, 4)) if len(row) else 0):
        at = int(rng.integers(len(row)))
        long_px = float(rng.uniform(12, 45)) / mm_per_px
        course = random_curve(rng, size, long_px, 0.6 / long_px, np.array([col[at], row[at]], float))
        points = _wave(rng, course, mm_per_px)
        taper = np.linspace(1.0, float(rng.uniform(0.4, 0.9)), len(points))
        away, radius = distance_to(points, size, float(rng.uniform(0.4, 0.9)) / mm_per_px * taper)
        # A vessel thinner than a pixel is drawn as wide as one and as much fainter.
        wide = np.sqrt(radius**2 + 0.3)
        chord = 2 * np.sqrt(np.maximum(wide**2 - away**2, 0)) * (radius / wide) ** 2 * mm_per_px
        mu = MU_PER_MM * float(np.exp(rng.normal(-0.2, MU_SPREAD)))
        total += (mu * chord).astype(np.float32)
        inside |= away < np.maximum(radius, 0.5)
    return total, inside & (total > 0)


def _wave(rng: np.random.Generator, course: np.ndarray, mm_per_px: float) -> np.ndarray:
    """A course ``(n, 2)`` with a wave across it whose length and height change along it; points at most 1 px apart."""
    way = np.arange(len(course)) * mm_per_px
    length_mm, marks = float(rng.uniform(3, 9)), way[:: max(1, len(way) // 5)]
    length_mm = length_mm * np.exp(0.35 * np.interp(way, marks, rng.normal(size=len(marks))))
    height_mm = float(rng.uniform(0.4, 2.0)) * np.minimum(1.0, way / 4.0)
    across = np.gradient(course, axis=0)[:, ::-1] * [-1, 1]
    across = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.cumsum(mm_per_px / length_mm)
    shift = height_mm / mm_per_px * (np.sin(phase) - np.sin(phase[0]))
    points = course + shift[:, None] * across
    step = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    even = np.linspace(0, step[-1], int(np.ceil(step[-1])) + 1)
    return np.stack([np.interp(even, step, axis) for axis in points.T], 1)
