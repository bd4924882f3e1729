# SPDX-License-Identifier: Apache-2.0
"""Radii of a tree from everything the views say of them: widths, contrasts, densities, and what each is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from licag3d.inversion.refinement_density import NARROW, Density, around, thin_readings
from licag3d.inversion.refinement_lines import Lines
from licag3d.inversion.refinement_profiles import LEAST_SINE, Measured, ProfileImage, ViewPoints
from licag3d.inversion.refinement_radius import robust_trend, trend_sigma
from licag3d.vessels.tree import arc_length_mm

#: No vessel thinner than this is delivered, mm.
LEAST_RADIUS_MM = 0.2
#: Deviation (log radius) of a narrow lumen in addition where nothing reads the frame: widths alone smear it.
UNREAD_SIGMA = 0.4


def calibre(
    lines: Lines,
    points: np.ndarray,
    radius: np.ndarray,
    seen: Sequence[ViewPoints],
    found: Sequence[Measured],
    images: Sequence[ProfileImage],
    dense: Sequence[Density],
):
    """Radii ``(N,)`` by the robust fit along each branch, their deviations, and the attenuation of every view,
    1/mm."""
    settings = lines.settings
    readings, sigmas, levels = [], [], []
    for view, what, image in zip(seen, found, images, strict=True):
        good = what.explained > settings.least_explained
        width = np.log(what.width_px / view.px_per_mm)
        floor = settings.width_sigma[int(image.outline)] / np.maximum(what.width_px, 1.0)
        readings.append(width)
        sigmas.append(np.where(good, np.hypot(floor, what.width_sigma), np.inf))
        level = attenuation(view, what, width, good)
        levels.append(level)
        slant = np.maximum(view.sine, LEAST_SINE)
        if level > 0:
            readings.append(np.log(np.maximum(what.contrast, 1e-9) * slant / (2 * level)))
            spread = np.hypot(settings.contrast_sigma[int(image.outline)], what.contrast_sigma)
            sigmas.append(np.where(good & (what.contrast > 0), spread, np.inf))
    readings, sigmas = np.stack(readings, 1), np.stack(sigmas, 1)
    arcs = [arc_length_mm(points[span]) for span in lines.spans()]
    if dense:
        usual = around(radius, arcs, lines.spans())
        more, spread, thin = thin_readings(dense, seen, usual, _least(readings, sigmas))
        sigmas = np.hypot(sigmas, settings.thin_sigma[int(images[0].outline)] * thin[:, None])
        readings, sigmas = np.concatenate([readings, more], 1), np.concatenate([sigmas, spread], 1)
    sigmas = sigmas * _too_wide(readings, sigmas)
    out, spread = np.empty_like(radius), np.empty_like(radius)
    for span, arc in zip(lines.spans(), arcs, strict=True):
        out[span] = robust_trend(
            arc,
            readings[span],
            sigmas[span],
            np.log(lines.radius[span]),
            bend=settings.bend_mm,
            start_sigma=settings.start_sigma,
        )
        spread[span] = trend_sigma(arc, readings[span], sigmas[span], out[span])
    made = np.maximum(np.exp(out), LEAST_RADIUS_MM)
    if not dense:
        share = np.clip((NARROW[1] - made / around(made, arcs, lines.spans())) / (NARROW[1] - NARROW[0]), 0.0, 1.0)
        spread = np.hypot(spread, UNREAD_SIGMA * share)
    return made, made * spread, levels


def attenuation(view: ViewPoints, what: Measured, log_width: np.ndarray, good: np.ndarray) -> float:
    """Attenuation of the contrast agent in a view, 1/mm: median where the width is resolved and the vessel crosses the
    ray well; 0 without any."""
    use = good & (what.contrast > 0) & (view.sine > 0.5) & (what.width_sigma < 0.15)
    if use.sum() < 5:
        return 0.0
    thick = use & (what.width_px >= max(3.0, float(np.quantile(what.width_px[use], 0.5))))
    thick = thick if thick.sum() >= 5 else use & (what.width_px >= np.quantile(what.width_px[use], 0.7))
    return float(np.median(what.contrast[thick] * view.sine[thick] / (2 * np.exp(log_width[thick]))))


def _least(readings: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Least reading ``(N,)`` of every point, infinite where there is none."""
    return np.where(np.isfinite(sigmas), readings, np.inf).min(1)


def _too_wide(readings: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Factor ``(N, m)`` on the standard deviation of readings above the least of their point: a vessel that hides
    another, or a branch that is not in the tree, makes it look wide and dark, and nothing makes it look thin."""
    known = np.isfinite(sigmas)
    least = np.where(known & (sigmas < 2 * sigmas.min(1, keepdims=True)), readings, np.inf).min(1, keepdims=True)
    above = np.where(known & np.isfinite(least), readings - np.where(np.isfinite(least), least, 0.0), 0.0)
    return np.sqrt(1.0 + (np.maximum(above, 0.0) / (3.0 * np.where(known, sigmas, 1.0))) ** 2)
