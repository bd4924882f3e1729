# SPDX-License-Identifier: Apache-2.0
"""Contrast in the vessels over time: arrival, inflow, plateau, washout, and the X-ray path weighted by concentration.

Relative iodine concentration ("opacity") is 1 where undiluted inflow has filled the lumen and 0 where only blood is.
It is one number per centreline sample, the mean over the cross-section; layers within one are not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.phantom.tubes import Line, path_length_mm, tree_lines
from licag3d.structures import VesselTree

#: Opacity by branch id, ``(n,)`` per centreline sample, 0..1.
Opacity = Mapping[int, np.ndarray]
#: Steps of concentration that are told apart by default: the error stays below 1/32 of full contrast.
LEVELS = 16
#: Seconds from the ostium to the distal landmark and the length of that way in mm. Corrected TIMI frame counts of
#: normal arteries: 36.2, 22.2 and 20.4 frames at 30 per second for LAD, LCx and RCA (Gibson et al., Circulation
#: 1996;93:879); the left tree has one speed here, so LAD and LCx are averaged.
_TRANSIT = {"lca": (0.97, 120.0), "rca": (0.68, 130.0)}
#: A lumen narrower than this passes no contrast (an occlusion).
_CLOSED_RADIUS_MM = 0.05
#: Stenoses are shorter than this: flow, and so the calibre that sets the speed, is that of the vessel around them.
_REFERENCE_MM = 30.0
#: Contrast leaves the catheter as a jet and is mixed with the blood over about a centimetre.
_MIXING_MM = 10.0


@dataclass(frozen=True)
class Filling:
    """One injection.

    Args:
        start_s: when contrast leaves the catheter; ``duration_s`` how long it flows (2 to 4 s by hand).
        speed_mm_s: mean speed of the blood at the ostium.
        mixing_s: mean residence in the mixing zone, which rounds the front; ``dispersion`` share of the transit time
            that is spread instead of delay (0 plug flow, 1 one well mixed tank).
        period_s: length of a heartbeat; ``pulsatility`` 0..1 how much faster than the mean the flow is at its peak in
            diastole (large in the left artery, small in the right).
        peak: relative concentration reached (1 where the injection displaces all blood).
        streaming: uneven mixing in the first centimetre, relative standard deviation.
        uneven: how much side branches differ in peak and arrival (0 not at all, 1 strongly); ``seed`` says how.
    """

    start_s: float
    duration_s: float
    speed_mm_s: float
    mixing_s: float = 0.12
    dispersion: float = 0.35
    period_s: float = 0.85
    pulsatility: float = 0.4
    peak: float = 1.0
    streaming: float = 0.12
    uneven: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("start_s", -60, 60),
            ("duration_s", 0.05, 60),
            ("speed_mm_s", 1, 5000),
            ("mixing_s", 0.001, 10),
            ("dispersion", 0, 1),
            ("period_s", 0.2, 5),
            ("pulsatility", 0, 0.95),
            ("peak", 0, 1),
            ("streaming", 0, 1),
            ("uneven", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"filling: {name} is {getattr(self, name)}; give {low} to {high}")

    def flow_time_s(self, time_s: float | np.ndarray) -> np.ndarray:
        """Time on a clock that runs with the pulsatile flow: equal to ``time_s`` at every end of a heartbeat.

        The phase of the heart is ``time_s / period_s`` with 0 at end-diastole; the flow peaks at 0.65, in diastole.
        """
        turn = 2 * np.pi * (np.asarray(time_s, np.float64) / self.period_s - 0.65)
        start = np.sin(2 * np.pi * -0.65)
        return np.asarray(time_s) + self.pulsatility * self.period_s / (2 * np.pi) * (np.sin(turn) - start)


def sample_filling(rng: np.random.Generator, artery: str, *, start_s: float = 0.0, period_s: float = 0.85) -> Filling:
    """The injection of one patient: hand injection, speeds after the corrected TIMI frame counts, 25 % spread.

    Raises:
        InputError: artery other than ``rca`` or ``lca``.
    """
    if artery not in _TRANSIT:
        raise InputError(f"artery is '{artery}'; choose rca or lca")
    seconds, way_mm = _TRANSIT[artery]
    return Filling(
        start_s=start_s,
        duration_s=float(rng.uniform(2.0, 3.2)),
        # The speed falls with the calibre (see arrival_times_s): at the ostium it is a little above the mean.
        speed_mm_s=float(1.12 * way_mm / seconds * np.exp(0.25 * np.clip(rng.normal(), -2, 2))),
        mixing_s=float(rng.uniform(0.08, 0.2)),
        dispersion=float(rng.uniform(0.25, 0.45)),
        period_s=period_s,
        pulsatility=float(rng.uniform(0.45, 0.7) if artery == "lca" else rng.uniform(0.15, 0.4)),
        peak=float(rng.uniform(0.9, 1.0)),
        streaming=float(rng.uniform(0.05, 0.2)),
        uneven=float(rng.uniform(0.2, 0.7)),
        seed=int(rng.integers(2**31)),
    )


def arrival_times_s(tree: VesselTree, speed_mm_s: float) -> dict[int, np.ndarray]:
    """Transit time ``(n,)`` in s from the ostium to every centreline sample, by branch id; infinite past an occlusion.

    With flow ``Q ~ D^(7/3)`` (Huo and Kassab 2009, the branching rule of the phantom) the mean speed falls as
    ``D^(1/3)``. Narrowings shorter than 30 mm do not count: the flow through them is that of the vessel.
    """
    from scipy.ndimage import maximum_filter1d

    result: dict[int, np.ndarray] = {}
    by_id = {branch.id: branch for branch in tree.branches}
    root = max((float(np.max(b.radius_mm)) for b in tree.branches if b.parent is None), default=1.0)
    for branch in tree.branches:
        points = np.asarray(branch.points_lps_mm, np.float64)
        step = np.linalg.norm(np.diff(points, axis=0), axis=1)
        radius = np.asarray(branch.radius_mm, np.float64)
        begin = 0.0
        if branch.parent in result:
            parent = by_id[branch.parent]
            at = int(np.argmin(((parent.points_lps_mm - points[0]) ** 2).sum(1)))
            begin = float(result[branch.parent][at])
        width = max(1, round(_REFERENCE_MM / max(float(np.median(step)), 1e-3))) if len(step) else 1
        calibre = np.clip(maximum_filter1d(radius, width) / root, 0.02, 1.5)
        speed = speed_mm_s * np.cbrt(0.5 * (calibre[1:] + calibre[:-1]))
        closed = np.minimum(radius[1:], radius[:-1]) < _CLOSED_RADIUS_MM
        result[branch.id] = begin + np.concatenate(([0.0], np.cumsum(np.where(closed, np.inf, step / speed))))
    return result


def opacity_at(tree: VesselTree, time_s: float, filling: Filling) -> dict[int, np.ndarray]:
    """Opacity of every centreline sample at one moment.

    A rectangular bolus of ``duration_s`` passes the mixing zone and the vessels; the residence times on the way are
    gamma distributed (Thompson et al., Circ. Res. 1964;14:502: indicator dilution curves are gamma variates), the more
    spread the longer the way: ``c = F(t) - F(t - duration)`` with the gamma distribution function F. The clock runs
    with the pulsatile flow. Side branches take a random share of the stream (``uneven``) and start a little late; in
    the first centimetre the jet of the catheter has not mixed yet (``streaming``).

    Returns:
        ``(n,)`` float32 in 0..1 by branch id. Motion of the tree changes nothing: opacity belongs to the blood.

    Example:
        >>> from licag3d.phantom.anatomy import sample_tree
        >>> tree, filling = sample_tree(0, "rca"), Filling(start_s=0.0, duration_s=2.5, speed_mm_s=200.0)
        >>> [round(float(opacity_at(tree, t, filling)[0].mean()), 1) for t in (0.0, 2.0, 6.0)]
        [0.0, 1.0, 0.0]
    """
    from scipy.special import gammainc

    arrival = arrival_times_s(tree, filling.speed_mm_s)
    habits = _branch_habits(tree, filling)
    now = float(filling.flow_time_s(time_s) - filling.flow_time_s(filling.start_s))
    result = {}
    for branch in tree.branches:
        share, late_s = habits[branch.id]
        transit = arrival[branch.id] + late_s
        spread = filling.mixing_s + filling.dispersion * np.where(np.isfinite(transit), transit, 0.0)
        scale = 0.06 + 0.12 * filling.dispersion * spread  # of one stage of mixing: the front widens on its way
        delay = (1 - filling.dispersion) * transit

        def passed(begin: float, delay=delay, spread=spread, scale=scale) -> np.ndarray:
            return gammainc(spread / scale, np.maximum(begin - delay, 0.0) / scale)

        value = filling.peak * share * (passed(now) - passed(now - filling.duration_s))
        if branch.parent is None and filling.streaming > 0:
            value = value * _streaming(branch.points_lps_mm, time_s, filling)
        result[branch.id] = np.clip(value, 0.0, 1.0).astype(np.float32)
    return result


def filled_time_s(tree: VesselTree, filling: Filling) -> float:
    """The moment at which the tree as a whole is filled best, s: the largest mean opacity weighted by length."""
    times = filling.start_s + np.linspace(0.0, filling.duration_s + 3.0, 61)
    mean = [np.mean(np.concatenate(list(opacity_at(tree, float(t), filling).values()))) for t in times]
    return float(times[int(np.argmax(mean))])


def opacified_path_mm(tree: VesselTree, opacity: Opacity | None, camera: Camera, *, levels: int = LEVELS) -> np.ndarray:
    """Path length weighted by relative iodine concentration, ``(rows, cols)`` float32 in mm.

    Concentration is quantised to ``levels`` equal steps ``c_k`` per piece of tube; then the layer cake
    ``sum_k (c_k - c_{k-1}) * path(union of the pieces with concentration >= c_k)`` is exact, also where tubes overlap
    (there the higher concentration counts). Multiply by mu of full contrast for the line integral.

    Args:
        opacity: ``(n,)`` in 0..1 per sample of every branch by id; None is 1 everywhere.

    Raises:
        InputError: a branch without opacity, of another length, or values outside 0..1.
    """
    if opacity is None:
        return path_length_mm(tree_lines(tree), camera)
    if not 1 <= levels <= 256:
        raise InputError(f"levels is {levels}; give 1 to 256")
    steps = []
    for branch in tree.branches:
        value = np.asarray(opacity.get(branch.id, ()), np.float64)
        if value.shape != branch.radius_mm.shape:
            raise InputError(
                f"opacity of branch {branch.id} has shape {value.shape}; give one value for each of its "
                f"{len(branch.radius_mm)} samples"
            )
        if not (np.all(value >= 0) and np.all(value <= 1)):
            raise InputError(f"opacity of branch {branch.id} leaves 0..1 or is not a number; give 0 to 1")
        steps.append(np.rint(0.5 * (value[1:] + value[:-1]) * levels).astype(int))
    total = np.zeros((camera.rows, camera.cols), np.float32)
    below = 0
    for level in sorted({int(k) for step in steps for k in np.unique(step)} - {0}):
        pieces = [
            piece for branch, step in zip(tree.branches, steps, strict=True) for piece in _pieces(branch, step >= level)
        ]
        total += np.float32((level - below) / levels) * path_length_mm(pieces, camera)
        below = level
    return total


def _pieces(branch, chosen: np.ndarray) -> list[Line]:
    """The runs of chosen segments ``(n - 1,)`` of a branch as tubes."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], chosen, [False])).astype(np.int8)))
    return [
        Line(branch.points_lps_mm[a : b + 1], branch.radius_mm[a : b + 1])
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


def _branch_habits(tree: VesselTree, filling: Filling) -> dict[int, tuple[float, float]]:
    """Per branch id: share of the concentration upstream that it gets, and its delay in s; children inherit."""
    result: dict[int, tuple[float, float]] = {}
    for branch in tree.branches:
        rng = np.random.default_rng([filling.seed, branch.id])
        loss, late = rng.beta(1.2, 4.0), rng.exponential(0.06)
        share, before = result.get(branch.parent, (1.0, 0.0))
        if branch.parent is not None:
            # Contrast is heavier than blood and layers: vessels that leave against the stream get less of it.
            share, before = share * (1.0 - filling.uneven * float(loss)), before + filling.uneven * float(late)
        result[branch.id] = (share, before)
    return result


def _streaming(points_mm: np.ndarray, time_s: float, filling: Filling) -> np.ndarray:
    """Factor ``(n,)`` on the concentration near the ostium: eddies that drift with the stream and fade with mixing."""
    rng = np.random.default_rng([filling.seed, 999_983])
    arc = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(points_mm, axis=0), axis=1))))
    moved = arc - 0.6 * filling.speed_mm_s * time_s
    waves = sum(
        np.sin(2 * np.pi * moved / wave + phase)
        for wave, phase in zip(rng.uniform(4.0, 15.0, 3), rng.uniform(0, 2 * np.pi, 3), strict=True)
    )
    # Half of the eddies carry blood that the jet has entrained: on average the factor is below 1 here.
    eddies = filling.streaming * (waves / np.sqrt(1.5) - 1.0)
    return np.clip(1.0 + eddies * np.exp(-arc / _MIXING_MM), 0.0, 1.2)
