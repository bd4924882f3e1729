# SPDX-License-Identifier: Apache-2.0
"""The translation, and the similarity, that bring a predicted centreline closest to the truth.

Two views with an unknown offset leave a scale and a shift open (docs/geometry.md), and angles read with an error turn
the whole tree: so a reconstruction is scored as it is, after the best translation, and after the best similarity. What
is maximised is the centreline F1 at 1 mm. It is not smooth and has many local maxima, so the search is:
cross-correlation on a grid (every translation at once, at seven scales) -> iterated closest points with shrinking
tolerance from the best peaks -> pattern search on the F1 itself. It is deterministic, and what it returns is a lower
bound of the true maximum.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from licag3d.metrics.centerline import CenterlinePoints, harmonic
from licag3d.structures import VesselTree

#: Bounds of the similarity; reflections are excluded.
SCALE_RANGE = (0.8, 1.25)
ROTATION_LIMIT_DEG = 10.0
_SCALES = (0.8, 0.86, 0.93, 1.0, 1.08, 1.16, 1.25)
_GRID_MM = 2.0
_PEAKS = 6
_SEARCH_POINTS = 600
_STARTS, _FINALISTS = 14, 4


@dataclass(frozen=True)
class Similarity:
    """``x -> scale * rotation @ (x - pivot) + pivot + translation``, all in LPS mm; the pivot is the prediction's
    centroid.
    """

    scale: float = 1.0
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    translation_mm: np.ndarray = field(default_factory=lambda: np.zeros(3))
    pivot_mm: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def apply(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """Points ``(n, 3)`` moved."""
        return self.scale * (points_lps_mm - self.pivot_mm) @ self.rotation.T + self.pivot_mm + self.translation_mm

    def apply_tree(self, tree: VesselTree) -> VesselTree:
        """Tree moved and calibre scaled."""
        return VesselTree(
            tuple(
                replace(b, points_lps_mm=self.apply(b.points_lps_mm), radius_mm=self.scale * b.radius_mm)
                for b in tree.branches
            )
        )

    def apply_to(self, points: CenterlinePoints) -> CenterlinePoints:
        """Centreline moved and calibre scaled."""
        return CenterlinePoints(self.apply(points.points_lps_mm), self.scale * points.radius_mm)

    @property
    def rotation_deg(self) -> float:
        """Angle of the rotation, degrees."""
        return float(np.rad2deg(np.linalg.norm(_log_rotation(self.rotation))))


def best_translation(pred: np.ndarray, truth: np.ndarray) -> Similarity:
    """The translation that maximises F1 at 1 mm.

    Args:
        pred, truth: points ``(n, 3)`` and ``(m, 3)`` of equal arc length, LPS mm.
    """
    return _search(pred, truth, scales=(1.0,), rigid=True, extra=[])


def best_similarity(pred: np.ndarray, truth: np.ndarray, start: Similarity | None = None) -> Similarity:
    """The similarity (scale 0.8 to 1.25, rotation at most 10 degrees, no reflection) that maximises F1 at 1 mm.

    Args:
        start: a solution to start from besides (the best translation), so that the result is never worse.
    """
    return _search(pred, truth, scales=_SCALES, rigid=False, extra=[] if start is None else [start])


class _Objective:
    """F1 at 1 mm of a similarity, on thinned points; both search trees are built once."""

    def __init__(self, pred: np.ndarray, truth: np.ndarray, thin: bool = True) -> None:
        from scipy.spatial import cKDTree

        self.pred = pred[:: max(1, len(pred) // _SEARCH_POINTS)] if thin else pred
        self.truth = truth[:: max(1, len(truth) // _SEARCH_POINTS)] if thin else truth
        self.pred_tree, self.truth_tree = cKDTree(self.pred), cKDTree(self.truth)

    def distances(self, s: Similarity, limit_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Distances and indices, prediction to truth and back; inf beyond ``limit_mm``."""
        forward, i = self.truth_tree.query(s.apply(self.pred), distance_upper_bound=limit_mm)
        # Backwards: the truth is brought into the prediction's own frame, where distances are 1/scale as long.
        home = (self.truth - s.pivot_mm - s.translation_mm) @ s.rotation / s.scale + s.pivot_mm
        backward, j = self.pred_tree.query(home, distance_upper_bound=limit_mm / s.scale)
        return forward, i, backward * s.scale, j

    def loose(self, s: Similarity) -> float:
        """F1 with a soft edge of 4 mm: which starts are worth their effort."""
        forward, _, backward, _ = self.distances(s, 4.0)
        return harmonic(float(np.maximum(1 - forward / 4, 0).mean()), float(np.maximum(1 - backward / 4, 0).mean()))

    def __call__(self, s: Similarity) -> float:
        forward, _, backward, _ = self.distances(s, 1.5)
        return self.value(forward, backward)

    @staticmethod
    def value(forward: np.ndarray, backward: np.ndarray) -> float:
        """The objective from distances that are known up to 1.5 mm or more."""
        # A little of F1 with a soft edge leads the search over the plateaus of the hard one.
        hard = harmonic(float((forward <= 1).mean()), float((backward <= 1).mean()))
        soft = harmonic(float(np.maximum(1 - forward / 1.5, 0).mean()), float(np.maximum(1 - backward / 1.5, 0).mean()))
        return hard + 0.02 * soft


