# SPDX-License-Identifier: Apache-2.0
"""Cross profiles of a tree's projections: where the middle of each vessel lies in a view, how wide it is, how much
contrast it holds.

A round vessel of radius r whose middle lies at d shows the chord ``A sqrt(1 - ((t - d) / r)^2)`` across its axis (t in
pixels), smeared by the image; the outline of a mask shows a step instead. Smeared by a box of width h both have closed
forms, and so have their derivatives: with ``F(t) = (t sqrt(r^2 - t^2) + r^2 asin(t / r)) / 2`` the smeared chord is
``A (F(t - d + h/2) - F(t - d - h/2)) / (h r)``. The box has the variance of the blur, ``h = sqrt(12) sigma``.

What other vessels add to a profile comes from the exact projection of the whole tree less the vessel's own chord, so
that vessels that cross or run beside each other do not widen one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselEvidence, VesselTree

#: Sampling step across, px.
STEP_PX = 0.5
#: Profiles reach this many radii and pixels from the middle.
REACH = (1.35, 2.0)
#: Standard deviation of a sample over the contrast on the axis; at four times this it has half its weight (Cauchy).
NOISE = 0.1
#: How far middle (px) and log half width are let go where the profile does not show them.
SHIFT_PRIOR_PX, WIDTH_PRIOR = 1.5, 0.35
#: Where other vessels add this share of the vessel's own contrast a sample has half its weight.
OTHER_SCALE = 0.3
#: Under a mask a sample counts for nothing from this share on: the mask is one either way.
OUTLINE_OTHER = 0.02
#: A rim is looked for this near to where it should be, px.
SIDE_PX = 1.5
#: Smallest half width that can be told from the smear, px.
LEAST_RADIUS_PX = 0.5
#: Sine of the angle between ray and vessel, below which chords say nothing.
LEAST_SINE = 0.25


@dataclass(frozen=True)
class ViewPoints:
    """Centreline points in one view, each ``(N, ...)``.

    ``pixels`` (col, row), ``normal`` across the projected vessel, ``gradient`` ``(N, 3)`` change of the position
    across per mm in space, ``px_per_mm`` magnification there, ``sine`` of the angle between ray and vessel.
    """

    pixels: np.ndarray
    normal: np.ndarray
    gradient: np.ndarray
    px_per_mm: np.ndarray
    sine: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What one view says of every point ``(N,)``, with standard deviations from the profile's own information: a rim
    that another vessel hides leaves the width and the middle wide open, and the deviation says so.

    ``shift_px`` of the middle along the normal, ``width_px`` half width (its deviation is that of the logarithm),
    ``contrast`` on the axis (unit of the line integral; its deviation likewise), ``explained`` 0..1 share of the
    profile that the model explains, 0 where the vessel runs along the ray.
    """

    shift_px: np.ndarray
    width_px: np.ndarray
    contrast: np.ndarray
    shift_sigma_px: np.ndarray
    width_sigma: np.ndarray
    contrast_sigma: np.ndarray
    explained: np.ndarray


@dataclass(frozen=True)
class ProfileImage:
    """What profiles of a view are read from.

    Args:
        values: ``(rows, cols)`` line integral, or a mask as 0 and 1.
        outline: ``values`` is a mask: profiles are steps of known height, not chords.
        line_integral: ``(rows, cols)``, for the contrast where ``outline``.
        blur_px: standard deviation of the smear, px, sampling included.
    """

    values: np.ndarray
    outline: bool
    line_integral: np.ndarray
    blur_px: float


def profile_image(evidence: VesselEvidence, *, given: bool, blur_px: float) -> ProfileImage:
    """A mask that was ``given`` is exact, and its outline is read; vessels that were found show in the line integral,
    whose profile is known better than where a threshold cuts it."""
    p = np.asarray(evidence.line_integral, np.float64)
    if given or not p.any():
        return ProfileImage(np.asarray(evidence.mask, np.float64), True, p, 0.4)
    return ProfileImage(p, False, p, blur_px)


