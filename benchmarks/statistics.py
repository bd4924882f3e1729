# SPDX-License-Identifier: Apache-2.0
"""Means, medians, bootstrap intervals, marginals and paired differences of a result file."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

#: What decides the order of the leaderboard, and who the strongest rival is.
PRIMARY = "centerline_f1_1mm_after_similarity"
#: What the summary holds; the cases hold every score.
SUMMARISED = (
    "centerline_f1_1mm",
    "centerline_f1_1mm_after_translation",
    "centerline_f1_1mm_after_similarity",
    "centerline_f1_2mm_after_similarity",
    "centerline_precision_1mm_after_similarity",
    "centerline_recall_1mm_after_similarity",
    "chamfer_mm",
    "chamfer_mm_after_similarity",
    "radius_mae_mm_after_similarity",
    "dice_after_similarity",
    "cldice_after_similarity",
    "heldout_reprojection_mm_after_similarity",
    "offset_error_beyond_gauge_mm",
)
COSTS = ("seconds", "cpu_seconds", "peak_memory_mb")
FACTORS = ("artery", "separation_deg", "offset_mm", "background")
BOOTSTRAP_DRAWS = 2000


def statistics(values: list[float]) -> dict[str, float | int]:
    """Mean, median and percentile bootstrap 95 % interval of the mean (fixed seed), over the finite values."""
    finite = np.array([value for value in values if value is not None and math.isfinite(value)])
    if len(finite) == 0:
        return {"n": 0, "mean": math.nan, "median": math.nan, "low_95": math.nan, "high_95": math.nan}
    draws = np.random.default_rng(0).choice(finite, (BOOTSTRAP_DRAWS, len(finite))).mean(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return {
        "n": len(finite),
        "mean": float(finite.mean()),
        "median": float(np.median(finite)),
        "low_95": float(low),
        "high_95": float(high),
    }


def summarise(store: dict) -> dict[str, dict]:
    """Per method: ``overall`` and, per factor and level (``offset_mm=5``), per track, and per artery within a
    background, the statistics of the scores.

    Distances do not exist for failures: they are left out there and their number ``n`` says so; shares count 0.
    """
    return {name: _method_summary(store, name) for name in store["methods"]}


def _method_summary(store: dict, name: str) -> dict[str, dict]:
    mine = [(case, case["results"][name]) for case in store["cases"].values() if name in case["results"]]
    groups: dict[str, Callable[[dict], bool]] = {"overall": lambda case: True}
    for factor in (*FACTORS, "track"):
        for level in sorted({case[factor] for case, _ in mine}, key=str):
            groups[f"{factor}={level if isinstance(level, str) else f'{level:g}'}"] = (
                lambda case, factor=factor, level=level: case[factor] == level
            )
    for background, artery in sorted({(case["background"], case["artery"]) for case, _ in mine}):
        groups[f"background={background},artery={artery}"] = lambda case, background=background, artery=artery: (
            case["background"] == background and case["artery"] == artery
        )
    return {group: _group([result for case, result in mine if chosen(case)]) for group, chosen in groups.items()}


def _group(results: list[dict]) -> dict:
    rows = [{**result["scores"], **{cost: result[cost] for cost in COSTS}} for result in results]
    return {
        "cases": len(results),
        "failed": sum(result["failed"] is not None for result in results),
        "scores": {name: statistics([row.get(name) for row in rows]) for name in (*SUMMARISED, *COSTS)},
    }


def strongest_rival(store: dict) -> str | None:
    """The rival with the best mean of the primary score on the cases that all rivals with results have in common; where
    there is no such case, on its own cases."""
    rivals = [name for name, method in store["methods"].items() if method["kind"] == "rival"]
    ran = [name for name in rivals if any(name in case["results"] for case in store["cases"].values())]
    if not ran:
        return None
    common = [case for case in store["cases"].values() if all(name in case["results"] for name in ran)]

    def mean(name: str) -> float:
        cases = common or [case for case in store["cases"].values() if name in case["results"]]
        return float(np.mean([case["results"][name]["scores"][PRIMARY] or 0.0 for case in cases]))

    return max(ran, key=mean)


def paired(store: dict, name: str, against: str, score: str = PRIMARY) -> dict[str, float | int]:
    """Differences ``name - against`` on the cases both have, with how often the first is better."""
    differences = []
    for case in store["cases"].values():
        results = case["results"]
        if name in results and against in results:
            one, two = (results[key]["scores"].get(score) for key in (name, against))
            if one is not None and two is not None and math.isfinite(one) and math.isfinite(two):
                differences.append(one - two)
    return {**statistics(differences), "better": sum(d > 0 for d in differences)}
