# SPDX-License-Identifier: Apache-2.0
"""What each view alone says of the calibre along the vessels of a tree, and where it can say anything.

A tree is refined to all views at once, and a view in which another vessel lies over a narrowing, or in which the vessel
runs along the ray, fills the narrowing up. Narrowings are therefore read view by view
(:mod:`licag3d.inversion.narrowings`), along the vessel as the frame shows it: the projected centreline is first drawn
onto the ridge of the line integral next to it, by dynamic programming. Three readings of the radius are made per point:
width and contrast of the profile, and the contrast in the frame itself, whose integral across a vessel is the area of
its lumen whatever the blur (Reiber et al., Circulation 71 (1985) 280). Under a mask that was given the width is that of
its outline, and the contrast on the axis does not speak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.refinement_calibre import attenuation
from licag3d.inversion.refinement_density import around, frame_image, read_density
from licag3d.inversion.refinement_lines import Lines
from licag3d.inversion.refinement_profiles import (
    LEAST_SINE,
    Shadows,
    ViewPoints,
    measure,
    own_path,
    profile_image,
    shadows,
    view_points,
)
from licag3d.structures import VesselEvidence, View
from licag3d.vessels.tree import arc_length_mm

#: The vessel is looked for this far from the projected centreline, px, with this deviation of the distance and of the
#: slope of the line found against the projected one.
REACH_PX, STRAY_PX, SLOPE = 6, 3.0, 0.2
#: A vessel that meets the ray at a smaller sine is too short in the view.
SHORT_SINE = 0.45
#: Path through other vessels over the middle of this one, as a share of its own, from which it is covered.
COVERED_SHARE = 0.3
#: Readings are taken to differ by at most this (log radius); the density is believed to be above the others and below
#: the contrast by these, and to be below it by the last where it is not known.
SPREAD, MORE, LESS, UNREAD = 1.2, 0.3, 1.0, 0.3
#: A vessel that seems to turn by more within this length runs along the ray there, or another way, degrees and mm.
TURN_DEG, TURN_MM = 90.0, 3.0
#: Where the frame shows so much more than the network saw (log radius), and this share of the usual calibre, the course
#: lies on no vessel that the network found.
CONTRARY_FROM, OPEN_SHARE = 1.4, 0.35
#: A lumen cannot be read this near to the edge of the X-ray field, px.
EDGE_PX = 6
#: Why a view says nothing of a place.
CLEAN, SHORT, OUTSIDE, COVERED, PARENT, TURNING, CONTRARY = range(7)
REASONS = (
    "seen",
    "foreshortened",
    "outside the field",
    "covered by another vessel",
    "inside the parent vessel",
    "turning sharply",
    "read in two ways",
)


@dataclass(frozen=True)
class ViewProfile:
    """What one view says of every point of a tree, each ``(N,)`` unless told otherwise.

    Args:
        pixels: ``(N, 2)`` (col, row) of the vessel as found in the frame.
        px_per_mm: magnification there. sine: of the angle between ray and vessel.
        log_radius: the reading, log mm; ``log_lumen`` the one for thin lumens.
        state: ``CLEAN``, ``SHORT``, ``OUTSIDE``, ``COVERED``, ``PARENT``, ``TURNING`` or ``CONTRARY``.
    """

    pixels: np.ndarray
    px_per_mm: np.ndarray
    sine: np.ndarray
    log_radius: np.ndarray
    log_lumen: np.ndarray
    state: np.ndarray


def view_profiles(
    lines: Lines, cameras: Sequence[Camera], views: Sequence[View], evidence: Sequence[VesselEvidence]
) -> list[ViewProfile]:
    """Readings of every view; ``lines`` of the tree as delivered."""
    tree, points = lines.tree, lines.points
    tangent, average, spans = lines.tangents(points), lines.averager(points), lines.spans()
    arcs = [arc_length_mm(points[span]) for span in spans]
    usual = around(lines.radius, arcs, spans)
    inner = _inside_parent(lines)
    found = []
    for camera, view, item in zip(cameras, views, evidence, strict=True):
        image = profile_image(item, given=view.mask is not None, blur_px=lines.settings.blur_px)
        shadow = shadows(tree, camera)
        seen = _drawn_on(view_points(camera, points, tangent), item.line_integral, usual, spans)
        what = measure(image, seen, lines.radius, shadow, spans, average)
        width = np.log(what.width_px / seen.px_per_mm)
        good = what.explained > 0.5
        level = attenuation(seen, what, width, good)
        slant = np.maximum(seen.sine, LEAST_SINE)
        dense = read_density(frame_image(view, item), seen, arcs, lines.radius, shadow, spans)
        known = np.isfinite(dense.sigma)
        with np.errstate(divide="ignore"):
            contrast = np.log(what.contrast * slant / (2 * level)) if level > 0 and not image.outline else width
        state = np.full(len(points), CLEAN, np.int8)
        state[_covered(shadow, seen, usual, spans, average)] = COVERED
        state[_turning(seen, spans)] = TURNING
        if not image.outline:
            open_ = dense.log_radius > np.log(OPEN_SHARE * usual)
            state[known & open_ & (dense.log_radius > contrast + CONTRARY_FROM)] = CONTRARY
        state[seen.sine < SHORT_SINE] = SHORT
        state[_outside(seen.pixels, view.valid)] = OUTSIDE
        state[inner] = PARENT
        density = np.where(known, dense.log_radius, np.nan)
        whole, lumen = _together(width, contrast, density)
        found.append(ViewProfile(seen.pixels, seen.px_per_mm, seen.sine, whole, lumen, state))
    return found


def _together(width: np.ndarray, contrast: np.ndarray, density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One reading for the vessel and one for thin lumens, of three.

    The width is too wide where the lumen is thin, for image and network smear it, the contrast less so; the density is
    too thin where nothing stands out of the noise. So for lumens the density counts twice; how far it is believed
    (:data:`MORE`, :data:`LESS`) makes the mean even on phantom lesions.
    """
    contrast = np.clip(contrast, width - SPREAD, width + SPREAD)
    both = 0.5 * (width + contrast)
    known = np.isfinite(density)
    shape = np.where(known, np.clip(density, both - SPREAD, both + MORE), contrast)
    dense = np.where(known, np.clip(density, contrast - LESS, contrast + MORE), contrast - UNREAD)
    return (width + contrast + shape) / 3.0, 0.25 * (width + contrast) + 0.5 * dense


