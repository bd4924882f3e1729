# SPDX-License-Identifier: Apache-2.0
"""What looks like a vessel and is none: wires, leads, catheters, sternal wires, clips, ribs, lung vessels, text.

Drawn in two dimensions, in pixels of about 0.2 mm, to be added to training frames. Every object is a layer of line
integral with a mask that says whether it is a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Kinds and how often each is drawn.
KINDS = {
    "wire": 3,
    "lead": 2,
    "catheter": 4,
    "sternal": 2,
    "clip": 1,
    "rib": 3,
    "shadow": 3,
    "lung": 3,
    "electrode": 1,
    "blade": 2,
    "fan": 2,
    "streaks": 3,
    "spine": 3,
}
DEVICES = ("wire", "lead", "catheter", "sternal", "clip")


@dataclass(frozen=True)
class Distractor:
    """One object ``(size, size)``: float16 line integral (may be negative: lung beside a shadow) and bool mask."""

    kind: str
    integral: np.ndarray
    device: np.ndarray


class DistractorBank:
    """``count`` objects, each drawn when it is first asked for and kept; object k depends on seed and k alone.

    Example:
        >>> bank = DistractorBank(2, 64)
        >>> len(bank), bank[0].integral.shape, bank[0].device.dtype
        (2, (64, 64), dtype('bool'))
    """

    def __init__(self, count: int, size: int = 512, seed: int = 0) -> None:
        self.count, self.size, self.seed = count, size, seed
        self._drawn: dict[int, Distractor] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Distractor:
        if not 0 <= number < self.count:
            raise IndexError(number)
        if number not in self._drawn:
            names, weights = list(KINDS), np.array(list(KINDS.values()), float)
            rng = np.random.default_rng([self.seed, 70, number])
            kind = names[rng.choice(len(names), p=weights / weights.sum())]
            integral, inside = _DRAW[kind](rng, self.size)
            self._drawn[number] = Distractor(kind, integral.astype(np.float16), inside & (kind in DEVICES))
        return self._drawn[number]


def text_mask(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Burnt-in writing ``(rows, cols)`` bool: lines of 5 x 7 glyphs of random strokes near a side of the image."""
    out = np.zeros((rows, cols), bool)
    scale = int(rng.integers(1, 3))
    for _ in range(rng.integers(1, 4)):
        glyphs = []
        for _ in range(rng.integers(2, 14)):
            glyph = np.zeros((9, 7), bool)
            for _ in range(rng.integers(2, 5)):
                if rng.random() < 0.5:
                    glyph[1:8, rng.integers(1, 6)] = True
                else:
                    glyph[rng.integers(1, 8), 1:6] = True
            glyphs.append(glyph)
        line = np.kron(np.concatenate(glyphs, 1), np.ones((scale, scale), bool))[:rows, :cols]
        row = int(rng.choice((rng.integers(0, max(1, rows // 6)), rows - line.shape[0] - rng.integers(0, rows // 6))))
        row = int(np.clip(row, 0, rows - line.shape[0]))
        col = int(rng.integers(0, cols - line.shape[1] + 1))
        out[row : row + line.shape[0], col : col + line.shape[1]] |= line
    return out


def random_curve(
    rng: np.random.Generator, size: int, length_px: float, bend: float, start: np.ndarray | None = None
) -> np.ndarray:
    """A smooth curve ``(n, 2)`` (col, row), points a pixel apart: heading with a slowly changing curvature.

    Args:
        bend: standard deviation of the curvature, radians per pixel.
    """
    count = max(4, int(length_px))
    keep = np.exp(-1 / rng.uniform(25, 120))
    noise = rng.standard_normal(count) * bend * np.sqrt(1 - keep**2)
    curvature = np.empty(count)
    value = rng.standard_normal() * bend
    for k in range(count):
        value = keep * value + noise[k]
        curvature[k] = value
    if start is None:
        start = rng.uniform(0, size, 2)
        if rng.random() < 0.6:  # devices usually come in from outside
            start[rng.integers(2)] = rng.choice((-5.0, size + 5.0))
    towards = rng.uniform(0.2, 0.8, 2) * size - start
    heading = np.arctan2(towards[1], towards[0]) + np.cumsum(curvature)
    return start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0)


def distance_to(points: np.ndarray, size: int, values: np.ndarray | None = None):
    """Distance ``(size, size)`` to a chain of points, px, and the value of the nearest point where values are given.

    Pixels hold the point nearest to their centre, so the distance is good to about a third of a pixel.
    """
    from scipy import ndimage

    pixel = np.rint(points).astype(int)
    inside = ((pixel >= 0) & (pixel < size)).all(1)
    grid = np.ones((size, size), bool)
    if not inside.any():
        return np.full((size, size), 1e3), np.zeros((size, size))
    grid[pixel[inside, 1], pixel[inside, 0]] = False
    index = np.zeros((size, size), int)
    index[pixel[inside, 1], pixel[inside, 0]] = np.flatnonzero(inside)
    nearest = ndimage.distance_transform_edt(grid, return_distances=False, return_indices=True)
    owner = index[tuple(nearest)]
    row, col = np.mgrid[:size, :size]
    # Exact distance to the point and its neighbours along the chain: smooth where the pixel grid is not.
    best = np.full((size, size), np.inf)
    for step in (-1, 0, 1):
        at = points[np.clip(owner + step, 0, len(points) - 1)]
        best = np.minimum(best, np.hypot(col - at[..., 0], row - at[..., 1]))
    return best, (np.zeros((size, size)) if values is None else values[owner])


def chord(distance: np.ndarray, radius) -> np.ndarray:
    """Share of the diameter that a ray at this distance from the axis of a round tube meets."""
    return np.sqrt(np.maximum(1 - (distance / np.maximum(radius, 1e-3)) ** 2, 0))


def _wire(rng, size):
    distance, _ = distance_to(random_curve(rng, size, rng.uniform(0.4, 1.6) * size, 0.012), size)
    radius = rng.uniform(0.6, 1.3)
    return rng.uniform(0.12, 0.7) * chord(distance, radius), distance < radius


def _lead(rng, size):
    points = random_curve(rng, size, rng.uniform(0.5, 1.6) * size, 0.012)
    arc = np.arange(len(points))
    radius = np.full(len(points), rng.uniform(1.6, 3.2))
    tip = rng.uniform(15, 60)
    # Electrode rings and shock coils are denser than the rest.
    dense = 1 + rng.uniform(0.5, 1.5) * ((len(points) - arc < tip) & (np.sin(arc * 2 * np.pi / rng.uniform(3, 20)) > 0))
    distance, thickness = distance_to(points, size, dense)
    return rng.uniform(0.15, 0.7) * thickness * chord(distance, radius[0]), distance < radius[0]


def _catheter(rng, size):
    distance, _ = distance_to(random_curve(rng, size, rng.uniform(0.5, 1.7) * size, 0.01), size)
    radius = rng.uniform(2.6, 5.0)
    outer, lumen = chord(distance, radius), 0.68 * chord(distance, 0.68 * radius)
    wall, contrast = rng.uniform(0.1, 0.45), rng.uniform(0.0, 0.6) * (rng.random() < 0.7)
    return wall * (outer - lumen) + (0.3 * wall + contrast) * lumen, distance < radius


def _sternal(rng, size):
    at = rng.uniform(0.1, 0.9, 2) * size
    total, inside = np.zeros((size, size)), np.zeros((size, size), bool)
    for _ in range(rng.integers(1, 5)):
        turn = np.linspace(0, 2 * np.pi, 400)
        width, height, tilt = rng.uniform(12, 40), rng.uniform(8, 28), rng.uniform(0, np.pi)
        loop = np.stack([width * np.cos(turn), height * np.sin(turn * rng.choice((1, 1, 2)))], 1)
        loop = loop @ np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]]) + at
        distance, _ = distance_to(loop, size)
        radius = rng.uniform(1.0, 2.2)
        total += rng.uniform(0.5, 1.6) * chord(distance, radius)
        inside |= distance < radius
        at = at + np.array((rng.normal(0, 6), rng.uniform(60, 110)))
    return total, inside


def _clip(rng, size):
    total, inside = np.zeros((size, size)), np.zeros((size, size), bool)
    for _ in range(rng.integers(1, 6)):
        start = rng.uniform(0.05, 0.95, 2) * size
        distance, _ = distance_to(random_curve(rng, size, rng.uniform(5, 18), 0.08, start), size)
        radius = rng.uniform(0.9, 2.0)
        total += rng.uniform(0.6, 1.8) * chord(distance, radius)
        inside |= distance < radius
    return total, inside


def _rib(rng, size):
    total = np.zeros((size, size))
    start, step = rng.uniform(-0.2, 0.6) * size, rng.uniform(70, 140)
    tilt, bend, width = rng.normal(0, 0.35), rng.normal(0, 0.0012), rng.uniform(9, 22)
    col, row = np.meshgrid(np.arange(size), np.arange(size))
    dense, rim = rng.uniform(0.02, 0.14), rng.uniform(0.02, 0.12)
    for number in range(rng.integers(1, 5)):
        middle = start + number * step + tilt * (col - size / 2) + bend * (col - size / 2) ** 2
        distance = np.abs(row - middle) / np.sqrt(1 + tilt**2)
        soft = rng.uniform(0.8, 2.5)
        total += dense / (1 + np.exp(np.clip((distance - width) / soft, -50, 50)))
        total += rim * np.exp(-0.5 * ((distance - width + 2) / soft) ** 2)
    return (total if rng.random() < 0.7 else total.T), np.zeros((size, size), bool)


def _shadow(rng, size):
    """An edge of an organ: diaphragm, heart, lung, a filter of the collimator."""
    col, row = np.meshgrid(np.arange(size), np.arange(size))
    at, turn = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0, 2 * np.pi)
    u = (col - at[0]) * np.cos(turn) + (row - at[1]) * np.sin(turn)
    v = -(col - at[0]) * np.sin(turn) + (row - at[1]) * np.cos(turn)
    edge = u + rng.normal(0, 0.0022) * v**2 + rng.uniform(0, 5) * np.sin(v / rng.uniform(15, 60))
    step = 1 / (1 + np.exp(-np.clip(edge / rng.uniform(0.8, 12), -50, 50)))
    return rng.uniform(0.05, 0.8) * step, np.zeros((size, size), bool)