def _search(
    pred: np.ndarray, truth: np.ndarray, scales: tuple[float, ...], rigid: bool, extra: list[Similarity]
) -> Similarity:
    if len(pred) == 0 or len(truth) == 0:
        return Similarity()
    pivot = pred.mean(0)
    objective = _Objective(pred, truth)
    starts = [Similarity(pivot_mm=pivot), *extra]
    for scale in scales:
        shifts = _correlation_peaks(scale * (objective.pred - pivot) + pivot, objective.truth)
        starts += [Similarity(scale, np.eye(3), shift, pivot) for shift in shifts]
    # A look at every start, rough steps from the better ones, full effort for the best.
    starts = [starts[0], *extra, *sorted(starts[1 + len(extra) :], key=objective.loose, reverse=True)[:_STARTS]]
    rough = [_closest_points(objective, start, rigid, (6.0, 3.0)) for start in starts]
    rough = _best(objective, [*starts, *rough], 2 * _FINALISTS)
    polished = [_closest_points(objective, s, rigid, (2.0, 1.5, 1.2)) for s in rough]
    found = [_pattern_search(objective, s, rigid) for s in _best(objective, [*polished, starts[0], *extra], _FINALISTS)]
    # All points decide in the end, so that a tie of thinned points can never lose against doing nothing.
    full = _Objective(pred, truth, thin=False)
    return max([*extra, starts[0], *found], key=lambda s: _hard_f1(full, s))


def _best(objective: _Objective, candidates: list[Similarity], count: int) -> list[Similarity]:
    """The best few, in order; equal values keep the order given."""
    return sorted(candidates, key=objective, reverse=True)[:count]


def _hard_f1(objective: _Objective, s: Similarity) -> float:
    forward, _, backward, _ = objective.distances(s, 1.0 + 1e-9)
    return harmonic(float((forward <= 1).mean()), float((backward <= 1).mean()))


def _correlation_peaks(pred: np.ndarray, truth: np.ndarray) -> list[np.ndarray]:
    """Translations at which the most voxels of both coincide: peaks of the cross-correlation on a 2 mm grid."""
    from scipy.fft import irfftn, next_fast_len, rfftn
    from scipy.ndimage import gaussian_filter, maximum_filter

    def grid(points: np.ndarray, low: np.ndarray, shape: list[int]) -> np.ndarray:
        volume = np.zeros(shape, np.float32)
        volume[tuple(np.floor((points - low) / _GRID_MM).astype(int).T)] = 1
        return volume

    low_pred, low_truth = pred.min(0), truth.min(0)
    extent = np.ceil(np.ptp(pred, axis=0) / _GRID_MM) + np.ceil(np.ptp(truth, axis=0) / _GRID_MM) + 4
    # A prediction with stray points far away must not ask for a huge grid.
    shape = [next_fast_len(int(min(n, 256))) for n in extent]
    inside = np.all((pred - low_pred) / _GRID_MM < np.array(shape) - 1, axis=1)
    a = rfftn(grid(pred[inside], low_pred, shape))
    b = rfftn(gaussian_filter(grid(truth, low_truth, shape), 0.8))
    correlation = irfftn(np.conj(a) * b, shape)
    peaks = np.argwhere((correlation == maximum_filter(correlation, 5)) & (correlation > 0.3 * correlation.max()))
    order = np.argsort(-correlation[tuple(peaks.T)], kind="stable")[:_PEAKS]
    lags = peaks[order].astype(np.float64)
    lags = np.where(lags > np.array(shape) / 2, lags - np.array(shape), lags)
    return [lag * _GRID_MM + low_truth - low_pred for lag in lags]


