# SPDX-License-Identifier: Apache-2.0
"""What the fit of the prior is compared with: centrelines of every view, faint vessels, matched points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains
from licag3d.inversion.prior_tree import MovingCamera, moving_cameras
from licag3d.structures import VesselEvidence, View


@dataclass(frozen=True)
class Curve:
    """Points with directions that are compared with segments: ``(N, D)`` each, ``log_radius``, ``weight`` ``(N,)``;
    ``unlike`` ``(N, slots)`` 0..1, where something is known about which branches they are not."""

    points: torch.Tensor
    direction: torch.Tensor
    log_radius: torch.Tensor
    weight: torch.Tensor
    unlike: torch.Tensor | None = None


@dataclass(frozen=True)
class WeakLines:
    """Centrelines of a view, of faint vessels too, and how likely each point is one: ``chance`` ``(N,)`` in 0..1."""

    chains: Chains
    chance: np.ndarray


def weak_lines(evidence: VesselEvidence, view: View, low: float = 0.12, high: float = 0.4) -> WeakLines:
    """Trace what may be a vessel (hysteresis ``low``, ``high`` on the probability) with its probability.

    Alone that is too much for matching; a tree that must be whole sorts it.
    """
    from scipy.ndimage import maximum_filter
    from skimage.filters import apply_hysteresis_threshold

    from licag3d.inversion.chains import chains_from_graph
    from licag3d.models.centerline2d import trace_centerlines

    if view.mask is not None:
        chains = chains_from_graph(trace_centerlines(evidence, view), view.camera)
        return WeakLines(chains, np.ones(len(chains.step_mm)))
    mask = apply_hysteresis_threshold(evidence.probability, low, high) | evidence.mask
    chains = chains_from_graph(trace_centerlines(replace(evidence, mask=mask), view), view.camera)
    row, col = np.rint(chains.pixels[:, ::-1]).astype(int).T
    chance = maximum_filter(evidence.probability, 3)[
        np.clip(row, 0, evidence.mask.shape[0] - 1), np.clip(col, 0, evidence.mask.shape[1] - 1)
    ]
    return WeakLines(chains, np.clip(chance.astype(float), 0.0, 1.0))


@dataclass(frozen=True)
class Evidence:
    """What a fit is compared with: per view centrelines in the image (mm at the isocentre) and the camera, and
    matched points in space. ``artery``: whose branches ``Curve.unlike`` speaks of."""

    views: tuple[Curve, ...]
    cameras: tuple[MovingCamera, ...]
    sizes_mm: tuple[tuple[float, float], ...]
    matched: Curve
    middle_mm: np.ndarray
    artery: str | None = None


def gather(
    cameras: Sequence[Camera], chains: Sequence[Chains], points_mm, confidence, spacing_mm: float = 1.2, lines=None
) -> Evidence:
    """Centrelines and matched points of all views as a fit compares them.

    Args:
        points_mm, confidence: per view ``(N, 3)`` with NaN where unmatched and ``(N,)``, as of ``Correspondence``.
        lines: per view centrelines (``WeakLines``) that the projected tree is compared with instead of ``chains``.
    """
    views, matched = [], []
    lines = [WeakLines(chain, np.ones(len(chain.step_mm))) for chain in chains] if lines is None else lines
    for camera, line in zip(cameras, lines, strict=True):
        flat, chain = [], line.chains
        for middle, behind, ahead, weight in _thinned(chain, spacing_mm):
            flat.append((chain.pixels[middle] * camera.mm_per_pixel,
                         chain.pixels[ahead] - chain.pixels[behind],
                         np.log(chain.radius_mm[middle]), weight * line.chance[middle]))  # fmt: skip
        views.append(curve_of(flat, 2))
    for chain, points, sure in zip(chains, points_mm, confidence, strict=True):
        space = []
        for middle, behind, ahead, weight in _thinned(chain, spacing_mm):
            known = np.isfinite(points[middle, 0])
            along = points[ahead] - points[behind]
            along = np.where(np.isfinite(along), along, 0.0)
            # The depths of a single view are made up: they only say where the tree is.
            trust = 0.15 + 0.85 * sure[middle] if len(cameras) > 1 else 0.0 * sure[middle]
            space.append((points[middle][known], along[known], np.log(chain.radius_mm[middle][known]),
                          (weight * trust)[known]))  # fmt: skip
        matched += space
    found = curve_of(matched, 3)
    middle = found.points.numpy().mean(0) if len(found.points) else np.zeros(3)
    return Evidence(
        tuple(views),
        moving_cameras(cameras),
        tuple((camera.cols * camera.mm_per_pixel, camera.rows * camera.mm_per_pixel) for camera in cameras),
        found,
        np.asarray(middle, float),
    )


def _thinned(chain: Chains, spacing_mm: float):
    """Per piece: chosen points, points behind and ahead of them, and the length that each stands for."""
    for a, b in zip(chain.start[:-1], chain.start[1:], strict=True):
        step = max(1, round(spacing_mm / max(float(np.median(chain.step_mm[a + 1 : b])), 1e-3))) if b - a > 1 else 1
        rows = np.arange(a, b)
        blocks = np.array_split(rows, max(1, len(rows) // step))
        middle = np.array([block[len(block) // 2] for block in blocks])
        weight = np.array([chain.weight_mm[block].sum() for block in blocks])
        yield middle, np.maximum(middle - 3, a), np.minimum(middle + 3, b - 1), weight


def curve_of(parts, size: int) -> Curve:
    if not parts:
        parts = [(np.zeros((0, size)), np.zeros((0, size)), np.zeros(0), np.zeros(0))]
    points, direction, radius, weight = (
        torch.from_numpy(np.concatenate(values).astype(np.float32)) for values in zip(*parts, strict=True)
    )
    return Curve(points, direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-6), radius, weight)
