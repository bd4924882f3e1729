# SPDX-License-Identifier: Apache-2.0
"""A reconstruction against a CTA of the same patient; definitions in docs/metrics.md, "Against CTA"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.metrics.cameras import reprojection_mm
from licag3d.metrics.centerline import CenterlinePoints, tree_points
from licag3d.metrics.cta_read import CtVolume
from licag3d.metrics.cta_vessels import CtaVessels, near, vessels_by_filter, vessels_from_labels
from licag3d.metrics.images import (
    Reference,
    comparison_camera,
    image_scores,
    path_mm,
    silhouette_scores,
    vessel_region,
)
from licag3d.metrics.names import CTA_METRICS
from licag3d.metrics.rigid import Fit, Rigid, align_rigid, measure
from licag3d.structures import VesselTree, View

#: Attenuation of water at 70 keV, 1/mm (NIST XCOM: 0.193 cm2/g); HU become ``water * (1 + HU / 1000)``.
WATER_PER_MM = 0.0193
#: A ray with a shorter path through vessels shows none, mm.
SILHOUETTE_MM = 0.5
#: Without labels, only what lies within this of the reconstruction is taken for coronary, mm.
FILTER_REACH_MM = 8.0
#: A piece of the labels with less than this share of their length is not aligned on its own.
LEAST_PIECE = 0.15
#: An alignment that brings less of the reconstruction to within 2 mm of a vessel is doubtful.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class CtaView:
    """One view: its scores by name (without the number of the view), and what a picture of it needs."""

    scores: dict[str, float]
    camera: Camera
    cta_path_mm: np.ndarray
    pred_path_mm: np.ndarray
    frame: np.ndarray | None


@dataclass(frozen=True)
class CtaResult:
    """Scores by name, the alignment, the views, and notes."""

    scores: dict[str, float]
    fit: Fit
    views: tuple[CtaView, ...]
    vessels: CtaVessels
    notes: tuple[str, ...]

    def alignment(self) -> dict:
        """The alignment for metrics.json."""
        values = {key: value for key, value in asdict(self.fit).items() if key != "rigid"}
        return {
            "rotation_deg": self.fit.rigid.rotation_deg,
            "translation_mm": self.fit.rigid.translation_mm.tolist(),
            "rotation": self.fit.rigid.rotation.tolist(),
            **values,
        }


def score_cta(
    tree: VesselTree,
    cameras: Sequence[Camera],
    cta: CtVolume,
    labels: CtVolume | None = None,
    alignment: Rigid | None = None,
    frames: Sequence[View] | None = None,
) -> CtaResult:
    """Align a CTA to a reconstruction, project it with the refined cameras and compare.

    Args:
        tree, cameras: the reconstruction and its refined cameras.
        labels: bool, the coronary arteries; without them a tube filter finds vessels, and there are no 3D scores.
        alignment: CTA to reconstruction; default it is searched.
        frames: the input views in the order of the cameras, for the scores against the frames.

    Raises:
        InputError: no reconstruction, no vessels in the CTA, frames that do not fit the cameras.
    """
    if tree.length_mm <= 0:
        raise InputError("the reconstruction has no centreline, so no CTA can be aligned to it")
    if frames is not None and len(frames) != len(cameras):
        raise InputError(f"{len(frames)} input frames but {len(cameras)} refined cameras; give one frame per camera")
    vessels = vessels_by_filter(cta) if labels is None else vessels_from_labels(cta, labels)
    notes = list(vessels.notes)
    pred = tree_points(tree)
    coronary, fit = _aligned(vessels, pred, alignment, notes)
    if not vessels.labelled:
        back = fit.rigid.inverse().apply(pred.points_lps_mm)
        vessels = near(vessels, back, FILTER_REACH_MM)
        coronary = _within(coronary, back, FILTER_REACH_MM)
        notes.append(
            f"vessels of the CTA farther than {FILTER_REACH_MM:g} mm from the reconstruction are left out, "
            "which flatters it: with --cta-labels nothing is left out"
        )
    else:
        vessels = near(vessels, tree_points(coronary).points_lps_mm, 6.0)
    if fit.share_2mm < LEAST_SHARE:
        notes.append(
            f"the alignment is doubtful: only {100 * fit.share_2mm:.0f} % of the reconstruction lies within "
            "2 mm of a vessel of the CTA; check cta_view_1.png, or give --alignment"
        )
    moved = _moved(coronary, fit.rigid)
    scores: dict[str, float] = {}
    if vessels.labelled:
        scores |= _scores_3d(tree, moved)
    views = []
    for k, camera in enumerate(cameras):
        frame = None if frames is None else frames[k]
        views.append(_view(tree, pred, vessels, moved, fit.rigid, cta, camera, frame))
        scores |= {f"{name}_view_{k + 1}": value for name, value in views[-1].scores.items()}
    return CtaResult(scores, fit, tuple(views), vessels, tuple(notes))


def project_ct(volume: CtVolume, rigid: Rigid, camera: Camera) -> np.ndarray:
    """Line integrals ``(rows, cols)`` of a CT volume as stored, moved by ``rigid`` (CT to reconstruction).

    Nothing is resampled: the rays are brought into the axes of the volume instead.
    """
    import torch

    from licag3d.geometry import Cameras, Rays
    from licag3d.ops import project_volume

    origin, to_pixel = Cameras.stack([camera]).rays()
    turn = torch.from_numpy(rigid.rotation @ volume.direction)
    start = (origin - torch.from_numpy(rigid.apply(volume.origin_lps_mm))) @ turn
    values = torch.from_numpy(np.ascontiguousarray(volume.values, np.float32))
    image = project_volume(
        values, Rays(start, to_pixel @ turn), voxel_size_mm=volume.spacing_mm, origin_mm=(0.0, 0.0, 0.0)
    )
    return image[0].numpy()


def attenuation(cta: CtVolume) -> CtVolume:
    """Attenuation in 1/mm: HU follow water at 70 keV. Iodine and bone attenuate more at lower energies; that is left
    out."""
    return replace(cta, values=np.maximum(WATER_PER_MM * (1 + cta.values / 1000), 0).astype(np.float32))


def _aligned(
    vessels: CtaVessels, pred: CenterlinePoints, given: Rigid | None, notes: list[str]
) -> tuple[VesselTree, Fit]:
    """The part of the CTA's tree that the reconstruction shows, and the alignment."""
    whole = tree_points(vessels.tree).points_lps_mm
    if not vessels.labelled:
        if given is not None:
            return vessels.tree, measure(given, whole, pred.points_lps_mm)
        return vessels.tree, align_rigid(whole, pred.points_lps_mm, outliers=True)
    pieces = _pieces(vessels.tree)
    options = [vessels.tree]
    if len(pieces) > 1:
        options += [piece for piece in pieces if piece.length_mm >= LEAST_PIECE * vessels.tree.length_mm]
    fits = []
    for option in options:
        points = tree_points(option).points_lps_mm
        fits.append(
            measure(given, points, pred.points_lps_mm) if given is not None else align_rigid(points, pred.points_lps_mm)
        )
    best = max(range(len(options)), key=lambda k: fits[k].f1_2mm)
    if best > 0:
        notes.append(
            f"the labels hold {len(pieces)} unconnected trees; the reconstruction fits the one of "
            f"{options[best].length_mm:.0f} mm, which alone is compared"
        )
    return options[best], fits[best]


