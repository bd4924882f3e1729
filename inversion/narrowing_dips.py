# SPDX-License-Identifier: Apache-2.0
"""Dips of the calibre along a vessel in one view, between two stretches of healthy vessel that the same view shows.

The reference is what quantitative coronary angiography interpolates (Reiber et al., Circulation 71 (1985) 280): the
line between the calibre before and behind the narrowing. A taper, a step at a bifurcation or the end of a vessel
has no healthy stretch on one of its sides and is no dip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.inversion.narrowing_profiles import CLEAN, ViewProfile
from licag3d.inversion.refinement_lines import Lines
from licag3d.vessels.tree import arc_length_mm

#: Profiles are read this finely along the vessel, mm, and smoothed with this deviation; lumens are not smoothed.
STEP_MM, SMOOTH_MM = 0.25, 0.5
#: Healthy vessel is looked for from here to there on both sides of the narrowest place, mm; this much must be clean.
NEAR_MM, FAR_MM, LEAST_MM = 2.0, 15.0, 3.0
#: The level of the healthy vessel among the clean readings there.
SHOULDER = 0.7
#: The least lumen is looked for this near to the deepest place, mm.
LUMEN_MM = 1.5
#: A run goes this far into the parent and into the branch that goes on, mm.
BEYOND_MM = 15.0
#: Of two dips the shallower one counts if the vessel recovers between them by this share of its depth.
RECOVERY = 0.5


@dataclass(frozen=True)
class Run:
    """A branch with what lies before and behind it: ``rows`` ``(n,)`` of the points of the tree, ``arc_mm`` ``(n,)``
    with zero at the start of the branch, ``own`` ``(n,)`` bool, points of the branch itself."""

    position: int
    rows: np.ndarray
    arc_mm: np.ndarray
    own: np.ndarray


@dataclass(frozen=True)
class Strip:
    """One view along a run, every :data:`STEP_MM`: ``level`` and ``lumen`` log radius, ``nearest`` place in
    the run."""

    arc_mm: np.ndarray
    nearest: np.ndarray
    own: np.ndarray
    clean: np.ndarray
    sine: np.ndarray
    level: np.ndarray
    lumen: np.ndarray


@dataclass(frozen=True)
class Dip:
    """A narrowing of a strip, in log radius: ``low`` at ``at_mm``, ``lumen`` the least
    reading for thin lumens there, ``left`` and ``right`` the levels of the healthy
    vessel, ``reference`` that between them; ``clean`` share of what lies between; ``sine`` there."""

    at_mm: float
    low: float
    lumen: float
    left: float
    right: float
    reference: float
    clean: float
    sine: float
    length_mm: float
    start_mm: float = 0.0

    @property
    def depth(self) -> float:
        """Below the lower of both shoulders, log radius."""
        return min(self.left, self.right) - self.low

    @property
    def step(self) -> float:
        """Lower over upper shoulder."""
        return float(np.exp(-abs(self.left - self.right)))


def runs(lines: Lines) -> list[Run]:
    """Every branch of the tree with its surroundings along the vessel."""
    place = {branch.id: k for k, branch in enumerate(lines.tree.branches)}
    made = []
    for k, span in enumerate(lines.spans()):
        before = _before(lines, place, k, BEYOND_MM)
        rows = np.concatenate([before, np.arange(span.start, span.stop), _after(lines, place, k, BEYOND_MM)])
        rows = rows.astype(int)
        arc = arc_length_mm(lines.points[rows])
        made.append(Run(k, rows, arc - arc[len(before)], (rows >= span.start) & (rows < span.stop)))
    return made


def _before(lines: Lines, place, k: int, left_mm: float) -> np.ndarray:
    """Rows of the way from the ostium that leads to the start of a branch, at most ``left_mm``."""
    branch = lines.tree.branches[k]
    if branch.parent is None or left_mm <= 0:
        return np.zeros(0, int)
    above = place[branch.parent]
    span = lines.spans()[above]
    line = lines.points[span]
    joint = int(((line - lines.points[lines.first[k]]) ** 2).sum(1).argmin())
    arc = arc_length_mm(line)
    first = int(np.searchsorted(arc, arc[joint] - left_mm))
    rows = np.arange(span.start + first, span.start + joint)
    if first > 0:
        return rows
    return np.concatenate([_before(lines, place, above, left_mm - arc[joint]), rows])


def _after(lines: Lines, place, k: int, left_mm: float) -> np.ndarray:
    """Rows of the branch that goes on where a branch ends, the straightest of them."""
    span = lines.spans()[k]
    line = lines.points[span]
    if len(line) < 3 or left_mm <= 0:
        return np.zeros(0, int)
    arc = arc_length_mm(line)
    ahead = line[-1] - line[int(np.searchsorted(arc, arc[-1] - 2.0))]
    best, chosen = 0.5, None
    for j, branch in enumerate(lines.tree.branches):
        below = lines.spans()[j]
        if branch.parent is None or place[branch.parent] != k or below.stop - below.start < 3:
            continue
        own = lines.points[below]
        if np.linalg.norm(own[0] - line[-1]) > 1.5:
            continue
        way = own[min(int(np.searchsorted(arc_length_mm(own), 3.0)), len(own) - 1)] - own[0]
        cosine = float(way @ ahead / max(np.linalg.norm(way) * np.linalg.norm(ahead), 1e-9))
        if cosine > best:
            best, chosen = cosine, j
    if chosen is None:
        return np.zeros(0, int)
    below = lines.spans()[chosen]
    arc = arc_length_mm(lines.points[below])
    rows = np.arange(below.start + 1, below.start + int(np.searchsorted(arc, left_mm)))
    return np.concatenate([rows, _after(lines, place, chosen, left_mm - arc[-1])])


def strip(run: Run, view: ViewProfile) -> Strip | None:
    """A view along a run; None where that is too short to have a narrowing between healthy stretches."""
    from scipy.ndimage import gaussian_filter1d

    if run.arc_mm[-1] - run.arc_mm[0] < 2 * (NEAR_MM + LEAST_MM):
        return None
    arc = np.arange(run.arc_mm[0], run.arc_mm[-1], STEP_MM)
    nearest = np.abs(run.arc_mm[None] - arc[:, None]).argmin(1)
    level, lumen = (np.interp(arc, run.arc_mm, x[run.rows]) for x in (view.log_radius, view.log_lumen))
    return Strip(
        arc,
        nearest,
        run.own[nearest],
        (view.state[run.rows] == CLEAN)[nearest],
        view.sine[run.rows][nearest],
        gaussian_filter1d(level, SMOOTH_MM / STEP_MM, mode="nearest"),
        lumen,
    )


def dips(along: Strip, least: float) -> list[Dip]:
    """Narrowings of at least ``least`` (log radius, below both shoulders), deepest first."""
    low = along.level <= np.minimum(np.roll(along.level, 1), np.roll(along.level, -1))
    places = np.flatnonzero(low & along.own & along.clean)
    found: list[tuple[int, Dip]] = []
    for i in places[np.argsort(along.level[places])]:
        dip = look(along, int(i))
        if dip is None or dip.depth < least:
            continue
        if any(along.level[min(i, j) : max(i, j) + 1].max() - dip.low < RECOVERY * dip.depth for j, _ in found):
            continue
        found.append((int(i), dip))
    return [dip for _, dip in found]


def look(along: Strip, i: int) -> Dip | None:
    """What a strip says of place ``i``; None where no healthy vessel is seen on both sides."""
    sides = []
    for side in (-1, 1):
        away = side * (along.arc_mm - along.arc_mm[i])
        there = (away >= NEAR_MM) & (away <= FAR_MM) & along.clean
        if there.sum() * STEP_MM < LEAST_MM:
            return None
        top = float(np.quantile(along.level[there], SHOULDER))
        sides.append((top, float(along.arc_mm[there & (along.level >= top - 0.1)].mean())))
    (left, at_left), (right, at_right) = sides
    share = (along.arc_mm[i] - at_left) / max(at_right - at_left, 1e-6)
    reference = (1 - share) * left + share * right
    low = float(along.level[i])
    between = (along.arc_mm >= at_left) & (along.arc_mm <= at_right)
    open_ = np.flatnonzero(along.level >= 0.5 * (low + reference))
    first = int(max(open_[open_ < i], default=0))
    last = int(min(open_[open_ > i], default=len(along.level) - 1))
    return Dip(
        float(along.arc_mm[i]),
        low,
        float(along.lumen[np.abs(along.arc_mm - along.arc_mm[i]) <= LUMEN_MM].min()),
        left,
        right,
        float(reference),
        float(along.clean[between].mean()),
        float(along.sine[i]),
        float(along.arc_mm[last] - along.arc_mm[first]),
        float(along.arc_mm[first]),
    )
