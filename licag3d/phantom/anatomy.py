# SPDX-License-Identifier: Apache-2.0
"""Synthetic coronary anatomy: named trees with radii, on the surface of a heart, in LPS mm."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from licag3d.errors import InputError
from licag3d.phantom import plans
from licag3d.phantom.heart import Heart, sample_heart
from licag3d.phantom.plans import Plan
from licag3d.structures import Branch, VesselTree

#: Arc length between two centreline samples, mm.
SAMPLE_MM = 0.5
#: Two vessels that are not neighbours at a junction keep at least this distance between their walls, mm.
CLEARANCE_MM = 0.3
_MINIMUM_BEND_RADIUS_MM = 2.5
_ARTERIES = ("rca", "lca")


@dataclass(frozen=True)
class Patient:
    """Who the tree belongs to: the same for both arteries of a seed."""

    sex: str
    dominance: str
    heart: Heart


def sample_patient(seed: int) -> Patient:
    """The patient of a seed: sex, dominance (population shares) and heart."""
    rng = np.random.default_rng([_checked_seed(seed), 0])
    sex = str(rng.choice(["male", "female"]))
    dominance = str(rng.choice(list(plans.DOMINANCE_SHARES), p=list(plans.DOMINANCE_SHARES.values())))
    return Patient(sex, dominance, sample_heart(rng, size=float(rng.uniform(0.95, 1.06))))


def sample_tree(seed: int, artery: str, *, disease: str = "none", twigs: bool = False) -> VesselTree:
    """A coronary tree, the same for the same seed.

    The origin is the centre of the atrioventricular ring. Branches carry SCCT names (``licag3d.phantom.plans``), start
    on a sample of their parent's centreline, are sampled every 0.5 mm, keep clear of each other outside the
    junctions, and obey ``D^(7/3) = d1^(7/3) + d2^(7/3)`` (Huo and Kassab 2009) at every junction.

    Args:
        seed: not negative.
        artery: ``rca`` or ``lca``.
        disease: ``none``, or ``random``: narrowings, dilatations and occlusions by population shares
            (``licag3d.phantom.disease.sample_disease``, which also tells where they are). Courses stay the same.
        twigs: with the vessels under 0.7 mm that the named branches lose their calibre to
            (``licag3d.phantom.twigs``); named branches stay the same bit for bit.

    Raises:
        InputError: unknown artery or disease, or negative seed.

    Example:
        >>> [branch.name for branch in sample_tree(0, "rca").branches][:2]
        ['RCA', 'CB']
    """
    if artery not in _ARTERIES:
        raise InputError(f"artery is '{artery}'; choose rca or lca")
    if disease not in ("none", "random"):
        raise InputError(f"disease is '{disease}'; choose none or random")
    patient = sample_patient(seed)
    for attempt in range(50):
        tree = _grow(patient, artery, [int(seed), 1 + _ARTERIES.index(artery), attempt])
        if tree is None:
            continue
        if twigs:
            from licag3d.phantom.twigs import add_twigs

            tree = add_twigs(tree, patient.heart, np.random.default_rng([int(seed), 70 + _ARTERIES.index(artery)]))
        if disease == "random":
            from licag3d.phantom.disease import sample_disease

            tree, _ = sample_disease(seed, artery, tree)
        return tree
    raise RuntimeError(f"no tree free of crossings in 50 attempts for seed {seed}, {artery}")


@dataclass(frozen=True)
class _Grown:
    plan: Plan
    points: np.ndarray
    start_index: int  # sample of the parent where it begins
    diameter_mm: float  # of its first sample, drawn


def _grow(patient: Patient, artery: str, seed: list[int]) -> VesselTree | None:
    """One attempt: None when a mandatory branch finds no free way.

    Every branch draws from a stream of its own, so that a change of one leaves the courses of the others alone.
    """
    plan_list = plans.right_plan(patient.dominance) if artery == "rca" else plans.left_plan(patient.dominance)
    grown: dict[str, _Grown] = {}
    for plan in plan_list:
        rng = np.random.default_rng([*seed, zlib.crc32(plan.name.encode())])
        missing = any(name is not None and name not in grown for name in (plan.parent, plan.needs))
        if missing or rng.random() >= plan.chance:
            continue
        for _ in range(12):
            candidate = _draw_branch(plan, patient, artery, grown, rng)
            if candidate is not None and _is_clear(candidate, grown):
                grown[plan.name] = candidate
                break
        else:
            if plan.chance == 1.0:
                return None
    diameters = _calibres(grown)
    ids = {name: number for number, name in enumerate(grown)}
    tree = VesselTree(
        tuple(
            Branch(ids[name], ids.get(item.plan.parent), item.points, 0.5 * diameters[name], name)
            for name, item in grown.items()
        )
    )
    # Daughters at the end of a vessel got their calibre from it only now.
    return tree if overlapping_branches(tree) is None else None


def overlapping_branches(tree: VesselTree) -> tuple[str, str] | None:
    """Names of two branches whose lumens touch outside the junctions, or None.

    The first ``junction_mm`` of a branch may lie in its parent, and beside a sibling.
    """
    from scipy.spatial import cKDTree

    by_id = {branch.id: branch for branch in tree.branches}
    searches = [cKDTree(branch.points_lps_mm) for branch in tree.branches]
    for branch in tree.branches:
        if branch.parent is None:
            continue
        skip = round(junction_mm(by_id[branch.parent].radius_mm[0]) / SAMPLE_MM)
        own, radius = branch.points_lps_mm[skip:], branch.radius_mm[skip:]
        for other, search in zip(tree.branches, searches, strict=True):
            if other.id == branch.id or other.parent == branch.id or len(own) == 0:
                continue
            other_radius = other.radius_mm
            if other.parent == branch.parent:
                if len(other.points_lps_mm) <= skip:
                    continue
                search, other_radius = cKDTree(other.points_lps_mm[skip:]), other_radius[skip:]
            distance, index = search.query(own)
            if np.any(distance <= radius + other_radius[index]):
                return branch.name, other.name
    return None


def _draw_branch(
    plan: Plan, patient: Patient, artery: str, grown: dict[str, _Grown], rng: np.random.Generator
) -> _Grown | None:
    heart = patient.heart
    waypoints = [
        heart.point(rng.uniform(*w.theta_deg), rng.uniform(*w.phi_deg), rng.uniform(*w.level)) for w in plan.waypoints
    ]
    length_mm = rng.uniform(*plan.length_mm)
    index = 0
    if plan.parent is None:
        if artery == "rca":
            # The right ostium: anterior on the aortic root, which stands inside the ring and above it.
            controls = [
                heart.point(104 + rng.uniform(-4, 4), 30 + rng.uniform(-5, 5), 0.62 + rng.uniform(-0.03, 0.03)),
                *waypoints,
            ]
        else:
            controls = _left_main(heart, waypoints[0], length_mm, rng)
    else:
        parent = grown[plan.parent].points
        index = len(parent) - 1 if plan.at_end else round(rng.uniform(*plan.at_mm) / SAMPLE_MM)
        if not plan.at_end and index > len(parent) - 1 - 8 / SAMPLE_MM:
            return None
        controls = _leave_parent(heart, parent, index, plan, waypoints, length_mm, rng)
    points = _smooth_path(heart, controls, plan, rng)
    if plan.whole:
        if not plan.length_mm[0] - 1 <= _length(points) <= plan.length_mm[1] + 1:
            return None
    else:
        points = points[: round(length_mm / SAMPLE_MM) + 1]
        if _length(points) < plan.length_mm[0] - 1:
            return None
    if _bend_radius_mm(points) < _MINIMUM_BEND_RADIUS_MM:
        return None
    if plan.parent is not None:
        points[0] = grown[plan.parent].points[index]
    factor = plans.WOMEN_DIAMETER_FACTOR if patient.sex == "female" else 1.0
    diameter = factor * (plan.diameter_mm[0] + plan.diameter_mm[1] * np.clip(rng.normal(), -1.8, 1.8))
    return _Grown(plan, points, index, float(diameter))


def _left_main(heart: Heart, end: np.ndarray, length_mm: float, rng: np.random.Generator) -> list[np.ndarray]:
    """From the left ostium (towards the aortic root: inwards, up and to the right) to the bifurcation."""
    normal = heart.normal(end)
    around = np.cross(heart.apex, normal)
    back = -0.55 * normal - 0.4 * heart.apex + 0.6 * around / np.linalg.norm(around) + rng.normal(0, 0.06, 3)
    back /= np.linalg.norm(back)
    bow = rng.uniform(0.02, 0.08) * length_mm * normal
    return [end + length_mm * back, end + 0.5 * length_mm * back + bow, end]


def _leave_parent(
    heart: Heart,
    parent: np.ndarray,
    index: int,
    plan: Plan,
    waypoints: list[np.ndarray],
    length_mm: float,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Control points of a side branch: its first millimetres make the drawn angle with the parent."""
    start = parent[index]
    before, after = parent[max(index - 8, 0)], parent[min(index + 8, len(parent) - 1)]
    tangent = (after - before) / np.linalg.norm(after - before)
    if not waypoints and plan.inward:
        inwards = -heart.normal(start)
        side = np.cross(inwards, tangent) * rng.uniform(-0.25, 0.25)
        waypoints = [
            start + 0.5 * length_mm * (0.3 * tangent + 0.9 * inwards + side),
            start + 1.2 * length_mm * (0.5 * tangent + 0.75 * inwards + 2 * side),
        ]
    elif not waypoints:
        # Second order: to either side along the surface, then bending towards the apex.
        side = np.cross(heart.normal(start), tangent) * rng.choice((-1.0, 1.0))
        first = start + 0.55 * length_mm * (0.6 * tangent + side)
        second = start + 1.15 * length_mm * (0.9 * tangent + 0.75 * side + 0.2 * heart.apex)
        waypoints = [heart.onto(first, heart.level(start)), heart.onto(second, heart.level(start))]
    away = waypoints[0] - start
    across = away - (away @ tangent) * tangent
    across /= np.linalg.norm(across)
    angle = np.deg2rad(rng.uniform(*plan.angle_deg))
    direction = np.cos(angle) * tangent + np.sin(angle) * across
    step = min(6.0, 0.4 * float(np.linalg.norm(away)))
    return [start, start + step * direction, *waypoints]


