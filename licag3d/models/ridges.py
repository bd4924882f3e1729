# SPDX-License-Identifier: Apache-2.0
"""From line responses to centreline pixels: thin ridges, hysteresis, checks per ridge, small gaps closed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.models import skeleton_graph
from licag3d.models.vesselness import LineResponse


@dataclass(frozen=True)
class RidgeRules:
    """Thresholds, measured in docs/evidence.md. Scores are in standard deviations of the local response.

    Args:
        seed_score, grow_score: hysteresis on the score of ridge pixels.
        halo: a ridge pixel beside a stronger one (within three of its radii) needs this share of its contrast.
        min_length_mm: shorter free ridges are dropped.
        min_strength_mm: least sum along a free ridge of the score above 0.8 ``grow_score``, times length.
        min_attenuation: share of the main vessels' attenuation (contrast over diameter) that a ridge must reach.
        gap_mm: largest gap that a minimal path may close.
    """

    seed_score: float = 4.0
    grow_score: float = 2.5
    halo: float = 0.22
    min_length_mm: float = 6.0
    min_strength_mm: float = 15.0
    min_attenuation: float = 0.25
    gap_mm: float = 7.0


def thin_ridges(response: LineResponse, valid: np.ndarray, floor: float) -> np.ndarray:
    """Pixels whose score is a maximum across the line (``(rows, cols)`` bool), one or two pixels wide."""
    from scipy import ndimage

    score = response.score
    rows, cols = np.nonzero((score > floor) & valid)
    normal_col, normal_row = -response.direction_row[rows, cols], response.direction_col[rows, cols]
    keep = np.ones(len(rows), bool)
    for side in (-1.0, 1.0):
        beside = ndimage.map_coordinates(score, [rows + side * normal_row, cols + side * normal_col], order=1, mode="nearest")
        keep &= score[rows, cols] >= beside
    ridge = np.zeros(score.shape, bool)
    ridge[rows[keep], cols[keep]] = True
    return ridge


def attenuation_level(response: LineResponse, ridge: np.ndarray, seed_score: float) -> float:
    """Contrast per pixel of diameter of the clearest, well resolved vessels (unit of the image per px), or 0."""
    strong = ridge & (response.score > seed_score)
    if strong.sum() < 20:
        return 0.0
    ratio = response.contrast[strong] / (2 * response.radius_px[strong])
    # Thick and clear vessels speak first: they are resolved, and texture is thin and faint.
    weight = response.contrast[strong]
    order = np.argsort(ratio)
    share = np.cumsum(weight[order]) / weight.sum()
    return float(ratio[order][np.searchsorted(share, 0.5)])


def find_ridges(response: LineResponse, valid: np.ndarray, mm_per_pixel: float, rules: RidgeRules) -> np.ndarray:
    """Centreline pixels of the vessels, ``(rows, cols)`` bool, one pixel wide chains."""
    from scipy import ndimage
    from skimage.filters import apply_hysteresis_threshold

    ridge = thin_ridges(response, valid, rules.grow_score)
    ridge &= ~_halo(response, rules.halo)
    level = attenuation_level(response, ridge, rules.seed_score)
    if level <= 0:
        return np.zeros(valid.shape, bool)
    # A vessel that is filled attenuates in proportion to its thickness; wide faint shadows do not.
    relative = response.contrast / (2 * response.radius_px) / level
    ridge &= relative > rules.min_attenuation
    strong = apply_hysteresis_threshold(np.where(ridge, response.score, 0.0), rules.grow_score, rules.seed_score)
    # NMS leaves one-pixel breaks at bends: join them before counting components.
    joined = ndimage.binary_dilation(strong, np.ones((3, 3)))
    labels, count = ndimage.label(joined, np.ones((3, 3)))
    if not count:
        return strong
    index = np.arange(count + 1)
    length_mm = ndimage.sum_labels(strong, labels, index) * mm_per_pixel * 1.1
    # Noise makes short chains barely above the threshold; what counts is excess score times length.
    excess = np.maximum(response.score - 0.8 * rules.grow_score, 0) * mm_per_pixel
    strength_mm = ndimage.sum_labels(np.where(strong, np.minimum(excess, 8.0 * mm_per_pixel), 0), labels, index)
    good = (length_mm > rules.min_length_mm) & (strength_mm > rules.min_strength_mm)
    good[0] = False
    kept = strong & good[labels]
    return close_gaps(kept, response, valid, mm_per_pixel, rules)


def _halo(response: LineResponse, share: float) -> np.ndarray:
    """Pixels that only see the end or the flank of a much stronger vessel through their long filter."""
    from scipy import ndimage

    halo = np.zeros(response.score.shape, bool)
    for radius in np.unique(response.radius_px):
        size = int(2 * round(2.5 * radius + 2) + 1)
        nearby = ndimage.maximum_filter(np.where(response.radius_px == radius, response.contrast, 0), size)
        halo |= response.contrast < share * nearby
    return halo


def close_gaps(ridge: np.ndarray, response: LineResponse, valid: np.ndarray, mm_per_pixel: float, rules: RidgeRules
               ) -> np.ndarray:
    """Join dead ends to what lies ahead of them along the path of best score, where that path is believable."""
    from scipy import ndimage
    from skimage.graph import MCP_Geometric

    reach = int(round(rules.gap_mm / mm_per_pixel))
    graph = skeleton_graph.build(ndimage.binary_dilation(ridge, np.ones((3, 3))))
    labels, _ = ndimage.label(ndimage.binary_dilation(ridge, np.ones((3, 3))), np.ones((3, 3)))
    out = ridge.copy()
    rows, cols = ridge.shape
    for node, ends in graph.ends_at().items():
        if len(ends) != 1:
            continue
        piece, end = ends[0]
        r, c = np.rint(graph.nodes[node]).astype(int)
        # The arm leaves the node inwards; the gap lies the other way.
        ahead = -skeleton_graph._leaving(graph, piece, end, 10.0)
        top, left = max(0, r - reach), max(0, c - reach)
        window = (slice(top, min(rows, r + reach + 1)), slice(left, min(cols, c + reach + 1)))
        own = labels[r, c]
        target = ridge[window] & (labels[window] != own)
        if not target.any():
            continue
        score = np.clip(response.score[window], 0.0, 4.0)
        cost = np.where(valid[window], 1.0 / (0.25 + score), 50.0)
        finder = MCP_Geometric(cost)
        costs, _ = finder.find_costs([(r - top, c - left)])
        tr, tc = np.nonzero(target)
        offset = np.stack([tr + top - r, tc + left - c], 1).astype(float)
        distance = np.linalg.norm(offset, axis=1)
        forward = (offset @ ahead) / np.maximum(distance, 1e-6)
        fit = np.where((forward > 0.6) & (distance <= reach), costs[tr, tc], np.inf)
        best = int(np.argmin(fit))
        if not np.isfinite(fit[best]):
            continue
        path = np.array(finder.traceback((tr[best], tc[best])))
        along = response.score[window][path[:, 0], path[:, 1]]
        # The path must be nearly straight and see a line on most of its way.
        if len(path) <= 1.5 * distance[best] + 3 and np.mean(along) > 0.6 * rules.grow_score and np.mean(along > 0.3) > 0.8:
            out[path[:, 0] + top, path[:, 1] + left] = True
    return out
