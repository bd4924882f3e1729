# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.simulate``: files, resumption, refusals, and a round trip through the readers."""

from __future__ import annotations

import json
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from licag3d import simulate
from licag3d.command import status_of
from licag3d.io.write_centerlines import read_centerlines_json
from licag3d.metrics.files import read_cameras
from licag3d.phantom.simulate_case import simulate_case
from licag3d.structures import VesselTree

FLAGS = ["--cases", "2", "--seed", "4", "--size", "128", "--angle-error-deg", "1", "--images-only"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cases")
    assert status_of(simulate.main, ["--out", str(out), *FLAGS]) == 0
    return out


def test_folders_alternate_arteries_and_hold_the_layout(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["lca_040001", "rca_040000"]
    case = folder / "rca_040000"
    names = {str(path.relative_to(case)) for path in case.rglob("*") if path.is_file()}
    names -= {name for name in names if name.endswith("_twigs.png")}  # where there are any
    assert names == {
        "view_1.png", "view_2.png", "view_1.tif", "view_2.tif", "cameras.json", "truth/cameras.json", "truth/case.json",
        "truth/centerlines.json", "truth/view_1_mask.png", "truth/view_2_mask.png", "truth/view_1_projection.tif",
        "truth/view_2_projection.tif", "truth/held_out/cameras.json", "truth/held_out/view_1.png",
        "truth/held_out/view_1_mask.png", "truth/held_out/view_1_projection.tif", "truth/view_1_devices.png",
        "truth/view_2_devices.png", "truth/held_out/view_1_devices.png"}


def test_files_hold_what_the_function_returns(folder):
    path = folder / "lca_040001"
    case = simulate_case(40001, "lca", offset_mm=5, angle_error_deg=1, background="full", rows=128, cols=128)
    assert np.array_equal(imageio.imread(path / "view_2.png"), case.images[1])
    assert np.array_equal(tifffile.imread(path / "truth" / "view_1_projection.tif"), case.line_integrals[0])
    assert np.array_equal(imageio.imread(path / "truth" / "view_2_mask.png") > 0, case.masks[1])
    assert read_cameras(path / "cameras.json") == case.user_cameras
    assert read_cameras(path / "truth" / "cameras.json") == case.true_cameras
    tree = read_centerlines_json(path / "truth" / "centerlines.json")
    assert [branch.name for branch in tree.branches] == [branch.name for branch in case.tree.branches]
    np.testing.assert_allclose(tree.branches[1].points_lps_mm, case.tree.branches[1].points_lps_mm, atol=1e-4)


def test_a_user_sees_no_offset_in_cameras_json(folder):
    views = json.loads((folder / "rca_040000" / "cameras.json").read_text())["views"]
    assert [view["file"] for view in views] == ["view_1.png", "view_2.png"]
    assert all(view["offset_lps_mm"] == [0, 0, 0] for view in views)


def test_a_second_run_keeps_what_is_there(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert status_of(simulate.main, ["--out", str(folder), *FLAGS]) == 0
    assert "0 cases" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_other_settings_are_not_written_over(folder, capsys):
    assert status_of(simulate.main, ["--out", str(folder), *FLAGS, "--offset-mm", "7"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_mesh_and_labels_are_written_and_agree_with_the_tree(tmp_path):
    from licag3d.phantom.write_case import Content, write_case

    case = simulate_case(6, "rca", rows=64, cols=64)
    case = replace(case, tree=VesselTree(case.tree.branches[:1]))  # one branch is enough, and quick to mesh
    write_case(tmp_path / "case", case, Content(projections=False))
    truth = tmp_path / "case" / "truth"
    stl = (truth / "vessels.stl").read_bytes()
    assert b"SPACE=LPS" in stl[:80] and len(stl) > 84 + 50 * 1000
    import SimpleITK

    image = SimpleITK.ReadImage(str(truth / "labels.nii.gz"))
    inside = 0
    points = case.tree.branches[0].points_lps_mm[::10]
    for point in points:
        inside += image.GetPixel(image.TransformPhysicalPointToIndex([float(x) for x in point])) > 0
    assert inside == len(points)


@pytest.mark.parametrize("flags", [
    ["--cases", "0"], ["--seed", "-3"], ["--separation", "0"], ["--separation", "nan"], ["--offset-mm", "-5"],
    ["--views", "0"], ["--artery", "left"], ["--size", "9"], ["--background", "sky"], ["--cases", "two"],
    ["--kappa", "1.5"], ["--kappa", "-0.1"], ["--kappa", "nan"], ["--bits", "9"], ["--phases", "odd"],
    ["--respiration-mm", "-1"], ["--format", "jpeg"], ["--cine", "--cine-fps", "0"], ["--disease", "all"],
    ["--distance-error-mm", "500"], ["--from-labels", "/nowhere"]])
def test_bad_flags_end_with_status_2_and_one_line_and_write_nothing(tmp_path, capsys, flags):
    assert status_of(simulate.main, ["--out", str(tmp_path / "new"), *flags]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_dicom_cines_and_their_truth_can_be_read_back(tmp_path, capsys):
    """Everything at once, small: views and cines as DICOM, another phase, breathing, residual contrast."""
    from licag3d.io.views import read_views

    flags = ["--cases", "1", "--artery", "rca", "--seed", "5", "--size", "96", "--images-only", "--background", "flat",
             "--format", "dicom", "--cine", "--cine-fps", "4", "--bits", "12", "--phases", "different",
             "--respiration-mm", "5", "--kappa", "0.2", "--angle-error-deg", "1"]
    assert status_of(simulate.main, ["--out", str(tmp_path), *flags]) == 0
    case = tmp_path / "rca_050000"
    record = json.loads((case / "truth" / "case.json").read_text())
    assert record["settings"]["kappa"] == 0.2 and record["files"] == {"format": "dicom", "cines": 2}
    assert record["views"][0]["phase"] == 0 and 0.1 <= record["views"][1]["phase"] <= 0.9
    user = read_cameras(case / "cameras.json")
    for kind in ("view", "contrast_free", "cine"):
        views, _ = read_views([str(case / f"{kind}_{k}.dcm") for k in (1, 2)])
        for view, camera in zip(views, user, strict=True):
            assert view.camera.primary_deg == pytest.approx(camera.primary_deg, abs=1e-9)
            assert (view.camera.sid_mm, view.camera.spacing_row_mm) == (camera.sid_mm, camera.spacing_row_mm)
            assert view.image.shape == (96, 96)
    for number, view in enumerate(views, 1):
        truth = json.loads((case / "truth" / f"cine_{number}.json").read_text())
        assert truth["filled_frames"][0] <= view.frame <= truth["filled_frames"][1]
        points = np.load(case / "truth" / f"cine_{number}_centerlines.npz", allow_pickle=False)["points_lps_mm"]
        samples = sum(branch["samples"] for branch in truth["branches"])
        assert points.shape == (len(truth["time_s"]), samples, 3)
        assert np.ptp(points, axis=0).max() > 5  # it beats
    second = read_centerlines_json(case / "truth" / "view_2_centerlines.json")
    first = read_centerlines_json(case / "truth" / "centerlines.json")
    assert np.abs(second.branches[0].points_lps_mm - first.branches[0].points_lps_mm).max() > 3
    capsys.readouterr()
    assert status_of(simulate.main, ["--out", str(tmp_path), *flags]) == 0
    assert "0 cases" in capsys.readouterr().out
    assert status_of(simulate.main, ["--out", str(tmp_path), *flags[:-4], "--kappa", "0.3"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_trees_from_label_volumes_are_seen_like_sampled_ones(tmp_path, capsys):
    from licag3d.io.write_volume import write_nifti
    from licag3d.phantom.anatomy import sample_tree
    from licag3d.phantom.truth_volumes import truth_labels

    folder = tmp_path / "labels"
    folder.mkdir()
    volume = truth_labels(VesselTree(sample_tree(1, "rca").branches[:3]))
    write_nifti(folder / "heart.nii.gz", volume.values, volume.origin_mm, volume.spacing_mm)
    flags = ["--cases", "1", "--size", "64", "--images-only", "--background", "flat", "--from-labels", str(folder)]
    assert status_of(simulate.main, ["--out", str(tmp_path / "out"), *flags, "--artery", "rca"]) == 0
    (case,) = (tmp_path / "out").iterdir()
    assert case.name == "heart_rca_000000"
    record = json.loads((case / "truth" / "case.json").read_text())
    assert record["source"] == "heart" and record["dominance"] is None
    tree = read_centerlines_json(case / "truth" / "centerlines.json")
    assert 80 < tree.length_mm < 300
    (folder / "heart.nii.gz").write_bytes(b"not a volume")
    assert status_of(simulate.main, ["--out", str(tmp_path / "other"), *flags, "--artery", "rca"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert status_of(simulate.main, ["--out", str(tmp_path / "file"), "--cases", "1", "--size", "64"]) == 2
    assert (tmp_path / "file").read_text() == "x"
