# SPDX-License-Identifier: Apache-2.0
"""How far the delivered centreline may lie from the truth: for every point the radius of a ball, mm, that holds the
true centreline with 90 %.

Two views fix neither scale nor place (docs/geometry.md), so the ball is about the shape: it holds after the best
similarity of the whole tree. It is calibrated on simulated cases (``tools/calibrate_uncertainty.py``,
docs/uncertainty.md): a score that is linear in what is known about a point, then a monotone table from score to mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion import uncertainty_constants as constants
from licag3d.inversion.chains import Chains
from licag3d.inversion.rematching import FARTHEST_MM
from licag3d.inversion.several import Correspondence
from licag3d.structures import VesselTree

if TYPE_CHECKING:
    from licag3d.inversion.prior_fit import PriorFit

#: What a point's score is made of, in the order of the columns of :func:`point_features`.
FEATURES = (
    "unsupported",
    "confidence",
    "off_one_view",
    "off_other_view",
    "sine_deficit",
    "thin",
    "short_run",
    "near_end",
    "disagreed",
    "unmatched",
    "off_prior",
    "distrusted",
    "prior_strange",
    "moved",
    "unstable",
)
#: These need a fitted prior, and these an ensemble; without one they are left out.
PRIOR = ("off_prior", "distrusted", "prior_strange")
ENSEMBLE = ("moved", "unstable")
#: Matched places within this distance support a point, mm.
SUPPORT_MM = 1.5
#: Distances count up to this, mm.
CAP_MM = 5.0


@dataclass(frozen=True)
class PointErrors:
    """``error_mm``: per branch ``(n,)``, radius of the ball that holds the truth with 90 %, at most ``largest_mm``,
    which means "this or more". ``members``: of the ensemble that was asked. ``sentence``: for people."""

    error_mm: tuple[np.ndarray, ...]
    largest_mm: float
    members: int
    sentence: str


def point_errors(
    tree: VesselTree,
    cameras: Sequence[Camera],
    chains: Sequence[Chains],
    found: Correspondence,
    moved_mm: Sequence[np.ndarray] = (),
    *,
    fit: PriorFit | None = None,
    masks_given: bool = False,
) -> PointErrors:
    """The 90 % ball of every point of a tree.

    Args:
        tree: as delivered. cameras: as delivered. chains: centreline pieces of every view.
        found: what the views agreed on.
        moved_mm: per view ``(members, N)`` of :func:`licag3d.inversion.rematching.rematch_ensemble`; without it, or
            with no members, the cheaper formula without an ensemble is used.
        fit: of the prior, where the tree was completed by one; ``moved_mm`` is not used then.
        masks_given: the user's own masks of every view, which miss fewer vessels than what is found in the images.
    """
    members = len(moved_mm[0]) if len(moved_mm) else 0
    given = "masks" if masks_given else "images", "matching" if fit is None else "prior"
    # Where the prior bears the tree, matching it again tells nothing more (docs/uncertainty.md).
    members *= fit is None
    model = constants.MODELS[(*given, "ensemble" if members else "alone")]
    features = point_features(tree, cameras, chains, found, moved_mm, fit)
    if len(cameras) < 2:
        # One view: nothing tells the depth.
        radius = np.full(len(features), constants.LARGEST_MM)
    else:
        radius = radius_of(features, model)
    counts = np.cumsum([len(branch.points_lps_mm) for branch in tree.branches])[:-1]
    return PointErrors(
        tuple(np.split(radius, counts)) if tree.branches else (),
        constants.LARGEST_MM,
        members,
        _sentence(radius, len(cameras)),
    )


def with_errors(tree: VesselTree, errors: PointErrors) -> VesselTree:
    """The tree with the errors written into its branches."""
    return VesselTree(tuple(replace(b, error_mm=e) for b, e in zip(tree.branches, errors.error_mm, strict=True)))


def radius_of(features: np.ndarray, model: dict) -> np.ndarray:
    """Radius of the 90 % ball, ``(n,)`` mm: a linear score (logarithm of a first guess) through a monotone table."""
    score = features @ np.asarray(model["weights"]) + model["bias"]
    return np.interp(score, model["score"], model["radius_mm"])


def point_features(
    tree: VesselTree,
    cameras: Sequence[Camera],
    chains: Sequence[Chains],
    found: Correspondence,
    moved_mm: Sequence[np.ndarray] = (),
    fit: PriorFit | None = None,
) -> np.ndarray:
    """What is known about every point of the tree, ``(n, len(FEATURES))``; larger is worse, about 0 to 1 each.

    ``unsupported``: distance to the nearest matched place, over 5 mm (bridges, what a prior added). ``confidence``:
    1 minus the mean confidence of the matched places within 1.5 mm. ``off_one_view``, ``off_other_view``: distance of
    the reprojected point to the traced centreline in the view where it is worst, and in the next one, over 5 mm.
    ``sine_deficit``: logarithm of 1 over the sine between the two planes of ray and tangent: an error of a pixel
    becomes an error of a pixel over this sine. ``thin``: logarithm of 1.5 mm over the radius. ``short_run``: logarithm
    of 40 mm over the length of the run of supported points. ``near_end``: 1 at a free end, 0 from 5 mm on.
    ``disagreed``, ``unmatched``: 1 minus the shares of the centreline that both views agree on, and that is matched.
    ``off_prior``: distance to the fitted tree of the prior, over 5 mm; ``distrusted``: 1 minus the trust of the fit at
    the nearest place of it; ``prior_strange``: 1 minus its overall trust (all 0 without a prior).
    ``moved``: logarithm of the median displacement over the ensemble; ``unstable``: share of the ensemble in which the
    place moves by more than 1 mm.
    """
    from scipy.spatial import cKDTree

    counts = [len(branch.points_lps_mm) for branch in tree.branches]
    points = np.concatenate([np.zeros((0, 3)), *(np.asarray(b.points_lps_mm, float) for b in tree.branches)])
    radius = np.concatenate([np.zeros(0), *(np.asarray(b.radius_mm, float) for b in tree.branches)])
    out = np.zeros((len(points), len(FEATURES)))
    if not len(points):
        return out
    places = np.concatenate(found.points_mm)
    sure = np.concatenate(found.confidence)
    known = np.isfinite(places[:, 0])
    gap, support = np.full(len(points), CAP_MM), np.zeros(len(points))
    shift, unstable = np.full(len(points), FARTHEST_MM), np.ones(len(points))
    if known.any():
        nearby = cKDTree(places[known])
        gap = np.minimum(nearby.query(points)[0], CAP_MM)
        # The nearest sixteen within reach: a stretch of about four millimetres, of both views.
        distance, index = nearby.query(points, k=16, distance_upper_bound=SUPPORT_MM)
        here = np.isfinite(distance)
        index = np.where(here, index, 0)
        total = np.maximum(here.sum(1), 1)
        support = (here * sure[known][index]).sum(1) / total
        if len(moved_mm) and len(moved_mm[0]):
            moved = np.concatenate(list(moved_mm), axis=1)[:, known]
            middle, loose = np.nanmedian(moved, axis=0), np.nanmean(moved > 1.0, axis=0)
            lost = ~here.any(1)
            shift = np.where(lost, FARTHEST_MM, (here * middle[index]).sum(1) / total)
            unstable = np.where(lost, 1.0, (here * loose[index]).sum(1) / total)
    off = np.sort(_off_centrelines(points, cameras, chains), axis=0)[::-1]
    out[:, 0] = gap / CAP_MM
    out[:, 1] = 1.0 - support
    out[:, 2] = off[0] / CAP_MM
    out[:, 3] = (off[1] if len(off) > 1 else off[0]) / CAP_MM
    out[:, 4] = np.log(1.0 / np.maximum(_plane_sine(tree, points, cameras), 0.1))
    out[:, 5] = np.log(1.5 / np.maximum(radius, 0.3))
    run, end = _runs_and_ends(tree, counts, (gap < SUPPORT_MM) & (support > 0.5))
    out[:, 6] = np.log(40.0 / np.clip(run, 1.0, 40.0))
    out[:, 7] = np.clip(1.0 - end / 5.0, 0.0, 1.0)
    out[:, 8] = 1.0 - found.agreed_share
    out[:, 9] = 1.0 - found.matched_share
    if fit is not None:
        out[:, 10:13] = _against_prior(points, fit)
    out[:, 13] = np.log(np.maximum(shift, 0.05) / 0.3)
    out[:, 14] = unstable
    return out


def _against_prior(points: np.ndarray, fit: PriorFit) -> np.ndarray:
    """Distance to the fitted tree, distrust of it there, and distrust of all of it; ``(n, 3)``."""
    from scipy.spatial import cKDTree

    from licag3d.vessels.tree import flatten_tree

    trust = np.concatenate([np.zeros(0), *fit.trust])
    out = np.ones((len(points), 3))
    out[:, 2] = 1.0 - fit.overall
    if len(trust):
        away, nearest = cKDTree(flatten_tree(fit.tree).points_lps_mm).query(points)
        out[:, 0], out[:, 1] = np.minimum(away, CAP_MM) / CAP_MM, 1.0 - trust[nearest]
    return out


def _off_centrelines(points: np.ndarray, cameras, chains: Sequence[Chains]) -> np.ndarray:
    """Distance of the reprojected points to the traced centreline of every view, ``(views, n)`` mm, capped."""
    from scipy.spatial import cKDTree

    rows = []
    for camera, chain in zip(cameras, chains, strict=True):
        if not len(chain.pixels):
            rows.append(np.full(len(points), CAP_MM))
            continue
        pixels, _ = camera.project(points)
        away = cKDTree(chain.pixels).query(np.clip(pixels, -1e5, 1e5))[0]
        rows.append(np.minimum(away * chain.mm_per_pixel, CAP_MM))
    return np.array(rows)


def _plane_sine(tree: VesselTree, points: np.ndarray, cameras) -> np.ndarray:
    """Largest sine, over pairs of views, between the planes of ray and vessel tangent, ``(n,)``.

    The point is the meeting of both planes and the order along the vessel; where the planes coincide (the vessel runs
    within an epipolar plane) the depth is open.
    """
    tangent = np.concatenate([_tangents(np.asarray(b.points_lps_mm, float)) for b in tree.branches])
    normals = []
    for camera in cameras:
        normal = np.cross(points - camera.source_lps_mm, tangent)
        normals.append(normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9))
    best = np.zeros(len(points))
    for i in range(len(normals)):
        for j in range(i):
            best = np.maximum(best, np.linalg.norm(np.cross(normals[i], normals[j]), axis=1))
    return best


def _tangents(points: np.ndarray, window: int = 3) -> np.ndarray:
    if len(points) < 2:
        return np.zeros_like(points)
    index = np.arange(len(points))
    step = points[np.minimum(index + window, len(points) - 1)] - points[np.maximum(index - window, 0)]
    return step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-9)


def _runs_and_ends(tree: VesselTree, counts: list[int], supported: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length of the run of supported points that a point belongs to (0 for others), and arc to the free end; mm."""
    runs, ends, at = [], [], 0
    for branch, count in zip(tree.branches, counts, strict=True):
        points = np.asarray(branch.points_lps_mm, float)
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        good = supported[at : at + count]
        run = np.zeros(count)
        for piece in np.split(np.arange(count), np.flatnonzero(np.diff(good.astype(int))) + 1):
            if good[piece[0]]:
                run[piece] = arc[piece[-1]] - arc[piece[0]]
        runs.append(run)
        ends.append(arc[-1] - arc)  # a branch is followed to its end: what leaves it does so before
        at += count
    return np.concatenate(runs), np.concatenate(ends)


def _sentence(radius: np.ndarray, views: int) -> str:
    if not len(radius):
        return ""
    if views < 2:
        return "With one view the depth is open, so no error can be given."
    half, most = np.quantile(radius, [0.5, 0.9])
    doubtful = float((radius >= 3.0).mean())
    return (
        f"Expected error (the ball of this radius holds the true centreline with 90 %, after the best similarity, "
        f"for the views show neither scale nor place): median {half:.1f} mm, nine tenths of the tree below "
        f"{most:.1f} mm; {100 * doubtful:.0f} % of its length may be off by 3 mm or more, or be no vessel."
    )
