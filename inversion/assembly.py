# SPDX-License-Identifier: Apache-2.0
"""From matched points to one vessel tree: curves, their joints, smoothing, radii."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains
from licag3d.inversion.contrast import image_planes
from licag3d.inversion.joining import SURE, Join, JoinSettings, borne_out, join_pieces, piece_lengths
from licag3d.inversion.matching import Match
from licag3d.inversion.sights import LEAST_CHANCE, Sight, least_chance
from licag3d.inversion.smoothing import smooth_curve
from licag3d.structures import VesselTree
from licag3d.vessels.graph import trace_tree
from licag3d.vessels.tree import arc_length_mm, resample_tree

#: An angiogram does not resolve thinner vessels; a reading below it is a broken reading, not a vessel.
LEAST_RADIUS_MM = 0.3


@dataclass(frozen=True)
class AssemblySettings:
    """Lengths in mm.

    Args:
        same_mm: a piece of the second view that stays this near to a curve of the first is the same vessel.
        break_mm: a path is cut where it jumps farther than this in one step.
        shortest_mm: shorter curves are left out.
        attach_mm: the end of a curve joins another curve nearer than this, plus that one's radius.
        bridge_mm: separate pieces nearer than this are joined by a straight bridge (reported).
        stray_mm: pieces farther away and shorter than this are left out (reported); longer ones are bridged.
        spur_mm: side branches sticking out of their parent by less are dropped.
        step_mm: spacing of the tree's points.
        denied_mm: stretches from this length on that not both views agree on and that some view denies are left out.
        piece_sure: of a piece that stays apart from the tree, two views must agree on this share.
        least_confidence: points surer than this are used; 0 leaves out what the other view contradicts (one in four of
            these places is right, seven in eight of those that both views agree on).
    """

    same_mm: float = 2.0
    break_mm: float = 3.0
    shortest_mm: float = 2.0
    attach_mm: float = 3.0
    bridge_mm: float = 6.0
    stray_mm: float = 8.0
    spur_mm: float = 2.0
    step_mm: float = 0.5
    least_confidence: float = 0.0
    denied_mm: float = 2.0
    piece_sure: float = 0.3
    join: JoinSettings = field(default_factory=JoinSettings)


@dataclass(frozen=True)
class Curve:
    """One stretch of matched centreline: ``points_mm`` ``(n, 3)``, ``radius_mm`` and ``confidence`` ``(n,)``;
    ``nodes`` are the 2D graph nodes at its two ends as (view, node), or None where it ends within a piece."""

    points_mm: np.ndarray
    radius_mm: np.ndarray
    confidence: np.ndarray
    nodes: tuple[tuple[int, int] | None, tuple[int, int] | None]


def matched_curves(match: Match, cameras: tuple[Camera, Camera], settings: AssemblySettings) -> list[Curve]:
    """Curves of the first view, and those of the second that the first has not got."""
    from scipy.spatial import cKDTree

    curves = _runs(match, 0, cameras, _usable(match, 0, settings), settings)
    fresh = _usable(match, 1, settings)
    if curves:
        known = cKDTree(np.concatenate([curve.points_mm for curve in curves]))
        fresh[fresh] = known.query(match.points_mm[1][fresh])[0] > settings.same_mm
    return curves + _runs(match, 1, cameras, fresh, settings)


def _usable(match: Match, side: int, settings: AssemblySettings) -> np.ndarray:
    return np.isfinite(match.points_mm[side][:, 0]) & (match.confidence[side] > settings.least_confidence)


def _runs(
    match: Match, side: int, cameras: tuple[Camera, Camera], use: np.ndarray, settings: AssemblySettings
) -> list[Curve]:
    if not use.any():
        return []
    chains: Chains = match.chains[side]
    camera = cameras[side]
    own_plane, other_plane = (image_planes(cameras[k], match.chains[k]).normal for k in (side, 1 - side))
    other_plane = other_plane[np.maximum(match.partner[side], 0)]
    points, curves = match.points_mm[side], []
    partner = match.partner[side]
    other = match.chains[1 - side].radius_mm
    # Half widths were scaled at the isocentre; the depth of the point says how large the vessel is.
    depth = camera.project(np.nan_to_num(points))[1] / camera.sod_mm
    radius = chains.radius_mm.copy()
    both = partner >= 0
    # Where two vessels overlap the shadow is wider: the thinner of both readings is the vessel.
    radius[both] = np.minimum(radius[both], 1.15 * other[partner[both]])
    for p in range(chains.pieces):
        rows = np.arange(chains.start[p], chains.start[p + 1])
        rows = rows[use[rows]]
        if len(rows) < 2:
            continue
        step = np.linalg.norm(np.diff(points[rows], axis=0), axis=1)
        cut = (np.diff(rows) > 2) | (step > np.maximum(settings.break_mm, 6 * chains.step_mm[rows[1:]]))
        for run in np.split(rows, np.flatnonzero(cut) + 1):
            if len(run) < 3:
                continue
            image_mm = chains.step_mm[run[1:]].sum()
            if image_mm < settings.shortest_mm:
                continue
            ends = tuple((side, int(chains.node[p, e])) if at == limit else None for e, at, limit in
                         ((0, run[0], chains.start[p]), (1, run[-1], chains.start[p + 1] - 1)))
            smooth = smooth_curve(points[run], (own_plane[run], other_plane[run]), chains.step_mm[run])
            lumen = np.maximum(radius * depth, LEAST_RADIUS_MM)[run]
            curves.append(Curve(smooth, lumen, match.confidence[side][run], ends))
    return curves


@dataclass(frozen=True)
class Assembly:
    """A ``tree`` in one piece or several, the ``bridges`` laid in it, and the lengths of the pieces left out, mm."""

    tree: VesselTree
    bridges: tuple[Join, ...]
    strays_mm: tuple[float, ...]


def without_denied(curves: Sequence[Curve], sights: Sequence[Sight], settings: AssemblySettings) -> list[Curve]:
    """Curves without the stretches that only one view, or only the prior, has and that another view denies."""
    out = []
    for curve in curves:
        denied = (curve.confidence < SURE) & (least_chance(curve.points_mm, sights) <= LEAST_CHANCE)
        arc = arc_length_mm(curve.points_mm)
        keep = np.ones(len(arc), bool)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], denied, [False]]).astype(int)))
        for a, b in zip(edges[::2], edges[1::2], strict=True):
            if arc[b - 1] - arc[a] >= settings.denied_mm:
                keep[a:b] = False
        out += stretches(curve, keep, settings.shortest_mm) if not keep.all() else [curve]
    return out


def stretches(curve: Curve, keep: np.ndarray, shortest_mm: float) -> list[Curve]:
    """The parts of a curve that are kept, each with one point more on either side, so that neighbours meet."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(int)))
    out = []
    for a, b in zip(edges[::2], edges[1::2], strict=True):
        a, b = max(a - 1, 0), min(b + 1, len(keep))
        if np.linalg.norm(np.diff(curve.points_mm[a:b], axis=0), axis=1).sum() < shortest_mm:
            continue
        nodes = (curve.nodes[0] if a == 0 else None, curve.nodes[1] if b == len(keep) else None)
        out.append(Curve(curve.points_mm[a:b], curve.radius_mm[a:b], curve.confidence[a:b], nodes))
    return out


