# SPDX-License-Identifier: Apache-2.0
"""What flows between the stages: frozen dataclasses of numpy arrays, units in the names."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from licag3d.geometry import Camera


@dataclass(frozen=True)
class View:
    """One frame with its camera, ready for reconstruction.

    Args:
        image: ``(rows, cols)`` float32 in 0..1, vessels dark (as on an angiogram).
        camera: the C-arm camera of this very image (crop and resize already applied).
        valid: ``(rows, cols)`` bool, False on the collimator border and burnt-in marks.
        mask: optional ``(rows, cols)`` bool, the user's own vessel mask.
        file: file name as given, without folders (no patient identifiers).
        frame: frame number in the cine (0-based), or None for a single image.
        intensity: ``display`` (grey value of unknown monotone transfer), ``linear`` (proportional to detected
            intensity) or ``log`` (proportional to the line integral).
        scores: contrast filling per frame of the cine ``(frames,)``, when there was a choice.
        background: ``(rows, cols)`` float32, the frame before contrast filling, or None.
        notes: what was assumed or derived while reading, one sentence each.
    """

    image: np.ndarray
    camera: Camera
    valid: np.ndarray
    mask: np.ndarray | None = None
    file: str = ""
    frame: int | None = None
    intensity: str = "display"
    scores: np.ndarray | None = None
    background: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VesselEvidence:
    """Where the vessels are in one view, and how much contrast the ray met.

    Args:
        probability: ``(rows, cols)`` float32 in 0..1.
        line_integral: ``(rows, cols)`` float32, estimated vessel line integral p (no unit), zero off the vessels.
        confidence: ``(rows, cols)`` float32 in 0..1, how far ``line_integral`` may be trusted.
        radius_px: ``(rows, cols)`` float32, estimated vessel half width on the detector, zero off the vessels.
        mask: ``(rows, cols)`` bool, the vessel mask after hysteresis and component filter.
    """

    probability: np.ndarray
    line_integral: np.ndarray
    confidence: np.ndarray
    radius_px: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Branch:
    """One vessel branch between two nodes of the tree.

    ``points_lps_mm`` ``(n, 3)`` run away from the ostium; ``radius_mm`` ``(n,)``; ``parent`` is the id of the branch it
    leaves (its first point lies on the parent), or None. ``confidence`` ``(n,)`` in 0..1 where known; ``error_mm``
    ``(n,)`` where known: radius of the ball about the point that holds the true centreline with 90 %
    (docs/uncertainty.md); ``radius_sigma_mm`` ``(n,)`` where known: standard deviation of the radius
    (docs/refinement.md).
    """

    id: int
    parent: int | None
    points_lps_mm: np.ndarray
    radius_mm: np.ndarray
    name: str = ""
    confidence: np.ndarray | None = None
    error_mm: np.ndarray | None = None
    radius_sigma_mm: np.ndarray | None = None


@dataclass(frozen=True)
class VesselTree:
    """A vessel tree in world LPS mm: branches with parent links (a branch follows its parent in the tuple)."""

    branches: tuple[Branch, ...] = field(default_factory=tuple)

    @property
    def length_mm(self) -> float:
        """Total centreline length, mm."""
        return float(sum(np.linalg.norm(np.diff(b.points_lps_mm, axis=0), axis=1).sum() for b in self.branches))