def _smooth_path(heart: Heart, controls: list[np.ndarray], plan: Plan, rng: np.random.Generator) -> np.ndarray:
    """A curve through the control points, held on the heart, with smooth tortuosity, sampled every 0.5 mm."""
    from scipy.interpolate import PchipInterpolator, make_interp_spline

    controls = np.asarray(controls)
    knots = np.concatenate(([0.0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(controls, axis=0), axis=1)))))
    fine = np.linspace(0.0, knots[-1], 400)
    levels = heart.level(controls)
    if plan.parent is not None:
        levels[1] = levels[0]  # the first step stays at the depth of the parent
    curve = make_interp_spline(knots, controls, k=min(3, len(controls) - 1))(fine)
    points = _resampled(curve if plan.inward else heart.onto(curve, PchipInterpolator(knots, levels)(fine)))
    if plan.wander_mm > 0:
        arc = SAMPLE_MM * np.arange(len(points))
        tangent = np.gradient(points, axis=0)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        normal = heart.normal(points)
        side = np.cross(normal, tangent)
        fade = np.clip(arc / 12.0, 0, 1) ** 2 * (3 - 2 * np.clip(arc / 12.0, 0, 1))
        points = points + (fade * _wander(arc, plan.wander_mm, plan.winding, rng))[:, None] * side
        points = points + (fade * _wander(arc, 0.35 * plan.wander_mm, plan.winding, rng))[:, None] * normal
        points = _resampled(points)
    return points


