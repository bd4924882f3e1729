# SPDX-License-Identifier: Apache-2.0
"""Small line plots as SVG text: no plotting library needed, and every browser shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

#: Told apart also without colour: every series has its own marker.
_COLOURS = (
    *("#c0392b", "#1f5fa8", "#2e8b57", "#8e44ad", "#d68910", "#117a8b", "#7f8c8d", "#5d4037"),
    *("#e377c2", "#bcbd22", "#000000", "#5dade2", "#82e0aa", "#f5b041", "#4a235a", "#b03a6f", "#145a32"),
)
_MARKERS = ("circle", "square", "diamond", "triangle")
_PANEL, _LEFT, _TOP, _BOTTOM, _GAP = (360, 300), 56, 34, 50, 40
#: (x, mean, low, high) per point.
Points = Sequence[tuple[float, float, float, float]]


def line_plot(
    panels: Mapping[str, Mapping[str, Points]], *, x_label: str, y_label: str, x_ticks: Sequence[float]
) -> str:
    """SVG text of panels side by side, y from 0 to 1, intervals as bars, one legend.

    Args:
        panels: title -> series name -> points; every panel uses the same order of series.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    width, height = _PANEL
    total_width = _LEFT + len(panels) * (width + _GAP) + 190
    total_height = max(_TOP + height + _BOTTOM, _TOP + 20 * len(names) + 20)
    low, high = min(x_ticks), max(x_ticks)
    span = (high - low) or 1.0
    low, high = low - 0.08 * span, high + 0.08 * span
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {total_height}" width="{total_width}" '
        f'height="{total_height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{total_width}" height="{total_height}" fill="white"/>',
    ]
    for number, (title, series) in enumerate(panels.items()):
        left = _LEFT + number * (width + _GAP)
        parts += _axes(left, title, x_label, y_label if number == 0 else "", x_ticks, low, high)
        for k, name in enumerate(names):
            # Neighbours are set apart a little, so that intervals do not hide each other.
            shift = (k - (len(names) - 1) / 2) * 3.0
            parts += _series(series.get(name, ()), k, left, low, high, shift)
    x = _LEFT + len(panels) * (width + _GAP) - 10
    for k, name in enumerate(names):
        y = _TOP + 12 + 20 * k
        colour = _COLOURS[k % len(_COLOURS)]
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        parts.append(_marker(k, x + 12, y))
        parts.append(f'<text x="{x + 30}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(left: float, title: str, x_label: str, y_label: str, x_ticks, low: float, high: float) -> list[str]:
    width, height = _PANEL
    parts = [f'<text x="{left + width / 2}" y="{_TOP - 12}" text-anchor="middle" font-size="13">{escape(title)}</text>']
    for k in range(6):
        y = _TOP + height * (1 - k / 5)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{k / 5:.1f}</text>')
    for tick in x_ticks:
        x = left + width * (tick - low) / (high - low)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP + height}" x2="{x:.1f}" y2="{_TOP + height + 5}" stroke="#333"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP + height + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<rect x="{left}" y="{_TOP}" width="{width}" height="{height}" fill="none" stroke="#333"/>')
    middle = left + width / 2
    parts.append(f'<text x="{middle}" y="{_TOP + height + 38}" text-anchor="middle">{escape(x_label)}</text>')
    if y_label:
        y = _TOP + height / 2
        parts.append(f'<text transform="translate(16 {y}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    return parts


def _series(points: Points, k: int, left: float, low: float, high: float, shift: float) -> list[str]:
    width, height = _PANEL
    colour = _COLOURS[k % len(_COLOURS)]

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - low) / (high - low) + shift, _TOP + height * (1 - min(max(y, 0.0), 1.0))

    spots = [place(x, mean) for x, mean, _, _ in points]
    parts = []
    if len(spots) > 1:
        route = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{route}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    for (x, _, bottom, top), spot in zip(points, spots, strict=True):
        (_, y_low), (_, y_high) = place(x, bottom), place(x, top)
        parts.append(
            f'<line x1="{spot[0]:.1f}" y1="{y_low:.1f}" x2="{spot[0]:.1f}" y2="{y_high:.1f}" stroke="{colour}" '
            'stroke-opacity="0.5"/>'
        )
        parts.append(_marker(k, *spot))
    return parts


def _marker(k: int, x: float, y: float) -> str:
    colour, shape = _COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    if shape == "square":
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="{colour}"/>'
    if shape == "diamond":
        corners = ((0, -5), (5, 0), (0, 5), (-5, 0))
    else:
        corners = ((0, -5), (4.6, 4), (-4.6, 4))
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}" fill="{colour}"/>'


def log_plot(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, y_label: str) -> str:
    """SVG text of panels side by side, both axes logarithmic, one y axis for all, one legend.

    Args:
        panels: what x is -> series name -> (x, y), all above 0.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    width, height = _PANEL
    total_width = _LEFT + len(panels) * (width + _GAP) + 330
    total_height = max(_TOP + height + _BOTTOM, _TOP + 20 * len(names) + 20)
    values = [y for series in panels.values() for points in series.values() for _, y in points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {total_height}" width="{total_width}" '
        f'height="{total_height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{total_width}" height="{total_height}" fill="white"/>',
        f'<text transform="translate(16 {_TOP + height / 2}) rotate(-90)" text-anchor="middle">',
        f"{escape(y_label)}</text>",
    ]
    for number, (x_label, series) in enumerate(panels.items()):
        left = _LEFT + number * (width + _GAP)
        ticks = sorted({x for points in series.values() for x, _ in points})
        first, last = math.log(ticks[0]), math.log(ticks[-1]) if len(ticks) > 1 else math.log(ticks[0]) + 1.0

        def place(x: float, y: float, left=left, first=first, last=last) -> tuple[float, float]:
            across = 0.06 + 0.88 * (math.log(x) - first) / (last - first)
            return left + width * across, _TOP + height * (1 - (math.log10(y) - low) / (high - low))

        for power in range(low, high + 1):
            y = place(ticks[0], 10.0**power)[1]
            parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#e0e0e0"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
        for tick in ticks:
            x = place(tick, 10.0**low)[0]
            parts.append(f'<text x="{x:.1f}" y="{_TOP + height + 18}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<rect x="{left}" y="{_TOP}" width="{width}" height="{height}" fill="none" stroke="#333"/>')
        middle = left + width / 2
        parts.append(f'<text x="{middle}" y="{_TOP + height + 38}" text-anchor="middle">{escape(x_label)}</text>')
        for k, name in enumerate(names):
            spots = [place(x, y) for x, y in series.get(name, ())]
            route = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            colour = _COLOURS[k % len(_COLOURS)]
            parts.append(f'<polyline points="{route}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
            parts += [_marker(k, *spot) for spot in spots]
    x = _LEFT + len(panels) * (width + _GAP) - 10
    for k, name in enumerate(names):
        y = _TOP + 12 + 20 * k
        parts.append(_marker(k, x + 6, y))
        parts.append(f'<text x="{x + 18}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
