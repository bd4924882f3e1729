# SPDX-License-Identifier: Apache-2.0
"""A coronary tree as a vector: the branches that a patient may have, in fixed places, each as a spline.

The generator's structure stage writes such a vector and draws the tree into the planes; training reads the vector of
every phantom patient from its centrelines. A branch begins on its parent, so every vector is a connected tree.

Per branch: presence; the place on the parent (share of the parent's length); knots of the course relative to its first
point; knots of the logarithm of the radius. The trunk has the place of its first point in the box instead of a parent.
Knots are values of a natural cubic spline at equal steps of arc length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from licag3d.structures import Branch, VesselTree

ARTERIES = ("rca", "lca")
#: Thinner vessels are drawn this thick: a third of a texel is no longer a vessel in the planes.
MIN_RADIUS_MM = 0.12


@dataclass(frozen=True)
class Slot:
    """One branch that a tree may have. ``parent`` is an index in the table of its artery, -1 for the trunk."""

    name: str
    parent: int
    knots: int
    samples: int


@dataclass(frozen=True)
class BranchTable:
    """The branches of one artery, parents first, and where their numbers lie in the vector.

    Vector: for each slot presence (1), place (1 for a branch, 3 for the trunk), course (``knots - 1`` x 3; the first
    knot is the origin), log radius (``knots``). Lengths in mm.
    """

    artery: str
    slots: tuple[Slot, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First index of each slot in the vector, and the size of the vector at the end."""
        total = [0]
        for slot in self.slots:
            total.append(total[-1] + 1 + (3 if slot.parent < 0 else 1) + 3 * (slot.knots - 1) + slot.knots)
        return tuple(total)

    @property
    def size(self) -> int:
        return self.offsets[-1]

    @cached_property
    def number(self) -> dict[tuple[str, str | None], int]:
        """Index of the slot of a branch by its name and that of its parent (None for the trunk)."""
        return {(s.name, self.slots[s.parent].name if s.parent >= 0 else None): k for k, s in enumerate(self.slots)}

    def parts(self, index: int) -> tuple[int, slice, slice, slice]:
        """Where presence, place, course and log radius of a slot lie."""
        first = self.offsets[index] + 1
        places = 3 if self.slots[index].parent < 0 else 1
        course = first + places
        radius = course + 3 * (self.slots[index].knots - 1)
        return first - 1, slice(first, course), slice(course, radius), slice(radius, radius + self.slots[index].knots)


def table_of(artery: str, *, knot_mm: float = 4.5, sample_mm: float = 2.5) -> BranchTable:
    """The table of the anatomical plans: every name that some dominance has, with knots for its greatest length."""
    from licag3d.phantom import plans

    found: dict[tuple[str, str | None], float] = {}
    for dominance in plans.DOMINANCE_SHARES:
        for plan in plans.right_plan(dominance) if artery == "rca" else plans.left_plan(dominance):
            key = (plan.name, plan.parent)
            found[key] = max(found.get(key, 0.0), plan.length_mm[1])
    slots, index = [], {}
    for (name, parent), length_mm in found.items():
        # A name with two possible parents (AV nodal branch) has two places; children hang on the first.
        index.setdefault(name, len(slots))
        slots.append(
            Slot(
                name,
                -1 if parent is None else index[parent],
                max(4, round(length_mm / knot_mm) + 1),
                max(8, round(length_mm / sample_mm) + 1),
            )
        )
    return BranchTable(artery, tuple(slots))


@lru_cache(maxsize=256)
def spline_matrix(knots: int, samples: int) -> np.ndarray:
    """``(samples, knots)``: values at equal steps of the natural cubic spline through the knots."""
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.linspace(0, 1, knots), np.eye(knots), bc_type="natural")
    return spline(np.linspace(0, 1, samples))


