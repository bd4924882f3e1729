# SPDX-License-Identifier: Apache-2.0
"""Narrowings of a branch from its radius profile: percent diameter stenosis against an interpolated reference.

Percent diameter stenosis is ``100 (1 - MLD / RVD)`` with the minimal lumen diameter (MLD) and the reference vessel
diameter (RVD) at the same place, as in quantitative coronary angiography (Reiber et al., Circulation 1985;71:280). The
reference is a straight line through the diameters along the branch, since a healthy vessel tapers about linearly. It is
fitted by the median of slopes of Theil and Sen, which tolerates lesions over a quarter of the branch, and then again
without what lies below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.structures import Branch, VesselTree
from licag3d.vessels.tree import arc_length_mm, resample_branch

_HEALTHY = 0.9  # at least this share of the reference counts as not narrowed
#: What a minimal diameter is uncertain by in addition to the radius of any other point, as a share of it: it was chosen
#: for being the least. With :data:`_SPREADS_90` set on phantom lesions (docs/refinement.md).
_CHOSEN_SHARE = 0.25
#: 90 % of phantom lesions lie within this many deviations of the logarithm.
_SPREADS_90 = 1.75


SHOWN, DENIED = "shows it", "does not show it"


@dataclass(frozen=True)
class Sight:
    """What one view says of a narrowing.

    ``view``: number, from 0; ``pixel``: (col, row) of the narrowest place; ``state``: ``shows it``, ``does not show
    it``, or why it says nothing; ``percent``: diameter stenosis in this view, None where it says nothing;
    ``line_px``: ``(n, 2)`` course of the vessel in the frame, ``mark``: first and last place in it that are narrow,
    ``half_width_px``: of the healthy vessel.
    """

    view: int
    pixel: tuple[float, float]
    state: str
    percent: float | None = None
    line_px: tuple[tuple[float, float], ...] = ()
    mark: tuple[int, int] = (0, 0)
    half_width_px: float = 3.0


@dataclass(frozen=True)
class Stenosis:
    """One narrowing.

    ``at_mm``: arc length from the start of the branch to the smallest diameter; ``length_mm``: stretch around it with a
    diameter below 90 % of the reference. ``minimal_sigma_mm`` and ``percent_sigma``: standard deviations of the minimal
    diameter and of the percent, from those of the radii (docs/refinement.md); ``minimal_90_mm``: interval of the
    minimal diameter that held 90 % of phantom lesions. None where the tree has no deviations. Of narrowings that were
    read view by view (:mod:`licag3d.inversion.narrowings`) also ``percent_90``, ``confidence`` (``high`` or
    ``moderate``) and ``sights``, the view that shows it best first.
    """

    branch_id: int
    at_mm: float
    position_lps_mm: tuple[float, float, float]
    minimal_diameter_mm: float
    reference_diameter_mm: float
    percent_diameter: float
    length_mm: float
    minimal_sigma_mm: float | None = None
    percent_sigma: float | None = None
    minimal_90_mm: tuple[float, float] | None = None
    percent_90: tuple[float, float] | None = None
    confidence: str = ""
    sights: tuple[Sight, ...] = ()

    @property
    def percent_area(self) -> float:
        """Area stenosis of a round lumen, percent."""
        return 100 * (1 - (1 - self.percent_diameter / 100) ** 2)

    @property
    def best_sight(self) -> Sight | None:
        """The view that shows it most clearly, the first of those that show it."""
        return next((sight for sight in self.sights if sight.state == SHOWN), None)


def reference_diameter_mm(arc_mm, diameter_mm) -> np.ndarray:
    """Diameter ``(n,)`` that the vessel would have without narrowings: a robust straight line, never negative."""
    arc, diameter = np.asarray(arc_mm, np.float64), np.asarray(diameter_mm, np.float64)
    if len(arc) < 3 or np.ptp(arc) == 0:
        return np.full(len(arc), np.median(diameter) if len(diameter) else 0.0)
    slope, start = _theil_sen(arc, diameter)
    for _ in range(3):
        kept = diameter >= _HEALTHY * (start + slope * arc)
        if kept.sum() < max(3, len(arc) // 4) or np.ptp(arc[kept]) == 0:
            break
        slope, start = _theil_sen(arc[kept], diameter[kept])
    return np.maximum(start + slope * arc, 0.0)


def find_stenoses(
    tree: VesselTree, *, min_percent: float = 25.0, min_branch_mm: float = 8.0, min_reference_mm: float = 0.0
) -> tuple[Stenosis, ...]:
    """Narrowings of at least ``min_percent`` diameter, worst first.

    The part of a side branch inside its parent's lumen and the last millimetre of every branch are left out: their
    radii are not those of a free vessel. Branches with less than ``min_branch_mm`` left have no reference
    and are skipped, and so are narrowings where that is below ``min_reference_mm``.
    """
    by_id = {branch.id: branch for branch in tree.branches}
    found = [lesion for branch in tree.branches
             for lesion in _of_branch(branch, by_id.get(branch.parent), min_percent, min_branch_mm)]
    found = [lesion for lesion in found if lesion.reference_diameter_mm >= min_reference_mm]
    return tuple(sorted(found, key=lambda lesion: -lesion.percent_diameter))


def _of_branch(branch: Branch, parent: Branch | None, min_percent: float, min_branch_mm: float) -> list[Stenosis]:
    if len(branch.points_lps_mm) < 2:
        return []
    branch = resample_branch(branch, 0.25)
    arc = arc_length_mm(branch.points_lps_mm)
    first = 0.0
    if parent is not None:
        nearest = np.argmin(((np.asarray(parent.points_lps_mm) - branch.points_lps_mm[0]) ** 2).sum(1))
        first = float(parent.radius_mm[nearest])
    inside = (arc >= first) & (arc <= arc[-1] - 1.0)
    if inside.sum() < 3 or np.ptp(arc[inside]) < min_branch_mm:
        return []
    points, arc, diameter = branch.points_lps_mm[inside], arc[inside], 2 * branch.radius_mm[inside]
    sigma = None if branch.radius_sigma_mm is None else 2 * np.asarray(branch.radius_sigma_mm)[inside]
    reference = np.maximum(reference_diameter_mm(arc, diameter), 1e-6)
    narrow = diameter < _HEALTHY * reference
    edges = np.flatnonzero(np.diff(np.concatenate([[False], narrow, [False]]).astype(int)))
    lesions = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        worst = begin + int(np.argmin(diameter[begin:end] / reference[begin:end]))
        percent = 100 * (1 - diameter[worst] / reference[worst])
        if percent >= min_percent:
            x, y, z = (float(v) for v in points[worst])
            spread = (None, None, None)
            if sigma is not None:
                spread = _spreads(diameter[worst], reference[worst], sigma, worst, narrow)
            lesions.append(Stenosis(branch.id, float(arc[worst]), (x, y, z), float(diameter[worst]),
                                    float(reference[worst]), float(percent), float(arc[end - 1] - arc[begin]), *spread))
    return lesions


def minimal_sigma_mm(minimal_mm: float, sigma_mm: float) -> float:
    """Standard deviation of the least diameter of a narrowing, mm, from that of the diameter there."""
    return float(np.hypot(sigma_mm, _CHOSEN_SHARE * minimal_mm))


def _spreads(minimal, reference, sigma: np.ndarray, worst: int, narrow: np.ndarray):
    """Standard deviation of the minimal diameter, mm, and of the percent, that of ``1 - minimal / reference``, where
    the line of reference is taken to be as uncertain as one healthy diameter (they err together along a vessel); and
    the 90 % interval of the minimal diameter, mm. Errors of lumens are even in the logarithm, and at most the lumen is
    not narrowed at all."""
    healthy = float(np.median(sigma[~narrow])) if (~narrow).any() else float(np.median(sigma))
    least = minimal_sigma_mm(minimal, sigma[worst])
    percent = 100 / reference * np.hypot(least, minimal / reference * healthy)
    factor = float(np.exp(_SPREADS_90 * least / minimal))
    return least, float(percent), (float(minimal / factor), float(min(minimal * factor, reference)))


def _theil_sen(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept: the median slope over all pairs of points (of at most 400)."""
    if len(x) > 400:
        chosen = np.linspace(0, len(x) - 1, 400).round().astype(int)
        x, y = x[chosen], y[chosen]
    i, j = np.triu_indices(len(x), 1)
    apart = x[j] != x[i]
    slope = float(np.median((y[j] - y[i])[apart] / (x[j] - x[i])[apart]))
    return slope, float(np.median(y - slope * x))
