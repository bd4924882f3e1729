# SPDX-License-Identifier: Apache-2.0
"""Comparing projections of vessels in one view: overlap of silhouettes, SSIM, PSNR; definitions in docs/metrics.md.

A projection is the path length through the lumen in mm, so that contrast and tube voltage play no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from licag3d.geometry import Camera
from licag3d.metrics.centerline import CenterlinePoints, harmonic
from licag3d.structures import VesselTree

#: Images larger than this are compared at this size, px.
MAX_SIZE_PX = 512
#: How far around the true vessels the vessel region reaches, mm at the isocentre.
REGION_MM = 5.0
#: PSNR of equal images, dB.
MAX_PSNR_DB = 100.0
_SIGMA_PX, _TRUNCATE, _K1, _K2 = 1.5, 3.5, 0.01, 0.03


def comparison_camera(camera: Camera) -> Camera:
    """The camera, resized so that its larger side has at most 512 pixels."""
    scale = MAX_SIZE_PX / max(camera.rows, camera.cols)
    if scale >= 1:
        return camera
    return camera.resized(max(1, round(camera.rows * scale)), max(1, round(camera.cols * scale)))


def path_mm(tree: VesselTree, camera: Camera) -> np.ndarray:
    """Path length through the lumen, ``(rows, cols)`` float32, mm (exact, ``licag3d.ops.project_tubes``)."""
    import torch

    from licag3d.geometry import Cameras
    from licag3d.ops import project_tubes
    from licag3d.vessels.tree import flatten_tree

    flat = flatten_tree(tree)
    if len(flat.segments) == 0:
        return np.zeros((camera.rows, camera.cols), np.float32)
    path = project_tubes(
        torch.from_numpy(flat.points_lps_mm),
        torch.from_numpy(flat.radius_mm),
        torch.from_numpy(flat.segments),
        Cameras.stack([camera]),
    )
    return path[0].numpy()


def ssim_map(image: np.ndarray, truth: np.ndarray, data_range: float) -> np.ndarray:
    """Structural similarity per pixel, same shape: Gaussian window of 1.5 px (radius 5), K1 = 0.01, K2 = 0.03, biased
    covariances, borders reflected (Z. Wang et al., IEEE Trans. Image Process. 13 (2004) 600-612).

    Args:
        data_range: span of the values, positive.
    """
    return Reference(truth, data_range).ssim_map(image)


class Reference:
    """The true image of a comparison, with what SSIM needs of it computed once.

    Only the box that holds everything but zeros (and the reach of the window) is filtered: elsewhere both images are
    zero and SSIM is 1.
    """

    def __init__(self, truth: np.ndarray, data_range: float) -> None:
        self.truth, self.data_range = truth, data_range
        self._moments: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def ssim_map(self, image: np.ndarray) -> np.ndarray:
        """SSIM of an image ``(rows, cols)`` against the truth, per pixel."""
        box = _box((self.truth != 0) | (image != 0))
        result = np.ones(self.truth.shape)
        if box is None:
            return result
        b = self.truth[box].astype(np.float64)
        key = tuple((axis.start, axis.stop) for axis in box)
        if key not in self._moments:
            mean_b = _blurred(b)
            self._moments[key] = mean_b, _blurred(b * b) - mean_b**2
        mean_b, var_b = self._moments[key]
        c1, c2 = (_K1 * self.data_range) ** 2, (_K2 * self.data_range) ** 2
        a = image[box].astype(np.float64)
        if a.any():
            mean_a = _blurred(a)
            var_a, covariance = _blurred(a * a) - mean_a**2, _blurred(a * b) - mean_a * mean_b
        else:
            mean_a = var_a = covariance = np.zeros(1)
        result[box] = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
            (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
        )
        return result


def _blurred(x: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, _SIGMA_PX, truncate=_TRUNCATE)


def _box(mask: np.ndarray) -> tuple[slice, slice] | None:
    """The rows and columns that hold a mask, and 12 px around it: twice the reach of the window, so that reflection at
    the box's own border only mirrors zeros."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return None
    return slice(max(0, int(rows[0]) - 12), int(rows[-1]) + 13), slice(max(0, int(cols[0]) - 12), int(cols[-1]) + 13)


def psnr_db(image: np.ndarray, truth: np.ndarray, data_range: float, region: np.ndarray | None = None) -> float:
    """``10 log10(data_range^2 / mean squared error)``, at most 100 dB; over a bool ``region`` where given."""
    error = (image.astype(np.float64) - truth) ** 2
    mean = float(error.mean() if region is None else error[region].mean())
    return MAX_PSNR_DB if mean <= 0 else min(MAX_PSNR_DB, float(10 * np.log10(data_range**2 / mean)))