def view_points(camera: Camera, points_mm: np.ndarray, tangent: np.ndarray) -> ViewPoints:
    """Project centreline points ``(N, 3)`` with unit tangents ``(N, 3)``."""
    pixels, depth = camera.project(points_mm)
    step = 1e-3
    jacobian = np.stack(
        [(camera.project(points_mm + step * axis)[0] - pixels) / step for axis in np.eye(3)], -1
    )  # (N, 2, 3)
    along = np.einsum("nij,nj->ni", jacobian, tangent)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    gradient = np.einsum("ni,nij->nj", normal, jacobian)
    ray = points_mm - camera.source_lps_mm
    ray /= np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-9)
    sine = np.linalg.norm(np.cross(ray, tangent), axis=1)
    return ViewPoints(pixels, normal, gradient, np.linalg.norm(gradient, axis=1), sine)


def smeared_chord(t: np.ndarray, radius: np.ndarray, width: float):
    """Chord over diameter at offsets ``t`` ``(N, T)`` for radii ``(N, 1)``, smeared by a box, and its derivatives by t
    and by log radius.

    Example:
        >>> value, _, _ = smeared_chord(np.array([[0.0, 2.0]]), np.array([[2.0]]), 1e-3)
        >>> value.round(2).tolist()
        [[1.0, 0.01]]
    """
    high, low = (np.clip(t + side * width / 2, -radius, radius) for side in (1, -1))

    def pieces(x):
        root, turn = np.sqrt(np.maximum(radius**2 - x**2, 0.0)), np.arcsin(np.clip(x / radius, -1, 1))
        return 0.5 * (x * root + radius**2 * turn), root, radius * turn

    area_high, root_high, turn_high = pieces(high)
    area_low, root_low, turn_low = pieces(low)
    value = (area_high - area_low) / (width * radius)
    by_t = (root_high - root_low) / (width * radius)
    by_log_radius = (turn_high - turn_low) / width - value
    return value, by_t, by_log_radius


def smeared_step(t: np.ndarray, radius: np.ndarray, width: float):
    """As :func:`smeared_chord`, for a step that is one within the radius."""
    high, low = (np.clip(t + side * width / 2, -radius, radius) for side in (1, -1))
    value = (high - low) / width
    # Only ends of the box beyond the edge move with the radius, only those within move with t.
    by_t = ((np.abs(t + width / 2) < radius) * 1.0 - (np.abs(t - width / 2) < radius) * 1.0) / width
    by_radius = (
        (np.sign(t + width / 2) * (np.abs(t + width / 2) >= radius))
        - (np.sign(t - width / 2) * (np.abs(t - width / 2) >= radius))
    ) / width
    return value, by_t, by_radius * radius


@dataclass(frozen=True)
class Shadows:
    """Path lengths in one view, mm: through the whole tree ``(rows, cols)``, and through each branch alone in the part
    of the image that it covers, as (top, left, values)."""

    whole: np.ndarray
    branches: tuple[tuple[int, int, np.ndarray], ...]


def shadows(tree: VesselTree, camera: Camera) -> Shadows:
    """Exact projections (:func:`licag3d.ops.project_tubes`) of a tree and of its branches one by one."""
    from licag3d.metrics.images import path_mm

    parts = []
    for branch in tree.branches:
        pixels, depth = camera.project(branch.points_lps_mm)
        reach = float((branch.radius_mm * camera.sid_mm / depth).max()) / camera.spacing_col_mm + 2.0
        low = np.clip(np.floor(pixels.min(0) - reach), 0, (camera.cols - 1, camera.rows - 1)).astype(int)
        high = np.clip(np.ceil(pixels.max(0) + reach), low, (camera.cols - 1, camera.rows - 1)).astype(int) + 1
        crop = camera.cropped(int(low[1]), int(low[0]), int(high[1] - low[1]), int(high[0] - low[0]))
        alone = VesselTree((replace(branch, parent=None),))
        parts.append((int(low[1]), int(low[0]), path_mm(alone, crop)))
    return Shadows(path_mm(tree, camera), tuple(parts))


