# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.evaluate`` on folders: scores, failures, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from licag3d import evaluate
from licag3d.command import status_of
from licag3d.geometry import scale_gauge
from licag3d.io.atomic import write_text
from licag3d.io.cameras import write_cameras_json
from licag3d.io.write_centerlines import write_centerlines_json
from licag3d.phantom.simulate_case import simulate_case
from licag3d.phantom.write_case import Content, write_case
from licag3d.structures import VesselTree


def moved(tree: VesselTree, centre=(0.0, 0, 0), scale: float = 1.0, shift=(0.0, 0, 0)) -> VesselTree:
    return VesselTree(tuple(replace(b, points_lps_mm=scale * (b.points_lps_mm - centre) + centre + shift,
                                    radius_mm=scale * b.radius_mm) for b in tree.branches))


def write_prediction(folder, tree, cameras) -> None:
    folder.mkdir(parents=True)
    write_centerlines_json(folder / "centerlines.json", tree)
    write_text(folder / "cameras.json", write_cameras_json(cameras, ["view_1.png", "view_2.png"], [None, None]))


def small_case(seed: int):
    """Three branches are enough to score, and quick."""
    case = simulate_case(seed, "rca", offset_mm=5, rows=64, cols=64)
    return replace(case, tree=VesselTree(case.tree.branches[:3]))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Three cases: one exact, one scaled along the gauge of two views, one without prediction."""
    root = tmp_path_factory.mktemp("evaluate")
    for seed in (1, 2, 3):
        case = small_case(seed)
        write_case(root / "cases" / f"case_{seed}", case, Content(projections=False, mesh=False, labels=False))
        if seed == 1:
            write_prediction(root / "pred" / "case_1", case.tree, case.true_cameras)
        elif seed == 2:
            source, second = scale_gauge(*case.true_cameras, 0.94)
            write_prediction(root / "pred" / "case_2", moved(case.tree, source, 0.94), [case.true_cameras[0], second])
    return root


@pytest.fixture(scope="module")
def content(cases) -> dict:
    """metrics.json of the three cases."""
    flags = ["--pred", str(cases / "pred"), "--truth", str(cases / "cases")]
    assert status_of(evaluate.main, flags) == 0
    return json.loads((cases / "pred" / "metrics.json").read_text())


def test_an_exact_prediction_is_perfect(content):
    scores = content["cases"]["case_1"]["scores"]
    for suffix in ("", "_after_translation", "_after_similarity"):
        assert scores[f"centerline_f1_1mm{suffix}"] == 1
    assert scores["cldice"] == 1
    assert scores["dice"] > 0.995 and scores["hd95_mm"] == 0
    for name in ("chamfer_mm", "radius_mae_mm", "heldout_reprojection_mm", "input_reprojection_mm", "offset_error_mm"):
        assert scores[name] == pytest.approx(0, abs=1e-3)


def test_the_scale_gauge_is_free_after_similarity_and_seen_in_the_held_out_view(content):
    scores = content["cases"]["case_2"]["scores"]
    assert scores["centerline_f1_1mm"] < 0.2
    assert scores["centerline_f1_1mm_after_similarity"] > 0.99
    assert scores["similarity_scale"] == pytest.approx(1 / 0.94, abs=0.01)
    assert scores["input_reprojection_mm"] < 0.08  # both input images agree all the same, to the sampling
    assert scores["heldout_reprojection_mm"] > 5 and scores["heldout_reprojection_mm_after_similarity"] < 0.5
    assert scores["offset_error_mm"] > 5 and scores["offset_error_beyond_gauge_mm"] < 1e-3
    assert scores["radius_mae_mm_after_similarity"] < 0.05


def test_a_missing_prediction_counts_as_failure_and_is_not_left_out(content):
    assert content["failed"] == ["case_3"]
    scores = content["cases"]["case_3"]["scores"]
    assert scores["centerline_f1_1mm"] == 0 and scores["dice"] == 0 and scores["chamfer_mm"] is None
    assert content["mean"]["centerline_f1_1mm_after_similarity"] == pytest.approx(2 / 3, abs=0.01)


def test_one_case_by_its_truth_folder(cases, tmp_path):
    out = tmp_path / "one.json"
    flags = ["--pred", str(cases / "pred" / "case_1"), "--truth", str(cases / "cases" / "case_1" / "truth")]
    assert status_of(evaluate.main, [*flags, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["mean"]["centerline_f1_1mm"] == 1


@pytest.mark.parametrize("text", [
    "", "{", "[]", '{"frame": "RAS", "unit": "mm", "branches": []}', '{"branches": 3}',
    '{"frame": "LPS", "unit": "mm", "branches": [{"id": 0, "points_lps_mm": [[0, 0, 1e9]], "radius_mm": [1]}]}'])
def test_a_broken_prediction_is_a_failure(cases, tmp_path, text):
    (tmp_path / "centerlines.json").write_text(text)
    case = evaluate.score_folder(tmp_path, cases / "cases" / "case_1" / "truth")
    assert case["failed"] and case["scores"]["centerline_recall_2mm"] == 0


def test_an_empty_tree_scores_zero(cases, tmp_path):
    write_centerlines_json(tmp_path / "centerlines.json", VesselTree())
    case = evaluate.score_folder(tmp_path, cases / "cases" / "case_1" / "truth")
    assert case["scores"]["centerline_f1_2mm"] == 0 and np.isnan(case["scores"]["chamfer_mm"])


def test_other_numbers_of_views_leave_the_camera_scores_out(cases, tmp_path):
    case = small_case(1)
    write_centerlines_json(tmp_path / "centerlines.json", case.tree)
    write_text(tmp_path / "cameras.json", write_cameras_json(case.true_cameras[:1], ["a.png"], [None]))
    result = evaluate.score_folder(tmp_path, cases / "cases" / "case_1" / "truth")
    assert np.isnan(result["scores"]["offset_error_mm"]) and "views" in result["warnings"][0]
    assert result["scores"]["centerline_f1_1mm"] == 1


@pytest.mark.parametrize("which", ["pred", "truth", "no truth inside"])
def test_folders_that_are_not_there_end_with_status_2(cases, tmp_path, capsys, which):
    flags = {"pred": [str(tmp_path / "no"), str(cases / "cases")], "truth": [str(tmp_path), str(tmp_path / "no")],
             "no truth inside": [str(tmp_path), str(tmp_path)]}[which]
    assert status_of(evaluate.main, ["--pred", flags[0], "--truth", flags[1]]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