def _lung(rng, size):
    """Vessels of the lung and folds of tissue: faint, soft, tapering."""
    from scipy.ndimage import gaussian_filter

    total = np.zeros((size, size))
    for _ in range(rng.integers(2, 7)):
        points = random_curve(rng, size, rng.uniform(60, 260), 0.015, rng.uniform(0, 1, 2) * size)
        taper = np.linspace(1, 0.2, len(points))
        distance, width = distance_to(points, size, taper)
        radius = rng.uniform(3, 10) * np.maximum(width, 0.1)
        total = np.maximum(total, rng.uniform(0.02, 0.09) * width * chord(distance, radius))
    return gaussian_filter(total, rng.uniform(1.2, 3.5)), np.zeros((size, size), bool)


def _electrode(rng, size):
    """A skin electrode with its snap, or a button."""
    col, row = np.meshgrid(np.arange(size), np.arange(size))
    at, radius = rng.uniform(0.05, 0.95, 2) * size, rng.uniform(8, 26)
    distance = np.hypot(col - at[0], row - at[1])
    total = rng.uniform(0.03, 0.5) / (1 + np.exp(np.clip(distance - radius, -50, 50)))
    total += rng.uniform(0, 0.5) * np.exp(-0.5 * ((distance - radius) / rng.uniform(0.8, 2)) ** 2)
    return total, np.zeros((size, size), bool)


