# SPDX-License-Identifier: Apache-2.0
"""The narrowings of a tree that at least one view shows and none that sees the place denies.

A narrowing is listed where a view shows a dip between two healthy stretches (:mod:`licag3d.inversion.narrowing_dips`)
and every other view in which the place can be seen as well shows one, too. The diameter is the mean over the views that
show it. What no view shows is not listed: it may be there all the same, and :func:`judged_share` tells how much of the
vessels was looked at at all. Figures: docs/refinement.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.narrowing_dips import Dip, Run, Strip, dips, look, runs, strip
from licag3d.inversion.narrowing_profiles import CLEAN, REASONS, ViewProfile, view_profiles
from licag3d.inversion.refinement import RefinementSettings
from licag3d.inversion.refinement_density import around
from licag3d.inversion.refinement_lines import Lines
from licag3d.structures import VesselEvidence, VesselTree, View
from licag3d.vessels.stenosis import DENIED, SHOWN, Sight, Stenosis
from licag3d.vessels.tree import arc_length_mm


@dataclass(frozen=True)
class NarrowingRules:
    """Which dips are narrowings; chosen on phantoms (docs/refinement.md).

    Args:
        percent: of the diameter, from which a narrowing is listed.
        reference_mm: least healthy diameter.
        dip: least depth below both shoulders (log radius, all readings).
        step: least ratio of the shoulders: beyond, the vessel ends or leaves a wider one there.
        clean: least share of the stretch between the shoulders that no other vessel covers.
        same_mm: dips of two views nearer than this along the branch are one narrowing.
        denial: a view that sees less than this share of the depth denies it, if it meets the vessel at least at
            ``denial_sine`` and the tree is surer than ``denial_confidence`` that it shows the same vessel.
        beside_mm: what one view alone shows is not believed where, in that view, the wall of a vessel that lies
            ``apart_mm`` away in space comes nearer than this to the middle: the dip may be the gap between the two.
        sigma: standard deviation of the log lumen. ends: how far below and above, in the logarithm, 90 % of phantom
            lesions lay: uneven, for narrow lumens come out too wide.
    """

    percent: float = 50.0
    reference_mm: float = 1.5
    dip: float = 0.4
    step: float = 0.5
    clean: float = 0.6
    same_mm: float = 5.0
    denial: float = 0.4
    denial_sine: float = 0.6
    denial_confidence: float = 0.5
    beside_mm: float = 1.0
    apart_mm: float = 4.0
    sigma: float = 0.4
    ends: tuple[float, float] = (0.9, 0.45)


@dataclass(frozen=True)
class Narrowings:
    """``listed``: worst first; ``judged_share``: of the vessels wide enough the share of length that some view shows
    clear of others, 0..1 (not a number without any)."""

    listed: tuple[Stenosis, ...]
    judged_share: float


def find_narrowings(
    tree: VesselTree,
    cameras: Sequence[Camera],
    views: Sequence[View],
    evidence: Sequence[VesselEvidence],
    rules: NarrowingRules | None = None,
) -> Narrowings:
    """Narrowings of a refined tree, read from its views.

    Args:
        tree, cameras: as delivered. views, evidence: per camera.

    Example:
        >>> find_narrowings(VesselTree(), [], [], []).listed
        ()
    """
    rules = rules or NarrowingRules()
    if not tree.branches or not cameras:
        return Narrowings((), float("nan"))
    lines = Lines(tree, RefinementSettings())
    profiles = view_profiles(lines, cameras, views, evidence)
    found = []
    for run in runs(lines):
        strips = [strip(run, profile) for profile in profiles]
        if strips[0] is not None:
            found += _of_run(lines, run, strips, profiles, cameras, rules)
    return Narrowings(_without_twins(found), _judged_share(lines, profiles, rules))


def _of_run(lines: Lines, run: Run, strips: list[Strip], profiles, cameras, rules: NarrowingRules) -> list[Stenosis]:
    """Narrowings of one branch, from all views."""
    seen = [
        (dip, k)
        for k, along in enumerate(strips)
        for dip in dips(along, rules.dip)
        if dip.step >= rules.step and dip.clean >= rules.clean and 2 * np.exp(dip.reference) >= rules.reference_mm
    ]
    seen.sort(key=lambda pair: pair[0].lumen - pair[0].reference)
    found, used = [], []
    for dip, k in seen:
        if any(abs(dip.at_mm - place) < rules.same_mm for place in used):
            continue
        lesion = _judged(lines, run, strips, profiles, dip, k, rules)
        if lesion is not None and lesion.confidence != "high":
            clearance = _clearance_mm(lines, run, lesion, cameras[k], rules.apart_mm)
            lesion = lesion if clearance >= rules.beside_mm else None
        if lesion is not None:
            used.append(dip.at_mm)
            found.append(lesion)
    return found


def _judged(lines: Lines, run: Run, strips, profiles, dip: Dip, k: int, rules: NarrowingRules) -> Stenosis | None:
    """A dip of view ``k`` held against all views; None where they deny it or it is less than what is listed."""
    branch, span = lines.tree.branches[run.position], lines.spans()[run.position]
    row = int(run.rows[np.abs(run.arc_mm - dip.at_mm).argmin()])
    sure = 1.0 if branch.confidence is None else float(branch.confidence[row - span.start])
    sights, agreed, denied = [], [(dip, strips[k])], 0
    for j, (along, profile) in enumerate(zip(strips, profiles, strict=True)):
        other = dip if j == k else _other(along, dip, rules)
        place = int(run.rows[along.nearest[np.abs(along.arc_mm - (other or dip).at_mm).argmin()]])
        state, percent = REASONS[int(profile.state[place])], None
        if other is not None:
            percent = _percent(other.lumen - other.reference)
            shown = j == k or min(other.reference - other.low, other.depth) >= rules.denial * dip.depth
            state = SHOWN if shown else DENIED
            if j != k and shown:
                agreed.append((other, along))
            elif not shown:
                if other.sine < rules.denial_sine or sure < rules.denial_confidence:
                    state, percent = UNSURE, None
                else:
                    denied += 1
        elif state == REASONS[CLEAN]:
            state = UNSURE
        sights.append(_sight(j, profile, run, along, other or dip, state, percent))
    if denied >= len(agreed):
        return None
    ratio = float(np.mean([one.lumen - one.reference for one, _ in agreed]))
    if _percent(ratio) < rules.percent:
        return None
    return _lesion(lines, row, branch.id, dip, agreed, ratio, sights, k, rules)


def _clearance_mm(lines: Lines, run: Run, lesion: Stenosis, camera: Camera, apart_mm: float) -> float:
    """How near the wall of a vessel elsewhere in space comes to the place, in the view that shows it, mm."""
    away = np.linalg.norm(lines.points - lesion.position_lps_mm, axis=1)
    other = (lines.branch != run.position) & (away > apart_mm)
    if not other.any():
        return np.inf
    pixels, _ = camera.project(lines.points[other])
    gap = np.linalg.norm(pixels - lesion.best_sight.pixel, axis=1) * camera.mm_per_pixel - lines.radius[other]
    return float(gap.min())


#: A view that sees the place, but not what it would take to say anything of it.
UNSURE = "cannot tell"


def _other(along: Strip, dip: Dip, rules: NarrowingRules) -> Dip | None:
    """What another view says of a dip: its narrowest place within 3 mm; None where it sees too little."""
    near = np.flatnonzero(np.abs(along.arc_mm - dip.at_mm) <= 3.0)
    if len(near) == 0 or along.clean[near].mean() < 0.8:
        return None
    other = look(along, int(near[along.level[near].argmin()]))
    return other if other is not None and other.clean >= rules.clean else None


def _lesion(lines: Lines, row: int, branch_id: int, dip: Dip, agreed, ratio, sights, k: int, rules) -> Stenosis:
    reference = 2 * float(np.exp(np.mean([one.reference for one, _ in agreed])))
    sigma = rules.sigma
    minimal = reference * float(np.exp(ratio))
    below, above = rules.ends
    low, high = minimal * float(np.exp(-below)), min(minimal * float(np.exp(above)), reference)
    sights = sorted(sights, key=lambda sight: (sight.view != k, sight.state != SHOWN, sight.view))
    return Stenosis(
        branch_id,
        dip.at_mm,
        tuple(float(x) for x in lines.points[row]),
        minimal,
        reference,
        _percent(ratio),
        dip.length_mm,
        minimal * sigma,
        100 * float(np.exp(ratio)) * sigma,
        (low, high),
        (100 * (1 - high / reference), 100 * (1 - low / reference)),
        "high" if len(agreed) > 1 else "moderate",
        tuple(sights),
    )


def _sight(number: int, profile: ViewProfile, run: Run, along: Strip, dip: Dip, state: str, percent) -> Sight:
    """The place of a dip in a frame, with the vessel 12 mm around it."""
    near = np.flatnonzero(np.abs(along.arc_mm - dip.at_mm) <= 12.0)
    rows = run.rows[along.nearest[near]]
    keep = np.append(True, np.diff(rows) != 0)
    line = profile.pixels[rows[keep]]
    arc = along.arc_mm[near][keep]
    narrow = np.flatnonzero((arc >= dip.start_mm) & (arc <= dip.start_mm + dip.length_mm))
    mark = (int(narrow[0]), int(narrow[-1])) if len(narrow) else (0, 0)
    pixel = line[np.abs(arc - dip.at_mm).argmin()]
    points = tuple((float(x), float(y)) for x, y in line)
    half = float(np.exp(dip.reference)) * float(np.median(profile.px_per_mm[rows]))
    return Sight(number, (float(pixel[0]), float(pixel[1])), state, percent, points, mark, half)


def _percent(ratio: float) -> float:
    """Diameter stenosis of a lumen, told by the logarithm of its share of the reference."""
    return 100 * (1 - float(np.exp(min(ratio, 0.0))))


def _without_twins(found: list[Stenosis], apart_px: float = 12.0) -> tuple[Stenosis, ...]:
    """Worst first, each place of a frame once: two branches may follow one vessel."""
    kept: list[Stenosis] = []
    for lesion in sorted(found, key=lambda x: (x.confidence != "high", -x.percent_diameter)):
        mine = lesion.best_sight
        others = [sight for other in kept for sight in other.sights if sight.state == SHOWN and sight.view == mine.view]
        if all(np.hypot(*np.subtract(mine.pixel, sight.pixel)) > apart_px for sight in others):
            kept.append(lesion)
    return tuple(sorted(kept, key=lambda x: -x.percent_diameter))


def _judged_share(lines: Lines, profiles: Sequence[ViewProfile], rules: NarrowingRules) -> float:
    arcs = [arc_length_mm(lines.points[span]) for span in lines.spans()]
    usual = around(lines.radius, arcs, lines.spans())
    length = np.concatenate([np.diff(arc, prepend=0.0) for arc in arcs])
    wide = 2 * usual >= rules.reference_mm
    clean = np.any([profile.state == CLEAN for profile in profiles], axis=0)
    total = float(length[wide].sum())
    return float(length[wide & clean].sum()) / total if total > 0 else float("nan")