def _pieces(tree: VesselTree) -> list[VesselTree]:
    """The unconnected trees of a forest, by parent links, longest first."""
    root: dict[int, int] = {}
    for branch in tree.branches:
        root[branch.id] = branch.id if branch.parent is None else root.get(branch.parent, branch.id)
    groups = {r: VesselTree(tuple(b for b in tree.branches if root[b.id] == r)) for r in sorted(set(root.values()))}
    return sorted(groups.values(), key=lambda piece: -piece.length_mm)


def _within(tree: VesselTree, points_lps_mm: np.ndarray, reach_mm: float) -> VesselTree:
    """The stretches of a tree within reach of points, as loose branches."""
    from scipy.spatial import cKDTree

    search, branches = cKDTree(points_lps_mm), []
    for branch in tree.branches:
        close = search.query(branch.points_lps_mm)[0] <= reach_mm
        edges = np.flatnonzero(np.diff(np.concatenate(([0], close.astype(int), [0]))))
        for a, b in zip(edges[::2], edges[1::2], strict=True):
            if b - a > 1:
                branches.append(
                    replace(
                        branch,
                        id=len(branches),
                        parent=None,
                        points_lps_mm=branch.points_lps_mm[a:b],
                        radius_mm=branch.radius_mm[a:b],
                        confidence=None,
                    )
                )
    return VesselTree(tuple(branches))


def _moved(tree: VesselTree, rigid: Rigid) -> VesselTree:
    return VesselTree(tuple(replace(b, points_lps_mm=rigid.apply(b.points_lps_mm)) for b in tree.branches))


