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
from licag3d.inversion.refinement_density import (
    Density,
    FrameImage,
    around,
    frame_image,
    read_density,
    thin_readings,
)
from licag3d.inversion.refinement_profiles import (
    LEAST_SINE,
    Measured,
    ProfileImage,
    ViewPoints,
    measure,
    profile_image,
    shadows,
    view_points,
)
from licag3d.inversion.refinement_radius import robust_trend, trend_sigma
from licag3d.structures import VesselEvidence, VesselTree, View
from licag3d.vessels.tree import arc_length_mm, flatten_tree

#: Coronary arteries bend with radii of about 1 / BEND_PER_MM mm over stretches of BEND_LENGTH_MM.
BEND_PER_MM, BEND_LENGTH_MM = 0.12, 4.0
#: Width or contrast over what the vessel was thought to have, from which another vessel is suspected.
EXCESS = 1.3
#: What is seen of it reaches this far along the vessel, mm.
BESIDE_MM = 1.5
#: No vessel thinner than this is delivered, mm.
LEAST_RADIUS_MM = 0.2


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
    lines = _Lines(tree, settings)
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
        radius, spread, levels = lines.calibre(points, radius, seen, found, images, dense)
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


class _Lines:
    """The branches of a tree as one set of points, and what ties them together."""

    def __init__(self, tree: VesselTree, settings: RefinementSettings) -> None:
        self.tree, self.settings = tree, settings
        flat = flatten_tree(tree)
        self.points, self.radius, self.branch = flat.points_lps_mm, np.maximum(flat.radius_mm, 0.05), flat.branch
        self.first = np.searchsorted(flat.branch, np.arange(len(tree.branches)))
        self.last = np.append(self.first[1:], len(self.points))
        self.joints = self._joints()

    def _joints(self) -> np.ndarray:
        """Pairs (first point of a branch, nearest point of its parent)."""
        position = {branch.id: k for k, branch in enumerate(self.tree.branches)}
        pairs = []
        for k, branch in enumerate(self.tree.branches):
            if branch.parent is not None:
                a, b = (f[position[branch.parent]] for f in (self.first, self.last))
                gap = ((self.points[a:b] - self.points[self.first[k]]) ** 2).sum(1)
                pairs.append((self.first[k], a + int(gap.argmin())))
        return np.array(pairs, int).reshape(-1, 2)

    def spans(self):
        """Slices of the branches."""
        return [slice(a, b) for a, b in zip(self.first, self.last, strict=True)]

    def tangents(self, points: np.ndarray) -> np.ndarray:
        """Unit tangents ``(N, 3)``, over about a millimetre."""
        out = np.zeros_like(points)
        for span in self.spans():
            line = points[span]
            if len(line) < 2:
                out[span] = (0.0, 0.0, 1.0)
                continue
            arc = arc_length_mm(line)
            ahead, behind = np.minimum(arc + 0.6, arc[-1]), np.maximum(arc - 0.6, 0.0)
            for axis in range(3):
                out[span, axis] = np.interp(ahead, arc, line[:, axis]) - np.interp(behind, arc, line[:, axis])
        length = np.linalg.norm(out, axis=1, keepdims=True)
        return np.where(length > 1e-9, out / np.maximum(length, 1e-9), (0.0, 0.0, 1.0))

    def averager(self, points: np.ndarray):
        """Weighted mean along each branch, Gaussian in arc length: a function ``(N, K) -> (N, K)``."""
        from scipy.sparse import block_diag

        blocks = []
        for span in self.spans():
            arc = arc_length_mm(points[span])
            weight = np.exp(-0.5 * ((arc[:, None] - arc[None]) / self.settings.along_mm) ** 2)
            weight[weight < 0.01] = 0.0
            blocks.append(weight / weight.sum(1, keepdims=True))
        matrix = block_diag(blocks, format="csr")
        return lambda values: matrix @ values

    def widest(self, values: np.ndarray) -> np.ndarray:
        """Largest of ``(N,)`` values among the points within :data:`BESIDE_MM` along the branch."""
        from scipy.ndimage import maximum_filter1d

        out = np.empty_like(values)
        for span in self.spans():
            line = self.points[span]
            step = arc_length_mm(line)[-1] / max(len(line) - 1, 1)
            out[span] = maximum_filter1d(values[span], 2 * int(np.ceil(BESIDE_MM / max(step, 0.1))) + 1)
        return out

    def moved(self, points, seen: list[ViewPoints], found: list[Measured], cameras, move_cameras: bool):
        """Points after one joint least-squares step, and the shift of every view across the epipolar planes, mm."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.linalg import spsolve

        settings, count, views = self.settings, len(points), len(cameras)
        free = views - 1 if move_cameras and settings.camera_sigma_mm > 0 else 0
        across = [None, *(epipolar_pair(cameras[0], camera).across for camera in cameras[1:])]
        rows, cols, values, right = [], [], [], []
        number = 0

        def equations(columns: np.ndarray, factors: np.ndarray, wanted: np.ndarray) -> None:
            nonlocal number
            rows.append(np.repeat(number + np.arange(len(wanted)), columns.shape[1]))
            cols.append(columns.ravel())
            values.append(factors.ravel())
            right.append(wanted)
            number += len(wanted)

        index = 3 * np.arange(count)[:, None] + np.arange(3)
        share = self._arc_share(points)
        for k, (view, what) in enumerate(zip(seen, found, strict=True)):
            use = np.flatnonzero(what.explained > settings.least_explained)
            miss = what.shift_px[use]
            # Cauchy: a middle far from where the vessel was thought to be is more likely that of another vessel.
            gone = miss + ((points - self.points)[use] * view.gradient[use]).sum(1)
            robust = 1.0 / (1.0 + (gone / (1.5 + 0.7 * what.width_px[use])) ** 2)
            sigma = np.hypot(settings.centre_sigma_px, what.shift_sigma_px[use])
            weight = np.sqrt(robust * share[use]) / sigma
            columns, factors = index[use], view.gradient[use]
            if free and k > 0:
                columns = np.concatenate([columns, np.full((len(use), 1), 3 * count + k - 1)], 1)
                factors = np.concatenate([factors, (view.gradient[use] @ across[k])[:, None]], 1)
            equations(columns, weight[:, None] * factors, weight * miss)
        for span in self.spans():
            self._bending(points[span], index[span], equations)
        anchor = np.sqrt(share)[:, None] / settings.anchor_mm
        for axis in range(3):
            equations(index[:, axis : axis + 1], anchor, anchor[:, 0] * (self.points - points)[:, axis])
            if len(self.joints):
                child, parent = self.joints.T
                tie = np.full((len(child), 1), 1.0 / 0.02)
                columns = np.stack([index[child, axis], index[parent, axis]], 1)
                equations(columns, np.concatenate([tie, -tie], 1), np.zeros(len(child)))
        for k in range(free):
            equations(np.array([[3 * count + k]]), np.array([[1.0 / settings.camera_sigma_mm]]), np.zeros(1))
        matrix = coo_matrix(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), shape=(number, 3 * count + free)
        ).tocsc()
        step = spsolve((matrix.T @ matrix).tocsc(), matrix.T @ np.concatenate(right))
        move = step[: 3 * count].reshape(-1, 3)
        length = np.linalg.norm(move, axis=1, keepdims=True)
        move *= np.minimum(1.0, 1.5 / np.maximum(length, 1e-9))
        shift = np.zeros(views)
        shift[1 : 1 + free] = step[3 * count :]
        return points + move, shift

    def _arc_share(self, points: np.ndarray) -> np.ndarray:
        """Arc length that each point stands for, mm."""
        share = np.full(len(points), 1e-3)
        for span in self.spans():
            gap = np.linalg.norm(np.diff(points[span], axis=0), axis=1)
            share[span][:-1] += 0.5 * gap
            share[span][1:] += 0.5 * gap
        return share

    @staticmethod
    def _bending(line: np.ndarray, index: np.ndarray, equations) -> None:
        """Second derivatives of the moved curve as equations."""
        if len(line) < 3:
            return
        gap = np.maximum(np.linalg.norm(np.diff(line, axis=0), axis=1), 0.05)
        half = 0.5 * (gap[:-1] + gap[1:])
        stencil = np.stack([1 / gap[:-1], -(1 / gap[:-1] + 1 / gap[1:]), 1 / gap[1:]], 1) / half[:, None]
        weight = np.sqrt(half / BEND_LENGTH_MM) / BEND_PER_MM
        factors = weight[:, None] * stencil
        for axis in range(3):
            columns = np.stack([index[:-2, axis], index[1:-1, axis], index[2:, axis]], 1)
            now = (factors * np.stack([line[:-2, axis], line[1:-1, axis], line[2:, axis]], 1)).sum(1)
            equations(columns, factors, -now)

    def calibre(self, points, radius, seen, found, images: list[ProfileImage], dense: list[Density]):
        """Radii ``(N,)`` by the robust fit along each branch, their deviations, and the attenuation of every view,
        1/mm."""
        settings = self.settings
        readings, sigmas, levels = [], [], []
        for view, what, image in zip(seen, found, images, strict=True):
            good = what.explained > settings.least_explained
            width = np.log(what.width_px / view.px_per_mm)
            floor = settings.width_sigma[int(image.outline)] / np.maximum(what.width_px, 1.0)
            readings.append(width)
            sigmas.append(np.where(good, np.hypot(floor, what.width_sigma), np.inf))
            level = _level(view, what, width, good)
            levels.append(level)
            slant = np.maximum(view.sine, LEAST_SINE)
            if level > 0:
                readings.append(np.log(np.maximum(what.contrast, 1e-9) * slant / (2 * level)))
                spread = np.hypot(settings.contrast_sigma[int(image.outline)], what.contrast_sigma)
                sigmas.append(np.where(good & (what.contrast > 0), spread, np.inf))
        readings, sigmas = np.stack(readings, 1), np.stack(sigmas, 1)
        if dense:
            arcs = [arc_length_mm(points[span]) for span in self.spans()]
            usual = around(radius, arcs, self.spans())
            more, spread, thin = thin_readings(dense, seen, usual, _least(readings, sigmas))
            sigmas = np.hypot(sigmas, settings.thin_sigma[int(images[0].outline)] * thin[:, None])
            readings, sigmas = np.concatenate([readings, more], 1), np.concatenate([sigmas, spread], 1)
        sigmas = sigmas * _too_wide(readings, sigmas)
        out, spread = np.empty_like(radius), np.empty_like(radius)
        for span in self.spans():
            out[span] = robust_trend(
                arc_length_mm(points[span]),
                readings[span],
                sigmas[span],
                np.log(self.radius[span]),
                bend=settings.bend_mm,
                start_sigma=settings.start_sigma,
            )
            spread[span] = trend_sigma(arc_length_mm(points[span]), readings[span], sigmas[span], out[span])
        made = np.maximum(np.exp(out), LEAST_RADIUS_MM)
        return made, made * spread, levels

    def tree_of(self, points: np.ndarray, radius: np.ndarray, spread: np.ndarray | None = None) -> VesselTree:
        """The tree with new points and radii, and the deviations of these; joints meet as they did before."""
        points = points.copy()
        for child, parent in self.joints:
            points[child] = points[parent] + self.points[child] - self.points[parent]
        return VesselTree(
            tuple(
                replace(
                    branch,
                    points_lps_mm=points[span],
                    radius_mm=radius[span],
                    radius_sigma_mm=None if spread is None else spread[span],
                )
                for branch, span in zip(self.tree.branches, self.spans(), strict=True)
            )
        )


def _look(lines: _Lines, points, radius, cameras, images) -> tuple[list[ViewPoints], list[Measured]]:
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


def _dense(lines: _Lines, points, radius, cameras, seen, frames: list[FrameImage]) -> list[Density]:
    """Radii from the contrast in every frame."""
    spans, tree = lines.spans(), lines.tree_of(points, radius)
    arcs = [arc_length_mm(points[span]) for span in spans]
    return [
        read_density(frame, view, arcs, radius, shadows(tree, camera), spans)
        for frame, view, camera in zip(frames, seen, cameras, strict=False)
    ]


def _doubted(lines: _Lines, view: ViewPoints, what: Measured, radius_mm: np.ndarray, outline: bool) -> Measured:
    """Wider deviations where a vessel looks far wider or darker than it was thought to be: another one, which the tree
    lacks, lies in front of it or behind. (The contrast under a given mask is too noisy to ask.)"""
    excess = what.width_px / (radius_mm * view.px_per_mm)
    level = 0.0 if outline else _level(view, what, np.log(radius_mm), what.explained > 0.5)
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


def _level(view: ViewPoints, what: Measured, log_width: np.ndarray, good: np.ndarray) -> float:
    """Attenuation of the contrast agent in a view, 1/mm: median where the width is resolved and the vessel crosses the
    ray well; 0 without any."""
    use = good & (what.contrast > 0) & (view.sine > 0.5) & (what.width_sigma < 0.15)
    if use.sum() < 5:
        return 0.0
    thick = use & (what.width_px >= max(3.0, float(np.quantile(what.width_px[use], 0.5))))
    thick = thick if thick.sum() >= 5 else use & (what.width_px >= np.quantile(what.width_px[use], 0.7))
    return float(np.median(what.contrast[thick] * view.sine[thick] / (2 * np.exp(log_width[thick]))))


def _least(readings: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Least reading ``(N,)`` of every point, infinite where there is none."""
    return np.where(np.isfinite(sigmas), readings, np.inf).min(1)


def _too_wide(readings: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Factor ``(N, m)`` on the standard deviation of readings above the least of their point: a vessel that hides
    another, or a branch that is not in the tree, makes it look wide and dark, and nothing makes it look thin."""
    known = np.isfinite(sigmas)
    least = np.where(known & (sigmas < 2 * sigmas.min(1, keepdims=True)), readings, np.inf).min(1, keepdims=True)
    above = np.where(known & np.isfinite(least), readings - np.where(np.isfinite(least), least, 0.0), 0.0)
    return np.sqrt(1.0 + (np.maximum(above, 0.0) / (3.0 * np.where(known, sigmas, 1.0))) ** 2)


def _spread(what: Measured) -> float:
    """Root mean square of the shifts that are well measured, px; 0 without any."""
    good = what.explained > 0.5
    return float(np.sqrt((what.shift_px[good] ** 2).mean())) if good.any() else 0.0