def _wander(arc: np.ndarray, amplitude_mm: float, winding: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth random displacement along a vessel: four waves of 18 to 60 mm, short ones smaller; standard deviation
    given.
    """
    wavelengths = rng.uniform(18.0, 60.0, 4)
    weights = (wavelengths / 40.0) ** 1.5 * rng.uniform(0.5, 1.5, 4)
    weights *= amplitude_mm * np.sqrt(2.0) / np.linalg.norm(weights)
    phases = rng.uniform(0, 2 * np.pi, 4)
    waves = (weights * np.sin(2 * np.pi * arc[:, None] / wavelengths + phases)).sum(1)
    # Distal vessels wind more (Zhu et al. 2009): short waves that grow along the way, on long and short branches.
    short = rng.uniform(7.5, 16.0, 2)
    growth = winding * amplitude_mm * rng.uniform(0.3, 1.0) * np.clip(arc / min(60.0, max(arc[-1], 20.0)), 0, 1)
    return waves + growth * np.sin(2 * np.pi * arc[:, None] / short + rng.uniform(0, 2 * np.pi, 2)).sum(1)


def _resampled(points: np.ndarray) -> np.ndarray:
    arc = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))))
    count = max(int(round(arc[-1] / SAMPLE_MM)), 2)
    wanted = np.linspace(0.0, arc[-1], count + 1)
    return np.stack([np.interp(wanted, arc, points[:, k]) for k in range(3)], axis=1)


def _length(points: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


def _bend_radius_mm(points: np.ndarray) -> float:
    """Smallest radius of curvature over 3 mm chords, past the junction."""
    step = int(1.5 / SAMPLE_MM)
    a, b, c = points[: -2 * step], points[step:-step], points[2 * step :]
    if len(a) == 0:
        return np.inf
    area2 = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    sides = np.linalg.norm(b - a, axis=1) * np.linalg.norm(c - b, axis=1) * np.linalg.norm(c - a, axis=1)
    return float((sides / np.maximum(2 * area2, 1e-12)).min())


def _is_clear(candidate: _Grown, grown: dict[str, _Grown]) -> bool:
    """No crossing, no course inside another vessel: walls stay apart outside the junctions (drawn calibres bound the
    final).
    """
    from scipy.spatial import cKDTree

    points, plan = candidate.points, candidate.plan
    radius = 0.5 * candidate.diameter_mm
    if len(points) > 60:
        lag = int(15 / SAMPLE_MM)
        for i in range(0, len(points) - lag, 4):
            if np.linalg.norm(points[i + lag :] - points[i], axis=1).min() < 2 * radius + CLEARANCE_MM:
                return False
    if plan.parent is None:
        return True
    parent = grown[plan.parent]
    free = points[round(junction_mm(0.5 * parent.diameter_mm) / SAMPLE_MM) :]
    if len(free) == 0:
        return False
    for other in grown.values():
        other_points = other.points
        if other.plan.parent == plan.parent and abs(other.start_index - candidate.start_index) * SAMPLE_MM < 4:
            other_points = other_points[round(junction_mm(0.5 * parent.diameter_mm) / SAMPLE_MM) :]
        nearest, _ = cKDTree(other_points).query(free)
        if nearest.min() < radius + 0.5 * other.diameter_mm + CLEARANCE_MM:
            return False
    return True


def junction_mm(parent_radius_mm: float) -> float:
    """Arc length from a junction within which parent and branch may share lumen, mm."""
    return 2.5 * parent_radius_mm + 3.0


def _calibres(grown: dict[str, _Grown]) -> dict[str, np.ndarray]:
    """Diameter of every sample ``(n,)`` by branch: table value, taper, and the branching rule at every junction."""
    e = plans.BRANCHING_EXPONENT
    first = {name: item.diameter_mm for name, item in grown.items()}
    if "LM" in grown:
        # Daughters come from the tables; the left main follows from them.
        first["LM"] = sum(first[n] ** e for n, i in grown.items() if i.plan.parent == "LM") ** (1 / e)
    result: dict[str, np.ndarray] = {}
    for name, item in grown.items():
        count = len(item.points)
        children = sorted((child for child in grown.values() if child.plan.parent == name), key=lambda c: c.start_index)
        inner = [child for child in children if child.start_index < count - 1]
        last = [child for child in children if child.start_index == count - 1]
        diameter = first[name] * np.exp(-item.plan.taper_per_mm * SAMPLE_MM * np.arange(count))
        if not last:
            left = np.clip((1 - np.arange(count) / (count - 1)) / plans.END_SHARE, 0, 1)
            diameter *= plans.END_CALIBRE + (1 - plans.END_CALIBRE) * left
        for child in inner:
            at = child.start_index
            side = min(first[child.plan.name], 0.8 * diameter[at])
            first[child.plan.name] = side
            ratio = (1.0 - (side / diameter[at]) ** e) ** (1 / e)
            along = np.clip(SAMPLE_MM * (np.arange(count) - at) / plans.NARROWING_MM, 0, 1)
            diameter *= 1.0 + (ratio - 1.0) * along**2 * (3 - 2 * along)
        if last and name != "LM":
            # At the end the daughters share the flow in the ratio of their table values.
            scale = diameter[-1] / sum(first[c.plan.name] ** e for c in last) ** (1 / e)
            for child in last:
                first[child.plan.name] *= scale
        result[name] = np.maximum(diameter, 0.5)
    return result


def _checked_seed(seed: int) -> int:
    if int(seed) != seed or seed < 0:
        raise InputError(f"seed is {seed}; give a whole number that is not negative")
    return int(seed)
