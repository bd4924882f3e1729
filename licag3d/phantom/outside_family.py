# SPDX-License-Identifier: Apache-2.0
"""Trees that no plan of the phantom draws, for judging methods that learned from it.

A prior that was trained on phantom trees is at home on phantom trees. Patients are not phantoms: here a tree is
stretched and bent as a whole, loses two branches and grows two where none belongs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from licag3d.structures import Branch, VesselTree

#: Standard deviation of the logarithm of the stretch along each of three random axes.
STRETCH = 0.1
#: Root mean square of the bending beyond that, mm, and the wavelengths it is made of.
BEND_MM, WAVES_MM = 5.0, (70.0, 140.0)
#: Branches that are taken away, and grown.
REMOVED, GROWN = 2, 2
_MAIN = ("LM", "LAD", "LCx", "RCA")


def outside_tree(tree: VesselTree, seed: int) -> VesselTree:
    """A named tree stretched, bent, without two of its side branches and with two unknown ones (``X1``, ``X2``).

    Radii stay. A function of tree and seed alone.

    Example:
        >>> from licag3d.phantom.anatomy import sample_tree
        >>> tree = sample_tree(50000, "rca")
        >>> strange = outside_tree(tree, 50000)
        >>> [branch.name for branch in strange.branches][-2:]
        ['X1', 'X2']
    """
    rng = np.random.default_rng([seed, 77])
    kept = _without(tree, _unneeded(tree, rng))
    grown = _with_new(kept, rng)
    points = np.concatenate([branch.points_lps_mm for branch in grown.branches])
    move = _warp(points, rng)
    return replace(
        grown, branches=tuple(replace(b, points_lps_mm=move(np.asarray(b.points_lps_mm))) for b in grown.branches)
    )


def _unneeded(tree: VesselTree, rng: np.random.Generator) -> set[int]:
    """Numbers of branches to take away: side branches on which nothing hangs."""
    parents = {branch.parent for branch in tree.branches}
    free = [b.id for b in tree.branches if b.id not in parents and b.parent is not None and b.name not in _MAIN]
    return set(rng.choice(free, size=min(REMOVED, len(free)), replace=False).tolist()) if free else set()


def _without(tree: VesselTree, gone: set[int]) -> VesselTree:
    return replace(tree, branches=tuple(branch for branch in tree.branches if branch.id not in gone))


def _with_new(tree: VesselTree, rng: np.random.Generator) -> VesselTree:
    """New branches from somewhere on others, along the surface that the tree lies on (a sphere about its middle, at the
    distance of the place they come from), 20 to 45 mm long, thinner than their parent."""
    middle = np.concatenate([branch.points_lps_mm for branch in tree.branches]).mean(0)
    branches = list(tree.branches)
    for number in range(1, GROWN + 1):
        parent = tree.branches[int(rng.integers(min(4, len(tree.branches))))]
        points, radius = np.asarray(parent.points_lps_mm), np.asarray(parent.radius_mm)
        at = int(rng.uniform(0.2, 0.8) * (len(points) - 1))
        outward = points[at] - middle
        along = points[min(at + 3, len(points) - 1)] - points[max(at - 3, 0)]
        turn = float(rng.choice((-1, 1)) * rng.uniform(0.7, 1.2))
        curvature = float(rng.normal(0, 0.02))
        steps = int(rng.uniform(20, 45) / 0.5)
        place, course = points[at].copy(), [points[at].copy()]
        for _ in range(steps):
            normal = (place - middle) / np.linalg.norm(place - middle)
            along = along - (along @ normal) * normal
            along = along / np.linalg.norm(along)
            side = np.cross(normal, along)
            heading = np.cos(turn) * along + np.sin(turn) * side
            place = place + 0.5 * heading
            place = middle + (place - middle) * np.linalg.norm(outward) / np.linalg.norm(place - middle)
            along, turn = heading, 0.5 * curvature
            course.append(place.copy())
        thick = float(np.clip(0.6 * radius[at], 0.3, 1.0))
        branches.append(
            Branch(
                max(b.id for b in branches) + 1,
                parent.id,
                np.array(course),
                np.linspace(thick, 0.6 * thick, len(course)),
                f"X{number}",
            )  # fmt: skip
        )
    return replace(tree, branches=tuple(branches))


def _warp(points: np.ndarray, rng: np.random.Generator):
    """A smooth map of space: stretch along random axes about the middle, and waves of :data:`BEND_MM` altogether."""
    middle = points.mean(0)
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    stretch = axes * np.exp(rng.normal(0, STRETCH, 3)) @ axes.T
    direction = rng.normal(size=(6, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave = direction * (2 * np.pi / rng.uniform(*WAVES_MM, (6, 1)))
    phase, height = rng.uniform(0, 2 * np.pi, 6), rng.normal(size=(6, 3))

    def waves(at: np.ndarray) -> np.ndarray:
        return np.sin((at - middle) @ wave.T + phase) @ height

    # What a shift or a stretch of the whole would do as well does not count as bending.
    flat = np.column_stack([points - middle, np.ones(len(points))])
    same = np.linalg.lstsq(flat, waves(points), rcond=None)[0]
    left = waves(points) - flat @ same
    scale = BEND_MM / np.sqrt((left**2).sum(1).mean())

    def move(at: np.ndarray) -> np.ndarray:
        bent = waves(at) - np.column_stack([at - middle, np.ones(len(at))]) @ same
        return middle + (at - middle) @ stretch + scale * bent

    return move
