# SPDX-License-Identifier: Apache-2.0
"""The whole way on a small simulated case: stages, files, resume, repeatability."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.inversion.pipeline import reconstruct
from licag3d.inversion.settings import FieldSettings, InversionSettings, inversion_settings
from licag3d.metrics.scores import Truth, score
from licag3d.phantom.simulate_case import simulate_case
from licag3d.structures import View
from licag3d.vessels.tree import validate_tree

QUICK = replace(inversion_settings(quality="fast"), field=FieldSettings(spacing_mm=1.0, iterations=4))


@pytest.fixture(scope="module")
def case():
    return simulate_case(4, "rca", offset_mm=8, angle_error_deg=0.5, rows=256, cols=256)


@pytest.fixture(scope="module")
def views(case):
    return [
        View(
            v.image.astype(np.float32) / 255,
            v.user_camera,
            np.ones(v.mask.shape, bool),
            mask=v.mask,
            file=f"view_{k}.png",
        )
        for k, v in enumerate(case.views, 1)
    ]


@pytest.fixture(scope="module")
def result(views):
    return reconstruct(views, QUICK)


def test_tree_is_close_to_the_truth(case, result):
    truth = Truth(case.tree, case.true_cameras, [v.true_camera for v in case.held_out])
    scores = score(result.tree, truth, result.cameras)
    # Half of what full-size views give: 256 px and the fastest settings, but far above an unmatched or unmoved result.
    assert scores["centerline_f1_2mm_after_similarity"] > 0.5
    assert scores["offset_error_beyond_gauge_mm"] < 8


def test_tree_is_valid_and_every_stage_left_its_trace(result):
    assert validate_tree(result.tree) == []
    assert [stage.name for stage in result.stages] == [
        "Vessel evidence",
        "Camera correction",
        "Centreline matching",
        "Prior of the tree",
        "Vessel refinement",
        "Field refinement",
        "Vessel tree",
    ]
    assert all(stage.pictures for stage in result.stages)
    assert result.stages[1].losses["matching_cost"][-1] <= result.stages[1].losses["matching_cost"][0]
    data = result.stages[5].losses["data"]
    assert len(data) == 4 and data[-1] < data[0]
    assert result.scale_from and result.assumptions


def test_reference_view_stays(result, views):
    assert result.cameras[0].offset_lps_mm == (0.0, 0.0, 0.0)
    assert result.cameras[0].primary_deg == views[0].camera.primary_deg


def test_same_seed_same_result(views, result):
    again = reconstruct(views, QUICK)
    assert len(again.tree.branches) == len(result.tree.branches)
    for a, b in zip(again.tree.branches, result.tree.branches, strict=True):
        np.testing.assert_array_equal(a.points_lps_mm, b.points_lps_mm)
    np.testing.assert_array_equal(again.attenuation.values, result.attenuation.values)


def test_a_spoilt_stage_is_done_again(tmp_path):
    from licag3d.inversion.state import FOLDER, StageStore

    store = StageStore(tmp_path, "key", resume=True)
    store.save("evidence", {"a": np.arange(2000.0)}, {"x": 1})
    arrays, facts = store.load("evidence")
    assert arrays["a"][-1] == 1999 and facts == {"x": 1}
    file = tmp_path / FOLDER / "evidence.npz"
    whole = file.read_bytes()
    for spoilt in (b"", whole[:10], whole[: len(whole) // 2], whole[:60] + b"\xff" + whole[61:], b"[]"):
        file.write_bytes(spoilt)
        assert store.load("evidence") is None
    file.write_bytes(whole)
    assert StageStore(tmp_path, "other", resume=True).load("evidence") is None


def test_resume_takes_up_finished_stages(views, result, tmp_path):
    seen = []
    reconstruct(views, QUICK, resume_folder=tmp_path)

    def tell(stage, share, text):
        seen.append((stage, text))

    again = reconstruct(views, QUICK, resume_folder=tmp_path, resume=True, progress=tell)
    assert not any("search" in text for stage, text in seen if stage == "cameras")
    np.testing.assert_array_equal(again.attenuation.values, result.attenuation.values)
    other = replace(QUICK, seed=1)
    seen.clear()
    reconstruct(views, other, resume_folder=tmp_path, resume=True, progress=tell)
    assert any("search" in text for stage, text in seen if stage == "cameras")


def test_cameras_taken_as_given(case, views):
    exact = [replace(view, camera=camera) for view, camera in zip(views, case.true_cameras, strict=True)]
    fixed = reconstruct(exact, replace(QUICK, camera_correction="none"))
    assert fixed.cameras == tuple(case.true_cameras)
    assert fixed.scale_from == "the cameras as given"


def test_one_view_is_flat_without_a_prior_and_says_so(views):
    flat = reconstruct(views[:1], replace(QUICK, prior="none"))
    points = np.concatenate([b.points_lps_mm for b in flat.tree.branches])
    assert np.ptp(points @ flat.cameras[0].frame.beam) < 2.0
    assert any("flat" in warning for warning in flat.warnings)


def test_one_view_gets_its_depth_from_the_prior_and_says_so(views):
    deep = reconstruct(views[:1], QUICK)
    points = np.concatenate([b.points_lps_mm for b in deep.tree.branches])
    assert np.ptp(points @ deep.cameras[0].frame.beam) > 10.0
    assert sum("Depth comes from the prior" in warning for warning in deep.warnings) == 1


def test_three_views(case):
    more = simulate_case(4, "rca", views=3, offset_mm=8, rows=256, cols=256)
    views = [
        View(v.image.astype(np.float32) / 255, v.user_camera, np.ones(v.mask.shape, bool), mask=v.mask)
        for v in more.views
    ]
    result = reconstruct(views, QUICK)
    assert len(result.cameras) == 3 and len(result.metrics) == 3
    assert validate_tree(result.tree) == []


def test_a_view_without_vessels_is_refused(views):
    empty = replace(views[1], mask=np.zeros_like(views[1].mask))
    with pytest.raises(InputError, match="view 2 .* centreline"):
        reconstruct([views[0], empty], QUICK)


def test_settings_refuse_what_is_out_of_range():
    for bad in (
        {"quality": "great"},
        {"spacing_mm": 0.0},
        {"spacing_mm": float("nan")},
        {"camera_correction": "x"},
        {"seed": -1},
    ):
        with pytest.raises(InputError):
            inversion_settings(**bad)
    assert isinstance(inversion_settings(), InversionSettings)


def test_result_is_plain_json(result, tmp_path):
    from licag3d.report.result import write_result

    files = write_result(tmp_path / "out", result)
    summary = json.loads(files["result.json"].read_text())
    assert summary["tree"]["branches"] == len(result.tree.branches)
    assert len(summary["stages"]) == 7


def test_a_judge_that_knows_no_such_vessels_is_overruled(views, monkeypatch):
    from licag3d.inversion import tree_stages

    judged = replace(QUICK, prior="none", judge=True, skip=("refinement",))
    result = reconstruct(views, judged)
    assert tree_stages.JUDGE_OVERRULED not in result.warnings
    monkeypatch.setattr(tree_stages, "LEAST_JUDGED", 10.0)
    overruled = reconstruct(views, judged)
    assert tree_stages.JUDGE_OVERRULED in overruled.warnings


def test_a_completed_tree_that_the_views_deny_altogether_gives_way_to_the_matched_one(views, monkeypatch):
    from licag3d.inversion import prior_stage, tree_stages

    plain = reconstruct(views, replace(QUICK, prior="none", skip=("refinement",)))
    monkeypatch.setattr(prior_stage, "completed_curves", lambda *_: [])
    found = reconstruct(views, replace(QUICK, skip=("refinement",)))
    assert tree_stages.PRIOR_DENIED in found.warnings and tree_stages.PRIOR_ASSUMED not in found.assumptions
    assert found.cameras == plain.cameras
    assert found.tree.length_mm == pytest.approx(plain.tree.length_mm)
