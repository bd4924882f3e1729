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

from dataclasses import dataclass

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

    Twigs leave at 35 to 85 degrees to either side along the surface (those of septal branches in any direction), wind,
    keep clear of all vessels but their parent near its junction, and may fork once. A stretch without room has none.

    Args:
        tree: a healthy tree of ``sample_tree``, origin at the centre of the atrioventricular ring.
        heart: the heart it lies on.
    """
    named = _Named(tree)
    roots = _roots(tree, heart, rng)
    accepted: list[_Course] = []
    family = np.arange(len(roots.diameter))
    pending = family
    for _ in range(_TRIES):
        if len(pending) == 0:
            break
        courses = _walk(roots.take(pending), heart, rng)
        free = named.are_free(courses, roots.parent[pending], roots.parent_radius[pending])
        _keep_clear(courses, free, pending, accepted)
        accepted += [courses.one(k, int(pending[k])) for k in np.flatnonzero(free)]
        pending = pending[~free]
    accepted.sort(key=lambda course: course.family)
    forks = _forks(accepted, roots, named, heart, rng)
    made: list[Branch] = []
    numbers: dict[int, int] = {}
    next_id = max(branch.id for branch in tree.branches) + 1
    names = {branch.id: branch.name for branch in tree.branches}
    for course in accepted:
        parent = int(roots.parent[course.family])
        numbers[parent] = numbers.get(parent, 0) + 1
        name = f"{names[parent]}{MARKER}{numbers[parent]}"
        stem, daughters = forks.get(course.family, (course, ()))
        made.append(Branch(next_id, parent, stem.points, stem.radius, name))
        for number, daughter in enumerate(daughters, start=1):
            made.append(Branch(next_id + number, next_id, daughter.points, daughter.radius, f"{name}{MARKER}{number}"))
        next_id += 1 + len(daughters)
    return VesselTree((*tree.branches, *made))


@dataclass(frozen=True)
class _Roots:
    """Where n twigs begin: ``start``, unit ``ahead`` and ``side`` ``(n, 3)``; ``angle`` (rad) from ahead to side,
    ``diameter``, whether they keep to the surface, id and radius of the parent there, all ``(n,)``."""

    start: np.ndarray
    ahead: np.ndarray
    side: np.ndarray
    angle: np.ndarray
    diameter: np.ndarray
    on_surface: np.ndarray
    parent: np.ndarray
    parent_radius: np.ndarray

    def take(self, which: np.ndarray) -> _Roots:
        return _Roots(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class _Course:
    points: np.ndarray
    radius: np.ndarray
    family: int  # its root


@dataclass(frozen=True)
class _Courses:
    """n ways side by side, padded: ``points`` ``(n, t, 3)``, ``radius`` and ``there`` (valid) ``(n, t)``."""

    points: np.ndarray
    radius: np.ndarray
    there: np.ndarray

    def one(self, k: int, family: int) -> _Course:
        return _Course(self.points[k][self.there[k]], self.radius[k][self.there[k]], family)


def _roots(tree: VesselTree, heart: Heart, rng: np.random.Generator) -> _Roots:
    by_id = {branch.id: branch for branch in tree.branches}
    starts: dict[int, list[int]] = {branch.id: [] for branch in tree.branches}
    for branch in tree.branches:
        if branch.parent is not None:
            above = by_id[branch.parent].points_lps_mm
            starts[branch.parent].append(int(np.argmin(((above - branch.points_lps_mm[0]) ** 2).sum(1))))
    start, ahead, diameter, surface, parent, radius = [], [], [], [], [], []
    for branch in tree.branches:
        points = branch.points_lps_mm
        on_surface = abs(float(np.median(heart.level(points))) - 1) < 0.04
        for index, wide in _places(branch, starts[branch.id], rng):
            start.append(points[index])
            ahead.append(points[min(index + 3, len(points) - 1)] - points[max(index - 3, 0)])
            diameter.append(wide)
            surface.append(on_surface)
            parent.append(branch.id)
            radius.append(branch.radius_mm[index])
    count = len(start)
    begin, along = np.reshape(start, (count, 3)), _unit(np.reshape(ahead, (count, 3)))
    # Either side of the parent; one that runs in the muscle gives twigs in any direction.
    normal = np.where(np.reshape(surface, (count, 1)), heart.normal(begin), rng.normal(size=(count, 3)))
    side = _unit(np.cross(normal, along)) * rng.choice((-1.0, 1.0), (count, 1))
    angle = np.deg2rad(rng.uniform(35, 85, count))
    return _Roots(
        begin,
        along,
        side,
        angle,
        np.array(diameter, float),
        np.array(surface, bool),
        np.array(parent, int),
        np.array(radius, float),
    )


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


def _walk(roots: _Roots, heart: Heart, rng: np.random.Generator) -> _Courses:
    """Winding ways: the heading swings about a slowly turning angle in the plane of ``ahead`` and ``side``."""
    n = len(roots.diameter)
    count = np.maximum((roots.diameter * rng.uniform(*LENGTH_RATIO, n) / _STEP_MM).astype(int), 6)
    arc = _STEP_MM * np.arange(1, int(count.max()) + 1)
    heading = roots.angle[:, None] + rng.uniform(-0.03, 0.015, (n, 1)) * arc
    for _ in range(2):
        swing = np.sin(2 * np.pi * (arc / rng.uniform(5.0, 12.0, (n, 1)) + rng.random((n, 1))))
        heading = heading + rng.uniform(0.1, 0.45, (n, 1)) * np.clip(arc / 3.0, 0, 1) * swing
    # A new attempt also tries the other side.
    heading = heading * rng.choice((-1.0, 1.0), (n, 1))
    steps = np.cos(heading)[..., None] * roots.ahead[:, None] + np.sin(heading)[..., None] * roots.side[:, None]
    points = roots.start[:, None] + _STEP_MM * np.concatenate((np.zeros((n, 1, 3)), np.cumsum(steps, axis=1)), axis=1)
    share = np.minimum(np.arange(len(arc) + 1) / count[:, None], 1.0)
    # On the surface from the start on, and slowly into the muscle.
    level = heart.level(roots.start)[:, None] - rng.uniform(0, 0.02, (n, 1)) * share**2
    points = np.where(roots.on_surface[:, None, None], heart.onto(points, level), points)
    points[:, 0] = roots.start
    radius = 0.5 * roots.diameter[:, None] * (1 - (1 - END_SHARE) * share)
    return _Courses(points, radius, np.arange(len(arc) + 1) <= count[:, None])


class _Named:
    """The named vessels, to keep clear of."""

    def __init__(self, tree: VesselTree) -> None:
        from scipy.spatial import cKDTree

        self.points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
        self.radius = np.concatenate([branch.radius_mm for branch in tree.branches])
        self.owner = np.concatenate([np.full(len(branch.points_lps_mm), branch.id) for branch in tree.branches])
        self.search = cKDTree(self.points)

    def are_free(self, courses: _Courses, parent: np.ndarray, parent_radius: np.ndarray) -> np.ndarray:
        """Which of n ways ``(n,)`` bool touch no named vessel behind their junction, and not themselves."""
        there, radius = courses.there, courses.radius
        skip = np.ceil((2.0 * parent_radius + 1.0) / _STEP_MM).astype(int)
        behind = there & (np.arange(there.shape[1]) >= skip[:, None])
        which, at = np.nonzero(there)
        distance, near = self.search.query(courses.points[which, at], k=6)
        reach = radius[which, at][:, None] + self.radius[near] + _CLEARANCE_MM
        # Within its junction a twig may lie in its parent, and in a vessel that leaves the parent at the same place.
        excused = ~behind[which, at][:, None] & (
            (self.owner[near] == parent[which, None])
            | (
                np.linalg.norm(self.points[near] - courses.points[which, 0][:, None], axis=-1)
                < 2 * parent_radius[which, None] + 1.5
            )
        )
        free = behind.sum(1) >= 4
        free[which[np.any((distance < reach) & ~excused, axis=1)]] = False
        lag = 8  # 4 mm on, a twig may not come back on itself
        for k in np.flatnonzero(free):
            points = courses.points[k][there[k]]
            gap = ((points[:-lag, None] - points[None, lag:]) ** 2).sum(-1)
            free[k] = not np.any(np.triu(gap < (2 * radius[k, 0] + _CLEARANCE_MM) ** 2))
        return free


def _keep_clear(courses: _Courses, free: np.ndarray, family: np.ndarray, accepted: list[_Course]) -> None:
    """Take from ``free`` the ways that touch an accepted twig, or one before them that stays free (in place)."""
    from scipy.spatial import cKDTree

    which, at = np.nonzero(courses.there & free[:, None])
    if len(which) == 0:
        return
    points = [courses.points[which, at], *(course.points for course in accepted)]
    radius = [courses.radius[which, at], *(course.radius for course in accepted)]
    owner = np.concatenate([which, *(np.full(len(course.points), -1) for course in accepted)])
    kin = np.concatenate([family[which], *(np.full(len(course.points), course.family) for course in accepted)])
    all_points, all_radius = np.concatenate(points), np.concatenate(radius)
    pairs = cKDTree(all_points).query_pairs(DIAMETER_MM[1] + 0.3, output_type="ndarray")
    pairs = pairs[kin[pairs[:, 0]] != kin[pairs[:, 1]]]
    gap = np.linalg.norm(all_points[pairs[:, 0]] - all_points[pairs[:, 1]], axis=1)
    pairs = pairs[gap < all_radius[pairs].sum(1) + 0.3]
    for one, two in np.unique(np.sort(owner[pairs], axis=1), axis=0):  # one < two; -1 is an accepted twig
        if two >= 0 and (one < 0 or free[one]):
            free[two] = False


def _forks(
    accepted: list[_Course], roots: _Roots, named: _Named, heart: Heart, rng: np.random.Generator
) -> dict[int, tuple[_Course, tuple[_Course, _Course]]]:
    """Stem and daughters of the twigs that fork, by family; the rule of the junction holds exactly."""
    e = plans.BRANCHING_EXPONENT
    chosen = [c for c in accepted if 2 * c.radius[0] >= 0.5 and len(c.points) >= 12 and rng.random() < FORK_SHARE]
    if not chosen:
        return {}
    cut = [round(len(course.points) * rng.uniform(0.35, 0.6)) for course in chosen]
    start = np.stack([course.points[k] for course, k in zip(chosen, cut, strict=True)])
    ahead = _unit(start - np.stack([course.points[k - 2] for course, k in zip(chosen, cut, strict=True)]))
    family = np.array([course.family for course in chosen])
    on_surface = roots.on_surface[family]
    normal = np.where(on_surface[:, None], heart.normal(start), rng.normal(size=start.shape))
    side = _unit(np.cross(normal, ahead))
    whole = np.array([2 * course.radius[k] for course, k in zip(chosen, cut, strict=True)])
    share = rng.uniform(0.4, 0.6, len(chosen))
    both = []
    for sign, part in ((1.0, share), (-1.0, 1 - share)):
        angle = np.deg2rad(rng.uniform(20, 42, len(chosen)))
        own = _Roots(start, ahead, sign * side, angle, whole * part ** (1 / e), on_surface, family, 0.5 * whole)
        both.append(_walk(own, heart, rng))
    free = np.ones(len(chosen), bool)
    for courses in both:
        free &= named.are_free(courses, np.full(len(chosen), -1), np.zeros(len(chosen)))
    for k in np.flatnonzero(free):  # behind their fork the daughters part
        one, two = (courses.one(k, 0).points[6:] for courses in both)
        gap = ((one[:, None] - two[None]) ** 2).sum(-1)
        free[k] = gap.min(initial=np.inf) > (whole[k] + _CLEARANCE_MM) ** 2
    made: dict[int, tuple[_Course, tuple[_Course, _Course]]] = {}
    others = list(accepted)
    for courses in both:
        _keep_clear(courses, free, family, others)
        others += [courses.one(k, int(family[k])) for k in np.flatnonzero(free)]
    for k in np.flatnonzero(free):
        stem = _Course(chosen[k].points[: cut[k] + 1], chosen[k].radius[: cut[k] + 1], int(family[k]))
        one, two = (courses.one(k, int(family[k])) for courses in both)
        made[int(family[k])] = (stem, (one, two))
    return made


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
