# SPDX-License-Identifier: Apache-2.0
"""Vessel evidence of one frame by the learned segmentor: the network says what, the image says where exactly.

The network tells vessels from catheters, ribs and noise; centre and width are then measured on the image itself by the
profile fits of the classical evidence, which resolve a fraction of a pixel. Figures: docs/evidence.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.models.segmentor import Prediction, expected_error_share, load_segmentor, predict
from licag3d.structures import VesselEvidence, View


@dataclass(frozen=True)
class LearnedRules:
    """Thresholds, chosen on phantom validation frames (docs/evidence.md).

    Args:
        low, high: hysteresis on the vessel probability.
        min_length_mm: shorter free pieces of centreline are dropped; ``far_length_mm`` holds farther than ``near_mm``
            from the largest piece.
        min_tree_mm: centreline below which the frame has no vessels at all.
        min_chance: mean probability along the centreline that a free piece needs.
        outline: of the mask: ``network``, the fitted ``profiles``, or a ``blend``; the radius is always fitted.
    """

    low: float = 0.5
    high: float = 0.8
    min_length_mm: float = 5.0
    far_length_mm: float = 10.0
    near_mm: float = 12.0
    min_tree_mm: float = 20.0
    min_chance: float = 0.6
    outline: str = "network"


def learned_evidence(
    view: View, *, weights: str = "segmentor", device="cpu", rules: LearnedRules | None = None
) -> VesselEvidence:
    """Vessels of one frame; the fields mean what they mean for the classical evidence.

    Args:
        weights: embedded weights or a ``.safetensors`` file of ``licag3d.train``. device: torch device.

    Raises:
        InputError: the weights are missing, damaged or of another version.
    """
    from licag3d.models.vessel_evidence import blank_evidence, inner_field

    rules = rules or LearnedRules()
    inside = inner_field(view.valid)
    model = load_segmentor(weights, str(device))
    if inside.sum() < 0.05 * inside.size or float(np.ptp(view.image[inside])) < 1e-4:
        return blank_evidence(view.image.shape)
    found = predict(model, view.image, view.valid, view.camera.mm_per_pixel)
    return evidence_from_prediction(view, found, rules)


def evidence_from_prediction(view: View, found: Prediction, rules: LearnedRules) -> VesselEvidence:
    """Evidence from what the network says: thresholds, free pieces, sub-pixel centre and width, scale of p."""
    from licag3d.models.vessel_evidence import blank_evidence, draw_lines, edge_chance, inner_field

    mm = view.camera.mm_per_pixel
    inside = inner_field(view.valid)
    mask = vessel_mask(found.vessel * inside, mm, rules)
    if not mask.any():
        return blank_evidence(view.image.shape)
    lines = _lines(view, found, mask, inside, mm)
    if not lines:
        return blank_evidence(view.image.shape)
    distance, drawn_radius, _ = draw_lines(lines, mask.shape)
    outline, radius = _outline(found, mask, distance, drawn_radius, rules.outline)
    outline &= view.valid
    p = np.where(outline, found.line_integral, 0)
    p = p * gain_of_display(view, p, found, outline, radius, mm)
    near = np.clip(1.5 - distance, 0, 1)
    probability = np.maximum(np.where(outline, np.maximum(found.vessel, 0.5), 0), edge_chance(distance) * found.vessel)
    confidence = expected_error_share(found.line_integral, found.spread) * outline * inside
    return VesselEvidence(
        probability=(probability * view.valid).astype(np.float32),
        mask=outline,
        line_integral=np.where(view.valid, p * np.clip(near + outline, 0, 1), 0).astype(np.float32),
        confidence=confidence.astype(np.float32),
        radius_px=np.where(outline, radius, 0).astype(np.float32),
    )


def vessel_mask(chance: np.ndarray, mm_per_pixel: float, rules: LearnedRules) -> np.ndarray:
    """Hysteresis on the probability, without free pieces that are short, faint or far from the tree."""
    from scipy import ndimage
    from skimage.filters import apply_hysteresis_threshold
    from skimage.morphology import skeletonize

    mask = apply_hysteresis_threshold(chance, rules.low, rules.high)
    mask = ndimage.binary_opening(mask, iterations=1) | (mask & (chance > 0.5))
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return mask
    thin = skeletonize(mask)
    on = np.where(thin, labels, 0)
    index = np.arange(count + 1)
    length_mm = 1.1 * np.bincount(on.ravel(), minlength=count + 1) * mm_per_pixel
    length_mm[0] = 0
    mean = np.nan_to_num(ndimage.mean(chance, on, index))
    if length_mm.max() < rules.min_tree_mm:
        return np.zeros_like(mask)
    main = length_mm > 0.4 * length_mm.max()
    main[0] = False
    away = ndimage.minimum(ndimage.distance_transform_edt(~main[labels]) * mm_per_pixel, labels, index)
    need = np.where(away < rules.near_mm, rules.min_length_mm, rules.far_length_mm)
    good = (length_mm >= need) & (mean >= rules.min_chance)
    good[0] = False
    return mask & good[labels]


def _lines(view: View, found: Prediction, mask: np.ndarray, inside: np.ndarray, mm: float):
    """Centreline of the mask as chains whose centre and width are fitted on the image."""
    from scipy import ndimage
    from skimage.morphology import skeletonize

    from licag3d.models.vessel_evidence import BLUR_MM, attenuation_of, measure_lines
    from licag3d.models.vesselness import LineResponse

    thin = skeletonize(mask)
    distance = np.maximum(ndimage.distance_transform_edt(mask) - 0.5, 0.6)
    nearest = ndimage.distance_transform_edt(~thin, return_distances=False, return_indices=True)
    radius = distance[tuple(nearest)].astype(np.float32)
    score = (12 * found.vessel).astype(np.float32)
    zero = np.zeros_like(score)
    response = LineResponse(score, found.line_integral, radius, zero, zero)
    image = attenuation_of(view, inside)
    return measure_lines(image, thin, response, blur_px=max(0.6, BLUR_MM / mm))


def _outline(found: Prediction, mask: np.ndarray, distance: np.ndarray, drawn_radius: np.ndarray, kind: str):
    """Mask and radius map from the network's outline, the fitted discs, or both."""
    from scipy import ndimage

    from licag3d.models.vessel_evidence import OUTLINE_PX

    discs = distance < OUTLINE_PX
    if kind == "profiles":
        return discs, drawn_radius
    wide = mask & (found.vessel > 0.5)
    if kind == "network":
        # Beyond the reach of the fits: the distance to the outline, half a pixel beyond it.
        own = np.maximum(ndimage.distance_transform_edt(wide) - 0.5, 0.5)
        return wide, np.where(drawn_radius > 0, drawn_radius, own)
    # Signed distance of the network's outline and of the discs: their mean is steadier than either.
    signed = ndimage.distance_transform_edt(~wide) - ndimage.distance_transform_edt(wide)
    both = 0.5 * (np.clip(signed, -6, 6) + np.clip(distance - OUTLINE_PX, -6, 6)) < 0
    return both & (wide | discs), drawn_radius


