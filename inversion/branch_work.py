# SPDX-License-Identifier: Apache-2.0
"""A tree whose branches are put elsewhere one by one, and how each of them may run given the rest."""

from __future__ import annotations

import numpy as np
import torch

from licag3d.inversion.branch_shapes import Population, Shapes, course_and_radius, own_columns
from licag3d.inversion.prior_fit import PriorFit
from licag3d.inversion.prior_tree import TreeWriter, rotation
from licag3d.models.generator import Generator
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.tree import arc_length_mm

#: The vessels that a search leaves to the fit: with their roots they carry all others.
MAIN = ("LM", "LAD", "LCx", "RCA")


class Work:
    """The tree while it changes: ``points`` ``(n, 3)`` in world LPS mm and ``radius`` ``(n,)`` per slot of the table.

    Args:
        tree: named. fit: whose codes and placement say how its branches may run. population, seed: of the shapes.
    """

    def __init__(
        self, tree: VesselTree, fit: PriorFit, generator: Generator, *, population: int = 1000, seed: int = 0
    ) -> None:
        writer = TreeWriter(generator, fit.artery)
        self.population = Population(writer, fit.label, spread=int(fit.codes.spread[0]), count=population, seed=seed)
        with torch.no_grad():
            self.fitted = writer.vectors(fit.codes)[0].double().numpy()
        self.scale = float(fit.codes.log_scale.exp()[0])
        self.turn = rotation(fit.codes.turn)[0].double().numpy() * self.scale
        self.table, self.slots = writer.table, writer.table.slots
        names = {branch.id: branch.name for branch in tree.branches}
        self.points: dict[int, np.ndarray] = {}
        self.radius: dict[int, np.ndarray] = {}
        for branch in tree.branches:
            k = self.table.number[branch.name, names.get(branch.parent)]
            self.points[k], self.radius[k] = np.asarray(branch.points_lps_mm, float), np.asarray(branch.radius_mm)

    def order(self) -> list[int]:
        """Slots of side branches: those of the main vessels before theirs, long ones first."""
        order = [k for k, slot in enumerate(self.slots) if slot.name not in MAIN]
        return sorted(order, key=lambda k: (_depth(self.slots, k), -self.slots[k].samples))

    def can_have(self, k: int) -> bool:
        """Whether the parent is in the tree, and no branch of that name hangs elsewhere."""
        twin = any(self.slots[j].name == self.slots[k].name for j in self.points if j != k)
        return self.slots[k].parent in self.points and not twin

    def shapes(self, k: int) -> Shapes:
        """How a branch may run given its ancestors."""
        return self.population.shapes(k, self.fitted)

    def own(self, k: int, shapes: Shapes) -> np.ndarray:
        """The ``u`` of a branch as the fit wrote it."""
        return shapes.nearest(self.fitted[own_columns(self.table, k)])

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
        along = arc_length_mm(parent)
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
            along = arc_length_mm(old)
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


def _depth(slots, k: int) -> int:
    return 0 if slots[k].parent < 0 else 1 + _depth(slots, slots[k].parent)