def _closest_points(objective: _Objective, s: Similarity, rigid: bool, tolerances_mm: tuple[float, ...]) -> Similarity:
    """Iterated closest points in both directions, on pairs nearer than the tolerance (trimmed); best state by F1 is
    kept.
    """
    best, best_value = s, -1.0
    for tolerance in tolerances_mm:
        pairs: tuple[np.ndarray, ...] = ()
        for _ in range(6):
            # One search serves the value of this state and the pairs of the next.
            forward, i, backward, j = objective.distances(s, max(tolerance, 1.5))
            value = objective.value(forward, backward)
            if value > best_value:
                best, best_value = s, value
            near, back = forward < tolerance, backward < tolerance
            previous, pairs = pairs, (near, back, i[near], j[back])
            if near.sum() + back.sum() < 12 or (
                previous and all(np.array_equal(*two) for two in zip(previous, pairs, strict=True))
            ):
                break  # too few pairs, or the same as before: nothing moves any more
            source = np.concatenate((objective.pred[near], objective.pred[j[back]]))
            target = np.concatenate((objective.truth[i[near]], objective.truth[back]))
            s = _fit(source, target, s, rigid)
    return best


def best_rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation ``(3, 3)``, no reflection, that takes ``source`` ``(n, 3)`` nearest to ``target`` ``(n, 3)``, both
    about their means (Umeyama, IEEE TPAMI 1991;13:376)."""
    u, _, vt = np.linalg.svd(target.T @ source)
    sign = np.array((1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))))
    return (u * sign) @ vt


def _fit(source: np.ndarray, target: np.ndarray, previous: Similarity, rigid: bool) -> Similarity:
    """Least-squares transform of pairs, held within the bounds."""
    mean_source, mean_target = source.mean(0), target.mean(0)
    scale, rotation = 1.0, np.eye(3)
    if not rigid:
        a, b = source - mean_source, target - mean_target
        rotation = _bounded_rotation(best_rotation(a, b))
        scale = float(np.clip((b * (a @ rotation.T)).sum() / max((a * a).sum(), 1e-12), *SCALE_RANGE))
    moved = scale * rotation @ (mean_source - previous.pivot_mm) + previous.pivot_mm
    return Similarity(scale, rotation, mean_target - moved, previous.pivot_mm)


def _pattern_search(objective: _Objective, s: Similarity, rigid: bool) -> Similarity:
    """Coordinate steps of shrinking size, accepted only when the objective rises."""
    value = objective(s)
    spread_mm = max(float(np.sqrt(((objective.pred - s.pivot_mm) ** 2).sum(1).mean())), 1.0)
    for step_mm in (0.8, 0.4, 0.2, 0.1):
        for _ in range(3):
            improved = False
            for axis in range(3 if rigid else 7):
                for sign in (1.0, -1.0):
                    trial = _stepped(s, axis, sign * step_mm, spread_mm)
                    trial_value = objective(trial)
                    if trial_value > value + 1e-12:
                        s, value, improved = trial, trial_value, True
                        break
            if not improved:
                break
    return s


def _stepped(s: Similarity, axis: int, step_mm: float, spread_mm: float) -> Similarity:
    """One coordinate moved so that points at the typical distance from the pivot move by ``step_mm``."""
    translation, rotation, scale = s.translation_mm.copy(), s.rotation, s.scale
    if axis < 3:
        translation[axis] += step_mm
    elif axis < 6:
        turn = np.zeros(3)
        turn[axis - 3] = step_mm / spread_mm
        rotation = _bounded_rotation(_rotation(turn) @ rotation)
    else:
        scale = float(np.clip(scale * (1 + step_mm / spread_mm), *SCALE_RANGE))
    return Similarity(scale, rotation, translation, s.pivot_mm)


def _rotation(vector: np.ndarray) -> np.ndarray:
    """Rodrigues' formula: rotation by ``|vector|`` radians about ``vector``."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array(((0, -z, y), (z, 0, -x), (-y, x, 0)))
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _log_rotation(rotation: np.ndarray) -> np.ndarray:
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    axis = np.array((rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]))
    norm = np.linalg.norm(axis)
    return angle * axis / norm if norm > 1e-12 else np.zeros(3)


def _bounded_rotation(rotation: np.ndarray) -> np.ndarray:
    vector = _log_rotation(rotation)
    angle, limit = float(np.linalg.norm(vector)), np.deg2rad(ROTATION_LIMIT_DEG)
    return _rotation(vector if angle <= limit else vector * (limit / angle))
