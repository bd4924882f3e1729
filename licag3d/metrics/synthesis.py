# SPDX-License-Identifier: Apache-2.0
"""How true the vessels of a synthesised angiogram are: what was missed and what was made up, in millimetres.

Whole-image similarity says next to nothing here: a wrong tree in the right style costs a fraction of a decibel.
"""

from __future__ import annotations

import numpy as np

#: A centreline pixel within this distance of the other mask's centreline (or inside that mask) counts as matched.
TOLERANCE_MM = 1.0
#: Shortest stretch of centreline that counts as a branch, and the share of it that must be matched.
BRANCH_MM, BRANCH_SHARE = 5.0, 0.5


def vessel_scores(
    found: np.ndarray, truth: np.ndarray, mm_per_pixel: float, *, ignore: np.ndarray | None = None
) -> dict[str, float]:
    """Scores of a vessel mask against the exact one.

    Args:
        found, truth: ``(rows, cols)`` bool.
        mm_per_pixel: at the isocentre; lengths are of the projected centrelines at this scale.
        ignore: bool, pixels that are neither right nor wrong (twigs, barely filled vessels).

    Returns:
        ``dice``, ``cldice`` (Shit et al., CVPR 2021); ``missed_mm`` and ``hallucinated_mm``, the length of the true
        (found) centreline that the other mask does not hold within :data:`TOLERANCE_MM`; ``truth_mm``, the length of
        the true one.

    Example:
        >>> mask = np.zeros((40, 40), bool)
        >>> mask[18:22, 5:35] = True
        >>> scores = vessel_scores(np.zeros_like(mask), mask, 0.5)
        >>> scores["missed_mm"] == scores["truth_mm"], scores["hallucinated_mm"]
        (True, 0.0)
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    if ignore is not None:
        found = found & (~ignore | truth)
    both, total = int((found & truth).sum()), int(found.sum() + truth.sum())
    ours, theirs = skeletonize(found), skeletonize(truth)
    precision = float(truth[ours].mean()) if ours.any() else float(not truth.any())
    recall = float(found[theirs].mean()) if theirs.any() else float(not found.any())

    def beyond(line: np.ndarray, mask: np.ndarray) -> float:
        if not line.any():
            return 0.0
        if not mask.any():
            return line_length_px(line) * mm_per_pixel
        far = ndimage.distance_transform_edt(~mask) * mm_per_pixel > TOLERANCE_MM
        return line_length_px(line & far) * mm_per_pixel

    return {
        "dice": 2 * both / total if total else 1.0,
        "cldice": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "missed_mm": beyond(theirs, found),
        "hallucinated_mm": beyond(ours, truth),
        "truth_mm": line_length_px(theirs) * mm_per_pixel,
    }


def branch_scores(
    found: np.ndarray, truth: np.ndarray, labels: np.ndarray, mm_per_pixel: float, *, ignore: np.ndarray | None = None
) -> dict[str, float]:
    """Branches found and branches made up.

    A true branch counts from :data:`BRANCH_MM` of visible centreline and is found when :data:`BRANCH_SHARE` of it lies
    within :data:`TOLERANCE_MM` of the found mask. What was found is cut at its forks; a stretch of that length is right
    when the same share of it lies within the tolerance of the true vessels.

    Args:
        found, truth: ``(rows, cols)`` bool. labels: ``(rows, cols)`` the branch shown on ``truth`` (0: none).
        mm_per_pixel, ignore: as in :func:`vessel_scores`.

    Returns:
        ``branch_recall``, ``branch_precision`` and their harmonic mean ``branch_f1`` (0 if nothing was found).

    Example:
        >>> mask = np.zeros((40, 80), bool)
        >>> mask[10:14, 5:75] = mask[28:32, 5:75] = True
        >>> labels = np.where(np.arange(40)[:, None] < 20, 1, 2) * mask
        >>> upper = mask & (labels == 1)
        >>> {name: round(value, 2) for name, value in branch_scores(upper, mask, labels, 0.5).items()}
        {'branch_recall': 0.5, 'branch_precision': 1.0, 'branch_f1': 0.67}
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    if ignore is not None:
        found = found & (~ignore | truth)
    reach, least = TOLERANCE_MM / mm_per_pixel, BRANCH_MM / mm_per_pixel

    def near(mask: np.ndarray) -> np.ndarray:
        return ndimage.distance_transform_edt(~mask) <= reach if mask.any() else mask

    def share_matched(stretches: np.ndarray, count: int, matched: np.ndarray) -> float:
        index = range(1, count + 1)
        sizes = ndimage.sum_labels(np.ones(stretches.shape), stretches, index)
        hits = ndimage.sum_labels(matched, stretches, index)
        counted = np.asarray(sizes) >= least
        return (
            float((np.asarray(hits)[counted] >= BRANCH_SHARE * np.asarray(sizes)[counted]).mean())
            if counted.any()
            else 0.0
        )

    line = skeletonize(truth) * labels.astype(int)
    recall = share_matched(line, int(line.max()), near(found))
    own = skeletonize(found)
    neighbours = ndimage.convolve(own.astype(int), np.ones((3, 3), int), mode="constant") - own
    pieces, count = ndimage.label(own & (neighbours < 3), np.ones((3, 3)))
    precision = share_matched(pieces, count, near(truth))
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    return {"branch_recall": recall, "branch_precision": precision, "branch_f1": f1}


