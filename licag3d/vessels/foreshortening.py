# SPDX-License-Identifier: Apache-2.0
"""How much shorter a vessel looks than it is, per view, and the views that show it best.

A piece of length l at the angle phi to the ray that meets it appears with the length ``l sin(phi)``; foreshortening is
``100 (1 - sum l sin(phi) / sum l)`` percent (Green et al., Catheter Cardiovasc Interv 2005;64:451).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.geometry.equations import view_frame
from licag3d.structures import Branch, VesselTree


@dataclass(frozen=True)
class BestView:
    """An angulation in degrees (LAO and cranial positive) and the foreshortening in percent it leaves."""

    primary_deg: float
    secondary_deg: float
    foreshortening_percent: float


def foreshortening_percent(branch: Branch, camera: Camera) -> float:
    """Foreshortening of a branch in a given view, along the diverging rays of its C-arm; 0 for a single point."""
    points = np.asarray(branch.points_lps_mm, np.float64)
    step = np.diff(points, axis=0)
    ray = (points[:-1] + points[1:]) / 2 - camera.source_lps_mm
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    seen = np.linalg.norm(np.cross(step, ray), axis=1).sum()
    length = np.linalg.norm(step, axis=1).sum()
    return float(100 * (1 - seen / length)) if length > 0 else 0.0


def foreshortening_map(tree: VesselTree, primary_deg, secondary_deg) -> np.ndarray:
    """Foreshortening in percent of the whole tree over angulations, for rays parallel to the central beam.

    Args:
        primary_deg: ``(P,)``; secondary_deg: ``(S,)``.

    Returns:
        ``(P, S)``.
    """
    steps = np.concatenate([np.zeros((0, 3)), *(np.diff(b.points_lps_mm, axis=0) for b in tree.branches)])
    length = np.linalg.norm(steps, axis=1)
    primary, secondary = np.meshgrid(np.asarray(primary_deg, float), np.asarray(secondary_deg, float), indexing="ij")
    if length.sum() == 0:
        return np.zeros(primary.shape)
    beam = view_frame(np, primary, secondary).beam
    # |step x beam| from |step|^2 - (step . beam)^2, as |beam| = 1.
    along = np.einsum("psk,nk->psn", beam, steps)
    seen = np.sqrt(np.maximum(length**2 - along**2, 0)).sum(-1)
    return 100 * (1 - seen / length.sum())


def best_views(tree: VesselTree, *, count: int = 3, max_primary_deg: float = 60.0, max_secondary_deg: float = 40.0,
               step_deg: float = 5.0, apart_deg: float = 25.0) -> tuple[BestView, ...]:
    """The angulations with the least foreshortening within reach of a C-arm, at least ``apart_deg`` from each other.

    Overlap with other vessels and steep absorption are not judged here.
    """
    primary = np.arange(-max_primary_deg, max_primary_deg + step_deg / 2, step_deg)
    secondary = np.arange(-max_secondary_deg, max_secondary_deg + step_deg / 2, step_deg)
    percent = foreshortening_map(tree, primary, secondary)
    beams = view_frame(np, *np.meshgrid(primary, secondary, indexing="ij")).beam
    chosen: list[tuple[int, int]] = []
    for place in np.argsort(percent, axis=None, kind="stable"):
        i, j = np.unravel_index(place, percent.shape)
        if all(beams[i, j] @ beams[a, b] < np.cos(np.deg2rad(apart_deg)) + 1e-9 for a, b in chosen):
            chosen.append((int(i), int(j)))
            if len(chosen) == count:
                break
    return tuple(BestView(float(primary[i]), float(secondary[j]), float(percent[i, j])) for i, j in chosen)