def _blade(rng, size):
    """A straight edge right across: a wedge filter, the table, a cushion; one step, or a band or seam."""
    col, row = np.meshgrid(np.arange(size), np.arange(size))
    total = np.zeros((size, size))
    turn = rng.normal(0.0, 0.15) + rng.choice((0.0, 0.5, 0.5)) * np.pi if rng.random() < 0.7 else rng.uniform(0, np.pi)
    at = rng.uniform(0.1, 0.9, 2) * size
    for _ in range(rng.integers(1, 4)):
        far = (col - at[0]) * np.cos(turn) + (row - at[1]) * np.sin(turn)
        step = 1 / (1 + np.exp(-np.clip(far / rng.uniform(0.4, 3), -50, 50)))
        if rng.random() < 0.5:
            total += rng.choice((-1, 1)) * rng.uniform(0.04, 0.5) * step
        else:
            behind = 1 / (1 + np.exp(-np.clip((far - rng.uniform(3, 25)) / rng.uniform(0.4, 3), -50, 50)))
            total += rng.choice((-1, 1, 1)) * rng.uniform(0.03, 0.25) * (step - behind)
        at, turn = at + rng.normal(0, 25, 2), turn + rng.normal(0, 0.03)
    return total, np.zeros((size, size), bool)


def _fan(rng, size):
    """Long vessels of the lung or folds that fan out from beside the heart."""
    from scipy.ndimage import gaussian_filter

    total = np.zeros((size, size))
    root, heading, spread = rng.uniform(0, 1, 2) * size, rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.25)
    for number in range(rng.integers(3, 8)):
        points = random_curve(rng, size, rng.uniform(0.3, 1.0) * size, 0.004, np.zeros(2))
        first = points[min(9, len(points) - 1)]
        turn = heading + spread * (number - 3) + rng.normal(0, 0.05) - np.arctan2(first[1], first[0])
        rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        distance, width = distance_to(
            root + rng.normal(0, 15, 2) + points @ rotate.T, size, np.linspace(1, 0.4, len(points))
        )
        radius = rng.uniform(2, 7) * np.maximum(width, 0.1)
        total += rng.choice((-0.6, 1, 1, 1)) * rng.uniform(0.02, 0.12) * width * chord(distance, radius)
    return gaussian_filter(total, rng.uniform(1.0, 3.0)), np.zeros((size, size), bool)