def gain_of_display(view: View, p: np.ndarray, found: Prediction, mask: np.ndarray, radius_px: np.ndarray, mm) -> float:
    """Factor that brings the network's line integral to the scale of the classical evidence.

    Where the intensity is known (``linear``, ``log``) the rise of the attenuation image over its background fixes it;
    for displays the median attenuation of the thickest third is set to ``REFERENCE_ATTENUATION_PER_MM``.
    """
    from scipy import ndimage

    from licag3d.models.background import background_under
    from licag3d.models.vessel_evidence import REFERENCE_ATTENUATION_PER_MM, attenuation_of, inner_field

    if view.intensity in ("linear", "log"):
        inside = inner_field(view.valid)
        image = attenuation_of(view, inside)
        rise = image - background_under(image, ndimage.binary_dilation(mask, iterations=2), inside)
        sure = mask & inside & (p > 0.3 * np.percentile(p[mask], 95))
        total = float((p[sure] ** 2).sum())
        return float((p[sure] * rise[sure]).sum()) / total if total > 1e-9 else 1.0
    from skimage.morphology import skeletonize

    middle = skeletonize(mask)
    radius = radius_px[middle]
    keep = radius > 0.5
    if keep.sum() < 10:
        return 1.0
    thick = keep & (radius >= np.quantile(radius[keep], 0.67))
    ratio = float(np.median(p[middle][thick] / (2 * radius[thick] * mm)))
    return REFERENCE_ATTENUATION_PER_MM / ratio if ratio > 1e-6 else 1.0