def line_length_px(line: np.ndarray) -> float:
    """Length of a one-pixel line ``(rows, cols)`` bool in pixels: steps along rows and columns count one, diagonal ones
    the root of two unless a straight step joins the same pixels; a pixel alone counts one.

    Example:
        >>> line_length_px(np.eye(4, dtype=bool)) == 3 * 2**0.5
        True
    """
    line = np.asarray(line, bool)
    across, down = line[:, 1:] & line[:, :-1], line[1:] & line[:-1]
    corner = [line[:-1, 1:] | line[1:, :-1], line[:-1, :-1] | line[1:, 1:]]
    falling = line[1:, 1:] & line[:-1, :-1] & ~corner[0]
    rising = line[1:, :-1] & line[:-1, 1:] & ~corner[1]
    around = np.pad(line, 1).astype(np.uint8)
    count = sum(np.roll(around, (r, c), (0, 1)) for r in (-1, 0, 1) for c in (-1, 0, 1))[1:-1, 1:-1]
    alone = line & (count == 1)
    diagonal = float(falling.sum() + rising.sum()) * 2**0.5
    return float(across.sum() + down.sum() + alone.sum()) + diagonal


def change_outside(made: np.ndarray, source: np.ndarray, vessels: np.ndarray, *, margin_px: int = 4) -> float:
    """Mean absolute change of grey values outside the vessels (and a margin), of images in 0..1 ``(rows, cols)``."""
    from scipy import ndimage

    outside = ~ndimage.binary_dilation(vessels, iterations=margin_px) if vessels.any() else np.ones(made.shape, bool)
    return float(np.abs(made - source)[outside].mean()) if outside.any() else 0.0


def independent_mask(image: np.ndarray, mm_per_pixel: float, valid: np.ndarray | None = None) -> np.ndarray:
    """Vessels ``(rows, cols)`` bool of an angiogram in 0..1 by the classical evidence, which no training ever saw.

    Args:
        mm_per_pixel: at the isocentre. valid: the X-ray field; everything without it.
    """
    from licag3d.models.vessel_evidence import classical_evidence

    return classical_evidence(view_of(image, mm_per_pixel, valid)).mask


def view_of(image: np.ndarray, mm_per_pixel: float, valid: np.ndarray | None = None):
    """A frame as a :class:`licag3d.structures.View` whose camera has this pixel size at the isocentre, and nothing else
    that means anything."""
    from licag3d.geometry import Camera
    from licag3d.structures import View

    rows, cols = image.shape
    camera = Camera(0.0, 0.0, 1000.0, 750.0, mm_per_pixel / 0.75, mm_per_pixel / 0.75, rows, cols)
    inside = np.ones(image.shape, bool) if valid is None else valid
    return View(image=np.asarray(image, np.float32), camera=camera, valid=inside)