def vector_of(tree: VesselTree, table: BranchTable, center_mm) -> tuple[np.ndarray, np.ndarray]:
    """Vector of a tree relative to the centre of its box, and which entries are known.

    Entries of absent branches are zero and unknown (but for the presence).

    Returns:
        ``(size,)`` float32 and ``(size,)`` bool.
    """
    vector, known = np.zeros(table.size, np.float32), np.zeros(table.size, bool)
    names = {branch.id: branch.name for branch in tree.branches}
    by_id = {branch.id: branch for branch in tree.branches}
    for k in range(len(table.slots)):
        known[table.offsets[k]] = True
    for branch in tree.branches:
        k = table.number.get((branch.name, names.get(branch.parent)))
        if k is None:
            continue
        slot = table.slots[k]
        presence, place, course, radius = table.parts(k)
        points, width = _evenly(branch, 4 * slot.samples)
        fit = _fit_matrix(slot.knots, len(points))
        vector[presence] = 1.0
        vector[course] = (fit[1] @ (points - points[0])).ravel()
        vector[radius] = fit[0] @ np.log(np.maximum(width, MIN_RADIUS_MM))
        vector[place] = points[0] - np.asarray(center_mm) if branch.parent is None else _share(by_id, branch)
        known[presence : radius.stop] = True
    return vector, known


def tree_of(vector: np.ndarray, table: BranchTable, center_mm, *, samples: int | None = None) -> VesselTree:
    """The tree that a vector describes: the trunk, and branches whose presence (and that of all before) exceeds 1/2."""
    courses: dict[int, np.ndarray] = {}
    branches = []
    for k, slot in enumerate(table.slots):
        presence, place, course, radius = table.parts(k)
        if slot.parent >= 0 and (vector[presence] <= 0.5 or slot.parent not in courses):
            continue
        basis = spline_matrix(slot.knots, samples or 2 * slot.samples)
        offset = basis[:, 1:] @ vector[course].reshape(-1, 3)
        if slot.parent < 0:
            start = np.asarray(center_mm) + vector[place]
        else:
            before = courses[slot.parent]
            at = float(np.clip(vector[place][0], 0, 1)) * (len(before) - 1)
            low = min(int(at), len(before) - 2)
            start = before[low] + (at - low) * (before[low + 1] - before[low])
        courses[k] = start + offset
        branches.append(
            Branch(k, None if slot.parent < 0 else slot.parent, courses[k], np.exp(basis @ vector[radius]), slot.name)
        )
    return VesselTree(tuple(branches))


@lru_cache(maxsize=256)
def _fit_matrix(knots: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares fits ``(knots, samples)`` of a free curve, and ``(knots - 1, samples)`` of one that begins at 0.

    A little smoothness (squared second difference) keeps the knots of nearly straight branches calm.
    """
    basis = spline_matrix(knots, samples)
    bend = 1e-3 * np.diff(np.eye(knots), 2, axis=0)
    free = np.linalg.lstsq(np.vstack([basis, bend]), np.eye(samples + knots - 2)[:, :samples], rcond=None)[0]
    tied = np.linalg.lstsq(np.vstack([basis, bend])[:, 1:], np.eye(samples + knots - 2)[:, :samples], rcond=None)[0]
    return free, tied


def _evenly(branch: Branch, count: int) -> tuple[np.ndarray, np.ndarray]:
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(branch.points_lps_mm, axis=0), axis=1))])
    at = np.linspace(0, along[-1], count)
    points = np.stack([np.interp(at, along, axis) for axis in branch.points_lps_mm.T], 1)
    return points, np.interp(at, along, branch.radius_mm)


def _share(by_id: dict[int, Branch], branch: Branch) -> float:
    """Where on its parent a branch begins: share of the parent's length, of the nearest point between its samples."""
    points = by_id[branch.parent].points_lps_mm
    step = np.diff(points, axis=0)
    length = np.linalg.norm(step, axis=1)
    at = ((branch.points_lps_mm[0] - points[:-1]) * step).sum(1) / np.maximum(length, 1e-9) ** 2
    at = np.clip(at, 0, 1)
    nearest = int(np.argmin(np.linalg.norm(points[:-1] + at[:, None] * step - branch.points_lps_mm[0], axis=1)))
    return float((length[:nearest].sum() + at[nearest] * length[nearest]) / length.sum())