def measure(
    image: ProfileImage,
    seen: ViewPoints,
    radius_mm: np.ndarray,
    shadow: Shadows,
    spans: Sequence[slice],
    average,
    *,
    rounds: int = 3,
) -> Measured:
    """Fit the profile across every point by Gauss-Newton in contrast, shift and log half width.

    Args:
        radius_mm: ``(N,)`` where the fit starts.
        shadow: of the tree that the points belong to. spans: rows of each of its branches.
        average: function ``(N, K) -> (N, K)``, weighted mean along the vessels; the normal equations of neighbours
            are added up by it, since calibre and position change slowly.
    """
    from scipy import ndimage

    start = np.maximum(radius_mm * seen.px_per_mm, LEAST_RADIUS_PX)
    reach = REACH[0] * start + REACH[1]
    half = int(np.ceil(1.25 * reach.max() / STEP_PX))
    t = np.arange(-half, half + 1) * STEP_PX
    at = seen.pixels[:, None] + t[None, :, None] * seen.normal[:, None]

    def sampled(values: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(values, [at[..., 1], at[..., 0]], order=1, mode="constant")

    inside = sampled(np.ones_like(image.values)) > 0.999
    values = sampled(image.values)
    thickness = (2 * radius_mm / np.maximum(seen.sine, LEAST_SINE))[:, None]
    other = np.maximum(sampled(shadow.whole) - own_path(shadow, spans, at), 0.0) / thickness
    if image.outline:
        trust = inside * (other <= OUTLINE_OTHER)
    else:
        trust = inside / (1.0 + (other / OTHER_SCALE) ** 2)
    height = np.ones(len(start)) if image.outline else _first_contrast(values, t, start, inside)
    trust *= ~_strange_side(values / height[:, None], other, t, start)
    width = np.sqrt(12.0) * image.blur_px
    shape = smeared_step if image.outline else smeared_chord
    shift, log_width, first = np.zeros(len(start)), np.log(start), np.log(start)
    contrast = height
    size = 2 if image.outline else 3
    count = size * (size + 1) // 2
    for _ in range(rounds):
        radius = np.exp(log_width)
        limit = REACH[0] * radius + REACH[1]
        away = t[None] - shift[:, None]
        window = np.clip(limit[:, None] - np.abs(away) + 0.5, 0.0, 1.0)
        value, by_t, by_log = shape(away, radius[:, None], width)
        target = values if image.outline else values - contrast[:, None] * other
        rest = target - contrast[:, None] * value
        noise = NOISE * np.maximum(contrast, 1e-6)[:, None]
        weight = trust * window / (1.0 + (rest / (4 * noise)) ** 2) / noise**2
        # In units of the contrast, so that all unknowns are of size one.
        parts = [value * contrast[:, None], -contrast[:, None] * by_t, contrast[:, None] * by_log][3 - size :]
        normal = np.stack([(weight * a * b).sum(1) for i, a in enumerate(parts) for b in parts[i:]], 1)
        right = np.stack([(weight * a * rest).sum(1) for a in parts], 1)
        total = np.stack([(trust * window * target**2).sum(1), (trust * window * rest**2).sum(1)], 1)
        both = average(np.concatenate([normal, right, total], 1))
        matrix = np.zeros((len(start), size, size))
        matrix[:, *np.triu_indices(size)] = both[:, :count]
        matrix += np.triu(matrix, 1).transpose(0, 2, 1)
        # What the profile does not show stays as it was: the prior has a fixed width, not one that shrinks each round.
        prior = np.array([1.0, SHIFT_PRIOR_PX, WIDTH_PRIOR][3 - size :]) ** -2.0
        held = np.stack([np.zeros_like(shift), shift, log_width - first][3 - size :], 1)
        matrix[:, np.arange(size), np.arange(size)] += prior
        step = np.linalg.solve(matrix, (both[:, count : count + size] - prior * held)[..., None])[..., 0]
        if not image.outline:
            contrast = contrast * np.exp(np.clip(step[:, 0], -0.5, 0.5))
        shift = shift + np.clip(step[:, -2], -1.5, 1.5)
        log_width = np.maximum(log_width + np.clip(step[:, -1], -0.3, 0.3), np.log(LEAST_RADIUS_PX))
    spread = np.sqrt(np.einsum("nii->ni", np.linalg.inv(matrix)))
    energy, left = both[:, -2:].T
    # A profile that lies outside the image, or all behind other vessels, explains nothing.
    explained = np.clip(1.0 - left / np.maximum(energy, 1e-12), 0.0, 1.0) * (energy > 1e-3 * contrast**2)
    if image.outline:
        contrast = _contrast_inside(sampled(image.line_integral), t, shift, np.exp(log_width), trust)
    visible = explained * (seen.sine > LEAST_SINE)
    return Measured(
        shift_px=shift,
        width_px=np.exp(log_width),
        contrast=contrast,
        shift_sigma_px=spread[:, -2],
        width_sigma=spread[:, -1],
        contrast_sigma=spread[:, 0] if not image.outline else np.full(len(start), NOISE),
        explained=visible,
    )


def _strange_side(values: np.ndarray, other: np.ndarray, t: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Samples ``(N, T)`` on the one side of a vessel where it does not end though its other rim is where it should be:
    a vessel that the tree lacks lies there.

    Args:
        values: profiles over their height. other: what the tree explains. radius: ``(N,)`` px.
    """
    row, middle = np.arange(len(radius)), len(t) // 2

    def at(side: int, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        column = np.clip(middle + side * np.rint(away / STEP_PX).astype(int), 0, len(t) - 1)
        return values[row, column], other[row, column]

    hidden = np.zeros(values.shape, bool)
    for side in (1, -1):
        out, known = at(side, radius + SIDE_PX)
        far_out, far_known = at(-side, radius + SIDE_PX)
        far_in, _ = at(-side, np.maximum(radius - SIDE_PX, 0.6 * radius))
        strange = (out > 0.4) & (known < 0.1) & (far_out < 0.2) & (far_known < 0.1) & (far_in > 0.2)
        hidden |= strange[:, None] & (side * t[None] > radius[:, None] - SIDE_PX)
    return hidden


def own_path(shadow: Shadows, spans: Sequence[slice], at: np.ndarray) -> np.ndarray:
    """Path through the own branch alone at profile samples ``(N, T, 2)``."""
    from scipy import ndimage

    out = np.zeros(at.shape[:2])
    for span, (top, left, values) in zip(spans, shadow.branches, strict=True):
        place = at[span]
        out[span] = ndimage.map_coordinates(
            values, [place[..., 1] - top, place[..., 0] - left], order=1, mode="constant"
        )
    return out


def _first_contrast(values: np.ndarray, t: np.ndarray, radius: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean over the central half of the profile, over that of a chord (0.957)."""
    middle = (np.abs(t)[None] <= np.maximum(0.5 * radius, STEP_PX)[:, None]) & inside
    return np.maximum((values * middle).sum(1) / np.maximum(middle.sum(1), 1) / 0.957, 1e-6)


def _contrast_inside(values, t, shift, radius, trust) -> np.ndarray:
    """Contrast on the axis from the line integral in the central 0.7 of the width, least squares on the chord."""
    place = (t[None] - shift[:, None]) / radius[:, None]
    chord = np.sqrt(np.maximum(1.0 - place**2, 0.0))
    weight = trust * (np.abs(place) < 0.7)
    return (weight * chord * values).sum(1) / np.maximum((weight * chord**2).sum(1), 1e-9)
