# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from report_case import camera, reconstruction
from vessel_trees import coronary

from licag3d.report import write_result
from licag3d.report.lesions import reported_stenoses
from licag3d.report.result import Confidence
from licag3d.report.view_guide import (
    DOUBTFUL_MM,
    PRIORS_OWN,
    WITHHELD_MM,
    angulation,
    guide_dict,
    guide_html,
    guide_scene,
    view_guide,
)
from licag3d.structures import VesselTree
from licag3d.vessels.foreshortening import branch_pieces, tree_pieces, view_figures
from licag3d.vessels.stenosis import find_stenoses

CAMERAS = (camera(30, 0), camera(-40, 20, (4.0, -3.0, 8.0)))


def named_tree(error_mm: float | None = None, confidence: float | None = 1.0, names=("LAD", "D1", "S1", "")):
    """The small coronary tree with names, and one error and one confidence everywhere."""
    return VesselTree(tuple(
        replace(branch, name=name,
                error_mm=None if error_mm is None else np.full(len(branch.radius_mm), error_mm),
                confidence=None if confidence is None else np.full(len(branch.radius_mm), confidence))
        for branch, name in zip(coronary().branches, names, strict=True)))


def narrowed(tree: VesselTree) -> VesselTree:
    branch = tree.branches[0]
    count = len(branch.radius_mm)
    dip = 1 - 0.7 * np.exp(-0.5 * ((np.arange(count) - count // 2) / 6) ** 2)
    return VesselTree((replace(branch, radius_mm=branch.radius_mm * dip), *tree.branches[1:]))


def test_the_tree_its_main_vessels_and_its_narrowings():
    tree = narrowed(named_tree(1.0))
    lesions = reported_stenoses(tree)
    assert len(lesions) == 1
    targets = view_guide(tree, CAMERAS, lesions)
    assert [(t.kind, t.name) for t in targets[:3]] == [("tree", "Whole tree"), ("vessel", "LAD"), ("vessel", "D1")]
    lesion = targets[3]
    assert len(targets) == 4  # a septal branch is not treated
    assert lesion.kind == "stenosis" and lesion.name.startswith("Stenosis 1, LAD, ") and lesion.stenosis == 0
    assert lesion.length_mm == pytest.approx(10, abs=0.1) and lesion.branches == (0,)
    assert targets[0].length_mm == pytest.approx(tree.length_mm, rel=0.01)
    assert all(t.trust == "good" and len(t.views) >= 2 for t in targets)
    for number, cam in enumerate(CAMERAS):  # what the given views show of the lesion, with their own offsets
        near = branch_pieces(tree.branches[0], 0, from_mm=lesions[0].at_mm - 5, to_mm=lesions[0].at_mm + 5, step_mm=1.0)
        short, hidden = view_figures(near, [slice(None)], cam.source_lps_mm, tree_pieces(tree))[0]
        assert lesion.given[number] == pytest.approx((short[0], hidden[0]))
    best = targets[1].views[0]
    cost = best.foreshortening_percent + best.overlap_percent
    assert cost <= min(sum(pair) for pair in targets[1].given) + 5


def test_branches_of_one_name_are_one_vessel():
    tree = named_tree(1.0, names=("LCx", "OM1", "LCx", ""))
    targets = {t.name: t for t in view_guide(tree, CAMERAS)}
    assert targets["LCx"].branches == (0, 2) and targets["LCx"].positions == (0, 2)
    assert targets["LCx"].length_mm == pytest.approx(sum(
        np.linalg.norm(np.diff(tree.branches[k].points_lps_mm, axis=0), axis=1).sum() for k in (0, 2)), rel=0.01)


@pytest.mark.parametrize(("error_mm", "confidence", "level", "trust"), [
    (1.0, 1.0, "high", "good"), (1.0, 1.0, "low", "doubtful"), (DOUBTFUL_MM, 1.0, "high", "doubtful"),
    (1.0, 0.3, "high", "doubtful"), (WITHHELD_MM, 1.0, "high", "withheld"), (10.0, 0.3, "low", "withheld"),
    (None, None, "", "unknown"), (None, 0.3, "", "withheld"), (None, 1.0, "", "good")])
def test_what_is_hardly_known_is_said_or_withheld(error_mm, confidence, level, trust):
    for target in view_guide(named_tree(error_mm, confidence), CAMERAS, level=level):
        assert target.trust == trust
        assert bool(target.views) == (trust != "withheld")
        if error_mm is not None:
            assert f"{error_mm:.1f}\N{NO-BREAK SPACE}mm" in target.reason
        if confidence == 0.3:
            assert "100\N{NO-BREAK SPACE}% not borne out" in target.reason
        if level == "low" and trust == "doubtful":
            assert "as a whole is low" in target.reason


def test_the_prior_s_own_depth_is_recognised():
    from licag3d.inversion.completion import PRIOR_CONFIDENCE

    assert PRIORS_OWN == PRIOR_CONFIDENCE


def test_a_lesion_is_judged_by_its_own_stretch():
    tree = narrowed(named_tree(1.0))
    branch = tree.branches[0]
    lesion = find_stenoses(tree, min_percent=50)[0]
    error = np.where(np.linalg.norm(branch.points_lps_mm - np.array(lesion.position_lps_mm), axis=1) < 7, 8.0, 1.0)
    tree = VesselTree((replace(branch, error_mm=error), *tree.branches[1:]))
    trusts = {t.kind: t.trust for t in view_guide(tree, CAMERAS, [lesion])}
    assert trusts["stenosis"] == "withheld" and trusts["tree"] == "good"


def test_angulations_as_they_are_said():
    degree = "\N{DEGREE SIGN}"
    assert angulation(30, 20) == f"LAO 30{degree}, CRA 20{degree}"
    assert angulation(-5, -15) == f"RAO 5{degree}, CAU 15{degree}"
    assert angulation(0, 0) == "AP" and angulation(0, 40) == f"AP, CRA 40{degree}"


def test_page_and_scene_show_the_same_map():
    targets = view_guide(narrowed(named_tree(1.0)), CAMERAS)
    scene, page = guide_scene(targets), guide_html(targets, CAMERAS)
    cells = re.findall(r'<rect x="(\d+)" y="(\d+)"[^>]*fill="(#\w{6})" data-look="(-?\d+),(-?\d+)"', page)
    assert len(cells) == 25 * 17
    cost = np.frombuffer(base64.b64decode(scene["targets"][0]["cost"]), np.uint8)
    found = targets[0].map
    for cell, value in list(zip(cells, cost, strict=True))[::37]:
        i = list(found.primary_deg).index(float(cell[3]))
        j = list(found.secondary_deg).index(float(cell[4]))
        assert value == pytest.approx(found.cost_percent[i, j], abs=0.51)
    assert len({cell[2] for cell in cells}) > 20
    looks = re.findall(r'<button [^>]*data-look="([^"]+)" data-target="(\d)"', page)
    assert looks == [(f"{v.primary_deg:g},{v.secondary_deg:g}", str(k)) for k, t in enumerate(targets) for v in t.views]


def test_files_hold_it(tmp_path):
    made = reconstruction(size=64)
    tree = narrowed(named_tree(1.0, names=("RCA", "R-PDA", "<b>", "")))
    sure = Confidence("moderate", "Fair.", 0.8)
    paths = write_result(tmp_path / "a", replace(made, tree=tree, confidence=sure))
    content = json.loads(paths["result.json"].read_text("utf-8"))
    guide = content["best_views"]
    assert guide["reach_deg"] == {"primary": 60, "secondary": 40} and "not judged" in guide["note"]
    assert [t["name"] for t in guide["targets"][:3]] == ["Whole tree", "RCA", "R-PDA"]
    assert guide["targets"][-1]["stenosis"] == 0 and len(content["stenoses"]) == 1
    for target in guide["targets"]:
        assert set(target) == {"kind", "name", "branches", "stenosis", "length_mm", "trust", "reason",
                               "expected_error_mm", "unmeasured_share", "views", "given_views"}
        assert len(target["given_views"]) == 2
        for view in target["views"]:
            assert abs(view["primary_deg"]) <= 60 and abs(view["secondary_deg"]) <= 40
            assert 0 <= view["foreshortening_percent"] <= 100 and 0 <= view["overlap_percent"] <= 100.001
    text = paths["report.html"].read_text("utf-8")
    assert "Views to consider" in text and "Absorption, table, patient" in text


def test_without_depth_no_view_and_without_a_tree_no_section():
    page = guide_html(view_guide(named_tree(10.0, 0.2), CAMERAS[:1]), CAMERAS[:1])
    assert "No view is offered" in page and "data-target" not in page and "10.0\N{NO-BREAK SPACE}mm or more" in page
    assert view_guide(VesselTree(), CAMERAS) == ()
    assert guide_html((), CAMERAS) == "" and guide_scene(()) is None and guide_dict(())["targets"] == []
