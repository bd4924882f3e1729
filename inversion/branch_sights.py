# SPDX-License-Identifier: Apache-2.0
"""What centrelines say of the course of one branch, given what other branches explain, and courses drawn to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.branch_shapes import Shapes
from licag3d.inversion.branch_work import Work
from licag3d.inversion.prior_evidence import Curve
from licag3d.inversion.snapping import seen_points


@dataclass(frozen=True)
class BranchSearchSettings:
    """Lengths in mm.

    Args:
        draws: courses drawn per branch; kept: so many are drawn to the views; rounds: of Gauss-Newton.
        population: trees of the generator that the shapes are learned from. seed: of both.
        spacing_mm: between compared points along centrelines.
        scale_mm: s above; rough_mm: the same where the draws are sifted.
        direction_mm, calibre_mm: what a right angle, and a factor e of calibre, add to a distance.
        drawn: price per mm that a view denies. prior: weight of |u|^2 / 2.
        margin: the cost must fall by this much, and the evidence alone by ``evidence``.
        reach_mm: scale of the pull in the first and in the last round; explained_mm: how much farther a vessel that is
            explained already seems, in scales. pull: weight of the pull per mm against the shape's prior.
    """

    draws: int = 300
    kept: int = 24
    rounds: int = 6
    population: int = 1000
    seed: int = 0
    spacing_mm: float = 0.8
    scale_mm: float = 1.0
    rough_mm: float = 2.0
    direction_mm: float = 1.5
    calibre_mm: float = 0.5
    drawn: float = 0.25
    prior: float = 0.5
    margin: float = 4.0
    evidence: float = 0.0
    reach_mm: tuple[float, float] = (3.0, 1.0)
    explained_mm: float = 2.0
    pull: float = 0.7


class Sight:
    """One view: its camera, and the centrelines in mm at the isocentre."""

    def __init__(self, camera: Camera, curve: Curve, size_mm: tuple[float, float]) -> None:
        self.camera, self.size_mm = camera, np.asarray(size_mm)
        self.points, self.direction, self.log_radius, self.weight = (
            value.double().numpy() for value in (curve.points, curve.direction, curve.log_radius, curve.weight)
        )

    def explained(self, points: np.ndarray, radius: np.ndarray, settings) -> np.ndarray:
        """``(N,)`` 0..1 by one branch ``(n, 3)``."""
        out = np.zeros(len(self.points))
        rows, value, _ = self.compare(points[None], radius[None], settings)
        out[rows] = value[0]
        return out

    def compare(self, points: np.ndarray, radius: np.ndarray, settings):
        """Rows ``(N',)`` of the centreline points near courses ``(C, n, 3)``, how well each course explains them
        ``(C, N')``, and how far the view denies each point of a course ``(C, n)``; 0..1 both."""
        flat = self.camera.project(points.reshape(-1, 3))[0].reshape(*points.shape[:2], 2) * self.camera.mm_per_pixel
        inside = ((flat > 0) & (flat < self.size_mm)).all(-1)
        far = 4.0 * settings.scale_mm
        low, high = flat.min((0, 1)) - far, flat.max((0, 1)) + far
        rows = np.flatnonzero(((self.points > low) & (self.points < high)).all(1))
        if not len(rows):
            return rows, np.zeros((len(points), 0)), inside.astype(float)
        square = self._squares(flat, np.log(np.maximum(radius, 0.05)), rows, settings)
        explained = 1.0 / (1.0 + square.min(1) / settings.scale_mm**2)
        nearest = square.min(2)
        return rows, explained, inside * nearest / (nearest + settings.scale_mm**2)

    def _squares(self, flat: np.ndarray, log_radius: np.ndarray, rows: np.ndarray, settings) -> np.ndarray:
        """Squared distance ``(C, n, N')`` in place, direction and calibre, as one product: 1 - (t.u)^2 is linear in the
        products of the components of u."""
        along = np.gradient(flat, axis=1)
        along = along / np.maximum(np.linalg.norm(along, axis=2, keepdims=True), 1e-6)
        turn, bore = settings.direction_mm**2, settings.calibre_mm**2
        center = self.points[rows].mean(0)
        mine, theirs = flat - center, self.points[rows] - center
        t, width = self.direction[rows], self.log_radius[rows]
        one = np.ones_like(log_radius)
        left = np.stack([
            mine[..., 0], mine[..., 1], along[..., 0] ** 2, along[..., 1] ** 2, along[..., 0] * along[..., 1],
            log_radius, (mine**2).sum(-1) + turn + bore * log_radius**2, one,
        ], -1)  # fmt: skip
        right = np.stack([
            -2 * theirs[:, 0], -2 * theirs[:, 1], -turn * t[:, 0] ** 2, -turn * t[:, 1] ** 2,
            -2 * turn * t[:, 0] * t[:, 1], -2 * bore * width, np.ones(len(rows)), (theirs**2).sum(1) + bore * width**2,
        ], 0)  # fmt: skip
        return np.maximum(left.astype(np.float32) @ right.astype(np.float32), 0.0)

    def pull(self, points: np.ndarray, radius: np.ndarray, known: np.ndarray, reach: float, settings):
        """Per point of courses ``(C, n, 3)``: direction in space across the nearest centreline ``(C, n, 3)``, distance
        to go in mm and weight ``(C, n)``. What others explain (``known``) seems farther."""
        flat, jacobian, inside = seen_points(points.reshape(-1, 3), self.camera)
        flat = flat.reshape(*points.shape[:2], 2)
        every = np.arange(len(self.points))
        wide = replace(settings, direction_mm=2.0 * settings.direction_mm)
        square = self._squares(flat, np.log(np.maximum(radius, 0.05)), every, wide)
        square += (settings.explained_mm * reach * known**2).astype(np.float32)
        nearest = square.argmin(2)
        off, line = self.points[nearest] - flat, self.direction[nearest]
        normal = np.stack([-line[..., 1], line[..., 0]], -1)
        weight = inside.reshape(flat.shape[:2]) / (1.0 + (off**2).sum(-1) / reach**2) ** 2
        # A faint vessel pulls by its chance.
        weight = weight * np.minimum(self.weight[nearest] / max(float(np.quantile(self.weight, 0.9)), 1e-6), 1.0)
        across = np.einsum("cnx,cnxy->cny", normal, jacobian.reshape(*flat.shape[:2], 2, 3))
        return across, (off * normal).sum(-1), weight


def evidence_cost(points, radius, sights: Sequence[Sight], others, settings: BranchSearchSettings) -> np.ndarray:
    """What the views say of courses ``(C, n, 3)``: cost ``(C,)``."""
    total = np.zeros(len(points))
    step = np.linalg.norm(np.diff(points, axis=1), axis=2)
    length = 0.5 * (np.pad(step, ((0, 0), (1, 0))) + np.pad(step, ((0, 0), (0, 1))))
    for sight, known in zip(sights, others, strict=True):
        rows, explained, denied = sight.compare(points, radius, settings)
        total -= np.maximum(explained - known[rows], 0.0) @ sight.weight[rows]
        total += settings.drawn * (denied * length).sum(1)
    return total


def _drawn_to(work: Work, k: int, shapes: Shapes, u, sights, others, settings) -> np.ndarray:
    """``u`` ``(C, d)`` after Gauss-Newton towards centrelines that no other branch explains (Geman and McClure
    weights), the shape's prior holding."""
    size = len(shapes.basis)
    count = work.slots[k].samples
    # How points move with u: the course, and the take-off along the parent.
    bend = work.bend(k, shapes.basis, count)
    slide = shapes.basis[:, 0]
    for turn in range(settings.rounds):
        share = turn / max(settings.rounds - 1, 1)
        reach = settings.reach_mm[0] ** (1 - share) * settings.reach_mm[1] ** share
        numbers = shapes.numbers(u)
        points, radius = work.draw(k, numbers, samples=count)
        ahead = work.takeoff(k, numbers[:, 0] + 0.01) - work.takeoff(k, numbers[:, 0] - 0.01)
        motion = bend[None] + slide[None, None, :, None] * (ahead / 0.02)[:, None, None, :]
        normal = np.tile(np.eye(size), (len(u), 1, 1))
        right = -u.copy()
        step = np.linalg.norm(np.diff(points, axis=1), axis=2)
        length = np.concatenate([step[:, :1], step], 1)
        for sight, known in zip(sights, others, strict=True):
            across, gap, weight = sight.pull(points, radius, known, reach, settings)
            row = np.einsum("cny,cndy->cnd", across, motion)
            weight = settings.pull * weight * length
            normal += np.einsum("cnd,cne->cde", row * weight[..., None], row)
            right += np.einsum("cnd,cn->cd", row, weight * gap)
        step = np.linalg.solve(normal, right[..., None])[..., 0]
        u = u + step * np.minimum(1.0, 3.0 / np.linalg.norm(step, axis=1, keepdims=True).clip(1e-9))
    return u


def drawn_shapes(
    work: Work,
    k: int,
    shapes: Shapes,
    sights: Sequence[Sight],
    others: Sequence[np.ndarray],
    rng: np.random.Generator,
    settings: BranchSearchSettings,
) -> np.ndarray:
    """Shapes ``u`` ``(kept, d)`` of one branch: drawn at random, sifted by the views, then drawn to centrelines that no
    other branch explains (``others``, per view)."""
    u = rng.standard_normal((settings.draws, len(shapes.basis)))
    u[0] = 0.0
    if k in work.points:
        mine = work.own(k, shapes)
        u[1] = mine * min(1.0, 6.0 / max(float(np.linalg.norm(mine)), 1e-9))
    points, radius = work.draw(k, shapes.numbers(u), spacing_mm=2.5)
    first = evidence_cost(points, radius, sights, others, replace(settings, scale_mm=settings.rough_mm))
    return _drawn_to(work, k, shapes, u[np.argsort(first)[: settings.kept]], sights, others, settings)


def explained_by_others(work: Work, k: int, sights: Sequence[Sight], explained: dict) -> list[np.ndarray]:
    """Per view, how well branches that do not hang on ``k`` explain each centreline point."""
    subtree = work.subtree(k)
    return [
        np.max([np.zeros(len(sight.points)), *(explained[j][v] for j in explained if j not in subtree)], axis=0)
        for v, sight in enumerate(sights)
    ]
