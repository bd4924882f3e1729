# SPDX-License-Identifier: Apache-2.0
"""Contrast as a cue of slope: a vessel that runs along the rays shows more contrast than its width explains.

A ray meets a vessel of radius r under the angle a over the length 2 r / sin(a): p = mu 2 r / sin(a). The direction of
a vessel in space follows from its directions in two images, so that both images can be asked.
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
    """At every centreline point: unit ``ray`` ``(N, 3)`` and unit ``normal`` ``(N, 3)`` of the plane of ray and image
    tangent."""

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


def attenuation(chains: Chains) -> float:
    """Attenuation of the contrast agent, 1/mm, from the vessels themselves: their median stretch is that of directions
    at random.

    NaN where no line integrals are known.
    """
    ratio = chains.line_integral / (2.0 * chains.radius_mm)
    good = (ratio > 0) & (chains.radius_mm >= np.quantile(chains.radius_mm, 0.3)) if len(ratio) else np.zeros(0, bool)
    return float(np.median(ratio[good])) / TYPICAL_STRETCH if good.any() else float("nan")


def expected_stretch(chains: Chains, window_mm: float = 4.0) -> np.ndarray:
    """How much longer than its image a vessel must be to give its line integral, ``(N,)``; NaN where nothing is known.

    Values below 1 are possible (noise) and kept.
    """
    smooth = windowed_mean(np.maximum(chains.line_integral / (2.0 * chains.radius_mm), 0.0), chains, window_mm)
    return np.where(smooth > 0, smooth / attenuation(chains), np.nan)


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


def contrast_mismatch(planes: tuple[ImagePlanes, ImagePlanes], near: np.ndarray, chains: tuple[Chains, Chains],
                      window_mm: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """What the contrast of both views says against candidate places.

    Args:
        near: ``(N, K)`` point of the second view for every candidate of the first.

    Returns:
        ``slope`` ``(N, K)``: mean over both views of |log(stretch seen / stretch of the direction in space)|, at most
        1 each; ``bore`` ``(N, K)`` in 0..1: how different the vessel diameters are that both line integrals give for
        this direction, d = p sin(a) / mu. It needs no width and so holds for vessels of a pixel or two.

    Where both image tangents lie in the epipolar plane the direction is not determined, and both fade to zero.
    """
    first, second = planes
    direction = np.cross(first.normal[:, None], second.normal[near])
    size = np.linalg.norm(direction, axis=-1)
    direction = direction / np.maximum(size, 1e-9)[..., None]
    trust = np.clip(size / 0.25, 0.0, 1.0)
    slope, diameter = np.zeros(near.shape), []
    for view, rays, chosen in ((0, first.ray[:, None], slice(None)), (1, second.ray[near], near)):
        sine = np.clip(np.linalg.norm(np.cross(direction, rays), axis=-1), 0.2, 1.0)
        seen, mu = expected_stretch(chains[view], window_mm), attenuation(chains[view])
        seen = seen[:, None] if view == 0 else seen[chosen]
        mismatch = np.abs(np.log(np.clip(seen, 0.2, 5.0) * sine))
        slope += 0.5 * np.nan_to_num(np.minimum(mismatch, 1.0), nan=0.0)
        integral = windowed_mean(np.maximum(chains[view].line_integral, 0.0), chains[view], window_mm)
        integral = integral[:, None] if view == 0 else integral[chosen]
        diameter.append(np.where(integral > 0, integral * sine / mu, np.nan))
    ratio = np.log(diameter[0] / diameter[1]) ** 2
    # Saturates: where vessels overlap in one view the ratio is far off and says nothing.
    bore = np.nan_to_num(ratio / (ratio + 0.25), nan=0.0)
    return trust * slope, trust * bore
