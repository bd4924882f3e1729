# SPDX-License-Identifier: Apache-2.0
"""Windows for the tree encoder from rendered frames: what the segmentor answered, not what drawing would show.

Drawn windows (:mod:`licag3d.train.encoder_data`) are new for every step, but an encoder that learns them alone learns
their faults: on rendered frames it gained nothing from more of them (docs/training.md). The pairs of
:mod:`licag3d.data.view_pairs` hold the answers of the segmentor for whole frames, with the truth beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from licag3d.data.view_pairs import SIDE, ViewPair, load_pair, pair_files
from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.models.branch_table import ARTERIES, BranchTable, vector_of
from licag3d.models.view_windows import LINE_GAIN, camera_numbers, cut_layers, middle_of_vessels_mm, plane_mm
from licag3d.phantom.splits import TRAINING
from licag3d.structures import Branch, VesselTree
from licag3d.train.encoder_data import dense_truth, with_codes

#: A branch begins this near to the centreline of its parent, mm.
_JOINT_MM = 1.0
#: A place of a vessel that is less likely than this is not seen, and its name is not asked for.
_SEEN = 0.1


@dataclass(frozen=True)
class PairWindows:
    """Batches of patients of a pool of view pairs, as ``ViewMaker`` makes them from drawn trees.

    Args:
        pairs: patients that the segmentor's way of tracing (``found``) was made for (:meth:`read`).
        size, window_mm: of a window. angle_error_deg: spread of the reading error of an angle.
        clean: windows as an inversion cuts them, cameras as the user has them (for validation).
    """

    pairs: tuple[_Pair, ...]
    size: int = 256
    window_mm: float = 140.0
    angle_error_deg: float = 1.2
    clean: bool = False

    @classmethod
    def read(cls, folder, tables: dict[str, BranchTable], split: range = TRAINING, **changes) -> PairWindows:
        """All pairs of a pool that have the segmentor's answers.

        Raises:
            InputError: none of them, a seed of another split, or one artery only.
        """
        pairs = []
        for file in pair_files(folder):
            pair = load_pair(file)
            if pair.seed not in split:
                raise InputError(f"{file}: seed {pair.seed} does not belong there; make the pool anew")
            if "found" in pair.seen:
                pairs.append(_packed(pair, tables[pair.artery]))
        if {pair.artery for pair in pairs} != {0, 1}:
            raise InputError(f"{folder}: {len(pairs)} rendered pairs; both arteries are needed (view_pairs without "
                             "--drawn, two cases or more)")  # fmt: skip
        return cls(tuple(pairs), **changes)

    def of(self, artery: int) -> list[int]:
        """Rows of the patients of one artery."""
        return [k for k, pair in enumerate(self.pairs) if pair.artery == artery]

    def draw(self, rng: np.random.Generator, reader, patients: int) -> dict:
        """A batch of patients chosen at random, so many per artery."""
        rows = [int(k) for a in range(len(ARTERIES)) for k in rng.choice(self.of(a), size=patients)]
        return self.batch(rng, reader, rows)

    def batch(self, rng: np.random.Generator, reader, rows: list[int]) -> dict:
        """Windows and truth of patients, right ones first; keys and shapes as of ``ViewMaker.batch``, two views."""
        views = [self._view(rng, self.pairs[row], k) for row in rows for k in (0, 1)]

        def both(key: str, kind=np.float32) -> torch.Tensor:
            return torch.from_numpy(np.stack([view[key] for view in views]).astype(kind)).unflatten(0, (len(rows), 2))

        batch = {
            "windows": both("picture"),
            "cameras": both("camera"),
            "place_mm": both("place_mm"),
            "log_scale": both("log_scale"),
            "number": torch.tensor([self.pairs[row].seed for row in rows]),
            "artery": torch.tensor([self.pairs[row].artery for row in rows]),
            "co_dominant": torch.tensor([float(self.pairs[row].co_dominant) for row in rows]),
            "name": both("name", np.int64),
            "share": both("share"),
        }
        for index, artery in enumerate(ARTERIES):
            mine = [self.pairs[row] for row in rows if self.pairs[row].artery == index]
            size = len(self.pairs[self.of(index)[0]].vector)
            vector = np.stack([pair.vector for pair in mine]) if mine else np.zeros((0, size), np.float32)
            known = np.stack([pair.known for pair in mine]) if mine else np.zeros((0, size), bool)
            batch |= with_codes(reader, artery, torch.from_numpy(vector), torch.from_numpy(known))
        return batch

    def _view(self, rng: np.random.Generator, pair: _Pair, k: int) -> dict:
        true, read = pair.true_cameras[k], pair.user_cameras[k]
        chance, line = pair.pictures[k].astype(np.float32) / 255
        line = line * pair.most_p
        center = middle_of_vessels_mm(chance > 0.5, read)
        if not self.clean:
            center = center + rng.normal(0, 6.0 if rng.random() < 0.3 else 2.5, 2)
            error = rng.normal(0, 1, 4)
            read = replace(
                true,
                primary_deg=true.primary_deg + self.angle_error_deg * error[0],
                secondary_deg=true.secondary_deg + self.angle_error_deg * error[1],
                sid_mm=true.sid_mm + 10 * error[2],
                sod_mm=true.sod_mm + 6 * error[3],
                offset_lps_mm=(0.0, 0.0, 0.0),
            )
            chance, line = _spoilt(rng, chance, line, true.mm_per_pixel)
        picture = cut_layers(
            [chance, LINE_GAIN * line], true, center, window_px=self.size, window_mm=self.window_mm
        )
        points = pair.curves_mm[k]
        bulk = (points - pair.curves_mm[0]).mean(0) + pair.middle_mm
        at, depth = true.project(np.concatenate([points, bulk[None]]))
        col, row = np.clip(np.rint(at[:-1]).astype(int), 0, SIDE - 1).T
        seen = np.where((np.rint(at[:-1]) == np.stack([col, row], 1)).all(1), chance[row, col], 0.0)
        at = plane_mm(true, at)
        name, share = dense_truth(
            (at[:-1] - center) / (self.window_mm / self.size) + 0.5 * self.size,
            pair.radius_mm, pair.slot, pair.share, seen > _SEEN, self.size,
        )  # fmt: skip
        return {
            "picture": picture,
            "camera": camera_numbers([read], [center])[0],
            "place_mm": at[-1] - center,
            "log_scale": np.log(true.sod_mm / depth[-1]),
            "name": name,
            "share": share,
        }


@dataclass(frozen=True)
class _Pair:
    """What a batch needs of a pair; cameras of pictures of ``SIDE`` px. ``most_p`` is the line integral of 255."""

    seed: int
    artery: int
    co_dominant: bool
    pictures: tuple[np.ndarray, np.ndarray]
    most_p: float
    true_cameras: tuple[Camera, Camera]
    user_cameras: tuple[Camera, Camera]
    curves_mm: tuple[np.ndarray, np.ndarray]
    middle_mm: np.ndarray
    radius_mm: np.ndarray
    slot: np.ndarray
    share: np.ndarray
    vector: np.ndarray
    known: np.ndarray


def _packed(pair: ViewPair, table: BranchTable) -> _Pair:
    from licag3d.data.view_pairs import MOST_P
    from licag3d.phantom.anatomy import sample_patient

    points = pair.curves_mm[0]
    middle = 0.5 * (points.min(0) + points.max(0))
    tree = tree_of_points(points, pair.radius_mm, pair.branch, pair.names, table.number)
    vector, known = vector_of(tree, table, middle)
    names = {branch.id: branch.name for branch in tree.branches}
    slot, share = np.full(len(points), -1, np.int16), np.zeros(len(points), np.float32)
    for branch in tree.branches:
        on = pair.branch == branch.id
        slot[on] = table.number.get((branch.name, names.get(branch.parent)), -1)
        way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points[on], axis=0), axis=1))])
        share[on] = way / max(way[-1], 1e-6)
    pictures = tuple(
        np.stack([np.rint(255 * x).astype(np.uint8) for x in (seen.probability, seen.line_integral / MOST_P)])
        for seen in pair.seen["found"]
    )
    small = [tuple(c.resized(SIDE, SIDE) for c in cameras) for cameras in (pair.true_cameras, pair.user_cameras)]
    return _Pair(
        pair.seed, ARTERIES.index(pair.artery), sample_patient(pair.seed).dominance == "co", pictures, MOST_P, *small,
        pair.curves_mm, middle, pair.radius_mm, slot, share, vector, known,
    )  # fmt: skip


def tree_of_points(points: np.ndarray, radius: np.ndarray, branch: np.ndarray, names, known=()) -> VesselTree:
    """The tree of centreline points ``(N, 3)`` with the number of their branch ``(N,)``; the first branch is the trunk,
    every other one hangs on the branch that its first point lies on.

    Args:
        known: pairs (name, name of the parent): where several branches begin at one place, these come first.

    Raises:
        InputError: a branch that begins on no other one.
    """
    from scipy.spatial import cKDTree

    lines = [cKDTree(points[branch == k]) for k in range(len(names))]
    branches = []
    for k, name in enumerate(names):
        on, parent = branch == k, None
        if k:
            gap = np.array([np.inf if j == k else line.query(points[on][0])[0] for j, line in enumerate(lines)])
            if gap.min() > _JOINT_MM:
                raise InputError(f"branch {name} begins {gap.min():.1f} mm off any other one")
            likely = [j for j in np.flatnonzero(gap <= _JOINT_MM) if (name, names[j]) in known]
            parent = int(min(likely or range(len(names)), key=lambda j: gap[j]))
        branches.append(Branch(k, parent, points[on], radius[on], name))
    return VesselTree(tuple(branches))


def _spoilt(rng: np.random.Generator, chance: np.ndarray, line: np.ndarray, mm_per_px: float):
    """The answer with another gain of the line integrals and, at times, holes: patients differ, but only so many were
    rendered."""
    line = line * float(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.4:
        y, x = np.indices(chance.shape, np.float32)
        keep = np.ones_like(chance)
        for _ in range(int(rng.integers(1, 4))):
            (col, row), radius = rng.uniform(0.1, 0.9, 2) * SIDE, rng.uniform(1.0, 6.0) / mm_per_px
            keep *= np.clip(((x - col) ** 2 + (y - row) ** 2) / radius**2 - 0.5, 0, 1)
        chance, line = chance * keep, line * keep
    return chance, line
