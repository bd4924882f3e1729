# SPDX-License-Identifier: Apache-2.0
"""How a named branch may run, given the branches that it hangs on: drawn from the generator's own population.

The numbers of one branch (take-off as a share of the parent's length, course, log radius: licag3d.models.branch_table)
are taken as normal given those of its ancestors: mean and covariance of the regression on the first principal
components of the ancestors over trees that the generator writes for random codes. A draw is mean + u B with u standard
normal, so |u|^2 / 2 is the price of a shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from licag3d.inversion.prior_tree import ALIKE, Codes, TreeWriter
from licag3d.models.branch_table import BranchTable, spline_matrix

#: What the generator's trees lack beside real ones: standard deviations of the take-off (share), the course (mm) and
#: the log radius, added to those of the population.
_SLACK = (0.01, 0.3, 0.05)
#: Axes of a shape at most, and of its ancestors.
_AXES = 24


@dataclass(frozen=True)
class Shapes:
    """One branch given its ancestors.

    Args:
        mean: ``(D,)`` take-off, course ``3 (knots - 1)`` in mm of the box, log radius ``(knots,)``.
        basis: ``(d, D)``. rate: share of the trees with these ancestors that have the branch.
    """

    mean: np.ndarray
    basis: np.ndarray
    rate: float

    def numbers(self, u: np.ndarray) -> np.ndarray:
        """``(C, D)`` of standard normal ``u`` ``(C, d)``."""
        return self.mean + u @ self.basis

    def nearest(self, numbers: np.ndarray) -> np.ndarray:
        """The ``u`` ``(d,)`` that comes nearest to ``(D,)``."""
        return np.linalg.lstsq(self.basis.T, numbers - self.mean, rcond=None)[0]


class Population:
    """Trees that a generator writes for one label: what its branches look like given each other.

    Args:
        writer: of the artery. label: ``(labels,)``. spread: of their deltas (:class:`Codes`), where alike in all
            directions with ``delta_sigma``. count: of random codes.
    """

    def __init__(
        self,
        writer: TreeWriter,
        label: np.ndarray,
        *,
        spread: int = ALIKE,
        count: int = 1000,
        delta_sigma: float = 0.35,
        seed: int = 0,
    ) -> None:
        source = torch.Generator().manual_seed(seed)
        labels = torch.as_tensor(np.asarray(label), dtype=torch.float32)[None].expand(count, -1)
        codes = Codes.start(writer.generator, labels, np.zeros(3))
        codes.z = torch.randn(codes.z.shape, generator=source)
        sigma = delta_sigma if spread == ALIKE else 1.0
        codes.delta = sigma * torch.randn(codes.delta.shape, generator=source)
        codes.spread[:] = spread
        with torch.no_grad():
            self.vectors = writer.vectors(codes).double().numpy()
        self.table: BranchTable = writer.table

    def shapes(self, slot: int, fitted: np.ndarray) -> Shapes:
        """Shapes of a branch (not the trunk) given the ancestors of a fitted vector ``(size,)``."""
        parents, up = [], self.table.slots[slot].parent
        while up >= 0:
            parents, up = [*parents, up], self.table.slots[up].parent
        there = np.ones(len(self.vectors), bool)
        for k in parents:
            there &= (k == 0) | (self.vectors[:, self.table.parts(k)[0]] > 0)
        with_it = there & (self.vectors[:, self.table.parts(slot)[0]] > 0)
        rate = float(np.clip(with_it.sum() / max(there.sum(), 1), 0.02, 0.98))
        # Of a rare branch the generator writes courses all the same.
        rows = self.vectors[with_it] if with_it.sum() >= 200 else self.vectors
        known = np.concatenate([self._course(k) for k in parents])
        own = own_columns(self.table, slot)
        features, here = _components(rows[:, known], fitted[known])
        target = rows[:, own]
        middle = target.mean(0)
        count = len(rows)
        slope = np.linalg.solve(
            features.T @ features + 0.02 * count * np.eye(features.shape[1]), features.T @ (target - middle)
        )
        knots = self.table.slots[slot].knots
        slack = np.repeat(_SLACK, [1, 3 * (knots - 1), knots])
        spread = np.cov((target - middle - features @ slope).T) + np.diag(slack**2)
        scale = np.sqrt(np.diag(spread))
        value, vector = np.linalg.eigh(spread / np.outer(scale, scale))
        first = np.argsort(-value)[:_AXES]
        return Shapes(middle + here @ slope, (vector[:, first] * np.sqrt(value[first])).T * scale, rate)

    def _course(self, slot: int) -> np.ndarray:
        _, place, course, _ = self.table.parts(slot)
        first = [] if self.table.slots[slot].parent < 0 else list(range(place.start, place.stop))
        return np.array([*first, *range(course.start, course.stop)])


def own_columns(table: BranchTable, slot: int) -> np.ndarray:
    """Where take-off, course and log radius of a branch stand in the vector."""
    _, place, _, radius = table.parts(slot)
    return np.arange(place.start, radius.stop)


def _components(rows: np.ndarray, here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First principal components of rows ``(N, c)``, of unit variance, and of one more row ``(c,)``: a fitted tree
    stranger than any of the population is pulled back to its rim."""
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    u, size, axes = np.linalg.svd((rows - mean) / scale, full_matrices=False)
    count = min(_AXES, len(size))
    one = ((here - mean) / scale) @ axes[:count].T / size[:count] * np.sqrt(len(rows))
    one = one * min(1.0, 3.0 * np.sqrt(count) / max(float(np.linalg.norm(one)), 1e-9))
    return u[:, :count] * np.sqrt(len(rows)), one


def course_and_radius(table: BranchTable, slot: int, numbers: np.ndarray, samples: int):
    """Courses ``(C, samples, 3)`` from the first point, in mm of the box, and radii ``(C, samples)`` of ``(C, D)``."""
    knots = table.slots[slot].knots
    basis = spline_matrix(knots, samples)
    course = numbers[:, 1 : 1 + 3 * (knots - 1)].reshape(len(numbers), knots - 1, 3)
    radius = np.exp(np.clip(numbers[:, 1 + 3 * (knots - 1) :] @ basis.T, -3.0, 1.5))
    return np.einsum("nk,ckx->cnx", basis[:, 1:], course), radius
