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
    assert names == {
        "view_1.png", "view_2.png", "view_1.tif", "view_2.tif", "cameras.json", "truth/cameras.json", "truth/case.json",
        "truth/centerlines.json", "truth/view_1_mask.png", "truth/view_2_mask.png", "truth/view_1_projection.tif",
        "truth/view_2_projection.tif", "truth/held_out/cameras.json", "truth/held_out/view_1.png",
        "truth/held_out/view_1_mask.png", "truth/held_out/view_1_projection.tif"}


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
    ["--views", "0"], ["--artery", "left"], ["--size", "9"], ["--background", "sky"], ["--cases", "two"]])
def test_bad_flags_end_with_status_2_and_one_line_and_write_nothing(tmp_path, capsys, flags):
    assert status_of(simulate.main, ["--out", str(tmp_path / "new"), *flags]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert status_of(simulate.main, ["--out", str(tmp_path / "file"), "--cases", "1", "--size", "64"]) == 2
    assert (tmp_path / "file").read_text() == "x"
