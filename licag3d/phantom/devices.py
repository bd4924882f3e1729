# SPDX-License-Identifier: Apache-2.0
"""Catheters, wires, leads, clips and electrodes: where the operator and the surgeon put them, as tubes.

How often each occurs is our choice (``SHARES``), made for variety and not for epidemiology: a vessel method must meet
every one of them often enough to learn that it is no vessel. Sizes are those of the products: 1 French = 1/3 mm outer
diameter, coronary guide wire 0.014 inch = 0.36 mm, pacing leads 5 to 8 French, sternal steel wire 0.8 to 1.0 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.phantom.thorax import Thorax
from licag3d.phantom.tubes import Line
from licag3d.structures import VesselTree

#: Shares of patients with a device.
SHARES = {
    "guide wire": 0.12,
    "second catheter": 0.08,
    "temporary pacing wire": 0.05,
    "pacemaker": 0.04,
    "defibrillator": 0.03,
    "sternotomy": 0.10,
    "electrodes": 0.25,
    "valve ring": 0.02,
}
#: Shares of catheter curves; every tenth sits deep in the vessel and every seventh off its axis.
CURVES = {"judkins": 0.6, "amplatz": 0.22, "straight": 0.18}
#: Attenuation above soft tissue, 1/mm. Solid steel has 1.2/mm and platinum or tungsten 10/mm at 57 keV mean energy
#: (``spectrum.Beam``); coils, strands and loaded plastic are mostly air, water or polymer, hence the smaller ones.
STEEL, PLATINUM, COIL, STRANDS, LOADED_PLASTIC, TITANIUM = 1.1, 5.0, 0.9, 0.22, 0.11, 0.5


@dataclass(frozen=True)
class Device:
    """Tubes of one material in the beam: ``per_mm`` is attenuation above what they displace."""

    kind: str
    lines: tuple[Line, ...]
    per_mm: float


def catheter_line(rng: np.random.Generator, tree: VesselTree, thorax: Thorax | None = None) -> Line:
    """A 5 or 6 French catheter whose tip ends at the ostium, LPS mm; the first point is the tip.

    Judkins: out of the ostium to the opposite wall of the aorta and up. Amplatz: down into the opposite sinus first.
    Straight (multipurpose, or a radial way): up in one gentle bend. Then out of the field, or, with a thorax and from
    the groin, over the arch and down the descending aorta beside the spine.
    """
    root = tree.branches[0].points_lps_mm
    ostium, inward = root[0], root[min(8, len(root) - 1)] - root[0]
    back = -inward / np.linalg.norm(inward)
    deep = 4.0 * rng.random() + 3.0 if rng.random() < 0.1 else 1.5
    if rng.random() < 0.15:  # the tip points at the wall, not along the vessel
        back = _unit(back + rng.normal(0, 0.35, 3))
    up = np.array((0.0, 0.0, 1.0))
    across = back - (back @ up) * up
    across /= max(float(np.linalg.norm(across)), 1e-6)
    lean = np.array((rng.uniform(-0.12, 0.18), rng.uniform(-0.08, 0.22), 0.0))
    width = rng.uniform(20, 28)  # of the aortic root, mm
    inside = root[np.searchsorted(_arc_mm(root), deep)] if deep > 2 and len(root) > 20 else ostium - deep * back
    curve = rng.choice(list(CURVES), p=list(CURVES.values()))
    if curve == "judkins":
        bend = [
            ostium + 9 * back + rng.uniform(0, 4) * -up,
            ostium + width * across + rng.uniform(4, 12) * up,
            ostium + (width + 1) * across + 38 * (up + lean),
        ]
    elif curve == "amplatz":
        depth = rng.uniform(8, 16)
        bend = [
            ostium + 8 * back - 0.5 * depth * up,
            ostium + 0.55 * width * across - depth * up,
            ostium + (width - 1) * across + rng.uniform(4, 9) * up,
            ostium + (width - 3) * across + 38 * (up + lean),
        ]
    else:
        bend = [
            ostium + 7 * back + 3 * up,
            ostium + 0.5 * width * across + rng.uniform(10, 18) * up,
            ostium + 0.8 * width * across + 42 * (up + lean),
        ]
    top = ostium + (width - 7) * across + 85 * (up + lean)
    ends = [top, ostium + (width - 6) * across + 150 * (up + lean)]
    if thorax is not None and rng.random() < 0.15:
        spine = thorax.spine[0].centre
        descending = np.array((spine[0] + rng.uniform(16, 30), spine[1] - rng.uniform(24, 34), 0.0))
        ends = [
            top,
            np.array((0.5 * (top[0] + descending[0]), 0.5 * (top[1] + descending[1]), top[2] + rng.uniform(12, 25))),
            descending + (0, 0, top[2] - 12),
            descending + rng.normal(0, 3, 3) * (1, 1, 0) + (0, 0, top[2] - 120),
            descending + (0, 0, top[2] - 330),
        ]
    points = smooth_curve([inside, ostium, *bend, *ends], 170)
    return Line(points, np.full(len(points), rng.choice((5.0, 6.0)) / 6.0))


def wire_branches(rng: np.random.Generator, tree: VesselTree) -> tuple[tuple[int, float], ...]:
    """The way of a guide wire: branch ids from the ostium and the share of each that it runs along."""
    first = tree.branches[0]
    ways = [
        branch
        for branch in tree.branches
        if branch.parent == first.id and np.allclose(branch.points_lps_mm[0], first.points_lps_mm[-1])
    ]
    if not ways:
        return ((first.id, 1.0),)
    way = max(ways, key=lambda branch: len(branch.points_lps_mm))
    return (first.id, 1.0), (way.id, float(rng.uniform(0.5, 0.9)))


def wire_devices(tree: VesselTree, catheter: Line, way: Sequence[tuple[int, float]]) -> tuple[Device, Device]:
    """A 0.014 inch guide wire through the catheter along ``way``: its steel core and its radio-opaque 30 mm tip."""
    by_id = {branch.id: branch.points_lps_mm for branch in tree.branches}
    parts = [catheter.points_lps_mm[::-1]] + [by_id[i][: max(int(len(by_id[i]) * share), 2)] for i, share in way]
    points = np.concatenate([parts[0], *(part[1:] for part in parts[1:])])  # joints once: no piece of length zero
    split = int(np.searchsorted(_arc_mm(points), _arc_mm(points)[-1] - 30.0))
    split = min(max(split, 1), len(points) - 2)
    core, tip = points[: split + 1], points[split:]
    return (
        Device("guide wire", (Line(core, np.full(len(core), 0.16)),), STEEL),
        Device("guide wire tip", (Line(tip, np.full(len(tip), 0.18)),), PLATINUM),
    )


def sample_devices(rng: np.random.Generator, thorax: Thorax, ostium: np.ndarray) -> tuple[Device, ...]:
    """Everything that is not tied to the vessels, by the shares of :data:`SHARES`; each has its own random stream, so
    that one device never moves another.
    """
    makers = {
        "second catheter": _second_catheter,
        "temporary pacing wire": _temporary_wire,
        "pacemaker": _pacemaker,
        "defibrillator": _defibrillator,
        "sternotomy": _sternotomy,
        "electrodes": _electrodes,
        "valve ring": _valve_ring,
    }
    found: list[Device] = []
    for (kind, make), own in zip(makers.items(), rng.spawn(len(makers)), strict=True):
        if own.random() < SHARES[kind]:
            found += make(own, thorax, ostium)
    return tuple(found)


def smooth_curve(controls: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Cubic spline ``(count, 3)`` through points; centripetal knots, so that close points make no loops."""
    from scipy.interpolate import make_interp_spline

    controls = np.asarray(controls, float)
    knots = np.concatenate(([0.0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(controls, axis=0), axis=1)))))
    return make_interp_spline(knots, controls, k=min(3, len(controls) - 1))(np.linspace(0, knots[-1], count))


