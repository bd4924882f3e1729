# SPDX-License-Identifier: Apache-2.0
"""The coronary vessels of a CTA: from labels, or by a tube filter where there are none (docs/metrics.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.metrics.cta_read import CtVolume
from licag3d.structures import VesselTree
from licag3d.vessels.skeleton import skeleton_tree
from licag3d.vessels.volume import MAX_VOXELS, Volume

#: Centrelines are traced on a grid of this spacing, mm.
GRID_MM = 0.5
#: Below this the lumen hardly differs from its surroundings, and the labels alone are projected, HU.
LEAST_CONTRAST_HU = 50.0
#: More labelled volume than this is no coronary tree (aorta or heart chambers among the labels), mm3.
MOST_VESSEL_MM3 = 60_000.0
#: The tube filter: finest grid, scales, and limits of brightness and answer.
FILTER_MM, FILTER_SIGMA_MM, FILTER_VOXELS = 0.8, (0.8, 1.2, 1.8), 30_000_000
FILTER_LEAST_HU, FILTER_LEAST_ANSWER_HU, FILTER_LEAST_MM = 130.0, 60.0, 15.0


@dataclass(frozen=True)
class CtaVessels:
    """Vessels of a CTA.

    ``share``: 0..1 per voxel, how much of it is contrast-filled blood; its line integral is a path length in mm.
    ``tree``: centrelines in the LPS of the CT. ``lumen_hu``, ``background_hu``: medians inside, and 1.5 to 4 mm off.
    ``labelled``: whether the vessels come from labels. ``notes``: what was assumed.
    """

    share: CtVolume
    tree: VesselTree
    lumen_hu: float
    background_hu: float
    labelled: bool
    notes: tuple[str, ...] = ()


def vessels_from_labels(cta: CtVolume, labels: CtVolume) -> CtaVessels:
    """Labels times contrast: ``(HU - background) / (lumen - background)``, within 0..1 and one voxel of the labels.

    The labels may lie on another grid than the CTA: the CTA is read at their voxels.

    Raises:
        InputError: most labels lie outside the CTA, or hold far more than coronary arteries.
    """
    mm3 = float(labels.values.sum()) * float(np.prod(labels.spacing_mm))
    if mm3 > MOST_VESSEL_MM3:
        raise InputError(
            f"the labels hold {mm3 / 1000:.0f} ml, at most {MOST_VESSEL_MM3 / 1000:.0f} ml can be coronary arteries; "
            "leave the aorta and the heart chambers out"
        )
    crop = _around(labels, 5.0)
    hu = _read_at(cta, crop)
    mask = crop.values
    outside = float(np.isnan(hu[mask]).mean())
    if outside > 0.5:
        raise InputError(
            f"{100 * outside:.0f} % of the labelled voxels lie outside the CTA; give labels of this very scan"
        )
    tree = _traced(crop.values, crop)
    share, lumen, background, notes = _share(np.nan_to_num(hu, nan=-1000.0), mask, crop.spacing_mm)
    if outside > 0:
        notes += (f"{100 * outside:.1f} % of the labelled voxels lie outside the CTA",)
    return CtaVessels(replace(crop, values=share), tree, lumen, background, True, notes)


def vessels_by_filter(cta: CtVolume) -> CtaVessels:
    """Bright tubes of 1 to 5 mm in a CTA: everything of that shape, coronary or not.

    The second derivatives of the smoothed volume decide, at three scales: along a bright tube two eigenvalues are
    strongly negative and of similar size, the third is near zero (Y. Sato et al., Med. Image Anal. 2 (1998) 143-168).

    Raises:
        InputError: no bright tube of 15 mm.
    """
    from scipy import ndimage

    # Thick slices hold nothing finer than about two thirds of their voxels.
    grid, step = _isotropic(cta, max(FILTER_MM, min(cta.spacing_mm) / 1.5), FILTER_VOXELS)
    candidates = np.argwhere(grid > FILTER_LEAST_HU)
    inner = np.all((candidates > 1) & (candidates < np.array(grid.shape) - 2), axis=1)
    candidates = candidates[inner]
    answer = np.zeros(len(candidates), np.float32)
    for sigma_mm in FILTER_SIGMA_MM:
        smooth = ndimage.gaussian_filter(grid, sigma_mm / step, truncate=3)
        answer = np.maximum(answer, _tube_answer(smooth, candidates) * (sigma_mm / step) ** 2)
    mask = np.zeros(grid.shape, bool)
    mask[tuple(candidates[answer > FILTER_LEAST_ANSWER_HU].T)] = True
    label, _ = ndimage.label(mask, np.ones((3, 3, 3), bool))
    for piece, box in enumerate(ndimage.find_objects(label)):
        length = step * max(s.stop - s.start for s in box)
        if length < FILTER_LEAST_MM:
            mask[box][label[box] == piece + 1] = False
    if not mask.any():
        raise InputError(
            f"no contrast-filled vessel of {FILTER_LEAST_MM:g} mm was found in the CTA; give its coronary labels with "
            "--cta-labels"
        )
    place = CtVolume(mask, (step, step, step), cta.origin_lps_mm, cta.direction)
    share, lumen, background, notes = _share(grid, mask, place.spacing_mm)
    tree = _moved(skeleton_tree(Volume(mask, (0, 0, 0), step), min_branch_mm=5.0)[0], place)
    notes += ("no labels were given: vessels are what a tube filter finds, the coronary arteries among much else",)
    return CtaVessels(replace(place, values=share), tree, lumen, background, False, notes)


def near(vessels: CtaVessels, points_lps_mm: np.ndarray, reach_mm: float) -> CtaVessels:
    """Only what lies within ``reach_mm`` of some points (LPS of the CT)."""
    from scipy.spatial import cKDTree

    index = np.argwhere(vessels.share.values > 0)
    place = vessels.share.to_lps(index[:, ::-1] * np.array(vessels.share.spacing_mm))
    far = ~np.isfinite(cKDTree(points_lps_mm).query(place, distance_upper_bound=reach_mm)[0])
    values = vessels.share.values.copy()
    values[tuple(index[far].T)] = 0
    return replace(vessels, share=replace(vessels.share, values=values))


def _around(labels: CtVolume, margin_mm: float) -> CtVolume:
    """The box of the labels with a margin."""
    low, high = [], []
    for axis in range(3):
        used = np.flatnonzero(labels.values.any(tuple(k for k in range(3) if k != axis)))
        pad = int(np.ceil(margin_mm / labels.spacing_mm[2 - axis]))
        low.append(max(0, int(used[0]) - pad))
        high.append(min(labels.values.shape[axis], int(used[-1]) + 1 + pad))
    return labels.cropped(low, high)


def _read_at(cta: CtVolume, grid: CtVolume) -> np.ndarray:
    """HU at the voxel centres of another grid, NaN outside the CTA; slice by slice, to spare memory."""
    depth, rows, cols = grid.values.shape
    y, x = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    out = np.empty(grid.values.shape, np.float32)
    for z in range(depth):
        local = np.stack((x, y, np.full_like(x, z)), -1) * np.array(grid.spacing_mm)
        out[z] = cta.sampled(grid.to_lps(local), np.nan)
    return out


def _share(
    hu: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, float, float, tuple[str, ...]]:
    from scipy import ndimage

    away = ndimage.distance_transform_edt(~mask, sampling=spacing_mm[::-1])
    shell = (away >= 1.5) & (away <= 4.0)
    lumen = float(np.median(hu[mask]))
    background = float(np.median(hu[shell])) if shell.any() else 0.0
    if lumen - background < LEAST_CONTRAST_HU:
        note = (
            f"the labelled vessels have {lumen:.0f} HU, their surroundings {background:.0f} HU: too little contrast, "
            "so the labels alone are projected"
        )
        return mask.astype(np.float32), lumen, background, (note,)
    wide = ndimage.binary_dilation(mask)
    share = np.where(wide, np.clip((hu - background) / (lumen - background), 0, 1), 0)
    return share.astype(np.float32), lumen, background, ()


def _traced(mask: np.ndarray, place: CtVolume) -> VesselTree:
    """Centrelines of a mask on a finer isotropic grid."""
    values, step = _isotropic(replace(place, values=mask.astype(np.float32)), GRID_MM, MAX_VOXELS // 8)
    tree, _ = skeleton_tree(Volume(values, (0, 0, 0), step), min_branch_mm=4.0, min_component_mm3=10.0)
    return _moved(tree, place)


def _isotropic(volume: CtVolume, spacing_mm: float, most_voxels: int) -> tuple[np.ndarray, float]:
    """Linear resampling along the volume's own axes, with a spacing that keeps below ``most_voxels``."""
    from scipy import ndimage

    spacing = np.array(volume.spacing_mm[::-1])
    extent = (np.array(volume.values.shape) - 1) * spacing
    step = max(spacing_mm, float((np.prod(extent + spacing_mm) / most_voxels) ** (1 / 3)))
    shape = tuple(int(n) for n in np.floor(extent / step + 1e-6) + 1)
    return ndimage.affine_transform(volume.values, step / spacing, output_shape=shape, order=1, output=np.float32), step


