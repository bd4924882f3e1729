# SPDX-License-Identifier: Apache-2.0
"""Vessel refinement: centreline and radius of a tree bundle-adjusted against its views, finer than pixels and voxels.

Each round measures the profile across every centreline point in every view
(:mod:`licag3d.inversion.refinement_profiles`) and then moves

- the points, by least squares over all views at once: the image says how far a point is off across its projected
  vessel; what no image shows (sliding along the vessel, depth where it runs in the epipolar plane) is decided by
  bending. A shift of every further view across the epipolar planes is solved for beside them; along the baseline,
  which is the scale gauge (docs/geometry.md), and toward the detector nothing moves;
- the radii, by a robust fit along each branch (:mod:`licag3d.inversion.refinement_radius`) to the widths and to the
  contrasts of all views: a ray meets ``p = k 2 r / sin(angle to the vessel)``, with one k per view estimated from
  vessels wide enough to show it.

Figures: docs/refinement.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.epipolar import epipolar_pair
from licag3d.inversion.overlaps import OverlapSettings
from licag3d.inversion.refinement_calibre import attenuation, calibre
from licag3d.inversion.refinement_density import Density, FrameImage, frame_image, read_density
from licag3d.inversion.refinement_lines import Lines
from licag3d.inversion.refinement_profiles import (
    LEAST_SINE,
    Measured,
    ViewPoints,
    measure,
    profile_image,
    shadows,
    view_points,
)
from licag3d.structures import VesselEvidence, VesselTree, View
from licag3d.vessels.tree import arc_length_mm

#: Width or contrast over what the vessel was thought to have, from which another vessel is suspected.
EXCESS = 1.3


@dataclass(frozen=True)
class RefinementSettings:
    """How a tree is refined; lengths in mm unless named otherwise.

    Args:
        rounds: of measuring and moving; 0 leaves everything as it is.
        blur_px: smear of the line integrals that the learned evidence gives, pixels of the image.
        along_mm: profiles are averaged along the vessel with this standard deviation.
        centre_sigma_px: standard deviation of a measured middle.
        least_explained: profiles of which less is explained are not used.
        anchor_mm: how far a point may go from where it was, where no image holds it (standard deviation).
        camera_sigma_mm: how far a view may be off across the epipolar planes; 0 leaves the cameras as they are.
        width_sigma: standard deviation of a half width, px, read from line integrals and from the outline of a mask.
        contrast_sigma: standard deviation of the log radius from contrast, for learned line integrals and for those
            measured under a given mask.
        bend_mm: price of a kink of the log radius along the vessel.
        density: thin lumens are read from the contrast in the frame too.
        thin_sigma: what widths and contrasts get in addition where the lumen is thin or suddenly narrow, for learned
            line integrals (which smear it) and for given masks.
        start_sigma: how much the radius before counts (standard deviation of its logarithm, per mm of vessel).
        overlaps: how vessels over or beside each other are told apart before (:mod:`licag3d.inversion.overlaps`).
    """

    rounds: int = 3
    blur_px: float = 0.6
    along_mm: float = 0.4
    centre_sigma_px: float = 0.3
    least_explained: float = 0.5
    anchor_mm: float = 0.7
    camera_sigma_mm: float = 0.3
    width_sigma: tuple[float, float] = (0.25, 0.12)
    contrast_sigma: tuple[float, float] = (0.09, 0.3)
    bend_mm: float = 8.0
    start_sigma: float = 0.6
    density: bool = True
    thin_sigma: tuple[float, float] = (1.2, 0.0)
    overlaps: OverlapSettings = OverlapSettings()


@dataclass(frozen=True)
class RefinedTree:
    """The refined tree and cameras, and ``facts`` (plain numbers and lists) for the record of the stage."""

    tree: VesselTree
    cameras: tuple[Camera, ...]
    facts: dict = field(default_factory=dict)


def refine_tree(
    tree: VesselTree,
    cameras: Sequence[Camera],
    views: Sequence[View],
    evidence: Sequence[VesselEvidence],
    settings: RefinementSettings | None = None,
    progress: Callable[[float, str], None] | None = None,
    *,
    move_cameras: bool = True,
) -> RefinedTree:
    """Refine a tree against its views.

    Args:
        tree: in the gauge of ``cameras``; may be empty.
        cameras, views, evidence: per view. A view with a mask of its own is read by the outline of that mask, any
            other by the line integrals of its evidence.
        progress: called with the share done and a line of text.
        move_cameras: False holds the cameras.

    Returns:
        A tree of the same branches, points and confidences, moved.

    Example:
        >>> refine_tree(VesselTree(), [], [], []).tree.branches
        ()
    """
    settings = settings or RefinementSettings()
    cameras = tuple(cameras)
    if not tree.branches or settings.rounds < 1 or not cameras:
        return RefinedTree(tree, cameras, {"rounds": 0})
    images = [
        profile_image(item, given=view.mask is not None, blur_px=settings.blur_px)
        for view, item in zip(views, evidence, strict=True)
    ]
    frames = [frame_image(view, item) for view, item in zip(views, evidence, strict=True)] if settings.density else []
    lines = Lines(tree, settings)
    points, radius = lines.points, lines.radius
    offsets_mm = np.zeros(len(cameras))
    facts: dict = {"centre_px": [], "measured_share": []}
    for number in range(settings.rounds):
        seen, found = _look(lines, points, radius, cameras, images)
        facts["centre_px"].append([_spread(m) for m in found])
        facts["measured_share"].append([float((m.explained > settings.least_explained).mean()) for m in found])
        points, shift = lines.moved(points, seen, found, cameras, move_cameras)
        cameras = _shifted(cameras, shift)
        offsets_mm += shift
        # The radii are read at the new places: a profile that is off the middle looks narrow.
        seen, found = _look(lines, points, radius, cameras, images)
        dense = _dense(lines, points, radius, cameras, seen, frames)
        radius, spread, levels = calibre(lines, points, radius, seen, found, images, dense)
        if progress:
            text = " and ".join(f"{_spread(m):.2f}" for m in found)
            progress((number + 1) / settings.rounds, f"round {number + 1}: middles off by {text} px")
    facts |= {
        "rounds": settings.rounds,
        "attenuation_per_mm": levels,
        "offset_across_mm": offsets_mm.tolist(),
        "moved_mm": float(np.sqrt(((points - lines.points) ** 2).sum(1).mean())),
        "radius_ratio": float(np.exp(np.median(np.log(radius / lines.radius)))),
    }
    return RefinedTree(lines.tree_of(points, radius, spread), cameras, facts)


def _look(lines: Lines, points, radius, cameras, images) -> tuple[list[ViewPoints], list[Measured]]:
    """Project the tree into every view and measure its profiles there."""
    tangent, average = lines.tangents(points), lines.averager(points)
    tree = lines.tree_of(points, radius)
    seen = [view_points(camera, points, tangent) for camera in cameras]
    found = [
        measure(image, view, radius, shadows(tree, camera), lines.spans(), average)
        for image, view, camera in zip(images, seen, cameras, strict=True)
    ]
    return seen, [
        _doubted(lines, view, what, radius, image.outline)
        for image, view, what in zip(images, seen, found, strict=True)
    ]


def _dense(lines: Lines, points, radius, cameras, seen, frames: list[FrameImage]) -> list[Density]:
    """Radii from the contrast in every frame."""
    spans, tree = lines.spans(), lines.tree_of(points, radius)
    arcs = [arc_length_mm(points[span]) for span in spans]
    return [
        read_density(frame, view, arcs, radius, shadows(tree, camera), spans)
        for frame, view, camera in zip(frames, seen, cameras, strict=False)
    ]


def _doubted(lines: Lines, view: ViewPoints, what: Measured, radius_mm: np.ndarray, outline: bool) -> Measured:
    """Wider deviations where a vessel looks far wider or darker than it was thought to be: another one, which the tree
    lacks, lies in front of it or behind. (The contrast under a given mask is too noisy to ask.)"""
    excess = what.width_px / (radius_mm * view.px_per_mm)
    level = 0.0 if outline else attenuation(view, what, np.log(radius_mm), what.explained > 0.5)
    if level > 0:
        darker = what.contrast * np.maximum(view.sine, LEAST_SINE) / (2 * level * radius_mm)
        excess = np.maximum(excess, darker)
    excess = lines.widest(excess)
    factor = np.sqrt(1.0 + (np.maximum(excess - EXCESS, 0.0) / 0.1) ** 2)
    return replace(
        what,
        shift_sigma_px=np.hypot(what.shift_sigma_px, factor - 1.0),
        width_sigma=np.hypot(what.width_sigma, 0.05 * (factor - 1.0)),
        contrast_sigma=np.hypot(what.contrast_sigma, 0.1 * (factor - 1.0)),
    )


def _shifted(cameras: tuple[Camera, ...], shift_mm: np.ndarray) -> tuple[Camera, ...]:
    moved = [cameras[0]]
    for camera, amount in zip(cameras[1:], shift_mm[1:], strict=True):
        across = epipolar_pair(cameras[0], camera).across
        moved.append(camera.with_offset(np.asarray(camera.offset_lps_mm) + amount * across))
    return tuple(moved)


def _spread(what: Measured) -> float:
    """Root mean square of the shifts that are well measured, px; 0 without any."""
    good = what.explained > 0.5
    return float(np.sqrt((what.shift_px[good] ** 2).mean())) if good.any() else 0.0
