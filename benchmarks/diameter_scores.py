# SPDX-License-Identifier: Apache-2.0
"""Scores of diameters, lesions and projections of one tree, and their summary over cases."""

from __future__ import annotations

import math

import numpy as np

#: Stenoses from these percents on are counted as reported or missed.
REPORTED = (50, 70)
#: The truth of a reported stenosis is the least diameter this near to it along the vessel, mm.
NEAR_MM = 2.5
TIMES = ("before", "no contrast", "after")


def scores(tree, cameras, case, *, aligned: bool, images: bool = True) -> dict[str, float]:
    """Scores after the best similarity (``aligned``: the tree is in the frame of the truth already), without those of
    projections where not ``images``."""
    from licag3d.metrics.alignment import Similarity, best_similarity, best_translation
    from licag3d.metrics.cameras import reprojection_mm
    from licag3d.metrics.centerline import centerline_metrics, harmonic, nearest_distances, tree_points
    from licag3d.metrics.diameters import diameter_metrics
    from licag3d.metrics.images import TruthView, view_scores
    from licag3d.metrics.lesions import lesion_metrics

    pred, true = tree_points(tree), tree_points(case.tree)
    alignment = Similarity()
    if not aligned:
        first = best_translation(pred.points_lps_mm, true.points_lps_mm)
        alignment = best_similarity(pred.points_lps_mm, true.points_lps_mm, first)
    moved, moved_tree = alignment.apply_to(pred), alignment.apply_tree(tree)
    forward, _ = nearest_distances(moved.points_lps_mm, true.points_lps_mm)
    backward, _ = nearest_distances(true.points_lps_mm, moved.points_lps_mm)
    values = {key: x for key, x in centerline_metrics(moved, true).items() if key.startswith("centerline_f1")}
    values["centerline_f1_0.5mm"] = harmonic(float((forward <= 0.5).mean()), float((backward <= 0.5).mean()))
    near = forward[forward <= 1.0]
    values["distance_within_1mm_mm"] = float(near.mean()) if len(near) else math.nan
    values |= diameter_metrics(moved_tree, case.tree)
    for lesion in case.lesions:
        one = lesion_metrics(moved, case.tree, [lesion.__dict__])
        if math.isnan(one["lesion_recall_2mm"]):
            continue  # a dilatation or an occlusion
        about = [lesion.percent_diameter, deviation(moved_tree, case.tree, lesion)]
        values.setdefault("mld", []).append([one["mld_bias_mm"], one["stenosis_bias_percent"], *about])
    for percent in REPORTED:
        values[f"reported_{percent}"] = list(reported(moved_tree, case, percent))
    values["told"] = told(moved_tree, case.tree)
    if not images:
        return {key: plain(value) for key, value in values.items()}
    held_out = [view.true_camera for view in case.held_out]
    for name, seen_by, shown, points in (
        ("heldout", [(camera, camera) for camera in held_out], moved_tree, moved),
        ("input", list(zip(cameras, case.true_cameras, strict=True)), tree, pred),
    ):
        rows = [(view_scores(shown, points, mine, TruthView(case.tree, true, camera)),
                 reprojection_mm(points.points_lps_mm, mine, true.points_lps_mm, camera))
                for mine, camera in seen_by]  # fmt: skip
        for key in ("ssim", "ssim_vessel"):
            values[f"{name}_{key}"] = float(np.mean([row[0][key] for row in rows]))
        values[f"{name}_reprojection_mm"] = float(np.mean([row[1] for row in rows]))
    empty = [TruthView(case.tree, true, camera).empty_scores() for camera in held_out]
    values["heldout_ssim_vessel_empty"] = float(np.mean([row["ssim_vessel"] for row in empty]))
    return {key: plain(value) for key, value in values.items()}


def reported(tree, case, percent: float) -> tuple[int, int, int]:
    """Of the true stenoses of at least ``percent`` those that :func:`find_stenoses` reports as such (within 2 mm of
    their stretch), their number, and the reported ones that lie at no lesion within 20 points of that."""
    from licag3d.report.lesions import REPORTED_REFERENCE_MM
    from licag3d.vessels.stenosis import find_stenoses

    lesions = find_stenoses(tree, min_percent=percent, min_reference_mm=REPORTED_REFERENCE_MM)
    told = [lesion.position_lps_mm for lesion in lesions]
    narrow = [x for x in case.lesions if x.kind in ("stenosis", "diffuse")]
    true = [x for x in narrow if x.kind == "stenosis" and x.percent_diameter >= percent]
    found = sum(any(lies_in(case.tree, x, place) for place in told) for x in true)
    near = [x for x in narrow if x.percent_diameter >= percent - 20]
    return found, len(true), sum(not any(lies_in(case.tree, x, place) for x in near) for place in told)


