# SPDX-License-Identifier: Apache-2.0
"""The branches of a tree as one set of points, what ties them together, and the step that moves them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from licag3d.inversion.epipolar import epipolar_pair
from licag3d.inversion.refinement_profiles import Measured, ViewPoints
from licag3d.structures import VesselTree
from licag3d.vessels.tree import arc_length_mm, flatten_tree

if TYPE_CHECKING:
    from licag3d.inversion.refinement import RefinementSettings

#: Coronary arteries bend with radii of about 1 / BEND_PER_MM mm over stretches of BEND_LENGTH_MM.
BEND_PER_MM, BEND_LENGTH_MM = 0.12, 4.0
#: What is seen of another vessel in front or behind reaches this far along the vessel, mm.
BESIDE_MM = 1.5


class Lines:
    """The branches of a tree as one set of points, and what ties them together."""

    def __init__(self, tree: VesselTree, settings: RefinementSettings) -> None:
        self.tree, self.settings = tree, settings
        flat = flatten_tree(tree)
        self.points, self.radius, self.branch = flat.points_lps_mm, np.maximum(flat.radius_mm, 0.05), flat.branch
        self.first = np.searchsorted(flat.branch, np.arange(len(tree.branches)))
        self.last = np.append(self.first[1:], len(self.points))
        self.joints = self._joints()

    def _joints(self) -> np.ndarray:
        """Pairs (first point of a branch, nearest point of its parent)."""
        position = {branch.id: k for k, branch in enumerate(self.tree.branches)}
        pairs = []
        for k, branch in enumerate(self.tree.branches):
            if branch.parent is not None:
                a, b = (f[position[branch.parent]] for f in (self.first, self.last))
                gap = ((self.points[a:b] - self.points[self.first[k]]) ** 2).sum(1)
                pairs.append((self.first[k], a + int(gap.argmin())))
        return np.array(pairs, int).reshape(-1, 2)

    def spans(self):
        """Slices of the branches."""
        return [slice(a, b) for a, b in zip(self.first, self.last, strict=True)]

    def tangents(self, points: np.ndarray) -> np.ndarray:
        """Unit tangents ``(N, 3)``, over about a millimetre."""
        out = np.zeros_like(points)
        for span in self.spans():
            line = points[span]
            if len(line) < 2:
                out[span] = (0.0, 0.0, 1.0)
                continue
            arc = arc_length_mm(line)
            ahead, behind = np.minimum(arc + 0.6, arc[-1]), np.maximum(arc - 0.6, 0.0)
            for axis in range(3):
                out[span, axis] = np.interp(ahead, arc, line[:, axis]) - np.interp(behind, arc, line[:, axis])
        length = np.linalg.norm(out, axis=1, keepdims=True)
        return np.where(length > 1e-9, out / np.maximum(length, 1e-9), (0.0, 0.0, 1.0))

    def averager(self, points: np.ndarray):
        """Weighted mean along each branch, Gaussian in arc length: a function ``(N, K) -> (N, K)``."""
        from scipy.sparse import block_diag

        blocks = []
        for span in self.spans():
            arc = arc_length_mm(points[span])
            weight = np.exp(-0.5 * ((arc[:, None] - arc[None]) / self.settings.along_mm) ** 2)
            weight[weight < 0.01] = 0.0
            blocks.append(weight / weight.sum(1, keepdims=True))
        matrix = block_diag(blocks, format="csr")
        return lambda values: matrix @ values

    def widest(self, values: np.ndarray) -> np.ndarray:
        """Largest of ``(N,)`` values among the points within :data:`BESIDE_MM` along the branch."""
        from scipy.ndimage import maximum_filter1d

        out = np.empty_like(values)
        for span in self.spans():
            line = self.points[span]
            step = arc_length_mm(line)[-1] / max(len(line) - 1, 1)
            out[span] = maximum_filter1d(values[span], 2 * int(np.ceil(BESIDE_MM / max(step, 0.1))) + 1)
        return out

    def moved(self, points, seen: list[ViewPoints], found: list[Measured], cameras, move_cameras: bool):
        """Points after one joint least-squares step, and the shift of every view across the epipolar planes, mm."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.linalg import spsolve

        settings, count, views = self.settings, len(points), len(cameras)
        free = views - 1 if move_cameras and settings.camera_sigma_mm > 0 else 0
        across = [None, *(epipolar_pair(cameras[0], camera).across for camera in cameras[1:])]
        rows, cols, values, right = [], [], [], []
        number = 0

        def equations(columns: np.ndarray, factors: np.ndarray, wanted: np.ndarray) -> None:
            nonlocal number
            rows.append(np.repeat(number + np.arange(len(wanted)), columns.shape[1]))
            cols.append(columns.ravel())
            values.append(factors.ravel())
            right.append(wanted)
            number += len(wanted)

        index = 3 * np.arange(count)[:, None] + np.arange(3)
        share = self._arc_share(points)
        for k, (view, what) in enumerate(zip(seen, found, strict=True)):
            use = np.flatnonzero(what.explained > settings.least_explained)
            miss = what.shift_px[use]
            # Cauchy: a middle far from where the vessel was thought to be is more likely that of another vessel.
            gone = miss + ((points - self.points)[use] * view.gradient[use]).sum(1)
            robust = 1.0 / (1.0 + (gone / (1.5 + 0.7 * what.width_px[use])) ** 2)
            sigma = np.hypot(settings.centre_sigma_px, what.shift_sigma_px[use])
            weight = np.sqrt(robust * share[use]) / sigma
            columns, factors = index[use], view.gradient[use]
            if free and k > 0:
                columns = np.concatenate([columns, np.full((len(use), 1), 3 * count + k - 1)], 1)
                factors = np.concatenate([factors, (view.gradient[use] @ across[k])[:, None]], 1)
            equations(columns, weight[:, None] * factors, weight * miss)
        for span in self.spans():
            self._bending(points[span], index[span], equations)
        anchor = np.sqrt(share)[:, None] / settings.anchor_mm
        for axis in range(3):
            equations(index[:, axis : axis + 1], anchor, anchor[:, 0] * (self.points - points)[:, axis])
            if len(self.joints):
                child, parent = self.joints.T
                tie = np.full((len(child), 1), 1.0 / 0.02)
                columns = np.stack([index[child, axis], index[parent, axis]], 1)
                equations(columns, np.concatenate([tie, -tie], 1), np.zeros(len(child)))
        for k in range(free):
            equations(np.array([[3 * count + k]]), np.array([[1.0 / settings.camera_sigma_mm]]), np.zeros(1))
        matrix = coo_matrix(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), shape=(number, 3 * count + free)
        ).tocsc()
        step = spsolve((matrix.T @ matrix).tocsc(), matrix.T @ np.concatenate(right))
        move = step[: 3 * count].reshape(-1, 3)
        length = np.linalg.norm(move, axis=1, keepdims=True)
        move *= np.minimum(1.0, 1.5 / np.maximum(length, 1e-9))
        shift = np.zeros(views)
        shift[1 : 1 + free] = step[3 * count :]
        return points + move, shift

    def _arc_share(self, points: np.ndarray) -> np.ndarray:
        """Arc length that each point stands for, mm."""
        share = np.full(len(points), 1e-3)
        for span in self.spans():
            gap = np.linalg.norm(np.diff(points[span], axis=0), axis=1)
            share[span][:-1] += 0.5 * gap
            share[span][1:] += 0.5 * gap
        return share

    @staticmethod
    def _bending(line: np.ndarray, index: np.ndarray, equations) -> None:
        """Second derivatives of the moved curve as equations."""
        if len(line) < 3:
            return
        gap = np.maximum(np.linalg.norm(np.diff(line, axis=0), axis=1), 0.05)
        half = 0.5 * (gap[:-1] + gap[1:])
        stencil = np.stack([1 / gap[:-1], -(1 / gap[:-1] + 1 / gap[1:]), 1 / gap[1:]], 1) / half[:, None]
        weight = np.sqrt(half / BEND_LENGTH_MM) / BEND_PER_MM
        factors = weight[:, None] * stencil
        for axis in range(3):
            columns = np.stack([index[:-2, axis], index[1:-1, axis], index[2:, axis]], 1)
            now = (factors * np.stack([line[:-2, axis], line[1:-1, axis], line[2:, axis]], 1)).sum(1)
            equations(columns, factors, -now)

    def tree_of(self, points: np.ndarray, radius: np.ndarray, spread: np.ndarray | None = None) -> VesselTree:
        """The tree with new points and radii, and the deviations of these; joints meet as they did before."""
        points = points.copy()
        for child, parent in self.joints:
            points[child] = points[parent] + self.points[child] - self.points[parent]
        return VesselTree(
            tuple(
                replace(
                    branch,
                    points_lps_mm=points[span],
                    radius_mm=radius[span],
                    radius_sigma_mm=None if spread is None else spread[span],
                )
                for branch, span in zip(self.tree.branches, self.spans(), strict=True)
            )
        )
