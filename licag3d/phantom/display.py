# SPDX-License-Identifier: Apache-2.0
"""From detected intensity to the picture on the monitor: shutters, curve, enhancement, noise reduction, marks.

No vendor publishes its processing. The families below are named after the look of frames that their systems export;
every number is our approximation, and each patient draws values round its family's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Family:
    """A style of display: means of what :func:`sample_display` draws.

    Args:
        share: of the patients.
        gamma: of the curve from log intensity to grey; ``shoulder`` 0..1 of an S shape.
        flatten: share of the slow brightness changes (over 60 px of 512) that is taken out.
        sharpen: gain of detail of ``sharpen_px`` and finer.
        smoothing: weight of the past in the recursive filter over frames, 0..1.
        field: ``square``, ``cut`` (octagon) or ``round``.
    """

    share: float
    gamma: float
    shoulder: float
    flatten: float
    sharpen: float
    sharpen_px: float
    smoothing: float
    field: str


FAMILIES: dict[str, Family] = {
    "siemens-like": Family(0.34, 1.0, 0.35, 0.15, 0.45, 3.5, 0.3, "square"),
    "philips-like": Family(0.26, 0.95, 0.25, 0.35, 0.4, 4.5, 0.45, "square"),
    "ge-like": Family(0.2, 1.1, 0.15, 0.25, 0.35, 2.0, 0.2, "cut"),
    "neusoft-like": Family(0.12, 1.15, 0.4, 0.05, 0.7, 2.2, 0.1, "square"),
    "intensifier": Family(0.08, 1.0, 0.3, 0.0, 0.2, 2.0, 0.0, "round"),
}


@dataclass(frozen=True)
class Display:
    """Display settings of one frame, drawn by :func:`sample_display`."""

    family: str
    gamma: float
    shoulder: float
    flatten: float
    sharpen: float
    sharpen_px: float
    smoothing: float
    field: str
    low_percentile: float
    high_percentile: float
    low_reserve: float
    high_reserve: float
    margins: tuple[float, float, float, float]  # of the shutters: top, bottom, left, right, share of the side
    edge_px: float
    tilt: float
    floor: float
    text: bool

    def quanta_gain(self) -> float:
        """How many times the dose the recursive filter is worth: (1 + k) / (1 - k) for independent frames."""
        return (1 + self.smoothing) / (1 - self.smoothing)


def sample_display(rng: np.random.Generator, family_name: str | None = None) -> Display:
    """Settings of one frame: a family by its share (or the named one), and values round those of the family."""
    names = list(FAMILIES)
    name = family_name or str(rng.choice(names, p=[FAMILIES[name].share for name in names]))
    family = FAMILIES[name]
    none = rng.random() < 0.12
    # Most fields are cut by a few pixels; some sides are closed further.
    margins = rng.uniform(0.001, 0.022, 4) + np.where(rng.random(4) < 0.12, rng.uniform(0.0, 0.02, 4), 0)
    return Display(
        family=name,
        gamma=float(family.gamma * np.exp(rng.normal(0.28, 0.15))),
        shoulder=float(np.clip(family.shoulder + rng.normal(0, 0.15), 0, 0.8)),
        flatten=float(np.clip(family.flatten + rng.normal(0, 0.08), 0, 0.6)),
        sharpen=float(max(family.sharpen * np.exp(rng.normal(0, 0.35)), 0)),
        sharpen_px=float(family.sharpen_px * rng.uniform(0.8, 1.3)),
        smoothing=float(np.clip(family.smoothing + rng.normal(0, 0.1), 0, 0.7)),
        field="square" if family.field == "cut" and rng.random() < 0.5 else family.field,
        low_percentile=float(rng.uniform(0.1, 0.6)),
        high_percentile=float(rng.uniform(96.5, 99.8)),
        low_reserve=float(rng.uniform(0.4, 1.2)),
        high_reserve=float(rng.uniform(-0.02, 0.35)),
        margins=tuple(float(x) for x in (np.zeros(4) if none and family.field == "square" else margins)),
        edge_px=float(rng.uniform(0.5, 2.2)),
        tilt=float(rng.normal(0, 0.006)),
        floor=float(rng.choice((0.0, rng.uniform(0.0, 0.1)))),
        text=bool(rng.random() < 0.08),
    )


def window(intensity: np.ndarray, display: Display) -> tuple[float, float]:
    """Log intensities that become black and white: percentiles inside the shutters, and a reserve."""
    value = np.log(np.maximum(intensity, 1e-4))
    rows, cols = value.shape
    inner = value[rows // 24 : -(rows // 24), cols // 24 : -(cols // 24) :]
    low, high = np.percentile(inner, (display.low_percentile, display.high_percentile))
    low, high = low - display.low_reserve, high + display.high_reserve
    # A flat scene is not spread without end.
    spare = max(0.0, 1.05 - (high - low)) / 2
    return float(low - spare), float(high + spare)


def shown(
    intensity: np.ndarray, display: Display, limits: tuple[float, float], light: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Grey ``(rows, cols)`` float32 in 0..1.

    Args:
        intensity: detected, any unit. limits: of :func:`window`. light: of :func:`shutters`; enhancement sees their
            edges, as it does in a real chain, hence the bright seam inside them.
        rng: for the marks.
    """
    from scipy.ndimage import gaussian_filter, zoom

    rows, cols = intensity.shape
    low, high = limits
    unit = (np.log(np.maximum(intensity, 1e-4)) - low) / (high - low)
    if display.flatten > 0:
        step = max(cols // 64, 1)
        slow = gaussian_filter(np.clip(unit[::step, ::step], 0, 1), 60 * cols / 512 / step, mode="nearest")
        factor = (rows / slow.shape[0], cols / slow.shape[1])
        unit = unit - display.flatten * (zoom(slow, factor, order=1, grid_mode=True, mode="nearest") - slow.mean())
    unit = np.clip(unit, 0, 1)
    curved = (1 - display.shoulder) * unit + display.shoulder * unit * unit * (3 - 2 * unit)
    grey = curved**display.gamma * light
    if display.sharpen > 0:
        grey = grey + display.sharpen * (grey - gaussian_filter(grey, display.sharpen_px * cols / 512, mode="nearest"))
        grey *= np.clip(light * 3, 0, 1)  # behind the shutters nothing is left to sharpen
    grey = np.clip(grey, 0, 1).astype(np.float32)
    return _marked(rng, grey) if display.text else grey


def shutters(display: Display, rows: int, cols: int) -> np.ndarray:
    """Share of light ``(rows, cols)`` float32 that the collimator leaves: straight, slightly turned blades with a
    soft edge, cut corners or a round field.
    """
    y, x = np.mgrid[:rows, :cols].astype(np.float32)
    u, v = (x + 0.5) / cols, (y + 0.5) / rows
    tilt = display.tilt
    top, bottom, left, right = display.margins
    clear = np.minimum.reduce(
        [
            v - top - tilt * (u - 0.5),
            1 - bottom - v + tilt * (u - 0.5),
            u - left + tilt * (v - 0.5),
            1 - right - u - tilt * (v - 0.5),
        ]
    )
    if max(display.margins) == 0:
        clear = clear + 1
    if display.field == "cut":
        cut = 0.12
        for du in (u, 1 - u):
            for dv in (v, 1 - v):
                clear = np.minimum(clear, (du + dv - cut) / np.sqrt(2))
    if display.field == "round":
        clear = np.minimum(clear, 0.545 - np.hypot(u - 0.5, v - 0.5))
    light = 1 / (1 + np.exp(np.clip(-clear * cols / display.edge_px, -40, 40)))
    return (display.floor + (1 - display.floor) * light).astype(np.float32)


def wedge_depth(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Line integral ``(rows, cols)`` of the semi-transparent wedge filters that the operator moved over the lung: a
    plate with a straight or rounded edge at a slant, thicker away from it. Zero on most frames.
    """
    total = np.zeros((rows, cols), np.float32)
    if rng.random() >= 0.3:
        return total
    y, x = np.mgrid[:rows, :cols].astype(np.float32)
    u, v = x / cols - 0.5, y / rows - 0.5
    for _ in range(1 + int(rng.random() < 0.25)):
        side = int(rng.integers(4)) * np.pi / 2 + rng.normal(0, 0.25)
        across = u * np.cos(side) + v * np.sin(side) - rng.uniform(0.12, 0.42)
        if rng.random() < 0.3:  # two blades with a round corner between them
            along = u * -np.sin(side) + v * np.cos(side) - rng.uniform(-0.3, 0.1)
            a, b = 0.09 - across, 0.09 - along
            across = 0.09 - np.hypot(np.maximum(a, 0), np.maximum(b, 0)) - np.minimum(np.maximum(a, b), 0)
        edge = rng.uniform(0.6, 4.0) / cols
        depth = rng.uniform(0.08, 0.4) + rng.uniform(0, 0.8) * np.maximum(across, 0)
        total += depth / (1 + np.exp(np.clip(-across / edge, -40, 40)))
    return total


def stored(grey: np.ndarray, bits: int) -> np.ndarray:
    """Grey 0..1 as whole numbers of ``bits`` bits: uint8 up to 8, uint16 up to 16."""
    values = np.clip(np.rint(grey * (2**bits - 1)), 0, 2**bits - 1)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


#: A 5 x 7 dot font of what stands on frames: figures and a few letters, rows from the top, 5 bits each.
_FONT = {
    "0": (14, 17, 19, 21, 25, 17, 14), "1": (4, 12, 4, 4, 4, 4, 14), "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14), "4": (2, 6, 10, 18, 31, 2, 2), "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14), "7": (31, 1, 2, 4, 8, 8, 8), "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12), "L": (16, 16, 16, 16, 16, 16, 31), "R": (30, 17, 17, 30, 20, 18, 17),
    "F": (31, 16, 16, 30, 16, 16, 16), "/": (1, 1, 2, 4, 8, 16, 16), "S": (15, 16, 16, 14, 1, 1, 30),
    "X": (17, 17, 10, 4, 10, 17, 17), " ": (0, 0, 0, 0, 0, 0, 0), ".": (0, 0, 0, 0, 0, 12, 12),
}  # fmt: skip


def _marked(rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """Marks burnt into a corner: frame rate, frame number, a side letter, a scale of dots."""
    grey = grey.copy()
    rows, cols = grey.shape
    size = max(round(cols / 512 * rng.choice((1, 2))), 1)
    lines = [
        str(rng.choice(("L", "R"))),
        f"{rng.choice((7.5, 10, 15, 30)):g} F/S",
        f"{rng.integers(1, 60)}/{rng.integers(60, 99)}",
    ]
    row = int(rng.uniform(0.01, 0.03) * rows)
    if rng.random() < 0.5:
        row = rows - row - 10 * size * len(lines)
    at_right = rng.random() < 0.5
    for text in lines[: int(rng.integers(1, 4))]:
        dots = np.concatenate([_glyph(letter) for letter in text], axis=1)
        dots = np.kron(dots, np.ones((size, size), bool))
        col = cols - dots.shape[1] - 6 if at_right else 6
        if row + dots.shape[0] < rows and col > 0:
            grey[row : row + dots.shape[0], col : col + dots.shape[1]][dots] = 1.0
        row += 10 * size
    return grey


def _glyph(letter: str) -> np.ndarray:
    bits = np.array(_FONT[letter], np.uint8)[:, None] >> np.arange(4, -1, -1)
    return np.pad(bits & 1, ((0, 0), (0, 1))).astype(bool)
