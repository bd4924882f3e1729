# SPDX-License-Identifier: Apache-2.0
"""Views that do not belong together, views cut short, and input that cannot be used: said loudly, or refused."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from match_cases import chains_of, two_cameras, vessels
from PIL import Image

from licag3d import command, invert
from licag3d.geometry import Camera
from licag3d.inversion import sanity
from licag3d.inversion.chains import chains_from_graph
from licag3d.inversion.consistency import contrast_of
from licag3d.inversion.pipeline import reconstruct
from licag3d.inversion.sanity import Consistency
from licag3d.inversion.settings import FieldSettings, inversion_settings
from licag3d.inversion.several import correct_cameras
from licag3d.models.centerline2d import trace_centerlines
from licag3d.models.vessel_evidence import vessel_evidence
from licag3d.phantom.simulate_case import simulate_case
from licag3d.structures import Branch, VesselTree, View

FAST = inversion_settings(quality="fast", prior="none", skip=("prior", "refinement"))
FAST = replace(
    FAST,
    search=replace(FAST.search, generations=12, coarse=(30, 12)),
    field=FieldSettings(spacing_mm=1.5, iterations=1, rays=4000),
)


@lru_cache(maxsize=4)
def views_of(seed: int, artery: str) -> tuple[View, ...]:
    case = simulate_case(seed, artery, offset_mm=5.0, angle_error_deg=0.5, rows=192, cols=192, held_out=0)
    return tuple(
        View(v.image.astype(np.float32) / 255, v.user_camera, np.ones(v.mask.shape, bool), mask=v.mask, file=f"{k}.png")
        for k, v in enumerate(case.views, 1)
    )


def score_of(views) -> float:
    evidence = [vessel_evidence(view) for view in views]
    chains = [chains_from_graph(trace_centerlines(e, v), v.camera) for e, v in zip(evidence, views, strict=True)]
    contrast = [contrast_of(item) for item in evidence]
    given = tuple(view.camera for view in views)
    cameras, _ = correct_cameras(given, chains, FAST, contrast=contrast)
    return sanity.consistency(given, cameras, chains, contrast, FAST).score


def test_views_of_one_patient_belong_together_and_others_do_not():
    right, left = views_of(4, "rca"), views_of(4, "lca")
    same = score_of(right)
    assert same > sanity.DOUBTFUL
    assert score_of((right[0], left[1])) < sanity.DOUBTFUL  # another artery
    other = score_of((right[0], views_of(6, "rca")[1]))  # another patient
    assert other < sanity.SURE and other < same - 0.1
    wrong = replace(right[1], camera=replace(right[1].camera, primary_deg=right[1].camera.primary_deg - 90.0))
    assert score_of((right[0], wrong)) < sanity.DOUBTFUL


def test_mixed_views_come_out_with_a_loud_warning():
    result = reconstruct((views_of(4, "rca")[0], views_of(4, "lca")[1]), FAST)
    assert result.confidence.level == "low" and result.confidence.consistency < sanity.DOUBTFUL
    assert "hardly belong together" in result.warnings[0]
    assert all(branch.error_mm is not None for branch in result.tree.branches)


def test_eight_views():
    case = simulate_case(4, "rca", views=4, rows=128, cols=128, held_out=4)
    views = [
        View(v.image.astype(np.float32) / 255, v.true_camera, np.ones(v.mask.shape, bool), mask=v.mask)
        for v in (*case.views, *case.held_out)
    ]
    result = reconstruct(views, replace(FAST, camera_correction="none"))
    assert len(result.cameras) == len(result.metrics) == 8
    assert result.confidence.level in ("moderate", "high") and result.confidence.consistency > sanity.DOUBTFUL


def test_one_view_is_of_low_confidence():
    result = reconstruct(views_of(4, "rca")[:1], FAST)
    assert result.confidence.level == "low" and np.isnan(result.confidence.consistency)
    assert "depth" in result.confidence.statement and "depth" in result.error_note


def test_words_of_confidence():
    def judged(score, error_mm, views=2):
        points = np.linspace([0, 0, 0], [0, 0, 9], 10)
        tree = VesselTree((Branch(0, None, points, np.ones(10), error_mm=np.full(10, error_mm)),))
        return sanity.confidence(
            Consistency(score, (1, 3), 0.4, 0.08, 1.0), tree, views=views, matched_share=0.9, agreed_share=0.8
        )

    assert judged(0.9, 1.0)[0].level == "high" and judged(0.9, 1.0)[1] == []
    assert judged(0.9, 3.0)[0].level == "moderate" and judged(0.6, 1.0)[0].level == "moderate"
    low, warnings = judged(0.3, 1.0, views=3)
    assert low.level == "low" and "1 and 3" in warnings[0] and "0.30" in warnings[0]
    assert judged(0.9, 9.0)[0].level == "low" and judged(0.9, 9.0)[1]
    assert low.facts["median_error_mm"] == 1.0


def test_vessels_cut_by_the_edge_are_said():
    cameras, curves = two_cameras(), vessels()
    chains = chains_of(curves, cameras[0])
    whole = View(np.zeros((512, 512), np.float32), cameras[0], np.ones((512, 512), bool), file="a.png")
    assert sanity.vessels_cut(whole, chains) == 0
    end = np.rint(chains.node_pixels[2]).astype(int)
    valid = np.ones((512, 512), bool)
    valid[end[1] + 4 :] = False  # a shutter just below the end of the second vessel
    cut = replace(whole, valid=valid)
    assert sanity.vessels_cut(cut, chains) >= 1
    said = sanity.view_warnings([cut, replace(whole, camera=cameras[1])], [chains, chains_of(curves, cameras[1])])
    assert len(said) == 1 and "View 1 (a.png)" in said[0] and "edge" in said[0]
    assert sanity.vessels_cut(cut, replace(chains, radius_mm=0.3 * chains.radius_mm)) == 0  # thin ends are no loss


def test_views_along_one_line_are_said():
    cameras, curves = two_cameras(), vessels()
    near = replace(cameras[0], primary_deg=cameras[0].primary_deg + 6.0)
    frames = [View(np.zeros((512, 512), np.float32), c, np.ones((512, 512), bool)) for c in (cameras[0], near)]
    said = sanity.view_warnings(frames, [chains_of(curves, view.camera) for view in frames])
    assert any("6\N{DEGREE SIGN}" in text and "depth" in text for text in said)
    opposite = Camera(
        150,
        -5,
        **{k: getattr(near, k) for k in ("sid_mm", "sod_mm", "spacing_row_mm", "spacing_col_mm", "rows", "cols")},
    )
    frames[1] = replace(frames[1], camera=opposite)
    same_line = sanity.view_warnings(frames, [chains_of(curves, frames[0].camera)] * 2)
    assert any("nearly the same line" in text for text in same_line)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    for k, view in enumerate(views_of(4, "rca"), 1):
        Image.fromarray((255 * view.image).astype(np.uint8)).save(folder / f"v{k}.png")
        Image.fromarray(255 * view.mask.astype(np.uint8)).save(folder / f"m{k}.png")
    Image.fromarray(np.zeros((192, 192), np.uint8)).save(folder / "empty.png")
    Image.fromarray(np.zeros((100, 120), np.uint8)).save(folder / "small.png")
    return folder


GEOMETRY = ["--angles", "-30,0", "35,10", "--sid", "1000", "--sod", "750", "--pixel-spacing", "0.8"]
REFUSED = {
    "empty mask": (["--masks", "m1.png", "empty.png"], "empty.png"),
    "mask of another size": (["--masks", "m1.png", "small.png"], "small.png"),
    "one mask for two views": (["--masks", "m1.png"], "mask"),
    "no such catheter": (["--masks", "m1.png", "m2.png", "--catheter-french", "60"], "--catheter-french"),
    "nine views": (["--views", *["v1.png"] * 9], "8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(name, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(files)
    flags, word = REFUSED[name]
    views = [] if "--views" in flags else ["--views", "v1.png", "v2.png"]
    out = tmp_path / "out"
    assert command.status_of(invert.main, [*views, *flags, *GEOMETRY, "--out", str(out), "--quiet"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("licag3d: error: ") and word in lines[0], lines
    assert not out.exists() or not any(out.iterdir())
