# SPDX-License-Identifier: Apache-2.0
"""Vessel evidence of one frame by the learned segmentor: what may be a vessel, what is taken for one, how thick it is.

The network tells vessels from catheters, ribs and noise; the width follows from the contrast it sees on their axis
(:mod:`licag3d.models.calibre`). Figures: docs/evidence.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from licag3d.errors import InputError
from licag3d.models.segmentor import Prediction, expected_error_share, load_segmentor, predict
from licag3d.structures import VesselEvidence, View

#: Probability from which a pixel off the mask keeps its line integral and radius: it may be a vessel.
MAYBE = 0.1


@dataclass(frozen=True)
class LearnedRules:
    """Thresholds, chosen on phantom validation frames (docs/evidence.md).

    Args:
        low, high: hysteresis on the vessel probability.
        min_length_mm: shorter free pieces of centreline are dropped; ``far_length_mm`` holds farther than ``near_mm``
            from the largest piece.
        min_tree_mm: centreline below which the frame has no vessels at all.
        min_chance: mean probability along the centreline that a free piece needs.
        max_device: mean probability of a device along the centreline that a free piece may have; the tree is exempt.
        thin_mm, thin_chance: an end of the tree with a smaller median radius and a smaller mean probability is dropped:
            of such twigs the tree knows nothing.
        hole_mm2: holes of the mask up to this area are filled, for each would be a loop of the skeleton.
    """

    low: float = 0.5
    high: float = 0.8
    min_length_mm: float = 5.0
    far_length_mm: float = 10.0
    near_mm: float = 12.0
    min_tree_mm: float = 20.0
    min_chance: float = 0.6
    max_device: float = 0.5
    thin_mm: float = 0.35
    thin_chance: float = 0.9
    hole_mm2: float = 0.5


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
    found = predict(model, view.image, view.valid, view.camera.mm_per_pixel, mirror=True)
    return evidence_from_prediction(view, found, rules)


def guided_evidence(view: View, expected_px: np.ndarray, *, weights: str, device="cpu") -> VesselEvidence:
    """Vessels of one frame by the guided network, which is told where vessels are expected.

    Args:
        expected_px: ``(n, 2)`` (col, row) along the expected centrelines; what lies outside the frame is left out.
        weights, device: as for :func:`learned_evidence`; the network must be a guided one.

    Raises:
        InputError: the weights are missing, damaged, of another version, or not of a guided network.
    """
    from licag3d.models.vessel_evidence import blank_evidence, inner_field

    model = load_segmentor(weights, str(device))
    if not model.config.guided:
        raise InputError(f"{weights}: is not a guided segmentor; train one with --guided")
    inside = inner_field(view.valid)
    if inside.sum() < 0.05 * inside.size or float(np.ptp(view.image[inside])) < 1e-4:
        return blank_evidence(view.image.shape)
    found = predict(
        model, view.image, view.valid, view.camera.mm_per_pixel, mirror=True, expected_px=np.asarray(expected_px, float)
    )
    return evidence_from_prediction(view, found, LearnedRules())


def evidence_from_prediction(view: View, found: Prediction, rules: LearnedRules) -> VesselEvidence:
    """Evidence from what the network says: thresholds, free pieces, width, scale of p.

    Off the mask the probability is the network's own; where it is at least :data:`MAYBE`, p and radius are given too.
    """
    from scipy import ndimage

    from licag3d.models.calibre import radius_from_contrast
    from licag3d.models.vessel_evidence import blank_evidence, inner_field

    mm = view.camera.mm_per_pixel
    inside = inner_field(view.valid)
    chance = found.vessel * inside
    mask = vessel_mask(chance, mm, rules, found.device)
    if not mask.any():
        return blank_evidence(view.image.shape)
    radius, per_px = radius_from_contrast(mask, found.line_integral)
    mask = without_thin_ends(mask, radius * mm, chance, rules)
    radius = np.where(mask, radius, 0)
    maybe = mask | (chance >= MAYBE)
    p = np.where(maybe, found.line_integral, 0)
    if per_px > 0:
        # Of a vessel off the mask the axis is not known: the most contrast nearby is that of the axis.
        axis = ndimage.maximum_filter(p, 5)
        radius = np.where(mask, radius, np.where(maybe, axis / (2 * per_px), 0))
    confidence = expected_error_share(found.line_integral, found.spread) * maybe * inside
    return VesselEvidence(
        probability=np.where(mask, np.maximum(chance, 0.5), chance).astype(np.float32),
        mask=mask,
        line_integral=(p * gain_of_display(view, p, mask, per_px, mm)).astype(np.float32),
        confidence=confidence.astype(np.float32),
        radius_px=radius.astype(np.float32),
    )


def vessel_mask(
    chance: np.ndarray, mm_per_pixel: float, rules: LearnedRules, device: np.ndarray | None = None
) -> np.ndarray:
    """Hysteresis on the probability, without free pieces that are short, faint or far from the tree, or that are rather
    a device (leads, coils, wires) by their probability ``device``.

    Piece by piece, because pixel by pixel every crossing of a vessel and a lead would be a gap; of a piece that is a
    device the vessels that hang on it stay.
    """
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
    if device is not None:
        like = np.nan_to_num(ndimage.mean(device, on, index))
        tree = int((length_mm * (1 - like)).argmax())
        device_like = (like > rules.max_device) & (index != tree)
    else:
        device_like = np.zeros(count + 1, bool)
    good[0] = False
    kept = mask & (good & ~device_like)[labels]
    if (good & device_like).any():
        kept |= _vessels_on_devices(mask & (good & device_like)[labels], device, mm_per_pixel, rules)
    return _fill_holes(kept, rules.hole_mm2 / mm_per_pixel**2)


def _vessels_on_devices(mask: np.ndarray, device: np.ndarray, mm_per_pixel: float, rules: LearnedRules) -> np.ndarray:
    """Of pieces that are mostly devices, the stretches between junctions that are none."""

    def drop(row: np.ndarray, col: np.ndarray, free: bool) -> bool:
        return len(row) * mm_per_pixel < rules.min_length_mm or device[row, col].mean() > rules.max_device

    return _without(mask, drop)


def without_thin_ends(mask: np.ndarray, radius_mm: np.ndarray, chance: np.ndarray, rules: LearnedRules) -> np.ndarray:
    """The mask without pieces of centreline that end freely, are thin, and are not sure (``thin_mm``, ``thin_chance``).

    Args:
        mask, radius_mm, chance: ``(rows, cols)``; bool, radius of the nearest centreline, probability.
    """

    def drop(row: np.ndarray, col: np.ndarray, free: bool) -> bool:
        thin = np.median(radius_mm[row, col]) < rules.thin_mm
        return bool(free and thin and chance[row, col].mean() < rules.thin_chance)

    return _without(mask, drop)


def _without(mask: np.ndarray, drop: Callable[[np.ndarray, np.ndarray, bool], bool]) -> np.ndarray:
    """The mask without the stretches of centreline that ``drop`` (rows, columns, whether it ends freely) names."""
    from scipy import ndimage

    from licag3d.models import skeleton_graph

    graph = skeleton_graph.build(mask)
    graph.join_through()
    meet = graph.ends_at()
    owner = np.zeros(mask.shape, np.int32)
    out = []
    limit = np.array(mask.shape) - 1
    for piece, (a, b, _) in sorted(graph.pieces.items(), key=lambda item: -graph.length(item[0])):
        row, col = np.clip(np.rint(graph.line(piece)).astype(int), 0, limit).T
        if drop(row, col, min(len(meet[a]), len(meet[b])) == 1):
            out.append(piece)
            own = owner[row, col] == 0  # the junction stays with the vessel that goes on
            row, col = row[own], col[own]
        owner[row, col] = piece
    if not out:
        return mask
    nearest = ndimage.distance_transform_edt(owner == 0, return_distances=False, return_indices=True)
    return mask & ~np.isin(owner[tuple(nearest)], out)


def _fill_holes(mask: np.ndarray, area_px: float) -> np.ndarray:
    from scipy import ndimage

    holes, count = ndimage.label(~mask)
    small = np.bincount(holes.ravel(), minlength=count + 1) <= area_px
    small[0] = False
    return mask | small[holes]


def gain_of_display(view: View, p: np.ndarray, mask: np.ndarray, per_px: float, mm_per_pixel: float) -> float:
    """Factor that brings the network's line integral to the scale of the classical evidence.

    Where the intensity is known (``linear``, ``log``) the rise of the attenuation image over its background fixes it;
    for displays the attenuation of the vessels (``per_px``) is set to ``REFERENCE_ATTENUATION_PER_MM``.
    """
    from scipy import ndimage

    from licag3d.models.background import background_under
    from licag3d.models.vessel_evidence import REFERENCE_ATTENUATION_PER_MM, attenuation_of, inner_field

    if view.intensity not in ("linear", "log"):
        return REFERENCE_ATTENUATION_PER_MM * mm_per_pixel / per_px if per_px > 0 else 1.0
    inside = inner_field(view.valid)
    image = attenuation_of(view, inside)
    rise = image - background_under(image, ndimage.binary_dilation(mask, iterations=2), inside)
    sure = mask & inside & (p > 0.3 * np.percentile(p[mask], 95))
    total = float((p[sure] ** 2).sum())
    return float((p[sure] * rise[sure]).sum()) / total if total > 1e-9 else 1.0