def _drawn_on(seen: ViewPoints, line_integral: np.ndarray, usual_mm: np.ndarray, spans) -> ViewPoints:
    """The points of a view moved across the vessel onto the ridge of the line integral next to them."""
    from scipy import ndimage

    shift = np.arange(-REACH_PX, REACH_PX + 1.0)
    at = seen.pixels[:, None] + shift[None, :, None] * seen.normal[:, None]
    smooth = ndimage.gaussian_filter(np.asarray(line_integral, np.float64), 1.5)
    height = ndimage.map_coordinates(smooth, [at[..., 1], at[..., 0]], order=1, mode="constant")
    out = np.zeros(len(height))
    for span in spans:
        if span.stop - span.start < 2:
            continue
        scale = max(float(np.quantile(height[span].max(1), 0.75)), 1e-6)
        gain = 4.0 * np.minimum(height[span] / scale, 1.0) - 0.5 * (shift / STRAY_PX) ** 2
        gap = np.linalg.norm(np.diff(seen.pixels[span], axis=0), axis=1)
        out[span] = shift[_best_way(gain, shift, 2 * (SLOPE * np.maximum(gap, 0.5)) ** 2)]
        out[span] = ndimage.gaussian_filter1d(out[span], 2.0, mode="nearest")
    return replace(seen, pixels=seen.pixels + out[:, None] * seen.normal)


def _best_way(gain: np.ndarray, shift: np.ndarray, stiff: np.ndarray) -> np.ndarray:
    """Columns ``(n,)`` of the way through ``gain`` ``(n, m)`` with the largest sum, less ``jump^2 / stiff``."""
    jump = (shift[:, None] - shift[None]) ** 2
    score, back = gain[0], []
    for k in range(1, len(gain)):
        way = score[None] - jump / stiff[k - 1]
        back.append(way.argmax(1))
        score = way.max(1) + gain[k]
    state = int(score.argmax())
    out = np.empty(len(gain), int)
    out[-1] = state
    for k in range(len(gain) - 1, 0, -1):
        state = int(back[k - 1][state])
        out[k - 1] = state
    return out


def _covered(shadow: Shadows, seen: ViewPoints, usual_mm: np.ndarray, spans, average) -> np.ndarray:
    """Points over whose middle another vessel of the tree lies."""
    from scipy import ndimage

    radius = np.maximum(0.6 * usual_mm * seen.px_per_mm, 1.0)
    at = seen.pixels[:, None] + (np.linspace(-1, 1, 7) * radius[:, None])[..., None] * seen.normal[:, None]
    whole = ndimage.map_coordinates(shadow.whole, [at[..., 1], at[..., 0]], order=1, mode="constant")
    other = np.maximum(whole - own_path(shadow, spans, at), 0.0).mean(1)
    share = other * np.maximum(seen.sine, LEAST_SINE) / (2 * usual_mm)
    return average(share[:, None])[:, 0] > COVERED_SHARE


def _turning(seen: ViewPoints, spans) -> np.ndarray:
    """Points within the length over which the vessel turns too sharply."""
    from scipy import ndimage

    out = np.zeros(len(seen.pixels), bool)
    for span in spans:
        line = seen.pixels[span] / np.median(seen.px_per_mm[span])
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
        if arc[-1] < 2 * TURN_MM:
            continue
        at = np.arange(0.0, arc[-1], 0.25)
        even = np.stack([np.interp(at, arc, line[:, k]) for k in (0, 1)], 1)
        way = np.gradient(ndimage.gaussian_filter1d(even, 2.0, axis=0, mode="nearest"), axis=0)
        way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)
        apart = int(TURN_MM / 0.25)
        sharp = (way[apart:] * way[:-apart]).sum(1) < np.cos(np.radians(TURN_DEG))
        middle = at[: len(sharp)][sharp] + 0.5 * TURN_MM
        if len(middle):
            out[span] = np.abs(arc[:, None] - middle[None]).min(1) <= 0.5 * TURN_MM
    return out


def _outside(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    framed = np.zeros((valid.shape[0] + 2, valid.shape[1] + 2), bool)
    framed[1:-1, 1:-1] = valid
    depth = ndimage.distance_transform_edt(framed)[1:-1, 1:-1]
    at = ndimage.map_coordinates(depth, [pixels[:, 1], pixels[:, 0]], order=1, mode="constant")
    return at < EDGE_PX


def _inside_parent(lines: Lines) -> np.ndarray:
    """Points of a branch that lie within the lumen of its parent."""
    place = {branch.id: k for k, branch in enumerate(lines.tree.branches)}
    out = np.zeros(len(lines.points), bool)
    for branch, span in zip(lines.tree.branches, lines.spans(), strict=True):
        if branch.parent is None:
            continue
        above = lines.spans()[place[branch.parent]]
        away = np.linalg.norm(lines.points[span][:, None] - lines.points[above][None], axis=2)
        near = away.argmin(1)
        out[span] = away[np.arange(len(near)), near] < lines.radius[above][near]
    return out
