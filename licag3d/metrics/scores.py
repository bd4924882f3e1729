# SPDX-License-Identifier: Apache-2.0
"""All scores of one reconstruction against its truth, in one flat dictionary; names in licag3d.metrics.names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from licag3d.geometry import Camera
from licag3d.metrics.alignment import Similarity, best_similarity, best_translation
from licag3d.metrics.bifurcations import bifurcation_metrics, bifurcations
from licag3d.metrics.branches import branch_recall, schaap_metrics
from licag3d.metrics.cameras import camera_metrics, projection_error_mm, reprojection_mm
from licag3d.metrics.centerline import CenterlinePoints, centerline_metrics, tree_points
from licag3d.metrics.diameters import diameter_metrics
from licag3d.metrics.images import TruthView, mean_views, view_scores
from licag3d.metrics.lesions import lesion_metrics
from licag3d.metrics.names import METRICS, is_share
from licag3d.metrics.overlap import Lumen, lumen_components, overlap_metrics
from licag3d.structures import VesselTree

__all__ = ["Truth", "failure_scores", "is_share", "mean_scores", "score"]

_IMAGE = ("dice", "cldice", "ssim", "ssim_vessel", "psnr_db", "psnr_vessel_db")


@dataclass(frozen=True)
class Truth:
    """Truth of a case: tree and cameras in LPS mm; held-out cameras may be none.

    ``lesions`` as in ``truth/case.json``: ``branch`` (name), ``kind``, ``start_mm``, ``length_mm``,
    ``percent_diameter`` each.
    """

    tree: VesselTree
    cameras: Sequence[Camera]
    held_out: Sequence[Camera] = ()
    lesions: Sequence[Mapping[str, Any]] = ()


def score(pred_tree: VesselTree, truth: Truth, pred_cameras: Sequence[Camera] | None = None) -> dict[str, float]:
    """Scores of a reconstruction; definitions in docs/metrics.md. NaN where a score does not exist.

    Args:
        pred_cameras: the refined cameras, in the order of the true ones; without them the camera scores are NaN.
    """
    pred, true = tree_points(pred_tree), tree_points(truth.tree)
    translation = best_translation(pred.points_lps_mm, true.points_lps_mm)
    similarity = best_similarity(pred.points_lps_mm, true.points_lps_mm, translation)
    lumen = Lumen.of(true)
    points_of_division = bifurcations(pred_tree), bifurcations(truth.tree)
    found: dict[str, float] = {}
    for suffix, alignment in (
        ("", Similarity()),
        ("_after_translation", translation),
        ("_after_similarity", similarity),
    ):
        moved, tree = alignment.apply_to(pred), alignment.apply_tree(pred_tree)
        inside = Lumen.of(moved)
        scores = centerline_metrics(moved, true) | overlap_metrics(inside, lumen)
        scores |= diameter_metrics(tree, truth.tree)
        scores |= schaap_metrics(tree, truth.tree) | branch_recall(moved.points_lps_mm, truth.tree)
        scores |= bifurcation_metrics(alignment.apply(points_of_division[0]), points_of_division[1])
        if suffix != "_after_translation":
            scores |= lesion_metrics(moved, truth.tree, truth.lesions)
        if not suffix:
            scores["components"] = float(lumen_components(inside))
        found |= {f"{name}{suffix}": value for name, value in scores.items()}
    found |= _held_out(pred_tree, pred, truth, true, similarity)
    found |= _input(pred_tree, pred, truth, true, pred_cameras)
    empty = len(pred.points_lps_mm) == 0
    found |= {
        "similarity_scale": math.nan if empty else similarity.scale,
        "similarity_rotation_deg": math.nan if empty else similarity.rotation_deg,
        "translation_mm": math.nan if empty else float(np.linalg.norm(translation.translation_mm)),
        "pred_length_mm": pred_tree.length_mm,
        "truth_length_mm": truth.tree.length_mm,
    }
    return _in_order(found)


def failure_scores(truth: Truth) -> dict[str, float]:
    """Scores of a reconstruction that is not there: shares 0, distances NaN."""
    # The true cameras, so that its images are those of an empty volume; cameras it has none, so no error either.
    scores = score(VesselTree(), truth, truth.cameras)
    cameras = [item.name for item in METRICS if item.group == "Cameras"]
    return scores | dict.fromkeys(cameras, math.nan)


def mean_scores(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over cases by name, leaving out NaN (a name that is NaN everywhere stays NaN)."""
    names = list(dict.fromkeys(name for case in cases for name in case))
    result = {}
    for name in names:
        values = [case[name] for case in cases if name in case and not math.isnan(case[name])]
        result[name] = sum(values) / len(values) if values else math.nan
    return result


def _in_order(found: dict[str, float]) -> dict[str, float]:
    """The scores by the registry: its order, and nothing that it does not define."""
    result = {}
    for item in METRICS:
        for name in (item.name, *(f"{item.name}_after_{how}" for how in item.after)):
            result[name] = found[name]
    return result


def _held_out(
    pred_tree: VesselTree, pred: CenterlinePoints, truth: Truth, true: CenterlinePoints, alignment: Similarity
) -> dict[str, float]:
    moved, moved_tree = alignment.apply_to(pred), alignment.apply_tree(pred_tree)
    views = [TruthView(truth.tree, true, camera) for camera in truth.held_out]
    result: dict[str, float] = {}
    for suffix, tree, points in (("", pred_tree, pred), ("_after_similarity", moved_tree, moved)):
        distances = [
            reprojection_mm(points.points_lps_mm, camera, true.points_lps_mm, camera) for camera in truth.held_out
        ]
        result[f"heldout_reprojection_mm{suffix}"] = _mean(distances)
        images = mean_views([view_scores(tree, points, view.camera, view) for view in views])
        result |= {f"heldout_{name}{suffix}": images.get(name, math.nan) for name in _IMAGE}
    return result | _empty("heldout", views)


def _input(
    pred_tree: VesselTree,
    pred: CenterlinePoints,
    truth: Truth,
    true: CenterlinePoints,
    refined: Sequence[Camera] | None,
) -> dict[str, float]:
    views = [TruthView(truth.tree, true, camera) for camera in truth.cameras]
    result = _empty("input", views)
    if refined is None or len(refined) != len(truth.cameras) or not refined:
        names = [item.name for item in METRICS if item.group in ("Input views", "Cameras")]
        return dict.fromkeys(names, math.nan) | result
    distances = [
        reprojection_mm(pred.points_lps_mm, mine, true.points_lps_mm, camera)
        for mine, camera in zip(refined, truth.cameras, strict=True)
    ]
    images = mean_views([view_scores(pred_tree, pred, mine, view) for mine, view in zip(refined, views, strict=True)])
    wrong = [
        projection_error_mm(true.points_lps_mm, mine, camera)
        for mine, camera in zip(refined, truth.cameras, strict=True)
    ]
    result |= {"input_reprojection_mm": _mean(distances), "truth_projection_error_mm": _mean(wrong)}
    result |= {f"input_{name}": images[name] for name in _IMAGE}
    return result | camera_metrics(refined, truth.cameras)


def _empty(prefix: str, views: Sequence[TruthView]) -> dict[str, float]:
    scores = mean_views([view.empty_scores() for view in views])
    return {f"{prefix}_{name}_empty": scores.get(name, math.nan) for name in ("ssim", "ssim_vessel")}


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
