# SPDX-License-Identifier: Apache-2.0
"""Contrast as a cue of slope: a vessel that runs along the rays shows more contrast than its width explains.

A ray meets a vessel of radius r under the angle a over the length 2 r / sin(a): p = mu 2 r / sin(a). The direction of a vessel
in space follows from its directions in two images, so that both images can be asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains

#: Median of 1 / sin(a) over directions at random.
TYPICAL_STRETCH = 1.155


@dataclass(frozen=True)
class ImagePlanes:
    """At every centreline point: unit ``ray`` ``(N, 3)`` and unit ``normal`` ``(N, 3)`` of the plane of ray and image tangent."""

    ray: np.ndarray
    normal: np.ndarray


def image_planes(camera: Camera, chains: Chains, window_mm: float = 3.0) -> ImagePlanes:
    """The plane in which the vessel runs according to one image; tangents are chords of ``window_mm`` of arc."""
    pixels = chains.pixels
    tangent = np.zeros_like(pixels)
    for a, b in zip(chains.start[:-1], chains.start[1:], strict=True):
        arc = np.cumsum(chains.step_mm[a:b])
        ahead, behind = np.minimum(arc + 0.5 * window_mm, arc[-1]), np.maximum(arc - 0.5 * window_mm, arc[0])
        for k in (0, 1):
            tangent[a:b, k] = np.interp(ahead, arc, pixels[a:b, k]) - np.interp(behind, arc, pixels[a:b, k])
    _, ray = camera.rays(pixels[:, 0], pixels[:, 1])
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    _, beside = camera.rays(pixels[:, 0] + tangent[:, 0], pixels[:, 1] + tangent[:, 1])
    ray = ray / np.linalg.norm(ray, axis=1, keepdims=True)
    normal = np.cross(ray, beside)
    return ImagePlanes(ray, normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12))


def expected_stretch(chains: Chains, window_mm: float = 4.0) -> np.ndarray:
    """How much longer than its image a vessel must be to give its line integral, ``(N,)``; NaN where nothing is known.

    The attenuation of the contrast agent is taken from the vessels themselves: the median stretch is that of directions at
    random. Values below 1 are possible (noise) and kept.
    """
    if not len(chains.step_mm):
        return np.zeros(0)
    ratio = chains.line_integral / (2.0 * chains.radius_mm)
    good = (ratio > 0) & (chains.radius_mm >= np.quantile(chains.radius_mm, 0.3))
    if not good.any():
        return np.full(len(ratio), np.nan)
    smooth = windowed_mean(np.maximum(ratio, 0.0), chains, window_mm)
    return np.where(smooth > 0, smooth * TYPICAL_STRETCH / np.median(ratio[good]), np.nan)


def windowed_mean(values: np.ndarray, chains: Chains, window_mm: float) -> np.ndarray:
    """Mean of ``(N,)`` values over a window of arc along each piece."""
    out = np.empty(len(values))
    for a, b in zip(chains.start[:-1], chains.start[1:], strict=True):
        arc = np.cumsum(chains.step_mm[a:b])
        total = np.concatenate([[0.0], np.cumsum(values[a:b])])
        low = np.searchsorted(arc, arc - 0.5 * window_mm)
        high = np.searchsorted(arc, arc + 0.5 * window_mm, side="right")
        out[a:b] = (total[high] - total[low]) / np.maximum(high - low, 1)
    return out


def slope_mismatch(planes: tuple[ImagePlanes, ImagePlanes], near: np.ndarray, chains: tuple[Chains, Chains]) -> np.ndarray:
    """``(N, K)`` mean of |log(stretch seen / stretch of the direction in space)| over both views, at most 1 each.

    Args:
        near: ``(N, K)`` point of the second view for every candidate of the first.

    Where both image tangents lie in the epipolar plane the direction is not determined, and the mismatch fades to zero.
    """
    first, second = planes
    direction = np.cross(first.normal[:, None], second.normal[near])
    size = np.linalg.norm(direction, axis=-1)
    direction = direction / np.maximum(size, 1e-9)[..., None]
    trust = np.clip(size / 0.25, 0.0, 1.0)
    total = np.zeros(near.shape)
    for rays, seen in ((first.ray[:, None], expected_stretch(chains[0])[:, None]),
                       (second.ray[near], expected_stretch(chains[1])[near])):
        sine = np.linalg.norm(np.cross(direction, rays), axis=-1)
        mismatch = np.abs(np.log(np.clip(seen, 0.2, 5.0) * np.clip(sine, 0.2, 1.0)))
        total += 0.5 * np.nan_to_num(np.minimum(mismatch, 1.0), nan=0.0)
    return trust * total
