# SPDX-License-Identifier: Apache-2.0
"""Pictures for the training of the tree encoder: vessel evidence of phantom trees as clinics give it, made in bulk.

Exact tubes (``project_tubes``) cost 26 ms a view; here thousands of short tubes of many views are drawn at once, each
in a small window of its own, at 1 to 2 ms a view. A tube of radius r at distance d from its axis adds the chord
``2 sqrt(r^2 - d^2)``, lengthened where the vessel runs along the beam; thin tubes are widened to a pixel and thinned by
as much, which keeps the mass of their profile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from licag3d.models.view_windows import LINE_GAIN

#: Vessels may cross in a view: so many layers are drawn apart (the largest value in each) and added.
LAYERS = 4
#: Classes of tubes by radius in px: half width of the windows they are drawn in.
_CLASSES = ((1.9, 4), (4.0, 6), (9.0, 11))
#: Longest way along the beam, in widths.
_LONGEST = 3.0


@dataclass(frozen=True)
class Tubes:
    """Short tubes in the windows of N pictures, ``(M,)`` each.

    start, end ``(M, 2)`` (x, y) in px of the window, pixel centres at half numbers; radius in px; weight: path length
    in mm per px of chord (with foreshortening and contrast); picture, layer: where it is drawn.
    """

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray
    weight: np.ndarray
    picture: np.ndarray
    layer: np.ndarray

    @staticmethod
    def joined(parts: list[Tubes]) -> Tubes:
        names = Tubes.__dataclass_fields__
        return Tubes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def draw(tubes: Tubes, pictures: int, size: int) -> torch.Tensor:
    """Path length ``(pictures, size, size)`` float32 in mm.

    Example:
        >>> line = Tubes(*(np.array(x, np.float32) for x in ([[8, 2]], [[8, 14]], [2], [0.5])), np.zeros(1, int),
        ...              np.zeros(1, int))
        >>> round(float(draw(line, 1, 16)[0, 8].sum()), 1)
        6.2
    """
    canvas = torch.zeros(pictures * LAYERS * size * size)
    start, end = torch.from_numpy(tubes.start).float(), torch.from_numpy(tubes.end).float()
    radius, weight = torch.from_numpy(tubes.radius).float(), torch.from_numpy(tubes.weight).float()
    # A tube thinner than a pixel is drawn as wide as one.
    wide2 = radius.square() + 0.3
    weight = weight * radius.square() / wide2
    first = (torch.from_numpy(tubes.picture).long() * LAYERS + torch.from_numpy(tubes.layer).long()) * size
    shown = ((start.minimum(end) < size + 8) & (start.maximum(end) > -8)).all(1) & (weight > 0)
    before = 0.0
    for limit, half in _CLASSES:
        chosen = (shown & (wide2.sqrt() >= before) & (wide2.sqrt() < limit)).nonzero()[:, 0]
        before = limit
        if len(chosen):
            where, value = _chords(start[chosen], end[chosen], wide2[chosen], weight[chosen], first[chosen], half, size)
            canvas.scatter_reduce_(0, where, value, "amax")
    return canvas.view(pictures, LAYERS, size, size).sum(1)


def _chords(start, end, wide2, weight, first, half: int, size: int):
    step = torch.arange(-half, half + 1)
    middle = (0.5 * (start + end)).floor()
    x, y = middle[:, :1] + step, middle[:, 1:] + step
    along = end - start
    dx = (x + 0.5 - start[:, :1])[:, None, :]
    dy = (y + 0.5 - start[:, 1:])[:, :, None]
    u, v = along[:, 0, None, None], along[:, 1, None, None]
    t = ((dx * u + dy * v) / (u * u + v * v + 1e-6)).clamp(0, 1)
    away2 = (dx - t * u).square() + (dy - t * v).square()
    value = 2 * (wide2[:, None, None] - away2).clamp_min(0).sqrt() * weight[:, None, None]
    inside = ((x >= 0) & (x < size))[:, None, :] & ((y >= 0) & (y < size))[:, :, None] & (value > 0)
    where = (first[:, None, None] + y[:, :, None]) * size + x[:, None, :]
    return where[inside].long(), value[inside]


def along_beam(length_mm: np.ndarray, plane_mm: np.ndarray) -> np.ndarray:
    """How much longer the way through a tube is than its width, for pieces of a length whose picture is shorter."""
    return np.minimum(length_mm / np.maximum(plane_mm, 1e-6), _LONGEST)


def stray_tubes(
    rng: np.random.Generator, picture: int, ostium: np.ndarray, size: int, mm_per_px: float
) -> Tubes | None:
    """What evidence takes for vessels and is none: a catheter to the ostium, wires, edges of ribs."""
    lines = []
    if rng.random() < 0.5:  # the catheter comes from the border
        angle = rng.uniform(-np.pi, 0)
        far = ostium + 1.2 * size * np.array([np.cos(angle), np.sin(angle)])
        bend = 0.5 * (ostium + far) + rng.normal(0, 0.15 * size, 2)
        t = np.linspace(0, 1, 96)[:, None]
        curve = (1 - t) ** 2 * ostium + 2 * t * (1 - t) * bend + t**2 * far
        chance = rng.uniform(0.05, 0.9) * (rng.random(len(curve) // 8 + 1) < 0.6).repeat(8)[: len(curve)]
        lines.append((curve, rng.uniform(0.8, 1.2), chance))
    for _ in range(rng.integers(0, 4)):
        from_px = rng.uniform(0, size, 2)
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.5) * size
        turn = rng.normal(0, 1.2) / length
        way = np.arange(0, length, 2.5)
        course = angle + turn * way
        curve = from_px + np.cumsum(2.5 * np.stack([np.cos(course), np.sin(course)], 1), 0)
        lines.append((curve, rng.uniform(0.25, 1.0), np.full(len(curve), rng.uniform(0.1, 1.0))))
    lines = [line for line in lines if len(line[0]) > 1]
    if not lines:
        return None
    parts = []
    for curve, radius_mm, chance in lines:
        count = len(curve) - 1
        parts.append(
            Tubes(
                curve[:-1].astype(np.float32),
                curve[1:].astype(np.float32),
                np.full(count, radius_mm / mm_per_px, np.float32),
                (mm_per_px * chance[:-1]).astype(np.float32),
                np.full(count, picture),
                rng.integers(0, LAYERS, 1).repeat(count),
            )
        )
    return Tubes.joined(parts)


def as_evidence(path_mm: torch.Tensor, rng: np.random.Generator, mm_per_px: float) -> torch.Tensor:
    """Windows ``(N, 2, S, S)`` of probability and line integral from path lengths ``(N, S, S)`` in mm, with holes,
    borders, blur, noise and the unknown gain of a display.
    """
    count, size = path_mm.shape[0], path_mm.shape[-1]

    def each(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1)).astype(np.float32))

    keep = torch.ones(count, size, size)
    at = torch.arange(size) + 0.5
    for k in range(count):
        for _ in range(rng.integers(0, 5)):
            x, y = rng.uniform(0.1, 0.9, 2) * size
            radius = rng.uniform(1.0, 7.0) / mm_per_px
            keep[k] *= (((at - x)[None] ** 2 + (at - y)[:, None] ** 2) / radius**2 - 0.5).clamp(0, 1)
        if rng.random() < 0.2:  # the border of the picture cuts vessels
            cut = int(rng.uniform(5, 35) / mm_per_px)
            side = rng.integers(4)
            area = keep[k] if side < 2 else keep[k].T
            (area[:cut] if side % 2 else area[-cut:]).zero_()
    path_mm = path_mm * keep
    # Weak speckle of the background, strong one in a few pictures.
    speck = torch.from_numpy(rng.random((count, size // 8, size // 8), np.float32))
    speck = torch.nn.functional.interpolate(speck[:, None], size=size, mode="bilinear")[:, 0]
    path_mm = path_mm + each(0.0, 0.25) * (speck - 0.8).clamp_min(0) * 2
    chance = (path_mm / each(0.4, 1.1)).clamp(0, 1) ** each(0.8, 1.6)
    line = path_mm * each(0.08, 0.24) * (chance > 0.1)
    grain = torch.from_numpy(rng.standard_normal((count, size, size), np.float32))
    line = (line * (1 + 0.15 * grain)).clamp_min(0)
    return torch.stack([chance, LINE_GAIN * line], 1)
