# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vessel_trees import coronary

from licag3d.errors import InputError
from licag3d.io.write_centerlines import (
    centerlines_dict,
    read_centerlines_json,
    write_centerlines_json,
    write_centerlines_vtp,
)
from licag3d.structures import VesselTree


def test_json_schema_and_round_trip(tmp_path):
    tree = coronary()
    path = tmp_path / "centerlines.json"
    write_centerlines_json(path, tree)
    content = json.loads(path.read_text())
    assert content == json.loads(json.dumps(centerlines_dict(tree)))
    assert content["frame"] == "LPS" and content["unit"] == "mm"
    assert list(content["branches"][1])[:5] == ["id", "parent", "name", "points_lps_mm", "radius_mm"]
    again = read_centerlines_json(path)
    for a, b in zip(tree.branches, again.branches, strict=True):
        assert (a.id, a.parent, a.name) == (b.id, b.parent, b.name)
        np.testing.assert_allclose(b.points_lps_mm, a.points_lps_mm, atol=6e-5)
        np.testing.assert_allclose(b.radius_mm, a.radius_mm, atol=6e-5)
        np.testing.assert_allclose(b.confidence, a.confidence, atol=6e-5)
    write_centerlines_json(path, VesselTree())
    assert read_centerlines_json(path) == VesselTree()


GOOD = {"id": 0, "parent": None, "name": "", "points_lps_mm": [[0, 0, 0], [0, 0, 1]], "radius_mm": [1, 1]}


@pytest.mark.parametrize(("change", "words"), [
    ({"id": "0"}, "id is '0'"), ({"id": True}, "id is True"), ({"parent": 7}, "parent 7 does not come before"),
    ({"points_lps_mm": [[0, 0], [0, 1]]}, "shape"), ({"points_lps_mm": []}, "shape|empty"),
    ({"points_lps_mm": [[0, 0, 0], [0, 0]]}, "expected"), ({"points_lps_mm": [["0", 0, 0]]}, "expected numbers"),
    ({"radius_mm": [1]}, "shape"), ({"radius_mm": [1, 0]}, "must be positive"), ({"radius_mm": [1, None]}, "finite"),
    ({"radius_mm": "x"}, "expected numbers"), ({"confidence": [1]}, "shape"),
    ({"points_lps_mm": [[0, 0, 0], [0, 0, 10**400]]}, "expected numbers|finite"),
])
def test_each_fault_is_named_in_one_line(tmp_path, change, words):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"branches": [{**GOOD, **change}]}))
    with pytest.raises(InputError, match=words) as caught:
        read_centerlines_json(path)
    assert "branches[0]" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"branches": 3}', '{"branches": [1]}', "[" * 100_000,
                                  '{"frame": "RAS", "branches": []}', '{"unit": "m", "branches": []}', "\ud800"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError):
        read_centerlines_json(path)


def test_missing_file_and_double_id(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_centerlines_json(tmp_path / "none.json")
    (tmp_path / "c.json").write_text(json.dumps({"branches": [GOOD, GOOD]}))
    with pytest.raises(InputError, match="used twice"):
        read_centerlines_json(tmp_path / "c.json")


_JUNK = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                     lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x, max_size=4),
                     max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional={key: _JUNK for key in (*GOOD, "confidence")}))
def test_fuzzed_branches_read_or_are_refused(tmp_path_factory, entry):
    path = tmp_path_factory.mktemp("fuzz") / "c.json"
    path.write_text(json.dumps({"branches": [{**GOOD, **entry}]}))
    try:
        tree = read_centerlines_json(path)
    except InputError:
        return
    assert tree.branches[0].points_lps_mm.shape[1] == 3 and (tree.branches[0].radius_mm > 0).all()


