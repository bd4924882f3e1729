# SPDX-License-Identifier: Apache-2.0
"""The vessels under 0.7 mm that an angiogram shows beside the named ones: rendered, never scored.

A named branch loses calibre between its named daughters: its taper. That loss is flow that leaves through twigs, so
each twig takes what its stretch of the parent loses, by the rule of every junction, ``d^(7/3) = D1^(7/3) - D2^(7/3)``
with the parent's diameters D1 before and D2 behind the stretch. Named branches therefore stay the same bit for bit, and
twigs crowd where vessels fade out, as they do on the heart.

Names end in ``~`` and a number (``LAD~3``; ``LAD~3~1`` forks off it); ``is_twig`` tells, ``without_twigs`` gives the
tree that is scored.
"""

from __future__ import annotations

import numpy as np

from licag3d.phantom import plans
from licag3d.phantom.heart import Heart
from licag3d.structures import Branch, VesselTree

MARKER = "~"
#: Range of the diameter of a twig at its start, mm; above 0.7 mm a vessel has a name.
DIAMETER_MM = (0.32, 0.7)
#: A twig is this many times as long as wide, and ends at this share of its diameter.
LENGTH_RATIO, END_SHARE = (10.0, 28.0), 0.6
FORK_SHARE = 0.4
_STEP_MM = 0.5
_CLEARANCE_MM = 0.1
_TRIES = 4


def is_twig(name: str) -> bool:
    """Whether a branch of this name is a twig, which is not scored."""
    return MARKER in name


def without_twigs(tree: VesselTree) -> VesselTree:
    """The tree that is scored: no branch is changed, twigs are left out."""
    return VesselTree(tuple(branch for branch in tree.branches if not is_twig(branch.name)))


def add_twigs(tree: VesselTree, heart: Heart, rng: np.random.Generator) -> VesselTree:
    """The tree with twigs behind its branches.

    Args:
        tree: a healthy tree of ``sample_tree``, origin at the centre of the atrioventricular ring.
        heart: the heart it lies on.

    Twigs leave at 35 to 85 degrees to either side along the surface (those of septal branches in any direction), wind,
    and keep clear of all vessels but their parent near its junction. A stretch without room has none.
    """
    occupied = _Occupied(tree)
    made: list[Branch] = []
    next_id = max(branch.id for branch in tree.branches) + 1
    starts: dict[int, list[int]] = {branch.id: [] for branch in tree.branches}
    for branch in tree.branches:
        if branch.parent is not None:
            above = next(other for other in tree.branches if other.id == branch.parent)
            starts[above.id].append(int(np.argmin(((above.points_lps_mm - branch.points_lps_mm[0]) ** 2).sum(1))))
    for branch in tree.branches:
        on_surface = abs(float(np.median(heart.level(branch.points_lps_mm))) - 1) < 0.04
        number = 0
        for index, diameter in _places(branch, starts[branch.id], rng):
            for _ in range(_TRIES):
                points = _course(branch, index, diameter, heart, on_surface, rng)
                radius = _radius(points, diameter)
                if occupied.is_free(points, radius, branch, index):
                    break
            else:
                continue
            number += 1
            name = f"{branch.name}{MARKER}{number}"
            pieces = _forked(points, diameter, heart, on_surface, rng)
            family = [(None, points, radius)] if pieces is None else pieces
            if pieces is not None and not all(occupied.is_free(p, r, branch, index) for _, p, r in pieces):
                family = [(None, points, radius)]
            for k, (above, course, calibre) in enumerate(family):
                parent = branch.id if above is None else next_id - k
                made.append(Branch(next_id, parent, course, calibre, name if k == 0 else f"{name}{MARKER}{k}"))
                next_id += 1
            occupied.add([(course, calibre) for _, course, calibre in family])
    return VesselTree((*tree.branches, *made))


def _places(branch: Branch, starts: list[int], rng: np.random.Generator) -> list[tuple[int, float]]:
    """Sample and diameter of the twigs of one branch: whenever the lost calibre suffices for the twig drawn."""
    e = plans.BRANCHING_EXPONENT
    power = (2 * branch.radius_mm) ** e
    lost = np.maximum(-np.diff(power), 0.0)
    for start in starts:  # what a named daughter takes is not taper
        lost[start : start + round(plans.NARROWING_MM / _STEP_MM)] = 0.0
    lost[: round(1.0 / _STEP_MM) + int(2 * branch.radius_mm[0] / _STEP_MM)] = 0.0
    places, saved = [], 0.0
    wanted = rng.uniform(*DIAMETER_MM)
    for index, part in enumerate(lost[:-2], start=1):
        saved += part
        thin = 0.8 * 2 * branch.radius_mm[index]
        if saved >= min(wanted, thin) ** e:
            diameter = min(saved ** (1 / e), DIAMETER_MM[1], thin)
            saved -= diameter**e
            if diameter >= DIAMETER_MM[0]:
                places.append((index, float(diameter)))
            wanted = rng.uniform(*DIAMETER_MM)
    return places


