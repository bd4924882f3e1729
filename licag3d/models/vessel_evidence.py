# SPDX-License-Identifier: Apache-2.0
"""Vessel evidence of one frame: where vessels are, how wide, and how much contrast the ray met.

:func:`vessel_evidence` chooses between a trained network (:mod:`licag3d.models.learned_evidence`) and what follows
here, the classical way. Centreline first: oriented two-sided filters (:mod:`licag3d.models.vesselness`), thin ridges
with checks (:mod:`licag3d.models.ridges`), the half width by fitting tube profiles (:mod:`licag3d.models.profiles`),
and only then the mask, so that its skeleton is the ridge that was found. Figures and limits: docs/evidence.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.models import ridges, skeleton_graph
from licag3d.models.background import attenuation_image, background_under, fill_smooth
from licag3d.models.profiles import fit_profiles
from licag3d.models.ridges import RidgeRules
from licag3d.models.vesselness import line_response, radii_px
from licag3d.structures import VesselEvidence, View

# Blood with injected contrast, 1/mm: 0.39 at 50 keV and 0.17 at 70 keV for 300 mg iodine per ml (NIST XCOM), diluted by
# half. Display values are scaled so that thick vessels show it.
REFERENCE_ATTENUATION_PER_MM = 0.16
BLUR_MM = 0.2
# The outline that fits the phantom best lies this far outside the union of discs, px.
OUTLINE_PX = 0.15


@dataclass(frozen=True)
class Line:
    """A chain of centreline: points ``(n, 2)`` (col, row), radius px, filter score, fitted contrast at the centre."""

    points: np.ndarray
    radius_px: np.ndarray
    score: np.ndarray
    contrast: np.ndarray


METHODS = ("auto", "learned", "classical")


def vessel_evidence(
    view: View, *, method: str = "auto", device="cpu", rules: RidgeRules | None = None, weights: str = "segmentor"
) -> VesselEvidence:
    """Find the vessels of one frame; a user mask (``view.mask``) is taken instead when there is one.

    Args:
        view: image ``(rows, cols)``; lengths follow from ``view.camera.mm_per_pixel``.
        method: ``learned`` (:mod:`licag3d.models.learned_evidence`), ``classical`` (:func:`classical_evidence`) or
            ``auto``: learned where its weights are part of the installation.
        device: torch device.
        rules: thresholds of the classical evidence, for experiments.
        weights: of the learned evidence: an embedded name or a ``.safetensors`` file.

    Raises:
        InputError: an unknown method, or ``learned`` without weights.
    """
    chosen = choose_method(method, weights)
    if view.mask is not None:
        return evidence_from_mask(view)
    if chosen == "learned":
        from licag3d.models.learned_evidence import learned_evidence

        return learned_evidence(view, weights=weights, device=device)
    return classical_evidence(view, device=device, rules=rules)


def choose_method(method: str, weights: str = "segmentor") -> str:
    """``learned`` or ``classical``: what ``method`` comes down to in this installation.

    Raises:
        InputError: unknown, or learned without weights.
    """
    from licag3d import weights as embedded

    if method not in METHODS:
        raise InputError(f"evidence {method!r} is not known: give learned, classical or auto")
    there = weights.endswith(".safetensors") or embedded.available(weights)
    if method == "learned" and not there:
        raise InputError("evidence learned: no segmentor weights are part of this installation; give classical")
    return "classical" if method == "classical" or not there else "learned"


def classical_evidence(view: View, *, device="cpu", rules: RidgeRules | None = None) -> VesselEvidence:
    """Find the vessels of one frame without learning.

    ``line_integral`` is the rise of the attenuation image over the background interpolated from both sides of the
    vessel. For ``linear`` and ``log`` images it is the line integral itself; for ``display`` images, whose transfer is
    unknown, it is scaled so that the median of p over vessel diameter (at the isocentre, mm) along the thick vessels is
    ``REFERENCE_ATTENUATION_PER_MM``.

    Args:
        view: image ``(rows, cols)``; lengths follow from ``view.camera.mm_per_pixel``.
        device: torch device of the filters.
        rules: thresholds, for experiments.

    Example:
        >>> import numpy as np
        >>> from licag3d.geometry import Camera
        >>> from licag3d.structures import View
        >>> camera = Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.4, spacing_col_mm=0.4, rows=256, cols=256)
        >>> col = np.arange(256.0)
        >>> chord_mm = 0.3 * 2 * np.sqrt(np.maximum(4.0**2 - (col - 120.0) ** 2, 0))
        >>> image = np.tile(0.7 * np.exp(-0.25 * chord_mm), (256, 1)).astype(np.float32)
        >>> evidence = classical_evidence(View(image, camera, np.ones((256, 256), bool), intensity="linear"))
        >>> bool(evidence.mask[128, 120]), bool(evidence.mask[128, 60]), f"{evidence.line_integral[128, 120]:.1f}"
        (True, False, '0.6')
    """
    rules = rules or RidgeRules()
    mm = view.camera.mm_per_pixel
    inside = inner_field(view.valid)
    blank = blank_evidence(view.image.shape)
    if inside.sum() < 0.05 * inside.size:
        return blank
    image = attenuation_of(view, inside)
    response = line_response(image, inside, radii_px(mm), device=device)
    ridge = ridges.find_ridges(response, inside, mm, rules)
    lines = measure_lines(image, ridge, response, blur_px=max(0.6, BLUR_MM / mm))
    if not lines:
        return blank
    lines = _weigh_thin(lines)
    distance, radius_map, score_map = draw_lines(lines, image.shape)
    mask = (distance < OUTLINE_PX) & view.valid
    probability = edge_chance(distance) * _chance(score_map)
    background = background_under(image, distance < 1.5, inside)
    rise = np.maximum(image - background, 0.0) * np.clip(1.0 - distance, 0, 1) * view.valid
    scale = _scale(view.intensity, lines, mm)
    confidence = np.clip(score_map / 12.0, 0, 1) * np.clip(0.5 - distance, 0, 1) * inside
    return VesselEvidence(probability=(probability * view.valid).astype(np.float32), mask=mask,
                          line_integral=(scale * rise).astype(np.float32), confidence=confidence.astype(np.float32),
                          radius_px=np.where(mask, radius_map, 0).astype(np.float32))


def evidence_from_mask(view: View) -> VesselEvidence:
    """Evidence from the user's own ``view.mask``: width from the distance transform, line integral from the image.

    Raises:
        ValueError: the view has no mask, or one of another shape.
    """
    from scipy import ndimage

    if view.mask is None or view.mask.shape != view.image.shape:
        raise ValueError(f"the view needs a mask of {view.image.shape} pixels; it has "
                         f"{None if view.mask is None else view.mask.shape}")
    mask = np.asarray(view.mask, bool)
    if not mask.any():
        return blank_evidence(view.image.shape)
    mm = view.camera.mm_per_pixel
    inside = inner_field(view.valid)
    image = attenuation_of(view, inside)
    background = background_under(image, ndimage.binary_dilation(mask, iterations=2), inside)
    distance = ndimage.distance_transform_edt(mask)
    from skimage.morphology import skeletonize

    middle = skeletonize(mask)
    nearest = ndimage.distance_transform_edt(~middle, return_distances=False, return_indices=True)
    # Distance to the nearest background pixel centre is half a pixel beyond the boundary.
    radius = np.where(mask, np.maximum(distance[tuple(nearest)] - 0.5, 0.5), 0.0)
    rise = np.where(mask, np.maximum(image - background, 0.0), 0.0)
    rows, cols = np.nonzero(middle)
    # Along the middle of a blurred tube the rise is close to that of the centre.
    seen = ndimage.gaussian_filter(rise, 0.7)[rows, cols]
    lines = [Line(np.stack([cols, rows], 1).astype(float), radius[rows, cols], np.full(len(rows), 10.0), seen)]
    scale = _scale(view.intensity, lines, mm)
    return VesselEvidence(probability=mask.astype(np.float32), mask=mask,
                          line_integral=(scale * rise).astype(np.float32),
                          confidence=(mask & view.valid).astype(np.float32), radius_px=radius.astype(np.float32))


def inner_field(valid: np.ndarray) -> np.ndarray:
    """The X-ray field without its rim: penumbra of the collimator, and the image edge, which is often off."""
    from scipy import ndimage

    return ndimage.binary_erosion(np.asarray(valid, bool), iterations=max(2, min(valid.shape) // 128))


def blank_evidence(shape) -> VesselEvidence:
    zero = np.zeros(shape, np.float32)
    return VesselEvidence(zero, zero.copy(), zero.copy(), zero.copy(), np.zeros(shape, bool))


def attenuation_of(view: View, inside: np.ndarray) -> np.ndarray:
    """The attenuation image, minus the frame before contrast where that helps, continued smoothly over the border.

    Subtraction removes ribs and spine but adds the noise and the motion of the other frame. Whichever image has less
    structure at vessel size (median band-pass magnitude) is used.
    """
    from scipy import ndimage

    image = attenuation_image(view.image, view.intensity)
    if view.background is not None and inside.any():
        difference = image - attenuation_image(view.background, view.intensity)
        # Exposure may differ between the two frames: the median difference is not vessel.
        difference = difference - np.median(difference[inside])
        small, large = 0.4 / view.camera.mm_per_pixel, 2.0 / view.camera.mm_per_pixel

        def structure(x: np.ndarray) -> float:
            band = ndimage.gaussian_filter(x, small) - ndimage.gaussian_filter(x, large)
            return float(np.median(np.abs(band[inside])))

        if structure(difference) < structure(image):
            image = difference
    return fill_smooth(image, inside)


def measure_lines(image, ridge, response, *, blur_px: float) -> list[Line]:
    """The ridge as chains of refined points with radius, score and contrast."""
    from scipy import ndimage

    from licag3d.models import centerline2d as trace

    if not ridge.any():
        return []
    graph = skeleton_graph.build(ndimage.binary_dilation(ridge, np.ones((3, 3))))
    graph.join_through()
    meet = graph.ends_at()
    lines = []
    for piece in graph.pieces:
        points = graph.line(piece)[:, ::-1]
        if len(points) < 3:
            continue
        (points,) = trace._resample(points)
        points = trace._smooth(points, 1.5)
        tangent = trace._tangent(points)
        row, col = (np.clip(np.rint(points[:, k]).astype(int), 0, image.shape[1 - k] - 1) for k in (1, 0))
        first = response.radius_px[row, col]
        fit = fit_profiles(image, points, tangent, first, blur_px=blur_px)
        trust = fit.explained**2 * np.maximum(fit.contrast, 0)
        arc = np.arange(len(points))
        for node, away in zip(graph.pieces[piece][:2], (arc, arc[::-1]), strict=True):
            if len(meet[node]) > 2:
                # A profile beside a junction spans the other vessel.
                trust = trust * np.clip(away / (1.5 * first), 0.02, 1)
        trust = trust + 1e-9
        radius = _steady_radius(fit.radius_px, trust, first, fit.explained)
        shift = _mean_along(np.clip(fit.shift_px, -1, 1), trust)
        points = points + shift[:, None] * np.stack([-tangent[:, 1], tangent[:, 0]], 1)
        score = ndimage.gaussian_filter1d(response.score[row, col], 3.0, mode="nearest")
        contrast = np.exp(_mean_along(np.log(np.maximum(fit.contrast, 1e-6)), trust))
        lines.append(Line(points, radius, score, contrast))
    return lines


def _steady_radius(radius, trust, first, explained):
    """Radius along a chain without outliers.

    Fits that explain little give way to the radius of the best filter; what is left may be 1.4 times off the running
    weighted mean, and is smoothed.
    """
    weak = np.median(trust) * (1.0 - explained) ** 2 + 1e-12
    log_radius = (trust * np.log(radius) + weak * np.log(first)) / (trust + weak)
    calm = _mean_along(log_radius, trust, sigma=8.0)
    return np.exp(_mean_along(np.clip(log_radius, calm - np.log(1.4), calm + np.log(1.4)), trust))


def _weigh_thin(lines: list[Line], resolved_px: float = 2.5) -> list[Line]:
    """Radius of vessels too thin to resolve, from how much contrast they hold instead of how wide they look.

    The profile of a thin vessel is the blur; only its integral, ``contrast * radius * pi / 2``, is certain. With the
    attenuation mu of the resolved vessels of the same frame the cross section follows: ``pi r^2 mu`` is that integral
    (videodensitometry). Between one pixel and ``resolved_px`` the two radii are blended; contrast changes with the
    radius so that the integral stays.
    """
    radius = np.concatenate([line.radius_px for line in lines])
    contrast = np.concatenate([line.contrast for line in lines])
    thick = radius > resolved_px
    if thick.sum() < 30:
        return lines
    attenuation = float(np.median(contrast[thick] / (2 * radius[thick])))
    out = []
    for line in lines:
        integral = line.contrast * line.radius_px * np.pi / 2
        weighed = np.sqrt(integral / (np.pi * attenuation))
        # Overlaps and foreshortening can mislead it: no more than a factor of two either way.
        weighed = np.clip(weighed, 0.5 * line.radius_px, 1.6 * line.radius_px)
        share = np.clip((line.radius_px - 1.0) / (resolved_px - 1.0), 0, 1)
        blended = line.radius_px**share * weighed ** (1 - share)
        out.append(replace(line, radius_px=blended, contrast=integral / (blended * np.pi / 2)))
    return out


def _mean_along(values, weights, sigma: float = 2.5):
    from scipy import ndimage

    values = ndimage.median_filter(values, min(7, len(values)), mode="nearest")
    top = ndimage.gaussian_filter1d(values * weights, sigma, mode="nearest")
    return top / ndimage.gaussian_filter1d(weights, sigma, mode="nearest")


def draw_lines(lines, shape):
    """Signed distance to the union of discs along the lines (px, inside negative), and radius and score nearest."""
    from scipy import ndimage

    distance = np.full(shape, np.inf)
    radius_at, score_at = np.zeros(shape), np.zeros(shape)
    for line in lines:
        points, radius = line.points, line.radius_px
        for half in np.unique(np.ceil(radius + 3).astype(int)):
            chosen = np.ceil(radius + 3).astype(int) == half
            window = np.stack(np.meshgrid(np.arange(-half, half + 1), np.arange(-half, half + 1)), -1).reshape(-1, 2)
            pixel = np.rint(points[chosen]).astype(int)[:, None] + window[None]
            gap = np.linalg.norm(pixel - points[chosen][:, None], axis=-1) - radius[chosen][:, None]
            fits = (pixel[..., 0] >= 0) & (pixel[..., 0] < shape[1]) & (pixel[..., 1] >= 0) & (pixel[..., 1] < shape[0])
            np.minimum.at(distance, (pixel[..., 1][fits], pixel[..., 0][fits]), gap[fits])
        row, col = (np.clip(np.rint(points[:, k]).astype(int), 0, shape[1 - k] - 1) for k in (1, 0))
        np.maximum.at(radius_at, (row, col), radius)
        np.maximum.at(score_at, (row, col), line.score)
    nearest = ndimage.distance_transform_edt(radius_at == 0, return_distances=False, return_indices=True)
    near = distance < 3
    return distance, np.where(near, radius_at[tuple(nearest)], 0), np.where(near, score_at[tuple(nearest)], 0)


def edge_chance(distance_px: np.ndarray) -> np.ndarray:
    """Share of pixels at this signed distance from the drawn outline that are vessel (phantom, docs/evidence.md)."""
    return np.where(distance_px < 1.5, 1.0 / (1.0 + np.exp((np.clip(distance_px, -9, 9) - 0.17) / 0.28)), 0.0)


def _chance(score: np.ndarray) -> np.ndarray:
    """Probability that a ridge of this score is a vessel."""
    return 1.0 / (1.0 + np.exp(-(score - 3.2)))


def _scale(intensity: str, lines: list[Line], mm_per_pixel: float) -> float:
    """Factor from the rise of the attenuation image to the line integral; one for known intensities.

    Thin vessels are uncertain in width: the thickest third of the centreline decides.
    """
    if intensity in ("linear", "log"):
        return 1.0
    radius = np.concatenate([line.radius_px for line in lines])
    contrast = np.concatenate([line.contrast for line in lines])
    thick = radius >= np.quantile(radius, 0.67)
    ratio = float(np.median(contrast[thick] / (2 * radius[thick] * mm_per_pixel)))
    return REFERENCE_ATTENUATION_PER_MM / ratio if ratio > 1e-6 else 0.0