def test_vtp_structure(tmp_path):
    tree = coronary()
    path = tmp_path / "centerlines.vtp"
    write_centerlines_vtp(path, tree)
    root = ElementTree.parse(path).getroot()
    piece = root.find("PolyData/Piece")
    count = sum(len(b.points_lps_mm) for b in tree.branches)
    assert root.get("type") == "PolyData"
    assert piece.get("NumberOfPoints") == str(count) and piece.get("NumberOfLines") == "4"
    arrays = {a.get("Name"): np.array(a.text.split(), float) for a in piece.find("PointData")}
    np.testing.assert_allclose(arrays["Radius"], np.concatenate([b.radius_mm for b in tree.branches]), rtol=1e-5)
    counts = [len(b.points_lps_mm) for b in tree.branches]
    np.testing.assert_array_equal(arrays["BranchId"], np.repeat([0, 1, 2, 3], counts))
    points = np.array(piece.find("Points/DataArray").text.split(), float).reshape(-1, 3)
    np.testing.assert_allclose(points, np.concatenate([b.points_lps_mm for b in tree.branches]), atol=1e-6)
    connectivity, offsets = (np.array(a.text.split(), int) for a in piece.find("Lines"))
    assert offsets[-1] == count == len(connectivity)
    space = root.find("PolyData/FieldData/DataArray")
    assert bytes(int(c) for c in space.text.split()) == b"LPS\0"


def test_vtp_is_read_by_vtk(tmp_path):
    vtk = pytest.importorskip("vtk", reason="the vtk package is not installed")
    write_centerlines_vtp(tmp_path / "c.vtp", coronary())
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(tmp_path / "c.vtp"))
    reader.Update()
    data = reader.GetOutput()
    assert data.GetNumberOfLines() == 4 and data.GetPointData().GetArray("Radius").GetRange()[0] == pytest.approx(0.45)
    assert data.GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "LPS"
    write_centerlines_vtp(tmp_path / "c.vtp", VesselTree())
    reader.Modified()
    reader.Update()
    assert reader.GetOutput().GetNumberOfPoints() == 0


def test_expected_errors_are_kept_and_old_files_still_read(tmp_path):
    from dataclasses import replace

    from licag3d.structures import VesselTree

    tree = coronary()
    known = VesselTree(
        tuple(
            replace(b, error_mm=np.linspace(0.4, 6.0, len(b.radius_mm))) if k != 1 else b
            for k, b in enumerate(tree.branches)
        )
    )
    write_centerlines_json(tmp_path / "c.json", known)
    back = read_centerlines_json(tmp_path / "c.json")
    np.testing.assert_allclose(back.branches[0].error_mm, known.branches[0].error_mm, atol=1e-4)
    assert back.branches[1].error_mm is None
    write_centerlines_vtp(tmp_path / "c.vtp", known)
    arrays = {a.get("Name"): a.text.split() for a in ElementTree.parse(tmp_path / "c.vtp").iter("DataArray")}
    values = np.array(arrays["ErrorMm"], float)
    first = len(tree.branches[0].radius_mm)
    np.testing.assert_allclose(values[:first], known.branches[0].error_mm, rtol=1e-3)
    assert (values[first : first + len(tree.branches[1].radius_mm)] == -1).all()
    plain = centerlines_dict(tree)
    assert all("error_mm" not in branch for branch in plain["branches"])
    content = centerlines_dict(known)
    spread = VesselTree(tuple(replace(b, radius_sigma_mm=0.1 * b.radius_mm) for b in tree.branches))
    write_centerlines_json(tmp_path / "s.json", spread)
    back = read_centerlines_json(tmp_path / "s.json").branches[1]
    np.testing.assert_allclose(back.radius_sigma_mm, 0.1 * back.radius_mm, atol=1e-4)
    assert back.error_mm is None
    content["branches"][0]["error_mm"][0] = -1.0
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="error_mm"):
        read_centerlines_json(tmp_path / "bad.json")


def test_errors_follow_resampling_and_scale():
    from dataclasses import replace

    from licag3d.structures import VesselTree
    from licag3d.vessels.tree import flatten_tree, resample_tree, transform_tree, validate_tree

    tree = VesselTree(tuple(replace(b, error_mm=np.full(len(b.radius_mm), 2.0)) for b in coronary().branches))
    moved = flatten_tree(transform_tree(resample_tree(tree, 0.7), scale=1.5))
    np.testing.assert_allclose(moved.error_mm, 3.0)
    spread = VesselTree(tuple(replace(b, radius_sigma_mm=np.full(len(b.radius_mm), 0.1)) for b in tree.branches))
    scaled = transform_tree(resample_tree(spread, 0.7), scale=1.5).branches[0]
    np.testing.assert_allclose(scaled.radius_sigma_mm, np.full(len(scaled.radius_mm), 0.15))
    assert validate_tree(tree) == []
    wrong = VesselTree((replace(tree.branches[0], error_mm=np.array([1.0])),))
    assert any("error" in fault for fault in validate_tree(wrong))
