# SPDX-License-Identifier: Apache-2.0
"""Minimal lumen diameter and percent stenosis, lesion by lesion; definitions in docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from licag3d.errors import InputError
from licag3d.metrics.branches import resampled
from licag3d.metrics.centerline import CenterlinePoints
from licag3d.structures import VesselTree

#: The prediction is read where its centreline lies within this of the lesion, mm.
MATCH_MM = 2.0
#: The reference diameter comes from this much vessel on both sides of the lesion, mm.
REFERENCE_MM = 5.0
#: A narrowing of less is no lesion, and one that closes the vessel leaves nothing to measure, percent of diameter.
MIN_PERCENT, MAX_PERCENT = 10.0, 99.0
_NAMES = (
    "lesion_recall_2mm",
    "mld_error_mm",
    "mld_bias_mm",
    "stenosis_error_percent",
    "stenosis_bias_percent",
)


def check_lesions(content: Any, where: str) -> tuple[dict, ...]:
    """The lesions of ``case.json`` (its key ``lesions``), checked.

    Raises:
        InputError: not a list of objects with ``branch`` (name), ``start_mm``, ``length_mm`` and ``percent_diameter``.
    """
    if content is None:
        return ()
    if not isinstance(content, list) or len(content) > 1000:
        raise InputError(f"{where}: lesions must be a list of at most 1000 entries")
    lesions = []
    for k, entry in enumerate(content):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("branch"), str):
            raise InputError(
                f"{where}: lesions[{k}] needs the name of its branch, start_mm, length_mm and percent_diameter"
            )
        for key in ("start_mm", "length_mm", "percent_diameter"):
            value = entry.get(key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InputError(f"{where}: lesions[{k}]: {key} is {str(value)[:40]!r}; expected a number")
        lesions.append(dict(entry))
    return tuple(lesions)


def lesion_metrics(pred: CenterlinePoints, truth: VesselTree, lesions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Errors over the lesions that narrow a vessel by 10 to 99 % of its diameter (dilatations and occlusions are
    not scored); NaN without any.

    Prediction and truth are measured with one ruler: the minimal lumen diameter (MLD) inside the lesion, and percent
    stenosis ``100 (1 - MLD / reference)``, the reference being the mean of the median diameters over up to 5 mm of
    the same branch before and after the lesion (Reiber et al., Circulation 71 (1985) 280; one side where the
    branch has only one). A predicted point is read where its nearest point of the truth belongs to that stretch, within
    2 mm.

    Args:
        pred: predicted points of equal arc length.
        lesions: ``branch`` (name), ``start_mm``, ``length_mm`` (arc along the branch), ``percent_diameter``.
    """
    from scipy.spatial import cKDTree

    scored = [x for x in lesions if x.get("kind") not in ("aneurysm", "ectasia", "occlusion")]
    scored = [x for x in scored if MIN_PERCENT <= x["percent_diameter"] <= MAX_PERCENT]
    by_name = {branch.name: k for k, branch in enumerate(truth.branches) if branch.name}
    if not scored:
        return dict.fromkeys(_NAMES, math.nan)
    lines = [resampled(branch) for branch in truth.branches]
    points = np.concatenate([line[0] for line in lines])
    owner = np.concatenate([np.full(len(line[0]), k) for k, line in enumerate(lines)])
    arc = np.concatenate([line[2] for line in lines])
    place = np.zeros(0, np.int64)
    near = np.zeros(0, bool)
    if len(pred.points_lps_mm):
        distance, place = cKDTree(points).query(pred.points_lps_mm)
        near = distance <= MATCH_MM
    found, mld, percent = [], [], []
    for lesion in scored:
        if lesion["branch"] not in by_name:
            raise InputError(f"case.json names a lesion in branch {lesion['branch']!r}, which centerlines.json lacks")
        k = by_name[lesion["branch"]]
        true = _measured(lines[k][2], 2 * lines[k][1], lesion)
        if true is None:
            continue
        mine = near & (owner[place] == k) if len(place) else near
        seen = _measured(arc[place[mine]], 2 * pred.radius_mm[mine], lesion) if mine.any() else None
        found.append(0.0 if seen is None else 1.0)
        if seen is not None:
            mld.append(seen[0] - true[0])
            percent.append(seen[1] - true[1])
    values = (
        _mean(found),
        _mean([abs(x) for x in mld]),
        _mean(mld),
        _mean([abs(x) for x in percent]),
        _mean(percent),
    )
    return dict(zip(_NAMES, values, strict=True))


def _measured(arc_mm: np.ndarray, diameter_mm: np.ndarray, lesion: Mapping[str, Any]) -> tuple[float, float] | None:
    """MLD in mm and percent stenosis from diameters along a branch; None when the lesion or its reference is unseen."""
    start, end = lesion["start_mm"], lesion["start_mm"] + lesion["length_mm"]
    inside = (arc_mm >= start) & (arc_mm <= end)
    before = (arc_mm < start) & (arc_mm >= start - REFERENCE_MM)
    after = (arc_mm > end) & (arc_mm <= end + REFERENCE_MM)
    sides = [float(np.median(diameter_mm[side])) for side in (before, after) if side.any()]
    if not inside.any() or not sides:
        return None
    smallest, reference = float(diameter_mm[inside].min()), sum(sides) / len(sides)
    return smallest, 100 * (1 - smallest / reference)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