def vessel_region(mask: np.ndarray, mm_per_pixel: float) -> np.ndarray:
    """Pixels within 5 mm (at the isocentre) of a mask, bool ``(rows, cols)``."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return np.zeros(mask.shape, bool)
    return distance_transform_edt(~mask) <= REGION_MM / mm_per_pixel


def image_scores(image: np.ndarray, truth: np.ndarray | Reference, region: np.ndarray) -> dict[str, float]:
    """``ssim``, ``ssim_vessel``, ``psnr_db`` and ``psnr_vessel_db`` of projections ``(rows, cols)``; the data range is
    the largest value of ``truth``. NaN where the truth shows nothing.

    Vessels fill a few percent of a frame, and where both images are zero SSIM is 1: the whole-image value is above 0.8
    for an empty image. Print the score of an empty image beside it, and read the vessel region.
    """
    reference = truth if isinstance(truth, Reference) else Reference(truth, float(truth.max()))
    truth, span = reference.truth, reference.data_range
    if span <= 0 or not region.any():
        return dict.fromkeys(("ssim", "ssim_vessel", "psnr_db", "psnr_vessel_db"), float("nan"))
    similarity = reference.ssim_map(image)
    return {
        "ssim": float(similarity.mean()),
        "ssim_vessel": float(similarity[region].mean()),
        "psnr_db": psnr_db(image, truth, span),
        "psnr_vessel_db": psnr_db(image, truth, span, region),
    }


def silhouette_scores(
    mask: np.ndarray, pixels: np.ndarray, truth_mask: np.ndarray, truth_pixels: np.ndarray
) -> dict[str, float]:
    """``dice`` and ``cldice`` of two silhouettes ``(rows, cols)`` bool.

    Args:
        pixels, truth_pixels: projected centreline points ``(n, 2)`` as (col, row), equal lengths; those outside the
            image are left out. clDice is the harmonic mean of the share of either that lies in the other's silhouette.

    Returns:
        NaN when the truth shows nothing.
    """
    total = int(mask.sum() + truth_mask.sum())
    if not truth_mask.any():
        return {"dice": float("nan"), "cldice": float("nan")}
    inside, truth_inside = _hits(truth_mask, pixels), _hits(mask, truth_pixels)
    return {"dice": 2 * int((mask & truth_mask).sum()) / total, "cldice": harmonic(inside, truth_inside)}


def _hits(mask: np.ndarray, pixels: np.ndarray) -> float:
    index = np.floor(pixels + 0.5)
    index = index[np.all((index >= 0) & (index < mask.shape[::-1]), axis=1)].astype(np.int64)
    return float(mask[index[:, 1], index[:, 0]].mean()) if len(index) else 0.0


def view_scores(
    pred_tree: VesselTree,
    pred: CenterlinePoints,
    pred_camera: Camera,
    truth_view: TruthView,
) -> dict[str, float]:
    """All scores of :func:`image_scores` and :func:`silhouette_scores` of a tree in one view.

    Args:
        pred_camera: the camera that projects the prediction (resized to the size of the truth's image).
    """
    camera = pred_camera.resized(truth_view.camera.rows, truth_view.camera.cols)
    path = path_mm(pred_tree, camera)
    pixels = camera.project(pred.points_lps_mm)[0] if len(pred.points_lps_mm) else np.zeros((0, 2))
    return silhouette_scores(path > 0, pixels, truth_view.path_mm > 0, truth_view.pixels) | image_scores(
        path, truth_view.reference, truth_view.region
    )


class TruthView:
    """What the truth looks like in one view: ``camera`` (at most 512 px), ``path_mm``, ``region``, ``pixels``."""

    def __init__(self, tree: VesselTree, points: CenterlinePoints, camera: Camera) -> None:
        self.camera = comparison_camera(camera)
        self.path_mm = path_mm(tree, self.camera)
        self.reference = Reference(self.path_mm, float(self.path_mm.max()))
        self.region = vessel_region(self.path_mm > 0, self.camera.mm_per_pixel)
        self.pixels = self.camera.project(points.points_lps_mm)[0]

    def empty_scores(self) -> dict[str, float]:
        """SSIM of an image without any vessel: what a score must beat."""
        scores = image_scores(np.zeros_like(self.path_mm), self.reference, self.region)
        return {name: scores[name] for name in ("ssim", "ssim_vessel")}


def mean_views(views: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean by name over views, NaN left out."""
    names = list(dict.fromkeys(name for view in views for name in view))
    result = {}
    for name in names:
        values = [view[name] for view in views if not np.isnan(view[name])]
        result[name] = float(np.mean(values)) if values else float("nan")
    return result
