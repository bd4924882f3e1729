# SPDX-License-Identifier: Apache-2.0
"""A picture for every stage: what the stage saw and what it made of it, as uint8 RGB arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselEvidence, VesselTree, View

_MATCHED, _ONE_WAY, _UNMATCHED = (60, 220, 120), (250, 190, 40), (240, 70, 70)


def evidence_picture(view: View, evidence: VesselEvidence) -> np.ndarray:
    """The frame with the rim of the vessel mask."""
    from scipy import ndimage

    picture = _grey(view.image)
    rim = evidence.mask & ~ndimage.binary_erosion(evidence.mask)
    picture[rim] = _MATCHED
    return picture


def match_picture(view: View, pixels: np.ndarray, points_mm: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """The frame with its centrelines: green where both views agree, yellow where one says so, red where unmatched."""
    picture = _grey(view.image) // 2 + 30
    matched = np.isfinite(points_mm[:, 0])
    for chosen, colour in (
        (~matched, _UNMATCHED),
        (matched & (confidence < 0.9), _ONE_WAY),
        (matched & (confidence >= 0.9), _MATCHED),
    ):
        _dots(picture, pixels[chosen], colour)
    return picture


def tree_picture(view: View, camera: Camera, tree: VesselTree) -> np.ndarray:
    """The frame with the reprojected centreline of the tree: green where both views agree on it, yellow elsewhere."""
    picture = _grey(view.image) // 2 + 30
    for branch in tree.branches:
        pixels, _ = camera.project(branch.points_lps_mm)
        steps = max(2, int(np.ceil(np.linalg.norm(np.diff(pixels, axis=0), axis=1).sum())))
        at = np.linspace(0, len(pixels) - 1, 2 * steps)
        dense = np.stack([np.interp(at, np.arange(len(pixels)), pixels[:, k]) for k in (0, 1)], axis=1)
        sure = np.ones(len(pixels)) if branch.confidence is None else branch.confidence
        sure = np.interp(at, np.arange(len(pixels)), sure)
        _dots(picture, dense[sure < 0.9], _ONE_WAY)
        _dots(picture, dense[sure >= 0.9], _MATCHED)
    return picture


def compare_picture(target: np.ndarray, rendered: np.ndarray) -> np.ndarray:
    """Evidence in green, projection of the field in magenta; where both agree the picture is grey."""
    scale = max(float(np.quantile(target[target > 0], 0.98)) if (target > 0).any() else 1.0, 1e-6)
    a, b = (np.clip(x / scale, 0, 1) for x in (target, rendered))
    return (255 * np.stack([b, a, b], axis=-1)).astype(np.uint8)


def curve_picture(values: Sequence[float], *, rows: int = 240, cols: int = 360) -> np.ndarray:
    """A falling curve: the best cost over the generations."""
    picture = np.full((rows, cols, 3), 24, np.uint8)
    values = np.asarray([v for v in values if np.isfinite(v)], float)
    if len(values) < 2:
        return picture
    low, high = values.min(), values.max()
    at = np.linspace(0, len(values) - 1, cols)
    height = (np.interp(at, np.arange(len(values)), values) - low) / max(high - low, 1e-9)
    row = np.rint((rows - 9) * (1 - height) + 4).astype(int)
    for c in range(cols):
        begin, end = sorted((row[c], row[max(c - 1, 0)]))
        picture[begin : end + 2, c] = _MATCHED
    return picture


def _grey(image: np.ndarray) -> np.ndarray:
    low, high = np.quantile(image, [0.005, 0.995])
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return np.repeat((255 * grey).astype(np.uint8)[..., None], 3, axis=2)


def _dots(picture: np.ndarray, pixels: np.ndarray, colour) -> None:
    col, row = np.rint(pixels[:, 0]).astype(int), np.rint(pixels[:, 1]).astype(int)
    for d_row, d_col in ((0, 0), (0, 1), (1, 0), (1, 1)):
        r, c = row + d_row, col + d_col
        inside = (r >= 0) & (c >= 0) & (r < picture.shape[0]) & (c < picture.shape[1])
        picture[r[inside], c[inside]] = colour
