# SPDX-License-Identifier: Apache-2.0
"""Branch by branch: the overlap measures of Schaap et al., and which branches were found; definitions in
docs/metrics.md.

M. Schaap et al., Standardized evaluation methodology and reference database for evaluating coronary artery centerline
extraction algorithms, Medical Image Analysis 13 (2009) 701-714, sections 5.2 to 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.metrics.centerline import STEP_MM, nearest_distances
from licag3d.structures import Branch, VesselTree

#: Shorter branches of the truth are no vessel to be judged on their own, mm.
MIN_BRANCH_MM = 5.0
#: OF forgives misses before this arc length (where a vessel begins is a matter of taste), mm.
FORGIVEN_START_MM = 5.0
#: OT looks at the vessel up to the last point with at least this radius, mm (1.5 mm of diameter).
RELEVANT_RADIUS_MM = 0.75
#: A branch is found when at least this share of it is.
FOUND_SHARE = 0.8


@dataclass(frozen=True)
class Overlap:
    """Schaap's four measures of one vessel: shares, and ``ai_mm`` in mm (NaN when nothing matches; ``ot`` is NaN when
    no point of the reference is wide enough)."""

    ov: float
    of: float
    ot: float
    ai_mm: float


def schaap_overlap(evaluated_mm: np.ndarray, reference_mm: np.ndarray, radius_mm: np.ndarray) -> Overlap:
    """OV, OF, OT and AI of an evaluated line against a reference line with radii.

    Args:
        evaluated_mm: ``(m, 3)`` points in order, proximal first; may be empty.
        reference_mm: ``(n, 3)`` points of equal arc length, proximal first. radius_mm: ``(n,)``.

    Both lines are connected point by point with the least total length, in order and with no point left over. A
    connection counts when it is shorter than the radius at its reference point. Points with a connection that counts
    are true: OV is their share among all of both lines; OF the share of the reference before its first miss (misses in
    the first 5 mm are forgiven); OT is OV up to the last reference point with a radius of 0.75 mm; AI is the mean
    length of the connections that count.
    """
    relevant = np.flatnonzero(radius_mm >= RELEVANT_RADIUS_MM)
    if len(evaluated_mm) == 0:
        return Overlap(0.0, 0.0, 0.0 if len(relevant) else float("nan"), float("nan"))
    i, j = correspondence(reference_mm, evaluated_mm)
    length = np.linalg.norm(reference_mm[i] - evaluated_mm[j], axis=1)
    counts = length < radius_mm[i]
    true_reference, true_evaluated = np.zeros(len(reference_mm), bool), np.zeros(len(evaluated_mm), bool)
    np.logical_or.at(true_reference, i, counts)
    np.logical_or.at(true_evaluated, j, counts)
    arc = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(reference_mm, axis=0), axis=1))))
    missed = np.flatnonzero(~true_reference & (arc >= FORGIVEN_START_MM))
    until = int(missed[0]) if len(missed) else len(reference_mm)
    before = int(true_reference[:until].sum())  # forgiven misses count on neither side
    of = before / (before + len(reference_mm) - until) if before else 0.0
    ot = float("nan")
    if len(relevant):
        part = i <= relevant[-1]
        evaluated_part = np.zeros(len(evaluated_mm), bool)
        evaluated_part[j[part]] = True
        true = true_reference[: relevant[-1] + 1].sum() + true_evaluated[evaluated_part].sum()
        ot = float(true / (relevant[-1] + 1 + evaluated_part.sum()))
    ov = float((true_reference.sum() + true_evaluated.sum()) / (len(reference_mm) + len(evaluated_mm)))
    return Overlap(ov, of, ot, float(length[counts].mean()) if counts.any() else float("nan"))


def correspondence(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs ``(k,)``, ``(k,)`` that connect two lines in order with the least total length.

    Each row of the table of least sums follows from the row above by one running minimum.
    """
    from scipy.spatial.distance import cdist

    cost = cdist(first, second)
    n, m = cost.shape
    total = np.empty((n, m))
    total[0] = np.cumsum(cost[0])
    for row in range(1, n):
        above = total[row - 1].copy()
        above[1:] = np.minimum(above[1:], total[row - 1, :-1])
        so_far = np.cumsum(cost[row])
        total[row] = so_far + np.minimum.accumulate(above - (so_far - cost[row]))
    i, j = n - 1, m - 1
    pairs = [(i, j)]
    while i or j:
        if i == 0:
            j -= 1
        elif j == 0:
            i -= 1
        else:
            diagonal, up, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            if diagonal <= up and diagonal <= left:
                i, j = i - 1, j - 1
            elif up <= left:
                i -= 1
            else:
                j -= 1
        pairs.append((i, j))
    found = np.array(pairs[::-1])
    return found[:, 0], found[:, 1]


@dataclass(frozen=True)
class Forest:
    """A tree as points of equal spacing with their predecessor towards the root (-1 at a root): ``points_lps_mm``
    ``(n, 3)``, ``before`` ``(n,)``, ``depth`` ``(n,)`` number of steps from the root, ``root`` ``(n,)``."""

    points_lps_mm: np.ndarray
    before: np.ndarray
    depth: np.ndarray
    root: np.ndarray

    def path(self, a: int, b: int) -> np.ndarray:
        """Nodes from ``a`` to ``b``, which hang on the same root."""
        up, down = [a], [b]
        while up[-1] != down[-1]:
            if self.depth[up[-1]] >= self.depth[down[-1]]:
                up.append(int(self.before[up[-1]]))
            else:
                down.append(int(self.before[down[-1]]))
        return np.array(up + down[-2::-1])


