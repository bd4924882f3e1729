# SPDX-License-Identifier: Apache-2.0
"""Sketches of an expected tree that are wrong in the ways a fitted tree is: for training the guided segmentor.

A fit of the prior (``licag3d.inversion.prior_fit``) lies about a millimetre off, lacks branches, draws some that are
not there, and ends them too early or too late. A network that is shown such sketches beside frames learns to look for
vessels there and to believe the frame where both disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SketchErrors:
    """How a sketch differs from the truth; probabilities per branch unless said otherwise.

    Args:
        shift_mm: of the whole sketch. bend_mm: range of the root mean square of a smooth displacement, for the whole
            and for every branch once more. stray: a branch lies ``stray_mm`` off instead.
        lost: the branch is missing. short: only its first part is there. long: it goes on straight beyond its end, by
            ``long_mm``. wrong: a turned copy of the branch, that is no vessel, is there as well.
        absent: (per sketch) no sketch at all.
    """

    shift_mm: float = 0.4
    bend_mm: tuple[float, float] = (0.1, 0.8)
    stray: float = 0.12
    stray_mm: tuple[float, float] = (1.5, 4.0)
    lost: float = 0.15
    short: float = 0.15
    long: float = 0.15
    long_mm: tuple[float, float] = (3.0, 15.0)
    wrong: float = 0.2
    absent: float = 0.1


def faulty_points(
    rng: np.random.Generator,
    labels: np.ndarray,
    mm_per_pixel: float,
    errors: SketchErrors | None = None,
) -> np.ndarray:
    """Points ``(n, 2)`` (col, row), px, of a sketch of the branches in ``labels``.

    Args:
        labels: ``(rows, cols)`` integers, one value above zero for every branch where it is seen.
    """
    from scipy.spatial import cKDTree
    from skimage.morphology import skeletonize

    errors = errors or SketchErrors()
    none = np.zeros((0, 2))
    if rng.random() < errors.absent:
        return none
    row, col = np.nonzero(skeletonize(labels > 0))
    own = labels[row, col]
    points = np.stack((col, row), 1).astype(float)
    size = float(max(labels.shape))
    pieces = []
    for label in np.unique(own):
        line = points[own == label]
        if len(line) < 4 or rng.random() < errors.lost:
            continue
        others = points[own != label]
        # A branch begins where it is nearest to the others.
        start = line[cKDTree(others).query(line)[0].argmin()] if len(others) else line[line[:, 1].argmin()]
        far = np.linalg.norm(line - start, axis=1)
        order = np.argsort(far)
        line, far = line[order], far[order]
        if rng.random() < errors.wrong:
            pieces.append(_bent(rng, _turned(rng, line, start), size, errors, mm_per_pixel))
        if rng.random() < errors.short:
            line = line[far <= far[-1] * float(rng.uniform(0.3, 0.9))]
        elif rng.random() < errors.long:
            line = np.concatenate((line, _beyond(line, float(rng.uniform(*errors.long_mm)) / mm_per_pixel)))
        pieces.append(_bent(rng, line, size, errors, mm_per_pixel))
    if not pieces:
        return none
    shift = rng.normal(0.0, errors.shift_mm / mm_per_pixel, 2)
    amount = float(rng.uniform(*errors.bend_mm)) / mm_per_pixel
    return _waved(rng, np.concatenate(pieces), size, amount) + shift


def _turned(rng: np.random.Generator, line: np.ndarray, start: np.ndarray) -> np.ndarray:
    angle = float(rng.uniform(0.35, 1.2)) * (1 if rng.random() < 0.5 else -1)
    turn = float(rng.uniform(0.6, 1.2)) * np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    return start + (line - start) @ turn.T


def _beyond(line: np.ndarray, length_px: float) -> np.ndarray:
    """A straight continuation of a line that is sorted by the distance from its start."""
    ahead = line[-1] - line[max(-20, -len(line))]
    ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-6)
    return line[-1] + np.arange(1.0, max(length_px, 2.0))[:, None] * ahead


def _bent(rng, line: np.ndarray, size: float, errors: SketchErrors, mm_per_pixel: float) -> np.ndarray:
    low, high = errors.stray_mm if rng.random() < errors.stray else errors.bend_mm
    return _waved(rng, line, size, float(rng.uniform(low, high)) / mm_per_pixel)


def _waved(rng: np.random.Generator, line: np.ndarray, size: float, amount_px: float) -> np.ndarray:
    """Displaced by two plane waves of random direction and phase, as long as a quarter to one side of the frame, of
    the given root mean square."""
    moved = np.zeros_like(line)
    for _ in range(2):
        wave = rng.normal(size=2)
        wave *= 2 * np.pi / (np.linalg.norm(wave) * size * float(rng.uniform(0.25, 1.0)))
        way = rng.normal(size=2)
        moved += np.sin(line @ wave + float(rng.uniform(0, 2 * np.pi)))[:, None] * way / np.linalg.norm(way)
    return line + amount_px * moved
