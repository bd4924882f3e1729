# SPDX-License-Identifier: Apache-2.0
"""Pairs of views drawn instead of rendered: true outlines with the faults that found vessels have, six times as fast.

Correspondence is learnt from where vessels run, not from what a radiograph looks like, so that most of its training can
do without radiographs. What goes wrong when vessels are found is put in by chance: faint and thin ones are missing, in
one view or the other; pieces are cut out; catheters and shadows are taken for vessels; outlines and line integrals are
off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera


@dataclass(frozen=True)
class Faults:
    """How wrong a drawn view is.

    Args:
        faintest: vessels whose line integral is below this share of the view's median are missing (most of a range).
        holes, false: mean number of places cut out, and of false vessels. catheter: chance of a catheter.
        branch_lost: chance that a branch is missing from one view altogether.
        p_share: standard deviation of the log of the line integral's error; outline: of the outline's, in mask units.
    """

    faintest: float = 0.45
    holes: float = 3.0
    false: float = 1.5
    catheter: float = 0.3
    branch_lost: float = 0.06
    p_share: float = 0.25
    outline: float = 0.12


def spoil(
    rng: np.random.Generator, mask: np.ndarray, line_integral: np.ndarray, camera: Camera, tree, faults: Faults
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A true outline as it might have been found.

    Args:
        mask, line_integral: true, ``(rows, cols)``. tree: as this view shows it.

    Returns:
        ``mask`` bool, ``probability`` and ``line_integral`` float32, all ``(rows, cols)``.
    """
    from scipy import ndimage

    shape, mm = mask.shape, camera.mm_per_pixel
    centre = ndimage.maximum_filter(line_integral, 7)
    usual = float(np.median(line_integral[mask])) if mask.any() else 1.0
    # Contrast of what surrounds a vessel differs from place to place, and so does the least that is seen.
    least = rng.uniform(0.05, faults.faintest) * usual * np.exp(0.5 * _waves(rng, shape, 40))
    lost = centre < least
    for branch in tree.branches:
        if rng.random() < faults.branch_lost and branch.parent is not None:
            first = rng.integers(len(branch.points_lps_mm) // 2 + 1)
            lost |= _stroke(camera, branch.points_lps_mm[first:], branch.radius_mm[first:] + 1.5 * mm, shape) & (
                centre < 1.5 * usual
            )
    where = np.argwhere(mask)
    for _ in range(rng.poisson(faults.holes)):
        middle = where[rng.integers(len(where))]
        grid = np.ogrid[: shape[0], : shape[1]]
        lost |= (grid[0] - middle[0]) ** 2 + (grid[1] - middle[1]) ** 2 < (rng.uniform(1.0, 4.0) / mm) ** 2
    false = np.zeros(shape, np.float32)
    for _ in range(rng.poisson(faults.false)):
        false = np.maximum(false, _false_vessel(rng, shape, mm, usual))
    if rng.random() < faults.catheter:
        false = np.maximum(false, _catheter(rng, camera, tree, shape, usual))
    kept = (mask & ~lost) | (false > 0)
    edge = ndimage.gaussian_filter(kept.astype(np.float32), 0.8) + faults.outline * _waves(rng, shape, 3)
    kept = edge > rng.uniform(0.42, 0.55)
    p = np.maximum(np.where(lost, 0, line_integral), false) * np.exp(faults.p_share * _waves(rng, shape, 8))
    p = np.where(kept, np.maximum(p, 0.15 * usual), 0) * np.exp(0.3 * rng.standard_normal())
    doubt = ndimage.gaussian_filter((mask & lost).astype(np.float32), 1.0) * np.clip(
        0.25 + 0.2 * _waves(rng, shape, 20), 0, 0.5
    )
    sure = ndimage.gaussian_filter(kept.astype(np.float32), 0.7) * np.clip(0.95 + 0.08 * _waves(rng, shape, 20), 0.6, 1)
    return kept, np.maximum(doubt, sure).astype(np.float32), p.astype(np.float32)


def _waves(rng: np.random.Generator, shape: tuple[int, int], width_px: float) -> np.ndarray:
    """Smooth noise of standard deviation one, ``width_px`` the scale of its changes."""
    from scipy import ndimage

    step = max(1, int(width_px // 2))
    small = rng.standard_normal((shape[0] // step + 3, shape[1] // step + 3)).astype(np.float32)
    small = ndimage.gaussian_filter(small, max(width_px / step / 2, 0.5))
    small /= max(float(small.std()), 1e-6)
    if step == 1:
        return small[: shape[0], : shape[1]]
    rows = np.minimum(np.arange(shape[0]) / step, small.shape[0] - 1.001)
    cols = np.minimum(np.arange(shape[1]) / step, small.shape[1] - 1.001)
    r, c = rows.astype(int), cols.astype(int)
    a, b = (rows - r).astype(np.float32)[:, None], (cols - c).astype(np.float32)[None]
    top = small[np.ix_(r, c)] * (1 - b) + small[np.ix_(r, c + 1)] * b
    low = small[np.ix_(r + 1, c)] * (1 - b) + small[np.ix_(r + 1, c + 1)] * b
    return top * (1 - a) + low * a


def _stroke(camera: Camera, points_mm: np.ndarray, radius_mm: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    pixels, _ = camera.project(points_mm)
    return _draw(pixels, np.asarray(radius_mm) / camera.mm_per_pixel, shape) > 0


def _draw(pixels: np.ndarray, radius_px: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Chord over diameter ``(rows, cols)`` of a thick line through ``(N, 2)`` (col, row)."""
    from scipy import ndimage

    out = np.ones(shape, bool)
    steps = np.maximum(np.linalg.norm(np.diff(pixels, axis=0), axis=1), 1e-9)
    arc = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.arange(0.0, arc[-1], 0.7)
    dense = np.stack([np.interp(at, arc, pixels[:, k]) for k in (0, 1)], 1)
    cells = np.rint(dense).astype(int)
    inside = ((cells >= 0) & (cells < [shape[1], shape[0]])).all(axis=1)
    cells = cells[inside]
    if not len(cells):
        return np.zeros(shape, np.float32)
    out[cells[:, 1], cells[:, 0]] = False
    wide = np.zeros(shape, np.float32)
    wide[cells[:, 1], cells[:, 0]] = np.interp(at, arc, radius_px)[inside]
    reach = int(np.ceil(radius_px.max())) + 2
    low = np.maximum(cells.min(axis=0) - reach, 0)
    high = np.minimum(cells.max(axis=0) + reach + 1, [shape[1], shape[0]])
    box = np.s_[low[1] : high[1], low[0] : high[0]]
    gap, nearest = ndimage.distance_transform_edt(out[box], return_indices=True)
    radius = np.maximum(wide[box][tuple(nearest)], 0.6)
    chord = np.zeros(shape, np.float32)
    chord[box] = np.sqrt(np.maximum(1 - (gap / radius) ** 2, 0))
    return chord


def _bent(rng: np.random.Generator, start: np.ndarray, heading: float, length_px: float) -> np.ndarray:
    """A smooth curve from ``start`` (col, row)."""
    count = max(4, int(length_px / 3))
    turn = np.cumsum(rng.normal(0, 0.5 / count**0.5, count))
    angle = heading + np.cumsum(turn) * 0.12
    return start + np.cumsum(np.stack([np.cos(angle), np.sin(angle)], 1), axis=0) * 3.0


def _false_vessel(rng: np.random.Generator, shape, mm: float, usual: float) -> np.ndarray:
    size = np.array([shape[1], shape[0]])
    line = _bent(rng, rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0, 2 * np.pi), rng.uniform(8, 45) / mm)
    radius = np.full(len(line), rng.uniform(0.35, 0.9) / mm)
    return _draw(line, radius, shape) * usual * np.float32(rng.uniform(0.3, 0.9))


def _catheter(rng: np.random.Generator, camera: Camera, tree, shape, usual: float) -> np.ndarray:
    """From the ostium to the edge of the image."""
    ostium = camera.project(tree.branches[0].points_lps_mm[:1])[0][0]
    line = _bent(rng, ostium, rng.uniform(0, 2 * np.pi), rng.uniform(20, 90) / camera.mm_per_pixel)
    radius = np.full(len(line), rng.uniform(0.7, 1.1) / camera.mm_per_pixel)
    return _draw(line, radius, shape) * usual * np.float32(rng.uniform(0.6, 1.3))
