# SPDX-License-Identifier: Apache-2.0
"""Training patients of the generator: a pool of phantom trees on disk, and batches of fields drawn from it.

Growing a tree costs more than a training step on it, so trees are grown once (from TRAINING seeds alone) and kept as
centrelines; points, distances and cameras are drawn anew each time a tree is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.models.branch_table import ARTERIES
from licag3d.phantom import splits
from licag3d.structures import Branch, VesselTree

SCHEMA = "licag3d-generator-pool-1"
STEP_MM = 1.0
#: A pool file beyond this is not one of ours.
MAX_BYTES = 4_000_000_000
_KEYS = ("seed", "artery", "co_dominant", "branches", "branch_points", "branch_parent", "points")


@dataclass(frozen=True)
class TreePool:
    """Many trees in flat arrays. Trees are centred: the middle of their bounding box is the origin.

    ``seed``, ``artery`` (index in ``ARTERIES``), ``co_dominant`` ``(T,)``; ``branches`` ``(T,)`` number of branches;
    ``branch_points``, ``branch_parent`` ``(sum of branches,)`` number of points and id of the parent or -1, names in
    ``names``; ``points`` ``(sum of points, 4)`` float32: x, y, z, radius in mm.
    """

    seed: np.ndarray
    artery: np.ndarray
    co_dominant: np.ndarray
    branches: np.ndarray
    branch_points: np.ndarray
    branch_parent: np.ndarray
    points: np.ndarray
    names: tuple[str, ...]
    disease: str

    def __post_init__(self) -> None:
        first_branch = np.concatenate([[0], np.cumsum(self.branches)])
        first_point = np.concatenate([[0], np.cumsum(self.branch_points)])
        object.__setattr__(self, "_first", (first_branch, first_point))

    def __len__(self) -> int:
        return len(self.seed)

    def tree(self, number: int) -> VesselTree:
        """Tree of a patient, mm from the middle of its bounding box."""
        first_branch, first_point = self._first
        out = []
        for k, row in enumerate(range(first_branch[number], first_branch[number + 1])):
            part = self.points[first_point[row] : first_point[row + 1]].astype(np.float64)
            parent = int(self.branch_parent[row])
            out.append(Branch(k, None if parent < 0 else parent, part[:, :3], part[:, 3], self.names[row]))
        return VesselTree(tuple(out))


def grow_trees(seeds, disease: str = "random", *, progress: bool = True) -> TreePool:
    """Trees of the given seeds, the artery drawn by the seed as in ``licag3d.phantom.batch.draw_case``."""
    import sys

    from tqdm import tqdm

    from licag3d.phantom.anatomy import sample_patient, sample_tree
    from licag3d.vessels.tree import resample_branch

    columns: dict[str, list] = {key: [] for key in _KEYS}
    names: list[str] = []
    for seed in tqdm(seeds, disable=None if progress else True, unit="tree", file=sys.stderr):
        artery = int(np.random.default_rng([int(seed), 70]).integers(2))
        tree = sample_tree(int(seed), ARTERIES[artery], disease=disease)
        every = np.concatenate([branch.points_lps_mm for branch in tree.branches])
        middle = 0.5 * (every.min(0) + every.max(0))
        order = {branch.id: k for k, branch in enumerate(tree.branches)}
        columns["seed"].append(int(seed))
        columns["artery"].append(artery)
        columns["co_dominant"].append(sample_patient(int(seed)).dominance == "co")
        columns["branches"].append(len(tree.branches))
        for branch in tree.branches:
            short = resample_branch(branch, STEP_MM)
            columns["branch_points"].append(len(short.points_lps_mm))
            columns["branch_parent"].append(-1 if branch.parent is None else order[branch.parent])
            names.append(branch.name)
            columns["points"].append(np.column_stack([short.points_lps_mm - middle, short.radius_mm]))
    types = {"seed": np.int64, "artery": np.int8, "co_dominant": bool, "branches": np.int32,
             "branch_points": np.int32, "branch_parent": np.int32}  # fmt: skip
    arrays = {key: np.array(columns[key], kind) for key, kind in types.items()}
    points = np.concatenate(columns["points"]).astype(np.float32) if names else np.zeros((0, 4), np.float32)
    return TreePool(**arrays, points=points, names=tuple(names), disease=disease)


def save_pool(path, pool: TreePool) -> None:
    """Write a pool as one safetensors file."""
    from safetensors.numpy import save

    from licag3d.io.atomic import write_bytes

    arrays = {key: np.ascontiguousarray(getattr(pool, key)) for key in _KEYS}
    facts = {"schema": SCHEMA, "names": json.dumps(pool.names), "disease": pool.disease}
    write_bytes(path, save(arrays, metadata=facts))


def load_pool(path) -> TreePool:
    """Read what :func:`save_pool` wrote.

    Raises:
        InputError: no such file, not a pool, or one whose numbers do not fit together.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; a pool of trees has at most {MAX_BYTES}")
        with safe_open(str(path), framework="np") as file:
            facts = file.metadata() or {}
            if facts.get("schema") != SCHEMA:
                raise InputError(f"{path}: not a pool of trees; make one with --pool and a new name")
            arrays = {key: file.get_tensor(key) for key in _KEYS}
            pool = TreePool(**arrays, names=tuple(json.loads(facts["names"])), disease=facts["disease"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a pool ({' '.join(str(error).split())[:120]})") from None
    rows, total = int(pool.branches.sum()), int(pool.branch_points.sum())
    if len(pool.names) != rows or len(pool.branch_points) != rows or pool.points.shape != (total, 4):
        raise InputError(f"{path}: the pool is damaged; make it anew")
    return pool


def pool_of(path, count: int, split: range = splits.TRAINING, disease: str = "random") -> TreePool:
    """The pool in a file, grown to ``count`` patients first where it is smaller or missing.

    Raises:
        InputError: a patient of it is not of the split, or it has one artery only.
    """
    path = Path(path)
    have = load_pool(path) if path.is_file() else None
    number = len(have) if have else 0
    if have and have.disease != disease:
        raise InputError(f"{path}: its trees have disease '{have.disease}', not '{disease}'; give another --pool")
    while number < count:
        more = grow_trees(split[number : min(count, number + 1000)], disease)
        have = more if have is None else _joined(have, more)
        number = len(have)
        save_pool(path, have)
    strange = [int(seed) for seed in have.seed if int(seed) not in split]
    if strange:
        raise InputError(f"{path}: seed {strange[0]} does not belong there; make the pool anew")
    if len(np.unique(have.artery)) < 2:
        raise InputError(f"{path}: holds {ARTERIES[int(have.artery[0])]} trees only; both arteries are one model: "
                         "make it larger (--trees)")  # fmt: skip
    return have


def _joined(first: TreePool, second: TreePool) -> TreePool:
    arrays = {key: np.concatenate([getattr(first, key), getattr(second, key)]) for key in _KEYS}
    return TreePool(**arrays, names=first.names + second.names, disease=first.disease)
