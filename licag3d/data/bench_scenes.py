# SPDX-License-Identifier: Apache-2.0
"""Drawn bench phantoms: tubes with contrast on a flat background, joints, plugs, empty tubes, stents.

Coronary models of plastic look nothing like a patient: nothing behind the vessels, tubes of constant width, pale joints
where the tree must not fall apart, and tubes without contrast that are no vessels. Rendered patients teach none of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.data.distractors import chord, distance_to, random_curve


@dataclass(frozen=True)
class BenchScene:
    """Layers ``(size, size)``: float16 line integral of the background and of the contrast; bool tubes with contrast,
    and bool pixels of plugs, empty tubes and stents.
    """

    rest: np.ndarray
    p: np.ndarray
    vessel: np.ndarray
    device: np.ndarray


class BenchBank:
    """``count`` scenes, each drawn when it is first asked for and kept; scene k depends on seed and k alone.

    Example:
        >>> bank = BenchBank(1, 128)
        >>> bool((bank[0].p[~bank[0].vessel] == 0).all())
        True
    """

    def __init__(self, count: int, size: int = 512, seed: int = 0) -> None:
        self.count, self.size, self.seed = count, size, seed
        self._drawn: dict[int, BenchScene] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> BenchScene:
        if not 0 <= number < self.count:
            raise IndexError(number)
        if number not in self._drawn:
            self._drawn[number] = draw_scene(np.random.default_rng([self.seed, 72, number]), self.size)
        return self._drawn[number]


def draw_scene(rng: np.random.Generator, size: int) -> BenchScene:
    """One tree of tubes with what surrounds it."""
    p, rest = np.zeros((size, size)), _table(rng, size)
    vessel, device = np.zeros((size, size), bool), np.zeros((size, size), bool)
    per_px = rng.uniform(0.02, 0.09)
    tubes: list[tuple[np.ndarray, float]] = []
    for number in range(rng.integers(2, 6)):
        points, radius, joint = _course(rng, size, tubes)
        arc = np.arange(len(points))
        width = radius * np.where((arc > len(arc) * rng.uniform(0.2, 0.8)) & (rng.random() < 0.4), _other(rng), 1.0)
        filled = np.ones(len(points))
        sleeves = []
        for _ in range(rng.integers(0, 3)):
            at, half = rng.integers(len(points)), rng.uniform(2, 9)
            filled *= 1 - rng.uniform(0.3, 0.85) * (np.abs(arc - at) < half)
            sleeves.append((at, half * rng.uniform(1, 2)))
        distance, owner = distance_to(points, size, arc)
        owner = owner.astype(int)
        inside = chord(distance, width[owner])
        lumen = 2 * per_px * rng.uniform(0.8, 1.2) * width[owner] * filled[owner] * inside
        if number and joint is not None:  # one lumen where a tube leaves another; both where they merely cross
            row, col = np.mgrid[:size, :size]
            near = np.hypot(col - joint[0], row - joint[1]) < 2.5 * radius + 4
            lumen = np.where(near, np.maximum(lumen - p, 0), lumen)
        p += lumen
        vessel |= inside > 0
        for at, half in sleeves:
            sleeve = (np.abs(owner - at) < half) & (distance < width[owner] * rng.uniform(1.2, 2.2))
            rest += rng.uniform(0.01, 0.12) * sleeve
            device |= sleeve
        if rng.random() < 0.3:
            mesh = _stent(rng, owner, distance, width)
            rest += mesh
            device |= mesh > 0.05
        tubes.append((points, radius))
    for _ in range(rng.integers(1, 5)):
        empty, wall = _empty_tube(rng, size, tubes)
        rest += empty
        device |= wall
    for _ in range(rng.integers(0, 25)):  # spilt contrast
        points, _ = tubes[rng.integers(len(tubes))]
        at = points[rng.integers(len(points))] + rng.normal(0, 12, 2)
        _add_spot(rest, at, rng.uniform(0.6, 2.5), rng.uniform(0.05, 0.4))
    return BenchScene(rest.astype(np.float16), p.astype(np.float16), vessel, device & ~vessel)


def _course(rng, size, tubes):
    """Points of a tube, its radius, and where it leaves another (None for the first)."""
    bend = float(np.exp(rng.uniform(np.log(0.003), np.log(0.02))))
    if not tubes:
        start = rng.uniform(0.05, 0.95, 2) * size
        return random_curve(rng, size, rng.uniform(0.5, 1.3) * size, bend, start), rng.uniform(2.2, 6.5), None
    points, radius = tubes[rng.integers(len(tubes))]
    at = int(rng.integers(len(points)))
    joint = points[at]
    ahead = points[min(at + 3, len(points) - 1)] - points[max(at - 3, 0)]
    heading = np.arctan2(ahead[1], ahead[0]) + rng.choice((-1, 1)) * np.deg2rad(rng.uniform(25, 100))
    drawn = random_curve(rng, size, rng.uniform(0.2, 0.9) * size, bend, joint)
    first = drawn[min(3, len(drawn) - 1)] - drawn[0]
    turn = heading - np.arctan2(first[1], first[0])
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return joint + (drawn - drawn[0]) @ rotate.T, float(np.clip(radius * rng.uniform(0.5, 1.05), 1.5, 6.5)), joint


def _other(rng) -> float:
    """Factor of a step in width."""
    return float(rng.choice((rng.uniform(0.55, 0.85), rng.uniform(1.2, 1.8))))


def _table(rng, size) -> np.ndarray:
    """A flat background: a slope, and faint straight edges of blocks and plates."""
    col, row = np.meshgrid(np.arange(size) / size - 0.5, np.arange(size) / size - 0.5)
    total = rng.normal(0, 0.15) * col + rng.normal(0, 0.15) * row
    for _ in range(rng.integers(0, 6)):
        turn = rng.choice((0.0, 0.5)) * np.pi + rng.normal(0, 0.06)
        far = np.cos(turn) * col + np.sin(turn) * row - rng.uniform(-0.45, 0.45)
        along = -np.sin(turn) * col + np.cos(turn) * row
        low, high = np.sort(rng.uniform(-0.6, 0.6, 2))
        span = (along > low) & (along < high)
        if rng.random() < 0.5:
            total += rng.uniform(0.01, 0.06) * (far > 0) * span
        else:
            total += rng.uniform(0.01, 0.1) * (np.abs(far * size) < rng.uniform(0.8, 4)) * span
    return total


def _empty_tube(rng, size, tubes):
    """A tube without contrast, often where one with contrast ends: (line integral, mask)."""
    bend = float(np.exp(rng.uniform(np.log(0.001), np.log(0.012))))
    start, radius = None, rng.uniform(2, 6.5)
    if rng.random() < 0.6:
        points, radius = tubes[rng.integers(len(tubes))]
        start = points[-1] if rng.random() < 0.7 else points[0]
        radius = radius * rng.uniform(0.9, 1.5)
    distance, _ = distance_to(random_curve(rng, size, rng.uniform(0.05, 0.5) * size, bend, start), size)
    outer, inner = chord(distance, radius), 0.75 * chord(distance, 0.75 * radius)
    solid = rng.random() < 0.4
    return rng.uniform(0.015, 0.12) * (outer if solid else 1.6 * (outer - inner)), distance < radius


def _stent(rng, owner, distance, width) -> np.ndarray:
    """A mesh of thin struts round a piece of a tube."""
    count = len(width)
    low = int(rng.integers(count))
    high = low + int(rng.uniform(25, 110))
    pitch, level = rng.uniform(4, 9), rng.uniform(0.05, 0.35)
    across = distance / np.maximum(width[owner], 1)
    total = np.zeros_like(distance)
    for sign in (-1, 1):
        phase = (owner / pitch + sign * 0.5 * across) % 1.0
        total += level * np.exp(-0.5 * ((phase - 0.5) / 0.13) ** 2)
    return np.where((across < rng.uniform(1.0, 1.3)) & (owner >= low) & (owner < high), total, 0.0)


def _add_spot(image: np.ndarray, at: np.ndarray, sigma: float, level: float) -> None:
    """Add a small round blob in place."""
    size, reach = len(image), int(3 * sigma) + 1
    col, row = (int(round(v)) for v in at)
    if not (reach <= col < size - reach and reach <= row < size - reach):
        return
    v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    image[row - reach : row + reach + 1, col - reach : col + reach + 1] += level * np.exp(
        -0.5 * (u * u + v * v) / sigma**2
    )