def _second_catheter(rng: np.random.Generator, thorax: Thorax, ostium: np.ndarray) -> list[Device]:
    """A pigtail in the left ventricle or the root, or a catheter waiting in the other sinus; filled with saline."""
    top = ostium + (rng.uniform(-12, 12), rng.uniform(-8, 18), 90)
    if rng.random() < 0.5:
        turn = np.linspace(0, 1.7 * np.pi, 14)
        side, down = _unit(rng.normal(size=3) * (1, 1, 0.2)), np.array((0.0, 0.0, -1.0))
        centre = ostium + rng.normal(0, 8, 3) + (6, 0, -rng.uniform(0, 45))
        loop = centre + 6.5 * (np.sin(turn)[:, None] * down + np.cos(turn)[:, None] * side)
        controls = [*loop[::-1], centre + 6.5 * side + (0, 0, 25), top, top + (0, 5, 80)]
    else:
        controls = [
            ostium + rng.normal(0, 5, 3) + rng.choice((-1, 1)) * np.array((14, 6, 2)),
            ostium + rng.normal(0, 4, 3) + (0, 0, 26),
            top,
            top + (0, 8, 80),
        ]
    return [_tube("second catheter", controls, rng.choice((5.0, 6.0)) / 6, LOADED_PLASTIC, 140)]