def assemble_tree(curves: list[Curve], settings: AssemblySettings, sights: Sequence[Sight] = ()) -> Assembly:
    """Join curves into a tree.

    Args:
        sights: of the views in the frame of the curves; what they speak against is not joined, and the tree stays in
            pieces. Without them everything is joined.
    """
    from scipy.spatial import cKDTree

    curves = without_denied(curves, sights, settings)
    if not curves:
        return Assembly(VesselTree(), (), ())
    points = np.concatenate([curve.points_mm for curve in curves])
    radius = np.concatenate([curve.radius_mm for curve in curves])
    confidence = np.concatenate([curve.confidence for curve in curves])
    owner = np.repeat(np.arange(len(curves)), [len(curve.points_mm) for curve in curves])
    first = np.concatenate([[0], np.cumsum([len(curve.points_mm) for curve in curves])])
    edges = [
        np.stack([np.arange(a, b - 1), np.arange(a + 1, b)], axis=1) for a, b in zip(first[:-1], first[1:], strict=True)
    ]
    tree = cKDTree(points)
    joints = []
    for k, curve in enumerate(curves):
        for end, at in ((0, first[k]), (1, first[k + 1] - 1)):
            reach = settings.attach_mm + 2.0
            near = np.array([j for j in tree.query_ball_point(points[at], reach + radius.max()) if owner[j] != k], int)
            if not len(near):
                continue
            gap = np.linalg.norm(points[near] - points[at], axis=1)
            # Ends that meet at one node of an image are one junction and may lie farther apart in depth.
            shared = np.array(
                [curve.nodes[end] is not None and curve.nodes[end] in curves[owner[j]].nodes for j in near]
            )
            allowed = gap < settings.attach_mm + np.where(shared, 2.0, 0.0) + radius[near]
            if allowed.any():
                best = near[allowed][np.argmin(gap[allowed])]
                if borne_out(points[at], points[best], (radius[at], radius[best]), sights, settings.join.shown):
                    joints.append((at, best))
    edges = np.concatenate([*edges, np.array(joints, int).reshape(-1, 2)])
    grown = trace_tree(points, radius, edges, min_branch_mm=settings.spur_mm, confidence=confidence)
    near, short_bridges = join_pieces(
        grown, sights, settings.join, longest_mm=settings.bridge_mm, min_branch_mm=settings.spur_mm
    )
    kept, short_mm = _without(near, lambda length, sure: length < settings.stray_mm)
    tree, long_bridges = join_pieces(kept, sights, settings.join, min_branch_mm=settings.spur_mm)
    # One view agrees with nobody, and nothing follows from that.
    tree, unsure_mm = _without(tree, lambda length, sure: (sure < settings.piece_sure * length) & (sure.max() > 0))
    strays_mm = tuple(sorted(short_mm + unsure_mm))
    return Assembly(resample_tree(tree, settings.step_mm), short_bridges + long_bridges, strays_mm)


def _without(tree: VesselTree, stray) -> tuple[VesselTree, tuple[float, ...]]:
    """Without the pieces that ``stray`` (of length and of length agreed on) marks; the longest piece always stays."""
    owner, length, sure = piece_lengths(tree)
    out = stray(length, sure)
    out[length.argmax()] = False
    kept = tuple(branch for branch, piece in zip(tree.branches, owner, strict=True) if not out[piece])
    return VesselTree(kept), tuple(float(value) for value in length[out])
