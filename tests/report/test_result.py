# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from report_case import HOSTILE, camera, reconstruction

from licag3d.errors import InputError
from licag3d.report import Reconstruction, write_result
from licag3d.report.result import FILES, view_caption
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.surface import tree_surface
from licag3d.vessels.volume import Volume


@pytest.fixture(scope="module")
def result() -> Reconstruction:
    result = reconstruction(size=96)
    return replace(result, surface=tree_surface(result.tree, spacing_mm=0.6))


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result") / "new" / "out"
    return folder, write_result(folder, result)


def test_every_promised_file_is_there(written):
    folder, paths = written
    assert set(paths) == {*FILES, "view_1.png", "view_2.png"} == set(os.listdir(folder))
    assert all(path.stat().st_size > 0 for path in paths.values())


def test_files_agree_with_each_other(written, result):
    import SimpleITK
    import trimesh

    from licag3d.io.write_centerlines import read_centerlines_json

    folder, paths = written
    mesh = trimesh.load(paths["vessels.stl"])
    assert mesh.is_watertight
    labels = SimpleITK.ReadImage(str(paths["labels.nii.gz"]))
    attenuation = SimpleITK.ReadImage(str(paths["attenuation.nii.gz"]))
    assert labels.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    assert attenuation.GetPixelIDTypeAsString() == "32-bit float"
    for name in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(labels, name)() == getattr(attenuation, name)()
    tree = read_centerlines_json(paths["centerlines.json"])
    assert len(tree.branches) == len(result.tree.branches)
    for branch in tree.branches:  # every centreline point: vessel in the labels, inside the mesh's box
        for point in branch.points_lps_mm[::10]:
            assert labels[labels.TransformPhysicalPointToIndex(point.tolist())] == 1
            assert np.all(point > mesh.bounds[0]) and np.all(point < mesh.bounds[1])


def test_cameras_are_accepted_as_input(written, result):
    from licag3d.io.cameras import read_cameras_json

    entries = read_cameras_json(written[1]["cameras.json"])
    assert [entry[0].primary_deg for entry in entries] == [c.primary_deg for c in result.cameras]
    assert [tuple(entry[0].offset_lps_mm) for entry in entries] == [c.offset_lps_mm for c in result.cameras]


def test_result_json(written, result):
    summary = json.loads(written[1]["result.json"].read_text("utf-8"))
    for key in ("version", "seed", "device", "seconds", "stages", "peak_memory", "views", "warnings", "assumptions",
                "scale_from", "tree", "surface"):
        assert key in summary
    assert summary["seed"] == 3 and summary["surface"]["open_edges"] == 0
    assert summary["stages"][1]["losses"]["reprojection"]["last"] == pytest.approx(0.0283, abs=1e-3)
    assert summary["stages"][2]["losses"][HOSTILE]["last"] is None  # NaN is no JSON
    assert summary["tree"]["length_mm"] == pytest.approx(result.tree.length_mm)
    assert summary["views"][1]["offset_change_mm"] == pytest.approx(np.linalg.norm([4, -3, 8]))
    assert summary["peak_memory"]["process_mb"] > 20
    assert summary["view_angles"][0]["views"] == [1, 2]


def test_overlay_lies_on_the_vessel(written, result):
    """The drawn centreline passes where the image is dark, the contour does not."""
    from PIL import Image

    picture = np.asarray(Image.open(written[1]["view_1.png"]).convert("RGB")).astype(int)
    rows, cols = result.views[0].image.shape
    assert picture.shape[1] == 2 * cols and picture.shape[0] > 2 * rows
    picture = picture[:2 * rows]
    center = (picture[..., 0] > 200) & (picture[..., 2] < 120)
    contour = (picture[..., 2] > 200) & (picture[..., 0] < 140)
    assert center.sum() > 100 and contour.sum() > 300
    path = np.kron(result.evidence[0].line_integral, np.ones((2, 2)))
    assert np.median(path[center]) > 0
    assert (path[center] > 0).mean() > 0.9


def test_other_files_stay_and_a_failure_leaves_everything(tmp_path, result, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    write_result(tmp_path, result)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert before["notes.txt"] == b"mine"

    def fail(*_, **__):
        raise RuntimeError("in the middle")

    monkeypatch.setattr("licag3d.report.page.report_html", fail)
    with pytest.raises(RuntimeError):
        write_result(tmp_path, replace(result, seed=9))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_same_input_same_files(tmp_path, result):
    first, second = write_result(tmp_path / "a", result), write_result(tmp_path / "b", result)
    for name in set(first) - {"result.json", "report.html"}:  # these two state the memory that was used
        assert first[name].read_bytes() == second[name].read_bytes(), name


def test_nothing_found_is_written_and_said(tmp_path, result):
    nothing = Volume(np.zeros((4, 4, 4), np.float32), (0, 0, 0), 1.0)
    empty = replace(result, tree=VesselTree(), surface=None, attenuation=nothing)
    paths = write_result(tmp_path, empty)
    assert len(paths["vessels.stl"].read_bytes()) == 84
    assert "No branch was found" in paths["report.html"].read_text("utf-8")
    summary = json.loads(paths["result.json"].read_text())
    assert summary["tree"] == {"branches": 0, "components": 0, "length_mm": 0, "branch_length_mm": [],
                               "radius_mm": None}


def test_pieces_are_warned_about(tmp_path, result):
    far = Branch(77, None, np.array([[60.0, 0, 0], [62, 0, 0]]), np.array([0.8, 0.8]))
    paths = write_result(tmp_path, replace(result, surface=None,
                                            tree=VesselTree((*result.tree.branches, far))))
    warnings = json.loads(paths["result.json"].read_text("utf-8"))["warnings"]
    assert any("1 piece beside" in w for w in warnings)
    assert "1 piece beside" in paths["report.html"].read_text("utf-8")


def test_a_single_view_and_behind_the_source(tmp_path, result):
    one = replace(result, views=result.views[:1], cameras=(camera(0, 0, (0, 5000.0, 0), size=128),), evidence=(),
                  metrics=(), given_cameras=None)
    paths = write_result(tmp_path, one)
    assert "Vessel tree from 1 angiogram<" in paths["report.html"].read_text("utf-8")


def test_refusals(tmp_path, result):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_result(tmp_path / "file", result)
    with pytest.raises(ValueError, match="cameras"):
        replace(result, cameras=result.cameras[:1])
    with pytest.raises(ValueError, match="metrics"):
        replace(result, metrics=({},))


def test_captions():
    view = reconstruction(size=32).views[1]
    text = view_caption(2, replace(view, file="b.dcm"), camera(-27.3, -0.1))
    assert text == "View 2: RAO 27.3\N{DEGREE SIGN}, CAU 0.1\N{DEGREE SIGN} (b.dcm, frame 8)"