def forest(tree: VesselTree) -> Forest:
    """Sample every branch at about 0.25 mm and hang it on the nearest point of its parent."""
    points, before, depth, root = [], [], [], []
    at: dict[int, tuple[int, np.ndarray]] = {}
    count = 0
    for branch in tree.branches:
        line = resampled(branch)[0]
        index = np.arange(count, count + len(line))
        joint = -1
        if branch.parent is not None and branch.parent in at:
            start, parent = at[branch.parent]
            joint = start + int(np.argmin(((parent - line[0]) ** 2).sum(1)))
        deep = 0 if joint < 0 else _flat(depth, joint) + 1
        points.append(line)
        before.append(np.concatenate(([joint], index[:-1])))
        depth.append(deep + np.arange(len(line)))
        root.append(np.full(len(line), count if joint < 0 else _flat(root, joint)))
        at[branch.id] = (count, line)
        count += len(line)
    if not points:
        return Forest(np.zeros((0, 3)), *(np.zeros(0, np.int64) for _ in range(3)))
    return Forest(np.concatenate(points), *(np.concatenate(x).astype(np.int64) for x in (before, depth, root)))


def _flat(parts: list[np.ndarray], index: int) -> int:
    for part in parts:
        if index < len(part):
            return int(part[index])
        index -= len(part)
    raise IndexError(index)


def resampled(branch: Branch, step_mm: float = STEP_MM) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points ``(n, 3)`` at equal arc length of about ``step_mm`` with both ends, radius ``(n,)`` and arc ``(n,)``."""
    line = np.asarray(branch.points_lps_mm, np.float64)
    arc = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))))
    wanted = np.linspace(0, arc[-1], max(1, round(arc[-1] / step_mm)) + 1)
    points = np.stack([np.interp(wanted, arc, line[:, k]) for k in range(3)], axis=1)
    return points, np.interp(wanted, arc, branch.radius_mm), wanted


def branch_overlaps(pred: VesselTree, truth: VesselTree) -> dict[int, Overlap]:
    """Schaap's measures of every branch of the truth that is at least 5 mm long, by branch id.

    The evaluated line of a branch is the path through the prediction from its first to its last point (by position
    along the branch) that lies within the branch's radius of it; of several unconnected pieces the one with the
    largest OV counts. What sticks out beyond both points belongs to other branches or is counted by precision; a detour
    between them counts as false.
    """
    from scipy.spatial import cKDTree

    nodes = forest(pred)
    result = {}
    for branch in truth.branches:
        line, radius, arc = resampled(branch)
        if arc[-1] < MIN_BRANCH_MM:
            continue
        best = schaap_overlap(np.zeros((0, 3)), line, radius)
        if len(nodes.points_lps_mm):
            distance, place = cKDTree(line).query(nodes.points_lps_mm, distance_upper_bound=float(radius.max()) + 1e-9)
            matched = np.flatnonzero(np.isfinite(distance))
            matched = matched[distance[matched] < radius[place[matched]]]
            for root in np.unique(nodes.root[matched]):
                piece = matched[nodes.root[matched] == root]
                first = piece[np.lexsort((distance[piece], place[piece]))[0]]
                last = piece[np.lexsort((distance[piece], -place[piece]))[0]]
                found = schaap_overlap(nodes.points_lps_mm[nodes.path(int(first), int(last))], line, radius)
                best = max(best, found, key=lambda x: x.ov)
        result[branch.id] = best
    return result


def schaap_metrics(pred: VesselTree, truth: VesselTree) -> dict[str, float]:
    """Means of Schaap's measures over the branches of the truth (NaN without a branch of 5 mm)."""
    found = list(branch_overlaps(pred, truth).values())
    values = {
        "schaap_ov": [x.ov for x in found],
        "schaap_of": [x.of for x in found],
        "schaap_ot": [x.ot for x in found],
        "schaap_ai_mm": [x.ai_mm for x in found],
    }
    return {name: _mean(value) for name, value in values.items()}


def branch_recall(pred_points_mm: np.ndarray, truth: VesselTree) -> dict[str, float]:
    """Share of the truth's branches of which at least 80 % lies within 1 (2) mm of the prediction.

    Only the part of a branch that is farther than the tolerance from its parent counts: the rest would be found with
    the parent alone. A branch of less than 5 mm, or with no such part, is left out.
    """
    by_id = {branch.id: branch for branch in truth.branches}
    found: dict[float, list[bool]] = {1.0: [], 2.0: []}
    for branch in truth.branches:
        line, _, arc = resampled(branch)
        if arc[-1] < MIN_BRANCH_MM:
            continue
        away = nearest_distances(line, pred_points_mm)[0]
        parent = by_id.get(branch.parent) if branch.parent is not None else None
        apart = np.full(len(line), np.inf) if parent is None else nearest_distances(line, resampled(parent)[0])[0]
        for tolerance, hits in found.items():
            own = apart > tolerance
            if own.any():
                hits.append(bool((away[own] <= tolerance).mean() >= FOUND_SHARE))
    return {f"branch_recall_{tolerance:g}mm": _mean([float(x) for x in hits]) for tolerance, hits in found.items()}


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