def told(tree, truth) -> list[list[float]]:
    """Of every reported stenosis of half the diameter or more: error of its minimal diameter, mm, the deviation it
    states, and 1 where the truth lies in its 90 % interval. Those on no true vessel (2 mm) are left out."""
    from licag3d.report.lesions import REPORTED_REFERENCE_MM
    from licag3d.vessels.stenosis import find_stenoses
    from licag3d.vessels.tree import arc_length_mm, resample_tree

    fine = resample_tree(truth, 0.1).branches
    rows = []
    for lesion in find_stenoses(tree, min_percent=REPORTED[0], min_reference_mm=REPORTED_REFERENCE_MM):
        away = [np.linalg.norm(b.points_lps_mm - np.asarray(lesion.position_lps_mm), axis=1) for b in fine]
        k = int(np.argmin([row.min() for row in away]))
        if away[k].min() > 2.0 or lesion.minimal_sigma_mm is None:
            continue
        arc = arc_length_mm(fine[k].points_lps_mm)
        least = 2 * float(fine[k].radius_mm[np.abs(arc - arc[away[k].argmin()]) <= NEAR_MM].min())
        low, high = lesion.minimal_90_mm
        rows.append([lesion.minimal_diameter_mm - least, lesion.minimal_sigma_mm, float(low <= least <= high)])
    return rows


def lies_in(truth, lesion, place_lps_mm, margin_mm: float = 2.0) -> bool:
    """Whether a place lies within 2 mm of the branch of a lesion, along its stretch or 2 mm around."""
    from licag3d.vessels.tree import arc_length_mm

    branch = next(b for b in truth.branches if b.id == lesion.branch_id)
    away = np.linalg.norm(branch.points_lps_mm - np.asarray(place_lps_mm), axis=1)
    at = arc_length_mm(branch.points_lps_mm)[away.argmin()] - lesion.start_mm
    return bool(away.min() < 2.0 and -margin_mm <= at <= lesion.length_mm + margin_mm)


def deviation(tree, truth, lesion) -> float:
    """Standard deviation that the tree states for its least diameter within a lesion, mm; NaN where none."""
    from licag3d.vessels.stenosis import minimal_sigma_mm

    rows = [(r, s) for b in tree.branches if b.radius_sigma_mm is not None
            for p, r, s in zip(b.points_lps_mm, b.radius_mm, b.radius_sigma_mm, strict=True)
            if lies_in(truth, lesion, p, 0.0)]  # fmt: skip
    if not rows:
        return math.nan
    radius, sigma = min(rows)
    return minimal_sigma_mm(2 * float(radius), 2 * float(sigma))


def summary(cases: dict) -> dict:
    """Mean over cases and 95 % bootstrap interval (fixed seed) of every score, by start and track; lesions pooled."""
    result: dict[str, dict] = {}
    for group in sorted({name for case in cases.values() for name in case}):
        for when in TIMES:
            rows = [case[group][when] for case in cases.values() if group in case]
            found = {}
            for key in rows[0]:
                if key not in ("mld", "told") and not key.startswith("reported"):
                    found[key] = interval([row.get(key) for row in rows])
            pairs = [pair for row in rows for pair in row.get("mld", [])]
            found |= lesion_summary(pairs)
            found |= {f"severe_{key}": x for key, x in lesion_summary([p for p in pairs if p[2] >= 70]).items()}
            found |= told_summary([one for row in rows for one in row.get("told", [])])
            for percent in REPORTED:
                counts = np.array([row[f"reported_{percent}"] for row in rows])
                total = counts.sum(0).tolist()
                false = total[2] / len(rows)
                found[f"reported_{percent}"] = {"found": total[0], "true": total[1], "false_per_case": false}
            result.setdefault(group, {})[when] = found
    return result


def lesion_summary(pairs: list) -> dict:
    """Errors of the minimal diameter and of the percent over lesions, and how often the stated deviation holds."""
    found: dict = {"lesions": len(pairs)}
    for k, name in enumerate(("mld", "stenosis")):
        errors = [pair[k] for pair in pairs if pair[k] is not None]
        unit = ("mm", "percent")[k]
        found[f"{name}_bias_{unit}"] = interval(errors)
        found[f"{name}_sd_{unit}"] = float(np.std(errors)) if errors else None
        found[f"{name}_error_{unit}"] = interval([abs(x) for x in errors])
        found[f"{name}_median_error_{unit}"] = float(np.median(np.abs(errors))) if errors else None
    stated = np.array([(abs(p[0]), p[3]) for p in pairs if p[0] is not None and p[3] is not None]).reshape(-1, 2)
    for times in (1, 2):
        share = float((stated[:, 0] <= times * stated[:, 1]).mean()) if len(stated) else None
        found[f"mld_within_{times}_deviations"] = share
    return found


def told_summary(rows: list) -> dict:
    """How often the truth lies within one and two deviations of reported stenoses, and in their 90 % interval."""
    values = np.array(rows, float).reshape(-1, 3)
    if not len(values):
        return {"told": 0, "told_within_1_deviations": None, "told_within_2_deviations": None, "told_within_90": None}
    times = np.abs(values[:, 0]) / values[:, 1]
    shares = {f"told_within_{n}_deviations": float((times <= n).mean()) for n in (1, 2)}
    return {"told": len(values)} | shares | {"told_within_90": float(values[:, 2].mean())}


def interval(values: list) -> dict:
    """``n``, ``mean`` and the bootstrap interval of the mean; None where nothing is known."""
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return {"n": 0, "mean": None, "low_95": None, "high_95": None}
    draws = np.random.default_rng(0).choice(known, (2000, len(known))).mean(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return {"n": len(known), "mean": float(known.mean()), "low_95": float(low), "high_95": float(high)}


def plain(value):
    """NaN as None, in lists too: JSON has no NaN."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
