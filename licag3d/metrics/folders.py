# SPDX-License-Identifier: Apache-2.0
"""Scoring folders: one case or many, what is missing, what lies in another frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.metrics.centerline import centerline_metrics, tree_points
from licag3d.metrics.files import read_cameras, read_tree
from licag3d.metrics.lesions import check_lesions
from licag3d.metrics.scores import Truth, failure_scores, score
from licag3d.structures import VesselTree

#: A prediction farther from the truth than this cannot be meant for the same frame, mm.
FAR_MM = 150.0


def read_truth(folder: Path) -> Truth:
    """The truth of a ``truth`` folder: tree, cameras, held-out cameras and lesions.

    Raises:
        InputError: something is missing or wrong.
    """
    tree = read_tree(folder / "centerlines.json")
    if tree.length_mm <= 0:
        raise InputError(f"{folder / 'centerlines.json'} holds no vessel; give a truth with at least one branch")
    held_out = folder / "held_out" / "cameras.json"
    hidden = read_cameras(held_out) if held_out.exists() else []
    return Truth(tree, read_cameras(folder / "cameras.json"), hidden, _lesions(folder / "case.json", tree))


def _lesions(path: Path, tree: VesselTree) -> tuple[dict, ...]:
    if not path.exists():
        return ()
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path} is not readable JSON; write the case again") from None
    lesions = check_lesions(content.get("lesions") if isinstance(content, dict) else None, path.name)
    names = {branch.name for branch in tree.branches}
    for lesion in lesions:
        if lesion["branch"] not in names:
            raise InputError(f"{path} names a lesion in branch {lesion['branch'][:40]!r}, which centerlines.json lacks")
    return lesions


def find_cases(pred: Path, truth: Path) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """Name, prediction folder and truth folder of every case, and warnings.

    Raises:
        InputError: ``truth`` is neither a truth folder, nor a case, nor a folder of cases.
    """
    if (truth / "centerlines.json").is_file():
        return [(truth.parent.name if truth.name == "truth" else truth.name, pred, truth)], []
    if (truth / "truth" / "centerlines.json").is_file():
        return [(truth.name, pred, truth / "truth")], []
    names = sorted(folder.name for folder in truth.iterdir() if (folder / "truth" / "centerlines.json").is_file())
    if not names:
        raise InputError(f"--truth {truth} holds no truth (centerlines.json) and no case with a truth folder")
    warnings = []
    extra = sorted(f.name for f in pred.iterdir() if (f / "centerlines.json").is_file() and f.name not in names)
    if extra:
        warnings.append(
            f"{len(extra)} predictions have no truth of their name and are not scored: "
            f"{', '.join(extra[:5])}{', ...' if len(extra) > 5 else ''}"
        )
    if not any((pred / name).is_dir() for name in names):
        warnings.append(
            f"no folder in --pred is named like a case ({', '.join(names[:3])}, ...): every case is a failure"
        )
    return [(name, pred / name, truth / name / "truth") for name in names], warnings


def score_folder(pred_folder: Path, truth_folder: Path) -> dict:
    """``{"scores": {...}, "failed": reason or None, "warnings": [...]}`` of one case.

    A prediction that is missing or unreadable is a failure with its scores (shares 0), never left out.

    Raises:
        InputError: the truth is missing or wrong.
    """
    truth = read_truth(truth_folder)
    warnings: list[str] = []
    try:
        tree = read_tree(pred_folder / "centerlines.json")
        path = pred_folder / "cameras.json"
        cameras = read_cameras(path) if path.exists() else None
    except InputError as error:
        return {"scores": failure_scores(truth), "failed": str(error), "warnings": warnings}
    if cameras is None:
        warnings.append("no cameras.json: camera scores and input views left out")
    elif len(cameras) != len(truth.cameras):
        warnings.append(
            f"cameras.json has {len(cameras)} views, the truth {len(truth.cameras)}: camera scores and "
            "input views left out"
        )
        cameras = None
    warnings += frame_warnings(tree, truth.tree)
    return {"scores": score(tree, truth, cameras), "failed": None, "warnings": warnings}


def frame_warnings(pred: VesselTree, truth: VesselTree) -> list[str]:
    """What points to another frame or unit of the prediction, one sentence each. Scores stay as they are."""
    mine, true = tree_points(pred), tree_points(truth)
    if len(mine.points_lps_mm) == 0 or len(true.points_lps_mm) == 0:
        return []
    extents = [float(np.linalg.norm(np.ptp(x.points_lps_mm, axis=0))) for x in (mine, true)]
    if extents[0] < 0.02 * extents[1] or extents[0] > 50 * extents[1]:
        return [
            f"the prediction is {extents[0]:.3g} mm large, the truth {extents[1]:.3g} mm: is it in metres or "
            "micrometres? coordinates must be mm"
        ]
    raw = centerline_metrics(mine, true)["centerline_f1_2mm"]
    for name, flip in (("RAS", (-1, -1, 1)), ("a mirrored frame (left and right swapped)", (-1, 1, 1))):
        turned = type(mine)(mine.points_lps_mm * np.array(flip), mine.radius_mm)
        if centerline_metrics(turned, true)["centerline_f1_2mm"] > max(0.5, 2 * raw):
            return [f"the prediction seems to be in {name}, the truth is in LPS: turned over it fits; write LPS mm"]
    apart = float(np.linalg.norm(mine.points_lps_mm.mean(0) - true.points_lps_mm.mean(0)))
    if apart > FAR_MM:
        return [
            f"the prediction lies {apart:.0f} mm from the truth, which is another frame (a scanner's?): both must "
            "have the isocentre of the first view as origin; raw scores mean nothing here"
        ]
    return []
