# SPDX-License-Identifier: Apache-2.0
"""The fitted tree and the matched curves become one set of curves, and its branches get their names.

The tree of the prior, laid onto the views, comes first: it is smoother in depth and knows what overlaps. Matched curves
add what it has not got. Stretches that no view shows are left out, unless they lie between stretches that are shown. A
prior that the views do not bear out adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from licag3d.inversion.assembly import Curve, stretches
from licag3d.inversion.prior_fit import PriorFit
from licag3d.inversion.snapping import Snapped
from licag3d.structures import VesselTree
from licag3d.vessels.tree import arc_length_mm

#: Confidence of what only the prior gives a depth, for a view that shows it fully.
PRIOR_CONFIDENCE = 0.3


@dataclass(frozen=True)
class CompletionSettings:
    """Lengths in mm.

    Args:
        shown: a stretch of the prior's tree is there where some view shows it by this much (0..1).
        gap_mm: stretches not shown, up to this length and between shown ones, stay.
        shortest_mm: shorter stretches are left out.
        apart_mm: matched curves farther than this from the prior's tree are vessels that it has not got.
        agree_mm: matched curves nearer than this bear the tree out.
        certain, long_mm: stretches of matched curves that the prior has not got, of less confidence or shorter than
            this, must have contrast of their own.
        doubt: below this overall trust of the prior only the matched curves count; ``doubt_alone`` with one view, which
            has nothing else. sure: below this only what every view shows (outside its image aside) is the prior's.
        name_mm, name_share: a branch gets the name of the prior's branch near which this share of it lies.
    """

    shown: float = 0.5
    gap_mm: float = 15.0
    shortest_mm: float = 4.0
    apart_mm: float = 1.5
    agree_mm: float = 1.0
    certain: float = 0.5
    long_mm: float = 15.0
    doubt: float = 0.7
    doubt_alone: float = 0.5
    sure: float = 0.85
    name_mm: float = 1.5
    name_share: float = 0.6


def completed_curves(
    snapped: Snapped,
    overall: float,
    curves: Sequence[Curve],
    settings: CompletionSettings | None = None,
    borne_out: Callable[[np.ndarray, np.ndarray], bool] | None = None,
) -> list[Curve]:
    """Curves of the tree of the prior and of the matching together, each stretch once.

    Args:
        snapped: the fitted tree laid onto the views. overall: ``PriorFit.overall``.
        curves: matched, of the same gauge.
        borne_out: whether a stretch ``(n, 3)`` of a matched curve with radii ``(n,)`` that the prior has not got is a
            vessel (:func:`licag3d.inversion.branch_contrast.borne_out`); None takes them all.
    """
    settings = settings or CompletionSettings()
    if overall < settings.doubt:
        return list(curves)
    known = _points(curves)
    prior = []
    for k, branch in enumerate(snapped.tree.branches):
        views = np.stack([shown[k] for shown in snapped.shown])
        best = np.max(np.nan_to_num(views), axis=0)
        there = (
            best if overall >= settings.sure else np.where(best > 0, np.min(np.nan_to_num(views, nan=1.0), axis=0), 0)
        )
        keep = _bridged(there > settings.shown, branch.points_lps_mm, settings.gap_mm)
        sure = PRIOR_CONFIDENCE * best
        if len(known[0]):
            gap, nearest = _tree(known[0]).query(branch.points_lps_mm)
            sure = np.where(gap < settings.agree_mm, np.maximum(sure, known[1][nearest]), sure)
        whole = Curve(branch.points_lps_mm, branch.radius_mm, sure, (None, None))
        prior += stretches(whole, keep, settings.shortest_mm)
    if not prior:
        return list(curves)
    there = _tree(_points(prior)[0])
    out = list(prior)
    for curve in curves:
        off = there.query(curve.points_mm)[0] > settings.apart_mm
        new = stretches(curve, off, settings.shortest_mm)
        for piece in new:
            length = arc_length_mm(piece.points_mm)[-1]
            sure = piece.confidence.mean() >= settings.certain and length >= settings.long_mm
            if borne_out is None or sure or borne_out(piece.points_mm, piece.radius_mm):
                out.append(piece)
    return out


def name_branches(tree: VesselTree, fit: PriorFit, settings: CompletionSettings | None = None) -> VesselTree:
    """Names of the fitted tree for the branches of a tree that lie along its branches, where the views bear it out."""
    settings = settings or CompletionSettings()
    if not fit.tree.branches:
        return tree
    points = np.concatenate([branch.points_lps_mm for branch in fit.tree.branches])
    owner = np.repeat(np.arange(len(fit.tree.branches)), [len(b.points_lps_mm) for b in fit.tree.branches])
    trust = np.concatenate(fit.trust)
    search, named = _tree(points), []
    for branch in tree.branches:
        gap, nearest = search.query(branch.points_lps_mm)
        near = (gap < settings.name_mm) & (trust[nearest] > 0.5)
        votes = np.bincount(owner[nearest[near]], minlength=len(fit.tree.branches))
        best = int(votes.argmax())
        good = votes[best] >= settings.name_share * len(branch.points_lps_mm)
        named.append(replace(branch, name=fit.tree.branches[best].name) if good else branch)
    return VesselTree(tuple(named))


def _tree(points: np.ndarray):
    from scipy.spatial import cKDTree

    return cKDTree(points)


def _points(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    if not curves:
        return np.zeros((0, 3)), np.zeros(0)
    return np.concatenate([c.points_mm for c in curves]), np.concatenate([c.confidence for c in curves])


def _bridged(keep: np.ndarray, points: np.ndarray, gap_mm: float) -> np.ndarray:
    """``keep`` with short interior gaps closed, and those at the start of a branch, where it leaves its parent."""
    keep = keep.copy()
    arc = arc_length_mm(points)
    shown = np.flatnonzero(keep)
    if not len(shown):
        return keep
    if arc[shown[0]] <= gap_mm:
        keep[: shown[0]] = True
    for a, b in zip(shown[:-1], shown[1:], strict=True):
        if arc[b] - arc[a] <= gap_mm:
            keep[a:b] = True
    return keep