def _moved(tree: VesselTree, place: CtVolume) -> VesselTree:
    """From the axes of a volume to the LPS of the CT."""
    return VesselTree(tuple(replace(b, points_lps_mm=place.to_lps(b.points_lps_mm)) for b in tree.branches))


def _tube_answer(smooth: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Strength of the weaker of both curvatures across a bright tube, HU per voxel squared; 0 where it is none."""
    answer = np.zeros(len(at), np.float32)
    unit = np.eye(3, dtype=int)

    def value(offset: np.ndarray, part: np.ndarray) -> np.ndarray:
        return smooth[tuple((part + offset).T)]

    for begin in range(0, len(at), 500_000):
        part = at[begin : begin + 500_000]
        hessian = np.empty((len(part), 3, 3), np.float32)
        for i in range(3):
            hessian[:, i, i] = value(unit[i], part) + value(-unit[i], part) - 2 * value(0 * unit[i], part)
            for j in range(i):
                plus, minus = unit[i] + unit[j], unit[i] - unit[j]
                mixed = value(plus, part) + value(-plus, part) - value(minus, part) - value(-minus, part)
                hessian[:, i, j] = hessian[:, j, i] = mixed / 4
        first, second, third = np.linalg.eigvalsh(hessian).T
        tube = (second < 0.4 * first) & (np.abs(third) < 0.5 * np.abs(second))
        answer[begin : begin + len(part)] = np.where(tube, -second, 0)
    return answer
