# SPDX-License-Identifier: Apache-2.0
"""Vessels that lie over or beside each other in a view: the whole tree is fitted to the line integrals of all views.

Where two vessels run side by side within their width a mask holds one broad line, both are matched to it, and the depth
of one is wrong by a millimetre or two though its projections look right. But the broad line is as wide and as dark as
both together: all branches are drawn at once (:mod:`licag3d.inversion.tube_images`) and moved until they show what is
seen. Figures: docs/refinement.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselEvidence, VesselTree
from licag3d.vessels.tree import arc_length_mm


@dataclass(frozen=True)
class OverlapSettings:
    """How a tree is fitted to line integrals; lengths in mm unless named otherwise.

    Args:
        rounds: of choosing pixels and moving; 0 leaves everything as it is. steps: of Adam in a round.
        rate_mm: of a step. pixel_mm: pixels are pooled to about this size (at the isocentre). blur_px: smear of the
            pooled image.
        step_mm: distance of the points that are moved. knot_mm: distance of what moves them.
        reach_mm: pixels this far from the walls take part.
        held_mm, free_mm: how far a place may go (standard deviation), where no other vessel is over or beside it in
            any view, and where one is. margin_mm: how near it must come for that. apart_mm: and be this far in space.
        bend_mm: how much the movement of neighbouring knots may differ in slope. joint_mm: and that of a branch from
            its parent's.
        noise_mm, noise_share: deviation of a path length: constant, and per path seen; Cauchy beyond.
        weight: of a pooled pixel (neighbours are wrong together).
        reliable_mm: path from which a pixel tells the attenuation.
        calibre_sigma: deviation of the log radius meanwhile (the radii of the result are those before).
        calibre_rate: step of it.
    """

    rounds: int = 2
    steps: int = 40
    rate_mm: float = 0.2
    pixel_mm: float = 0.5
    blur_px: float = 0.8
    step_mm: float = 0.5
    knot_mm: float = 5.0
    reach_mm: float = 1.6
    held_mm: float = 0.5
    free_mm: float = 3.0
    margin_mm: float = 0.3
    apart_mm: float = 3.0
    bend_mm: float = 1.0
    joint_mm: float = 0.15
    noise_mm: float = 0.5
    noise_share: float = 0.3
    weight: float = 0.5
    reliable_mm: float = 0.4
    calibre_sigma: float = 0.12
    calibre_rate: float = 0.05


@dataclass(frozen=True)
class ClearedTree:
    """The moved tree, and ``facts`` (plain numbers) for the record of the stage."""

    tree: VesselTree
    facts: dict = field(default_factory=dict)


class Courses:
    """The branches of a tree at equal steps, and the knots that move them.

    ``points`` ``(N, 3)``, ``radius`` ``(N,)`` (0 within the lumen of the parent, which is there already), ``branch``
    ``(N,)``, ``spans``, ``joints`` (first point of a branch, nearest one of its parent), ``knots`` ``(N, K)`` share of
    every knot in the movement of every point, ``rows`` knots of each branch.
    """

    def __init__(self, tree: VesselTree, settings: OverlapSettings) -> None:
        self.tree = tree
        points, radius, self.spans, self.arcs, blocks = [], [], [], [], []
        for branch in tree.branches:
            arc = arc_length_mm(branch.points_lps_mm)
            at = np.linspace(0, arc[-1], max(2, round(arc[-1] / settings.step_mm) + 1))
            points.append(np.stack([np.interp(at, arc, axis) for axis in branch.points_lps_mm.T], 1))
            radius.append(np.interp(at, arc, branch.radius_mm))
            first = self.spans[-1].stop if self.spans else 0
            self.spans.append(slice(first, first + len(at)))
            self.arcs.append((arc, at))
            blocks.append(knot_shares(at, settings.knot_mm))
        self.points, self.radius = np.concatenate(points), np.maximum(np.concatenate(radius), 0.05)
        self.branch = np.concatenate([np.full(s.stop - s.start, k) for k, s in enumerate(self.spans)])
        from scipy.linalg import block_diag

        self.knots = block_diag(*blocks)
        ends = np.cumsum([block.shape[1] for block in blocks])
        self.rows = [slice(end - block.shape[1], end) for end, block in zip(ends, blocks, strict=True)]
        self.joints = self._joints()
        for child, parent in self.joints:
            inside = np.linalg.norm(self.points[child:] - self.points[parent], axis=1) < self.radius[parent]
            until = min(int(np.argmin(inside)) if not inside.all() else len(inside), self._length(child) - 1)
            self.radius[child : child + until] = 0.0

    def _length(self, first: int) -> int:
        span = self.spans[self.branch[first]]
        return span.stop - span.start

    def _joints(self) -> np.ndarray:
        position = {branch.id: k for k, branch in enumerate(self.tree.branches)}
        pairs = []
        for span, branch in zip(self.spans, self.tree.branches, strict=True):
            if branch.parent in position:
                parent = self.spans[position[branch.parent]]
                gap = ((self.points[parent] - self.points[span.start]) ** 2).sum(1)
                pairs.append((span.start, parent.start + int(gap.argmin())))
        return np.array(pairs, int).reshape(-1, 2)

    def contested(self, cameras: Sequence[Camera], margin_mm: float, apart_mm: float) -> np.ndarray:
        """``(N,)`` bool: in some view another branch lies over or beside the point, which in space is elsewhere."""
        from scipy.spatial import cKDTree

        out = np.zeros(len(self.points), bool)
        for camera in cameras:
            pixels, depth = camera.project(self.points)
            mm = pixels * camera.spacing_col_mm / camera.sid_mm * depth.mean()
            near = cKDTree(mm).query_pairs(2 * self.radius.max() + margin_mm, output_type="ndarray")
            a, b = near.T if len(near) else np.zeros((2, 0), int)
            other = self.branch[a] != self.branch[b]
            other &= np.linalg.norm(mm[a] - mm[b], axis=1) < self.radius[a] + self.radius[b] + margin_mm
            other &= np.linalg.norm(self.points[a] - self.points[b], axis=1) > apart_mm
            out[a[other]] = out[b[other]] = True
        return out

    def moved(self, shift_mm: np.ndarray) -> VesselTree:
        """The tree with its points moved by ``(N, 3)``; branches begin on their parents as before."""
        shift_mm = shift_mm.copy()
        for child, parent in self.joints:  # parents come before their branches
            span = self.spans[self.branch[child]]
            gone = np.linalg.norm(self.points[span] - self.points[child], axis=1)
            shift_mm[span] += np.exp(-gone / 3.0)[:, None] * (shift_mm[parent] - shift_mm[child])
        branches = []
        for branch, span, (arc, at) in zip(self.tree.branches, self.spans, self.arcs, strict=True):
            shift = np.stack([np.interp(arc, at, axis) for axis in shift_mm[span].T], 1)
            branches.append(replace(branch, points_lps_mm=branch.points_lps_mm + shift))
        return replace(self.tree, branches=tuple(branches))


def clear_overlaps(
    tree: VesselTree,
    cameras: Sequence[Camera],
    evidence: Sequence[VesselEvidence],
    settings: OverlapSettings | None = None,
) -> ClearedTree:
    """Move a tree until its branches together show the line integrals of all views.

    Args:
        tree: in the gauge of ``cameras``; its radii stay. evidence: per view; a view without line integrals, or
            without a place that tells its attenuation, does not speak.

    Returns:
        The tree as it was where fewer than two views speak or no vessel is over or beside another one.

    Example:
        >>> clear_overlaps(VesselTree(), [], []).tree.branches
        ()
    """
    settings = settings or OverlapSettings()
    courses = Courses(tree, settings) if tree.branches and len(cameras) > 1 and settings.rounds > 0 else None
    if courses is None or not courses.contested(cameras, settings.margin_mm, settings.apart_mm).any():
        return ClearedTree(tree, {"rounds": 0})
    costs = []
    for _ in range(settings.rounds):
        shift, before, after, free = _descend(courses, cameras, evidence, settings)
        costs += [before, after]
        if shift is None:
            return ClearedTree(tree, {"rounds": 0})
        courses = Courses(courses.moved(shift), settings)
    gone = [
        np.linalg.norm(new.points_lps_mm - old.points_lps_mm, axis=1)
        for new, old in zip(courses.tree.branches, tree.branches, strict=True)
    ]
    facts = {
        "rounds": settings.rounds,
        "contested_share": float(free),
        "misfit": [float(cost) for cost in costs],
        "moved_mm": float(np.sqrt((np.concatenate(gone) ** 2).mean())),
    }
    return ClearedTree(courses.tree, facts)


def _descend(courses: Courses, cameras, evidence, settings: OverlapSettings):
    """Movement ``(N, 3)`` of the points (None where fewer than two views speak), misfit before and after, and the share
    of points that another vessel is over or beside."""
    import torch

    from licag3d.inversion.adam import Adam
    from licag3d.inversion.tube_images import attenuation, near_pixels, path_mm, pooled_view

    points = torch.from_numpy(courses.points).float()
    radius = torch.from_numpy(courses.radius).float()
    spoken = []
    for camera, item in zip(cameras, evidence, strict=True):
        small, image = pooled_view(camera, item.line_integral, settings.pixel_mm)
        near = near_pixels(
            small, image, courses.points, courses.radius, courses.spans, reach_mm=settings.reach_mm
        )
        if near is None:
            continue
        mu = attenuation(near, path_mm(near, points, radius, settings.blur_px), settings.reliable_mm)
        if mu is not None:
            spoken.append((near, near.seen / mu))
    contested = courses.contested(cameras, settings.margin_mm, settings.apart_mm)
    if len(spoken) < 2:
        return None, 0.0, 0.0, contested.mean()
    share = torch.from_numpy(courses.knots).float()
    loose = (share.T @ torch.from_numpy(contested).float()) / share.sum(0).clamp_min(1e-6)
    allowed = (settings.held_mm + (settings.free_mm - settings.held_mm) * loose.clamp(0, 1))[:, None]
    child, parent = torch.from_numpy(courses.joints).long().T
    knots = torch.zeros(share.shape[1], 3, requires_grad=True)
    # A radius that was read where two vessels are one broad line is that of both: it must give way.
    calibre = torch.zeros(share.shape[1], requires_grad=True)
    adam = Adam([{"params": [knots], "lr": settings.rate_mm}, {"params": [calibre], "lr": settings.calibre_rate}])
    misfits = []
    for step in range(settings.steps):
        adam.param_groups[0]["lr"] = settings.rate_mm * min(1.0, 2 * (1 - step / settings.steps))
        shift = share @ knots
        misfit = torch.zeros(())
        for near, seen in spoken:
            rest = path_mm(near, points + shift, radius * (share @ calibre).exp(), settings.blur_px) - seen
            noise = settings.noise_mm + settings.noise_share * seen.clamp_min(0)
            misfit = misfit + torch.log1p((rest / noise) ** 2).sum()
        cost = settings.weight * misfit + ((knots / allowed) ** 2).sum()
        cost = cost + (calibre / settings.calibre_sigma).square().sum()
        for rows in courses.rows:
            slope = knots[rows].diff(dim=0)
            cost = cost + (slope / (2 * settings.bend_mm)).square().sum()
            cost = cost + (slope.diff(dim=0) / settings.bend_mm).square().sum()
        cost = cost + ((shift[child] - shift[parent]) / settings.joint_mm).square().sum()
        misfits.append(misfit.item())
        adam.zero_grad()
        cost.backward()
        adam.step()
    with torch.no_grad():
        shift = (share @ knots).double().numpy()
    return shift, misfits[0], misfits[-1], contested.mean()


def knot_shares(at_mm: np.ndarray, every_mm: float) -> np.ndarray:
    """Share ``(n, k)`` of every knot in the movement at arc lengths ``(n,)``: smooth steps from knot to knot."""
    count = max(2, round(at_mm[-1] / every_mm) + 1)
    knots = np.linspace(0, at_mm[-1], count)
    left = np.clip(np.searchsorted(knots, at_mm, side="right") - 1, 0, count - 2)
    share = (at_mm - knots[left]) / max(knots[1] - knots[0], 1e-9)
    share = share * share * (3 - 2 * share)
    out = np.zeros((len(at_mm), count))
    rows = np.arange(len(at_mm))
    out[rows, left] = 1 - share
    out[rows, left + 1] += share
    return out
