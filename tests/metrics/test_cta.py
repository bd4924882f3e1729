# SPDX-License-Identifier: Apache-2.0
"""A reconstruction against a CTA: alignment, projection, scores, command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cta_cases import make_case, moved, rotation, save

from licag3d import evaluate
from licag3d.command import status_of
from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.io.atomic import write_text
from licag3d.io.cameras import write_cameras_json
from licag3d.io.write_centerlines import write_centerlines_json
from licag3d.metrics.centerline import tree_points
from licag3d.metrics.cta import project_ct, score_cta
from licag3d.metrics.cta_read import CtVolume
from licag3d.metrics.cta_vessels import vessels_from_labels
from licag3d.metrics.images import TruthView, path_mm, view_scores
from licag3d.metrics.rigid import Rigid, align_rigid, measure, read_alignment
from licag3d.metrics.scores import Truth, score
from licag3d.structures import VesselTree


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    root = tmp_path_factory.mktemp("cta")
    save(root / "cta.nii.gz", case.hu, case.origin_mm, case.spacing_mm)
    save(root / "labels.nrrd", case.mask.astype(np.uint8), case.origin_mm, case.spacing_mm)
    (root / "pred").mkdir()
    write_centerlines_json(root / "pred" / "centerlines.json", case.pred)
    write_text(root / "pred" / "cameras.json", write_cameras_json(case.cameras, ["a.png", "b.png"], [None, None]))
    return root


@pytest.fixture(scope="module")
def content(folder) -> dict:
    flags = ["--pred", folder / "pred", "--cta", folder / "cta.nii.gz", "--cta-labels", folder / "labels.nrrd"]
    assert status_of(evaluate.main, [str(flag) for flag in flags]) == 0
    return json.loads((folder / "pred" / "metrics.json").read_text())


def errors(found: Rigid, true: Rigid, points) -> tuple[float, float]:
    """Mean distance in mm over points of the CT, and angle in degrees."""
    turn = found.rotation @ true.rotation.T
    away = np.linalg.norm(found.apply(points) - true.apply(points), axis=1).mean()
    return float(away), float(np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))


def test_the_alignment_is_recovered_and_written_for_the_next_time(content, case, folder):
    found = read_alignment(folder / "pred" / "cta_alignment.json")
    points = tree_points(moved(case.tree, case.rigid.inverse())).points_lps_mm
    away, angle = errors(found, case.rigid, points)
    assert away < 0.5 and angle < 1.0
    assert content["alignment"]["rotation_deg"] == pytest.approx(14, abs=1)
    assert content["alignment"]["share_2mm"] > 0.9 and content["alignment"]["residual_median_mm"] < 0.6


def test_the_3d_scores_are_near_those_against_the_tree_itself(content, case):
    scores = content["cases"]["pred"]["scores"]
    direct = score(case.pred, Truth(case.tree, []))
    for name, tolerance in (
        ("centerline_f1_1mm", 0.06),
        ("centerline_f1_2mm", 0.05),
        ("chamfer_mm", 0.5),
        ("dice", 0.1),
        ("cldice", 0.1),
        ("ot_1mm", 0.05),
        ("radius_mae_mm", 0.15),
    ):
        assert scores[name] == pytest.approx(direct[name], abs=tolerance), name
    assert not any(name.startswith(("heldout", "input", "offset")) for name in scores)


def test_the_view_scores_are_near_those_against_the_projected_tree(content, case):
    scores = content["cases"]["pred"]["scores"]
    true, pred = tree_points(case.tree), tree_points(case.pred)
    for k, camera in enumerate(case.cameras):
        direct = view_scores(case.pred, pred, camera, TruthView(case.tree, true, camera))
        for name, tolerance in (("ssim", 0.02), ("ssim_vessel", 0.08), ("dice", 0.12), ("cldice", 0.12)):
            assert scores[f"{name}_view_{k + 1}"] == pytest.approx(direct[name], abs=tolerance), name
        # The whole frame rewards an empty volume; near the vessels the reconstruction is clearly better.
        assert scores[f"ssim_empty_view_{k + 1}"] > 0.9
        assert scores[f"ssim_vessel_view_{k + 1}"] > scores[f"ssim_vessel_empty_view_{k + 1}"] + 0.08


def test_there_is_a_picture_per_view_that_shows_both(content, folder):
    import imageio.v3 as imageio

    assert content["pictures"] == ["cta_view_1.png", "cta_view_2.png"]
    for name in content["pictures"]:
        picture = imageio.imread(folder / "pred" / name)[:-30].astype(int)
        red, cyan = picture[..., 0], picture[..., 1]
        assert (np.minimum(red, cyan) > 60).sum() > 200  # both at one place
        assert (cyan > red + 60).sum() > 20  # the branch that the reconstruction lacks


def test_a_given_alignment_and_no_labels(folder, case, tmp_path, capsys):
    flags = [
        "--pred",
        folder / "pred",
        "--cta",
        folder / "cta.nii.gz",
        "--out",
        tmp_path / "m.json",
        "--alignment",
        folder / "pred" / "cta_alignment.json",
    ]
    write_text(
        folder / "pred" / "cta_alignment.json",
        json.dumps({"rotation": case.rigid.rotation.tolist(), "translation_mm": case.rigid.translation_mm.tolist()}),
    )
    assert status_of(evaluate.main, [str(flag) for flag in flags]) == 0
    content = json.loads((tmp_path / "m.json").read_text())
    scores = content["cases"]["pred"]["scores"]
    assert "dice" not in scores and scores["dice_view_1"] > 0.6 and scores["cldice_view_2"] > 0.6
    np.testing.assert_allclose(content["alignment"]["translation_mm"], case.rigid.translation_mm, atol=1e-9)
    assert "flatters" in capsys.readouterr().err


def test_a_moved_volume_projects_as_the_tree_does(case):
    """Voxels of an oblique, anisotropic grid against the exact tubes."""
    turn = rotation(33, (2, 1, -1))
    tube = VesselTree(case.tree.branches[:1])
    spacing, shape = (0.5, 0.6, 0.8), (150, 200, 240)
    corner = np.array(shape[::-1]) * spacing / 2
    middle = tree_points(tube).points_lps_mm.mean(0)
    grid = CtVolume(np.zeros((2, 2, 2), np.float32), spacing, middle - turn @ corner, turn)
    z, y, x = np.indices(shape)
    place = grid.to_lps(np.stack((x, y, z), -1) * np.array(spacing)).reshape(-1, 3)
    from scipy.spatial import cKDTree

    line = tree_points(tube, 0.1)
    distance, nearest = cKDTree(line.points_lps_mm).query(place, distance_upper_bound=5.0)
    nearest = np.minimum(nearest, len(line.radius_mm) - 1)
    share = np.clip(0.5 + (line.radius_mm[nearest] - distance) / 0.6, 0, 1).astype(np.float32).reshape(shape)
    shift = Rigid(rotation(9, (1, 1, 0)), np.array((3.0, -2.0, 5.0)))
    image = project_ct(CtVolume(share, spacing, grid.origin_lps_mm, turn), shift, case.cameras[0])
    exact = path_mm(moved(tube, shift), case.cameras[0])
    assert image.sum() == pytest.approx(exact.sum(), rel=0.03)
    assert np.abs(image - exact).mean() < 0.03 * exact.max()


@pytest.mark.parametrize(("degrees", "outliers"), [(0, False), (22, False), (30, True)])
def test_alignments_far_apart_with_noise_and_clutter(case, degrees, outliers):
    rng = np.random.default_rng(degrees)
    points = tree_points(case.tree).points_lps_mm
    true = Rigid(rotation(degrees, (1, 0.3, -2)), rng.uniform(-300, 300, 3))
    source = true.inverse().apply(points)
    if outliers:  # two more vessels of the scan that are no part of the target
        source = np.concatenate((source, source[:300] + (25, 10, 0), source[:200] + (-18, 15, 9)))
    target = points[: int(0.8 * len(points))] + 0.3 * rng.normal(size=(int(0.8 * len(points)), 3))
    fit = align_rigid(source, target, outliers=outliers)
    away, angle = errors(fit.rigid, true, true.inverse().apply(points))
    assert away < 0.4 and angle < 1.0 and fit.share_2mm > 0.98
    again = measure(fit.rigid, source, target)
    assert again.residual_rms_mm == pytest.approx(fit.residual_rms_mm)


def test_of_both_arteries_in_the_labels_only_the_one_shown_is_compared(case):
    other = moved(VesselTree(case.tree.branches[:2]), Rigid(rotation(100, (1, 0, 0)), np.array((5.0, 60.0, 10.0))))
    both = VesselTree(
        (
            *case.tree.branches,
            *(
                type(b)(b.id + 50, None if b.parent is None else b.parent + 50, b.points_lps_mm, b.radius_mm)
                for b in other.branches
            ),
        )
    )
    from licag3d.vessels.rasterize import tree_grid, tree_occupancy

    grid = tree_grid(both, 0.8, margin_mm=6)
    share = tree_occupancy(both, grid, supersample=1).values
    cta = CtVolume((-50 + 400 * share).astype(np.float32), (0.8,) * 3, np.array(grid.origin_mm), np.eye(3))
    labels = CtVolume(share > 0.4, cta.spacing_mm, cta.origin_lps_mm, cta.direction)
    result = score_cta(case.pred, case.cameras[:1], cta, labels, Rigid())
    assert "unconnected" in result.notes[0]
    assert result.scores["centerline_f1_2mm"] > 0.85 and result.scores["dice_view_1"] > 0.6


def test_labels_of_another_scan_or_of_the_whole_heart_are_refused():
    cta = CtVolume(np.zeros((20, 20, 20), np.float32), (1.0,) * 3, np.zeros(3), np.eye(3))
    mask = np.zeros((20, 20, 20), bool)
    mask[5:8, 5:8, 2:18] = True
    with pytest.raises(InputError, match="outside the CTA"):
        vessels_from_labels(cta, CtVolume(mask, cta.spacing_mm, np.full(3, 200.0), np.eye(3)))
    with pytest.raises(InputError, match="heart chambers"):
        vessels_from_labels(cta, CtVolume(mask, (10.0,) * 3, np.zeros(3), np.eye(3)))
    flat = vessels_from_labels(cta, CtVolume(mask, cta.spacing_mm, np.zeros(3), np.eye(3)))
    assert "too little contrast" in flat.notes[0] and flat.share.values.max() == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"rotation": [[1, 0, 0]], "translation_mm": [0, 0, 0]}',
        '{"rotation": [[-1,0,0],[0,1,0],[0,0,1]], "translation_mm": [0,0,0]}',
        '{"frame": "RAS", "rotation": [[1,0,0],[0,1,0],[0,0,1]], "translation_mm": [0,0,0]}',
    ],
)
def test_alignments_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="a.json"):
        read_alignment(tmp_path / "a.json")


def test_a_ct_without_coronary_contrast_ends_with_one_line_or_a_warning(shared_data, folder, tmp_path, capsys):
    flags = [
        "--pred",
        folder / "pred",
        "--cta",
        shared_data / "ct" / "example_ct_sm.nii.gz",
        "--out",
        tmp_path / "m.json",
    ]
    status = status_of(evaluate.main, [str(flag) for flag in flags])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert (status == 2 and "no contrast-filled vessel" in said) or (status == 0 and "doubtful" in said)


@pytest.mark.parametrize(
    "flags", [[], ["--truth", "x", "--cta", "y"], ["--truth", "x", "--series", "2"], ["--cta", "nowhere.nii.gz"]]
)
def test_flags_that_do_not_go_together_end_with_status_2(folder, flags, capsys):
    assert status_of(evaluate.main, ["--pred", str(folder / "pred"), *flags]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_input_frames_are_compared_too(case):
    from licag3d.structures import View

    frames = []
    for camera in case.cameras:
        image = np.exp(-0.15 * path_mm(case.tree, camera)).astype(np.float32) * 0.7
        valid = np.ones(image.shape, bool)
        frames.append(View(image, camera, valid, mask=path_mm(case.tree, camera) > 0.3, intensity="linear"))
    cta = CtVolume(case.hu.astype(np.float32), (case.spacing_mm,) * 3, np.array(case.origin_mm), np.eye(3))
    labels = CtVolume(case.mask, cta.spacing_mm, cta.origin_lps_mm, cta.direction)
    scores = score_cta(case.pred, case.cameras, cta, labels, case.rigid, frames).scores
    assert isinstance(case.cameras[0], Camera)
    for k in (1, 2):
        assert scores[f"frame_dice_view_{k}"] > 0.8 and scores[f"frame_cldice_view_{k}"] > 0.85
        assert scores[f"frame_ssim_vessel_view_{k}"] > scores[f"frame_ssim_vessel_empty_view_{k}"] + 0.1
        assert -1 <= scores[f"frame_whole_ssim_view_{k}"] <= 1
