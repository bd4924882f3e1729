# SPDX-License-Identifier: Apache-2.0
"""Motion of the coronary tree: heartbeat and breathing, as smooth displacements of space.

The heartbeat is one smooth, invertible deformation of space per phase, in the axes of the heart, so that vessels never
cross each other by moving. Phase 0 is end-diastole, the phase of the tables behind the anatomy; 0.36 is end-systole.
Every centreline sample keeps its number: sample k of a branch is the same piece of wall at every phase.

Amplitudes (means; a patient differs by some 20 %) from end-diastole to end-systole: descent of the mitral ring 14 mm at
its left wall (Hu et al., Eur. Heart J. Cardiovasc. Imaging 2013;14:205: 12 to 15 mm), 13 mm at the crux, of the
tricuspid ring 23 mm at its free wall (Rudski et al., J. Am. Soc. Echocardiogr. 2010;23:685: normal above 17 mm), of the
aortic root 9 mm (Beller et al., Circulation 2004;109:763); twist 9 degrees counterclockwise at the apex and 3 clockwise
at the base (Buchalter et al., Circulation 1990;81:1236, Helle-Valle et al., Circulation 2005;112:3149); the epicardium
moves inwards by an eighth of the radius. Vessels then move 10-25 mm (RCA), 8-20 mm (LCx) and 5-15 mm (LAD), which is
what is seen in patients. Breathing: mostly downwards, 4.9 +- 1.9 mm, with 1.3 mm forwards and 1.5 and 1.2 degrees
(Shechter et al., IEEE Trans. Med. Imaging 2004;23:1046).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from licag3d.errors import InputError
from licag3d.phantom.heart import Heart
from licag3d.phantom.tubes import Line
from licag3d.structures import VesselTree

if TYPE_CHECKING:
    from licag3d.phantom.xray import Surroundings

#: Phase of end-systole.
END_SYSTOLE = 0.36
#: How far the heart goes down with a breath, relative to the diaphragm.
_HEART_PER_DIAPHRAGM = 0.6
#: Kinds of devices (``licag3d.phantom.devices``) that the heart carries with it.
_ON_THE_HEART = ("pacing wire", "lead", "shock coil", "clip", "valve ring")
#: Share of the full contraction over the phase: ejection, fast filling, diastasis (the rest period in which one
#: images), atrial kick.
_CONTRACTION = (
    (0.0, 0.0),
    (0.06, 0.12),
    (END_SYSTOLE, 1.0),
    (0.44, 0.9),
    (0.58, 0.3),
    (0.66, 0.17),
    (0.74, 0.14),
    (0.84, 0.12),
    (0.93, 0.05),
    (1.0, 0.0),
)
#: Share of the descent of the ring that is left along the long axis: distance from the ring over the distance of the
#: apex, towards the apex positive. The apex hardly moves, the roof of the atria does not.
_DESCENT = ((-1.2, 0.0), (-0.9, 0.04), (-0.4, 0.55), (0.0, 1.0), (0.5, 0.54), (1.0, 0.08), (1.3, 0.0))
#: Share of the radial contraction along the long axis.
_RADIAL = ((-1.2, 0.0), (-0.5, 0.0), (0.0, 0.55), (0.35, 1.0), (0.8, 0.9), (1.1, 0.6), (1.6, 0.0))
#: Twist in units of that of the apex along the long axis, counterclockwise seen from the apex positive.
_TWIST = ((-1.2, 0.0), (-0.5, -0.15), (0.0, -0.38), (0.3, 0.0), (0.7, 0.55), (1.0, 1.0), (1.3, 1.0), (1.6, 0.0))


@dataclass(frozen=True)
class Motion:
    """How one heart moves: axes in the world and amplitudes from end-diastole to end-systole.

    Args:
        centre_mm: centre of the atrioventricular ring ``(3,)`` LPS; ``apex``, ``up``, ``right`` axes as in ``Heart``.
        length_mm: ring to apex; ``radius_mm`` of the heart at the ring.
        descent_right_mm, descent_left_mm, descent_crux_mm, descent_root_mm: of the ring towards the apex at the free
            walls of the right and left ventricle, at the crux and at the aortic root.
        radial: share of the distance from the long axis that is lost at mid-ventricle.
        twist_deg: rotation of the apex.
        breath_forward: mm forwards per mm downwards; ``breath_pitch_deg``, ``breath_roll_deg`` rotation about the
            left-right and the front-back axis per mm downwards.
    """

    centre_mm: np.ndarray
    apex: np.ndarray
    up: np.ndarray
    right: np.ndarray
    length_mm: float
    radius_mm: float
    descent_right_mm: float = 23.0
    descent_left_mm: float = 14.0
    descent_crux_mm: float = 13.0
    descent_root_mm: float = 9.0
    radial: float = 0.12
    twist_deg: float = 9.0
    breath_forward: float = 0.27
    breath_pitch_deg: float = 0.3
    breath_roll_deg: float = 0.2

    def __post_init__(self) -> None:
        for name, low, high in (
            ("length_mm", 20, 250),
            ("radius_mm", 10, 150),
            ("descent_right_mm", 0, 32),
            ("descent_left_mm", 0, 32),
            ("descent_crux_mm", 0, 32),
            ("descent_root_mm", 0, 32),
            ("radial", 0, 0.3),
            ("twist_deg", 0, 25),
            ("breath_forward", -2, 2),
            ("breath_pitch_deg", -3, 3),
            ("breath_roll_deg", -3, 3),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"motion: {name} is {getattr(self, name)}; give {low} to {high}")


def sample_motion(rng: np.random.Generator, heart: Heart, centre_mm: np.ndarray) -> Motion:
    """The motion of one patient: amplitudes with a common strength (standard deviation 15 %) and 10 % each."""
    strength = float(np.clip(rng.normal(1.0, 0.15), 0.65, 1.3))

    def spread(mean: float) -> float:
        return float(mean * strength * np.clip(rng.normal(1.0, 0.1), 0.75, 1.25))

    return Motion(
        centre_mm=np.asarray(centre_mm, np.float64),
        apex=heart.apex,
        up=heart.up,
        right=heart.right,
        length_mm=heart.apical_mm,
        radius_mm=0.25 * (heart.up_mm + heart.down_mm + heart.right_mm + heart.left_mm),
        # The strongest draws go beyond what a ring is known to move.
        descent_right_mm=min(spread(23.0), 32.0),
        descent_left_mm=spread(14.0),
        descent_crux_mm=spread(13.0),
        descent_root_mm=spread(9.0),
        radial=spread(0.12),
        twist_deg=spread(9.0),
        breath_forward=float(np.clip(rng.normal(0.27, 0.3), -0.4, 0.9)),
        breath_pitch_deg=float(np.clip(rng.normal(0.3, 0.15), 0.0, 0.7)),
        breath_roll_deg=float(np.clip(rng.normal(0.2, 0.2), -0.3, 0.6)),
    )


def motion_of_tree(tree: VesselTree) -> Motion:
    """Average motion around a tree whose heart is not known (from CT labels): axes of the average heart, ring and size
    from the extent of the tree.

    Raises:
        InputError: no tree.
    """
    if not tree.branches:
        raise InputError("the vessel tree has no branches, so there is nothing to move")
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    apex = np.array((0.62, -0.56, -0.55))  # the mean of licag3d.phantom.heart.sample_heart
    apex /= np.linalg.norm(apex)
    up = np.array((0.0, 0.0, 1.0)) - apex[2] * apex
    up /= np.linalg.norm(up)
    right = np.cross(apex, up)
    root = np.asarray(tree.branches[0].points_lps_mm[0], np.float64)
    along = (points - root) @ apex
    # Both ostia lie some 10 mm above the ring; the middle of the ring is below them, inside the heart.
    middle = 0.5 * (points.min(0) + points.max(0))
    centre = middle + ((root - middle) @ apex + 8.0) * apex
    length = float(np.clip(along.max() - 8.0, 60.0, 120.0))
    return Motion(centre, apex, up, right, length, 46.0 * length / 84.0)


def contraction(phase: float | np.ndarray) -> np.ndarray:
    """Share of the full contraction at a phase: 0 at end-diastole, 1 at end-systole, smooth (C2) and periodic."""
    return _contraction_spline()(np.mod(phase, 1.0))


def displacement_mm(points_lps_mm: np.ndarray, phase: float, motion: Motion) -> np.ndarray:
    """Displacement ``(n, 3)`` mm of points ``(n, 3)`` at end-diastole by the heartbeat."""
    points = np.asarray(points_lps_mm, np.float64)
    share = float(contraction(phase))
    axes = np.stack((motion.apex, motion.up, motion.right))
    along, up, right = ((points - motion.centre_mm) @ axes.T).T
    level = along / motion.length_mm
    radius = np.hypot(up, right)
    inner = radius / motion.radius_mm
    # Descent of the ring, smooth around it (two harmonics through the four places) and even near the long axis.
    cosine, sine = up / np.maximum(radius, 1e-9), right / np.maximum(radius, 1e-9)
    root, crux = motion.descent_root_mm, motion.descent_crux_mm
    across, upright = motion.descent_right_mm + motion.descent_left_mm, root + crux
    wall = (
        0.25 * (across + upright)
        + 0.5 * (root - crux) * cosine
        + 0.5 * (motion.descent_right_mm - motion.descent_left_mm) * sine
        + 0.25 * (upright - across) * (cosine**2 - sine**2)
    )
    middle = 0.25 * (across + upright)
    descent = middle + (wall - middle) * _smooth(np.clip(inner, 0, 1))
    # Far from the heart nothing moves; the fade is slow, so that space is not torn.
    near = 1.0 - _smooth(np.clip((inner - 1.6) / 2.0, 0, 1))
    lower = share * near * descent * _curve("descent")(level)
    shrink = 1.0 - share * near * motion.radial * _curve("radial")(level)
    turn = np.deg2rad(share * near * motion.twist_deg * _curve("twist")(level))
    new = np.stack(
        (
            along + lower,
            shrink * (np.cos(turn) * up - np.sin(turn) * right),
            shrink * (np.sin(turn) * up + np.cos(turn) * right),
        ),
        axis=1,
    )
    return (new - np.stack((along, up, right), axis=1)) @ axes


def move_points(
    points_lps_mm: np.ndarray, phase: float, respiration_mm: float, motion: Motion, shift_mm: np.ndarray | None = None
) -> np.ndarray:
    """Points ``(n, 3)`` of end-diastole and end-expiration where they lie at a phase and a depth of breath.

    Args:
        respiration_mm: how far the heart has gone down by breathing in, mm, -40 to 40.
        shift_mm: further shift of the patient ``(3,)`` LPS, for example with the table.

    Raises:
        InputError: a phase or depth that is not finite or out of range.
    """
    if not np.isfinite(phase):
        raise InputError(f"cardiac phase is {phase}; give a number (0 is end-diastole, 1 the next one)")
    if not -40 <= respiration_mm <= 40:
        raise InputError(f"respiration is {respiration_mm} mm; give -40 to 40 mm")
    points = np.asarray(points_lps_mm, np.float64)
    if np.mod(phase, 1.0) != 0:
        points = points + displacement_mm(points, phase, motion)
    if respiration_mm != 0:
        points = _breathe(points, respiration_mm, motion)
    return points if shift_mm is None else points + np.asarray(shift_mm, np.float64)


def move_tree(
    tree: VesselTree,
    phase: float,
    respiration_mm: float = 0.0,
    *,
    motion: Motion,
    shift_mm: np.ndarray | None = None,
) -> VesselTree:
    """The tree at a phase and a depth of breath; radii, names and sample numbers stay.

    A move by nothing returns the very points that were given.

    Example:
        >>> from licag3d.phantom.anatomy import sample_patient, sample_tree
        >>> motion = sample_motion(np.random.default_rng(0), sample_patient(0).heart, np.zeros(3))
        >>> tree = sample_tree(0, "rca")
        >>> moved = move_tree(tree, END_SYSTOLE, motion=motion)
        >>> trunk = np.linalg.norm(moved.branches[0].points_lps_mm - tree.branches[0].points_lps_mm, axis=1)
        >>> 10 < trunk.max() < 25
        True
    """
    return VesselTree(
        tuple(
            replace(branch, points_lps_mm=move_points(branch.points_lps_mm, phase, respiration_mm, motion, shift_mm))
            for branch in tree.branches
        )
    )


def clear_motion(tree: VesselTree, motion: Motion) -> Motion:
    """The motion, weakened by fifths until no lumens touch at mid-ejection and end-systole that do not at rest.

    Centrelines cannot cross by moving, but where the heart narrows, walls a third of a millimetre apart may meet.
    """
    from licag3d.phantom.anatomy import overlapping_branches
    from licag3d.phantom.twigs import without_twigs

    scored = without_twigs(tree)
    if overlapping_branches(scored) is not None:
        return motion
    for _ in range(8):
        if all(overlapping_branches(move_tree(scored, p, motion=motion)) is None for p in (0.2, END_SYSTOLE)):
            break
        motion = replace(
            motion,
            descent_right_mm=0.8 * motion.descent_right_mm,
            descent_left_mm=0.8 * motion.descent_left_mm,
            descent_crux_mm=0.8 * motion.descent_crux_mm,
            descent_root_mm=0.8 * motion.descent_root_mm,
            radial=0.8 * motion.radial,
            twist_deg=0.8 * motion.twist_deg,
        )
    return motion


def move_surroundings(surroundings: Surroundings, phase: float, respiration_mm: float, motion: Motion) -> Surroundings:
    """What lies around the tree at a phase and a depth of breath.

    Leads, clips and valve rings go with the heart; bones and body stay. The heart gets narrower (its apex and the roof
    of the atria stay where they are), and the domes of the diaphragm go further down than the heart (Wang et al., Magn.
    Reson. Med. 1995;33:713: the heart by 0.6 of the diaphragm). Catheter, wire and what hangs on the vessels follow the
    tree that is rendered.
    """
    if np.mod(phase, 1.0) == 0 and respiration_mm == 0:
        return surroundings

    def moved(line: Line) -> Line:
        return replace(line, points_lps_mm=move_points(line.points_lps_mm, phase, respiration_mm, motion))

    on_heart = [line for device in surroundings.devices if device.kind in _ON_THE_HEART for line in device.lines]
    known = np.concatenate([line.points_lps_mm for line in on_heart]) if on_heart else np.zeros((0, 3))
    devices = []
    for device in surroundings.devices:
        goes = device.kind in _ON_THE_HEART
        if device.kind == "electrode" and len(known):  # those on a lead, not those on the skin
            first = device.lines[0].points_lps_mm[0]
            goes = np.linalg.norm(known - first, axis=1).min() < 2.0
        devices.append(replace(device, lines=tuple(moved(line) for line in device.lines)) if goes else device)
    thorax = surroundings.thorax
    heart, great, right_dome, left_dome, *others = thorax.solid  # in this order: licag3d.phantom.thorax.Thorax
    narrow = 1.0 - 0.8 * float(contraction(phase)) * motion.radial
    down = np.array((0.0, -motion.breath_forward, -1.0)) * respiration_mm
    heart = replace(heart, centre=heart.centre + down, shape=heart.shape / np.array((1.0, narrow, narrow)))
    domes = [
        replace(dome, centre=dome.centre + (0.0, 0.0, -respiration_mm / _HEART_PER_DIAPHRAGM))
        for dome in (right_dome, left_dome)
    ]
    thorax = replace(thorax, solid=(heart, great, *domes, *others))
    return replace(surroundings, thorax=thorax, devices=tuple(devices))


def _breathe(points: np.ndarray, respiration_mm: float, motion: Motion) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    # The heart hangs from the great vessels: it turns about a place above and behind its base.
    pivot = motion.centre_mm + np.array((0.0, 30.0, 60.0))
    pitch, roll = motion.breath_pitch_deg * respiration_mm, motion.breath_roll_deg * respiration_mm
    turned = Rotation.from_euler("xy", (pitch, roll), degrees=True).apply(points - pivot) + pivot
    # The rotation alone shifts the heart; the stated depth is that of its centre.
    middle = motion.centre_mm + 0.4 * motion.length_mm * motion.apex
    drift = Rotation.from_euler("xy", (pitch, roll), degrees=True).apply(middle - pivot) + pivot - middle
    return turned - drift + respiration_mm * np.array((0.0, -motion.breath_forward, -1.0))


def _smooth(x: np.ndarray) -> np.ndarray:
    return x * x * (3 - 2 * x)


@cache
def _contraction_spline():
    from scipy.interpolate import PchipInterpolator, make_interp_spline

    # A shape-preserving curve first (no overshoot), then a periodic cubic through it, for a smooth velocity.
    shape = PchipInterpolator(*np.array(_CONTRACTION).T)
    knots = np.linspace(0, 1, 51)
    return make_interp_spline(knots, np.append(shape(knots[:-1]), shape(0.0)), k=3, bc_type="periodic")


@cache
def _curve(name: str):
    from scipy.interpolate import PchipInterpolator

    table = np.array({"descent": _DESCENT, "radial": _RADIAL, "twist": _TWIST}[name])
    curve = PchipInterpolator(*table.T)
    return lambda x: curve(np.clip(x, table[0, 0], table[-1, 0]))