def _right_apex(thorax: Thorax, rng: np.random.Generator) -> np.ndarray:
    heart = thorax.solid[0]
    half = 1 / np.linalg.norm(heart.shape, axis=0)
    axes = heart.shape * half
    return heart.centre + axes @ (half * (0.62, -0.45, 0.3)) + rng.normal(0, 5, 3)


def _valve_ground(thorax: Thorax) -> np.ndarray:
    """About the tricuspid valve."""
    heart = thorax.solid[0]
    half = 1 / np.linalg.norm(heart.shape, axis=0)
    return heart.centre + (heart.shape * half) @ (half * (-0.25, -0.3, 0.5))


def _temporary_wire(rng: np.random.Generator, thorax: Thorax, ostium: np.ndarray) -> list[Device]:
    apex, valve = _right_apex(thorax, rng), _valve_ground(thorax)
    below = np.array((thorax.spine[0].centre[0] - 14, thorax.spine[0].centre[1] - 45, apex[2]))
    way = smooth_curve([apex, 0.5 * (apex + valve) - (0, 0, 4), valve, below - (0, 0, 45), below - (0, 10, 260)], 110)
    return [_as_device("pacing wire", way, 0.8, STRANDS), *_electrode_pair(way, 0.95)]


def _lead(rng: np.random.Generator, thorax: Thorax, radius_mm: float) -> np.ndarray:
    apex, valve = _right_apex(thorax, rng), _valve_ground(thorax)
    cava = np.array((valve[0] - 8, valve[1] + 6, valve[2] + 62))
    return smooth_curve(
        [
            apex,
            0.45 * apex + 0.55 * valve - (0, 0, rng.uniform(4, 14)),
            valve,
            0.5 * (valve + cava) - (7, 0, 0),
            cava,
            cava + (14, -14, 60),
            cava + (75, -45, 88),
        ],
        130,
    )


def _pacemaker(rng: np.random.Generator, thorax: Thorax, ostium: np.ndarray) -> list[Device]:
    lead = _lead(rng, thorax, 0.9)
    found = [_as_device("lead", lead, 0.9, STRANDS), *_electrode_pair(lead, 1.1)]
    if rng.random() < 0.6:  # atrial lead with its J
        valve = _valve_ground(thorax)
        cava = np.array((valve[0] - 6, valve[1] + 4, valve[2] + 60))
        way = [valve + (4, -24, 26), valve + (-2, -16, 12), valve + (-8, 0, 22), cava, cava + (16, -12, 62)]
        atrial = smooth_curve([*way, cava + (75, -43, 92)], 110)
        found += [_as_device("lead", atrial, 0.9, STRANDS), *_electrode_pair(atrial, 1.1)]
    return found


def _defibrillator(rng: np.random.Generator, thorax: Thorax, ostium: np.ndarray) -> list[Device]:
    lead = _lead(rng, thorax, 1.2)
    arc = _arc_mm(lead)
    coil = lead[(arc > 12) & (arc < rng.uniform(58, 72))]
    found = [_as_device("lead", lead, 1.1, STRANDS), _as_device("shock coil", coil, 1.35, COIL)]
    return found + _electrode_pair(lead, 1.15)


def _electrode_pair(lead: np.ndarray, radius_mm: float) -> list[Device]:
    arc = _arc_mm(lead)
    tip, ring = lead[arc < 3.0], lead[(arc > 8.5) & (arc < 12.5)]
    return [_as_device("electrode", part, radius_mm, COIL) for part in (tip, ring) if len(part) > 1]


