# SPDX-License-Identifier: Apache-2.0
"""One, two or more views: each further view is corrected and matched against the first, then all share one scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from licag3d.geometry import Camera, scale_gauge
from licag3d.inversion.assembly import AssemblySettings, Curve, matched_curves
from licag3d.inversion.camera_search import search_cameras
from licag3d.inversion.chains import Chains, thinned
from licag3d.inversion.consistency import Contrast
from licag3d.inversion.filling import fill_gaps
from licag3d.inversion.gauge import Ruling, fix_scale
from licag3d.inversion.matching import Match, PlaceCost, match_views
from licag3d.inversion.settings import InversionSettings

if TYPE_CHECKING:
    from licag3d.models.correspondence_judge import Judge

#: Shares of centreline matched, below which a result is doubtful.
DOUBTFUL_SHARE = 0.4


@dataclass(frozen=True)
class Correspondence:
    """What the views agree on, in the fixed gauge.

    Args:
        curves: matched centreline in LPS mm. cameras: with the gauge fixed.
        points_mm: per view ``(N, 3)``, NaN where unmatched; confidence: per view ``(N,)`` in 0..1.
        matched_share, agreed_share: of the centreline length of all views.
        scale_from: what fixed the scale.
    """

    curves: tuple[Curve, ...]
    cameras: tuple[Camera, ...]
    points_mm: tuple[np.ndarray, ...]
    confidence: tuple[np.ndarray, ...]
    matched_share: float
    agreed_share: float
    cost: float
    scale_from: str
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def correct_cameras(
    cameras: Sequence[Camera],
    chains: Sequence[Chains],
    settings: InversionSettings,
    *,
    contrast: Sequence[Contrast | None] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[tuple[Camera, ...], dict]:
    """Offsets and angles of all views by evolutionary search, each against the reference view.

    Args:
        contrast: of every view, where line integrals are known (:mod:`licag3d.inversion.consistency`).

    Returns:
        Cameras (scale gauge still open) and facts: ``history``, ``note``, ``warnings``.
    """
    corrected = [cameras[0]]
    history: list[float] = []
    notes, warnings = [], []
    rest = len(cameras) - 1
    for k in range(1, len(cameras)):

        def tell(share: float, text: str, k=k) -> None:
            if progress:
                progress((k - 1 + share) / rest, f"view {k + 1}: {text}")

        # With several views the reference is corrected once, by the first pair; later pairs move only their own view.
        found = search_cameras(
            (corrected[0], cameras[k]),
            (thinned(chains[0])[0], thinned(chains[k])[0]),
            settings.search,
            seed=settings.seed,
            progress=tell,
            fixed_first=k > 1,
            contrast=(None, None) if contrast is None else (contrast[0], contrast[k]),
        )
        if k == 1:
            corrected[0] = found.cameras[0]
        corrected.append(found.cameras[1])
        history += found.history
        across, along = (_good_to(spread) for spread in found.spread_mm)
        moved = np.linalg.norm(np.subtract(found.cameras[1].offset_lps_mm, cameras[k].offset_lps_mm))
        turn = max(
            abs(found.cameras[1].primary_deg - cameras[k].primary_deg),
            abs(found.cameras[1].secondary_deg - cameras[k].secondary_deg),
            abs(found.cameras[0].secondary_deg - cameras[0].secondary_deg),
        )
        notes.append(
            f"view {k + 1} moved by {moved:.1f} mm and turned by up to {turn:.1f}\N{DEGREE SIGN} (matching cost "
            f"{found.cost_before:.0f} \N{RIGHTWARDS ARROW} {found.cost:.0f}, {found.evaluations} cameras tried; offset "
            f"good to {across} across and {along} along the beam)"
        )
        total = chains[0].length_mm + chains[k].length_mm
        if found.matched_mm < DOUBTFUL_SHARE * total:
            warnings.append(
                f"Only {100 * found.matched_mm / total:.0f} % of the centreline of views 1 and {k + 1} can be matched: "
                "are they the same artery of one patient, in the same phase of the heart?"
            )
    note = "; ".join(notes)
    return tuple(corrected), {"history": history, "note": note[0].upper() + note[1:] + ".", "warnings": warnings}


def _good_to(spread_mm: float) -> str:
    # The search tries steps of half a millimetre at least: it cannot tell less.
    return f"{spread_mm:.1f} mm" if spread_mm >= 0.5 else "better than 0.5 mm"


def match_all(
    cameras: Sequence[Camera],
    chains: Sequence[Chains],
    settings: InversionSettings,
    *,
    place_costs: Sequence[PlaceCost] = (),
    judge: Judge | None = None,
    ruler: Ruling | None = None,
) -> Correspondence:
    """Match all views against the reference and fix the scale.

    Args:
        place_costs: see :func:`licag3d.inversion.matching.match_views`; places are in the frame of ``cameras``.
        judge: :func:`licag3d.models.correspondence_judge.correspondence_judge` of the evidence of all views, in order.
        ruler: a catheter of known size in the frames, see :func:`licag3d.inversion.gauge.fix_scale`.
    """
    if len(cameras) == 1:
        return _single(cameras[0], chains[0], settings)
    cameras, matches = _match_pairs(list(cameras), chains, settings, place_costs, judge)
    sure = settings.assembly.least_confidence
    matches = [
        fill_gaps(match, (cameras[0], cameras[k]), settings.fill, surer_than=sure)
        for k, match in enumerate(matches, 1)
    ]
    everything = np.concatenate([p[np.isfinite(p[:, 0])] for match in matches for p in match.points_mm])
    scale_from, assumptions, warnings = "the cameras as given", (), ()
    fixed = tuple(cameras)
    if settings.camera_correction != "none" and len(everything):
        gauge = fix_scale(cameras, everything, ruler)
        fixed, warnings = gauge.cameras, gauge.warnings
        matches = [replace(match, points_mm=tuple(gauge.apply(p) for p in match.points_mm)) for match in matches]
        scale_from = gauge.reason
        assumptions = (
            f"Absolute scale: {gauge.reason}; {len(cameras)} views with unknown table offsets do not show it (one "
            f"standard deviation {100 * gauge.sigma:.1f} %).",
        )
    curves: list[Curve] = []
    for k, match in enumerate(matches, 1):
        fresh = matched_curves(match, (fixed[0], fixed[k]), settings.assembly)
        curves += _not_known(fresh, curves, settings.assembly) if curves else fresh
    points, confidence = _reference(matches)
    shown = (points, *(match.points_mm[1] for match in matches))
    sure = (confidence, *(match.confidence[1] for match in matches))
    weight = [chain.weight_mm for chain in chains]
    total = max(sum(float(w.sum()) for w in weight), 1e-9)
    matched = sum(float(w[np.isfinite(p[:, 0])].sum()) for w, p in zip(weight, shown, strict=True)) / total
    agreed = sum(float(w[s > 0.9].sum()) for w, s in zip(weight, sure, strict=True)) / total
    if agreed < 0.5 * DOUBTFUL_SHARE:
        said = f"Both views agree on only {100 * agreed:.0f} % of the centreline: the tree is doubtful."
        warnings = (*warnings, said)
    return Correspondence(
        tuple(curves),
        fixed,
        shown,
        sure,
        matched,
        agreed,
        sum(m.cost for m in matches),
        scale_from,
        assumptions,
        warnings,
    )


def _match_pairs(
    cameras: list[Camera], chains: Sequence[Chains], settings: InversionSettings, place_costs, judge: Judge | None
):
    """Match every view against the first, in one scale; the views beside a pair are its witnesses."""
    first = cameras[0]
    matches: list[Match] = []
    for k in range(1, len(cameras)):
        match = match_views(
            (first, cameras[k]),
            (chains[0], chains[k]),
            settings.match,
            place_costs=place_costs if k == 1 else (),  # later pairs may have another scale yet
            judge=judge and judge.of(0, k),
        )
        # Cameras taken as they are, exact or with the gauge fixed already, share one scale.
        if k > 1 and settings.camera_correction != "none":
            scale = _relative_scale(first.source_lps_mm, matches[0].points_mm[0], match.points_mm[0])
            cameras[k] = scale_gauge(first, cameras[k], scale)[1]
        matches.append(match)
    if len(cameras) > 2:
        matches = [
            match_views(
                (first, cameras[k]),
                (chains[0], chains[k]),
                settings.match,
                witnesses=[(cameras[j], chains[j]) for j in range(1, len(cameras)) if j != k],
                place_costs=place_costs,
                judge=judge and judge.of(0, k),
            )
            for k in range(1, len(cameras))
        ]
    return cameras, matches


def _single(camera: Camera, chains: Chains, settings: InversionSettings) -> Correspondence:
    """One view: every centreline point is put at the depth of the isocentre."""
    source, rays = camera.rays(chains.pixels[:, 0], chains.pixels[:, 1])
    depth = rays @ camera.frame.beam
    points = source + rays * (camera.sod_mm / depth)[:, None]
    sure = np.zeros(len(points))
    curves = []
    for p in range(chains.pieces):
        rows = slice(chains.start[p], chains.start[p + 1])
        nodes = tuple((0, int(node)) for node in chains.node[p])
        curves.append(Curve(points[rows], chains.radius_mm[rows], sure[rows], nodes))
    flat = (
        "Depth: with one view the tree is put into the plane through the isocentre; its shape along the beam is open."
    )
    return Correspondence(
        tuple(curves),
        (camera,),
        (points,),
        (sure,),
        0.0,
        0.0,
        0.0,
        "the plane through the isocentre",
        (flat,),
        ("The result is flat: one view does not show depth.",),
    )


def _relative_scale(source: np.ndarray, known: np.ndarray, fresh: np.ndarray) -> float:
    """Scale about the first source that takes the depths of a later pair to those of the first pair."""
    both = np.isfinite(known[:, 0]) & np.isfinite(fresh[:, 0])
    if both.sum() < 20:
        return 1.0
    ratio = np.linalg.norm(known[both] - source, axis=1) / np.linalg.norm(fresh[both] - source, axis=1)
    # Right matches agree on one ratio and wrong ones scatter: the densest place, not the mean.
    ratio = np.sort(ratio[(ratio > 0.7) & (ratio < 1.4)])
    if len(ratio) < 10:
        return 1.0
    window = max(5, len(ratio) // 4)
    width = ratio[window - 1 :] - ratio[: len(ratio) - window + 1]
    best = int(width.argmin())
    return float(np.median(ratio[best : best + window]))


def _not_known(fresh: list[Curve], known: list[Curve], settings: AssemblySettings) -> list[Curve]:
    """The curves of a further view that lie off what is there already."""
    from scipy.spatial import cKDTree

    tree = cKDTree(np.concatenate([curve.points_mm for curve in known]))
    return [curve for curve in fresh if np.median(tree.query(curve.points_mm)[0]) > settings.same_mm]


def _reference(matches: list[Match]) -> tuple[np.ndarray, np.ndarray]:
    """The reference view's points: of the pair that is surest about each."""
    points, confidence = matches[0].points_mm[0].copy(), matches[0].confidence[0].copy()
    for match in matches[1:]:
        better = (match.confidence[0] > confidence) | (np.isnan(points[:, 0]) & np.isfinite(match.points_mm[0][:, 0]))
        points[better], confidence[better] = match.points_mm[0][better], match.confidence[0][better]
    return points, confidence