def _streaks(rng, size):
    """Vessels and folds of a bright lung: long lines side by side, hardly blurred, dark and bright in turn."""
    from scipy.ndimage import gaussian_filter

    total = np.zeros((size, size))
    middle, heading = rng.uniform(0.15, 0.85, 2) * size, rng.uniform(0, 2 * np.pi)
    curve, count, gap = rng.normal(0, 0.002), int(rng.integers(4, 14)), rng.uniform(6, 26)
    for number in range(count):
        arc = np.arange(rng.uniform(0.15, 0.7) * size)
        turn = heading + (curve + rng.normal(0, 0.0006)) * arc + np.cumsum(rng.normal(0, 0.004, len(arc)))
        points = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1), 0)
        along, across = rng.normal(0, 40), gap * (number - 0.5 * count) + rng.normal(0, 4)
        place = middle + along * np.array((np.cos(heading), np.sin(heading)))
        place = place + across * np.array((-np.sin(heading), np.cos(heading)))
        points = points - points[len(points) // 2] + place
        distance, width = distance_to(points, size, np.linspace(1, rng.uniform(0.3, 1), len(points)))
        radius = rng.uniform(1.2, 4.5) * width
        total += rng.choice((-0.7, 1, 1)) * rng.uniform(0.02, 0.16) * chord(distance, radius)
        heading += rng.normal(0.01, 0.03)
    return gaussian_filter(total, rng.uniform(0.5, 1.8)), np.zeros((size, size), bool)


def _spine(rng, size):
    """A column of vertebrae: thin dense end plates and edges, ends of ribs, pedicles; corners, no courses."""
    from scipy.ndimage import gaussian_filter

    row, col = np.mgrid[:size, :size]
    lean, middle = rng.normal(0, 0.12), rng.uniform(-0.1, 1.1) * size
    u = col - middle - lean * (row - size / 2)
    half, high = rng.uniform(45, 85), rng.uniform(70, 130)
    phase = np.mod(row + rng.uniform(0, 1) * high + rng.normal(0, 0.08) * u + rng.normal(0, 0.002) * u**2, high)
    waist = half * (1 - rng.uniform(0.05, 0.2) * np.sin(np.pi * phase / high))
    side, edge = np.abs(u) - waist, rng.uniform(0.8, 2.5)
    inside = 1 / (1 + np.exp(np.clip(side / edge, -50, 50)))
    total = rng.uniform(0.1, 0.6) * inside
    gap = rng.uniform(8, 18)
    plate = np.exp(-0.5 * ((phase - gap) / edge) ** 2) + np.exp(-0.5 * ((phase - high + 2) / edge) ** 2)
    total += rng.uniform(0.03, 0.2) * inside * plate * (0.5 + 0.5 * np.cos(u / rng.uniform(20, 60) + rng.uniform(0, 6)))
    total -= rng.uniform(0, 0.15) * inside * (phase < gap)
    total += rng.uniform(0, 0.2) * np.exp(-0.5 * (side / edge) ** 2) * (phase > gap)
    at = rng.uniform(0.3, 0.6) * half
    for sign in (-1, 1):
        ring = np.hypot((u - sign * at) / rng.uniform(0.6, 1), phase - 0.4 * high) - rng.uniform(8, 15)
        total += rng.uniform(0.02, 0.2) * np.exp(-0.5 * (ring / edge) ** 2)
        # A rib or a process leaves at a slant and ends.
        slant = phase - 0.3 * high - rng.uniform(-0.6, 0.6) * np.abs(u)
        band = np.abs(np.abs(slant) - rng.uniform(4, 10))
        on = (sign * u > 0.7 * half) & (sign * u < rng.uniform(1.2, 2.5) * half)
        total += rng.uniform(0.02, 0.15) * np.exp(-0.5 * (band / edge) ** 2) * on
    return gaussian_filter(total, rng.uniform(0.5, 1.6)), np.zeros((size, size), bool)


_DRAW = {
    "wire": _wire,
    "lead": _lead,
    "catheter": _catheter,
    "sternal": _sternal,
    "clip": _clip,
    "rib": _rib,
    "shadow": _shadow,
    "lung": _lung,
    "electrode": _electrode,
    "blade": _blade,
    "fan": _fan,
    "streaks": _streaks,
    "spine": _spine,
}