def _sternotomy(rng: np.random.Generator, thorax: Thorax, ostium: np.ndarray) -> list[Device]:
    """Wires round the sternum, and clips of bypass surgery along the front of the heart."""
    body = thorax.body
    front = body.centre[1] - 1 / np.linalg.norm(body.shape[:, 1]) + rng.uniform(14, 20)
    wires = []
    for number in range(int(rng.integers(4, 8))):
        z = ostium[2] + 62 - 21 * number + rng.normal(0, 2.5)
        half, thick, tilt = rng.uniform(6, 10), rng.uniform(4, 6.5), rng.normal(0, 3.0)
        turn = np.linspace(0.15, 2 * np.pi + 0.1, 26)
        loop = np.stack(
            (half * np.sin(turn), thick * np.cos(turn), tilt * np.sin(turn) + np.cumsum(rng.normal(0, 0.35, 26))), 1
        )
        twist = np.stack((rng.normal(0, 0.7, 7), np.linspace(-1, -3, 7), np.linspace(0, 4, 7)), axis=1)
        ends = loop[0] + twist - twist[0]
        at = np.array((body.centre[0] + rng.normal(0, 2), front, z))
        wires.append(_line(at + np.concatenate((ends[:0:-1], loop)), rng.uniform(0.28, 0.4)))
    found = [Device("sternal wire", tuple(wires), STEEL)]
    if rng.random() < 0.75:
        heart = thorax.solid[0]
        half = 1 / np.linalg.norm(heart.shape, axis=0)
        start = np.array((body.centre[0] + 22, front + 10, ostium[2] + 60))
        end = heart.centre + (heart.shape * half) @ (half * (0.45, 0.75, 0.1))
        clips = []
        for share in np.sort(rng.uniform(0, 1, int(rng.integers(4, 14)))):
            at = start + share * (end - start) + rng.normal(0, 3, 3)
            way, leg = _unit(rng.normal(size=3)), 0.35 * _unit(rng.normal(size=3))
            clips.append(_line(np.stack((at + leg, at + way * rng.uniform(2.5, 4.5), at - leg)), 0.22))
        found.append(Device("clip", tuple(clips), TITANIUM))
    return found


def _electrodes(rng: np.random.Generator, thorax: Thorax, ostium: np.ndarray) -> list[Device]:
    """ECG electrodes with a snap and a cable, on the skin of the front and of the sides."""
    body = thorax.body
    half = 1 / np.linalg.norm(body.shape[:, :2], axis=0)
    snaps, rings, cables = [], [], []
    for _ in range(int(rng.integers(1, 4))):
        turn, z = rng.uniform(-2.2, 2.2), ostium[2] + rng.uniform(-110, 70)

        def skin(turn: float, z: float) -> np.ndarray:
            return np.array((body.centre[0] + half[0] * np.sin(turn), body.centre[1] - half[1] * np.cos(turn), z))

        at = skin(turn, z)
        around, up = _unit(skin(turn + 0.01, z) - at), np.array((0.0, 0.0, 1.0))
        circle = np.linspace(0, 2 * np.pi, 33)
        for radius, tube, into in ((rng.uniform(4.5, 6.0), 0.45, rings), (2.0, 0.9, snaps)):
            ring = at + radius * (np.cos(circle)[:, None] * around + np.sin(circle)[:, None] * up)
            into.append(_line(ring, tube))
        way = [at]
        for _ in range(5):
            turn, z = turn + rng.normal(0, 0.14), z + rng.uniform(15, 45)
            way.append(skin(turn, z))
        cables.append(_line(smooth_curve(way, 70), rng.uniform(0.5, 0.8)))
    return [
        Device("electrode", tuple(snaps), 0.5),
        Device("electrode", tuple(rings), 0.28),
        Device("cable", tuple(cables), STRANDS),
    ]


def _valve_ring(rng: np.random.Generator, thorax: Thorax, ostium: np.ndarray) -> list[Device]:
    axis = _unit(np.array((-0.35, -0.35, 0.85)) + rng.normal(0, 0.15, 3))
    side = _unit(np.cross(axis, (0.0, 1.0, 0.2)))
    third = np.cross(axis, side)
    circle = np.linspace(0, 2 * np.pi, 41)
    centre = ostium + (0, 6, -16) + rng.normal(0, 4, 3)
    radius = rng.uniform(10, 13)
    ring = centre + radius * (np.cos(circle)[:, None] * side + np.sin(circle)[:, None] * third)
    return [Device("valve ring", (_line(ring, rng.uniform(0.6, 1.1)),), 0.8)]


def _tube(kind: str, controls: Sequence[np.ndarray], radius_mm: float, per_mm: float, count: int) -> Device:
    return _as_device(kind, smooth_curve(controls, count), radius_mm, per_mm)


def _as_device(kind: str, points: np.ndarray, radius_mm: float, per_mm: float) -> Device:
    return Device(kind, (_line(points, radius_mm),), per_mm)


def _line(points: np.ndarray, radius_mm: float) -> Line:
    return Line(np.asarray(points, float), np.full(len(points), float(radius_mm)))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def _arc_mm(points: np.ndarray) -> np.ndarray:
    return np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))))
