# SPDX-License-Identifier: Apache-2.0
"""What is implanted or lies in the beam, seen through the camera: leads with shock coils, rings, second catheters.

The phantom's patients carry what patients carry, so few frames of a pool hold a shock coil, and all coils look alike
there. A segmentor that has met few takes them for vessels: thick, dark and smooth. Scenes are the phantom's own
three-dimensional devices in many more courses, calibres and materials, at rates that suit a training; each is a layer
of line integral to be added to any frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Kinds and how often a scene holds them.
SHARES = {
    "defibrillator": 0.5,
    "pacemaker": 0.3,
    "temporary pacing wire": 0.2,
    "second catheter": 0.3,
    "sternotomy": 0.3,
    "electrodes": 0.4,
    "valve ring": 0.3,
    "resynchronisation lead": 0.15,
    "loose lead": 0.35,
    "electrode catheter": 0.2,
    "stent frame": 0.1,
}


@dataclass(frozen=True)
class DeviceScene:
    """Layers ``(size, size)`` of upright frames: float16 line integral, and bool pixels whose ray meets a device."""

    integral: np.ndarray
    device: np.ndarray


class DeviceBank:
    """``count`` scenes, each drawn when it is first asked for and kept; scene k depends on seed and k alone, and on the
    anatomy of the patient with the k-th training seed.

    Example:
        >>> bank = DeviceBank(1, 96)
        >>> bank[0].integral.shape, bool((bank[0].integral[~bank[0].device] == 0).all())
        ((96, 96), True)
    """

    def __init__(self, count: int, size: int = 512, seed: int = 0) -> None:
        self.count, self.size, self.seed = count, size, seed
        self._drawn: dict[int, DeviceScene] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> DeviceScene:
        if not 0 <= number < self.count:
            raise IndexError(number)
        if number not in self._drawn:
            self._drawn[number] = draw_scene(self.seed, number, self.size)
        return self._drawn[number]


def draw_scene(seed: int, number: int, size: int) -> DeviceScene:
    """One scene: at least one device in the picture."""
    from licag3d.phantom import views
    from licag3d.phantom.anatomy import sample_patient, sample_tree
    from licag3d.phantom.splits import TRAINING
    from licag3d.phantom.thorax import sample_thorax
    from licag3d.phantom.tubes import path_length_mm

    rng = np.random.default_rng([seed, 73, number])
    artery = ("rca", "lca")[number % 2]
    patient = TRAINING[number % len(TRAINING)]
    tree = sample_tree(patient, artery)
    thorax = sample_thorax(rng, sample_patient(patient).heart, np.zeros(3))
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    angles = views.choose_angles(rng, artery, 1, 60.0)[0]
    camera = views.make_camera(angles, views.choose_geometry(rng), size, size)
    camera = views.with_spacing(camera, views.fit_spacing([camera], points) * float(rng.uniform(0.55, 1.05)))
    total, met = np.zeros((size, size), np.float32), np.zeros((size, size), bool)
    for _ in range(8):
        for parts in _devices(rng, thorax, tree):
            dense = float(np.exp(rng.normal(-0.1, 0.6)))
            for device in parts:
                path = path_length_mm(device.lines, camera)
                total += dense * device.per_mm * path
                met |= path > 0
        if met.mean() > 0.002:
            break
    return DeviceScene(np.minimum(total, 6).astype(np.float16), met)


def _devices(rng: np.random.Generator, thorax, tree) -> list[list]:
    """The devices of a scene; one dose of each is lighter or denser as a whole."""
    from licag3d.phantom import devices

    ostium = tree.branches[0].points_lps_mm[0]
    makers = {
        "defibrillator": _defibrillator,
        "pacemaker": devices._pacemaker,
        "temporary pacing wire": devices._temporary_wire,
        "second catheter": devices._second_catheter,
        "sternotomy": devices._sternotomy,
        "electrodes": devices._electrodes,
        "valve ring": devices._valve_ring,
        "resynchronisation lead": _resynchronisation_lead,
        "loose lead": _loose_lead,
        "electrode catheter": _electrode_catheter,
        "stent frame": _stent_frame,
    }
    found = []
    for kind, make in makers.items():
        if rng.random() < SHARES[kind]:
            parts = make(rng, thorax, ostium)
            found.append([_bent(part, bend) for bend in [_bend(rng)] for part in parts])
    if rng.random() < 0.2:
        found.append(
            list(devices.wire_devices(tree, devices.catheter_line(rng, tree), devices.wire_branches(rng, tree)))
        )
    return found


def _bend(rng: np.random.Generator):
    """Waves of a few centimetres, a shift and a calibre, the same for all parts of a device."""
    waves = [
        (rng.normal(0, 1, 3) / rng.uniform(15, 60), rng.uniform(0, 2 * np.pi), rng.normal(0, 2.5, 3)) for _ in "ab"
    ]
    return waves, rng.normal(0, 9, 3), float(np.exp(rng.normal(0, 0.3)))


def _bent(device, bend):
    from dataclasses import replace

    from licag3d.phantom.tubes import Line

    waves, shift, wide = bend
    lines = []
    for line in device.lines:
        points = line.points_lps_mm
        moved = points + shift
        for turn, phase, size in waves:
            moved = moved + np.sin(points @ turn + phase)[:, None] * size
        lines.append(Line(moved, line.radius_mm * wide))
    return replace(device, lines=tuple(lines))


def _defibrillator(rng: np.random.Generator, thorax, ostium: np.ndarray) -> list:
    """A lead with one or two shock coils and a tip of one of several makes."""
    from licag3d.phantom import devices

    return _coiled(rng, devices._lead(rng, thorax, 1.2))


def _coiled(rng: np.random.Generator, way: np.ndarray) -> list:
    """Lead along ``way`` (tip first) with coils: solid, or wound round a lighter core, or in turns one can count."""
    from licag3d.phantom import devices

    way = _even(way)
    arc = devices._arc_mm(way)
    thin = rng.uniform(0.7, 1.2)
    parts = [devices._as_device("lead", way, thin, devices.STRANDS)]
    first = rng.uniform(6, 22)
    pieces = [(first, first + rng.uniform(35, 75))]
    if rng.random() < 0.4:
        pieces.append((rng.uniform(140, 190), rng.uniform(205, 260)))
    radius = thin * rng.uniform(1.05, 1.5)
    for low, high in pieces:
        inside = (arc > low) & (arc < high)
        if inside.sum() < 3:
            continue
        coil = way[inside]
        look = rng.random()
        if look < 0.5:
            parts.append(devices._as_device("shock coil", coil, radius, devices.COIL))
        elif look < 0.8:  # the winding is dense, what it is wound on is not
            parts.append(devices._as_device("shock coil", coil, radius, 1.5 * devices.COIL))
            parts.append(devices._as_device("core", coil, 0.7 * radius, -devices.COIL))
        else:
            turns = np.sin(arc[inside] * 2 * np.pi / rng.uniform(1.6, 4.0)) > rng.uniform(-0.6, 0.2)
            runs = np.split(np.arange(len(coil)), np.flatnonzero(np.diff(turns.astype(int))) + 1)
            parts += [
                devices._as_device("shock coil", coil[run[0] : run[-1] + 2], radius, devices.COIL)
                for run in runs
                if turns[run[0]] and len(coil[run[0] : run[-1] + 2]) > 1
            ]
    return parts + _tip(rng, way, arc, thin * rng.uniform(1.0, 1.4))


def _tip(rng: np.random.Generator, way: np.ndarray, arc: np.ndarray, radius: float) -> list:
    """Electrodes at the end of a lead, and in a third of them a screw."""
    from licag3d.phantom import devices

    found, at = [], 0.0
    for _ in range(rng.integers(1, 4)):
        long = rng.uniform(1.5, 8.0)
        part = way[(arc >= at) & (arc < at + long)]
        if len(part) > 1:
            found.append(devices._as_device("electrode", part, radius, devices.COIL * rng.uniform(0.6, 2)))
        at += long + rng.uniform(3, 12)
    if rng.random() < 0.33:
        forward = devices._unit(way[0] - way[min(3, len(way) - 1)])
        screw = way[0] + np.linspace(0, rng.uniform(1.5, 3), 6)[:, None] * forward
        found.append(devices._as_device("screw", screw, 0.35, devices.PLATINUM))
    return found


def _resynchronisation_lead(rng: np.random.Generator, thorax, ostium: np.ndarray) -> list:
    """A thin lead that lies in a vein on the left of the heart, and winds as veins do."""
    from licag3d.phantom import devices

    heart = thorax.solid[0]
    half = 1 / np.linalg.norm(heart.shape, axis=0)
    axes = heart.shape * half
    apex, valve = devices._right_apex(thorax, rng), devices._valve_ground(thorax)
    goal = heart.centre + axes @ (half * (rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.7), rng.uniform(-0.6, 0.4)))
    between = 0.5 * (valve + goal) + rng.normal(0, 8, 3)
    way = devices.smooth_curve(
        [goal, 0.6 * goal + 0.4 * between, between, valve, valve + (-8, 6, 62), apex + (40, -40, 150)], 200
    )
    across = np.sin(np.linspace(0, rng.uniform(6, 18) * np.pi, 200))[:, None] * rng.normal(0, 1.2, 3)
    way = _even(way + across * np.linspace(1, 0, 200)[:, None])
    parts = [devices._as_device("lead", way, rng.uniform(0.5, 0.9), devices.STRANDS)]
    return parts + _tip(rng, way, devices._arc_mm(way), 0.8)


def _loose_lead(rng: np.random.Generator, thorax, ostium: np.ndarray) -> list:
    """A lead or coil on any course through the field: given up, under the skin, on the surface of the heart."""
    from licag3d.phantom import devices

    inside = rng.normal(0, 30, 3)
    heading = devices._unit(rng.normal(0, 1, 3) * (1, 0.6, 1.4))
    turn = rng.normal(0, 0.5, 3)
    controls = [inside]
    for _ in range(5):
        heading = devices._unit(heading + turn * rng.uniform(0, 1) + rng.normal(0, 0.25, 3))
        controls.append(controls[-1] + rng.uniform(20, 45) * heading)
    way = devices.smooth_curve(controls, 220)
    if rng.random() < 0.6:
        return _coiled(rng, way)
    way = _even(way)
    parts = [devices._as_device("lead", way, rng.uniform(0.6, 1.6), devices.STRANDS * rng.uniform(0.5, 2.5))]
    return parts + _tip(rng, way, devices._arc_mm(way), rng.uniform(0.7, 1.6))


def _electrode_catheter(rng: np.random.Generator, thorax, ostium: np.ndarray) -> list:
    """A catheter with a row of rings, or one full of contrast or air, that comes from below or above."""
    from licag3d.phantom import devices

    side = rng.choice((-1.0, 1.0))
    goal = rng.normal(0, 20, 3)
    way = devices.smooth_curve(
        [goal, goal + rng.normal(0, 8, 3) + (0, 0, 15 * side), goal * (0.5, 0.5, 1) + (0, 0, 60 * side),
         rng.normal(0, 12, 3) + (0, 0, 190 * side)], 180)  # fmt: skip
    way = _even(way)
    arc, radius = devices._arc_mm(way), rng.uniform(0.6, 1.3)
    parts = [devices._as_device("catheter", way, radius, devices.LOADED_PLASTIC * rng.uniform(0.6, 1.6))]
    if rng.random() < 0.35:
        return [*parts, devices._as_device("lumen", way, 0.7 * radius, rng.uniform(-0.05, 0.3))]
    at, gap = 0.0, rng.uniform(3, 9)
    for _ in range(rng.integers(2, 11)):
        ring = way[(arc >= at) & (arc <= at + rng.uniform(1.2, 3))]
        if len(ring) > 1:
            parts.append(devices._as_device("electrode", ring, 1.1 * radius, devices.PLATINUM * 0.4))
        at += gap
    return parts


def _stent_frame(rng: np.random.Generator, thorax, ostium: np.ndarray) -> list:
    """A valve in its frame: zigzag rings of thin struts about the aortic root."""
    from licag3d.phantom import devices

    axis = devices._unit(np.array((-0.35, -0.35, 0.85)) + rng.normal(0, 0.2, 3))
    side = devices._unit(np.cross(axis, (0.0, 1.0, 0.2)))
    third = np.cross(axis, side)
    centre, radius = ostium + (0, 6, -16) + rng.normal(0, 8, 3), rng.uniform(9, 14)
    count, rings = int(rng.integers(6, 13)), int(rng.integers(2, 5))
    high = rng.uniform(14, 40) / rings
    turn = np.linspace(0, 2 * np.pi, 2 * count + 1)
    lines = []
    for ring in range(rings):
        up = high * (ring + 0.5 * (-1.0) ** np.arange(2 * count + 1))
        lines.append(devices._line(centre + radius * (np.cos(turn)[:, None] * side + np.sin(turn)[:, None] * third)
                                   + up[:, None] * axis, rng.uniform(0.15, 0.3)))  # fmt: skip
    return [devices.Device("stent frame", tuple(lines), devices.TITANIUM * rng.uniform(1, 2))]


def _even(points: np.ndarray) -> np.ndarray:
    """The course with points a fraction of a millimetre apart, so that pieces can be cut out of it."""
    from licag3d.phantom.devices import _arc_mm

    arc = _arc_mm(points)
    at = np.linspace(0, arc[-1], max(8, int(arc[-1] / 0.4)))
    return np.stack([np.interp(at, arc, points[:, k]) for k in range(3)], 1)
