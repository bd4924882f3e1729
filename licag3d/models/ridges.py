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
        halo, flank: a ridge pixel near a stronger one (within three, within 1.2 of its radii) needs this share of its
            contrast.
        min_attenuation: share of the main vessels' attenuation (contrast over diameter) that a ridge must reach.
        spur_ratio: dead ends shorter than this many radii (plus 2 px) of the ridge they leave are whiskers.
        faint_score, faint_mm: pieces of lower mean score that are also shorter than this go.
        min_length_mm: shorter free ridges are dropped.
        min_strength_mm: least sum along a free ridge of the score above 0.8 ``grow_score``, times length; the second
            number holds for ridges farther than ``near_mm`` from the main tree.
        min_tree_mm: strength of the strongest ridge below which the frame has no vessels at all.
        gap_mm, gap_score: largest gap that a minimal path may close, and the mean score it needs.
        gap_contrast: share of the contrast of the vessel that the path across a gap must keep (median).
        first_share: share of length and strength that a free ridge needs to take part in closing gaps.
    """

    seed_score: float = 4.0
    grow_score: float = 2.5
    halo: float = 0.22
    flank: float = 0.35
    min_attenuation: float = 0.3
    spur_ratio: float = 2.0
    faint_score: float = 3.5
    faint_mm: float = 4.0
    min_length_mm: float = 6.0
    min_strength_mm: tuple[float, float] = (12.0, 30.0)
    near_mm: float = 12.0
    min_tree_mm: float = 60.0
    gap_mm: float = 9.0
    gap_score: float = 1.6
    gap_contrast: float = 0.45
    first_share: float = 0.6


def thin_ridges(response: LineResponse, valid: np.ndarray, floor: float) -> np.ndarray:
    """Pixels whose score is a maximum across the line (``(rows, cols)`` bool), one or two pixels wide."""
    from scipy import ndimage

    score = response.score
    rows, cols = np.nonzero((score > floor) & valid)
    normal_col, normal_row = -response.direction_row[rows, cols], response.direction_col[rows, cols]
    keep = np.ones(len(rows), bool)
    for side in (-1.0, 1.0):
        at = [rows + side * normal_row, cols + side * normal_col]
        beside = ndimage.map_coordinates(score, at, order=1, mode="nearest")
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
    ridge &= ~_halo(response, rules.halo, rules.flank)
    level = attenuation_level(response, ridge, rules.seed_score)
    if level <= 0:
        return np.zeros(valid.shape, bool)
    # A vessel that is filled attenuates in proportion to its thickness; wide faint shadows do not.
    relative = response.contrast / (2 * response.radius_px) / level
    ridge &= relative > rules.min_attenuation
    ridge = apply_hysteresis_threshold(np.where(ridge, response.score, 0.0), rules.grow_score, rules.seed_score)
    # Non-maximum suppression leaves one-pixel breaks at bends: thinning the widened ridge joins them.
    graph = skeleton_graph.build(ndimage.binary_dilation(ridge, np.ones((3, 3))))
    skeleton_graph.prune(graph, response.radius_px, spur_ratio=rules.spur_ratio, min_length_px=2.0 / mm_per_pixel)
    _drop_faint(graph, response, mm_per_pixel, rules)
    ridge = _drop_weak(_paint(graph, valid.shape), response, mm_per_pixel, rules, rules.first_share)
    ridge = close_gaps(ridge, response, valid, mm_per_pixel, rules)
    graph = skeleton_graph.build(ndimage.binary_dilation(ridge, np.ones((3, 3))))
    _drop_faint(graph, response, mm_per_pixel, rules, ends_only=True)
    ridge = _paint(graph, valid.shape)
    return _drop_weak(ridge, response, mm_per_pixel, rules, 1.0)


def _paint(graph: skeleton_graph.SkeletonGraph, shape) -> np.ndarray:
    """The pieces of a graph as pixels; steps between far neighbours (merged junctions) are drawn as lines."""
    from skimage.draw import line

    out = np.zeros(shape, bool)
    for piece in graph.pieces:
        pixels = np.rint(graph.line(piece)).astype(int)
        for (r0, c0), (r1, c1) in zip(pixels[:-1], pixels[1:], strict=True):
            if max(abs(r1 - r0), abs(c1 - c0)) > 1:
                out[line(r0, c0, r1, c1)] = True
        out[pixels[:, 0], pixels[:, 1]] = True
    return out


def _drop_faint(graph, response: LineResponse, mm_per_pixel: float, rules: RidgeRules, ends_only: bool = False
                ) -> None:
    """Remove short faint pieces: bridges of texture between vessels, and branches nobody could follow."""
    meet = graph.ends_at()
    for piece in list(graph.pieces):
        a, b, chain = graph.pieces[piece]
        if ends_only and min(len(meet[a]), len(meet[b])) > 1:
            continue
        if len(chain) == 0 or graph.length(piece) * mm_per_pixel > rules.faint_mm:
            continue
        r, c = np.rint(chain).astype(int).T
        if response.score[r, c].mean() < rules.faint_score:
            del graph.pieces[piece]
    graph.join_through()


def _drop_weak(ridge, response: LineResponse, mm_per_pixel: float, rules: RidgeRules, factor: float) -> np.ndarray:
    """Keep connected ridges of enough length and strength, asking more of those far from the main tree."""
    from scipy import ndimage

    labels, count = ndimage.label(ndimage.binary_dilation(ridge, np.ones((3, 3))), np.ones((3, 3)))
    if not count:
        return ridge
    index = np.arange(count + 1)
    labels_on = np.where(ridge, labels, 0)
    length_mm = np.bincount(labels_on.ravel(), minlength=count + 1) * mm_per_pixel * 1.1
    # Noise makes short chains barely above the threshold; what counts is excess score times length.
    excess = np.clip(response.score - 0.8 * rules.grow_score, 0, 8) * mm_per_pixel
    strength = ndimage.sum_labels(np.where(ridge, excess, 0), labels_on, index)
    strength[0] = length_mm[0] = 0
    if strength.max() < factor * rules.min_tree_mm:
        return np.zeros_like(ridge)
    main = strength > 0.3 * strength.max()
    distance_mm = ndimage.distance_transform_edt(~(ridge & main[labels])) * mm_per_pixel
    away = ndimage.minimum(distance_mm, labels, index)
    need = np.where(away < rules.near_mm, *rules.min_strength_mm) * factor
    good = (length_mm > factor * rules.min_length_mm) & (strength > need)
    good[0] = False
    return ridge & good[labels]


def _halo(response: LineResponse, share: float, flank_share: float) -> np.ndarray:
    """Pixels that only see the end or the flank of a much stronger vessel through their long filter.

    Within three radii of a stronger vessel a ridge needs ``share`` of its contrast; on its very flank (1.2 radii),
    where the vessel covers everything thinner anyway, ``flank_share``.
    """
    from scipy import ndimage

    halo = np.zeros(response.score.shape, bool)
    for radius in np.unique(response.radius_px):
        contrast = np.where(response.radius_px == radius, response.contrast, 0)
        for part, reach in ((share, 2.5 * radius + 2), (flank_share, 1.2 * radius)):
            nearby = ndimage.maximum_filter(contrast, int(2 * round(reach) + 1))
            halo |= response.contrast < part * nearby
    return halo


def close_gaps(ridge: np.ndarray, response: LineResponse, valid: np.ndarray, mm_per_pixel: float, rules: RidgeRules
               ) -> np.ndarray:
    """Join dead ends to what lies ahead of them along the path of best score, where that path is believable."""
    from scipy import ndimage
    from skimage.graph import MCP_Geometric

    reach = int(round(rules.gap_mm / mm_per_pixel))
    wide = ndimage.binary_dilation(ridge, np.ones((3, 3)))
    graph = skeleton_graph.build(wide)
    labels, _ = ndimage.label(wide, np.ones((3, 3)))
    out = ridge.copy()
    rows, cols = ridge.shape
    for node, ends in graph.ends_at().items():
        if len(ends) != 1:
            continue
        piece, end = ends[0]
        r, c = np.rint(graph.nodes[node]).astype(int)
        # The arm leaves the node inwards; the gap lies the other way.
        ahead = -skeleton_graph.leaving(graph, piece, end, 10.0)
        top, left = max(0, r - reach), max(0, c - reach)
        window = (slice(top, min(rows, r + reach + 1)), slice(left, min(cols, c + reach + 1)))
        target = ridge[window] & (labels[window] != labels[r, c])
        if not target.any():
            continue
        score = response.score[window]
        cost = np.where(valid[window], 1.0 / (0.25 + np.clip(score, 0.0, 4.0)), 50.0)
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
        chain = np.rint(graph.line(piece)).astype(int)
        vessel = np.median(response.contrast[chain[:, 0], chain[:, 1]])
        inner = tuple(path[1:-1].T) if len(path) > 4 else tuple(path.T)
        # The path must be nearly straight, see a line on most of its way, and not run along something much fainter.
        if (len(path) <= 1.5 * distance[best] + 3 and score[inner].mean() > rules.gap_score
                and np.median(response.contrast[window][inner]) > rules.gap_contrast * vessel):
            out[path[:, 0] + top, path[:, 1] + left] = True
    return out
