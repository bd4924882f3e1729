# SPDX-License-Identifier: Apache-2.0
"""Side branches looked for one by one, given the rest of the tree: what the descent of the codes cannot jump to.

For every side branch of the table whose parent is in the tree, courses are drawn from the generator's population given
the ancestors (:mod:`licag3d.inversion.branch_shapes`), the best are drawn to vessels that no other branch explains
(Gauss-Newton on the shape), and one takes the place of what is there, or of nothing, where the cost

    - sum over centreline points  w (max(e, e_others) - e_others)       per view, e = 1 / (1 + (d / s)^2)
    + drawn * sum over the branch  length (1 - e of the nearest centreline point)   per view
    + prior * |u|^2 / 2 - log(share of trees that have the branch)

falls clearly: what another branch explains is worth nothing twice. Branches are visited once, those of the main
vessels before theirs, long ones first (iterated conditional modes, Besag 1986); what hangs on a branch moves with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from licag3d.geometry import Camera
from licag3d.inversion.branch_shapes import Population, Shapes, course_and_radius, own_columns
from licag3d.inversion.prior_evidence import Curve
from licag3d.inversion.prior_fit import PriorFit
from licag3d.inversion.prior_tree import TreeWriter, rotation
from licag3d.inversion.snapping import seen_points
from licag3d.models.generator import Generator
from licag3d.structures import Branch, VesselTree

#: The vessels that the search leaves to the fit: with their roots they carry all others.
_MAIN = ("LM", "LAD", "LCx", "RCA")


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


@dataclass(frozen=True)
class Change:
    """One branch put elsewhere: ``name``, whether it was ``there`` before, cost ``before`` (of absence, if it was not)
    and ``after``, ``evidence`` what of it the views say before and after."""

    name: str
    there: bool
    before: float
    after: float
    evidence: tuple[float, float]


def search_branches(
    fit: PriorFit,
    tree: VesselTree,
    views: Sequence[Curve],
    sizes_mm: Sequence[tuple[float, float]],
    *,
    generator: Generator,
    settings: BranchSearchSettings | None = None,
) -> tuple[VesselTree, tuple[Change, ...]]:
    """A tree some of whose side branches run elsewhere, and what was changed.

    Args:
        fit: whose codes, placement and cameras hold. tree: of the fit, laid onto the views, named.
        views: centrelines per view as the fit compares them (``Evidence.views``), sizes_mm of the images.
    """
    settings = settings or BranchSearchSettings()
    writer = TreeWriter(generator, fit.artery)
    population = Population(writer, fit.label, count=settings.population, seed=settings.seed)
    with torch.no_grad():
        fitted = writer.vectors(fit.codes)[0].double().numpy()
    turn = rotation(fit.codes.turn)[0].double().numpy() * float(fit.codes.log_scale.exp()[0])
    work = _Work(tree, writer.table, turn, float(fit.codes.log_scale.exp()[0]))
    sights = [_Sight(camera, curve, size) for camera, curve, size in zip(fit.cameras, views, sizes_mm, strict=True)]
    sights = [sight for sight in sights if len(sight.points)]
    rng = np.random.default_rng(settings.seed)
    order = [k for k, slot in enumerate(work.slots) if slot.name not in _MAIN]
    order.sort(key=lambda k: (_depth(work.slots, k), -work.slots[k].samples))
    explained = {k: [sight.explained(work.points[k], work.radius[k], settings) for sight in sights]
                 for k in work.points}  # fmt: skip
    changes = []
    for k in order:
        twin = any(work.slots[j].name == work.slots[k].name for j in work.points if j != k)
        if work.slots[k].parent not in work.points or twin or not sights:
            continue
        subtree = work.subtree(k)
        others = [np.max([np.zeros(len(s.points)), *(explained[j][v] for j in explained if j not in subtree)], axis=0)
                  for v, s in enumerate(sights)]  # fmt: skip
        shapes = population.shapes(k, fitted)
        found = _best(work, k, shapes, sights, others, fitted, rng, settings)
        if found is None:
            continue
        change, points, radius = found
        changes.append(change)
        work.put(k, points, radius)
        for j in work.subtree(k):
            explained[j] = [sight.explained(work.points[j], work.radius[j], settings) for sight in sights]
    return work.tree(), tuple(changes)


def _best(work, k, shapes: Shapes, sights, others, fitted, rng, settings):
    """The change of one branch that pays most, its points and radii; None where none pays."""
    absent = -np.log(1 - shapes.rate)
    u = rng.standard_normal((settings.draws, len(shapes.basis)))
    u[0] = 0.0
    before, said = absent, 0.0
    if k in work.points:
        mine = shapes.nearest(fitted[own_columns(work.table, k)])
        said = float(_evidence(work.points[k][None], work.radius[k][None], sights, others, settings)[0])
        before = said + 0.5 * settings.prior * float(mine @ mine) - np.log(shapes.rate)
        u[1] = mine * min(1.0, 6.0 / max(float(np.linalg.norm(mine)), 1e-9))
    rough = replace(settings, scale_mm=settings.rough_mm)
    points, radius = work.draw(k, shapes.numbers(u), spacing_mm=2.5)
    first = _evidence(points, radius, sights, others, rough)
    u = u[np.argsort(first)[: settings.kept]]
    u = _drawn_to(work, k, shapes, u, sights, others, settings)
    points, radius = work.draw(k, shapes.numbers(u), spacing_mm=0.75)
    evidence = _evidence(points, radius, sights, others, settings)
    cost = evidence + 0.5 * settings.prior * (u**2).sum(1) - np.log(shapes.rate)
    best = int(cost.argmin())
    after, says = float(cost[best]), float(evidence[best])
    if after > before - settings.margin or says > said - settings.evidence:
        return None
    return Change(work.slots[k].name, k in work.points, float(before), after, (said, says)), points[best], radius[best]


def _evidence(points, radius, sights, others, settings) -> np.ndarray:
    """What the views say of courses ``(C, n, 3)``: cost ``(C,)``."""
    total = np.zeros(len(points))
    step = np.linalg.norm(np.diff(points, axis=1), axis=2)
    length = 0.5 * (np.pad(step, ((0, 0), (1, 0))) + np.pad(step, ((0, 0), (0, 1))))
    for sight, known in zip(sights, others, strict=True):
        rows, explained, denied = sight.compare(points, radius, settings)
        total -= np.maximum(explained - known[rows], 0.0) @ sight.weight[rows]
        total += settings.drawn * (denied * length).sum(1)
    return total


def _drawn_to(work, k, shapes: Shapes, u, sights, others, settings) -> np.ndarray:
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


class _Sight:
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


class _Work:
    """The tree while it changes: points and radii per slot of the table."""

    def __init__(self, tree: VesselTree, table, turn: np.ndarray, scale: float) -> None:
        self.table, self.slots, self.turn, self.scale = table, table.slots, turn, scale
        names = {branch.id: branch.name for branch in tree.branches}
        of = {(slot.name, self.slots[slot.parent].name if slot.parent >= 0 else None): k
              for k, slot in enumerate(self.slots)}  # fmt: skip
        self.points: dict[int, np.ndarray] = {}
        self.radius: dict[int, np.ndarray] = {}
        for branch in tree.branches:
            k = of[branch.name, names.get(branch.parent)]
            self.points[k], self.radius[k] = np.asarray(branch.points_lps_mm, float), np.asarray(branch.radius_mm)

    def subtree(self, k: int) -> list[int]:
        """Slots in the tree that hang on a slot, itself first."""
        out = [k] if k in self.points else []
        for j, slot in enumerate(self.slots):
            if slot.parent == k and j in self.points:
                out += self.subtree(j)
        return out

    def takeoff(self, k: int, share: np.ndarray) -> np.ndarray:
        """Points ``(C, 3)`` on the parent at shares ``(C,)`` of its length."""
        parent = self.points[self.slots[k].parent]
        along = _along(parent)
        at = np.clip(share, 0.0, 1.0) * along[-1]
        return np.stack([np.interp(at, along, axis) for axis in parent.T], -1)

    def draw(self, k: int, numbers: np.ndarray, *, samples: int | None = None, spacing_mm: float = 2.5):
        """Points ``(C, n, 3)`` in world LPS mm and radii ``(C, n)`` of ``numbers`` ``(C, D)``."""
        if samples is None:
            samples = max(6, round(self.slots[k].samples * 2.5 / spacing_mm))
        course, radius = course_and_radius(self.table, k, numbers, samples)
        return self.takeoff(k, numbers[:, 0])[:, None] + course @ self.turn.T, radius * self.scale

    def bend(self, k: int, basis: np.ndarray, samples: int) -> np.ndarray:
        """How points move with u ``(samples, d, 3)`` where the take-off stays."""
        course, _ = course_and_radius(self.table, k, basis, samples)
        return (course @ self.turn.T).transpose(1, 0, 2)

    def put(self, k: int, points: np.ndarray, radius: np.ndarray) -> None:
        """Set a branch; what hangs on it keeps its share of the length."""
        old = self.points.get(k)
        self.points[k], self.radius[k] = points, radius
        for j, slot in enumerate(self.slots):
            if old is None or slot.parent != k or j not in self.points:
                continue
            near = int(np.linalg.norm(old - self.points[j][0], axis=1).argmin())
            along = _along(old)
            shift = self.takeoff(j, np.array([along[near] / along[-1]]))[0] - old[near]
            for m in self.subtree(j):
                self.points[m] = self.points[m] + shift

    def tree(self) -> VesselTree:
        branches, ids = [], {}
        for k, slot in enumerate(self.slots):
            if k in self.points and (slot.parent < 0 or slot.parent in ids):
                ids[k] = len(branches)
                parent = None if slot.parent < 0 else ids[slot.parent]
                branches.append(Branch(ids[k], parent, self.points[k], self.radius[k], slot.name))
        return VesselTree(tuple(branches))


def _along(points: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])


def _depth(slots, k: int) -> int:
    return 0 if slots[k].parent < 0 else 1 + _depth(slots, slots[k].parent)
