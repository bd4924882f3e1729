# SPDX-License-Identifier: Apache-2.0
"""Which frames of two cines show the heart in the same phase: those whose vessels fit one tree best.

Two frames of one phase differ by the unknown table offset only, and then nearly every piece of centreline of one has a
partner in its epipolar plane in the other. Between phases vessels move by millimetres, each its own way, which no
offset mends: length stays unmatched. So all pairs are given one offset across the epipolar planes, up to a breath, and
judged by the matching cost that is left (:mod:`licag3d.inversion.camera_search`), per millimetre of centreline, less
what both frames cost with every partner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.camera_search import SearchSettings, camera_costs
from licag3d.inversion.chains import Chains
from licag3d.inversion.epipolar import epipolar_pair

#: A centreline point every so many millimetres: enough to tell phases, and nine times faster than the matching itself.
SPACING_MM = 1.3
#: Offsets are tried in such steps, and a pair may differ from the common offset by a breath of so many steps.
STEP_MM, BREATH_STEPS = 1.0, 2


@dataclass(frozen=True)
class FramePair:
    """One pair of frames.

    Args:
        first, second: positions in the lists given.
        cost: matching cost per mm of centreline of both frames, no unit; 0 would be a perfect fit of everything.
        misfit: the part of the cost that belongs to the pair and not to either frame; negative is better than chance.
        matched: share of the centreline length of both frames that was matched.
        offset_mm: offset across the epipolar planes at which the pair fits best.
    """

    first: int
    second: int
    cost: float
    misfit: float
    matched: float
    offset_mm: float


def rank_frame_pairs(
    first: Sequence[tuple[Camera, Chains]],
    second: Sequence[tuple[Camera, Chains]],
    *,
    range_mm: float = 40.0,
    progress: Callable[[float, str], None] | None = None,
) -> list[FramePair]:
    """All pairs of candidate frames of two cines, best first.

    The offset is one of the table, so it is the same for all pairs of one acquisition unless the patient breathes: each
    pair is searched around the offset on which the pairs agree best, within a breath.

    Args:
        first, second: candidate frames: camera as given, centreline pieces (``chains_from_graph`` with
            ``spacing_mm=SPACING_MM``). A frame without centreline is left out.
        range_mm: offsets are tried within plus or minus this.
    """
    pairs = [
        (i, j) for i in range(len(first)) for j in range(len(second)) if first[i][1].pieces and second[j][1].pieces
    ]
    steps = np.arange(-range_mm, range_mm + 1e-9, STEP_MM)
    rows = []
    for count, (i, j) in enumerate(pairs):
        rows.append(_costs(first[i], second[j], steps))
        if progress:
            progress((count + 1) / (len(pairs) + 1), f"pair {count + 1} of {len(pairs)}")
    if not pairs:
        return []
    cost, matched = (np.array(x) for x in zip(*rows, strict=True))
    # A common offset by the better half of the pairs: those out of phase have no say in it.
    keep = np.argsort(cost.min(1))[: max(1, len(pairs) // 2)]
    common = int(np.median(cost[keep], axis=0).argmin())
    near = np.arange(max(common - BREATH_STEPS, 0), min(common + BREATH_STEPS + 1, len(steps)))
    best = near[cost[:, near].argmin(1)]
    least = cost[np.arange(len(pairs)), best]
    misfit = _interaction(pairs, least)
    found = [
        FramePair(i, j, float(least[n]), float(misfit[n]), float(matched[n, best[n]]), float(steps[best[n]]))
        for n, (i, j) in enumerate(pairs)
    ]
    return sorted(found, key=lambda pair: pair.misfit)


def _interaction(pairs: list[tuple[int, int]], cost: np.ndarray) -> np.ndarray:
    """What of the cost is due to the pair: less the means of both its frames, plus the mean of all.

    A frame that is sparsely filled, or whose vessels overlap less, is cheap or dear with every partner; that says
    nothing about phase.
    """
    i, j = np.array(pairs).T
    mean = [np.bincount(k, cost) / np.maximum(np.bincount(k), 1) for k in (i, j)]
    return cost - mean[0][i] - mean[1][j] + cost.mean()


def _costs(one: tuple[Camera, Chains], two: tuple[Camera, Chains], offsets: np.ndarray):
    """Cost and matched share for offsets across the epipolar planes."""
    across = epipolar_pair(one[0], two[0]).across
    base = np.asarray(two[0].offset_lps_mm)
    prices = SearchSettings().prices
    candidates = [(one[0], two[0].with_offset(base + offset * across)) for offset in offsets]
    cost, matched = camera_costs(candidates, (one[1], two[1]), prices)
    length = one[1].length_mm + two[1].length_mm
    return cost / length, matched / length