def _course(
    branch: Branch, index: int, diameter: float, heart: Heart, on_surface: bool, rng: np.random.Generator
) -> np.ndarray:
    points = branch.points_lps_mm
    tangent = points[min(index + 3, len(points) - 1)] - points[max(index - 3, 0)]
    tangent /= np.linalg.norm(tangent)
    normal = heart.normal(points[index])
    if not on_surface:
        normal = np.cross(tangent, rng.normal(size=3))
    side = np.cross(normal, tangent)
    side *= rng.choice((-1.0, 1.0)) / np.linalg.norm(side)
    return _walk(points[index], tangent, side, np.deg2rad(rng.uniform(35, 85)), diameter, heart, on_surface, rng)


def _walk(
    start: np.ndarray,
    ahead: np.ndarray,
    side: np.ndarray,
    angle: float,
    diameter: float,
    heart: Heart,
    on_surface: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """A winding way from a point: the heading swings about a slowly turning angle in the plane of both directions."""
    count = max(int(diameter * rng.uniform(*LENGTH_RATIO) / _STEP_MM), 6)
    arc = _STEP_MM * np.arange(1, count + 1)
    heading = angle + rng.uniform(-0.03, 0.015) * arc
    for wave in rng.uniform(5.0, 12.0, 2):
        swing = np.sin(2 * np.pi * (arc / wave + rng.random()))
        heading = heading + rng.uniform(0.1, 0.45) * np.clip(arc / 3.0, 0, 1) * swing
    steps = np.cos(heading)[:, None] * ahead + np.sin(heading)[:, None] * side
    points = np.concatenate((start[None], start + _STEP_MM * np.cumsum(steps, axis=0)))
    if on_surface:
        # On the surface from its start on, and slowly into the muscle.
        dive = rng.uniform(0, 0.02) * np.linspace(0, 1, count + 1) ** 2
        points = heart.onto(points, float(heart.level(start)) - dive)
        points[0] = start
    return points


def _radius(points: np.ndarray, diameter: float) -> np.ndarray:
    return 0.5 * diameter * np.linspace(1.0, END_SHARE, len(points))


def _forked(points: np.ndarray, diameter: float, heart: Heart, on_surface: bool, rng: np.random.Generator):
    """The twig cut at a fork and its two daughters, as (parent position or None, points, radius); or None."""
    e = plans.BRANCHING_EXPONENT
    if rng.random() > FORK_SHARE or diameter < 0.5 or len(points) < 12:
        return None
    at = round(len(points) * rng.uniform(0.35, 0.6))
    radius = _radius(points, diameter)[: at + 1]
    share = rng.uniform(0.4, 0.6)
    ahead = points[at] - points[at - 2]
    ahead /= np.linalg.norm(ahead)
    normal = heart.normal(points[at]) if on_surface else np.cross(ahead, rng.normal(size=3))
    side = np.cross(normal, ahead)
    side /= np.linalg.norm(side)
    made = [(None, points[: at + 1], radius)]
    for sign, part in ((1.0, share), (-1.0, 1 - share)):
        own = 2 * radius[-1] * part ** (1 / e)
        way = _walk(points[at], ahead, sign * side, np.deg2rad(rng.uniform(18, 40)), own, heart, on_surface, rng)
        made.append((0, way, _radius(way, own)))
    return made


class _Occupied:
    """Where vessels are already: a search tree of the named ones, a growing list of the twigs."""

    def __init__(self, tree: VesselTree) -> None:
        from scipy.spatial import cKDTree

        self.points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
        self.radius = np.concatenate([branch.radius_mm for branch in tree.branches])
        self.owner = np.concatenate([np.full(len(branch.points_lps_mm), branch.id) for branch in tree.branches])
        self.search = cKDTree(self.points)
        self.twig_points, self.twig_radius = np.zeros((0, 3)), np.zeros(0)

    def is_free(self, points: np.ndarray, radius: np.ndarray, parent: Branch, index: int) -> bool:
        """Whether a twig of ``parent`` that leaves at sample ``index`` touches nothing behind its junction."""
        skip = int(np.ceil((2.0 * parent.radius_mm[index] + 1.0) / _STEP_MM))
        own, calibre = points[skip:], radius[skip:]
        if len(own) < 4:
            return False
        distance, near = self.search.query(own)
        if np.any(distance < calibre + self.radius[near] + _CLEARANCE_MM):
            return False
        # The junction itself may lie in the parent, but in no other vessel.
        distance, near = self.search.query(points[:skip], k=8)
        foreign = self.owner[near] != parent.id
        at_start = np.linalg.norm(self.points[near] - points[0], axis=-1) < 2 * parent.radius_mm[index] + 1.5
        if np.any(foreign & ~at_start & (distance < radius[:skip, None] + self.radius[near])):
            return False
        if len(self.twig_points):
            gap = ((self.twig_points[None, :, :] - points[1::2, None]) ** 2).sum(-1)
            if np.any(gap < (self.twig_radius[None] + radius[1::2, None] + 0.3) ** 2):
                return False
        lag = 8  # 4 mm on, a twig may not come back on itself
        if len(points) > lag:
            gap = ((points[:, None] - points[None]) ** 2).sum(-1)
            if np.triu(gap < (2 * radius[0] + _CLEARANCE_MM) ** 2, lag).any():
                return False
        return True

    def add(self, courses: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.twig_points = np.concatenate([self.twig_points, *(points for points, _ in courses)])
        self.twig_radius = np.concatenate([self.twig_radius, *(radius for _, radius in courses)])