def _scores_3d(tree: VesselTree, truth: VesselTree) -> dict[str, float]:
    from licag3d.metrics.names import METRICS
    from licag3d.metrics.scores import Truth, score

    scores = score(tree, Truth(truth, []))
    absent = {item.name for item in METRICS if item.group in ("Held-out views", "Input views", "Cameras")}
    return {name: value for name, value in scores.items() if name.split("_after_")[0] not in absent}


def _view(
    tree: VesselTree,
    pred: CenterlinePoints,
    vessels: CtaVessels,
    truth: VesselTree,
    rigid: Rigid,
    cta: CtVolume,
    camera: Camera,
    frame: View | None,
) -> CtaView:
    small = comparison_camera(camera)
    cta_path, pred_path = project_ct(vessels.share, rigid, small), path_mm(tree, small)
    true = tree_points(truth)
    mask = cta_path >= SILHOUETTE_MM
    region = vessel_region(mask, small.mm_per_pixel)
    reference = Reference(cta_path, float(cta_path.max()))
    empty = image_scores(np.zeros_like(cta_path), reference, region)
    images = image_scores(pred_path, reference, region)
    pixels, truth_pixels = small.project(pred.points_lps_mm)[0], small.project(true.points_lps_mm)[0]
    scores = {
        **images,
        "ssim_empty": empty["ssim"],
        "ssim_vessel_empty": empty["ssim_vessel"],
        **silhouette_scores(pred_path >= SILHOUETTE_MM, pixels, mask, truth_pixels),
        "reprojection_mm": reprojection_mm(pred.points_lps_mm, camera, true.points_lps_mm, camera),
    }
    picture = None
    if frame is not None:
        scores |= _frame_scores(frame, small, cta_path, mask, region, truth_pixels)
        scores["frame_whole_ssim"] = _whole(frame, small, project_ct(attenuation(cta), rigid, small))
        picture = _resized(frame.image, small)
    ordered = [item.name.removesuffix("_view_K") for item in CTA_METRICS]
    return CtaView({n: scores[n] for n in ordered if n in scores}, small, cta_path, pred_path, picture)


def _frame_scores(
    frame: View,
    camera: Camera,
    cta_path: np.ndarray,
    mask: np.ndarray,
    region: np.ndarray,
    truth_pixels: np.ndarray,
) -> dict[str, float]:
    """The vessels of the CTA against those found in the frame."""
    from skimage.morphology import skeletonize

    from licag3d.models.vessel_evidence import vessel_evidence

    evidence = vessel_evidence(frame)
    seen = _resized(evidence.mask.astype(np.float32), camera) >= 0.5
    line_integral = _resized(evidence.line_integral, camera)
    skeleton = np.argwhere(skeletonize(seen))[:, ::-1].astype(np.float64)
    shape = silhouette_scores(seen, skeleton, mask, truth_pixels)
    # The frame's contrast is unknown: one factor brings its line integral to the path length of the CTA.
    a, b = line_integral[region].astype(np.float64), cta_path[region].astype(np.float64)
    factor = float((a * b).sum() / (a * a).sum()) if (a * a).sum() > 0 else 0.0
    reference = Reference(cta_path, float(cta_path.max()))
    images = image_scores(factor * line_integral, reference, region)
    empty = image_scores(np.zeros_like(cta_path), reference, region)
    return {
        "frame_dice": shape["dice"],
        "frame_cldice": shape["cldice"],
        "frame_ssim": images["ssim"],
        "frame_ssim_vessel": images["ssim_vessel"],
        "frame_ssim_vessel_empty": empty["ssim_vessel"],
    }


def _whole(frame: View, camera: Camera, projection: np.ndarray) -> float:
    """SSIM of the whole CTA's projection and the frame as attenuation, both brought to mean 0 and variance 1."""
    from licag3d.models.background import attenuation_image

    valid = _resized(frame.valid.astype(np.float32), camera) >= 0.5
    image = _resized(attenuation_image(frame.image, frame.intensity), camera)
    if not valid.any() or min(float(image[valid].std()), float(projection[valid].std())) < 1e-9:
        return math.nan

    def standard(x: np.ndarray) -> np.ndarray:
        return np.where(valid, (x - x[valid].mean()) / x[valid].std(), 0.0)

    truth = standard(projection)
    return float(Reference(truth, float(np.ptp(truth[valid]))).ssim_map(standard(image))[valid].mean())


def _resized(image: np.ndarray, camera: Camera) -> np.ndarray:
    """An image at the size of a camera."""
    from skimage.transform import resize

    size = (camera.rows, camera.cols)
    return image if image.shape == size else resize(image, size, order=1, anti_aliasing=True).astype(np.float32)
