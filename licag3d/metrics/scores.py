# SPDX-License-Identifier: Apache-2.0
"""All scores of one reconstruction against its truth, in one flat dictionary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from licag3d.geometry import Camera
from licag3d.metrics.alignment import Similarity, best_similarity, best_translation
from licag3d.metrics.cameras import camera_metrics, reprojection_mm
from licag3d.metrics.centerline import CenterlinePoints, centerline_metrics, tree_points
from licag3d.metrics.overlap import overlap_metrics
from licag3d.structures import VesselTree

#: What is repeated after each alignment, with the suffix of the alignment.
ALIGNED = (
    "centerline_f1_1mm",
    "centerline_precision_1mm",
    "centerline_recall_1mm",
    "centerline_f1_2mm",
    "centerline_precision_2mm",
    "centerline_recall_2mm",
    "chamfer_mm",
    "centerline_hd95_mm",
    "radius_mae_mm",
)
#: Scores for which a missing prediction counts 0; all others are NaN (no distance exists).
_SHARES = ("centerline_f1", "centerline_precision", "centerline_recall", "dice", "cldice")


@dataclass(frozen=True)
class Truth:
    """Truth of a case: tree and cameras in LPS mm; held-out cameras may be none."""

    tree: VesselTree
    cameras: Sequence[Camera]
    held_out: Sequence[Camera] = ()


def score(pred_tree: VesselTree, truth: Truth, pred_cameras: Sequence[Camera] | None = None) -> dict[str, float]:
    """Scores of a reconstruction; definitions in docs/metrics.md. NaN where a score does not exist.

    Args:
        pred_cameras: the refined cameras, in the order of the true ones; without them the camera scores are NaN.
    """
    pred, true = tree_points(pred_tree), tree_points(truth.tree)
    result = centerline_metrics(pred, true) | overlap_metrics(pred, true)
    translation = best_translation(pred.points_lps_mm, true.points_lps_mm)
    similarity = best_similarity(pred.points_lps_mm, true.points_lps_mm, translation)
    for suffix, alignment in (("translation", translation), ("similarity", similarity)):
        scores = centerline_metrics(alignment.apply_to(pred), true)
        result |= {f"{name}_after_{suffix}": scores[name] for name in ALIGNED}
    overlap = overlap_metrics(similarity.apply_to(pred), true)
    result |= {f"{name}_after_similarity": value for name, value in overlap.items()}
    empty = len(pred.points_lps_mm) == 0
    result |= {
        "similarity_scale": math.nan if empty else similarity.scale,
        "similarity_rotation_deg": math.nan if empty else similarity.rotation_deg,
    }
    result |= _held_out(pred, true, truth.held_out, similarity)
    result |= _cameras(pred, true, truth.cameras, pred_cameras)
    result |= {"pred_length_mm": pred_tree.length_mm, "truth_length_mm": truth.tree.length_mm}
    return result


def failure_scores(truth: Truth) -> dict[str, float]:
    """Scores of a reconstruction that is not there: shares 0, distances NaN."""
    return score(VesselTree(), truth)


def is_share(name: str) -> bool:
    """Whether a score is a share (0 for a failure, larger is better) rather than a distance or an angle."""
    return name.startswith(_SHARES)


def mean_scores(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over cases by name, leaving out NaN (a name that is NaN everywhere stays NaN)."""
    names = list(dict.fromkeys(name for case in cases for name in case))
    result = {}
    for name in names:
        values = [case[name] for case in cases if name in case and not math.isnan(case[name])]
        result[name] = sum(values) / len(values) if values else math.nan
    return result


def _held_out(
    pred: CenterlinePoints, true: CenterlinePoints, cameras: Sequence[Camera], alignment: Similarity
) -> dict[str, float]:
    moved = alignment.apply(pred.points_lps_mm)
    raw = [reprojection_mm(pred.points_lps_mm, camera, true.points_lps_mm, camera) for camera in cameras]
    aligned = [reprojection_mm(moved, camera, true.points_lps_mm, camera) for camera in cameras]
    return {"heldout_reprojection_mm": _mean(raw), "heldout_reprojection_mm_after_similarity": _mean(aligned)}


def _cameras(
    pred: CenterlinePoints, true: CenterlinePoints, cameras: Sequence[Camera], pred_cameras: Sequence[Camera] | None
) -> dict[str, float]:
    if pred_cameras is None or len(pred_cameras) != len(cameras):
        return dict.fromkeys(
            ("input_reprojection_mm", "offset_error_mm", "offset_error_beyond_gauge_mm", "relative_rotation_error_deg"),
            math.nan,
        )
    distances = [
        reprojection_mm(pred.points_lps_mm, refined, true.points_lps_mm, camera)
        for refined, camera in zip(pred_cameras, cameras, strict=True)
    ]
    return {"input_reprojection_mm": _mean(distances)} | camera_metrics(pred_cameras, cameras)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
